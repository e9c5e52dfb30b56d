//! `dedup`: keeps one document of several equal or nearly equal ones.
//!
//! Reads `documents`, writes `documents`, `drops`, and `clusters`: who went with whom. Two documents are equal when
//! their texts are after white space is folded, and nearly equal when the Jaccard similarity of their word 5-grams is
//! high: at least one band of their MinHash signatures (Broder 1997) agrees, and the similarity reaches `jaccard`. In
//! scripts without blanks characters stand for words. With `url`, documents of one URL are one document too.
//!
//! A document goes if an earlier one that stays is equal or nearly equal; `keeps` can put them in another order, and
//! what comes by the input `seen` is before all others. A row in `drops` names the one that stays and the similarity.
//! It is the similarity of the shingles themselves where `jaccard` asks for one, else MinHash's estimate.
//!
//! From documents that stay, lines, paragraphs and passages can be cut that stand in the corpus before.

mod address;
mod bands;
mod clusters;
mod compare;
mod cut;
pub mod exact;
mod filter;
mod job;
pub mod minhash;
mod pairs;
mod passages;
mod pieces;
mod ranks;
mod shingles;
mod sketch;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Clusters, Documents, Drops};
use smelt_stage::{Artifact, Context, Error, Source, Stage};

use crate::job::Job;
use crate::minhash::ShingleHash;
pub use crate::ranks::Keeps;

/// Defaults follow FineWeb (Penedo et al. 2024): 14 bands of 8 hashes over 5-grams of words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Drop documents whose text is equal to an earlier one's.
    pub exact: bool,
    /// Drop documents whose URL is that of an earlier one that stays; scheme, `www.`, fragment and slashes at the end
    /// of the path do not count. Documents without a URL are compared by their texts alone.
    #[serde(skip_serializing_if = "is_default")]
    pub url: bool,
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
    /// Which document of a cluster stays: `first`, `longest`, `earliest`, `{ highest: FIELD }`, or `published`, the one
    /// that datatrove keeps, which wants `transitive: true`, `exact: false` and a `jaccard` of 0.
    #[serde(skip_serializing_if = "is_default")]
    pub keeps: Keeps,
    /// Cut lines that stood before, in the same or an earlier document that stays. Case, marks and accents do not
    /// count, numbers only with `keep_numbers`.
    #[serde(skip_serializing_if = "is_default")]
    pub lines: Option<Pieces>,
    /// The same for paragraphs: what blank lines separate.
    #[serde(skip_serializing_if = "is_default")]
    pub paragraphs: Option<Pieces>,
    /// Cut passages that stand in the corpus more than once, word for word.
    #[serde(skip_serializing_if = "is_default")]
    pub passages: Option<Passages>,
    /// A document is dropped when fewer characters than this are left of what was cut.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "is_one")]
    pub min_left_chars: usize,
    /// A document is dropped when a smaller share of its characters than this is left of what was cut.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "is_default")]
    pub min_left: f64,
}

impl Config {
    /// Whether anything is cut from documents that stay.
    pub(crate) fn cuts_pieces(&self) -> bool {
        self.lines.is_some() || self.paragraphs.is_some() || self.passages.is_some()
    }
}

/// Lines or paragraphs that are cut when they come again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pieces {
    /// Shorter ones stay, in characters of the form that is compared.
    #[schemars(range(min = 1))]
    pub min_chars: usize,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { min_chars: 20 }
    }
}

/// Passages that are cut when they come again (Lee et al. 2022).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Passages {
    /// Words and marks that a passage has at least.
    #[schemars(range(min = 2, max = 10000))]
    pub words: usize,
    /// Whether the first of equal passages stays. Lee et al. cut all of them.
    pub keep_first: bool,
}

impl Default for Passages {
    fn default() -> Self {
        Self { words: 50, keep_first: true }
    }
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for Config {
    fn default() -> Self {
        Config {
            exact: true,
            url: false,
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
            lines: None,
            paragraphs: None,
            passages: None,
            min_left_chars: 1,
            min_left: 0.0,
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        documents: Vec<Artifact<Documents>>,
        /// What an earlier run kept, or any other documents: what is equal or nearly equal to one of them is dropped,
        /// and they are not written again.
        seen: Vec<Artifact<Documents>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs { documents: Port<Documents>, drops: Port<Drops>, clusters: Port<Clusters> }
}

#[derive(Debug)]
pub struct Dedup;

impl Stage for Dedup {
    const NAME: &'static str = "dedup";
    const VERSION: u32 = 5; // clusters as a table
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
        if !config.exact && !config.near && !config.url && !config.cuts_pieces() {
            let error = Error::config("/near", "neither equal nor nearly equal documents are sought");
            return Err(error.hint(
                "set `exact`, `near` or `url` to true, name `lines`, `paragraphs` or `passages`, or leave the job out",
            ));
        }
        let is_published = config.transitive && !config.exact && !config.url && config.near && config.jaccard == 0.0;
        if config.keeps == Keeps::Published && !is_published {
            return Err(Error::config(
                "/keeps",
                "`published` clusters are those of all candidates and of nothing else",
            )
            .hint("set `transitive: true`, `exact: false` and `jaccard: 0` with it, or leave `keeps` out"));
        }
        if config.keeps == Keeps::Published && inputs.get("seen").is_some_and(|&n| n > 0) {
            return Err(Error::config("/keeps", "`published` may let a document go that was seen before")
                .hint("leave `keeps` out, or the input `seen`"));
        }
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        Job::new(config, &inputs, cx)?.run(&out)
    }
}
