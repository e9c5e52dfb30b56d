//! `quality`: trains the classifier by which `clean` tells good documents from bad ones.
//!
//! Reads documents that are what the corpus should be like (`positive`) and documents that are not (`negative`); writes
//! a `classifier`: logistic regression over hashed words and pairs of words. A tenth of the documents, chosen by a hash
//! of their texts so that copies stay together, makes probabilities of its sums (Platt scaling); another tenth, which
//! neither training nor calibration sees, gives the accuracy, the AUC and the calibration error in the manifest.

use std::collections::{BTreeMap, BinaryHeap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_classify::{Example, Features, Training, calibrate, features, judge, train};
use smelt_stage::kinds::{self, DocumentText, Documents};
use smelt_stage::{Artifact, Context, Error, Source, Stage, Unit};

/// Documents of a kind that a classifier needs at least.
const LEAST: usize = 50;

/// How a classifier is trained, and on how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Words and pairs of words share 2^bits weights.
    #[schemars(range(min = 8, max = 26))]
    pub bits: u32,
    /// Times that each document is seen.
    #[schemars(range(min = 1, max = 1000))]
    pub epochs: usize,
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub lr: f64,
    /// How much weights are drawn to zero.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub l2: f64,
    /// Documents of each kind that are used at most, chosen by a hash of their texts. Each takes some 4 kB of memory.
    #[schemars(range(min = 50, max = 10_000_000))]
    pub documents: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { seed: 0, bits: 20, epochs: 5, lr: 0.5, l2: 1e-5, documents: 20_000 }
    }
}

smelt_stage::inputs! {
    pub struct Inputs { positive: Vec<Artifact<Documents>>, negative: Vec<Artifact<Documents>> }
}
smelt_stage::outputs! {
    pub struct Outputs { classifier: Port<kinds::Classifier> }
}

#[derive(Debug)]
pub struct Quality;

impl Stage for Quality {
    const NAME: &'static str = "quality";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Trains the classifier by which clean tells good documents from bad ones";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(_config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        for port in ["positive", "negative"] {
            if inputs.get(port).is_none_or(|&n| n == 0) {
                return Err(Error::config("", format!("`quality` has no {port} documents to learn from"))
                    .hint("name both: `input: { positive: JOB, negative: JOB }`"));
            }
        }
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        cx.single(|unit| {
            let mut sample = sample(&config, &inputs.positive, true, unit)?;
            sample.extend(self::sample(&config, &inputs.negative, false, unit)?);
            let (mut learnt, mut calibrated, mut tested) = (Vec::new(), Vec::new(), Vec::new());
            for drawn in sample {
                match drawn.split {
                    0 => tested.push(drawn.example),
                    1 => calibrated.push(drawn.example),
                    _ => learnt.push(drawn.example),
                }
            }
            expect_both(&[("training", &learnt), ("calibration", &calibrated), ("the test", &tested)])?;
            let training = Training { bits: config.bits, epochs: config.epochs, lr: config.lr, l2: config.l2 };
            let mut classifier = train(&training, &learnt, |epoch| order(config.seed, epoch, learnt.len()));
            let kind = |example: &Example, value: f64| (value, example.is_positive);
            let margins: Vec<_> = calibrated.iter().map(|e| kind(e, classifier.margin(&e.features))).collect();
            (classifier.slope, classifier.offset) = calibrate(&margins);
            let scores: Vec<_> = tested.iter().map(|e| kind(e, classifier.score_of(&e.features))).collect();
            let found = judge(&scores);
            if found.auc < 0.6 {
                cx.warn(&format!(
                    "the classifier hardly tells the two apart: AUC {:.2} on {} documents that it did not learn from",
                    found.auc,
                    tested.len()
                ));
            }
            for (name, value) in [
                ("test_accuracy", found.accuracy),
                ("test_auc", found.auc),
                ("test_calibration_error", found.calibration_error),
                ("learnt_documents", learnt.len() as f64),
                ("test_documents", tested.len() as f64),
            ] {
                unit.metric(name, value);
            }
            classifier.write(&out.classifier, unit)
        })
    }
}

/// A document of the sample. The sample is that of the smallest hashes; `number` decides between equal texts.
struct Drawn {
    hash: u64,
    number: u64,
    /// 0: tests, 1: calibrates, else is learnt from.
    split: u64,
    example: Example,
}

impl Ord for Drawn {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.hash, self.number).cmp(&(other.hash, other.number))
    }
}
impl PartialOrd for Drawn {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Drawn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Drawn {}

/// The documents of one kind that are used, in the order of their hashes.
fn sample(
    config: &Config,
    inputs: &[Artifact<Documents>],
    is_positive: bool,
    unit: &mut Unit,
) -> Result<Vec<Drawn>, Error> {
    let mut sample: BinaryHeap<Drawn> = BinaryHeap::new();
    for (number, document) in (0..).zip(inputs.iter().flat_map(Artifact::view_all::<DocumentText>)) {
        let text = document?.text;
        unit.count_read(1);
        let hash = blake3::hash(text.as_bytes());
        let part = |i: usize| hash.as_bytes()[8 * i..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let is_full = sample.len() == config.documents;
        if is_full && sample.peek().is_some_and(|largest| largest.hash <= part(0)) {
            continue;
        }
        let features: Features = features(&text, config.bits);
        let example = Example { features, is_positive };
        sample.push(Drawn { hash: part(0), number, split: part(1) % 10, example });
        if is_full {
            sample.pop();
        }
    }
    let used = sample.len() as u64;
    unit.count_written(used);
    let left = unit.books().read - unit.books().written - unit.books().dropped.values().sum::<u64>();
    if left > 0 {
        unit.count_dropped("not_sampled", left);
    }
    if sample.len() < LEAST {
        let kind = if is_positive { "positive" } else { "negative" };
        return Err(Error::data(format!(
            "{used} {kind} documents are too few to learn from, expected at least {LEAST}"
        ))
        .hint("add some, or leave `quality` out"));
    }
    Ok(sample.into_sorted_vec())
}

/// Copies of one text lie in one part, so many of them may leave another one empty.
fn expect_both(parts: &[(&str, &Vec<Example>)]) -> Result<(), Error> {
    for (what, examples) in parts {
        for (kind, wanted) in [("positive", true), ("negative", false)] {
            if !examples.iter().any(|example| example.is_positive == wanted) {
                return Err(Error::data(format!(
                    "no {kind} document is left for {what}: too few have different texts"
                ))
                .hint("run `dedup` before `quality`, or add documents"));
            }
        }
    }
    Ok(())
}

/// The order of an epoch's examples: that of hashes of seed, epoch and number.
fn order(seed: u64, epoch: usize, examples: usize) -> Vec<usize> {
    let key = |i: usize| {
        let mut hasher = blake3::Hasher::new();
        for number in [seed, epoch as u64, i as u64] {
            hasher.update(&number.to_le_bytes());
        }
        (*hasher.finalize().as_bytes(), i)
    };
    let mut keys: Vec<_> = (0..examples).map(key).collect();
    keys.sort_unstable();
    keys.into_iter().map(|(_, i)| i).collect()
}
