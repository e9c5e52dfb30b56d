//! Artifacts that go from one store to another, and two people who work on one.

use crate::s3_server::{SECRET, Server};
use crate::support::{Bench, digests};
use smelt_store::Store;

const PIPELINE: &str = "
name: shared
jobs:
  raw: { stage: STAGE(count), config: { rows: 40, units: 4 } }
  even: { stage: STAGE(merge), input: raw }
  model: { stage: STAGE(train) }
";

fn open(bench: &Bench, name: &str) -> Store {
    Store::open(bench.path(name).to_str().unwrap()).unwrap()
}

#[test]
fn what_was_pushed_is_pulled_on_another_machine_where_a_run_does_nothing() {
    let (server, here, there) = (Server::start(), Bench::new(), Bench::new());
    here.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    there.pipeline("p.yaml", PIPELINE);
    let bucket = "s3://bucket/team";
    let push = || server.smelt(&here, SECRET, &["push", bucket]).ok().out;
    let first = push();
    assert!(first.starts_with("3 artifacts pushed to s3://bucket/team, "), "{first}");
    assert!(first.ends_with(" files; 3 names now lead to them\n"), "{first}");
    assert_eq!(push(), "0 artifacts pushed to s3://bucket/team, 0 B in 0 files, 3 were there\n");
    let pulled = server.smelt(&there, SECRET, &["pull", bucket]).ok().out;
    assert!(pulled.starts_with("3 artifacts pulled from s3://bucket/team, "), "{pulled}");
    assert!(there.smelt(&["artifacts", "verify", "--deep"]).ok().out.starts_with("3 artifacts, "));
    assert!(there.smelt(&["run", "p.yaml"]).ok().out.contains("shared: nothing to do, 3 jobs cached"));
    assert_eq!(digests(&there.store(), "shared"), digests(&here.store(), "shared"));
    let said = server.smelt(&here, SECRET, &["artifacts", "verify", "--deep", "--store", bucket]).ok().out;
    assert!(said.starts_with("3 artifacts, "), "{said}");
}

#[test]
fn a_job_or_a_tag_goes_with_its_lineage_or_without() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    bench.smelt(&["artifacts", "tag", "best", "even"]).ok();
    let said = bench.smelt(&["push", "job", "model"]).ok().out;
    assert!(said.starts_with("1 artifacts pushed to job, "), "{said}");
    let said = bench.smelt(&["push", "lineage", "best"]).ok().out;
    assert!(said.starts_with("2 artifacts pushed to lineage, "), "{said}");
    let said = bench.smelt(&["push", "alone", "best", "--no-lineage"]).ok().out;
    assert!(said.starts_with("1 artifacts pushed to alone, "), "{said}");
    let even = bench.store().pointer("shared", "even").unwrap().unwrap().artifact;
    for name in ["lineage", "alone"] {
        let store = open(&bench, name);
        assert_eq!(store.tag("best").unwrap().unwrap().artifact, even);
        assert_eq!(store.pointer("shared", "even").unwrap().unwrap().artifact, even);
    }
    // On the other side the rest is new, and what came is used.
    let plan = bench.smelt(&["plan", "p.yaml", "--store", "lineage"]).ok().out;
    assert!(plan.contains("1 new, 2 cached"), "{plan}");
    let said = bench.smelt(&["push", "job", "nothing"]).fails(2).err;
    assert!(said.contains("`nothing` is no job, tag or digest in artifacts"), "{said}");
    let said = bench.smelt(&["pull", "s3://"]).fails(2).err;
    assert!(said.starts_with("error: `s3://` is no store: it names no bucket\n  --> STORE\n"), "{said}");
}

#[test]
fn a_push_that_was_killed_at_any_write_goes_on_and_nothing_is_seen_before() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    let expected = digests(&bench.store(), "shared");
    let mut kills = 0;
    for n in 1.. {
        let name = format!("killed{n}");
        let mut push = bench.command(&["push", &name]);
        let status = push.env("SMELT_KILL_AT_WRITE", format!("smelt:{n}")).output().unwrap().status;
        if status.success() {
            break;
        }
        kills += 1;
        let store = open(&bench, &name);
        for manifest in store.manifests().unwrap().0 {
            assert_eq!(store.look_over(&manifest).unwrap(), Vec::<String>::new(), "killed at write {n}");
        }
        for (_, job, pointer) in store.pointers().unwrap() {
            assert!(store.manifest(&pointer.artifact).unwrap().is_some(), "`{job}`, killed at write {n}");
        }
        bench.smelt(&["push", &name]).ok();
        assert_eq!(digests(&store, "shared"), expected, "killed at write {n}");
        bench.smelt(&["artifacts", "verify", "--deep", "--store", &name]).ok();
    }
    assert!(kills > 10, "files, manifests and names are more writes than {kills}");
}

#[test]
fn a_port_is_exported_to_a_plain_folder() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    let said = bench.smelt(&["export", "raw", "plain/raw"]).ok().out;
    assert!(said.starts_with("port documents of raw: 4 files, ") && said.ends_with(", in plain/raw\n"), "{said}");
    let names: Vec<_> = std::fs::read_dir(bench.path("plain")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["raw"]);
    assert_eq!(std::fs::read_dir(bench.path("plain/raw")).unwrap().count(), 4);
    let said = bench.smelt(&["export", "raw", "plain/raw"]).fails(2).err;
    assert_eq!(said, "error: `plain/raw` is there already, and holds files\nhint: name a new folder\n");
    let said = bench.smelt(&["export", "raw", "other", "--port", "model"]).fails(2).err;
    assert_eq!(said, "error: `raw` has no port `model`\nhint: its ports: documents\n");
    assert!(!bench.path("other").exists());
}

/// Of two people who start the same pipeline at the same moment, one does each job; the other takes what it commits.
#[test]
fn two_runners_on_one_store_do_nothing_twice() {
    let bench = Bench::new();
    let slow = PIPELINE.replace("units: 4", "units: 4, delay_ms: 100");
    bench.pipeline("p.yaml", &slow);
    let start = || {
        let mut command = bench.command(&["run", "p.yaml", "--cores", "1"]);
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut both = [start(), start()];
    assert!(both.iter_mut().all(|runner| runner.wait().unwrap().success()));
    let store = bench.store();
    let runs: Vec<String> = store.runs().unwrap().into_iter().map(|record| record.run).collect();
    assert_eq!(runs.len(), 2);
    let mut won = std::collections::BTreeMap::<&str, usize>::new();
    for (job, run) in ["raw", "even", "model"].into_iter().flat_map(|job| runs.iter().map(move |run| (job, run))) {
        let events = bench.smelt(&["logs", job, "--events", "--run", run]).out;
        let events: Vec<serde_json::Value> = events.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let committed = events.iter().find(|event| event["type"] == "committed");
        let is_own = committed.is_some_and(|event| event["adopted"] == false);
        *won.entry(job).or_default() += usize::from(is_own);
        let worked = events.iter().any(|event| event["type"] == "progress");
        assert!(is_own || !worked, "whoever did not commit `{job}` has worked on it: {events:?}");
    }
    assert!(won.values().all(|n| *n == 1), "{won:?}");
    assert_eq!(store.artifacts().unwrap().len(), 3);
    bench.smelt(&["artifacts", "verify", "--deep"]).ok();
    let said = bench.smelt(&["artifacts", "gc", "--older-than", "0"]).ok().out;
    assert!(said.starts_with("0 artifacts and 0 attempts, 0 B"), "nothing was left: {said}");
}

#[test]
fn what_a_store_is_like_stands_in_the_pipeline() {
    let bench = Bench::new();
    let with = |store: &str| bench.pipeline("p.yaml", &PIPELINE.replace("jobs:", &format!("store: {store}\njobs:")));
    with("{ url: kept, commit: single_writer, cache: { path: cache, size: 1GiB } }").smelt(&["run", "p.yaml"]).ok();
    assert_eq!(open(&bench, "kept").artifacts().unwrap().len(), 3);
    // A directory is read in place.
    assert_eq!(std::fs::read_dir(bench.path("cache")).unwrap().count(), 0);
    let said = with("{ url: kept, comit: single_writer }").smelt(&["check", "p.yaml"]).fails(2).err;
    assert!(said.contains("unknown key `comit`") && said.contains("--> p.yaml:3:"), "{said}");
    let said = with("{ url: kept, commit: nobody }").smelt(&["check", "p.yaml"]).fails(2).err;
    assert!(said.contains("`create_only` or `single_writer`") && said.contains("--> p.yaml:3:"), "{said}");
    let said = with("{ url: kept, cache: { path: cache, size: 1 gig } }").smelt(&["check", "p.yaml"]).fails(2).err;
    assert!(said.starts_with("error: `1 gig` is no size of a cache\n  --> p.yaml:3:"), "{said}");
    assert!(said.ends_with("hint: write `500MiB` or `50GiB`\n"), "{said}");
}

#[test]
fn a_server_without_create_only_puts_is_refused_unless_one_run_at_a_time_is_promised() {
    let (server, bench) = (Server::start(), Bench::new());
    server.trouble.overwrites.store(true, std::sync::atomic::Ordering::SeqCst);
    bench.pipeline("p.yaml", PIPELINE);
    let refused = server.smelt(&bench, SECRET, &["run", "p.yaml", "--store", "s3://bucket/w"]).fails(6).err;
    assert_eq!(
        refused,
        "error: store s3://bucket/w accepts the same create-only put twice, so two runs could overwrite each other\n\
         hint: use a server that honours If-None-Match, or say `store: { url: …, commit: single_writer }` (or \
         `--single-writer`) and start one run at a time\n"
    );
    server.smelt(&bench, SECRET, &["run", "p.yaml", "--single-writer", "--store", "s3://bucket/w"]).ok();
    let text = PIPELINE.replace("jobs:", "store: { url: 's3://bucket/v', commit: single_writer }\njobs:");
    bench.pipeline("p.yaml", &text);
    server.smelt(&bench, SECRET, &["run", "p.yaml"]).ok();

    // The same for copies. What the file says of its own store says nothing of another one.
    let push = ["push", "s3://bucket/other", "--store", "s3://bucket/v"];
    let refused = server.smelt(&bench, SECRET, &push).fails(6).err;
    assert!(refused.starts_with("error: store s3://bucket/other accepts the same create-only put twice"), "{refused}");
    let pushed = server.smelt(&bench, SECRET, &[&push[..], &["--single-writer"]].concat()).ok().out;
    assert!(pushed.starts_with("3 artifacts pushed to s3://bucket/other"), "{pushed}");
    bench.pipeline("empty.yaml", &text.replace("bucket/v", "bucket/u"));
    let pull = ["pull", "s3://bucket/other", "--store", "s3://bucket/u"];
    server.smelt(&bench, SECRET, &pull).fails(6);
    server.smelt(&bench, SECRET, &[&pull[..], &["--single-writer"]].concat()).ok();
    bench.pipeline("empty.yaml", &text.replace("bucket/v", "bucket/t"));
    let pulled = server.smelt(&bench, SECRET, &["pull", "s3://bucket/other", "--pipeline", "empty.yaml"]).ok().out;
    assert!(pulled.starts_with("3 artifacts pulled from s3://bucket/other"), "{pulled}");
}

#[test]
fn a_cache_spares_what_was_read_before() {
    let (server, bench) = (Server::start(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE);
    let cache = bench.path("cache");
    let smelt = |args: &[&str], size: &str| {
        let mut command = bench.command(&[args, &["--store", "s3://bucket/x"]].concat());
        command.envs(server.environment(SECRET)).env("SMELT_CACHE", &cache).env("SMELT_CACHE_SIZE", size);
        crate::support::Said::from(command.output().unwrap())
    };
    smelt(&["run", "p.yaml"], "1MiB").ok();
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 4, "the input of `even` has four files");
    // Without the files in the bucket the job runs again, from the cache.
    let raw = server.folder.path().join("bucket/x/artifacts");
    let files = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let count = files(&raw).find(|path| path.ends_with("teststage-count") || path.ends_with("count")).unwrap();
    let attempts = files(&count).find(|path| path.is_dir()).unwrap().join("attempts");
    for attempt in files(&attempts) {
        std::fs::remove_dir_all(attempt.join("files")).unwrap();
    }
    smelt(&["rerun", "even", "p.yaml"], "1MiB").ok();
    let said = smelt(&["run", "p.yaml"], "much").fails(6).err;
    assert!(said.contains("SMELT_CACHE_SIZE is `much`, expected a size such as `50GiB`"), "{said}");
}

#[test]
fn the_role_of_a_machine_signs_and_a_key_of_kms_encrypts() {
    let (server, bench) = (Server::start(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    let mut push = bench.command(&["push", "s3://bucket/role"]);
    push.env("HOME", bench.folder.path()).env("AWS_ENDPOINT_URL", &server.address).env("AWS_REGION", "us-east-1");
    push.env("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms").env("AWS_SSE_KMS_KEY_ID", "the-key");
    let said = crate::support::Said::from(push.output().unwrap()).fails(6).err;
    assert!(said.contains("AWS_METADATA_ENDPOINT=http://169.254.169.254 asks the machine's own role"), "{said}");
    push.env("AWS_METADATA_ENDPOINT", &server.address);
    crate::support::Said::from(push.output().unwrap()).ok();
    let encrypted = server.trouble.encrypted.load(std::sync::atomic::Ordering::SeqCst);
    assert!(encrypted > 10, "{encrypted} requests asked for encryption");
}

/// As in a pod of a managed cluster: a file with the identity, a token service, and a certificate of one's own.
#[test]
fn a_web_identity_signs_and_a_bundle_of_certificates_is_trusted() {
    let (server, bench) = (Server::start_tls(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    std::fs::write(bench.path("identity"), "the-identity").unwrap();
    let tls = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tls");
    let push = |identity: &str, bundle: Option<&str>| {
        let mut push = bench.command(&["push", "s3://bucket/web"]);
        push.env("HOME", bench.folder.path()).env("AWS_REGION", "us-east-1");
        push.env("AWS_ENDPOINT_URL", &server.address).env("AWS_ENDPOINT_URL_STS", &server.address);
        push.env("AWS_WEB_IDENTITY_TOKEN_FILE", bench.path(identity)).env("AWS_ROLE_ARN", "arn:aws:iam::1:role/smelt");
        push.envs(bundle.map(|name| ("AWS_CA_BUNDLE", tls.join(name))));
        crate::support::Said::from(push.output().unwrap())
    };
    push("identity", Some("ca.pem")).ok();
    assert!(server.folder.path().join("bucket/web/artifacts").is_dir());
    let untrusted = push("identity", None);
    assert!(untrusted.code != Some(0) && untrusted.err.contains("certificate"), "{untrusted:#?}");
    std::fs::write(bench.path("other"), "another-identity").unwrap();
    let refused = push("other", Some("ca.pem"));
    assert!(refused.code != Some(0) && refused.err.contains("s3://bucket/web"), "{refused:#?}");
    assert!(!refused.err.contains("another-identity"), "{refused:#?}");
}
