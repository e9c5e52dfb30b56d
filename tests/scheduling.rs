//! What runs when: budgets, gates, failures, defaults for all jobs, and one job of a recorded run.

use crate::support::{Bench, digests};
use smelt_schemas::Manifest;

fn manifest(bench: &Bench, pipeline: &str, job: &str) -> Manifest {
    let store = bench.store();
    let pointer = store.pointer(pipeline, job).unwrap().expect("the job is done");
    store.manifest(&pointer.artifact).unwrap().expect("its manifest is there")
}

/// Whether two jobs of the pipeline `p` ran at the same time.
fn overlap(bench: &Bench, a: &str, b: &str) -> bool {
    let span = |job: &str| {
        let made = manifest(bench, "p", job).provenance;
        (made.started, made.started + made.seconds)
    };
    let ((a, a_end), (b, b_end)) = (span(a), span(b));
    a < b_end && b < a_end
}

#[test]
fn jobs_run_together_as_far_as_memory_and_gpus_last() {
    let text = "name: p\njobs:\n  a: { stage: STAGE(count), run: RUN, config: { delay_ms: 150, seed: 1 } }\n  \
        b: { stage: STAGE(count), run: RUN, config: { delay_ms: 150, seed: 2 } }\n";
    for (run, args, together) in [
        ("{ memory: 600MiB }", &["--memory", "1GiB"], false),
        ("{ memory: 600MiB }", &["--memory", "2GiB"], true),
        ("{ gpus: 1 }", &["--gpus", "1"], false),
        ("{ gpus: 1 }", &["--gpus", "2"], true),
        ("{ cores: 2 }", &["--cores", "3"], false),
        ("{ threads: 1 }", &["--cores", "3"], true),
    ] {
        let bench = Bench::new();
        bench.pipeline("p.yaml", &text.replace("RUN", run));
        let args = [&["run", "p.yaml", "--cores", "4"][..], args].concat();
        let args =
            if run.contains("memory") || run.contains("gpus") { args } else { [&args[..2], &args[4..]].concat() };
        bench.smelt(&args).ok();
        assert_eq!(overlap(&bench, "a", "b"), together, "{run} {args:?}");
    }
}

#[test]
fn a_job_that_can_never_fit_is_refused_before_anything_runs() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count) }\n  b: { stage: STAGE(count), run: RUN }\n";
    let refused = |run: &str, args: &[&str]| {
        bench.pipeline("p.yaml", &text.replace("RUN", run));
        bench.smelt(&[&["run", "p.yaml"][..], args].concat()).fails(2).err
    };
    let memory = "error: job `b` needs 2.1 GB of memory, and this run has 1.1 GB\n  --> p.yaml:4:3\nhint: say less in \
        its `run: { memory: … }`, or give the run more with `--memory`\n";
    assert_eq!(refused("{ memory: 2GiB }", &["--memory", "1GiB"]), memory);
    let gpus = "error: job `b` needs 3 GPUs, and this run has 2\n  --> p.yaml:4:3\nhint: `--gpus N` says how many \
        there are; `run: { executor: slurm }` runs it on a cluster\n";
    assert_eq!(refused("{ gpus: 3 }", &["--gpus", "2"]), gpus);
    assert!(bench.smelt(&["run", "p.yaml", "--memory", "much"]).fails(2).err.contains("`much` is no amount of memory"));
    assert!(!bench.path("artifacts").exists(), "nothing was run");
    // A job that is not asked for, or that a cluster does, need not fit here.
    bench.smelt(&["run", "p.yaml", "--gpus", "2", "--only", "a"]).ok();
}

#[test]
fn what_the_pipeline_says_under_run_holds_for_every_job_that_can_and_says_nothing_else() {
    let bench = Bench::new();
    let text = "name: p\nrun: { executor: slurm, partition: cpu, time: soon }\njobs:\n  a: { stage: STAGE(count) }\n";
    let said = bench.pipeline("p.yaml", text).smelt(&["check", "p.yaml"]).fails(2).err;
    assert_eq!(said, "error: `soon` is no time\n  --> p.yaml:2:47\nhint: write `90s`, `30m` or `2h`\n");
    let text = text.replace("soon", "1h");
    let said = bench.pipeline("p.yaml", &text.replace("time:", "tme:")).smelt(&["check", "p.yaml"]).fails(2).err;
    assert!(said.contains("unknown key `tme`\n  --> p.yaml:2:41\nhint: is `time` meant?"), "{said}");
    // Without Slurm the error names the first job, and a way out.
    let mut run = bench.pipeline("p.yaml", &text).command(&["run", "p.yaml"]);
    let said = crate::support::Said::from(run.env("PATH", "/nowhere").output().unwrap()).fails(6).err;
    assert_eq!(
        said,
        "error: job `a` is for Slurm, and `sbatch` is not in PATH\n  --> p.yaml:4:3\nhint: start smelt on a login node \
         of the cluster, or run it here with `--set run.executor=local`\n"
    );
    bench.smelt(&["run", "p.yaml", "--set", "run.executor=local"]).ok();
    // A job's own word counts more, and a default that a stage cannot follow is left out.
    let text = "name: q\nrun: { cores: 1, workers: 2, device: auto }\njobs:\n  \
        a: { stage: STAGE(count), run: { threads: 2 }, config: { seed: 1 } }\n  \
        b: { stage: STAGE(count), config: { seed: 2 } }\n";
    bench.pipeline("q.yaml", text).smelt(&["run", "q.yaml", "--cores", "4"]).ok();
    assert_eq!(["a", "b"].map(|job| manifest(&bench, "q", job).provenance.threads), [2, 1]);
    let own = text.replace("threads: 2", "threads: 2, workers: 2");
    let said = bench.pipeline("q.yaml", &own).smelt(&["check", "q.yaml"]).fails(2).err;
    assert!(said.contains("job `a`: `count` cannot be spread over several workers"), "{said}");
    let nodes = text.replace("workers: 2", "nodes: 2");
    bench.pipeline("q.yaml", &nodes).smelt(&["check", "q.yaml"]).fails(2);
}

const GATE: &str = "name: gate
jobs:
  raw: { stage: STAGE(count), config: { rows: 9 } }
  tuned: { stage: STAGE(train), config: { steps: 3 } }
  next: { stage: STAGE(merge), input: raw, when: [raw.written > 5, tuned.state < LIMIT] }
  last: { stage: STAGE(merge), input: next }
  beside: { stage: STAGE(count), config: { seed: 5 } }
";

#[test]
fn a_gate_that_is_closed_skips_its_job_and_what_hangs_on_it_with_the_reason() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", &GATE.replace("LIMIT", "-1"));
    let plan = bench.smelt(&["plan", "p.yaml"]).ok().out;
    assert!(plan.contains("  next    after raw\n"), "{plan}");
    let said = bench.smelt(&["run", "p.yaml"]).ok().out;
    let state = manifest(&bench, "gate", "tuned").metrics["state"];
    let why = format!("when tuned.state < -1: it is {state}");
    assert!(said.contains(&format!("  skipped  next   merge  {why}\n")), "{said}");
    assert!(said.contains("  skipped  last   merge  after next\n"), "{said}");
    assert!(said.contains("3 jobs in ") && said.contains(", 0 cached, 2 skipped; store"), "{said}");
    let plan = bench.smelt(&["plan", "p.yaml"]).ok().out;
    let expected = format!(
        "  raw     cached\n  tuned   cached\n  next    skipped  {why}\n  last    skipped  after next\n  beside  \
         cached\n  0 new, 3 cached, 0 after them, 2 skipped; nothing was run\n"
    );
    assert_eq!(plan, expected);
    let status = bench.smelt(&["status", "p.yaml"]).ok().out;
    assert!(status.lines().any(|line| line.starts_with("next") && line.contains("skipped")), "{status}");
    let again = bench.smelt(&["run", "p.yaml"]).ok().out;
    assert!(again.contains("gate: nothing to do, 3 jobs cached, 2 skipped ("), "{again}");
    // An open gate is no part of what a job is.
    bench.pipeline("p.yaml", &GATE.replace("LIMIT", "1e99"));
    let said = bench.smelt(&["run", "p.yaml"]).ok().out;
    assert!(said.contains("2 jobs in ") && said.contains(", 3 cached;"), "{said}");
    let without = GATE.replace(", when: [raw.written > 5, tuned.state < LIMIT]", "");
    bench.pipeline("p.yaml", &without);
    assert!(bench.smelt(&["run", "p.yaml"]).ok().out.contains("nothing to do, 5 jobs cached"));
}

#[test]
fn a_condition_that_cannot_be_is_an_error_with_its_place() {
    let bench = Bench::new();
    let refused = |condition: &str| {
        let gate = GATE.replace("[raw.written > 5, tuned.state < LIMIT]", condition);
        bench.pipeline("p.yaml", &gate).smelt(&["check", "p.yaml"]).fails(2).err
    };
    let said = refused("tuned.state is low");
    assert!(said.starts_with("error: job `next`: `tuned.state is low` is no condition\n  --> p.yaml:5:"), "{said}");
    assert!(said.contains("hint: write `JOB.METRIC < NUMBER`, such as `base.loss < 2.5`"), "{said}");
    let said = refused("tund.state < 3");
    assert!(said.contains("job `next` reads `tund`, and there is no such job"), "{said}");
    assert!(said.contains("hint: is `tuned` meant?"), "{said}");
    assert!(refused("next.written < 3").contains("job `next` waits for what it measures itself"));
    assert!(refused("last.written < 3").contains("jobs wait for each other: "));
    // What a job measures is known when it is done.
    bench.pipeline("p.yaml", &GATE.replace("tuned.state < LIMIT", "tuned.stat < 1"));
    let said = bench.smelt(&["run", "p.yaml"]).fails(2).err;
    assert!(said.contains("`when: tuned.stat < 1`: job `tuned` measured no `stat`\n  --> p.yaml:5:3"), "{said}");
    assert!(said.contains("hint: is `state` meant?"), "{said}");
}

#[test]
fn after_a_failure_other_jobs_run_on_where_the_pipeline_says_so() {
    let text = "name: p\non_failure: WHAT\njobs:\n  \
        bad: { stage: STAGE(count), config: { fail: [0, 3] } }\n  worse: { stage: STAGE(merge), input: bad }\n  \
        good: { stage: STAGE(count), config: { seed: 1, delay_ms: 100 } }\n  \
        better: { stage: STAGE(merge), input: good }\n";
    let run = |what: &str| {
        let bench = Bench::new();
        let said = bench.pipeline("p.yaml", &text.replace("WHAT", what)).smelt(&["run", "p.yaml"]).fails(3);
        assert!(said.err.contains("job `bad` failed: the data are bad"), "{said:#?}");
        let done = ["worse", "good", "better"].map(|job| bench.store().pointer("p", job).unwrap().is_some());
        (said, done)
    };
    let (said, done) = run("continue");
    assert_eq!(done, [false, true, true]);
    assert!(said.out.contains("  skipped  worse  merge  after bad\n"), "{said:#?}");
    let (said, done) = run("stop");
    assert_eq!((done[0], done[2]), (false, false), "{said:#?}");
    let bench = Bench::new();
    let said = bench.pipeline("p.yaml", &text.replace("WHAT", "ignore")).smelt(&["check", "p.yaml"]).fails(2);
    assert!(said.err.contains("p.yaml:2:13"), "{said:#?}");
}

#[test]
fn one_job_of_a_recorded_run_is_done_as_the_run_knew_it() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  raw: { stage: STAGE(count) }\n  even: { stage: STAGE(merge), input: raw }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    let expected = digests(&bench.store(), "p");
    let run = bench.store().runs().unwrap()[0].run.clone();
    // The file changes, and the artifacts go.
    bench.pipeline("p.yaml", &text.replace("STAGE(count)", "STAGE(count), config: { rows: 3 }"));
    std::fs::remove_dir_all(bench.path("artifacts/artifacts")).unwrap();
    let early = bench.smelt(&["exec", &run, "even"]).fails(4);
    let what = format!("error: job `even` needs `raw`, which is not done\nhint: `smelt exec {run} raw` does it\n");
    assert_eq!(early.err, what);
    let said = bench.smelt(&["exec", &run, "raw"]).ok().out;
    assert!(said.contains("  done     raw  count"), "{said}");
    bench.smelt(&["exec", &run, "even", "--quiet"]).ok();
    assert_eq!(digests(&bench.store(), "p"), expected);
    let again = bench.smelt(&["exec", &run, "even"]).ok().out;
    assert!(again.contains("  cached   even merge"), "{again}");
    let said = bench.smelt(&["exec", "20200101-000000.000-abcd", "even"]).fails(2).err;
    assert!(said.starts_with("error: there is no run `20200101-000000.000-abcd` in "), "{said}");
    let said = bench.smelt(&["exec", &run, "evn"]).fails(2).err;
    assert_eq!(said, format!("error: there is no job `evn` in run `{run}`\nhint: is `even` meant?\n"));
}
