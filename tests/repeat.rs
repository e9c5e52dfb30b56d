//! Jobs that are repeated: what each iteration reads, what runs again, and what cannot be.

use crate::support::Bench;
use smelt_schemas::Manifest;

fn manifest(bench: &Bench, job: &str) -> Manifest {
    let store = bench.store();
    let pointer = store.pointer("loop", job).unwrap().expect("the job is done");
    store.manifest(&pointer.artifact).unwrap().expect("its manifest is there")
}

fn written(bench: &Bench, job: &str) -> u64 {
    manifest(bench, job).books.written
}

/// Each iteration keeps the even numbers of the ten and of all that the one before kept: 5, 10, 15, …
const LOOP: &str = "name: loop
jobs:
  raw: { stage: STAGE(count) }
  policy: { stage: STAGE(merge), repeat: 3, input: [previous, raw], first: raw }
  last: { stage: STAGE(merge), input: policy }
  two: { stage: STAGE(merge), input: 'policy[2].documents' }
  all: { stage: STAGE(merge), input: 'policy[*]' }
";

#[test]
fn a_repeated_job_reads_the_iteration_before_and_raising_the_number_runs_only_the_new_one() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", LOOP);
    let plan = bench.smelt(&["plan", "p.yaml"]).ok().out;
    let expected = "  raw        new      first run\n  policy[1]  after raw\n  policy[2]  after policy[1]\n  \
        policy[3]  after policy[2]\n  last       after policy[3]\n  two        after policy[2]\n  all        after \
        policy[1]\n  1 new, 0 cached, 6 after them; nothing was run\n";
    assert_eq!(plan, expected);
    bench.smelt(&["run", "p.yaml"]).ok();
    assert_eq!(["policy[1]", "policy[2]", "policy[3]"].map(|job| written(&bench, job)), [5, 10, 15]);
    assert_eq!(["last", "two", "all"].map(|job| written(&bench, job)), [15, 10, 30]);
    let rows = bench.smelt(&["sql", "select iteration, count(*) as n from policy group by 1 order by 1"]).ok().out;
    let rows: Vec<&str> = rows.lines().filter(|line| line.contains('5') || line.contains("10")).collect();
    assert_eq!(rows, ["| 1         | 5  |", "| 2         | 10 |", "| 3         | 15 |"]);
    assert!(bench.smelt(&["run", "p.yaml"]).ok().out.contains("nothing to do, 7 jobs cached"));
    bench.smelt(&["export", "policy[2]", "two"]).ok();
    assert_eq!(
        bench.smelt(&["artifacts", "show", "policy"]).fails(2).err,
        "error: job `policy` has 3 instances, each with an artifact\nhint: name one: `policy[1]`, `policy[2]`, \
         `policy[3]`\n"
    );
    // One more: what other jobs call `policy` is the new one.
    bench.pipeline("p.yaml", &LOOP.replace("repeat: 3", "repeat: 4"));
    let said = bench.smelt(&["run", "p.yaml"]).ok().out;
    let ran: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("  done     ")?.split(' ').next()).collect();
    assert_eq!((ran.len(), ran[0]), (3, "policy[4]"), "{said}");
    assert!(ran.contains(&"last") && ran.contains(&"all"), "{said}");
    // And back: everything is there.
    bench.pipeline("p.yaml", LOOP);
    assert!(bench.smelt(&["run", "p.yaml"]).ok().out.contains("nothing to do, 7 jobs cached"));
}

#[test]
fn several_jobs_make_one_loop_with_axes_gates_and_settings_of_single_iterations() {
    let bench = Bench::new();
    let text = "name: loop
on_failure: continue
jobs:
  raw: { stage: STAGE(count), each: { seed: [0, 1] }, config: { rows: 10, seed: '${seed}' } }
  judged:
    stage: STAGE(merge)
    each: { seed: [0, 1] }
    repeat: 3
    input: [raw, 'policy[previous]']
    first: raw
  policy:
    stage: STAGE(merge)
    each: { seed: [0, 1] }
    repeat: 3
    input: [judged, judged]
    when: previous.written < 25
  one: { stage: STAGE(merge), each: { seed: [0, 1] }, input: 'policy[1]' }
  chosen: { stage: STAGE(merge), input: 'judged[seed=1,2].documents' }
  end: { stage: STAGE(merge), each: { seed: [0, 1] }, input: 'judged[last]' }
";
    bench.pipeline("p.yaml", text);
    let said = bench.smelt(&["run", "p.yaml"]).ok().out;
    // 5, then 10; 15, then 30: the gate of the third iteration is closed. What it judges is none of its business.
    for seed in ["seed=0", "seed=1"] {
        let of = |job: &str, n: usize| written(&bench, &format!("{job}[{seed},{n}]"));
        assert_eq!([of("judged", 1), of("policy", 1), of("judged", 2), of("policy", 2)], [5, 10, 15, 30]);
        assert_eq!((of("judged", 3), written(&bench, &format!("end[{seed}]"))), (35, 35));
        assert_eq!(written(&bench, &format!("one[{seed}]")), 10);
        let skipped = format!("  skipped  policy[{seed},3] merge  when policy[2].written < 25: it is 30\n");
        assert!(said.contains(&skipped), "{said}");
    }
    assert_eq!(written(&bench, "chosen"), 15);
    let set = "policy[seed=1,2].config.lose_one=true";
    let plan = bench.smelt(&["plan", "p.yaml", "--set", set]).ok().out;
    assert!(plan.contains("  policy[seed=1,2]  new      config.lose_one: false -> true\n"), "{plan}");
    assert!(plan.contains("  1 new, "), "{plan}");
}

#[test]
fn an_iteration_that_fails_stops_those_behind_it_and_the_next_run_goes_on_from_there() {
    let bench = Bench::new();
    let text = "name: loop
on_failure: continue
jobs:
  raw: { stage: STAGE(count), repeat: 2, config: { rows: 4, seed: '${iteration}', fail: [0, 3] } }
  beside: { stage: STAGE(count), repeat: 2, config: { rows: 4, seed: '${iteration}' } }
  policy: { stage: STAGE(merge), repeat: 2, input: [beside, previous], first: [beside, raw] }
";
    bench.pipeline("p.yaml", text);
    // In `first` plain names are the last iteration, for they come from before the loop.
    let said = bench.smelt(&["run", "p.yaml"]).fails(3);
    assert!(said.out.contains("  skipped  policy[1] merge  after raw[2]\n"), "{said:?}");
    assert!(said.out.contains("  skipped  policy[2] merge  after policy[1]\n"), "{said:?}");
    // Mended, it is what stands beside it, and done already.
    let fixed = text.replace(", fail: [0, 3]", "");
    let said = bench.pipeline("p.yaml", &fixed).smelt(&["run", "p.yaml"]).ok().out;
    assert!(said.contains("2 jobs in ") && said.contains(", 4 cached;"), "{said}");
    assert_eq!(["policy[1]", "policy[2]"].map(|job| written(&bench, job)), [4, 6]);
}

#[test]
fn a_loop_that_cannot_be_is_an_error_with_its_place() {
    let bench = Bench::new();
    let refused = |policy: &str, more: &str| {
        let text = format!("name: loop\njobs:\n  raw: {{ stage: STAGE(count) }}\n  policy: {policy}\n{more}");
        bench.pipeline("p.yaml", &text.replace("MERGE", "stage: STAGE(merge)"));
        let said = bench.smelt(&["check", "p.yaml"]).fails(2).err;
        let (before, after) = said.split_once("  --> p.yaml:").unwrap_or_else(|| panic!("{said}"));
        // Columns depend on where the test's programs lie.
        let (place, hint) = after.split_once('\n').unwrap();
        format!("{before}{}: {hint}", place.split(':').next().unwrap())
    };
    let cases = [
        (
            "{ MERGE, input: previous }",
            "",
            "error: job `policy` reads a previous iteration, and is not repeated\n4: hint: add `repeat: 3` and `first: \
             JOB`, or name a job\n",
        ),
        (
            "{ MERGE, input: 'policy[previous]' }",
            "",
            "error: job `policy` reads a previous iteration, and is not repeated\n4: hint: add `repeat: 3` and `first: \
             JOB`, or name a job\n",
        ),
        (
            "{ MERGE, input: raw, first: raw }",
            "",
            "error: job `policy` has `first`, and is not repeated\n4: hint: add `repeat: 3`, or write under `input` \
             what it reads\n",
        ),
        (
            "{ MERGE, repeat: 0, input: raw }",
            "",
            "error: job `policy` is repeated 0 times, expected 1 to 1000\n4: hint: leave `repeat` out for a job that \
             is done once\n",
        ),
        (
            "{ MERGE, repeat: many, input: raw }",
            "",
            "error: `jobs.policy.repeat` is the text \"many\", expected a whole number, 0 or more\n4: hint: write it \
             as `3`, without quotes\n",
        ),
        (
            "{ MERGE, repeat: 2, input: { documents: previous } }",
            "",
            "error: job `policy`: the first of its iterations has none before it for its input `documents`\n4: hint: \
             add `first: { documents: JOB }`, what it begins with\n",
        ),
        (
            "{ MERGE, repeat: 2, input: raw, first: raw }",
            "",
            "error: job `policy` has `first`, and no input of it is of a previous iteration\n4: hint: say for which \
             input it is: `first: { PORT: JOB }`\n",
        ),
        (
            "{ MERGE, repeat: 2, input: previous, first: raw }",
            "  end: { MERGE, input: 'policy[3]' }\n",
            "error: job `end` reads `policy[3]`, and `policy` has 2 iterations\n5: hint: `policy[last]` is the last\n",
        ),
        (
            "{ MERGE, repeat: 2, input: previous, first: raw }",
            "  end: { MERGE, repeat: 3, input: policy }\n",
            "error: job `end[3]` reads `policy[3]`, and `policy` has 2 iterations\n5: hint: give both jobs the same \
             `repeat`, or name one: `policy[last]`\n",
        ),
        (
            "{ MERGE, repeat: 2, input: previous, first: raw }",
            "  end: { MERGE, input: 'policy[first]' }\n",
            "error: job `end` reads `policy[first]`, and there is no such iteration\n5: hint: iterations of `policy`: \
             1 to 2, `previous`, `last`; `policy[*]` is all\n",
        ),
        (
            "{ MERGE, repeat: 2, input: policy }",
            "",
            "error: jobs wait for each other: policy[1] -> policy[1]\n4: hint: `policy[previous]` is the iteration \
             before\n",
        ),
        (
            "{ MERGE, repeat: 2, input: judge }",
            "  judge: { MERGE, repeat: 2, input: policy }\n",
            "error: jobs wait for each other: policy[1] -> judge[1] -> policy[1]\n4: hint: `policy[previous]` is the \
             iteration before\n",
        ),
        (
            "{ MERGE, repeat: 2, input: raw, when: policy.written > 1 }",
            "",
            "error: job `policy[1]` waits for what it measures itself\n4: hint: name an earlier job, or `previous`, \
             the iteration before\n",
        ),
        (
            "{ MERGE, repeat: 2, each: { iteration: [1] }, input: raw }",
            "",
            "error: job `policy` is repeated, and has an axis `iteration` as well\n4: hint: give the axis another \
             name: the iterations have this one\n",
        ),
        (
            "{ MERGE, input: raw }",
            "  previous: { MERGE, input: raw }\n",
            "error: `previous` is no name for a job\n5: hint: in a job with `repeat` it is the iteration before: give \
             the job another name\n",
        ),
    ];
    for (policy, more, expected) in cases {
        assert_eq!(refused(policy, more), expected, "{policy} {more}");
    }
}

#[test]
fn the_example_aligns_in_rounds_and_a_further_round_is_all_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let smelt =
        |args: &[&str]| crate::support::Said::from(crate::smoke::command(folder.path(), args).output().unwrap());
    let file = "pipelines/examples/iterated.yaml";
    smelt(&["run", file]).ok();
    let store = crate::smoke::open(folder.path());
    let digest = |round: usize| {
        let artifact = store.pointer("iterated", &format!("policy[{round}]")).unwrap().unwrap().artifact;
        store.manifest(&artifact).unwrap().unwrap().ports["model"].digest.clone()
    };
    let digests = [1, 2, 3].map(digest);
    assert!(digests[0] != digests[1] && digests[1] != digests[2], "every round learns");
    let plan = smelt(&["plan", file, "--set", "vars.rounds=4"]).ok().out;
    let new: Vec<&str> = plan.lines().filter(|line| !line.ends_with("cached")).collect();
    assert_eq!(new.len(), 4, "{plan}");
    for (line, begins) in
        new.iter().zip(["  judge[4]   new", "  policy[4]  after judge[4]", "  score[4]   after policy[4]"])
    {
        assert!(line.starts_with(begins), "{plan}");
    }
}
