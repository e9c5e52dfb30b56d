//! What a classifier's scores do to documents.

mod workshop;

use std::slice::from_ref;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smelt_classify::{Classifier, features};
use smelt_clean::Clean;
use smelt_schemas::{InputRef, Manifest};
use smelt_stage::kinds::{self, Documents, Drops};
use smelt_stage::{Context, Error, Stage};
use workshop::{Workshop, digests, told};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Nothing {}

smelt_stage::inputs! { struct NoInputs {} }
smelt_stage::outputs! { struct Trained { classifier: Port<kinds::Classifier> } }

/// Writes a classifier that likes the word `harbour` and dislikes `casino`.
struct Train;

fn classifier() -> Classifier {
    let bits = 16;
    let mut weights = vec![0.0; 1 << bits];
    for (word, weight) in [("harbour", 9.0), ("casino", -9.0)] {
        features(word, bits).iter().for_each(|&(bucket, _)| weights[bucket as usize] = weight);
    }
    Classifier { bits, weights, bias: 0.0, slope: 1.0, offset: 0.25 }
}

impl Stage for Train {
    const NAME: &'static str = "train_by_hand";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Writes a classifier";
    type Config = Nothing;
    type Inputs = NoInputs;
    type Outputs = Trained;

    fn run(_config: Nothing, _inputs: NoInputs, out: Trained, cx: &Context) -> Result<(), Error> {
        cx.single(|unit| classifier().write(&out.classifier, unit))
    }
}

fn trained(workshop: &Workshop) -> InputRef {
    let manifest = workshop.run::<Train>(json!({}), &[]).unwrap();
    workshop.port(&manifest, "classifier")
}

const AROUND: &str = "and all that is told of it here is long enough for every rule that counts the words of a text";

fn text(word: &str) -> String {
    format!("The {word} opens at five, {AROUND}.")
}

fn run(workshop: &Workshop, config: Value) -> Manifest {
    let texts = [
        ("good", text("harbour")),
        ("bad", text("casino")),
        ("short", "The casino.".to_owned()),
        ("so so", text("market")),
    ];
    let borrowed: Vec<(&str, &str)> = texts.iter().map(|(id, text)| (*id, text.as_str())).collect();
    let (input, classifier) = (workshop.feed(&borrowed, 2), trained(workshop));
    let inputs: &[(&str, &[InputRef])] = &[("documents", from_ref(&input)), ("classifier", from_ref(&classifier))];
    workshop.run::<Clean>(config, inputs).unwrap()
}

#[test]
fn documents_below_the_score_are_dropped_with_it() {
    let mut all = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("clean-quality-{threads}"));
        workshop.threads = threads;
        let manifest = run(&workshop, json!({ "quality": {} }));
        let kept: Vec<String> = workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect();
        assert_eq!(kept, ["good", "so so"]);
        let drops = workshop.rows::<Drops>(&manifest, "drops");
        let told_of: Vec<(&str, &str)> = drops.iter().map(|d| (d.id.as_str(), d.rule.as_str())).collect();
        assert_eq!(told_of, [("bad", "quality"), ("short", "too_few_words")], "rules come first");
        assert_eq!(drops[0].value, Some(classifier().score(&text("casino"))));
        assert_eq!((manifest.books.read, manifest.books.written), (4, 2));
        all.push(digests(&manifest));
    }
    assert_eq!(all[0], all[1], "threads change bytes");
}

/// A thousand documents of one score: about as many stay as the formula says, and the same ones each time.
#[test]
fn a_lot_keeps_a_share_that_depends_on_the_score() {
    let workshop = Workshop::new("clean-quality-lot");
    let texts: Vec<(String, String)> = (0..1000).map(|i| (format!("doc {i}"), text("market"))).collect();
    let borrowed: Vec<(&str, &str)> = texts.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    let classifier = trained(&workshop);
    let kept = |per_file: usize| {
        let input = workshop.feed(&borrowed, per_file);
        let inputs: &[(&str, &[InputRef])] = &[("documents", from_ref(&input)), ("classifier", from_ref(&classifier))];
        let config = json!({ "quality": { "min": 0.0, "pareto": 2 } });
        let manifest = workshop.run::<Clean>(config, inputs).unwrap();
        assert_eq!(manifest.books.dropped["quality_lot"] + manifest.books.written, 1000);
        workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect::<Vec<_>>()
    };
    let (one, other) = (kept(1000), kept(77));
    assert_eq!(one, other, "what stays does not depend on files");
    let score = self::classifier().score(&text("market"));
    let expected = 1000.0 / (2.0 - score).powi(2);
    assert!((one.len() as f64 - expected).abs() < 64.0, "{} of about {expected}", one.len()); // four standard errors
}

#[test]
fn an_annotation_has_the_score_as_a_column() {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::Float64Type;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let workshop = Workshop::new("clean-quality-annotate");
    let manifest = run(&workshop, json!({ "annotate": true }));
    let mut found = Vec::new();
    for file in &manifest.ports["documents"].files {
        let bytes = bytes::Bytes::from(workshop.file(&manifest, "documents", &file.path));
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch: RecordBatch = batch.unwrap();
            found.extend(batch.column_by_name("quality").unwrap().as_primitive::<Float64Type>().iter().flatten());
        }
    }
    let texts = [text("harbour"), text("casino"), "The casino.".into(), text("market")];
    assert_eq!(found, texts.map(|text| classifier().score(&text)));
}

#[test]
fn a_classifier_and_its_use_come_together() {
    let workshop = Workshop::new("clean-quality-config");
    let input = workshop.feed(&[("a", &text("harbour"))], 1);
    let classifier = trained(&workshop);
    let alone: &[(&str, &[InputRef])] = &[("documents", from_ref(&input))];
    let error = workshop.resolve::<Clean>(json!({ "quality": {} }), alone).unwrap_err();
    assert_eq!(error.problem().field.as_deref(), Some("/quality"));
    assert_eq!(
        told(&error),
        "there is no classifier whose scores could be used\n\
         hint: train one: `{ stage: quality, input: { positive: JOB, negative: JOB } }`, and connect it as \
         `input: { documents: JOB, classifier: JOB }`"
    );
    let both: &[(&str, &[InputRef])] = &[("documents", from_ref(&input)), ("classifier", from_ref(&classifier))];
    let error = workshop.resolve::<Clean>(json!({ "quality": { "min": 50 } }), both).unwrap_err();
    assert_eq!(
        (error.problem().field.as_deref(), &*told(&error)),
        (Some("/quality/min"), "50 is no score, expected 0 to 1")
    );
    let program = env!("CARGO_BIN_EXE_smelt-clean");
    assert_eq!(
        workshop.warnings::<Clean>(program, json!({}), both),
        ["a classifier is connected, and nothing says what its scores are for: set `quality: { min: 0.5 }`"]
    );
}
