//! Stores that fail: servers that lose requests and answers, full disks, read-only folders, credentials that expire.
//! Runs end with the same digests, or with a clear error and go on later; no secret is ever written.

use crate::s3_server::{KEY, SECRET, Server, Way};
use crate::smoke::{golden, open, published, repository};
use crate::support::{Bench, Said, digests, programs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tempfile::TempDir;

const PIPELINE: &str = "
name: p
jobs:
  a: { stage: STAGE(count), config: { rows: 40, units: 8 } }
  b: { stage: STAGE(merge), input: a }
  model: { stage: STAGE(train) }
";

fn conforms(server: &Server, address: &str) {
    let mut command = Command::new(programs().join("teststore"));
    let said: Said = command.arg(address).envs(server.environment(SECRET)).output().unwrap().into();
    assert_eq!(said.ok().out, format!("{address} conforms\n"));
}

#[test]
fn s3_conforms() {
    conforms(&Server::start(), "s3://bucket/c");
}

#[test]
fn s3_conforms_while_a_tenth_of_its_requests_fail() {
    let server = Server::start();
    server.fail(10, 4);
    conforms(&server, "s3://bucket/c");
    let (requests, failed) = server.counts();
    assert!(failed * 20 > requests, "{failed} of {requests} requests failed");
}

/// Requests that are late, answered with 500 or 503, reset, whose answer is lost or cut off: one in twenty. What the
/// pipeline makes has the published digests, also after it was pulled over the same connection.
fn survives_faults(pipeline: &str, prefix: &str) {
    let server = Server::start();
    let here = tempfile::tempdir().unwrap();
    let smelt = |args: &[&str]| -> Said {
        let mut command = Bench::bare(&repository(), args);
        command.envs(server.environment(SECRET)).output().unwrap().into()
    };
    let (file, store) = (format!("pipelines/{pipeline}.yaml"), format!("s3://bucket/{prefix}"));
    let copy = here.path().to_str().unwrap();
    server.fail(5, 3);
    let clock = Instant::now();
    let run = smelt(&["run", &file, "--store", &store]).ok();
    smelt(&["pull", &store, "--store", copy]).ok();
    let seconds = clock.elapsed().as_secs();
    assert_eq!(published(&open(here.path()), pipeline), golden(pipeline), "{run:#?}");
    smelt(&["artifacts", "verify", "--deep", "--store", copy]).ok();
    let (requests, failed) = server.counts();
    let (ways, uploads) = (server.ways(), server.trouble.completed.load(Ordering::SeqCst));
    println!("{pipeline}: {seconds} s, {failed} of {requests} requests failed: {ways:?}; {uploads} uploads in parts");
    assert!(failed * 25 > requests && failed > 50, "{failed} of {requests} requests failed");
    for way in [Way::Refused, Way::Throttled, Way::Reset, Way::AnswerLost, Way::CutOff, Way::Late, Way::Resumed] {
        assert!(ways.get(&way).is_some_and(|count| *count > 0), "{way:?} never happened: {ways:?}");
    }
    // A file of more than eight megabytes goes up in parts.
    assert!(pipeline == "smoke" || uploads > 0);
}

#[test]
fn the_smoke_pipeline_gives_the_same_digests_over_a_connection_that_fails() {
    survives_faults("smoke", "m");
}

#[test]
#[ignore = "takes as long as the quickstart, minutes: `cargo test --release -- --ignored over_a_connection`"]
fn the_quickstart_gives_the_same_digests_over_a_connection_that_fails() {
    survives_faults("quickstart", "q");
}

#[test]
fn credentials_that_expire_in_the_middle_of_a_run_stop_it_and_lose_nothing() {
    let (server, bench) = (Server::start(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    let expected = digests(&bench.store(), "p");
    for (round, requests) in [9, 40, 90].into_iter().enumerate() {
        let store = format!("s3://bucket/{round}");
        server.expire_after(requests);
        let said = server.smelt(&bench, SECRET, &["run", "p.yaml", "--cores", "1", "--store", &store]).fails(6).err;
        assert!(said.contains(&format!("store {store} refuses ")), "{said}");
        assert!(said.contains(": ExpiredToken: on purpose"), "{said}");
        let hint = "hint: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what the bucket allows them; finished \
                    work is kept";
        assert!(said.contains(hint), "{said}");
        server.expire_after(0);
        server.smelt(&bench, SECRET, &["run", "p.yaml", "--store", &store]).ok();
        let copy = format!("copy{round}");
        server.smelt(&bench, SECRET, &["pull", &store, "--store", &copy]).ok();
        let pulled = smelt_store::Store::open(bench.path(&copy).to_str().unwrap()).unwrap();
        assert_eq!(digests(&pulled, "p"), expected, "after {requests} requests");
    }
}

/// A small file system in memory; unmounted with this value.
struct Disk(TempDir);

impl Disk {
    /// `None` where this user may mount nothing, which is said.
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let said = mount.args(["-t", "tmpfs", "-o", options, "smelt-test"]).arg(folder.path()).output();
        if said.is_ok_and(|said| said.status.success()) {
            return Some(Self(folder));
        }
        println!("skipped: only root can mount the small file system that this test fills");
        None
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let done = Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap();
        assert!(done.success(), "it is mounted again with {options}");
    }

    fn address(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_is_named_and_the_run_goes_on_when_there_is_room() {
    let Some(disk) = Disk::mount("size=300k") else { return };
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 400, units: 200 } } }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    let run = || bench.smelt(&["run", "p.yaml", "--cores", "1", "--store", disk.address()]);
    let said = run().fails(6).err;
    assert!(said.contains(&format!("store {} is full: ", disk.address())) && said.contains(" failed\n"), "{said}");
    let hint =
        "hint: free some space, perhaps with `smelt artifacts gc --delete`, and run again: finished work is kept";
    assert!(said.contains(hint), "{said}");
    disk.remount("size=64m");
    run().ok();
    let store = smelt_store::Store::open(disk.address()).unwrap();
    assert_eq!(digests(&store, "p"), digests(&bench.store(), "p"));
    let manifest = store.manifest(&store.pointer("p", "a").unwrap().unwrap().artifact).unwrap().unwrap();
    assert_eq!(manifest.provenance.resumed, 1, "the work before was kept");
    assert_eq!(crate::support::leftovers(disk.0.path()), Vec::<String>::new());
}

#[test]
fn a_read_only_store_is_read_and_named_when_something_must_be_written() {
    let Some(disk) = Disk::mount("size=64m") else { return };
    let bench = Bench::new();
    bench.pipeline("p.yaml", PIPELINE);
    let smelt = |args: &[&str]| bench.smelt(&[args, &["--store", disk.address()]].concat());
    smelt(&["run", "p.yaml", "--only", "b"]).ok();
    disk.remount("ro");
    assert!(smelt(&["plan", "p.yaml"]).ok().out.contains("1 new, 2 cached"));
    assert!(smelt(&["run", "p.yaml", "--only", "b"]).ok().out.contains("nothing to do"));
    let at = disk.address();
    assert_eq!(
        smelt(&["run", "p.yaml"]).fails(6).err,
        format!(
            "error: store {at} refuses writing to it: Read-only file system (os error 30)\nhint: make {at} writable \
             for this user, or choose another with `--store`\n"
        )
    );
    disk.remount("rw");
    smelt(&["run", "p.yaml"]).ok();
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn secrets_of_the_environment_are_written_nowhere() {
    let (server, bench) = (Server::start(), Bench::new());
    const TOKEN: &str = "a-token-that-nobody-may-read";
    let text = PIPELINE.replace("{ stage: STAGE(train) }", "{ stage: STAGE(train), run: { env: [TEST_TOKEN] } }");
    bench.pipeline("p.yaml", &text);
    let mut said = String::new();
    let mut smelt = |secret: &str, args: &[&str]| {
        let mut command = bench.command(args);
        let done: Said = command.envs(server.environment(secret)).env("TEST_TOKEN", TOKEN).output().unwrap().into();
        said += &format!("{}{}", done.out, done.err);
        done
    };
    let at = ["--store", "s3://bucket/s"];
    smelt("not-the-secret-of-the-bucket", &[&["run", "p.yaml"][..], &at].concat()).fails(6);
    smelt(SECRET, &[&["run", "p.yaml"][..], &at].concat()).ok();
    smelt(SECRET, &[&["run", "p.yaml", "--format", "json", "--set", "a.config.rows=30"][..], &at].concat()).ok();
    smelt(SECRET, &["run", "p.yaml"]).ok();
    for job in ["a", "model"] {
        smelt(SECRET, &[&["logs", job, "--events"][..], &at].concat()).ok();
    }
    smelt(SECRET, &[&["doctor"][..], &at].concat());
    smelt(SECRET, &[&["artifacts", "show", "model", "--format", "json"][..], &at].concat()).ok();
    let secrets = [SECRET, "not-the-secret-of-the-bucket", TOKEN, KEY];
    let found = |bytes: &[u8]| secrets.into_iter().find(|s| bytes.windows(s.len()).any(|w| w == s.as_bytes()));
    assert_eq!(found(said.as_bytes()), None, "{said}");
    let stored = [files(server.folder.path()), files(&bench.path("artifacts"))].concat();
    assert!(stored.len() > 40, "{} files were searched", stored.len());
    for file in stored {
        assert_eq!(found(&std::fs::read(&file).unwrap()), None, "{}", file.display());
    }
}
