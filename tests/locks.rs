//! The lock of a pipeline's stage programs.

use crate::support::{Bench, programs};
use std::os::unix::fs::PermissionsExt;

/// Stages that lie beside the pipeline, as scripts that start the test's own.
fn bench() -> Bench {
    let bench = Bench::new();
    for stage in ["count", "merge"] {
        script(&bench, stage, "");
    }
    let text = "name: p\njobs:\n  a: { stage: ./count }\n  b: { stage: ./merge, input: a }\n  c: { stage: ./merge, \
        input: [a, b] }\n";
    bench.pipeline("p.yaml", text);
    bench
}

fn script(bench: &Bench, stage: &str, more: &str) {
    let path = bench.path(stage);
    let program = programs().join(format!("teststage-{stage}"));
    std::fs::write(&path, format!("#!/bin/sh\nexec {} \"$@\"{more}\n", program.display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn digest(bench: &Bench, stage: &str) -> String {
    blake3::hash(&std::fs::read(bench.path(stage)).unwrap()).to_hex().to_string()
}

#[test]
fn a_locked_run_takes_the_programs_of_the_lock_or_none() {
    let bench = bench();
    let said = bench.smelt(&["run", "p.yaml", "--locked"]).fails(2).err;
    assert_eq!(said, "error: `--locked`: there is no `p.lock`\nhint: `smelt lock p.yaml` writes it\n");
    assert_eq!(bench.smelt(&["lock", "p.yaml"]).ok().out, "p.lock: 2 stages\n");
    let (count, merge) = (digest(&bench, "count"), digest(&bench, "merge"));
    let text = std::fs::read_to_string(bench.path("p.lock")).unwrap();
    let expected = format!(
        "# Written by `smelt lock`. `smelt run --locked` runs with these programs or not at all.\nversion: \
         1\nstages:\n  count:\n    version: 1\n    digest: {count}\n  merge:\n    version: 1\n    digest: {merge}\n"
    );
    assert_eq!(text.replace(['"', '\''], ""), expected);
    bench.smelt(&["run", "p.yaml", "--locked"]).ok();
    assert_eq!(bench.smelt(&["lock", "p.yaml"]).ok().out, "p.lock: 2 stages, unchanged\n");

    script(&bench, "count", " # patched");
    let patched = digest(&bench, "count");
    let said = bench.smelt(&["run", "p.yaml", "--locked"]).fails(6).err;
    let expected = format!(
        "error: stage `count` is not the program of `p.lock`: version 1 with digest {} there, version 1 with digest {} \
         in `./count`\n  --> p.lock:4:3\nhint: install the programs of the lock, or `smelt lock p.yaml` takes those \
         that are there\n",
        &count[..12],
        &patched[..12]
    );
    assert_eq!(said, expected);
    script(&bench, "merge", " # patched");
    let said = bench.smelt(&["rerun", "c", "p.yaml", "--locked"]).fails(6).err;
    assert!(said.contains(" in `./count`; nor is `merge`\n"), "{said}");
    // Without the flag a lock asks for nothing.
    bench.smelt(&["run", "p.yaml"]).ok();
    assert_eq!(bench.smelt(&["lock", "p.yaml"]).ok().out, "p.lock: 2 stages; changed: count, merge\n");
    bench.smelt(&["run", "p.yaml", "--locked"]).ok();

    let text = "name: p\njobs:\n  a: { stage: ./count }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml", "--locked"]).ok();
    assert_eq!(bench.smelt(&["lock", "p.yaml"]).ok().out, "p.lock: 1 stage; gone: merge\n");
    bench.pipeline("p.yaml", &format!("{text}  b: {{ stage: ./merge, input: a }}\n"));
    let said = bench.smelt(&["run", "p.yaml", "--locked"]).fails(6).err;
    assert!(said.starts_with("error: stage `merge` is not in `p.lock`\n"), "{said}");
}

#[test]
fn a_lock_that_is_damaged_or_ambiguous_is_refused() {
    let bench = bench();
    std::fs::write(bench.path("p.lock"), "version: 1\nstages: { count: 3 }\n").unwrap();
    let said = bench.smelt(&["run", "p.yaml", "--locked"]).fails(2).err;
    assert!(said.starts_with("error: `p.lock` is no lock: "), "{said}");
    assert!(said.ends_with("hint: `smelt lock` writes it anew\n"), "{said}");
    // Two programs of one name.
    std::fs::create_dir(bench.path("other")).unwrap();
    std::fs::copy(bench.path("count"), bench.path("other/count")).unwrap();
    let text = "name: p\njobs:\n  a: { stage: ./count }\n  b: { stage: ./other/count }\n";
    bench.pipeline("p.yaml", text).smelt(&["lock", "p.yaml"]).ok();
    script(&bench, "count", " # patched");
    let said = bench.smelt(&["lock", "p.yaml"]).fails(2).err;
    assert_eq!(
        said,
        "error: two programs call themselves stage `count`: ./count, ./other/count\n  --> p.yaml:4:3\nhint: a lock \
         needs one program for a name: let one of them describe itself by another\n"
    );
}

#[test]
fn a_recorded_run_that_was_locked_is_locked_on_every_machine() {
    let bench = bench();
    bench.smelt(&["lock", "p.yaml"]).ok();
    bench.smelt(&["run", "p.yaml", "--locked"]).ok();
    let run = bench.store().runs().unwrap().pop().unwrap().run;
    bench.smelt(&["exec", &run, "b"]).ok();
    script(&bench, "merge", " # patched");
    let said = bench.smelt(&["exec", &run, "b"]).fails(6).err;
    assert!(said.starts_with("error: stage `merge` is not the program of `p.lock`: "), "{said}");
}
