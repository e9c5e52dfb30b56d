//! `evaluate`: measures models on the same problems and texts, with standard errors.
//!
//! Reads `models` (checkpoints) and any of `prompts`, `tokens`, `preferences` with `reward`; writes `scores` and, per
//! model, its `samples`. Exact match is greedy; avg@k and pass@k draw at a temperature; bits per byte reads held-out
//! text; pair accuracy asks a reward model. `compare` lists pairs of models whose difference is taken problem by
//! problem and text by text, which is far sharper than the difference of two means.

mod answers;
mod text;

use answers::{Judged, judge, prompting};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_answer::{Asker, Scorer, Unusable, expect_by_row, nothing_left, write_unusable};
use smelt_checkpoint::{Loaded, Use, about, device, expect_one_tokenizer, fault};
use smelt_kernels::{Backend, Cpu};
use smelt_model::{Model, Precision};
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{
    Checkpoint, Drops, Preference, Preferences, Prompt, Prompts, Samples, Score, Scores, TokenRow, Tokens,
};
use smelt_stage::{Artifact, Context, Cores, Doctor, Error, Estimate, Source, Stage, Unit};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// What the models are called in `scores`, in the order of the input.
    pub names: Vec<String>,
    /// How each is asked; empty asks all by chat.
    pub forms: Vec<Form>,
    /// System prompt of the form `system`, for prompts without one of their own.
    pub system: String,
    /// Name of the problems in `scores`.
    pub benchmark: String,
    /// Answers per prompt for avg@k and pass@k; 0 leaves both out.
    #[schemars(range(max = 1_000_000))]
    pub samples: usize,
    /// Prompts that are sampled; 0 takes all.
    #[schemars(range(max = 1_000_000_000))]
    pub sampled_prompts: usize,
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Tokens of an answer at most.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_tokens: usize,
    /// Of the products of linear layers. `bf16` and `fp8` are for GPUs: the CPU is no faster with them.
    pub precision: Precision,
    /// Texts that end an answer besides the model's own end; no part of it.
    pub stop: Vec<String>,
    /// Answer one problem at a time, and let the MTP module draft tokens: the answers are the same, and
    /// `draft_acceptance` is the share of accepted drafts.
    pub speculate: bool,
    /// Tokens of text read at most; 0 reads all.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub text_tokens: usize,
    /// Pairs of names: the second minus the first, problem by problem, and document by document for bits per byte.
    pub compare: Vec<[String; 2]>,
}

/// How a model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `problem;` as text that goes on to the end of its line: for models without a chat template.
    Plain,
    /// By the chat template, without a system prompt beside the prompts' own.
    Chat,
    /// By the chat template, with the system prompt.
    System,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            names: Vec::new(),
            forms: Vec::new(),
            system: "Think step by step.".into(),
            benchmark: "problems".into(),
            samples: 8,
            sampled_prompts: 0,
            temperature: 1.0,
            max_tokens: 68,
            precision: Precision::Fp32,
            stop: Vec::new(),
            speculate: false,
            text_tokens: 20_000,
            compare: Vec::new(),
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        models: Vec<Artifact<Checkpoint>>,
        prompts: Option<Artifact<Prompts>>,
        tokens: Option<Artifact<Tokens>>,
        preferences: Option<Artifact<Preferences>>,
        reward: Option<Artifact<Checkpoint>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs { scores: Port<Scores>, samples: Port<Samples>, drops: Port<Drops> }
}

#[derive(Debug)]
pub struct Evaluate;

impl Stage for Evaluate {
    const NAME: &'static str = "evaluate";
    const VERSION: u32 = 5; // `precision`
    const ABOUT: &'static str = "Measures models on the same problems and texts";
    const ROWS: &'static str = "scores";
    const CORES: Cores = Cores::All;
    const DEVICES: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        expect_by_row(config.precision)?;
        if let Some(&models) = inputs.get("models")
            && models != config.names.len()
        {
            let what = format!("{} names for {models} models", config.names.len());
            return Err(Error::config("/names", what).hint("give one name per model, in their order"));
        }
        if !config.forms.is_empty() && config.forms.len() != config.names.len() {
            let what = format!("{} forms for {} names", config.forms.len(), config.names.len());
            return Err(Error::config("/forms", what).hint("give one per model, or none"));
        }
        for name in config.compare.iter().flatten() {
            if !config.names.contains(name) {
                return Err(Error::config("/compare", format!("`{name}` is none of `names`")));
            }
        }
        Ok(Vec::new())
    }

    fn estimate(config: &Config) -> Estimate {
        let answers = 1.0 + config.samples as f64;
        let details = [
            ("models", config.names.len() as f64),
            ("answers_per_prompt_and_model", answers),
            ("answer_tokens_per_prompt_and_model_at_most", answers * config.max_tokens as f64),
            ("text_tokens_per_model_at_most", config.text_tokens as f64),
        ];
        let unknown = [
            "the number of prompts and their lengths come with the input",
            "as many models are in memory as there are threads; `text_tokens_per_model_at_most` 0 means all of the \
             text",
        ];
        before_the_checkpoint(4.0, 2.0, &details, &unknown)
    }

    fn doctor() -> Doctor {
        device::needs_of::<Self>()
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let prompts: Vec<Prompt> = match &inputs.prompts {
            Some(prompts) => prompts.read_all().collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let rows: Vec<TokenRow> = match &inputs.tokens {
            Some(tokens) => tokens.read_all().collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let preferences: Vec<Preference> = match &inputs.preferences {
            Some(preferences) => preferences.read_all().collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        expect_tokenizers(&inputs)?;
        if inputs.prompts.is_some() && prompts.is_empty() {
            cx.warn(&format!(
                "benchmark `{}` is empty: input `prompts` has no rows, so it has no scores",
                config.benchmark
            ));
        }
        let (prompts, unusable) = usable(&config, &inputs, prompts, cx)?;
        if inputs.tokens.is_some() && rows.is_empty() {
            cx.warn(
                "input `tokens` has no rows, so there are no bits per byte: if it is the `validation` of \
            `tokenize`, raise its share",
            );
        }
        // one unit per model, each by one thread: models are measured side by side
        let backend = device::backend(cx, 1, config.precision)?;
        let records = cx.units("models", inputs.models.len(), |i, unit| {
            let loaded = Loaded::open(&inputs.models[i])?.in_precision(config.precision)?.on(backend.as_ref());
            let mut sheet = Sheet { model: &config.names[i], unit, out: &out };
            let mut paired = Paired::default();
            if !prompts.is_empty() {
                let judged = judge(&config, prompting(&config, i), &loaded, &prompts, backend.as_ref())?;
                sheet.answers(&config, &judged)?;
                paired.problems = judged.per_problem;
            }
            if !rows.is_empty() {
                let scores = text::text_scores(&config, &loaded, &rows, backend.as_ref())?;
                for (metric, (value, error)) in
                    [("bits_per_byte", scores.bits_per_byte), ("perplexity", scores.perplexity)]
                {
                    let documents = scores.documents.len();
                    sheet.row("text", metric, value, (documents > 1).then_some(error), documents)?;
                }
                paired.text = Some(scores.documents);
            }
            let detail = serde_json::to_value(&paired);
            sheet.unit.set_detail(detail.map_err(|e| Error::bug(format!("JSON cannot hold a model's scores: {e}")))?);
            Ok(())
        })?;
        let paired = records.iter().map(|record| serde_json::from_value(record.detail.clone()));
        let paired: Vec<Paired> = paired
            .collect::<Result<_, _>>()
            .map_err(|e| Error::bug(format!("what the unit of a model says of its problems cannot be read: {e}")))?;
        cx.units("comparisons", 1, |_, unit| {
            for [from, to] in &config.compare {
                let place = |name: &String| config.names.iter().position(|n| n == name);
                let (Some(a), Some(b)) = (place(from), place(to)) else { continue };
                let model = format!("{to} - {from}");
                let mut sheet = Sheet { model: &model, unit: &mut *unit, out: &out };
                for (metric, before) in &paired[a].problems {
                    if let Some(after) = paired[b].problems.get(metric) {
                        let gaps: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
                        let values = if is_share(metric) { Values::Differences } else { Values::Numbers };
                        let (mean, error) = mean_and_error(&gaps, values);
                        sheet.row(&config.benchmark, metric, mean, error, gaps.len())?;
                    }
                }
                if let (Some(before), Some(after)) = (&paired[a].text, &paired[b].text) {
                    let (difference, error) = after.minus(before);
                    sheet.row("text", "bits_per_byte", difference, (after.len() > 1).then_some(error), after.len())?;
                }
            }
            if let Some(reward) = &inputs.reward {
                let name = "reward";
                let mut sheet = Sheet { model: name, unit: &mut *unit, out: &out };
                let reward = Loaded::open(reward)?.in_precision(config.precision)?.on(backend.as_ref());
                pairs(&config, &reward, preferences.clone(), backend.as_ref(), &mut sheet)?;
            }
            write_unusable(unit, &out.drops, &unusable)?;
            Ok(())
        })?;
        Ok(())
    }
}

/// Ids mean the same to who reads them: tokens to every model, preferences to the reward model.
fn expect_tokenizers(inputs: &Inputs) -> Result<(), Error> {
    if let Some(tokens) = &inputs.tokens {
        let mut uses = vec![Use::new(tokens.label(), tokens.tokenizer().map(str::to_owned))];
        for (i, model) in inputs.models.iter().enumerate() {
            let label = format!("number {} of {}", i + 1, model.label());
            uses.push(Use::new(label, Some(about(model)?.1.tokenizer_digest()?)));
        }
        expect_one_tokenizer(&uses)?;
    }
    if let (Some(preferences), Some(reward)) = (&inputs.preferences, &inputs.reward) {
        expect_one_tokenizer(&[
            Use::new(preferences.label(), preferences.tokenizer().map(str::to_owned)),
            Use::new(reward.label(), Some(about(reward)?.1.tokenizer_digest()?)),
        ])?;
    }
    Ok(())
}

/// The prompts that every model can be asked, for all are measured on the same ones.
fn usable(
    config: &Config,
    inputs: &Inputs,
    prompts: Vec<Prompt>,
    cx: &Context,
) -> Result<(Vec<Prompt>, Vec<Unusable>), Error> {
    let (mut usable, mut unusable) = (prompts, Vec::new());
    if usable.is_empty() {
        return Ok((usable, unusable));
    }
    for (i, artifact) in inputs.models.iter().enumerate() {
        let (sizes, text) = about(artifact)?;
        let model = Model::new(sizes).map_err(fault)?;
        let cpu = Cpu::new(1);
        let asker = Asker::of(&model, &text, &cpu, prompting(config, i), config.max_tokens, &config.stop)?;
        if i == 0 {
            asker.idle_stop_strings().iter().for_each(|told| cx.warn(told));
        }
        let (rest, more) = asker.usable(usable.into_iter().map(Ok))?;
        usable = rest;
        let name = &config.names[i];
        unusable.extend(more.into_iter().map(|row| Unusable { detail: format!("{name}: {}", row.detail), ..row }));
    }
    if usable.is_empty() { Err(nothing_left("prompts", &unusable)) } else { Ok((usable, unusable)) }
}

/// What a model's unit leaves for paired differences.
#[derive(Default, Serialize, Deserialize)]
struct Paired {
    /// By metric, in the order of the problems.
    problems: BTreeMap<String, Vec<f64>>,
    text: Option<text::DocumentCosts>,
}

/// Accuracy of a reward model on held-out pairs, over all and by fault.
fn pairs(
    config: &Config,
    reward: &Loaded,
    rows: Vec<Preference>,
    backend: &dyn Backend,
    sheet: &mut Sheet,
) -> Result<(), Error> {
    let scorer = Scorer::new(reward, &config.system)?;
    let pairs = scorer.pairs(rows)?;
    let prefers = scorer.prefers(&reward.model, &reward.params, backend, &pairs.examples, 8192)?;
    let mut by_fault: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    write_unusable(sheet.unit, &sheet.out.drops, &pairs.unusable)?;
    for (row, is_right) in pairs.rows.iter().zip(prefers) {
        let right = f64::from(u8::from(is_right));
        by_fault.entry("pair_accuracy".into()).or_default().push(right);
        if let Some(fault) = &row.fault {
            by_fault.entry(format!("pair_accuracy.{fault}")).or_default().push(right);
        }
    }
    for (metric, right) in &by_fault {
        let (mean, error) = mean_and_error(right, Values::Shares);
        sheet.row("preferences", metric, mean, error, right.len())?;
    }
    Ok(())
}

/// Where one model's rows go.
struct Sheet<'a, 'u> {
    model: &'a str,
    unit: &'a mut Unit<'u>,
    out: &'a Outputs,
}

impl Sheet<'_, '_> {
    fn row(&mut self, benchmark: &str, metric: &str, value: f64, error: Option<f64>, n: usize) -> Result<(), Error> {
        if let Some(wrong) = [Some(value), error].into_iter().flatten().find(|x| !x.is_finite()) {
            let model = self.model;
            return Err(Error::data(format!("metric `{metric}` of model `{model}` on `{benchmark}` is {wrong}")).hint(
                "the model gives logits that are not finite or far beyond any trained model's: look at how it was \
                     trained",
            ));
        }
        self.unit.count_derived(1);
        let row = Score {
            model: self.model.into(),
            benchmark: benchmark.into(),
            metric: metric.into(),
            value,
            standard_error: error,
            n: n as u64,
        };
        self.unit.keep(&self.out.scores, row)
    }

    fn answers(&mut self, config: &Config, judged: &Judged) -> Result<(), Error> {
        for (metric, values) in &judged.per_problem {
            let kind = if is_share(metric) { Values::Shares } else { Values::Numbers };
            let (mean, error) = mean_and_error(values, kind);
            self.row(&config.benchmark, metric, mean, error, values.len())?;
        }
        if let Some(share) = judged.drafts.acceptance() {
            let offered = judged.drafts.offered as f64;
            let is_mixed = share > 0.0 && share < 1.0;
            let error = if is_mixed { (share * (1.0 - share) / offered).sqrt() } else { wilson(share, offered) };
            self.row(&config.benchmark, "draft_acceptance", share, Some(error), offered as usize)?;
        }
        for sample in &judged.samples {
            self.unit.write(&self.out.samples, sample.clone())?;
        }
        Ok(())
    }
}

/// What kind of values a mean is taken of: it decides what equal values say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// In [0, 1]: right or wrong, or a share of it.
    Shares,
    /// Between two shares.
    Differences,
    Numbers,
}

fn is_share(metric: &str) -> bool {
    metric != "tokens_per_answer"
}

/// Mean, and its standard error by the spread of the values. One value has no spread, so it has no error. Shares that
/// are all equal have none either, and yet the next may differ: their error is that of Wilson's interval.
fn mean_and_error(values: &[f64], kind: Values) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, None);
    }
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    let error = match kind {
        Values::Shares if squares == 0.0 => wilson(mean, n),
        // of two shares, each as uncertain as it is at least
        Values::Differences if squares == 0.0 => wilson(0.0, n) * std::f64::consts::SQRT_2,
        _ => (squares / (n - 1.0) / n).sqrt(),
    };
    (mean, Some(error))
}

/// Half of Wilson's interval of one standard deviation around a share of n (Wilson 1927, at z = 1).
fn wilson(share: f64, n: f64) -> f64 {
    (share * (1.0 - share) / n + 0.25 / (n * n)).sqrt() / (1.0 + 1.0 / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        let (mean, error) = mean_and_error(&[1.0, 0.0, 1.0, 1.0], Values::Shares);
        assert_eq!(mean, 0.75);
        assert!((error.unwrap() - (0.75f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
    }

    /// Wilson's interval at z = 1 for 0 of n: (z²/n) / (1 + z²/n) wide, from 0.
    #[test]
    fn values_without_spread_are_not_certain() {
        assert_eq!(mean_and_error(&[0.5], Values::Shares), (0.5, None));
        for share in [0.0, 1.0] {
            let (_, error) = mean_and_error(&[share; 9], Values::Shares);
            assert!((error.unwrap() - 0.5 * (1.0 / 9.0) / (1.0 + 1.0 / 9.0)).abs() < 1e-15);
        }
        assert!(mean_and_error(&[0.0; 9], Values::Differences).1.unwrap() > 0.05);
        assert_eq!(mean_and_error(&[3.0; 9], Values::Numbers), (3.0, Some(0.0)));
    }
}
