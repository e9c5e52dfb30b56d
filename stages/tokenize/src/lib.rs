//! `tokenize`: documents to token ids.
//!
//! Reads `documents`, learns a byte-level BPE vocabulary from them or takes the `tokenizer` of another job, and writes
//! `tokens`: one row per document with the ids of its text. A row holds no special token, so that its ids give exactly
//! the text back; whoever packs rows into batches puts `<|bos|>` between them. A share of the documents goes to
//! `validation` instead, and what `weights` leave out goes to `drops`. `tokenizer` holds `tokenizer.json` as Hugging
//! Face's libraries read it.

pub mod bpe;
mod breaks;
mod counts;
mod fertility;
mod merges;
pub mod plan;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Mutex;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{DocumentText, Documents, Drops, TokenRow, Tokenizer, Tokens};
use smelt_stage::shuffle::Shuffle;
use smelt_stage::{Artifact, Context, Error, Source, Stage};
use smelt_text::encoder::Pattern;

use crate::bpe::{Bpe, BpeError, Cut, FEWEST, Forgotten, LONGEST, Losses, SPECIAL, Training};
use crate::breaks::Breaks;
use crate::fertility::Fertility;

/// The vocabulary, and which documents are used for what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tokens in all, the nine special ones and 256 bytes included. Not used with a `tokenizer` as input.
    pub vocabulary: usize,
    /// How texts are cut into pieces, which no token crosses. Not used with a `tokenizer` as input.
    #[serde(skip_serializing_if = "is_default")]
    pub pre_tokenizer: PreTokenizer,
    /// Make every decimal digit a separate token, so that a number is always tokenized in the same way. Of the
    /// pre-tokenizer `gpt2` alone.
    pub single_digits: bool,
    /// Tokens that are reserved behind the nine special ones, such as `<think>`; no text becomes one of them.
    #[serde(skip_serializing_if = "is_default")]
    pub special_tokens: Vec<String>,
    /// Occurrences below which a pair of tokens is not joined.
    pub min_frequency: u64,
    /// What the vocabulary learns from each input, by bytes and relative to the others; 0 leaves an input out. Empty
    /// learns from all of every input.
    pub learn_weights: Vec<f64>,
    /// Bytes of text to learn from at most; a sample by the documents' ids.
    pub learn_bytes: u64,
    /// Bytes of memory for the table of pieces that the vocabulary is learnt from. When it is full, the rarest pieces
    /// are forgotten, with a warning: what they occurred so far no longer counts.
    #[schemars(range(min = 1_048_576, max = 4_294_967_296u64))]
    #[serde(skip_serializing_if = "is_default_memory")]
    pub learn_memory: u64,
    /// How much of each input is written, by tokens and relative to the others; the input that is shortest for its
    /// weight is written whole, no document twice. Empty writes everything. What is left out is a drop by the rule
    /// `mixture`, its value the share of the input that is written.
    pub weights: Vec<f64>,
    /// Share of the documents of every input that is held out, in [0, 1); chosen by their ids.
    pub validation: f64,
    /// Share of the tokens made of punctuation and line breaks that become two tokens again, at random by the
    /// document's id, in `tokens` alone (DeepSeek-V3, §4.1). A prompt may end before a line break.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "is_default")]
    pub split_breaks: f64,
    /// Writes `tokens` in a random order across all files, drawn by this seed; else documents keep their order.
    #[serde(skip_serializing_if = "is_default")]
    pub shuffle: Option<u64>,
}

/// How texts are cut into pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreTokenizer {
    /// GPT-2's expression; with `single_digits` every digit apart.
    #[default]
    Gpt2,
    /// OpenAI's cl100k in the form of Llama 3: numbers by three digits.
    Cl100k,
    /// The same with numbers by single digits.
    Qwen2,
    /// DeepSeek-V3's three expressions: numbers by three digits, Chinese and Japanese apart, punctuation together with
    /// the line breaks behind it.
    DeepseekV3,
}

const LEARN_MEMORY: u64 = 1 << 30;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_default_memory(value: &u64) -> bool {
    *value == LEARN_MEMORY
}

impl Config {
    fn pattern(&self) -> Pattern {
        match self.pre_tokenizer {
            PreTokenizer::Gpt2 if self.single_digits => Pattern::Gpt2Digits,
            PreTokenizer::Gpt2 => Pattern::Gpt2,
            PreTokenizer::Cl100k => Pattern::Cl100k,
            PreTokenizer::Qwen2 => Pattern::Qwen2,
            PreTokenizer::DeepseekV3 => Pattern::DeepseekV3,
        }
    }

    /// The reserved tokens, in the order of their ids from 0.
    fn special(&self) -> Vec<&str> {
        SPECIAL.into_iter().chain(self.special_tokens.iter().map(String::as_str)).collect()
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            vocabulary: 4096,
            pre_tokenizer: PreTokenizer::default(),
            single_digits: true,
            special_tokens: Vec::new(),
            min_frequency: 2,
            learn_weights: Vec::new(),
            learn_bytes: 256 << 20,
            learn_memory: LEARN_MEMORY,
            weights: Vec::new(),
            validation: 0.05,
            split_breaks: 0.0,
            shuffle: None,
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs { documents: Vec<Artifact<Documents>>, tokenizer: Option<Artifact<Tokenizer>> }
}
smelt_stage::outputs! {
    pub struct Outputs {
        tokens: Port<Tokens>,
        validation: Port<Tokens>,
        tokenizer: Port<Tokenizer>,
        drops: Port<Drops>,
    }
}

impl From<BpeError> for Error {
    fn from(error: BpeError) -> Self {
        Self::of(&error)
    }
}

#[derive(Debug)]
pub struct Tokenize;

impl Stage for Tokenize {
    const NAME: &'static str = "tokenize";
    const VERSION: u32 = 4; // tokens have a language, and ids lie in small pages
    const ABOUT: &'static str = "Learns a byte-level BPE vocabulary and turns documents into token ids";
    const CORES: smelt_stage::Cores = smelt_stage::Cores::All;
    const SPREADS: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        let documents = inputs.get("documents").copied().unwrap_or(0);
        if documents == 0 {
            return Err(Error::config("", "`tokenize` reads documents, but no input is given").hint("set `input: JOB`"));
        }
        let special = config.special();
        if let Some(i) =
            (SPECIAL.len()..special.len()).find(|&i| special[i].is_empty() || special[..i].contains(&special[i]))
        {
            let (place, token) = (i - SPECIAL.len(), special[i]);
            let what = format!("`{token}` is no further special token: it is empty or there already");
            return Err(Error::config(&format!("/special_tokens/{place}"), what));
        }
        let fewest = FEWEST + config.special_tokens.len();
        if config.vocabulary < fewest {
            let what = format!("{} tokens are too few, expected at least {fewest}", config.vocabulary);
            let hint = format!("256 bytes and {} special tokens are always there", special.len());
            return Err(Error::config("/vocabulary", what).hint(&hint));
        }
        if !(0.0..1.0).contains(&config.validation) {
            let what = format!("{} is no share to hold out, expected 0 to below 1", config.validation);
            return Err(Error::config("/validation", what));
        }
        for (field, weights) in [("learn_weights", &config.learn_weights), ("weights", &config.weights)] {
            if weights.is_empty() {
                continue;
            }
            if documents != weights.len() {
                let what = format!("{} weights for {documents} inputs", weights.len());
                return Err(Error::config(&format!("/{field}"), what).hint("give one weight per input, in their order"));
            }
            if weights.iter().any(|w| !w.is_finite() || *w < 0.0) || weights.iter().all(|w| *w == 0.0) {
                return Err(Error::config(&format!("/{field}"), "weights must be 0 or more, and one of them above 0"));
            }
        }
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let corpus = Corpus::new(&config, &inputs.documents);
        let bpe = corpus.vocabulary(inputs.tokenizer.as_ref(), &out, cx)?;
        if config.split_breaks > 0.0 && !bpe.is_byte_level() {
            let what = "tokens can be split in a byte-level BPE alone, and the input `tokenizer` is none";
            return Err(Error::config("/split_breaks", what).hint("leave it out"));
        }
        let breaks = Breaks::new(&bpe, config.split_breaks)?;
        let shares = corpus.shares(&bpe, cx)?;
        let bytes = inputs.documents.iter().flat_map(Artifact::files).map(|file| file.bytes).sum();
        let shuffle = config.shuffle.map(|seed| Shuffle::new(seed, bytes));
        let records = cx.units("encode", corpus.files.len(), |i, unit| {
            let mut shuffling = shuffle.map(|shuffle| shuffle.of_unit(cx));
            let mut counts = Fertility::default();
            corpus.encode(i, &bpe, |mut row, text| {
                unit.count_read(1);
                let share = shares[corpus.files[i].0];
                if !plan::is_written(&row.document, share) {
                    return unit.drop_row(&out.drops, &row.document, "mixture", Some(share), None);
                }
                let held_out = plan::is_validation(&row.document, config.validation);
                if !held_out {
                    row.ids = breaks.split(&row.document, row.ids);
                }
                counts.add(row.language.as_deref(), text, row.ids.len());
                match &mut shuffling {
                    _ if held_out => unit.keep(&out.validation, row),
                    None => unit.keep(&out.tokens, row),
                    Some(shuffling) => {
                        unit.count_written(1);
                        shuffling.push(row, 0)
                    }
                }
            })?;
            unit.set_detail(counts.to_json());
            shuffling.map_or(Ok(()), |shuffling| shuffling.finish(unit))
        })?;
        if let Some(shuffle) = shuffle {
            shuffle.write(cx, &records, &out.tokens)?;
        }
        let mut counts = Fertility::default();
        for record in &records {
            counts.join(Fertility::of_json(&record.detail)?);
        }
        counts.metrics().into_iter().for_each(|(name, value)| cx.result(&name, value));
        cx.result("vocabulary", bpe.vocabulary() as f64);
        if counts.tokens() == 0 {
            return Err(Error::data("the documents hold no text: not one token was written"));
        }
        let held_out = records.iter().flat_map(|record| record.files.get("validation")).flatten();
        if config.validation > 0.0 && held_out.filter_map(|file| file.rows).sum::<u64>() == 0 {
            cx.warn(&nothing_held_out(config.validation, records.iter().map(|record| record.books.written).sum()));
        }
        Ok(())
    }
}

/// The inputs as one list of files, and the config that says how they are used.
struct Corpus<'a> {
    config: &'a Config,
    inputs: &'a [Artifact<Documents>],
    /// Input and file within it.
    files: Vec<(usize, usize)>,
}

impl<'a> Corpus<'a> {
    fn new(config: &'a Config, inputs: &'a [Artifact<Documents>]) -> Self {
        let files = inputs.iter().enumerate().flat_map(|(a, input)| (0..input.files().len()).map(move |f| (a, f)));
        Corpus { config, inputs, files: files.collect() }
    }

    /// Sums what a phase counted in every file by input.
    fn by_input(&self, counts: impl Iterator<Item = Option<u64>>) -> Result<Vec<u64>, Error> {
        let mut sums = vec![0; self.inputs.len()];
        for (count, &(input, _)) in counts.zip(&self.files) {
            sums[input] += count.ok_or_else(|| Error::bug("a committed unit holds no count"))?;
        }
        Ok(sums)
    }

    /// The vocabulary, learnt or given, written to its port. Its phase also keeps it for a later process.
    fn vocabulary(&self, given: Option<&Artifact<Tokenizer>>, out: &Outputs, cx: &Context) -> Result<Bpe, Error> {
        let shares = if given.is_some() { Vec::new() } else { self.learning_shares(cx)? };
        let records = cx.units("vocabulary", 1, |_, unit| {
            let (json, config) = match given {
                Some(given) => (taken(given, cx)?, given.bytes_of("tokenizer_config.json")?),
                None => {
                    let (bpe, Losses { cut, forgotten }) = self.learn(&shares, cx.threads())?;
                    if cut.pieces > 0 {
                        cx.warn(&in_parts(cut));
                    }
                    if forgotten.times > 0 {
                        cx.warn(&were_forgotten(forgotten, self.config.learn_memory));
                    }
                    (bpe.to_json()?, bpe::tokenizer_config().into())
                }
            };
            unit.put(&out.tokenizer, "tokenizer.json", json.as_bytes())?;
            unit.put(&out.tokenizer, "tokenizer_config.json", &config)?;
            let mut file = unit.work_file("tokenizer.json")?;
            file.write_all(json.as_bytes()).map_err(|e| file.error(e))?;
            file.finish(unit)
        })?;
        let mut json = String::new();
        let mut file = cx.work(&records[0], "tokenizer.json")?.part(0)?;
        file.read_to_string(&mut json).map_err(Error::of_read)?;
        let digest = smelt_text::Tokenizer::digest(json.as_bytes()).map_err(|e| Error::of(&e))?;
        cx.made_with_tokenizer(&out.tokenizer, &digest);
        cx.made_with_tokenizer(&out.tokens, &digest);
        cx.made_with_tokenizer(&out.validation, &digest);
        Ok(Bpe::load(json.as_bytes())?)
    }

    /// Share of the documents of every input to learn from.
    fn learning_shares(&self, cx: &Context) -> Result<Vec<f64>, Error> {
        let measured = cx.units("measure", self.files.len(), |i, unit| {
            let (input, file) = self.files[i];
            let mut bytes = 0;
            for document in self.inputs[input].view::<DocumentText>(file)? {
                let document = document?;
                if !plan::is_validation(&document.id, self.config.validation) {
                    bytes += document.text.len() as u64;
                }
            }
            unit.set_detail(bytes.into());
            Ok(())
        })?;
        let bytes = self.by_input(measured.iter().map(|record| record.detail.as_u64()))?;
        let mut shares = plan::shares(&bytes, &self.config.learn_weights);
        let all: f64 = bytes.iter().zip(&shares).map(|(&bytes, share)| bytes as f64 * share).sum();
        let scale = (self.config.learn_bytes as f64 / all.max(1.0)).min(1.0);
        shares.iter_mut().for_each(|share| *share *= scale);
        Ok(shares)
    }

    fn learn(&self, shares: &[f64], threads: usize) -> Result<(Bpe, Losses), Error> {
        // The trainer takes texts, not results: the first error ends the texts and is returned afterwards.
        let error = Mutex::new(None);
        let texts = self.files.iter().filter(|&&(input, _)| shares[input] > 0.0).flat_map(|&(input, file)| {
            let (rows, failed) = match self.inputs[input].view::<DocumentText>(file) {
                Ok(rows) => (Some(rows), None),
                Err(e) => (None, Some(Err(e))),
            };
            rows.into_iter().flatten().chain(failed).map(move |row| (input, row))
        });
        let texts = texts.map_while(|(input, document)| match document {
            Ok(document) => Some((input, document)),
            Err(e) => {
                error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(e);
                None
            }
        });
        let texts = texts.filter(|(input, document)| {
            !plan::is_validation(&document.id, self.config.validation)
                && plan::is_learned_from(&document.id, shares[*input])
        });
        let training = Training {
            vocabulary: self.config.vocabulary,
            pattern: self.config.pattern(),
            min_frequency: self.config.min_frequency,
            special: &self.config.special(),
            memory: self.config.learn_memory,
        };
        // The trainer uses the threads of the pool that it is called in.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::machine(format!("no threads to train the vocabulary with: {e}")))?;
        let learnt = pool.install(|| Bpe::train(texts.map(|(_, document)| document.text), training))?;
        match error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(learnt),
        }
    }

    /// Share of the documents of every input to write.
    fn shares(&self, bpe: &Bpe, cx: &Context) -> Result<Vec<f64>, Error> {
        if self.config.weights.is_empty() {
            return Ok(vec![1.0; self.inputs.len()]);
        }
        let counted = cx.units("count", self.files.len(), |i, unit| {
            let mut tokens = 0;
            self.encode(i, bpe, |row, _| {
                tokens += row.ids.len() as u64;
                Ok(())
            })?;
            unit.set_detail(tokens.into());
            Ok(())
        })?;
        let tokens = self.by_input(counted.iter().map(|record| record.detail.as_u64()))?;
        let shares = plan::shares(&tokens, &self.config.weights);
        let names: Vec<&str> = self.inputs.iter().map(|input| input.manifest().provenance.job.as_str()).collect();
        for what in mostly_left_out(&names, &tokens, &self.config.weights, &shares) {
            cx.warn(&what);
        }
        Ok(shares)
    }

    /// Encodes every document of file `i`, in order; `take` gets its row and its text.
    fn encode<F>(&self, i: usize, bpe: &Bpe, mut take: F) -> Result<(), Error>
    where
        F: FnMut(TokenRow, &str) -> Result<(), Error>,
    {
        let (input, file) = self.files[i];
        for document in self.inputs[input].view(file)? {
            let DocumentText { id, text, source, language, .. } = document?;
            let (ids, bytes) = (bpe.encode_one(&text)?, text.len() as u64);
            take(TokenRow { document: id, source, language, bytes, ids }, &text)?;
        }
        Ok(())
    }
}

/// The warning when the vocabulary was learnt from parts of long pieces.
fn in_parts(cut: Cut) -> String {
    format!(
        "{} runs of letters or marks without a blank, the longest of {} bytes, were learnt from in parts of \
         {LONGEST} bytes",
        cut.pieces, cut.longest
    )
}

/// The warning when the table of pieces was full.
fn were_forgotten(forgotten: Forgotten, memory: u64) -> String {
    format!(
        "the table of pieces was full {} times: pieces of up to {} occurrences were forgotten, {} occurrences in all: \
         raise `learn_memory`, now {memory}, or lower `learn_bytes`",
        forgotten.times, forgotten.most, forgotten.occurrences
    )
}

/// The warning when a share was to be held out, but the hash of the ids chose none of the few documents.
fn nothing_held_out(share: f64, documents: u64) -> String {
    format!(
        "`validation` is empty: of {documents} documents {:.1} were to be held out on average, and none was: raise \
            `validation`, now {share}",
        share * documents as f64
    )
}

/// A warning for every input of which more than half is left out. The input that is shortest for its weight limits the
/// whole corpus, which a person who wrote `[1, 1]` may not have meant.
fn mostly_left_out(names: &[&str], tokens: &[u64], weights: &[f64], shares: &[f64]) -> Vec<String> {
    let name = |i: usize| format!("input {} of `documents` (`{}`)", i + 1, names[i]);
    let Some(short) = (0..shares.len()).find(|&i| shares[i] == 1.0 && weights[i] > 0.0) else { return Vec::new() };
    let is_cut = |&i: &usize| weights[i] > 0.0 && shares[i] < 0.5;
    let tell = |i: usize| {
        let left_out = 100.0 * (1.0 - shares[i]);
        format!(
            "`weights` leave out {left_out:.1} % of {}: it has {} tokens for a weight of {}, {} only {} for {}",
            name(i),
            tokens[i],
            weights[i],
            name(short),
            tokens[short],
            weights[short]
        )
    };
    (0..shares.len()).filter(is_cut).map(tell).collect()
}

/// The `tokenizer.json` of another job or of an imported checkpoint.
fn taken(given: &Artifact<Tokenizer>, cx: &Context) -> Result<String, Error> {
    let bytes = given.bytes_of("tokenizer.json")?;
    let bpe = Bpe::load(&bytes).map_err(|e| Error::data(format!("the input `tokenizer`: {e}")))?;
    if !bpe.is_byte_level() {
        cx.warn(
            "the input `tokenizer` is no byte-level BPE: characters that it does not know become its token for unknown \
             ones, and a text may come back from its ids with other white space",
        );
    }
    String::from_utf8(bytes).map_err(|_| Error::data("`tokenizer.json` of the input `tokenizer` is not UTF-8"))
}
