//! The stage contract, tested with stages that were written for it.

use crate::support::{Bench, digests, leftovers, wait_until};

const TWO: &str = "
name: two
jobs:
  a: { stage: STAGE(count), config: { rows: 9, units: 3 } }
  b: { stage: STAGE(count), config: { rows: 6, units: 2, seed: 7 } }
  both: { stage: STAGE(merge), input: [a, b] }
  model: { stage: STAGE(train) }
";

/// The digests of an undisturbed run.
fn undisturbed(text: &str, name: &str) -> std::collections::BTreeMap<String, String> {
    let bench = Bench::new();
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    digests(&bench.store(), name)
}

#[test]
fn two_outputs_and_a_list_input_keep_their_books() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", TWO).smelt(&["run", "p.yaml"]).ok();
    let store = bench.store();
    let pointer = store.pointer("two", "both").unwrap().unwrap();
    let manifest = store.manifest(&pointer.artifact).unwrap().unwrap();
    assert_eq!((manifest.books.read, manifest.books.written, manifest.books.dropped["odd"]), (15, 8, 7));
    assert_eq!((manifest.ports["documents"].rows(), manifest.ports["drops"].rows()), (Some(8), Some(7)));
    assert_eq!(manifest.inputs["documents"].len(), 2);
}

#[test]
fn a_stage_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let expected = undisturbed(TWO, "two");
    for program in ["teststage-count", "teststage-merge", "teststage-train"] {
        let mut kills = 0;
        for n in 1.. {
            let bench = Bench::new();
            bench.pipeline("p.yaml", TWO);
            let killed = bench
                .command(&["run", "p.yaml", "--retries", "0"])
                .env("SMELT_KILL_AT_WRITE", format!("{program}:{n}"))
                .output()
                .unwrap();
            if killed.status.success() {
                break; // it writes less often than that
            }
            kills += 1;
            assert_eq!(killed.status.code(), Some(4), "{}", String::from_utf8_lossy(&killed.stderr));
            bench.smelt(&["run", "p.yaml"]).ok();
            assert_eq!(digests(&bench.store(), "two"), expected, "{program} killed at write {n}");
            assert_eq!(bench.smelt(&["run", "p.yaml"]).ok().out.matches("nothing to do").count(), 1);
        }
        assert!(
            kills >= 4,
            "{program} was killed {kills} times: a lease, files, units and a manifest are more writes than that"
        );
    }
}

#[test]
fn the_runner_killed_at_each_of_its_writes_loses_nothing() {
    let expected = undisturbed(TWO, "two");
    for n in 1.. {
        let bench = Bench::new();
        bench.pipeline("p.yaml", TWO);
        let killed =
            bench.command(&["run", "p.yaml"]).env("SMELT_KILL_AT_WRITE", format!("smelt:{n}")).output().unwrap();
        if killed.status.success() {
            assert!(n > 6, "the runner wrote only {n} times");
            return;
        }
        assert_eq!(killed.status.code(), None);
        bench.smelt(&["run", "p.yaml"]).ok();
        assert_eq!(digests(&bench.store(), "two"), expected, "killed at write {n}");
    }
}

#[test]
fn a_killed_stage_goes_on_with_less_than_one_unit_redone() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 8, units: 8 } } }\n");
    // Write 1 is the lease; a unit is a file and a record; the kill comes in the sixth unit.
    let mut command = bench.command(&["run", "p.yaml", "--retries", "0", "--cores", "1"]);
    assert!(!command.env("SMELT_KILL_AT_WRITE", "teststage-count:13").output().unwrap().status.success());
    bench.smelt(&["run", "p.yaml", "--cores", "1"]).ok();
    let store = bench.store();
    let manifest = store.manifest(&store.pointer("p", "a").unwrap().unwrap().artifact).unwrap().unwrap();
    assert_eq!(manifest.provenance.resumed, 1, "the attempt was taken over");
    let events = bench.smelt(&["logs", "a", "--events"]).ok().out;
    let units: Vec<&str> = events.lines().filter(|l| l.contains("\"unit\":\"units\"")).collect();
    assert!(units[0].contains("\"done\":6"), "the second process began with unit 6 of 8: {units:?}");
    assert_eq!(leftovers(&bench.path("artifacts")).len(), 0);
}

#[test]
fn a_saved_progress_is_taken_up_and_the_curve_is_whole() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", "name: p\njobs: { a: { stage: STAGE(train), config: { steps: 20, save_every: 5 } } }\n");
    // Write 1 is the lease; a save is two files and the progress, from the second on also the deletion of the save
    // before: 2 to 4, 5 to 8. The kill comes in the third save, before its second file.
    let mut command = bench.command(&["run", "p.yaml", "--retries", "0"]);
    assert!(!command.env("SMELT_KILL_AT_WRITE", "teststage-train:10").output().unwrap().status.success());
    bench.smelt(&["run", "p.yaml"]).ok();
    let said = bench.smelt(&["logs", "a"]).ok().out;
    assert!(said.starts_with("step 10\n"), "went on from the save at step 10: {said}");
    let store = bench.store();
    let manifest = store.manifest(&store.pointer("p", "a").unwrap().unwrap().artifact).unwrap().unwrap();
    assert_eq!(manifest.ports["metrics"].rows(), Some(20), "points of both processes");
    // Neither the last save nor the half of one that the kill left is part of the artifact.
    let (folder, key) = attempt(&bench, &manifest);
    assert!(!folder.join("saves").exists() || std::fs::read_dir(folder.join("saves")).unwrap().next().is_none());

    // What a kill between the commit and that leaves is found by gc, and nothing else goes.
    let before = store.list(&key).unwrap();
    for left in ["saves/15/state", "files/model/other.bin", "files/model/.state.txt.0a1b.smelt-tmp"] {
        std::fs::create_dir_all(folder.join(left).parent().unwrap()).unwrap();
        std::fs::write(folder.join(left), [7; 2000]).unwrap();
    }
    std::fs::create_dir_all(folder.join("saves/20")).unwrap();
    let gc = |flags: &[&str]| bench.smelt(&[&["artifacts", "gc", "--older-than", "0"][..], flags].concat()).ok().out;
    let words = "0 artifacts and 0 attempts, and 4 leftovers inside others, 6.0 kB,";
    assert!(gc(&[]).contains(&format!("{words} would go; `--delete` deletes them")), "{}", gc(&[]));
    assert!(folder.join("saves/15/state").exists());
    assert!(gc(&["--delete"]).contains(&format!("{words} deleted")));
    assert!(gc(&["--delete"]).contains("0 artifacts and 0 attempts, 0 B, deleted"));
    assert_eq!(store.list(&key).unwrap(), before);
    assert!(std::fs::read_dir(folder.join("saves")).unwrap().next().is_none(), "no empty folder stays");
    bench.smelt(&["artifacts", "verify", "--deep"]).ok();
}

/// The folder of the attempt that made an artifact, and its key.
fn attempt(bench: &Bench, manifest: &smelt_schemas::Manifest) -> (std::path::PathBuf, String) {
    let key = format!("artifacts/{}/{}/attempts/{}", manifest.stage, manifest.fingerprint, manifest.attempt);
    (bench.path("artifacts").join(&key), key)
}

#[test]
fn saves_that_every_asks_for_stay_with_the_artifact() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(train), run: { save: { every: 10 } } } }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    let store = bench.store();
    let manifest = store.manifest(&store.pointer("p", "a").unwrap().unwrap().artifact).unwrap().unwrap();
    let (_, key) = attempt(&bench, &manifest);
    assert_eq!(store.list_here(&format!("{key}/saves")).unwrap().1, ["10", "20"]);
    assert!(
        bench.smelt(&["artifacts", "gc", "--older-than", "0"]).ok().out.starts_with("0 artifacts and 0 attempts, 0 B")
    );
}

#[test]
fn a_running_job_is_seen_with_its_progress_and_its_curve() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(train), each: { seed: [3] }, config: { seed: '${seed}', steps: 600, \
        delay_ms: 50 } } }\n";
    bench.pipeline("p.yaml", text);
    let mut run = bench.command(&["run", "p.yaml"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut status = String::new();
    wait_until("the job has told its progress", || {
        status = bench.smelt(&["status", "p.yaml"]).out;
        status.contains("steps ")
    });
    assert!(status.contains("running") && status.contains("/600") && status.contains("last run"), "{status}");
    let sql = |query: &str| bench.smelt(&["sql", query, "--format", "csv", "--pipeline", "p.yaml"]).ok().out;
    let curve = |from: &str| -> u64 {
        let said = sql(&format!("select max(step) n from {from} and name = 'state'"));
        said.lines().nth(1).unwrap().parse().unwrap_or(0)
    };
    wait_until("the curve has points", || curve("smelt.metrics where job = 'a[seed=3]'") > 5);
    assert!(curve("a.metrics where seed = 3") > 5);
    let json: serde_json::Value =
        serde_json::from_str(&bench.smelt(&["status", "p.yaml", "--format", "json"]).ok().out).unwrap();
    assert!(json[0]["state"] == "running" && json[0]["took"].is_f64() && json[0]["made"].is_f64(), "{json}");
    // SAFETY: signals a child of this test that has not been waited for.
    unsafe { libc::kill(run.id() as i32, libc::SIGINT) };
    assert_eq!(run.wait().unwrap().code(), Some(4));
    let status = bench.smelt(&["status", "p.yaml"]).ok().out;
    assert!(!status.contains("running") && status.contains("stopped"), "{status}");

    // The curve of a process that goes on begins where the first one began.
    let before = bench.store().list("artifacts").unwrap().into_iter().rfind(|e| e.key.ends_with("curve.json"));
    assert!(before.is_some(), "it was saved");
    let mut run = bench.command(&["run", "p.yaml"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let first = "select min(step) first from smelt.metrics where job = 'a[seed=3]'";
    wait_until("the curve is whole", || sql(first) == "first\n1\n");
    run.kill().unwrap();
    run.wait().unwrap();
}

#[test]
fn a_process_that_a_stage_leaves_behind_delays_nothing() {
    let bench = Bench::new();
    let copy = "cp $(sed -n 's/.*\"\\(\\/[^\"]*parquet[^\"]*\\)\".*/\\1/p' \"$2\" | head -1) \
        $(sed -n 's/.*\"\\(\\/[^\"]*out\\/documents[^\"]*\\)\".*/\\1/p' \"$2\")/a.parquet";
    let text = format!("sleep 300 & echo $! > '{}'\n{copy}", bench.path("left").display());
    crate::cli::files_stage(&bench, &text);
    let begun = std::time::Instant::now();
    let said = bench.smelt(&["run", "p.yaml"]).ok().out;
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(said.contains("it left processes behind; they were ended") && said.contains("2 jobs in"), "{said}");
    let left = std::fs::read_to_string(bench.path("left")).unwrap();
    wait_until("it has ended", || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", left.trim())).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    });
}

#[test]
fn a_signal_that_ends_a_stage_is_named() {
    for (signal, words) in [("KILL", "hint: was memory short?"), ("SEGV", "hint: `smelt logs b` shows")] {
        let bench = Bench::new();
        crate::cli::files_stage(&bench, &format!("kill -{signal} $$"));
        let said = bench.smelt(&["run", "p.yaml", "--retries", "0"]).fails(4).err;
        let what = format!("error: job `b` failed: it was killed by SIG{signal}\n");
        assert!(said.contains(&what) && said.contains(words), "{said}");
    }
    let bench = Bench::new();
    bench.pipeline("p.yaml", TWO);
    let mut command = bench.command(&["run", "p.yaml", "--retries", "0"]);
    let said: crate::support::Said = command.env("SMELT_KILL_AT_WRITE", "teststage-train:3").output().unwrap().into();
    let said = said.fails(4).err;
    assert!(
        said.contains("job `model` failed: it was killed by SIGKILL") && said.contains("was memory short?"),
        "{said}"
    );
}

#[test]
fn a_stage_sees_the_proxy_and_the_cache_of_its_user() {
    let bench = Bench::new();
    let names = ["XDG_CACHE_HOME", "https_proxy", "HTTPS_PROXY", "http_proxy", "no_proxy", "ALL_PROXY", "SSL_CERT_DIR"];
    let shown: Vec<String> = names.iter().map(|name| format!("{name}=${name}")).collect();
    crate::cli::files_stage(&bench, &format!("echo \"{} SECRET=$SECRET\"; exit 3", shown.join(" ")));
    let mut command = bench.command(&["run", "p.yaml"]);
    command.envs(names.map(|name| (name, format!("value-of-{name}"))));
    assert_eq!(command.env("SECRET", "hidden").output().unwrap().status.code(), Some(3));
    let expected: Vec<String> = names.iter().map(|name| format!("{name}=value-of-{name}")).collect();
    assert_eq!(bench.smelt(&["logs", "b"]).ok().out, format!("{} SECRET=\n", expected.join(" ")));
}

#[test]
fn a_rerun_of_equal_bytes_is_reported_and_makes_nothing_stale() {
    let bench = Bench::new();
    let text =
        "name: p\njobs:\n  a: { stage: STAGE(dice), config: { faces: 1 } }\n  b: { stage: STAGE(merge), input: a }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    let said = bench.smelt(&["rerun", "a", "p.yaml"]).ok().out;
    assert!(said.contains("reproduced") && said.contains("1 jobs in"), "{said}");
    assert_eq!(bench.store().pointer("p", "a").unwrap().unwrap().artifact.edition, 1);
    assert!(bench.smelt(&["run", "p.yaml"]).ok().out.contains("nothing to do"));
}

#[test]
fn a_rerun_of_other_bytes_redoes_what_hangs_on_them_and_nothing_else() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(dice) }\n  b: { stage: STAGE(merge), input: a }\n  c: { stage: \
        STAGE(count) }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    // The throw is the text of the document. Its id stays even, so `merge` keeps it and its digest tells two throws
    // apart.
    let said = bench.smelt(&["rerun", "a", "p.yaml"]).ok().out;
    assert!(
        said.contains("other bytes than before") && said.contains("2 jobs in") && !said.contains("count"),
        "{said}"
    );
}

#[test]
fn force_runs_again_what_is_named_with_what_needs_it_or_all() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count) }\n  b: { stage: STAGE(merge), input: a }\n  c: { stage: \
        STAGE(merge), input: b }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    let again = |args: &[&str]| {
        let said = bench.smelt(&[&["run", "p.yaml", "--force"], args].concat()).ok().out;
        let started = said.lines().filter(|line| line.starts_with("  start "));
        let started: Vec<_> = started.filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect();
        assert_eq!(said.matches(" reproduced ").count(), started.len(), "{said}");
        started.join(" ")
    };
    assert_eq!(again(&["--only", "b"]), "b");
    assert_eq!(again(&["--from", "b"]), "b c");
    assert_eq!(again(&[]), "a b c");
    let edition = |job: &str| bench.store().pointer("p", job).unwrap().unwrap().artifact.edition;
    assert_eq!(["a", "b", "c"].map(edition), [1, 3, 2]);
    assert!(bench.smelt(&["run", "p.yaml"]).ok().out.contains("nothing to do"));
}

#[test]
fn unbalanced_books_do_not_commit() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count) }\n  b: { stage: STAGE(merge), input: a, config: { \
        lose_one: true } }\n";
    let said = bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).fails(5);
    assert!(
        said.err.contains(
            "stage `merge`: 10 rows were read and 0 derived, but 5 were written and 4 dropped: 1 \
        were neither written nor dropped"
        ),
        "{}",
        said.err
    );
    assert_eq!(bench.store().pointer("p", "b").unwrap(), None);
}

#[test]
fn only_exit_code_4_is_tried_again() {
    let bench = Bench::new();
    for (code, tries, word) in [(3, 1, "the data are bad"), (4, 2, "the moment is bad"), (6, 1, "the machine is bad")] {
        let text =
            format!("name: p{code}\njobs: {{ a: {{ stage: STAGE(count), config: {{ fail: [1, {code}] }} }} }}\n");
        let said = bench.pipeline("p.yaml", &text).smelt(&["run", "p.yaml", "--retries", "1"]).fails(code);
        assert!(said.err.contains(&format!("job `a` failed: {word}")), "{}", said.err);
        assert_eq!(bench.smelt(&["logs", "a"]).ok().out.matches("about to fail").count(), tries, "code {code}");
    }
}

#[test]
fn a_job_that_takes_too_long_is_ended_and_says_so() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(count), config: { delay_ms: 20000 }, run: { timeout: 0.3s, \
        retries: 0 } } }\n";
    let said = bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).fails(4);
    assert!(said.err.contains("it took longer than its timeout of 0.3 s"), "{}", said.err);
}

#[test]
fn ctrl_c_stops_in_order_and_the_next_call_goes_on() {
    let bench = Bench::new();
    bench.pipeline(
        "p.yaml",
        "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 8, units: 8, delay_ms: 250 } } }\n",
    );
    let child = bench
        .command(&["run", "p.yaml", "--cores", "1"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let is_unit = |entry: &smelt_store::Entry| entry.key.contains("/units/");
    wait_until("the first unit is committed", || bench.store().list("artifacts").unwrap().iter().any(is_unit));
    // SAFETY: signals a child of this test that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let said: crate::support::Said = child.wait_with_output().unwrap().into();
    let said = said.fails(4);
    assert!(said.err.contains("stopped") && said.err.contains("the same command goes on from there"), "{}", said.err);
    bench.smelt(&["run", "p.yaml"]).ok();
    let store = bench.store();
    let manifest = store.manifest(&store.pointer("p", "a").unwrap().unwrap().artifact).unwrap().unwrap();
    assert_eq!(manifest.provenance.resumed, 1);
}

#[test]
fn two_runs_at_once_agree_on_one_commit() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", TWO);
    let start = || bench.command(&["run", "p.yaml"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut both = [start(), start()];
    assert!(both.iter_mut().all(|c| c.wait().unwrap().success()));
    assert_eq!(digests(&bench.store(), "two"), undisturbed(TWO, "two"));
    assert_eq!(bench.store().artifacts().unwrap().len(), 4);
}

#[test]
fn of_two_runs_at_once_one_works_and_the_other_adopts() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count), config: { rows: 8, units: 4, delay_ms: 700 } }\n  b: { \
        stage: STAGE(count), config: { rows: 8, units: 4, delay_ms: 700, seed: 2 } }\n  c: { stage: STAGE(merge), \
        input: [a, b] }\n";
    bench.pipeline("p.yaml", text);
    let start = || {
        let mut command = bench.command(&["run", "p.yaml", "--cores", "2"]);
        command.stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let first = start();
    let is_lease = |entry: &smelt_store::Entry| entry.key.ends_with("/lease.json");
    wait_until("the first run works", || bench.store().list("artifacts").unwrap().iter().any(is_lease));
    let second: crate::support::Said = start().wait_with_output().unwrap().into();
    let first: crate::support::Said = first.wait_with_output().unwrap().into();
    let (first, second) = (first.ok().out, second.ok().out);
    assert!(second.contains("does the same work: waiting for what it commits"), "{second}");
    assert!(!first.contains("waiting for what it commits"), "{first}");
    let store = bench.store();
    for job in ["a", "b", "c"] {
        let artifact = store.pointer("p", job).unwrap().unwrap().artifact;
        let attempts = format!("artifacts/{}/{}/attempts", artifact.stage, artifact.fingerprint);
        assert_eq!(store.list_here(&attempts).unwrap().1.len(), 1, "{job} was made once");
    }
}

/// A killed runner writes nothing more: its stage ends with it, and its record shows that it was interrupted.
#[test]
fn a_killed_runner_leaves_no_process_and_is_told_as_interrupted() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 8, units: 8, delay_ms: 2000 } } }\n";
    bench.pipeline("p.yaml", text);
    let mut runner = bench
        .command(&["run", "p.yaml"])
        .env("TMPDIR", bench.folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let scratch = || {
        let entries = std::fs::read_dir(bench.folder.path()).unwrap().map(|e| e.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().starts_with("smelt-")).count()
    };
    let children = |of: u32| {
        let all =
            std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u32>().ok());
        let parent = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok())
        };
        all.filter(|pid| parent(pid) == Some(of)).collect::<Vec<u32>>()
    };
    let mut stages = Vec::new();
    wait_until("the stage holds its lease", || {
        stages = children(runner.id());
        let store = bench.store();
        let is_lease = |entry: &smelt_store::Entry| entry.key.ends_with("/lease.json");
        !stages.is_empty() && scratch() > 0 && store.list("artifacts").unwrap().iter().any(is_lease)
    });
    let said = bench.smelt(&["sql", "select state from smelt.runs", "--format", "csv", "--pipeline", "p.yaml"]);
    assert_eq!(said.ok().out, "state\nrunning\n");
    runner.kill().unwrap();
    runner.wait().unwrap();
    for stage in stages {
        wait_until("a stage ends with its runner", || {
            let state = std::fs::read_to_string(format!("/proc/{stage}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        });
    }
    let said = bench.smelt(&["sql", "select state from smelt.runs", "--format", "csv", "--pipeline", "p.yaml"]);
    assert_eq!(said.ok().out, "state\ninterrupted\n");
    assert_eq!(scratch(), 1);
    let mut again = bench.command(&["run", "p.yaml"]);
    assert!(again.env("TMPDIR", bench.folder.path()).output().unwrap().status.success());
    assert_eq!(scratch(), 0, "the next run sweeps what the killed one left");
}
