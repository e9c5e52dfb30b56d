//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::slice::from_ref;

use serde_json::{Value, json};
use smelt_quality::Quality;
use smelt_schemas::{InputRef, Manifest};
use smelt_stage::{Error, Stage};
use workshop::{Workshop, digests, told};

fn draw(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*state >> 33) % n as u64) as usize
}

/// Texts of 30 words that both kinds share, in which one word in ten is of one kind: `share` of these of its own.
fn texts(seed: u64, n: usize, is_positive: bool, share: f64) -> Vec<(String, String)> {
    let mut state = seed;
    let mut word = || match draw(&mut state, 10) {
        0 => {
            let own = (draw(&mut state, 1000) as f64) < 1000.0 * share;
            format!("{}{}", if own == is_positive { "lamp" } else { "coin" }, ["a", "b", "c"][draw(&mut state, 3)])
        }
        _ => format!(
            "w{}x",
            ["a", "b", "c", "d", "e", "f", "g", "h"][draw(&mut state, 8)].repeat(1 + draw(&mut state, 4))
        ),
    };
    (0..n).map(|i| (format!("{is_positive} {i}"), (0..30).map(|_| word()).collect::<Vec<_>>().join(" "))).collect()
}

fn fed(workshop: &Workshop, texts: &[(String, String)], per_file: usize) -> InputRef {
    let borrowed: Vec<(&str, &str)> = texts.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    workshop.feed(&borrowed, per_file)
}

fn run(
    workshop: &Workshop,
    config: Value,
    up: &[(String, String)],
    down: &[(String, String)],
) -> Result<Manifest, Error> {
    let (up, down) = (fed(workshop, up, 200), fed(workshop, down, 200));
    workshop.run::<Quality>(config, &[("positive", from_ref(&up)), ("negative", from_ref(&down))])
}

#[test]
fn kinds_are_told_apart_as_well_as_they_can_be_and_probabilities_are_right() {
    let workshop = Workshop::new("quality-train");
    let (up, down) = (texts(1, 3000, true, 0.8), texts(2, 6000, false, 0.8));
    let manifest = run(&workshop, json!({ "bits": 16 }), &up, &down).unwrap();
    let metric = |name: &str| manifest.metrics[name];
    // Whoever knows the words counts those of either kind: about as good as it gets, on the same documents.
    let own = |text: &str| text.matches("lamp").count() as f64 - text.matches("coin").count() as f64;
    let (up, down): (Vec<f64>, Vec<f64>) =
        (up.iter().map(|t| own(&t.1)).collect(), down.iter().map(|t| own(&t.1)).collect());
    let half = |a: f64, b: f64| {
        if a > b {
            1.0
        } else if a == b {
            0.5
        } else {
            0.0
        }
    };
    let pairs: f64 = up.iter().step_by(3).flat_map(|&a| down.iter().step_by(6).map(move |&b| half(a, b))).sum();
    let best = pairs / 1e6;
    println!(
        "AUC {} of {best}, accuracy {}, calibration {}",
        metric("test_auc"),
        metric("test_accuracy"),
        metric("test_calibration_error")
    );
    assert!(metric("test_auc") > best - 0.03, "AUC {} of {best}", metric("test_auc"));
    assert!(metric("test_accuracy") > 0.7);
    // Of some 900 documents in ten bins: the standard error of a bin's share is about 0.05.
    assert!(metric("test_calibration_error") < 0.1);
    assert_eq!((manifest.books.read, manifest.books.written), (9000, 9000));
    assert!(metric("learnt_documents") > 7000.0 && metric("test_documents") > 800.0);
}

#[test]
fn bytes_depend_on_documents_and_seed_alone() {
    let workshop = Workshop::new("quality-bytes");
    let (up, down) = (texts(3, 400, true, 0.9), texts(4, 500, false, 0.9));
    let all = |config: Value, per_file: usize| {
        let (up, down) = (fed(&workshop, &up, per_file), fed(&workshop, &down, per_file));
        let manifest = workshop.run::<Quality>(config, &[("positive", from_ref(&up)), ("negative", from_ref(&down))]);
        let manifest = manifest.unwrap();
        (digests(&manifest), manifest.books)
    };
    let config = json!({ "bits": 10, "documents": 300 });
    let (one, books) = all(config.clone(), 1000);
    assert_eq!(one, all(config, 7).0, "files change bytes");
    assert_ne!(one, all(json!({ "bits": 10, "documents": 300, "seed": 1 }), 7).0);
    assert_eq!((books.read, books.written, books.dropped["not_sampled"]), (900, 600, 300));
    assert_eq!(Quality::VERSION, 1);
    let golden = ["classifier 9be56697f3069dd897af76bb3a08bbe1d639880566057f0ccaec6311aca7bb57"];
    assert_eq!(one, golden, "the bytes changed: raise VERSION and write the new digest here");
}

#[test]
fn what_cannot_be_learnt_is_an_error_or_a_warning() {
    let workshop = Workshop::new("quality-errors");
    let input = workshop.feed(&[("a", "text")], 1);
    let error = workshop.resolve::<Quality>(json!({}), &[("positive", from_ref(&input))]).unwrap_err();
    assert_eq!(
        told(&error),
        "`quality` has no negative documents to learn from\n\
         hint: name both: `input: { positive: JOB, negative: JOB }`"
    );
    let (up, down) = (texts(5, 200, true, 0.5), texts(6, 200, false, 0.5));
    let few = run(&workshop, json!({}), &up[..20], &down).unwrap_err();
    assert_eq!(
        told(&few),
        "20 positive documents are too few to learn from, expected at least 50\nhint: add some, or leave `quality` out"
    );
    let copies: Vec<(String, String)> = (0..100).map(|i| (i.to_string(), "always the same".to_owned())).collect();
    let same = run(&workshop, json!({}), &up, &copies).unwrap_err();
    assert!(told(&same).starts_with("no negative document is left for "), "{}", told(&same));
    assert!(
        told(&same).ends_with("too few have different texts\nhint: run `dedup` before `quality`, or add documents")
    );
    let (up, down) = (texts(5, 1000, true, 0.5), texts(6, 1000, false, 0.5));
    let (up, down) = (fed(&workshop, &up, 200), fed(&workshop, &down, 200));
    let program = env!("CARGO_BIN_EXE_smelt-quality");
    let told =
        workshop.warnings::<Quality>(program, json!({ "bits": 12 }), &[("positive", &[up]), ("negative", &[down])]);
    assert!(told.len() == 1 && told[0].starts_with("the classifier hardly tells the two apart: AUC 0."), "{told:?}");
}

#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("quality-kills");
    let (up, down) = (fed(&workshop, &texts(7, 150, true, 0.9), 50), fed(&workshop, &texts(8, 150, false, 0.9), 50));
    let inputs: &[(&str, &[InputRef])] = &[("positive", &[up]), ("negative", &[down])];
    let kills =
        workshop.kill_at_every_write::<Quality>(env!("CARGO_BIN_EXE_smelt-quality"), json!({ "bits": 10 }), inputs);
    // A lease, two files, a record, the manifest.
    assert!(kills >= 5, "killed {kills} times");
}
