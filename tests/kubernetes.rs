//! Pipelines on Kubernetes: against a small API server whose node starts the commands of pods on this machine.

use crate::kube_server::{Fate, KubeServer, TOKEN};
use crate::support::{Bench, Said, digests, wait_until};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

fn smelt(server: &KubeServer, bench: &Bench, args: &[&str]) -> Command {
    let (name, value) = server.config(bench);
    let mut command = bench.command(args);
    command.env(name, value);
    command
}

fn said(server: &KubeServer, bench: &Bench, args: &[&str]) -> Said {
    smelt(server, bench, args).output().unwrap().into()
}

fn begin(server: &KubeServer, bench: &Bench, args: &[&str]) -> Child {
    smelt(server, bench, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A pipeline whose jobs run in pods that see the folder of the test.
fn pipeline(bench: &Bench, name: &str, jobs: &str) -> String {
    let folder = bench.path("");
    let own = format!("{{ image: lab/smelt:1, volumes: {{ {}: work }} }}", folder.display());
    let text = format!("name: {name}\nrun: {{ executor: kubernetes, kubernetes: {own} }}\njobs:\n{jobs}");
    bench.pipeline("p.yaml", &text);
    text
}

/// Digests of an undisturbed run on this machine.
fn local(text: &str, name: &str) -> BTreeMap<String, String> {
    let bench = Bench::new();
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml", "--set", "run.executor=local"]).ok();
    digests(&bench.store(), name)
}

/// Three jobs, the first of them with three workers over three files that lie in the folder of the test.
fn three(bench: &Bench) -> String {
    for file in 0..3 {
        let line = |i: u32| format!("{{\"id\":\"{:03}\",\"text\":\"text {i}\"}}\n", file * 50 + i);
        let lines: String = (0..50).map(line).collect();
        std::fs::write(bench.path(&format!("{file}.jsonl")), lines).unwrap();
    }
    let paths = bench.path("*.jsonl");
    format!(
        "  raw: {{ stage: ingest, config: {{ paths: [\"{}\"], id_field: id }}, run: {{ workers: 3 }} }}\n  \
         kept: {{ stage: dedup, input: raw, config: {{ near: false }} }}\n  model: {{ stage: STAGE(train) }}\n",
        paths.display()
    )
}

#[test]
fn a_pipeline_in_pods_has_the_digests_of_a_local_run() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    let text = pipeline(&bench, "pods", &three(&bench));
    let run = said(&server, &bench, &["run", "p.yaml"]).ok();
    assert!(run.out.contains("Kubernetes job smelt-"), "{run:#?}");
    assert_eq!(digests(&bench.store(), "pods"), local(&text, "pods"));
    let (jobs, pods) = {
        let world = server.world.lock().unwrap();
        (world.created.len(), world.all("pods").len())
    };
    assert_eq!((jobs, pods), (3, 5), "three of the pods are workers of one job");
    assert!(bench.smelt(&["logs", "model"]).ok().out.contains("step 7"));
    let again = said(&server, &bench, &["run", "p.yaml"]).ok().out;
    assert!(again.contains("nothing to do"), "{again}");
    assert_eq!(server.world.lock().unwrap().created.len(), 3);
    // Nothing that lies about holds the credential.
    let found = Command::new("grep").args(["-rlF", TOKEN]).arg(bench.path("artifacts")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

/// Watches that end after each change, versions that are forgotten, and requests that fail change nothing.
#[test]
fn an_unsteady_api_server_changes_nothing() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    server.trouble.unsteady.store(true, Ordering::SeqCst);
    let text = pipeline(&bench, "unsteady", &three(&bench));
    said(&server, &bench, &["run", "p.yaml"]).ok();
    assert_eq!(digests(&bench.store(), "unsteady"), local(&text, "unsteady"));
    let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::SeqCst);
    assert!(count(&server.trouble.failed) > 0 && count(&server.trouble.forgotten) > 0);
}

#[test]
fn failures_in_pods_arrive_with_their_words() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    pipeline(&bench, "fails", "  raw: { stage: STAGE(count), config: { fail: [0, 3] } }\n");
    let failed = said(&server, &bench, &["run", "p.yaml"]).fails(3);
    assert!(failed.err.contains("error: job `raw` failed: the data are bad\n"), "{failed:#?}");
    assert!(failed.err.contains("--> p.yaml:4:3\n"), "{failed:#?}");
    assert!(bench.smelt(&["logs", "raw"]).ok().out.contains("about to fail with 3"));
    // Exit code 4 is tried again, in new Jobs.
    pipeline(&bench, "fails", "  raw: { stage: STAGE(count), config: { fail: [0, 4] }, run: { retries: 1 } }\n");
    let before = server.world.lock().unwrap().created.len();
    let failed = said(&server, &bench, &["run", "p.yaml"]).fails(4);
    assert!(failed.err.contains("error: job `raw` failed: the moment is bad\n"), "{failed:#?}");
    assert_eq!(server.world.lock().unwrap().created.len(), before + 2);
    server.trouble.refuses.store(true, Ordering::SeqCst);
    let refused = said(&server, &bench, &["run", "p.yaml"]).fails(6);
    let words =
        "Kubernetes does not take job `raw`: jobs.batch is forbidden: User \"ada\" cannot create it in \"lab\" (403)";
    assert!(refused.err.contains(words), "{refused:#?}");
    assert!(refused.err.contains("hint: `kubectl auth can-i create jobs` says whether you may"), "{refused:#?}");
}

#[test]
fn what_pods_could_not_do_is_refused_before_anything_runs() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    let refused = |run: &str, words: &str, hint: &str| {
        let text = format!("name: p\nrun: {run}\njobs:\n  raw: {{ stage: STAGE(count) }}\n");
        bench.pipeline("p.yaml", &text);
        let said = said(&server, &bench, &["run", "p.yaml"]).fails(2).err;
        assert!(said.contains(words) && said.contains(hint) && said.contains("--> p.yaml:4:3"), "{said}");
    };
    refused(
        "{ executor: kubernetes }",
        "error: job `raw` is for Kubernetes, and nothing says what its pods are made of\n",
        "hint: say `run: { kubernetes: { image: … } }`: an image that holds smelt and its stages\n",
    );
    let store = bench.store().directory().unwrap();
    refused(
        "{ executor: kubernetes, kubernetes: { image: i, volumes: { /elsewhere: claim } } }",
        &format!("error: job `raw` is for Kubernetes, whose pods do not see the folder `{}`\n", store.display()),
        "hint: keep the store in a bucket, or mount a claim there",
    );
    assert!(server.world.lock().unwrap().created.is_empty());
    // No cluster at all.
    pipeline(&bench, "p", "  raw: { stage: STAGE(count) }\n");
    let mut nowhere = bench.command(&["run", "p.yaml"]);
    let nowhere =
        Said::from(nowhere.env("KUBECONFIG", bench.path("none")).env("HOME", bench.path("")).output().unwrap());
    assert!(
        nowhere.err.contains("error: Kubernetes does not take job `raw`: no cluster is known here"),
        "{nowhere:#?}"
    );
}

const TRAIN: &str = "  train: { stage: STAGE(train), config: { steps: 60, save_every: 1, delay_ms: 100 } }\n";

#[track_caller]
fn wait_for_steps(bench: &Bench, steps: usize) {
    wait_until("the training has made some steps", || {
        bench.smelt(&["logs", "train"]).out.lines().filter(|line| line.starts_with("step ")).count() >= steps
    });
}

#[test]
fn a_runner_that_is_killed_and_started_again_goes_on_with_the_same_jobs() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    let text = pipeline(&bench, "again", TRAIN);
    let mut run = begin(&server, &bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, 3);
    run.kill().unwrap();
    run.wait().unwrap();
    let run = said(&server, &bench, &["run", "p.yaml"]).ok();
    assert!(run.out.contains("goes on with a run that was interrupted"), "{run:#?}");
    assert_eq!(digests(&bench.store(), "again"), local(&text, "again"));
    let world = server.world.lock().unwrap();
    assert_eq!(world.all("jobs").len(), 1, "{:?}", world.created);
    assert!(world.created.len() == 2 && world.created[0] == world.created[1], "{:?}", world.created);
    let runs = bench.store().runs().unwrap();
    assert_eq!(runs.iter().map(|run| run.state.word()).collect::<Vec<_>>(), ["done"], "it is one run");
}

#[test]
fn a_pod_that_is_lost_and_a_time_limit_lose_no_step() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    let jobs = TRAIN.replace(" } }", " }, run: { time: 3s, retries: 1 } }");
    let text = pipeline(&bench, "limits", &jobs);
    let run = begin(&server, &bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, 3);
    assert_eq!(server.world.lock().unwrap().kill_pods(), 1);
    let run = Said::from(run.wait_with_output().unwrap()).ok();
    assert!(run.out.contains("is lost: BackoffLimitExceeded"), "{run:#?}");
    assert!(run.out.contains("met its time limit, and goes on"), "{run:#?}");
    assert_eq!(digests(&bench.store(), "limits"), local(&text, "limits"));
    let log = bench.smelt(&["logs", "train"]).ok().out;
    let steps = |step: usize| log.lines().filter(|line| *line == format!("step {step}")).count();
    // Each Job behind the first one does at most the step again in which the one before ended.
    let jobs = server.world.lock().unwrap().created.len();
    assert!(jobs >= 3 && (0..60).map(steps).sum::<usize>() < 60 + jobs, "{jobs} jobs: {log}");
}

#[test]
fn ctrl_c_leaves_jobs_to_the_cluster_and_cancel_takes_them_away() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    pipeline(&bench, "stops", TRAIN);
    let run = begin(&server, &bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, 2);
    // SAFETY: a plain system call; the process is a child that was not waited for.
    unsafe { libc::kill(run.id() as i32, libc::SIGINT) };
    let stopped = Said::from(run.wait_with_output().unwrap()).fails(4);
    assert!(stopped.err.contains("stopped here; the cluster goes on with 1 job"), "{stopped:#?}");
    assert_eq!(server.world.lock().unwrap().all("jobs").len(), 1);
    let name = bench.store().runs().unwrap().remove(0).run;
    let cancelled = said(&server, &bench, &["cancel", &name]).ok().out;
    assert!(cancelled.contains(&format!("run {name}: cancelled 1 job on Kubernetes: smelt-")), "{cancelled}");
    wait_until("the pod is gone", || server.world.lock().unwrap().all("pods").is_empty());
    let nothing = said(&server, &bench, &["cancel", &name]).fails(2).err;
    assert!(nothing.contains(&format!("no cluster has jobs of run `{name}`")), "{nothing}");
}

#[test]
fn ranks_are_pods_that_find_the_first_one() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    std::fs::write(bench.path("meet.py"), crate::slurm::RANKS).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bench.path("meet.py"), executable).unwrap();
    pipeline(&bench, "ranks", "  met: { stage: ./meet.py, run: { nodes: 2, gpus: 1 } }\n");
    said(&server, &bench, &["run", "p.yaml"]).ok();
    let store = bench.store();
    let manifest = store.manifest(&store.pointer("ranks", "met").unwrap().unwrap().artifact).unwrap().unwrap();
    let text = store.get(&store.file_key(&manifest, "met", &manifest.ports["met"].files[0])).unwrap();
    let line = |rank: u32| {
        format!("RANK={rank} WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 NODE_RANK={rank} MASTER_ADDR=127.0.0.1")
    };
    assert_eq!(String::from_utf8_lossy(&text), format!("{}\n{}\n", line(0), line(1)));
    // The service by which they meet belongs to the Job, and goes with it.
    let world = server.world.lock().unwrap();
    let (jobs, services) = (world.all("jobs"), world.all("services"));
    let owner = &services[0]["metadata"]["ownerReferences"][0];
    assert_eq!((owner["kind"].as_str(), &owner["uid"]), (Some("Job"), &jobs[0]["metadata"]["uid"]));
    assert_eq!(services[0]["metadata"]["name"], jobs[0]["metadata"]["name"]);
}

/// The names of all Jobs that were created.
fn created(server: &KubeServer) -> Vec<String> {
    server.world.lock().unwrap().created.clone()
}

#[test]
fn a_job_that_somebody_deletes_fails_and_goes_on_later() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    let text = pipeline(&bench, "deleted", TRAIN);
    let run = begin(&server, &bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, 3);
    let name = created(&server).remove(0);
    server.world.lock().unwrap().remove("jobs", &name).unwrap();
    let failed = Said::from(run.wait_with_output().unwrap()).fails(4).err;
    let words = format!(
        "error: job `train` failed: somebody deleted Kubernetes job {name}\n  --> p.yaml:4:3\nhint: the same command \
         goes on from what is saved\n"
    );
    assert!(failed.contains(&words), "{failed}");
    said(&server, &bench, &["run", "p.yaml"]).ok();
    assert_eq!(digests(&bench.store(), "deleted"), local(&text, "deleted"));
    let log = bench.smelt(&["logs", "train"]).ok().out;
    assert!(!log.lines().any(|line| line == "step 0"), "it went on from what was saved: {log}");
}

#[test]
fn pods_that_have_too_little_memory_or_write_nothing_are_told_apart() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    pipeline(&bench, "p", "  raw: { stage: STAGE(count) }\n");
    let fails = |fate: Fate, code: i32, words: &str, hint: &str| {
        *server.trouble.fate.lock().unwrap() = fate;
        let failed = said(&server, &bench, &["run", "p.yaml"]).fails(code).err;
        let name = created(&server).pop().unwrap();
        let words = words.replace("NAME", &name);
        let expected = format!("error: job `raw` failed: {words}\n  --> p.yaml:4:3\nhint: {hint}\n");
        assert!(failed.contains(&expected), "{failed}");
    };
    let words = "it took more memory than its pod may (Kubernetes job NAME)";
    fails(Fate::OutOfMemory, 6, words, "say more in its `run: { memory: … }`");
    let words = "Kubernetes job NAME ended well, and nothing is in artifacts";
    fails(Fate::Nothing, 5, words, "do the pods see the same store?");
    assert_eq!(created(&server).len(), 2, "neither is tried again");
}

#[test]
fn status_and_plan_tell_for_what_a_job_waits_in_the_cluster() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    let why = "ImagePullBackOff: Back-off pulling image \"lab/smelt:1\": not found";
    pipeline(&bench, "waits", "  raw: { stage: STAGE(count) }\n");
    *server.trouble.fate.lock().unwrap() = Fate::NoImage;
    let mut run = begin(&server, &bench, &["run", "p.yaml"]);
    wait_until("the job is created", || !created(&server).is_empty());
    let name = created(&server).remove(0);
    let waits = format!("Kubernetes job {name} waits, {why}");
    let mut told = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    let warning = told.find(|line| line.contains(" warning "));
    let hint = "is `image` right, and may the cluster pull it? It tries again; `smelt cancel` ends it";
    assert!(warning.as_ref().is_some_and(|line| line.ends_with(&format!("{waits}; {hint}"))), "{warning:?}");
    let status = || said(&server, &bench, &["status", "p.yaml"]).ok().out;
    wait_until("status tells of it", || status().contains(&waits));
    let line = status().lines().find(|line| line.contains(&waits)).unwrap().to_owned();
    assert_eq!(line.split_whitespace().take(3).collect::<Vec<_>>(), ["raw", "count", "submitted"], "{line}");
    let plan = said(&server, &bench, &["plan", "p.yaml"]).ok().out;
    assert!(plan.contains(&format!("  raw  submitted  {waits}\n")), "{plan}");
    assert!(plan.ends_with("0 new, 0 cached, 0 after them, 1 on the cluster; nothing was run\n"), "{plan}");
    let run_name = bench.store().runs().unwrap().remove(0).run;
    said(&server, &bench, &["cancel", &run_name]).ok();
    Said::from(run.wait_with_output().unwrap()).fails(4);

    // The runner may be gone.
    *server.trouble.fate.lock().unwrap() = Fate::NoNode;
    let mut run = begin(&server, &bench, &["run", "p.yaml"]);
    wait_until("another job is created", || created(&server).len() == 2);
    run.kill().unwrap();
    run.wait().unwrap();
    let why = "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.";
    let waits = format!("Kubernetes job {} waits, {why}", created(&server)[1]);
    wait_until("status tells of it", || status().contains(&waits));
    server.trouble.refuses.store(true, Ordering::SeqCst);
    let told = status();
    assert!(told.contains("Kubernetes does not tell: jobs.batch is forbidden: User \"ada\""), "{told}");
}

/// What `doctor` says of Kubernetes.
fn doctor(command: &mut Command) -> (Option<i32>, String) {
    let said = Said::from(command.output().unwrap());
    let lines = said.out.lines().skip_while(|line| !line.contains(" Kubernetes "));
    let lines = lines.take_while(|line| !line.contains(" Slurm "));
    (said.code, lines.map(|line| format!("{line}\n")).collect())
}

#[test]
fn doctor_says_what_of_a_cluster_works() {
    let (server, bench) = (KubeServer::start(), Bench::new());
    let at = &server.address;
    let (code, found) = doctor(&mut smelt(&server, &bench, &["doctor"]));
    assert_eq!(code, Some(0), "{found}");
    let line = |name: &str, found: &str| format!("  ok    {name:<22} {found}\n");
    let rights = "jobs may be created, watched and deleted in `lab`";
    let expected =
        [("Kubernetes", format!("v1.33.0 at {at}")), ("  namespace", "lab".into()), ("  rights", rights.into())];
    assert_eq!(found, expected.map(|(name, found)| line(name, &found)).concat());
    *server.trouble.forbidden.lock().unwrap() = vec!["create", "watch"];
    let (code, found) = doctor(&mut smelt(&server, &bench, &["doctor"]));
    assert_eq!(code, Some(6));
    let refused = "  FAIL    rights               this account may not create jobs, watch jobs, watch pods in `lab`\n\
        \x20       hint: it needs a Role with these verbs, and a RoleBinding: ask whoever runs the cluster\n";
    assert!(found.ends_with(refused), "{found}");
    let (code, found) = doctor(&mut smelt(&server, &bench, &["doctor", "--namespace", "elsewhere"]));
    assert_eq!(code, Some(6));
    assert!(found.contains("  FAIL    namespace            there is no `elsewhere`\n        hint: `kubectl create "));
    assert!(!found.contains("rights"), "{found}");
    server.trouble.refuses.store(true, Ordering::SeqCst);
    let (code, found) = doctor(&mut smelt(&server, &bench, &["doctor"]));
    assert_eq!(code, Some(6));
    let refused = format!("  FAIL  Kubernetes             {at} does not answer: jobs.batch is forbidden: ");
    assert!(found.starts_with(&refused), "{found}");
    // Nobody listens there any more.
    let (config, file) = server.config(&bench);
    let at = server.address.clone();
    drop(server);
    let (code, found) = doctor(bench.command(&["doctor"]).env(config, file));
    assert_eq!(code, Some(6));
    assert!(found.starts_with(&format!("  FAIL  Kubernetes             {at} does not answer: ")), "{found}");
    assert!(found.contains("Connection refused") && found.contains("hint: `kubectl version` asks it too"), "{found}");
    // No cluster at all is no fault.
    let mut nowhere = bench.command(&["doctor"]);
    let (code, found) = doctor(nowhere.env("HOME", bench.path("")).env_remove("KUBECONFIG"));
    assert_eq!(code, Some(0), "{found}");
    assert!(found.starts_with("  note  Kubernetes             no cluster is known here: jobs run on this machine\n"));
    assert!(found.ends_with("        hint: to use one, let KUBECONFIG or ~/.kube/config name it\n"), "{found}");
}
