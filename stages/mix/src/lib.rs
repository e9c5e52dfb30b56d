//! `mix`: which part of a training's tokens comes from which sources and languages, and how often.
//!
//! Reads `tokens`, writes `tokens`, in a random order. The config names parts of the corpus by input, source and
//! language; a document belongs to the first part that fits. A part is written so many times (`epochs`), or takes its
//! share of what is left of the budget (`weight`). Whole passes write every document; of the last, broken pass a hash
//! of the document's id chooses, so what is written is what was asked for up to the sizes of single documents.
//! Documents that are not written at all are rows of `drops`.

mod plan;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Drops, SourceTokens, TokenRow, Tokens};
use smelt_stage::shuffle::Shuffle;
use smelt_stage::{Artifact, Context, Cores, Error, Source, Stage};

use crate::plan::{Amount, Fault, Plan};

/// What goes in. Without parts every document is written once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Draws the order.
    pub seed: u64,
    /// Tokens to write in all, at most.
    #[schemars(range(min = 1))]
    pub budget: Option<u64>,
    /// A document belongs to the first part that fits; one that no part fits is a drop by the rule `no_part`.
    pub parts: Vec<Part>,
}

/// A part of the corpus, and how much of it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// In metrics: `tokens.NAME`, `epochs.NAME`, `share.NAME`.
    pub name: String,
    /// Takes documents of this input alone, by its place in the list `tokens`, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<usize>,
    /// Takes documents whose source fits this pattern alone: `*` stands for any text, `?` for one character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Takes documents of these languages alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// Times that its documents are written; 0.5 writes half of them, once. Not with `weight`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Share in what the parts with weights write together, by tokens and relative to the other weights.
    #[schemars(range(min = 0.0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Times that a part with a weight is written at most. Up to 4 times, repeated tokens are worth about as much as
    /// new ones (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", §6). The part that reaches its
    /// limit first limits all that have weights, so that their shares hold.
    #[schemars(range(min = 0.0, max = 1000.0))]
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub max_epochs: f64,
}

fn once() -> f64 {
    1.0
}

fn is_once(epochs: &f64) -> bool {
    *epochs == once()
}

impl Part {
    /// `at`: its place in `parts`; `inputs`: how many there are.
    fn check(&self, at: usize, inputs: usize) -> Result<(), Error> {
        let refuse = |field: &str, what: String| Err(Error::config(&format!("/parts/{at}/{field}"), what));
        let is_amount = |value: f64| value.is_finite() && value > 0.0;
        let named = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if self.name.is_empty() || !self.name.chars().all(named) {
            return refuse("name", format!("`{}` is no name, expected letters, digits, `_` and `-`", self.name));
        }
        if let Some(input) = self.input.filter(|&input| input >= inputs) {
            return refuse("input", format!("there is no input {input} of `tokens`, they are 0 to {}", inputs - 1));
        }
        if let Err(e) = self.source.as_deref().map_or(Ok(()), |source| glob::Pattern::new(source).map(drop)) {
            return refuse("source", format!("it is no pattern: {e}"));
        }
        match (self.epochs, self.weight) {
            (Some(_), Some(_)) | (None, None) => {
                let what = format!("part `{}` must have either `epochs` or `weight`", self.name);
                let hint = "`epochs: 1` writes it whole, `weight: 1` gives it its share";
                return Err(Error::config(&format!("/parts/{at}"), what).hint(hint));
            }
            (Some(epochs), None) if !is_amount(epochs) => {
                return refuse("epochs", format!("{epochs} is no number of times, expected more than 0"));
            }
            (None, Some(weight)) if !is_amount(weight) => {
                return refuse("weight", format!("{weight} is no share, expected more than 0"));
            }
            _ => {}
        }
        if !is_amount(self.max_epochs) {
            return refuse("max_epochs", format!("{} is no number of times, expected more than 0", self.max_epochs));
        }
        Ok(())
    }

    fn amount(&self) -> Amount {
        match (self.epochs, self.weight) {
            (Some(epochs), _) => Amount::Epochs(epochs),
            (None, weight) => Amount::Share { weight: weight.unwrap_or(1.0), most: self.max_epochs },
        }
    }
}

impl Config {
    /// The parts, or the one that has everything.
    fn parts(&self) -> Vec<Part> {
        let all = || Part {
            name: "all".into(),
            input: None,
            source: None,
            languages: Vec::new(),
            epochs: None,
            weight: Some(1.0),
            max_epochs: 1.0,
        };
        if self.parts.is_empty() { vec![all()] } else { self.parts.clone() }
    }
}

smelt_stage::inputs! {
    pub struct Inputs { tokens: Vec<Artifact<Tokens>> }
}
smelt_stage::outputs! {
    pub struct Outputs { tokens: Port<Tokens>, drops: Port<Drops> }
}

#[derive(Debug)]
pub struct Mix;

impl Stage for Mix {
    const NAME: &'static str = "mix";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Mixes tokens by source and language, and shuffles them";
    const CORES: Cores = Cores::All;
    const SPREADS: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        let count = inputs.get("tokens").copied().unwrap_or(0);
        if count == 0 {
            return Err(Error::config("", "`mix` reads tokens, but no input is given").hint("set `tokens: JOB`"));
        }
        for (at, part) in config.parts.iter().enumerate() {
            part.check(at, count)?;
            if config.parts[..at].iter().any(|before| before.name == part.name) {
                let what = format!("there are two parts called `{}`", part.name);
                return Err(Error::config(&format!("/parts/{at}/name"), what));
            }
        }
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        if let Some(digest) = one_tokenizer(&inputs.tokens)? {
            cx.made_with_tokenizer(&out.tokens, digest);
        }
        let corpus = Corpus::new(&config, &inputs.tokens)?;
        let counted = cx.units("count", corpus.files.len(), |i, unit| {
            let mut tokens = vec![0u64; corpus.parts.len()];
            let (input, file) = corpus.files[i];
            for row in inputs.tokens[input].view(file)? {
                let SourceTokens { source, language, ids } = row?;
                if let Some(part) = corpus.part(input, &source, language.as_deref()) {
                    tokens[part] += ids.len() as u64;
                }
            }
            unit.set_detail(tokens.into());
            Ok(())
        })?;
        let mut tokens = vec![0u64; corpus.parts.len()];
        for record in &counted {
            for (i, sum) in tokens.iter_mut().enumerate() {
                let count = record.detail.get(i).and_then(serde_json::Value::as_u64);
                *sum += count.ok_or_else(|| Error::bug("a committed unit holds no counts"))?;
            }
        }
        let plan = corpus.plan(&config, &tokens, cx)?;
        let shuffle = Shuffle::new(config.seed, inputs.tokens.iter().map(Artifact::bytes).sum());
        let written = cx.units("mix", corpus.files.len(), |i, unit| {
            let mut shuffling = shuffle.of_unit(cx);
            let mut tokens = vec![0u64; corpus.parts.len()];
            corpus.each(i, |row, part| {
                unit.count_read(1);
                let Some(part) = part else {
                    return unit.drop_row(&out.drops, &row.document, "no_part", None, None);
                };
                let copies = plan.copies(part, &row.document);
                if copies == 0 {
                    let name = corpus.parts[part].part.name.clone();
                    return unit.drop_row(&out.drops, &row.document, "mixture", Some(plan.epochs[part]), Some(name));
                }
                tokens[part] += copies * row.ids.len() as u64;
                unit.count_written(copies);
                unit.count_derived(copies - 1);
                (1..copies).try_for_each(|copy| shuffling.push(row.clone(), copy))?;
                shuffling.push(row, 0)
            })?;
            unit.set_detail(tokens.into());
            shuffling.finish(unit)
        })?;
        shuffle.write(cx, &written, &out.tokens)?;
        let of_part = |i: usize| written.iter().filter_map(|record| record.detail.get(i)?.as_u64()).sum::<u64>();
        let written: Vec<u64> = (0..corpus.parts.len()).map(of_part).collect();
        let all: u64 = written.iter().sum();
        cx.result("tokens", all as f64);
        for (i, Matcher { part, .. }) in corpus.parts.iter().enumerate() {
            cx.result(&format!("tokens.{}", part.name), written[i] as f64);
            cx.result(&format!("epochs.{}", part.name), written[i] as f64 / tokens[i].max(1) as f64);
            cx.result(&format!("share.{}", part.name), written[i] as f64 / all.max(1) as f64);
        }
        if all == 0 {
            return Err(
                Error::data("not one document was written").hint("look at the table `drops`, or raise `budget`")
            );
        }
        Ok(())
    }
}

/// The digest of the tokenizer that all inputs were made with, if they say.
fn one_tokenizer(inputs: &[Artifact<Tokens>]) -> Result<Option<&str>, Error> {
    let named = || inputs.iter().filter_map(|input| Some((input, input.tokenizer()?)));
    let Some((first, digest)) = named().next() else { return Ok(None) };
    if let Some((other, _)) = named().find(|(_, other)| *other != digest) {
        let what = format!("{} and {} were made with different tokenizers", first.label(), other.label());
        return Err(Error::data(what).hint("give one `tokenize` job the `tokenizer` of the other"));
    }
    Ok(Some(digest))
}

/// A part, ready to be compared.
struct Matcher {
    part: Part,
    source: Option<glob::Pattern>,
}

impl Matcher {
    fn fits(&self, input: usize, source: &str, language: Option<&str>) -> bool {
        let Part { input: wanted, languages, .. } = &self.part;
        wanted.is_none_or(|wanted| wanted == input)
            && self.source.as_ref().is_none_or(|pattern| pattern.matches(source))
            && (languages.is_empty() || language.is_some_and(|language| languages.iter().any(|each| each == language)))
    }
}

/// The inputs as one list of files, and the parts.
struct Corpus<'a> {
    inputs: &'a [Artifact<Tokens>],
    /// Input and file within it.
    files: Vec<(usize, usize)>,
    parts: Vec<Matcher>,
}

impl<'a> Corpus<'a> {
    fn new(config: &Config, inputs: &'a [Artifact<Tokens>]) -> Result<Self, Error> {
        let files = inputs.iter().enumerate().flat_map(|(a, input)| (0..input.files().len()).map(move |f| (a, f)));
        let matcher = |part: Part| {
            let source = part.source.as_deref().map(glob::Pattern::new).transpose();
            Ok(Matcher { source: source.map_err(|e| Error::config("/parts", e.to_string()))?, part })
        };
        let parts = config.parts().into_iter().map(matcher).collect::<Result<_, Error>>()?;
        Ok(Self { inputs, files: files.collect(), parts })
    }

    /// The first part that takes documents like this.
    fn part(&self, input: usize, source: &str, language: Option<&str>) -> Option<usize> {
        self.parts.iter().position(|part| part.fits(input, source, language))
    }

    /// Calls `take` with every row of file `i` and the part that it belongs to.
    fn each<F>(&self, i: usize, mut take: F) -> Result<(), Error>
    where
        F: FnMut(TokenRow, Option<usize>) -> Result<(), Error>,
    {
        let (input, file) = self.files[i];
        for row in self.inputs[input].read(file)? {
            let row = row?;
            let part = self.part(input, &row.source, row.language.as_deref());
            take(row, part)?;
        }
        Ok(())
    }

    fn plan(&self, config: &Config, tokens: &[u64], cx: &Context) -> Result<Plan, Error> {
        let name = |i: usize| self.parts[i].part.name.as_str();
        let amounts: Vec<Amount> = self.parts.iter().map(|matcher| matcher.part.amount()).collect();
        let (plan, limited) = Plan::new(&amounts, tokens, config.budget).map_err(|fault| match fault {
            Fault::Empty(i) => Error::data(format!("part `{}` has not one token", name(i))).hint(
                "`smelt sql` shows which sources and languages there are; an earlier part may take its documents",
            ),
            Fault::OverBudget(fixed) => {
                let what = format!(
                    "the parts with `epochs` have {fixed} tokens in all, more than the budget of {}",
                    config.budget.unwrap_or_default()
                );
                Error::config("/budget", what).hint("raise it, or write these parts fewer times")
            }
        })?;
        if let (Some(i), Some(budget)) = (limited, config.budget) {
            cx.warn(&format!(
                "{:.0} of the {budget} tokens of the budget are there: part `{}` is written {} times, its \
                 `max_epochs`, and the shares of the others go by it",
                plan.tokens,
                name(i),
                plan.epochs[i]
            ));
        }
        Ok(plan)
    }
}
