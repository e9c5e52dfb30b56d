//! `clean`: one Unicode form, known languages, no junk, no personal data.
//!
//! Reads `documents`, writes `documents` with the language filled in and `drops` with the first rule that each dropped
//! document broke. A document is judged as it is after normalisation and before personal data are masked.
//!
//! With `annotate` nothing is dropped: the value of each rule becomes a column of `documents`.
//!
//! Without a preset the rules are smelt's own, for technical text and many languages. `preset: fineweb`, `gopher` or
//! `c4` decides and changes text as datatrove does; whatever is given beside it counts before the preset.

mod annotate;
pub mod blocklist;
pub mod c4;
pub mod language;
pub mod mojibake;
pub mod pii;
pub mod preset;
pub mod quality;
pub mod repetition;
pub mod rules;
pub mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_classify::Classifier;
use smelt_stage::kinds::{self, Document, Documents, Drops};
use smelt_stage::{Artifact, Context, Error, Source, Stage};

use crate::blocklist::{Blocklist, Lists};
use crate::language::Language;
use crate::pii::{Pii, mask};
use crate::preset::{Given, Preset, Switch};
use crate::quality::{Quality, Scorer};
use crate::rules::{Judge, Rules};

/// What is changed in every text, and which documents are dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whose rules and stand-ins count where none are given here: `fineweb`, `gopher` and `c4` are the published ones,
    /// which decide as datatrove does and leave the form of a text as it is; null: smelt's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Bring every text into Unicode NFC (a preset: false).
    pub nfc: Switch,
    /// Turn every line end into a line feed, and remove control characters other than tab and line feed (a preset:
    /// false).
    pub strip_control: Switch,
    /// Turn text back that was UTF-8 and was read in another character set: `Ã©` becomes `é`. Lines without enough
    /// evidence stay.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub repair_mojibake: bool,
    /// Languages to keep, as ISO 639 codes such as `en`; empty keeps all. The language is recorded either way.
    pub languages: Vec<String>,
    /// Minimum confidence of the language, in [0, 1]; only used with `languages`.
    pub min_language_confidence: f64,
    /// Limits of length, symbols and repetition.
    pub rules: Given<Rules>,
    /// Replacements for personal data.
    pub pii: Given<Pii>,
    /// URLs whose documents are dropped.
    #[serde(skip_serializing_if = "Blocklist::is_empty")]
    pub blocklist: Blocklist,
    /// What happens by the score of the `classifier`; null for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Keep every document, and write what each rule looks at as a column of its name, whatever its limit; `rule` names
    /// the one that would drop it, null for none. `language_confidence` is in [0, 1], and so is `quality`, which is
    /// there when a classifier is. Of the texts only the Unicode form and control characters change. So limits are
    /// chosen in SQL before anything is dropped.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub annotate: bool,
}

impl Config {
    /// All that is done, with what the preset says of the rest.
    pub fn settle(&self) -> Result<Settled, Error> {
        let preset = self.preset;
        Ok(Settled {
            repair_mojibake: self.repair_mojibake,
            nfc: self.nfc.or(preset.is_none()),
            strip_control: self.strip_control.or(preset.is_none()),
            languages: self.languages.clone(),
            min_language_confidence: self.min_language_confidence,
            rules: self.rules.over(&preset.map_or_else(Rules::default, Preset::rules), "/rules")?,
            pii: self.pii.over(&preset.map_or_else(Pii::default, Preset::pii), "/pii")?,
        })
    }
}

/// A config of which nothing is left open.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    pub repair_mojibake: bool,
    pub nfc: bool,
    pub strip_control: bool,
    pub languages: Vec<String>,
    pub min_language_confidence: f64,
    pub rules: Rules,
    pub pii: Pii,
}

impl Settled {
    fn normalise(&self, document: &mut Document) {
        let mut text = std::mem::take(&mut document.text);
        // Before control characters go: some of misread text are bytes of a character.
        if self.repair_mojibake
            && let Cow::Owned(better) = mojibake::repair(&text)
        {
            text = better;
        }
        if self.strip_control {
            text = text::strip_control(text);
        }
        document.text = if self.nfc { text::compose(text) } else { text };
    }
}

/// Why a document is dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropped {
    pub rule: String,
    pub value: Option<f64>,
    pub detail: Option<String>,
}

/// What judges documents beside the rules.
#[derive(Debug)]
pub(crate) struct Tools {
    pub lists: Lists,
    pub scorer: Option<Scorer>,
}

/// The cleaned document and how many personal data were masked in it, or why it is dropped.
pub(crate) fn clean(
    config: &Settled,
    tools: &Tools,
    judge: &mut Judge,
    mut document: Document,
) -> Result<(Document, usize), Dropped> {
    document.url.as_deref().map_or(Ok(()), |url| tools.lists.judge(url))?;
    config.normalise(&mut document);
    // To tell the language takes longer than all rules together: where none is wanted, only what stays is asked.
    let wants_language = !config.languages.is_empty();
    let mut found = if wants_language { language::identify(&document.text) } else { None };
    if wants_language {
        let wanted = |l: &Language| config.languages.iter().any(|w| w == l.code);
        if !found.as_ref().is_some_and(|l| wanted(l) && l.confidence >= config.min_language_confidence) {
            let (value, detail) = (found.map(|l| l.confidence), found.map(|l| l.code.to_owned()));
            return Err(Dropped { rule: "language".into(), value, detail });
        }
    }
    let left = judge.judge(&config.rules, &document.text).map_err(|fault| Dropped {
        rule: fault.rule,
        value: Some(fault.value),
        detail: None,
    })?;
    if let Some(scorer) = &tools.scorer {
        scorer.judge(&document.id, &left)?;
    }
    if !wants_language {
        found = language::identify(&document.text);
    }
    let (masked, count) = mask(&left, &config.pii);
    if count > 0 {
        document.text = masked.into_owned();
    } else if let Cow::Owned(text) = left {
        document.text = text;
    }
    document.language = found.map(|l| l.code.to_owned());
    Ok((document, count))
}

smelt_stage::inputs! {
    pub struct Inputs {
        documents: Artifact<Documents>,
        /// What `quality` trained.
        classifier: Option<Artifact<kinds::Classifier>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs { documents: Port<Documents>, drops: Port<Drops> }
}

#[derive(Debug)]
pub struct Clean;

impl Stage for Clean {
    const NAME: &'static str = "clean";
    const VERSION: u32 = 3; // `by_script: false` takes the words of the published rules
    const ABOUT: &'static str = "Normalises texts, drops junk by rule, masks personal data";
    const CORES: smelt_stage::Cores = smelt_stage::Cores::All;
    const SPREADS: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
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
        let has_classifier = inputs.get("classifier").is_some_and(|&n| n > 0);
        match &config.quality {
            Some(quality) if !(0.0..=1.0).contains(&quality.min) => {
                return Err(Error::config("/quality/min", format!("{} is no score, expected 0 to 1", quality.min)));
            }
            Some(_) if !has_classifier => {
                return Err(Error::config("/quality", "there is no classifier whose scores could be used").hint(
                    "train one: `{ stage: quality, input: { positive: JOB, negative: JOB } }`, and connect it as \
                           `input: { documents: JOB, classifier: JOB }`",
                ));
            }
            _ => {}
        }
        let settled = config.settle()?;
        for (field, limits) in
            [("max_top_runs", &settled.rules.max_top_runs), ("max_repeated_runs", &settled.rules.max_repeated_runs)]
        {
            if let Some(i) = limits.iter().position(|limit| limit.n == 0) {
                return Err(Error::config(&format!("/rules/{field}/{i}/n"), "a run of 0 words, expected at least 1"));
            }
        }
        // The effective config says what is done, not whose rules they are alone.
        (config.nfc, config.strip_control) = (settled.nfc.into(), settled.strip_control.into());
        (config.rules, config.pii) = (Given::all(&settled.rules), Given::all(&settled.pii));
        config.blocklist.resolve()
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let is_annotated = config.annotate;
        let classifier = inputs.classifier.as_ref().map(Classifier::read).transpose()?;
        let scorer = classifier.map(|classifier| Scorer { classifier, rule: config.quality.clone() });
        if scorer.as_ref().is_some_and(|scorer| scorer.rule.is_none()) && !is_annotated {
            cx.warn("a classifier is connected, and nothing says what its scores are for: set `quality: { min: 0.5 }`");
        }
        let tools = Tools { lists: config.blocklist.read(cx.sources())?, scorer };
        let config = config.settle()?;
        let input = &inputs.documents;
        if is_annotated {
            cx.units("clean", input.files().len(), |i, unit| {
                annotate::file(&config, &tools, input.read(i)?, &out.documents, unit)
            })?;
            return Ok(());
        }
        let records = cx.units("clean", input.files().len(), |i, unit| {
            let (mut masked, mut judge) = (0, Judge::default());
            for document in input.read(i)? {
                let document = document?;
                unit.count_read(1);
                let id = document.id.clone();
                match clean(&config, &tools, &mut judge, document) {
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
