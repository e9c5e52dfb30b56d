//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use serde_json::{Value, json};
use smelt_dedup::Dedup;
use smelt_stage::Stage;
use smelt_stage::kinds::{Documents, Drops};
use workshop::{Workshop, digests, told};

/// Fifty sentences; `change` puts another word into one of them.
fn essay(subject: &str, change: Option<usize>) -> String {
    let verbs = ["holds", "moves", "finds", "takes", "gives", "turns", "keeps"];
    let sentence = |i: usize| {
        let verb = if change == Some(i) { "zaps" } else { verbs[i % 7] };
        format!("The {subject} of part {} {verb} what the {} needs.\n", letters(i), letters(i * 31 + 7))
    };
    (0..50).map(sentence).collect()
}

/// A word for a number: digits would all be folded to 0.
fn letters(mut i: usize) -> String {
    let mut word = String::from("w");
    while i > 0 {
        word.push((b'a' + (i % 26) as u8) as char);
        i /= 26;
    }
    word
}

fn documents() -> Vec<(String, String)> {
    let own = |id: &str, text: String| (id.to_owned(), text);
    vec![
        own("one", essay("lever", None)),
        own("two", essay("wheel", None)),
        own("near one", essay("lever", Some(20))),
        own("copy of two", essay("wheel", None).replace('\n', "\r\n")),
        own("short", "too short".into()),
        own("also short", "too  short\n".into()),
        own("nearer one", essay("lever", Some(21))),
    ]
}

fn fed(workshop: &Workshop, per_file: usize) -> smelt_schemas::InputRef {
    let documents = documents();
    let borrowed: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    workshop.feed(&borrowed, per_file)
}

/// The bytes of this input under the default config. Whoever changes them raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    // Memory for everything, or for a document at a time.
    for (threads, memory) in [(1, None), (3, Some(1000))] {
        let mut workshop = Workshop::new(&format!("dedup-golden-{threads}"));
        (workshop.threads, workshop.memory) = (threads, memory);
        let input = fed(&workshop, 2);
        all.push(digests(&workshop.run::<Dedup>(json!({}), &[("documents", &[input])]).unwrap()));
    }
    assert_eq!(all[0], all[1], "threads or memory change bytes");
    assert_eq!(Dedup::VERSION, 4);
    let golden = [
        "documents 1c2eab74387458bb84d151636697acedd9a9ab7ecf9dfc248a3d58a87a086807",
        "drops dd7d76d5e5bcd446e3765882914a06b6783adc3a13a8702125a9bfd38e5eb5ce",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new digests here");
}

#[test]
fn drops_name_their_leader_and_similarity() {
    let workshop = Workshop::new("dedup-drops");
    let input = fed(&workshop, 3);
    let manifest = workshop.run::<Dedup>(json!({}), &[("documents", &[input])]).unwrap();
    let kept: Vec<String> = workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect();
    assert_eq!(kept, ["one", "two", "short"]);
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    let told: Vec<(&str, &str, &str)> =
        drops.iter().map(|d| (d.id.as_str(), d.rule.as_str(), d.detail.as_deref().unwrap())).collect();
    assert_eq!(
        told,
        [
            ("near one", "near_duplicate", "one"),
            ("copy of two", "exact_duplicate", "two"),
            ("also short", "exact_duplicate", "short"),
            ("nearer one", "near_duplicate", "one"),
        ]
    );
    // One word in 450 changed: 5 of about 450 shingles on either side.
    assert!(drops[0].value.unwrap() > 0.9 && drops[0].value.unwrap() < 1.0, "{:?}", drops[0]);
    assert_eq!(drops[1].value, Some(1.0));
    assert_eq!((manifest.books.read, manifest.books.written), (7, 3));
}

#[test]
fn the_first_input_wins_and_files_do_not_matter() {
    let workshop = Workshop::new("dedup-inputs");
    let (a, b) =
        (workshop.feed(&[("a", "equal text"), ("c", "other text")], 1), workshop.feed(&[("b", "equal text")], 1));
    let ids = |inputs: &[smelt_schemas::InputRef]| -> Vec<String> {
        let manifest = workshop.run::<Dedup>(json!({}), &[("documents", inputs)]).unwrap();
        workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect()
    };
    assert_eq!(ids(&[a.clone(), b.clone()]), ["a", "c"]);
    assert_eq!(ids(&[b, a]), ["b", "c"]);
}

#[test]
fn near_and_exact_can_be_turned_off() {
    let workshop = Workshop::new("dedup-modes");
    let kept = |config: Value| {
        let input = fed(&workshop, 7);
        let manifest = workshop.run::<Dedup>(config, &[("documents", &[input])]).unwrap();
        manifest.books.written
    };
    assert_eq!(kept(json!({ "near": false })), 5);
    // Texts of fewer than five words have no signature; the equal long ones have equal signatures.
    assert_eq!(kept(json!({ "exact": false })), 4);
    assert_eq!(kept(json!({ "jaccard": 1.0 })), 5);
}

#[test]
fn wrong_configs_are_refused_before_anything_runs() {
    let workshop = Workshop::new("dedup-config");
    let input = workshop.feed(&[("x", "")], 1);
    let refuse = |config: Value| {
        let error = workshop.resolve::<Dedup>(config, &[("documents", std::slice::from_ref(&input))]).unwrap_err();
        (error.problem().field.clone().unwrap_or_default(), told(&error))
    };
    let expected = |field: &str, text: &str| (field.to_owned(), text.to_owned());
    assert_eq!(refuse(json!({ "jaccard": 80 })), expected("/jaccard", "80 is no similarity, expected 0 to 1"));
    assert_eq!(refuse(json!({ "bands": 0 })), expected("/bands", "0 is out of range, expected 1 to 10000"));
    let (field, text) = refuse(json!({ "exact": false, "near": false }));
    assert_eq!(field, "/near");
    assert!(text.starts_with("neither equal nor nearly equal documents are sought\nhint: "), "{text}");
    let (field, text) = refuse(json!({ "keeps": "published" }));
    assert_eq!(field, "/keeps");
    assert_eq!(
        text,
        "`published` clusters are those of all candidates and of nothing else\n\
         hint: set `transitive: true`, `exact: false` and `jaccard: 0` with it, or leave `keeps` out"
    );
    let error = workshop.resolve::<Dedup>(json!({}), &[]).unwrap_err();
    assert_eq!(told(&error), "`dedup` reads documents, but no input is given\nhint: set `input: JOB`");
}

#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("dedup-kills");
    let input = fed(&workshop, 3);
    let kills =
        workshop.kill_at_every_write::<Dedup>(env!("CARGO_BIN_EXE_smelt-dedup"), json!({}), &[("documents", &[input])]);
    // A lease, a shard and a record of each unit, the manifest.
    assert!(kills >= 11, "killed {kills} times");
}

#[test]
fn many_workers_with_kills_end_with_the_same_bytes() {
    let workshop = Workshop::new("dedup-workers");
    let input = fed(&workshop, 1);
    let kills = workshop.spread::<Dedup>(env!("CARGO_BIN_EXE_smelt-dedup"), json!({}), &[("documents", &[input])]);
    assert!(kills >= 15, "killed {kills} times");
}
