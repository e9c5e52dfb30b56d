//! `clean`: one Unicode form, known languages, no junk, no personal data.
//!
//! Reads `documents`, writes `documents` with the language filled in and `drops` with the first rule that each dropped
//! document broke. A document is judged as it is after normalisation and before personal data are masked.

pub mod language;
pub mod pii;
pub mod repetition;
pub mod rules;
pub mod text;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Document, Documents, Drops};
use smelt_stage::{Artifact, Context, Error, Source, Stage};

use crate::language::Language;
use crate::pii::StandIns;
use crate::rules::Rules;

/// What is changed in every text, and which documents are dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Bring every text into Unicode NFC.
    pub nfc: bool,
    /// Turn every line end into a line feed, and remove control characters other than tab and line feed.
    pub strip_control: bool,
    /// Languages to keep, as ISO 639 codes such as `en`; empty keeps all. The language is recorded either way.
    pub languages: Vec<String>,
    /// Minimum confidence of the language, in [0, 1]; only used with `languages`.
    pub min_language_confidence: f64,
    /// Limits of length, symbols and repetition.
    pub rules: Rules,
    /// Replacements for personal data.
    pub pii: Pii,
}

/// Replacements for personal data. Several are used in turn; an empty list leaves that sort of data unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pii {
    /// For e-mail addresses.
    pub emails: Vec<String>,
    /// For public IPv4 addresses.
    pub ipv4: Vec<String>,
    /// For public IPv6 addresses.
    pub ipv6: Vec<String>,
    /// For phone numbers.
    pub phones: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            nfc: true,
            strip_control: true,
            languages: Vec::new(),
            min_language_confidence: 0.0,
            rules: Rules::default(),
            pii: Pii::default(),
        }
    }
}

/// Addresses and numbers that are reserved for examples (RFC 2606, 5737, 3849; 555-0100).
impl Default for Pii {
    fn default() -> Self {
        let one = |s: &str| vec![s.to_owned()];
        Pii {
            emails: one("email@example.com"),
            ipv4: one("192.0.2.1"),
            ipv6: one("2001:db8::1"),
            phones: one("+1 555 555 0100"),
        }
    }
}

/// Why a document is dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropped {
    pub rule: String,
    pub value: Option<f64>,
    pub detail: Option<String>,
}

/// The cleaned document and how many personal data were masked in it, or why it is dropped.
pub fn clean(config: &Config, mut document: Document) -> Result<(Document, usize), Dropped> {
    if config.strip_control {
        document.text = text::strip_control(document.text);
    }
    if config.nfc {
        document.text = text::compose(document.text);
    }
    let found = language::identify(&document.text);
    if !config.languages.is_empty() {
        let wanted = |l: &Language| config.languages.iter().any(|w| w == l.code);
        if !found.as_ref().is_some_and(|l| wanted(l) && l.confidence >= config.min_language_confidence) {
            let (value, detail) = (found.map(|l| l.confidence), found.map(|l| l.code.to_owned()));
            return Err(Dropped { rule: "language".into(), value, detail });
        }
    }
    if let Some(fault) = config.rules.judge(&document.text) {
        return Err(Dropped { rule: fault.rule, value: Some(fault.value), detail: None });
    }
    let Pii { emails, ipv4, ipv6, phones } = &config.pii;
    let (masked, count) = pii::mask(&document.text, &StandIns { emails, ipv4, ipv6, phones });
    if count > 0 {
        document.text = masked.into_owned();
    }
    document.language = found.map(|l| l.code.to_owned());
    Ok((document, count))
}

smelt_stage::inputs! {
    pub struct Inputs { documents: Artifact<Documents> }
}
smelt_stage::outputs! {
    pub struct Outputs { documents: Port<Documents>, drops: Port<Drops> }
}

#[derive(Debug)]
pub struct Clean;

impl Stage for Clean {
    const NAME: &'static str = "clean";
    const VERSION: u32 = 2; // rules of words are by script; sums are no phone numbers, and E.164 is
    const ABOUT: &'static str = "Normalises texts, drops junk by rule, masks personal data";
    const CORES: smelt_stage::Cores = smelt_stage::Cores::All;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        let known = language::codes();
        for (i, wanted) in config.languages.iter().enumerate() {
            if !known.contains(&wanted.as_str()) {
                let what = format!("`{wanted}` is no language that can be told apart");
                return Err(
                    Error::config(&format!("/languages/{i}"), what).hint(format!("known are {}", known.join(", ")))
                );
            }
        }
        if !(0.0..=1.0).contains(&config.min_language_confidence) {
            let what = format!("{} is no confidence, expected 0 to 1", config.min_language_confidence);
            return Err(Error::config("/min_language_confidence", what));
        }
        for (field, limits) in
            [("max_top_runs", &config.rules.max_top_runs), ("max_repeated_runs", &config.rules.max_repeated_runs)]
        {
            if let Some(i) = limits.iter().position(|limit| limit.n == 0) {
                return Err(Error::config(&format!("/rules/{field}/{i}/n"), "a run of 0 words, expected at least 1"));
            }
        }
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let input = &inputs.documents;
        let records = cx.units("clean", input.files().len(), |i, unit| {
            let mut masked = 0;
            for document in input.read(i)? {
                let document = document?;
                unit.count_read(1);
                let id = document.id.clone();
                match clean(&config, document) {
                    Ok((document, count)) => {
                        masked += count;
                        unit.keep(&out.documents, document)?;
                    }
                    Err(gone) => unit.drop_row(&out.drops, &id, &gone.rule, gone.value, gone.detail)?,
                }
            }
            unit.set_detail(masked.into());
            Ok(())
        })?;
        let masked: u64 = records.iter().filter_map(|record| record.detail.as_u64()).sum();
        cx.result("masked", masked as f64);
        let (read, kept) = records.iter().fold((0, 0), |(r, w), unit| (r + unit.books.read, w + unit.books.written));
        if read > 0 && kept == 0 {
            let mut rules: BTreeMap<&str, u64> = BTreeMap::new();
            for (rule, n) in records.iter().flat_map(|unit| &unit.books.dropped) {
                *rules.entry(rule).or_default() += n;
            }
            let rules: Vec<String> = rules.iter().map(|(rule, n)| format!("{n} {rule}")).collect();
            return Err(Error::data(format!("none of {read} documents is left: {}", rules.join(", ")))
                .hint("loosen these limits under `rules`, or set them to null"));
        }
        Ok(())
    }
}
