//! The stage as a runner runs it.

mod problems;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::slice::from_ref;

use problems::{Feed, Raw};
use serde_json::{Value, json};
use smelt_decontaminate::Decontaminate;
use smelt_schemas::{InputRef, Manifest};
use smelt_stage::Stage;
use smelt_stage::kinds::{Documents, Drops, Hit, Hits};
use workshop::{Workshop, digests, told};

const FERRY: &str = "A ferry leaves the harbour every forty minutes, starting at 6:10. How many ferries have left when \
                     the lighthouse keeper goes to bed at a quarter past nine in the evening?";
const SHORT: &str = "Which river of the north freezes first in winter?";
const CHINESE: &str = "一艘渡轮每隔四十分钟从港口出发一次，第一班是早上六点十分。\
                       灯塔管理员晚上九点一刻睡觉时，一共开出了多少班渡轮？";
const PROSE: &str = "Nets hang to dry on the wall of the quay, with the gulls above them waiting for a chance. In \
                     winter the lamps burn until nine, and the keeper reads old letters in his hut. Nobody sells \
                     fish after three, since ice costs more than a walk to the next town would.";

fn problems() -> Value {
    json!([
        ["ferry", FERRY, "23"],
        ["short", SHORT, "the one that has no name, as everybody knows who has lived there for a year or two"],
        ["chinese", CHINESE, "23"],
        ["tiny", "3+4*2", "11"],
    ])
}

fn prompts(workshop: &Workshop, problems: Value) -> InputRef {
    let manifest = workshop.run::<Feed>(json!({ "prompts": problems }), &[]).unwrap();
    workshop.port(&manifest, "prompts")
}

fn documents() -> Vec<(String, String)> {
    let shouted = FERRY.to_uppercase().replace(' ', "\n").replace("6:10", "6.10");
    let wrapped: String = CHINESE.chars().flat_map(|c| [c, '\n']).collect();
    let half = FERRY.split(" when ").next().unwrap();
    [
        ("clean", PROSE.to_owned()),
        ("ferry", format!("{PROSE}\n\nQ: {shouted}\nA: 23\n\n{PROSE}")),
        ("half", format!("{PROSE} {half}. {PROSE}")),
        ("short", format!("{PROSE} *Which* river, of the NORTH, freezes “first” in winter… {PROSE}")),
        ("nearly short", format!("{PROSE} Which river of the north freezes first in autumn? {PROSE}")),
        ("answer", format!("It is the one that has no name, as everybody knows who has lived there. {PROSE}")),
        ("chinese", format!("问题：{wrapped}")),
        ("sums", "3+4*2 = 11, 3+4*2 = 11, 3+4*2 = 11, 3+4*2 = 11, 3+4*2 = 11, 3+4*2 = 11".to_owned()),
        ("empty", String::new()),
    ]
    .map(|(id, text)| (id.to_owned(), text))
    .to_vec()
}

fn fed(workshop: &Workshop, per_file: usize) -> InputRef {
    let documents = documents();
    let borrowed: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    workshop.feed(&borrowed, per_file)
}

fn run(workshop: &Workshop, config: Value) -> Manifest {
    let (input, prompts) = (fed(workshop, 2), prompts(workshop, problems()));
    workshop.run::<Decontaminate>(config, &[("documents", &[input]), ("prompts", &[prompts])]).unwrap()
}

fn ids(workshop: &Workshop, manifest: &Manifest) -> Vec<String> {
    workshop.rows::<Documents>(manifest, "documents").into_iter().map(|document| document.id).collect()
}

fn hits(workshop: &Workshop, manifest: &Manifest) -> Vec<Hit> {
    workshop.rows::<Hits>(manifest, "hits")
}

/// The bytes of this input under the default config. Whoever changes them raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("decontaminate-golden-{threads}"));
        workshop.threads = threads;
        all.push(digests(&run(&workshop, json!({}))));
    }
    assert_eq!(all[0], all[1], "threads change bytes");
    assert_eq!(Decontaminate::VERSION, 1);
    let golden = [
        "documents c69b549a9019e62243bdceee0f7ebc18ac23ce774b977350c0674c37f0102788",
        "drops ba75821b2b2551df787d97216eb72eecacaba26f4be8aa7ac8e0f29f6392f87e",
        "hits d36819a387c8e689dbeeb3a28434bf4093db69d643cbc26c0ee4fd7cfa9a51b6",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new digests here");
}

#[test]
fn copies_of_problems_are_dropped_and_the_table_says_of_which() {
    let workshop = Workshop::new("decontaminate-drops");
    let manifest = run(&workshop, json!({ "names": ["harbour"] }));
    assert_eq!(ids(&workshop, &manifest), ["clean", "nearly short", "sums", "empty"]);
    let hits = hits(&workshop, &manifest);
    let found: Vec<(&str, &str, &str)> =
        hits.iter().map(|hit| (hit.document.as_str(), hit.problem.as_str(), hit.field.as_str())).collect();
    assert_eq!(
        found,
        [
            ("ferry", "ferry", "question"),
            ("half", "ferry", "question"),
            ("short", "short", "question"),
            ("answer", "short", "answer"),
            ("chinese", "chinese", "question"),
        ]
    );
    assert!(hits.iter().all(|hit| hit.benchmark == "harbour"));
    // 32 words; of the half 17, which are five n-grams.
    assert_eq!((hits[0].ngrams, hits[0].covered), (20, 1.0));
    assert_eq!((hits[1].ngrams, hits[1].covered), (5, 17.0 / 32.0));
    assert_eq!(hits[1].ngram, "a ferry leaves the harbour every forty minutes starting at 6 10 how");
    assert_eq!((hits[2].ngrams, hits[2].covered), (1, 1.0), "a short question is one n-gram");
    assert_eq!(hits[2].ngram, "which river of the north freezes first in winter");
    // 51 characters, of which 26 are an n-gram.
    assert_eq!((hits[4].ngrams, hits[4].covered), (26, 1.0));
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    let told_of: Vec<(&str, &str, f64, &str)> = drops
        .iter()
        .map(|d| (d.id.as_str(), d.rule.as_str(), d.value.unwrap(), d.detail.as_deref().unwrap()))
        .collect();
    assert_eq!(told_of[0], ("ferry", "contaminated", 1.0, "harbour ferry"));
    assert_eq!(told_of[1], ("half", "contaminated", 17.0 / 32.0, "harbour ferry"));
    assert_eq!((manifest.books.read, manifest.books.written, drops.len()), (9, 4, 5));
    assert_eq!((manifest.metrics["problems"], manifest.metrics["sought_problems"]), (4.0, 3.0));
    assert_eq!(manifest.metrics["contaminated"], 5.0);
}

#[test]
fn a_report_drops_nothing_and_a_cut_leaves_what_is_around() {
    let workshop = Workshop::new("decontaminate-actions");
    let dropped = run(&workshop, json!({}));
    let reported = run(&workshop, json!({ "action": "report" }));
    assert_eq!(ids(&workshop, &reported).len(), 9);
    assert_eq!(hits(&workshop, &reported), hits(&workshop, &dropped));

    let cut = run(&workshop, json!({ "action": "cut", "cut": { "margin": 3, "min_piece": 20 } }));
    let rows = workshop.rows::<Documents>(&cut, "documents");
    let text = |id: &str| rows.iter().find(|row| row.id == id).map(|row| row.text.as_str());
    assert_eq!(text("ferry#1"), Some(PROSE), "the margin is what introduces the question");
    assert_eq!(text("ferry#2"), Some(&*format!(": 23\n\n{PROSE}")), "behind it are three characters as well");
    assert_eq!(text("half#1"), Some(&PROSE[..PROSE.len() - 2]));
    assert_eq!((text("ferry"), text("ferry#3")), (None, None));
    let books = &cut.books;
    assert_eq!((books.read, books.derived, books.written), (9, 3, 11));
    assert_eq!(books.dropped["nothing_left"], 1, "the Chinese one");

    let few = run(&workshop, json!({ "action": "cut", "cut": { "margin": 3, "max_pieces": 1 } }));
    let drops = workshop.rows::<Drops>(&few, "drops");
    let many: Vec<(&str, f64)> =
        drops.iter().filter(|d| d.rule == "too_many_pieces").map(|d| (d.id.as_str(), d.value.unwrap())).collect();
    assert_eq!(many, [("ferry", 2.0), ("half", 2.0), ("short", 2.0), ("answer", 2.0)]);
}

#[test]
fn a_share_of_the_problem_can_be_asked_for() {
    let workshop = Workshop::new("decontaminate-covered");
    let manifest = run(&workshop, json!({ "min_covered": 0.6 }));
    let kept = ids(&workshop, &manifest);
    assert!(kept.contains(&"half".to_owned()) && !kept.contains(&"ferry".to_owned()), "{kept:?}");
    assert!(hits(&workshop, &manifest).iter().all(|hit| hit.covered >= 0.6));
}

#[test]
fn other_numbers_make_no_other_problem_when_asked() {
    let workshop = Workshop::new("decontaminate-numbers");
    let sums = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15";
    let problem = "Ann has 3 apples and 12.5 pears and gives 2 of them away to Bob, who eats 1. What is left?";
    let other = "Ann has 14 apples and 7 pears and gives 1,000 of them away to Bob, who eats 22. What is left?";
    let documents = workshop.feed(&[("same", problem), ("other", other), ("sums", sums), ("clean", PROSE)], 4);
    let prompts = prompts(&workshop, json!([["apples", problem, "10"], ["sums", format!("{sums} and so on"), "16"]]));
    let kept = |config: Value| {
        let inputs: &[(&str, &[InputRef])] = &[("documents", from_ref(&documents)), ("prompts", from_ref(&prompts))];
        ids(&workshop, &workshop.run::<Decontaminate>(config, inputs).unwrap())
    };
    assert_eq!(kept(json!({})), ["other", "clean"]);
    let inputs: &[(&str, &[InputRef])] = &[("documents", from_ref(&documents)), ("prompts", from_ref(&prompts))];
    let manifest = workshop.run::<Decontaminate>(json!({ "fold_numbers": true }), inputs).unwrap();
    // Of a table of numbers nothing but zeros would be left.
    assert_eq!(ids(&workshop, &manifest), ["sums", "clean"]);
    assert_eq!(manifest.metrics["sought_problems"], 1.0);
}

#[test]
fn what_many_problems_or_documents_share_is_no_evidence_when_asked() {
    let workshop = Workshop::new("decontaminate-common");
    let form = "Answer the following question with the letter of the right choice and with nothing else but that:";
    let own = [
        "the oldest lighthouse of the coast was built of a kind of stone that floats on water, but of which",
        "nobody who sails alone at night sees more than nine of the twelve lamps of the bay, but which of them",
    ];
    let problems: Vec<Value> =
        own.iter().enumerate().map(|(i, text)| json!([format!("p{i}"), format!("{form} {text}?"), "A"])).collect();
    let benchmark = prompts(&workshop, json!(problems));
    let texts: Vec<(String, String)> = [("form", format!("{form} how old are you?")), ("clean", PROSE.to_owned())]
        .into_iter()
        .map(|(id, text)| (id.to_owned(), text))
        .chain((0..3).map(|i| (format!("copy{i}"), format!("{i} {}", own[0]))))
        .chain([("other".to_owned(), own[1].to_owned())])
        .collect();
    let borrowed: Vec<(&str, &str)> = texts.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    let documents = workshop.feed(&borrowed, 2);
    let run = |config: Value| {
        let inputs: &[(&str, &[InputRef])] = &[("documents", from_ref(&documents)), ("prompts", from_ref(&benchmark))];
        workshop.run::<Decontaminate>(config, inputs).unwrap()
    };
    assert_eq!(ids(&workshop, &run(json!({}))), ["clean"]);
    let template = run(json!({ "max_problems": 1 }));
    assert_eq!(ids(&workshop, &template), ["form", "clean"]);
    // 17 words of the form: five n-grams lie in it.
    assert_eq!(template.metrics["template_ngrams"], 5.0);
    let common = run(json!({ "max_problems": 1, "max_documents": 2 }));
    assert_eq!(ids(&workshop, &common), ["form", "clean", "copy0", "copy1", "copy2"]);
    assert_eq!(common.metrics["common_ngrams"], 8.0);
    let rare = run(json!({ "max_problems": 1, "max_documents": 3 }));
    assert_eq!(ids(&workshop, &rare), ["form", "clean"]);
    assert_eq!(common.books.read, 6, "documents are read twice and counted once");
}

/// Preferences and plain texts are benchmarks too, and each is named by its input.
#[test]
fn every_kind_that_holds_problems_is_a_benchmark() {
    let workshop = Workshop::new("decontaminate-kinds");
    let chosen = "First you count the lamps from the west, and then you subtract those that the fog has swallowed.";
    let fed =
        workshop.run::<Feed>(json!({ "preferences": [["pair", "How many lamps?", chosen, "nine"]] }), &[]).unwrap();
    let preferences = workshop.port(&fed, "preferences");
    let text = |id: &str, text: &str| workshop.feed(&[(id, text)], 1);
    let documents = workshop.feed(
        &[
            ("a", &format!("He said: {chosen}")),
            ("b", FERRY),
            ("c", &CHINESE.replace('，', ",")),
            ("d", PROSE),
            ("e", SHORT),
        ],
        2,
    );
    let inputs: &[(&str, &[InputRef])] = &[
        ("documents", &[documents]),
        ("preferences", &[preferences]),
        ("texts", &[text("held out", FERRY), text("zh", CHINESE)]),
    ];
    let manifest = workshop.run::<Decontaminate>(json!({}), inputs).unwrap();
    let hits = hits(&workshop, &manifest);
    let found: Vec<[&str; 4]> = hits.iter().map(|h| [&*h.document, &*h.benchmark, &*h.problem, &*h.field]).collect();
    let expected = [
        ["a", "preferences", "pair", "chosen"],
        ["b", "texts[0]", "held out", "text"],
        ["c", "texts[1]", "zh", "text"],
    ];
    assert_eq!(found, expected);
    assert_eq!(ids(&workshop, &manifest), ["d", "e"]);
}

#[test]
fn wrong_configs_are_refused_before_anything_runs() {
    let workshop = Workshop::new("decontaminate-config");
    let input = workshop.feed(&[("x", "")], 1);
    let refuse = |config: Value, inputs: &[(&str, &[InputRef])]| {
        let error = workshop.resolve::<Decontaminate>(config, inputs).unwrap_err();
        format!("{}: {}", error.problem().field.as_deref().unwrap_or_default(), told(&error))
    };
    let one: &[(&str, &[InputRef])] = &[("documents", from_ref(&input)), ("texts", from_ref(&input))];
    let two: &[(&str, &[InputRef])] = &[("documents", from_ref(&input)), ("texts", &[input.clone(), input.clone()])];
    assert_eq!(
        refuse(json!({}), &[("documents", from_ref(&input))]),
        ": `decontaminate` has no benchmark to look for\n\
         hint: name one: `input: { documents: JOB, prompts: JOB }`, or `preferences`, or `texts`"
    );
    assert_eq!(
        refuse(json!({ "n": 5 }), one),
        "/min_words: `min_words` is 8, more than the 5 words of an n-gram\n\
         hint: it is for questions that are shorter than an n-gram"
    );
    assert_eq!(
        refuse(json!({ "names": ["a", "b"] }), one),
        "/names: 2 names for 1 benchmarks\nhint: give one per benchmark, in their order, or none"
    );
    assert_eq!(refuse(json!({ "names": ["a", "a"] }), two), "/names/1: two benchmarks are called `a`");
    assert!(refuse(json!({ "action": "mask" }), one).contains("expected one of `drop`, `cut`, `report`"));
}

#[test]
fn benchmarks_of_which_nothing_can_be_found_are_errors() {
    let workshop = Workshop::new("decontaminate-nothing");
    let documents = workshop.feed(&[("a", FERRY)], 1);
    let fail = |problems: Value, config: Value| {
        let prompts = prompts(&workshop, problems);
        let inputs: &[(&str, &[InputRef])] = &[("documents", from_ref(&documents)), ("prompts", &[prompts])];
        told(&workshop.run::<Decontaminate>(config, inputs).unwrap_err())
    };
    assert_eq!(
        fail(json!([]), json!({})),
        "benchmark `prompts` is empty: nothing can be found of it\n\
         hint: look at the job that makes it, or leave it out"
    );
    assert_eq!(
        fail(json!([["a", "3+4*2", "11"], ["b", "Why is it so?", "x"]]), json!({ "names": ["sums"] })),
        "none of the 2 problems of benchmark `sums` can be sought: the longest has 4 words, and `min_words` is 8\n\
         hint: lower `min_words`, or leave the benchmark out"
    );
    assert_eq!(
        fail(json!([["a", SHORT, "x"], ["b", SHORT, "x"]]), json!({ "max_problems": 1 })),
        "none of the 2 problems of benchmark `prompts` can be sought: more than `max_problems` of them share each of \
         their n-grams, or these are numbers\n\
         hint: set `max_problems: null` or `fold_numbers: false`, or leave the benchmark out"
    );
    assert_eq!(
        fail(json!([["a", FERRY, "x"]]), json!({})),
        "none of 1 documents is left: each holds something of a problem\n\
         hint: `action: report` keeps them and writes `hits`; is the benchmark itself among the documents?"
    );
}

/// A table without texts is named with its file, its input and its column.
#[test]
fn a_missing_column_is_named() {
    let workshop = Workshop::new("decontaminate-columns");
    let (documents, prompts) = (workshop.feed(&[("a", PROSE)], 1), prompts(&workshop, problems()));
    let raw = workshop.run::<Raw>(json!({}), &[]).unwrap();
    let raw = workshop.port(&raw, "documents");
    let fail = |inputs: &[(&str, &[InputRef])]| told(&workshop.run::<Decontaminate>(json!({}), inputs).unwrap_err());
    let input = fail(&[("documents", from_ref(&raw)), ("prompts", &[prompts])]);
    assert_eq!(input, "`00000.parquet` of input `documents`: column `text` is missing");
    let benchmark = fail(&[("documents", &[documents]), ("texts", &[raw])]);
    assert_eq!(benchmark, "`00000.parquet` of input `texts`: column `text` is missing");
}

#[test]
fn problems_that_are_not_sought_are_counted_in_a_warning() {
    let workshop = Workshop::new("decontaminate-warnings");
    let (input, prompts) = (fed(&workshop, 9), prompts(&workshop, problems()));
    let inputs: &[(&str, &[InputRef])] = &[("documents", &[input]), ("prompts", &[prompts])];
    let program = env!("CARGO_BIN_EXE_smelt-decontaminate");
    assert_eq!(
        workshop.warnings::<Decontaminate>(program, json!({}), inputs),
        ["1 of 4 problems of benchmark `prompts` are not sought: they have fewer than `min_words: 8`, or more than \
          `max_problems` share what they say"]
    );
}

/// With documents counted first, so that the counts of all units reach all workers.
#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("decontaminate-kills");
    let (input, prompts) = (fed(&workshop, 3), prompts(&workshop, problems()));
    let inputs: &[(&str, &[InputRef])] = &[("documents", &[input]), ("prompts", &[prompts])];
    let program = env!("CARGO_BIN_EXE_smelt-decontaminate");
    let kills = workshop.kill_at_every_write::<Decontaminate>(program, json!({ "max_documents": 10 }), inputs);
    // A lease, files and a record of each unit of two phases, the manifest.
    assert!(kills >= 14, "killed {kills} times");
}

#[test]
fn many_workers_with_kills_end_with_the_same_bytes() {
    let workshop = Workshop::new("decontaminate-workers");
    let (input, prompts) = (fed(&workshop, 1), prompts(&workshop, problems()));
    let inputs: &[(&str, &[InputRef])] = &[("documents", &[input]), ("prompts", &[prompts])];
    let program = env!("CARGO_BIN_EXE_smelt-decontaminate");
    let kills = workshop.spread::<Decontaminate>(program, json!({ "max_documents": 10 }), inputs);
    assert!(kills >= 15, "killed {kills} times");
}
