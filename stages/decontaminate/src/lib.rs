//! `decontaminate`: takes what a benchmark asks out of the documents that a model learns from.
//!
//! Reads `documents` and benchmarks; writes `documents`, `drops`, and as `hits` which document has what of which
//! problem. A document is contaminated when it shares an n-gram of 13 words with a problem: with its question, or with
//! an answer that is as long. Questions of fewer words are sought as a whole.
//!
//! Words are compared without case, accents and punctuation, as in GPT-3 (Brown et al. 2020, appendix C: a gram is a
//! lower-case word without punctuation), so a copy that was wrapped anew or marked otherwise is found. Numbers count as
//! they are, as there; datatrove folds them. In scripts without blanks between words a character counts as a part of a
//! word: a half in Chinese and Japanese, so that an n-gram has 26 characters there. A name such as
//! 中华人民共和国全国人民代表大会常务委员会 has 20 and is no evidence, which 13
//! characters would make it.

mod benchmarks;
mod cut;
mod index;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Document, DocumentText, Documents, Drops, Hits, Preferences, Prompts};
use smelt_stage::{Artifact, Context, Error, Source, Stage, Unit, UnitRecord};

use crate::benchmarks::Benchmarks;
pub use crate::benchmarks::{Each, Field, Problem};
pub use crate::cut::Cut;
pub use crate::index::{Hit, Index, Overlap, Text};
pub use crate::windows::Windows;

/// What counts as a copy of a problem, and what happens to a document that has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Words of an n-gram (GPT-3: 13; DeepSeek-V3's data 10; Llama 3 and Tülu 3: 8).
    #[schemars(range(min = 1, max = 1000))]
    pub n: usize,
    /// Shorter questions than n words are sought as a whole, from so many words on; those below are not sought.
    #[schemars(range(min = 1, max = 1000))]
    pub min_words: usize,
    /// Whether a copy with other numbers is a copy. N-grams of which more than half are numbers are then not sought.
    pub fold_numbers: bool,
    /// Share of the words of a question or an answer that the n-grams of one document must cover, in [0, 1]; 0: one
    /// n-gram is enough, as in GPT-3 (Tülu 3: 0.5).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_covered: f64,
    /// N-grams that more problems of a benchmark share belong to its form ("answer with a letter"), and are not sought;
    /// null seeks all.
    #[schemars(range(min = 1))]
    pub max_problems: Option<usize>,
    /// N-grams that more documents have are common phrases, and are not sought (GPT-3: 10); null seeks all. A problem
    /// that stands in more documents than this is missed, and documents are read twice.
    #[schemars(range(min = 1))]
    pub max_documents: Option<u64>,
    pub action: Action,
    /// For the action `cut`.
    pub cut: Cut,
    /// What the benchmarks are called in `hits`, in their order: those of `prompts`, then `preferences`, then `texts`.
    /// Empty: as their input.
    pub names: Vec<String>,
}

/// What happens to a contaminated document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is dropped.
    Drop,
    /// What it shares is cut out with a margin. Every piece that is left is a document: `ID#1`, `ID#2`, ….
    Cut,
    /// It stays, and `hits` tells.
    Report,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            n: 13,
            min_words: 8,
            fold_numbers: false,
            min_covered: 0.0,
            max_problems: Some(100),
            max_documents: None,
            action: Action::Drop,
            cut: Cut::default(),
            names: Vec::new(),
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        documents: Artifact<Documents>,
        prompts: Vec<Artifact<Prompts>>,
        preferences: Vec<Artifact<Preferences>>,
        /// Benchmarks that are plain texts.
        texts: Vec<Artifact<Documents>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs { documents: Port<Documents>, drops: Port<Drops>, hits: Port<Hits> }
}

#[derive(Debug)]
pub struct Decontaminate;

impl Stage for Decontaminate {
    const NAME: &'static str = "decontaminate";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Takes out documents that hold problems of a benchmark, and says which";
    const CORES: smelt_stage::Cores = smelt_stage::Cores::All;
    const SPREADS: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        let benchmarks: usize = ["prompts", "preferences", "texts"].iter().filter_map(|port| inputs.get(*port)).sum();
        if benchmarks == 0 {
            return Err(Error::config("", "`decontaminate` has no benchmark to look for")
                .hint("name one: `input: { documents: JOB, prompts: JOB }`, or `preferences`, or `texts`"));
        }
        if config.min_words > config.n {
            let what = format!("`min_words` is {}, more than the {} words of an n-gram", config.min_words, config.n);
            return Err(Error::config("/min_words", what).hint("it is for questions that are shorter than an n-gram"));
        }
        if !config.names.is_empty() && config.names.len() != benchmarks {
            let what = format!("{} names for {benchmarks} benchmarks", config.names.len());
            return Err(Error::config("/names", what).hint("give one per benchmark, in their order, or none"));
        }
        let mut known = BTreeSet::new();
        if let Some(i) = config.names.iter().position(|name| !known.insert(name)) {
            let what = format!("two benchmarks are called `{}`", config.names[i]);
            return Err(Error::config(&format!("/names/{i}"), what));
        }
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let benchmarks = Benchmarks::new(&inputs, &config.names);
        let mut index = Index::build(&config, benchmarks.names(), |each| benchmarks.read(each))?;
        report(&index, &config, benchmarks.names(), cx);
        if let Some(most) = config.max_documents {
            let before = index.len();
            index = common(index, most, &inputs.documents, cx)?;
            cx.result("common_ngrams", (before - index.len()) as f64);
        }
        let job = Job { config: &config, names: benchmarks.names(), index: &index, out: &out };
        let input = &inputs.documents;
        let records = cx.units("filter", input.files().len(), |i, unit| {
            let (mut windows, mut hits, mut contaminated) = (index.windows(), Vec::new(), 0u64);
            for document in input.read(i)? {
                let document = document?;
                unit.count_read(1);
                index.find(&mut windows, &document.text, &mut hits);
                match hits.is_empty() {
                    true => unit.keep(&out.documents, document)?,
                    false => contaminated += u64::from(job.treat(document, &mut hits, unit)?),
                }
            }
            unit.set_detail(contaminated.into());
            Ok(())
        })?;
        let contaminated: u64 = records.iter().filter_map(|record| record.detail.as_u64()).sum();
        cx.result("contaminated", contaminated as f64);
        expect_some_left(&records)
    }
}

/// What is known of the benchmarks before a document is read.
fn report(index: &Index, config: &Config, names: &[String], cx: &Context) {
    for (name, count) in names.iter().zip(&index.counts) {
        let unsought = count.problems - count.sought;
        if unsought > 0 {
            cx.warn(&format!(
                "{unsought} of {} problems of benchmark `{name}` are not sought: they have fewer than `min_words: {}`, \
                 or more than `max_problems` share what they say",
                count.problems, config.min_words
            ));
        }
    }
    cx.result("problems", index.counts.iter().map(|count| count.problems as f64).sum());
    cx.result("sought_problems", index.counts.iter().map(|count| count.sought as f64).sum());
    cx.result("ngrams", index.len() as f64);
    cx.result("template_ngrams", index.templates as f64);
}

/// The index without the n-grams that more than `most` documents have.
fn common(index: Index, most: u64, input: &Artifact<Documents>, cx: &Context) -> Result<Index, Error> {
    let counted = cx.units("count", input.files().len(), |i, unit| {
        let (mut windows, mut hits) = (index.windows(), Vec::new());
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for document in input.view::<DocumentText>(i)? {
            index.find(&mut windows, &document?.text, &mut hits);
            let grams: BTreeSet<u32> = hits.iter().map(|hit| hit.gram).collect();
            grams.into_iter().for_each(|gram| *counts.entry(gram).or_default() += 1);
        }
        let mut file = unit.work_file("counts")?;
        for (gram, count) in counts {
            file.write_all(&[gram.to_le_bytes(), count.to_le_bytes()].concat()).map_err(|e| file.error(e))?;
        }
        file.finish(unit)
    })?;
    let mut documents = vec![0u64; index.len()];
    for record in &counted {
        let mut part = cx.work(record, "counts")?.part(0)?;
        for _ in 0..part.size() / 8 {
            let (mut gram, mut count) = ([0; 4], [0; 4]);
            part.read_exact(&mut gram).and_then(|()| part.read_exact(&mut count)).map_err(Error::of_read)?;
            documents[u32::from_le_bytes(gram) as usize] += u64::from(u32::from_le_bytes(count));
        }
    }
    Ok(index.without(|gram| documents[gram] > most))
}

struct Job<'a> {
    config: &'a Config,
    /// Of the benchmarks.
    names: &'a [String],
    index: &'a Index,
    out: &'a Outputs,
}

impl Job<'_> {
    /// Does what the config says with a document that has hits. Whether it is contaminated: covered enough.
    fn treat(&self, document: Document, hits: &mut Vec<Hit>, unit: &mut Unit) -> Result<bool, Error> {
        let mut overlaps = self.index.overlaps(hits);
        overlaps.retain(|overlap| overlap.covered >= self.config.min_covered);
        let most = overlaps.iter().max_by(|a, b| a.covered.total_cmp(&b.covered));
        let Some(most) = most else { return unit.keep(&self.out.documents, document).map(|()| false) };
        for overlap in &overlaps {
            unit.write(&self.out.hits, self.row(&document, overlap))?;
        }
        let of = format!("{} {}", self.names[most.text.benchmark], most.text.problem);
        match self.config.action {
            Action::Report => unit.keep(&self.out.documents, document)?,
            Action::Drop => {
                unit.drop_row(&self.out.drops, &document.id, "contaminated", Some(most.covered), Some(of))?
            }
            Action::Cut => {
                hits.retain(|hit| self.index.is_of(hit, &overlaps));
                self.cut(document, hits, of, unit)?;
            }
        }
        Ok(true)
    }

    fn row(&self, document: &Document, overlap: &Overlap) -> smelt_stage::kinds::Hit {
        smelt_stage::kinds::Hit {
            document: document.id.clone(),
            benchmark: self.names[overlap.text.benchmark].clone(),
            problem: overlap.text.problem.clone(),
            field: overlap.text.field.to_owned(),
            ngram: overlap.ngram.to_owned(),
            ngrams: overlap.ngrams,
            covered: overlap.covered,
        }
    }

    /// Writes what is left around the hits.
    fn cut(&self, document: Document, hits: &[Hit], of: String, unit: &mut Unit) -> Result<(), Error> {
        let ranges: Vec<_> = hits.iter().map(|hit| hit.source.clone()).collect();
        let drops = &self.out.drops;
        let left = match cut::pieces(&document.text, &ranges, &self.config.cut) {
            Err(pieces) => {
                return unit.drop_row(drops, &document.id, "too_many_pieces", Some(pieces as f64), Some(of));
            }
            Ok(left) if left.is_empty() => {
                return unit.drop_row(drops, &document.id, "nothing_left", Some(0.0), Some(of));
            }
            Ok(left) => left,
        };
        unit.count_derived(left.len() as u64 - 1);
        for (i, piece) in left.iter().enumerate() {
            let id = format!("{}#{}", document.id, i + 1);
            // all but the text, which may be large
            let Document { source, url, language, time, metadata, extra, .. } = &document;
            let piece = Document {
                id,
                text: (*piece).to_owned(),
                source: source.clone(),
                url: url.clone(),
                language: language.clone(),
                time: *time,
                metadata: metadata.clone(),
                extra: extra.clone(),
            };
            unit.keep(&self.out.documents, piece)?;
        }
        Ok(())
    }
}

fn expect_some_left(records: &[UnitRecord]) -> Result<(), Error> {
    let (read, kept) = records.iter().fold((0, 0), |(r, w), unit| (r + unit.books.read, w + unit.books.written));
    if read == 0 || kept > 0 {
        return Ok(());
    }
    Err(Error::data(format!("none of {read} documents is left: each holds something of a problem"))
        .hint("`action: report` keeps them and writes `hits`; is the benchmark itself among the documents?"))
}
