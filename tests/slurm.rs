//! Pipelines on a real Slurm: two nodes on this machine, which `slurm/slurm.sh` installs and starts. Where it cannot
//! (Debian's packages, as root) these tests say so and check nothing.

use crate::s3_server::{SECRET, Server};
use crate::smoke::repository;
use crate::support::{Bench, Said, digests};
use smelt_store::Store;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    /// The cluster, for one test at a time: nodes are lost in some of them. Nothing where there is none.
    fn lock() -> Option<(MutexGuard<'static, ()>, &'static Cluster)> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        match CLUSTER.get_or_init(Cluster::start) {
            Ok(cluster) => {
                cluster.restore();
                Some((guard, cluster))
            }
            Err(why) => {
                // Past the capture of a test's output, so that everybody sees it.
                let told = format!("SKIPPED: a test on Slurm, because {why}\n");
                std::io::stderr().write_all(told.as_bytes()).unwrap();
                None
            }
        }
    }

    fn start() -> Result<Self, String> {
        // SAFETY: only a question.
        if unsafe { libc::geteuid() } != 0 {
            return Err("only root can install and start it".into());
        }
        if !Path::new("/usr/bin/apt-get").exists() {
            return Err("it is installed with apt-get, which is not here".into());
        }
        let cluster = Self { folder: std::env::temp_dir().join(format!("smelt-slurm-{}", std::process::id())) };
        let last = |said: &Said| said.err.lines().last().unwrap_or("it does not say why").to_owned();
        let installed = cluster.script("install", &[]);
        if installed.code != Some(0) {
            return Err(format!("its packages cannot be installed: {}", last(&installed)));
        }
        // What is installed must start: otherwise a fault here would pass as a missing cluster.
        let started = cluster.script("start", &[&std::process::id().to_string()]);
        assert_eq!(started.code, Some(0), "{started:#?}");
        Ok(cluster)
    }

    fn script(&self, command: &str, args: &[&str]) -> Said {
        let script = repository().join("tests/slurm/slurm.sh");
        let mut run = Command::new(script);
        run.arg(command).arg(&self.folder).args(args).output().expect("bash is there").into()
    }

    /// Both nodes up and nothing in the queue, whatever a test before has left behind.
    fn restore(&self) {
        for id in self.ids() {
            let (name, value) = self.settings();
            drop(Command::new("scancel").arg(&id).env(name, value).output()); // it may have ended meanwhile
        }
        wait_for("the queue is empty", || self.ids().is_empty());
        for node in ["n1", "n2"] {
            if self.slurm("sinfo", &["--noheader", "--nodes", node, "--format=%t"]).contains("down") {
                self.script("revive", &[node]).ok();
            }
        }
        wait_for("both nodes are idle", || self.slurm("sinfo", &["--noheader", "--format=%t %D"]).trim() == "idle 2");
    }

    fn settings(&self) -> (&'static str, PathBuf) {
        ("SLURM_CONF", self.folder.join("slurm.conf"))
    }

    /// A command of Slurm, and what it printed.
    #[track_caller]
    fn slurm(&self, program: &str, args: &[&str]) -> String {
        let (name, value) = self.settings();
        let said: Said = Command::new(program).args(args).env(name, value).output().expect("it is installed").into();
        said.ok().out
    }

    /// Ids of jobs that wait or run.
    fn ids(&self) -> Vec<String> {
        self.slurm("squeue", &["--noheader", "--format=%A"]).lines().map(|id| id.trim().to_owned()).collect()
    }

    /// `smelt` in a folder with this cluster; a training saves after every step.
    fn smelt(&self, bench: &Bench, args: &[&str]) -> Command {
        let (name, value) = self.settings();
        let mut command = bench.command(args);
        command.env(name, value).env("SMELT_SAVE_SECONDS", "0");
        command
    }

    fn said(&self, bench: &Bench, args: &[&str]) -> Said {
        self.smelt(bench, args).output().expect("smelt starts").into()
    }

    fn begin(&self, bench: &Bench, args: &[&str]) -> Child {
        let mut command = self.smelt(bench, args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("smelt starts")
    }

    /// How often jobs of a name were submitted, as long as Slurm remembers them.
    fn submitted(&self, name: &str) -> usize {
        let jobs = self.slurm("scontrol", &["--oneliner", "show", "job"]);
        jobs.lines().filter(|line| line.contains(&format!(" JobName={name} "))).count()
    }

    /// Waits for a run. Slurm would hold back for two minutes what it has queued again. A few seconds are enough for
    /// a node to forget the job's first start: until then it does not take the second one.
    fn hurried(&self, mut run: Child) -> Said {
        let mut seen: BTreeMap<String, Instant> = BTreeMap::new();
        wait_for("the run ends", || {
            for id in self.slurm("squeue", &["--noheader", "--states=PENDING", "--format=%A"]).lines() {
                let since = *seen.entry(id.trim().to_owned()).or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_secs(4) {
                    let (name, value) = self.settings();
                    let update = ["update", &format!("job={}", id.trim()), "StartTime=now"];
                    // It may have started meanwhile.
                    drop(Command::new("scontrol").args(update).env(name, value).output());
                }
            }
            std::thread::sleep(Duration::from_millis(500));
            run.try_wait().expect("it can be waited for").is_some()
        });
        ended(run)
    }
}

/// Waits for a condition. Slurm takes its time, on a machine that runs other tests beside it.
#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(240), "waited four minutes for this: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn store(bench: &Bench) -> Store {
    bench.store()
}

/// Waits until a job has made so many steps of a training in the newest run.
#[track_caller]
fn wait_for_steps(bench: &Bench, job: &str, steps: u64) {
    wait_for(&format!("{job} has made {steps} steps"), || {
        let Some(run) = store(bench).runs().unwrap().pop() else { return false };
        let events = bench.smelt(&["logs", job, "--events", "--run", &run.run]).out;
        let done = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["done"].as_u64();
        events.lines().filter_map(done).any(|done| done >= steps)
    });
}

fn ended(child: Child) -> Said {
    child.wait_with_output().expect("it ends").into()
}

/// Digests of an undisturbed run on this machine.
fn local(text: &str, name: &str) -> BTreeMap<String, String> {
    let bench = Bench::new();
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml", "--set", "run.executor=local"]).ok();
    digests(&bench.store(), name)
}

fn manifest(bench: &Bench, pipeline: &str, job: &str) -> smelt_schemas::Manifest {
    let store = store(bench);
    let pointer = store.pointer(pipeline, job).unwrap().expect("the job is done");
    store.manifest(&pointer.artifact).unwrap().expect("its manifest is there")
}

const PRETRAINING: &str = "
name: nodes
run: { executor: slurm, cores: 1, memory: 500MiB }
jobs:
  practice: { stage: problems, config: { stream: 1, characters: 20000 } }
  tokens: { stage: tokenize, input: practice.documents, config: { vocabulary: 300 } }
  base:
    stage: pretrain
    input: { tokens: tokens, tokenizer: tokens.tokenizer }
    config:
      steps: 800
      sequences: 2
      context: 32
      warmup: 1
      model: { width: 32, layers: 2, dense_width: 64, experts: 4, expert_width: 16, heads: 2, nope: 8, rope: 8,
        value: 8, latent: 16, mtp_layers: 1 }
";

#[test]
fn a_node_that_is_lost_in_the_middle_of_a_pretraining_changes_no_byte() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let bench = Bench::new();
    bench.pipeline("p.yaml", PRETRAINING);
    let run = cluster.begin(&bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, "base", 10);
    let node = cluster.slurm("squeue", &["--noheader", "--states=RUNNING", "--format=%N"]).trim().to_owned();
    cluster.script("lose", &[&node]).ok();
    wait_for("Slurm has noticed, and queued the job again", || {
        cluster.slurm("scontrol", &["--oneliner", "show", "job"]).contains(" Restarts=1 ")
    });
    cluster.script("revive", &[&node]).ok();
    let said = cluster.hurried(run).ok();
    assert!(said.out.contains("3 jobs in"), "{said:#?}");
    let base = manifest(&bench, "nodes", "base");
    assert_eq!(base.provenance.resumed, 1, "it went on where it was");
    assert_eq!(digests(&store(&bench), "nodes"), local(PRETRAINING, "nodes"));
    assert_eq!(cluster.submitted("nodes.base"), 1, "Slurm itself queued it again");
}

#[test]
fn a_runner_that_is_killed_and_started_again_adopts_what_runs() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let bench = Bench::new();
    let text = PRETRAINING.replace("name: nodes", "name: again");
    bench.pipeline("p.yaml", &text);
    let mut run = cluster.begin(&bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, "base", 5);
    run.kill().unwrap();
    ended(run);
    let status = cluster.said(&bench, &["status", "p.yaml"]).ok().out;
    assert!(status.contains("submitted") && status.contains("RUNNING"), "{status}");
    let said = cluster.said(&bench, &["run", "p.yaml"]).ok();
    assert!(said.out.contains("goes on with what Slurm has of this run: 1"), "{said:#?}");
    assert_eq!(digests(&store(&bench), "again"), local(&text, "again"));
    assert_eq!(manifest(&bench, "again", "base").provenance.resumed, 0, "nobody disturbed it");
    for job in ["practice", "tokens", "base"] {
        assert_eq!(cluster.submitted(&format!("again.{job}")), 1, "{job}");
    }
    let runs = store(&bench).runs().unwrap();
    assert_eq!(runs.iter().map(|run| run.state.word()).collect::<Vec<_>>(), ["done"], "it is one run");
}

const TRAIN: &str = "
name: stops
run: { executor: slurm }
jobs:
  train: { stage: STAGE(train), config: { steps: 150, save_every: 1, delay_ms: 100 } }
  after: { stage: STAGE(count), when: train.state >= 0, config: { rows: 3 } }
";

/// Whether the test's trainer has made all its steps, each once.
fn is_trained(bench: &Bench, pipeline: &str) -> bool {
    let state = (0..150).fold(0u64, |state, _| state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    let (store, made) = (bench.store(), manifest(bench, pipeline, "train"));
    let found = store.get(&store.file_key(&made, "model", &made.ports["model"].files[0])).unwrap();
    found == state.to_string().as_bytes()
}

#[test]
fn ctrl_c_leaves_jobs_to_slurm_and_cancel_takes_them_away() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let bench = Bench::new();
    bench.pipeline("p.yaml", TRAIN);
    let run = cluster.begin(&bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, "train", 2);
    // SAFETY: a process that this test started.
    unsafe { libc::kill(run.id() as i32, libc::SIGINT) };
    let said = ended(run).fails(4);
    assert!(said.err.contains("error: stopped here; Slurm goes on with 2 jobs\n"), "{said:#?}");
    let name = store(&bench).runs().unwrap()[0].run.clone();
    let hint = format!("hint: the same command goes on with them, `smelt cancel {name}` ends them");
    assert!(said.err.contains(&hint), "{said:#?}");
    let plan = cluster.said(&bench, &["plan", "p.yaml"]).ok().out;
    let ids = cluster.ids();
    assert!(plan.contains(&format!("  train  submitted  Slurm job {}: RUNNING", ids[1])), "{plan} {ids:?}");
    assert!(plan.ends_with("0 new, 0 cached, 0 after them, 2 on the cluster; nothing was run\n"), "{plan}");
    let cancelled = cluster.said(&bench, &["cancel"]).ok().out;
    assert_eq!(cancelled, format!("run {name}: cancelled 2 jobs on Slurm: {}, {}\n", ids[1], ids[0]));
    wait_for("nothing is left in the queue", || cluster.ids().is_empty());
    let nothing = cluster.said(&bench, &["cancel"]).fails(2);
    assert_eq!(nothing.err, "error: Slurm has no job of any run\n");
    // A runner that waits for a job is told, and another run goes on from the last save.
    let run = cluster.begin(&bench, &["run", "p.yaml"]);
    wait_for("a second run has begun", || store(&bench).runs().unwrap().len() == 2);
    wait_for_steps(&bench, "train", 3);
    cluster.said(&bench, &["cancel"]).ok();
    let said = ended(run).fails(4);
    assert!(said.err.contains("error: job `train` failed: it was cancelled on Slurm (job "), "{said:#?}");
    let said = cluster.said(&bench, &["run", "p.yaml"]).ok();
    assert!(said.out.contains("2 jobs in"), "{said:#?}");
    let resumed = manifest(&bench, "stops", "train").provenance.resumed;
    assert_eq!(resumed, 2);
    assert!(is_trained(&bench, "stops"));
}

#[test]
fn before_its_time_is_over_a_job_saves_and_is_queued_again() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let bench = Bench::new();
    // It saves when it is told to, and never by itself.
    let text = TRAIN.replace("name: stops", "name: limit").replace("save_every: 1,", "save_every: 3,");
    bench.pipeline("p.yaml", &text);
    let run = cluster.begin(&bench, &["run", "p.yaml"]);
    wait_for_steps(&bench, "train", 4);
    let ids = cluster.ids();
    let train = ids.last().expect("it runs");
    cluster.slurm("scancel", &["--signal=USR1", "--batch", train]);
    wait_for("it is queued again under the same id", || {
        cluster.slurm("scontrol", &["--oneliner", "show", "job", train]).contains(" Restarts=1 ")
    });
    wait_for("it is not running any more", || {
        cluster.slurm("scontrol", &["--oneliner", "show", "job", train]).contains("JobState=PENDING")
    });
    let said = cluster.hurried(run).ok();
    assert!(said.out.contains("2 jobs in"), "{said:#?}");
    assert_eq!(manifest(&bench, "limit", "train").provenance.resumed, 1);
    assert!(is_trained(&bench, "limit"));
    let log = cluster.said(&bench, &["logs", "train"]).ok().out;
    let steps = |step: usize| log.lines().filter(|line| *line == format!("step {step}")).count();
    assert!((0..150).all(|step| steps(step) == 1), "no step was done twice: {log}");
}

#[test]
fn a_failure_on_a_node_arrives_with_its_words_and_what_hangs_on_it_does_not_run() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let bench = Bench::new();
    let text = "name: fails\nrun: { executor: slurm }\njobs:\n  \
        raw: { stage: STAGE(count), config: { fail: [0, 3] } }\n  even: { stage: STAGE(merge), input: raw }\n";
    let said = cluster.said(bench.pipeline("p.yaml", text), &["run", "p.yaml"]).fails(3);
    assert!(said.err.contains("error: job `raw` failed: the data are bad\n"), "{said:#?}");
    assert!(said.err.contains("--> p.yaml:4:3\n"), "{said:#?}");
    assert!(cluster.said(&bench, &["logs", "raw"]).ok().out.contains("about to fail with 3"));
    wait_for("what waited for it is cancelled", || cluster.ids().is_empty());
    assert_eq!(store(&bench).pointer("fails", "even").unwrap(), None);
    // What Slurm does not take says how it was asked.
    let said = cluster.said(&bench, &["run", "p.yaml", "--set", "run.partition=nowhere"]).fails(2);
    assert!(said.err.contains("job `raw`: Slurm does not take it: invalid partition specified: nowhere"), "{said:#?}");
    assert!(said.err.contains("hint: it was submitted with `sbatch --partition=nowhere --nodes=1"), "{said:#?}");
    // What does not even start tells what the shell said.
    let said = cluster.said(&bench, &["run", "p.yaml", "--set", "run.container=no-such-container"]).fails(6);
    assert!(said.err.contains("ended with exit status 127: "), "{said:#?}");
    assert!(said.err.contains("no-such-container: not found"), "{said:#?}");
}

#[test]
fn a_pipeline_on_slurm_has_the_digests_of_a_local_run() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let bench = Bench::new();
    let folder = bench.path("artifacts");
    let set = |words: &'static str| ["--set", words];
    let options = [
        &["run", "pipelines/smoke.yaml", "--only", "heldout", "--only", "short"][..],
        &set("run.executor=slurm"),
        &set("clean.run.workers=2"),
        &set("base.run.container=env IN_CONTAINER=1"),
        &set("base.run.setup=ulimit -n 512"),
    ]
    .concat();
    let (name, value) = cluster.settings();
    let said: Said = crate::smoke::command(&folder, &options).env(name, value).output().unwrap().into();
    assert!(said.ok().out.contains("9 jobs in"));
    let expected = digests(&crate::smoke::open(crate::smoke::undisturbed()), "smoke");
    let found = digests(&store(&bench), "smoke");
    assert!(found.len() >= 9 && found.iter().all(|(port, digest)| expected[port] == *digest), "{found:#?}");
    assert_eq!(cluster.submitted("smoke.clean"), 2, "a task of an array for each worker");
}

pub(crate) const RANKS: &str = r#"#!/usr/bin/env python3
import json, os, pathlib, socket, sys, time
if sys.argv[1] == "describe":
    print(json.dumps({"protocol": 1, "name": "meet", "version": 1, "about": "Ranks that meet", "io": "files",
        "ranks": True, "outputs": [{"name": "met", "kind": "listing@1.0"}], "config": {}}))
else:
    job = json.load(open(sys.argv[2]))
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR"]
    mine = " ".join(name + "=" + os.environ[name] for name in names)
    at = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if os.environ["RANK"] == "0":
        server = socket.create_server(at)
        other = server.accept()[0].makefile().readline()
        pathlib.Path(job["outputs"]["met"], "met.txt").write_text(mine + "\n" + other)
    else:
        for _ in range(100):
            try:
                socket.create_connection(at).sendall((mine + "\n").encode())
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
"#;

#[test]
fn ranks_on_several_nodes_find_each_other_and_the_first_one_commits() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let bench = Bench::new();
    std::fs::write(bench.path("meet.py"), RANKS).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bench.path("meet.py"), executable).unwrap();
    let text = "name: ranks\nrun: { executor: slurm, nodes: 2, gpus: 1 }\njobs:\n  met: { stage: ./meet.py }\n";
    let said = cluster.said(bench.pipeline("p.yaml", text), &["run", "p.yaml"]).ok();
    assert!(said.out.contains("1 jobs in"), "{said:#?}");
    let found = manifest(&bench, "ranks", "met");
    let file = &found.ports["met"].files[0];
    let text = store(&bench).get(&store(&bench).file_key(&found, "met", file)).unwrap();
    let line = |rank: u32| {
        format!("RANK={rank} WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 NODE_RANK={rank} MASTER_ADDR=127.0.0.1")
    };
    assert_eq!(String::from_utf8_lossy(&text), format!("{}\n{}\n", line(0), line(1)));
}

/// The nodes reach the bucket with the variables of the login shell; what Slurm itself writes ends there, too.
#[test]
fn a_store_in_a_bucket_has_what_nodes_make_and_say() {
    let Some((_guard, cluster)) = Cluster::lock() else { return };
    let (server, bench) = (Server::start(), Bench::new());
    let text = "name: bucket\nrun: { executor: slurm }\njobs:\n  raw: { stage: STAGE(count), config: { rows: 40 } }\n  \
        even: { stage: STAGE(merge), input: raw }\n  model: { stage: STAGE(train) }\n";
    bench.pipeline("p.yaml", text);
    let smelt = |args: &[&str]| {
        let mut smelt = cluster.smelt(&bench, &[args, &["--store", "s3://bucket/nodes"]].concat());
        Said::from(smelt.envs(server.environment(SECRET)).output().unwrap())
    };
    smelt(&["run", "p.yaml"]).ok();
    let query = "select stage, port, digest from smelt.artifacts where port <> 'metrics' order by 1, 2";
    let found = smelt(&["sql", query, "--format", "csv"]).ok().out;
    let here = Bench::new();
    here.pipeline("p.yaml", text).smelt(&["run", "p.yaml", "--set", "run.executor=local"]).ok();
    assert_eq!(found, here.smelt(&["sql", query, "--format", "csv"]).ok().out);
    assert!(smelt(&["logs", "model"]).ok().out.contains("step 19"));
    let failed = smelt(&["run", "p.yaml", "--set", "run.container=no-such-container", "--set", "raw.config.rows=41"]);
    assert!(failed.err.contains("no-such-container: not found"), "{failed:#?}");
    let said = smelt(&["logs", "raw"]).ok().out;
    assert!(said.contains("no-such-container: not found"), "what Slurm wrote is among the logs: {said}");
}
