//! What `plan --diff` shows, and what `doctor` finds on a machine with a cluster.

use crate::support::{Bench, Said};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_plan_shows_what_changed_in_each_config_as_a_unified_diff() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count), config: { seed: 1 } }\n  b: { stage: STAGE(merge), input: \
        a }\n  c: { stage: STAGE(count), config: { rows: 4 } }\n";
    bench.pipeline("p.yaml", text);
    let none = bench.smelt(&["plan", "p.yaml", "--diff"]).ok().out;
    assert_eq!(none, bench.smelt(&["plan", "p.yaml"]).ok().out, "there is nothing to compare with");
    bench.smelt(&["run", "p.yaml"]).ok();
    let run = bench.store().runs().unwrap().pop().unwrap().run;
    // A job that waits for another is compared as well; of one that has not changed there is nothing to say.
    let set = ["--set", "a.config.rows=12", "--set", "a.config.delay_ms=3", "--set", "b.config.lose_one=true"];
    let plan = bench.smelt(&[&["plan", "p.yaml", "--diff"][..], &set].concat()).ok().out;
    let expected = format!(
        "  a  new      config.rows: 10 -> 12, config.delay_ms: 0 -> 3
      --- run {run}
      +++ now
      @@ -1,6 +1,6 @@
      -rows: 10
      +rows: 12
       units: 3
       seed: 1
       letters: 0
      -delay_ms: 0
      +delay_ms: 3
       fail: null
  b  after a
      --- run {run}
      +++ now
      @@ -1 +1 @@
      -lose_one: false
      +lose_one: true
  c  cached
  1 new, 1 cached, 1 after them; nothing was run
"
    );
    assert_eq!(plan, expected);
    let json = bench.smelt(&[&["plan", "p.yaml", "--diff", "--format", "json"][..], &set].concat()).ok().out;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert!(rows[1]["diff"].as_str().unwrap().ends_with("-lose_one: false\n+lose_one: true\n"), "{json}");
    assert!(rows[2]["diff"].is_null());
    assert!(!bench.smelt(&["plan", "p.yaml", "--format", "json"]).ok().out.contains("diff"));
}

/// A program that says something, or fails.
fn program(bench: &Bench, name: &str, script: &str) {
    let path = bench.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// What `doctor` says of Slurm, where PATH has only the programs of this folder.
fn slurm(bench: &Bench) -> (Option<i32>, String) {
    let said: Said = bench.command(&["doctor"]).env("PATH", bench.folder.path()).output().unwrap().into();
    // Whatever the stages say, of the machine each thing is said once.
    for name in ["store space", "memory limits"] {
        assert_eq!(said.out.lines().filter(|line| line.contains(&format!("  {name}  "))).count(), 1, "{said:?}");
    }
    let lines: Vec<&str> = said.out.lines().skip_while(|line| !line.contains(" Slurm ")).collect();
    let end = lines.iter().position(|line| line.starts_with("  ok    store ")).unwrap();
    let here = bench.folder.path().display().to_string();
    (said.code, lines[..end].join("\n").replace(&here, "HERE"))
}

#[test]
fn doctor_says_what_of_slurm_works_and_what_to_do_about_the_rest() {
    let bench = Bench::new();
    let without = "  note  Slurm                  `sbatch` is not in PATH: jobs run on this machine\n        hint: to \
        use a cluster, start smelt on one of its login nodes";
    assert_eq!(slurm(&bench), (Some(0), without.into()));

    let version = "echo slurm 22.05.8";
    for name in ["sbatch", "squeue", "scancel"] {
        program(&bench, name, version);
    }
    let (code, said) = slurm(&bench);
    assert_eq!(code, Some(6));
    let missing = "  ok    Slurm                  slurm 22.05.8\n  FAIL    programs             scontrol, sinfo cannot \
        be started\n        hint: install all of Slurm's client programs on this node";
    assert_eq!(said, missing);

    // A cluster whose controller answers, with two partitions and no accounting.
    let or_version = |script: &str| format!("[ \"$1\" = --version ] && {version} && exit 0\n{script}");
    program(
        &bench,
        "scontrol",
        &or_version("echo 'Slurmctld(primary) at one is DOWN'; echo 'Slurmctld(backup) at two is UP'"),
    );
    program(
        &bench,
        "sinfo",
        &or_version("echo 'cpu*|up|2|infinite'; echo 'gpu|up|1|1-00:00:00'; echo 'old|down|8|infinite'"),
    );
    program(&bench, "sacct", &or_version("echo 'Slurm accounting storage is disabled' >&2; exit 1"));
    let (code, said) = slurm(&bench);
    assert_eq!(code, Some(0), "{said}");
    let expected = "  ok    Slurm                  slurm 22.05.8
  ok      controller           Slurmctld(backup) at two is UP
  ok      partitions           cpu* (2 nodes), gpu (1 node, at most 1-00:00:00), old (8 nodes, down)
  note    accounting           none: Slurm accounting storage is disabled
        hint: smelt works without; it takes a job that Slurm has forgotten for lost, and submits it again";
    // Whether the store is on a disk of this machine depends on the machine.
    let (of_store, rest): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| line.contains("nodes may not see") || line.contains("all nodes see"));
    assert_eq!(rest.join("\n"), expected);
    assert!(of_store.is_empty() || of_store[0].starts_with("  note    store                artifacts lies on a disk"));
    program(&bench, "sacct", &or_version("exit 0"));
    assert!(slurm(&bench).1.contains("  ok      accounting           `sacct` answers"));

    let failing = "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1";
    program(&bench, "scontrol", &or_version(failing));
    let (code, said) = slurm(&bench);
    assert_eq!(code, Some(6));
    let down = "  FAIL    controller           does not answer: Unable to contact slurm controller\n        hint: \
        `scontrol ping` asks it; is `slurmctld` running, and SLURM_CONF right?";
    assert!(said.contains(down) && !said.contains("partitions"), "{said}");
    program(&bench, "scontrol", &or_version("echo 'Slurmctld(primary) at one is DOWN'; exit 1"));
    let said = slurm(&bench).1;
    assert!(
        said.contains("  FAIL    controller           Slurmctld(primary) at one is DOWN\n        hint: "),
        "{said}"
    );
    program(&bench, "scontrol", &or_version("echo 'Slurmctld(primary) at one is UP'"));
    program(&bench, "sinfo", &or_version("echo 'cpu*|down|2|infinite'"));
    let (code, said) = slurm(&bench);
    let down =
        "  FAIL    partitions           cpu* (2 nodes, down)\n        hint: none is up: ask who runs the cluster";
    assert!(code == Some(6) && said.contains(down), "{said}");
}
