//! `dedup`: keeps one document of several equal or nearly equal ones.
//!
//! Reads `documents`, writes `documents`. Two documents are equal when their texts are after white space is folded, and
//! nearly equal when the Jaccard similarity of their word 5-grams is high: at least one band of their MinHash
//! signatures (Broder 1997) agrees, and the similarity reaches `jaccard`. In scripts without blanks characters stand
//! for words.
//! A document goes if an earlier one that stays is equal or nearly equal; a row in `drops` names that one and the
//! similarity. It is the similarity of the shingles themselves where `jaccard` asks for one, else MinHash's estimate.

pub mod clusters;
pub mod exact;
pub mod minhash;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Documents, Drops};
use smelt_stage::{Artifact, Context, Error, Source, Stage};
use smelt_words::{is_digit, simplify, simplify_keeping_numbers};
use xxhash_rust::xxh64::xxh64;

use crate::clusters::{Joining, Keeps, ShingleSets, Sketch, Sketches, candidates, duplicates};
use crate::minhash::{MinHash, Scratch, ShingleHash};

/// Defaults follow FineWeb (Penedo et al. 2024): 14 bands of 8 hashes over 5-grams of words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Drop documents whose text is equal to an earlier one's.
    pub exact: bool,
    /// Drop documents whose text is nearly equal to an earlier one's.
    pub near: bool,
    /// Similarity from which candidates count as nearly equal, in [0, 1]. 0 takes every candidate, as FineWeb does.
    pub jaccard: f64,
    /// Whether what is nearly equal to a document that goes, goes with it, as FineWeb has it. A long chain of small
    /// changes then leaves one document, which the last ones are nothing like.
    pub transitive: bool,
    /// Whether documents that differ in their numbers are different. FineWeb folds all numbers into one.
    pub keep_numbers: bool,
    /// Whether characters stand for words in scripts without blanks (Han, Kana, Thai, Lao, Khmer, Burmese). False:
    /// FineWeb's words, which are English ones.
    pub by_script: bool,
    /// Words in a shingle, at least 1; shorter documents have no near-duplicates.
    pub words: usize,
    /// Bands of a signature, at least 1: more find less similar pairs.
    pub bands: usize,
    /// Hashes per band, at least 1: more miss less similar pairs. The estimate's standard error is at most
    /// 1 / (2·√(bands · hashes)).
    pub hashes: usize,
    /// Draws the hash functions; 1 gives the published ones. No part of the pipeline's randomness.
    pub hash_seed: u32,
    /// How a shingle is hashed.
    #[serde(skip_serializing_if = "is_default")]
    pub hash: ShingleHash,
    /// Which document of a cluster stays. `published` is the one that datatrove keeps; it wants `transitive: true`,
    /// `exact: false` and a `jaccard` of 0.
    #[serde(skip_serializing_if = "is_default")]
    pub keeps: Keeps,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for Config {
    fn default() -> Self {
        Config {
            exact: true,
            near: true,
            jaccard: 0.0,
            transitive: false,
            keep_numbers: false,
            by_script: true,
            words: 5,
            bands: 14,
            hashes: 8,
            hash_seed: 1,
            hash: ShingleHash::default(),
            keeps: Keeps::default(),
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs { documents: Vec<Artifact<Documents>> }
}
smelt_stage::outputs! {
    pub struct Outputs { documents: Port<Documents>, drops: Port<Drops> }
}

#[derive(Debug)]
pub struct Dedup;

impl Stage for Dedup {
    const NAME: &'static str = "dedup";
    const VERSION: u32 = 3; // `by_script: false` takes the words of the published signatures
    const ABOUT: &'static str = "Keeps one document of every group of equal or nearly equal ones";
    const CORES: smelt_stage::Cores = smelt_stage::Cores::All;
    const SPREADS: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if inputs.get("documents").is_none_or(|&n| n == 0) {
            return Err(Error::config("", "`dedup` reads documents, but no input is given").hint("set `input: JOB`"));
        }
        if !(0.0..=1.0).contains(&config.jaccard) {
            return Err(Error::config("/jaccard", format!("{} is no similarity, expected 0 to 1", config.jaccard)));
        }
        for (field, value) in [("words", config.words), ("bands", config.bands), ("hashes", config.hashes)] {
            if !(1..=10_000).contains(&value) {
                return Err(Error::config(
                    &format!("/{field}"),
                    format!("{value} is out of range, expected 1 to 10000"),
                ));
            }
        }
        if !config.exact && !config.near {
            return Err(Error::config("/near", "neither equal nor nearly equal documents are sought")
                .hint("set `exact` or `near` to true, or leave the job out"));
        }
        let is_published = config.transitive && !config.exact && config.near && config.jaccard == 0.0;
        if config.keeps == Keeps::Published && !is_published {
            return Err(Error::config(
                "/keeps",
                "`published` clusters are those of all candidates and of nothing else",
            )
            .hint("set `transitive: true`, `exact: false` and `jaccard: 0` with it, or leave `keeps` out"));
        }
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let inputs = &inputs.documents;
        let files: Vec<(usize, usize)> =
            inputs.iter().enumerate().flat_map(|(a, input)| (0..input.files().len()).map(move |f| (a, f))).collect();
        let mut minhash = MinHash::new(config.words, config.bands * config.hashes, config.hash_seed);
        (minhash.keep_numbers, minhash.by_script, minhash.hash) = (config.keep_numbers, config.by_script, config.hash);
        let sketched = cx.units("sketches", files.len(), |i, unit| {
            let (artifact, file) = files[i];
            let mut found: Vec<(String, String)> = Vec::new();
            let mut scratch = Scratch::default();
            for document in inputs[artifact].read(file)? {
                let document = document?;
                let (mut signature, mut forms) = (None, [0, 0]);
                if config.near {
                    let simple = minhash.simple(&document.text);
                    signature = minhash.signature_of_simple(&simple, &mut scratch);
                    forms = simple_forms(&document.text, &simple, config.keep_numbers);
                }
                let sketch = Sketch::new(exact::digest(&document.text), forms, signature.as_deref(), config.keeps);
                found.push((document.id, sketch.to_hex()));
            }
            unit.set_detail(serde_json::to_value(found).map_err(|e| Error::bug(format!("writing sketches: {e}")))?);
            Ok(())
        })?;

        let (mut ids, mut sketches, mut starts) = (Vec::new(), Sketches::default(), Vec::new());
        for record in sketched {
            starts.push(ids.len());
            let found: Vec<(String, String)> = serde_json::from_value(record.detail)
                .map_err(|e| Error::bug(format!("a committed unit holds no sketches: {e}")))?;
            for (id, hex) in found {
                let sketch = Sketch::from_hex(&hex)
                    .ok_or_else(|| Error::bug(format!("a committed unit holds a broken sketch of `{id}`")))?;
                sketches.push(sketch);
                ids.push(id);
            }
        }
        let mut shingles = ShingleSets::new();
        if config.jaccard > 0.0 {
            let wanted = candidates(&sketches, config.bands);
            for (&(artifact, file), &start) in files.iter().zip(&starts) {
                if wanted.range(start..).next().is_none() {
                    break;
                }
                for (i, document) in inputs[artifact].read(file)?.enumerate() {
                    let text = document?.text;
                    if wanted.contains(&(start + i)) {
                        shingles.insert(start + i, minhash.shingles(&text));
                    }
                }
            }
        }
        let Config { exact, bands, jaccard, transitive, keeps, .. } = config;
        let outcome = duplicates(&sketches, &shingles, Joining { exact, bands, jaccard, transitive, keeps });
        drop(shingles);

        cx.units("filter", files.len(), |i, unit| {
            let (artifact, file) = files[i];
            for (document, found) in inputs[artifact].read(file)?.zip(&outcome[starts[i]..]) {
                let document = document?;
                unit.count_read(1);
                match found {
                    None => unit.keep(&out.documents, document)?,
                    Some(found) => {
                        let rule = if found.exact { "exact_duplicate" } else { "near_duplicate" };
                        let leader = ids[found.leader].clone();
                        unit.drop_row(&out.drops, &document.id, rule, Some(found.similarity), Some(leader))?;
                    }
                }
            }
            Ok(())
        })?;
        let near =
            || outcome.iter().enumerate().filter_map(|(i, found)| found.filter(|d| !d.exact).map(|d| (i, d.leader)));
        let by_numbers = near().filter(|&(i, leader)| sketches.differ_in_numbers(i, leader)).count();
        let all = near().count();
        if 2 * by_numbers > all {
            cx.warn(&format!(
                "{by_numbers} of {all} near-duplicates differ from the document that stays in their numbers alone: \
                 `keep_numbers: true` keeps such documents"
            ));
        }
        Ok(())
    }
}

/// Hashes of the simplified text, with numbers folded and with numbers as they are; `simple` is one of these forms.
fn simple_forms(text: &str, simple: &str, keeps_numbers: bool) -> [u64; 2] {
    let form = |text: &str| xxh64(text.as_bytes(), 0);
    let known = form(simple);
    match (text.chars().any(is_digit), keeps_numbers) {
        (false, _) => [known; 2],
        (true, false) => [known, form(&simplify_keeping_numbers(text))],
        (true, true) => [form(&simplify(text)), known],
    }
}
