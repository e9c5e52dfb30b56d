//! What people look at: runs, their differences, logs; and the pipeline that `init` writes.

use crate::support::{Bench, wait_until};

#[test]
fn a_pipeline_for_ones_own_text_is_written_and_can_be_run() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("notes")).unwrap();
    // Sentences that differ: repeated ones are what `clean` drops.
    let who = ["My sister", "The baker", "An old friend", "Nobody", "Our teacher", "The neighbour", "A stranger"];
    let did = ["planted", "repaired", "painted", "carried", "forgot", "described", "measured", "sold"];
    let what = ["a wooden boat", "the garden wall", "two letters", "an engine", "the blue door", "some apples"];
    for i in 0..40 {
        let sentence = |k: usize| {
            let n = i * 31 + k * k * 7 + k;
            format!("{} {} {} on day {n}.", who[n % 7], did[(n / 7) % 8], what[(n / 3) % 6])
        };
        let text = (0..12).map(sentence).collect::<Vec<_>>().join(" ");
        std::fs::write(bench.path(&format!("notes/{i}.md")), text).unwrap();
    }
    let said = bench.smelt(&["init", "notes/**/*.md", "--output", "my notes.yaml"]).ok().out;
    assert!(said.starts_with("my notes.yaml is written. Next:\n"), "{said}");
    assert!(said.contains("\n  smelt check 'my notes.yaml'      finds the files"), "{said}");
    bench.smelt(&["check", "my notes.yaml"]).ok();
    let small = ["--set", "tokens.config.vocabulary=300", "--only", "tokens"];
    let said = bench.smelt(&[&["run", "my notes.yaml"][..], &small].concat()).ok().out;
    assert!(said.contains("raw    ingest    40 rows, "), "{said}");
    let said = bench.smelt(&["init", "x", "--output", "my notes.yaml"]).fails(2).err;
    assert!(said.contains("`my notes.yaml` is there already") && said.contains("`--output`"), "{said}");
    let said = bench.smelt(&["completions", "bash"]).ok().out;
    assert!(said.contains("complete -F _smelt") && said.contains("rerun"), "{said}");
}

#[test]
fn runs_are_listed_and_compared() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count), config: { rows: 12 } }\n  b: { stage: STAGE(merge), input: \
        a }\n  c: { stage: STAGE(count), config: { rows: 3 } }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    bench.smelt(&["run", "p.yaml", "--set", "a.config.rows=20"]).ok();
    let listed = bench.smelt(&["runs", "--format", "json"]).ok().out;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let facts = |i: usize| (listed[i]["ran"].clone(), listed[i]["cached"].clone(), listed[i]["set"].clone());
    assert_eq!(facts(0), (3.into(), 0.into(), "".into()));
    assert_eq!(facts(1), (2.into(), 1.into(), "a.config.rows=20".into()));
    let run = |i: usize| listed[i]["run"].as_str().unwrap().to_owned();
    let said = bench.smelt(&["compare", &run(0), &run(1)]).ok().out;
    assert!(said.starts_with("the same artifact in both: c\n"), "{said}");
    let row = said.lines().find(|line| line.contains("config.rows")).unwrap_or_default();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["a", "config.rows", "12", "20"], "{said}");
    assert!(said.lines().any(|line| line.contains("port documents")), "{said}");
    assert_eq!(
        bench.smelt(&["compare", &run(1), &run(1)]).ok().out,
        "the same artifact in both: a, b, c\nnothing differs\n"
    );
    let said = bench.smelt(&["compare", &run(0), "nowhere"]).fails(2).err;
    assert!(said.contains("there is no run `nowhere`"), "{said}");
    let said = bench.smelt(&["compare", &run(0), "20"]).fails(2).err;
    assert!(said.contains("`20` begins 2 runs") && said.contains("write more of the name"), "{said}");
}

#[test]
fn a_log_is_followed_until_its_run_ends() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(train), config: { seed: 3, steps: 40, delay_ms: 50 } } }\n";
    bench.pipeline("p.yaml", text);
    let mut run = bench.command(&["run", "p.yaml"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_until("the run is recorded", || bench.smelt(&["status", "p.yaml"]).out.contains("running"));
    let followed = bench.smelt(&["logs", "a", "--follow", "--events"]).ok().out;
    assert!(run.wait().unwrap().success());
    // What is followed comes as it is said: events and words by turns.
    let whole = bench.smelt(&["logs", "a", "--events"]).ok().out;
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&followed), sorted(&whole));
    assert!(whole.contains("\"type\":\"committed\"") && whole.ends_with("step 39\n"), "{whole}");
}

#[test]
fn curves_are_written_as_event_files() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(train), config: { seed: 3, steps: 40 } }, b: { stage: STAGE(count), \
        config: { rows: 3 } } }\n";
    bench.pipeline("p.yaml", text);
    bench.smelt(&["run", "p.yaml", "--only", "b"]).ok();
    let said = bench.smelt(&["report", "p.yaml", "--tensorboard", "logs"]).fails(2).err;
    assert!(said.contains("no job of pipeline `p` has a curve in artifacts"), "{said}");
    bench.smelt(&["run", "p.yaml"]).ok();
    for _ in 0..2 {
        let said = bench.smelt(&["report", "p.yaml", "--tensorboard", "logs"]).ok().out;
        assert_eq!(said, "logs/a/events.out.tfevents.smelt\n");
    }
    // One record for the file's version and one per point, each with its length in front and two checksums.
    let file = std::fs::read(bench.path("logs/a/events.out.tfevents.smelt")).unwrap();
    let (mut at, mut records) = (0, 0);
    while at < file.len() {
        at += 16 + u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
        records += 1;
    }
    let points =
        bench.smelt(&["sql", "select count(*) from smelt.metrics where job = 'a'", "--format", "csv"]).ok().out;
    assert_eq!(at, file.len());
    assert_eq!(points.lines().nth(1).unwrap().parse::<usize>().unwrap() + 1, records);
    assert_eq!(std::fs::read_dir(bench.path("logs/a")).unwrap().count(), 1);
}
