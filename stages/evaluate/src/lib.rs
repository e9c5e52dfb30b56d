//! `evaluate`: measures models on the same problems and texts, with standard errors.
//!
//! Reads `models` (checkpoints) and any of `prompts`, `tokens`, `preferences` with `reward`; writes `scores` and, per
//! model, its `samples`. Exact match is greedy; avg@k and pass@k draw at a temperature; bits per byte reads held-out
//! text; pair accuracy asks a reward model. `compare` lists pairs of models whose difference is taken problem by
//! problem and text by text, which is far sharper than the difference of two means.

mod answers;
mod text;

use answers::{Judged, judge};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_answer::Scorer;
use smelt_checkpoint::Loaded;
use smelt_kernels::Cpu;
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{
    Checkpoint, Preference, Preferences, Prompt, Prompts, Samples, Score, Scores, TokenRow, Tokens,
};
use smelt_stage::{Artifact, Context, Cores, Error, Estimate, Source, Stage, Unit};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// What the models are called in `scores`, in the order of the input.
    pub names: Vec<String>,
    /// How each is asked; empty asks all by chat.
    pub forms: Vec<Form>,
    /// System prompt of the form `system`.
    pub system: String,
    /// Name of the problems in `scores`.
    pub benchmark: String,
    /// Answers per prompt for avg@k and pass@k; 0 leaves both out.
    pub samples: usize,
    /// Prompts that are sampled; 0 takes all.
    pub sampled_prompts: usize,
    pub temperature: f64,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Texts that end an answer besides the model's own end; no part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Answer one problem at a time, and let the MTP module draft tokens: the answers are the same, and
    /// `draft_acceptance` is the share of accepted drafts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub speculate: bool,
    /// Tokens of text read at most; 0 reads all.
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
    /// By the chat template, without a system prompt.
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
smelt_stage::outputs! { pub struct Outputs { scores: Port<Scores>, samples: Port<Samples> } }

#[derive(Debug)]
pub struct Evaluate;

impl Stage for Evaluate {
    const NAME: &'static str = "evaluate";
    const VERSION: u32 = 3; // exp in fused multiply-adds
    const ABOUT: &'static str = "Measures models on the same problems and texts";
    const ROWS: &'static str = "scores";
    const CORES: Cores = Cores::All;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
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
        if inputs.tokens.is_some() && rows.is_empty() {
            cx.warn(
                "input `tokens` has no rows, so there are no bits per byte: if it is the `validation` of \
            `tokenize`, raise its share",
            );
        }
        // one unit per model, each by one thread: models are measured side by side
        let cpu = Cpu::new(1);
        let records = cx.units("models", inputs.models.len(), |i, unit| {
            let loaded = Loaded::open(&inputs.models[i])?;
            let form = config.forms.get(i).copied().unwrap_or(Form::Chat);
            let mut sheet = Sheet { model: &config.names[i], unit, out: &out };
            let mut paired = Paired::default();
            if !prompts.is_empty() {
                let judged = judge(&config, form, &loaded, &prompts, &cpu)?;
                sheet.answers(&config, &judged)?;
                paired.problems = judged.per_problem;
            }
            if !rows.is_empty() {
                let scores = text::text_scores(&config, &loaded, &rows, &cpu)?;
                for (metric, (value, error)) in
                    [("bits_per_byte", scores.bits_per_byte), ("perplexity", scores.perplexity)]
                {
                    sheet.row("text", metric, value, Some(error), scores.documents.len())?;
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
                        let (mean, error) = mean_and_error(&gaps);
                        sheet.row(&config.benchmark, metric, mean, Some(error), gaps.len())?;
                    }
                }
                if let (Some(before), Some(after)) = (&paired[a].text, &paired[b].text) {
                    let (difference, error) = after.minus(before);
                    sheet.row("text", "bits_per_byte", difference, Some(error), after.len())?;
                }
            }
            if let Some(reward) = &inputs.reward {
                let name = "reward";
                let mut sheet = Sheet { model: name, unit: &mut *unit, out: &out };
                pairs(&config, &Loaded::open(reward)?, &preferences, &cpu, &mut sheet)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// What a model's unit leaves for paired differences.
#[derive(Default, Serialize, Deserialize)]
struct Paired {
    /// By metric, in the order of the problems.
    problems: BTreeMap<String, Vec<f64>>,
    text: Option<text::DocumentCosts>,
}

/// Accuracy of a reward model on held-out pairs, over all and by fault.
fn pairs(config: &Config, reward: &Loaded, rows: &[Preference], cpu: &Cpu, sheet: &mut Sheet) -> Result<(), Error> {
    let scorer = Scorer::new(reward, &config.system, 8192)?;
    let prefers = scorer.prefers(&reward.model, &reward.params, cpu, &scorer.pairs(rows)?)?;
    let mut by_fault: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (row, is_right) in rows.iter().zip(prefers) {
        let right = f64::from(u8::from(is_right));
        by_fault.entry("pair_accuracy".into()).or_default().push(right);
        if let Some(fault) = &row.fault {
            by_fault.entry(format!("pair_accuracy.{fault}")).or_default().push(right);
        }
    }
    for (metric, right) in &by_fault {
        let (mean, error) = mean_and_error(right);
        sheet.row("preferences", metric, mean, Some(error), right.len())?;
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
            let (mean, error) = mean_and_error(values);
            self.row(&config.benchmark, metric, mean, Some(error), values.len())?;
        }
        if let Some(share) = judged.drafts.acceptance() {
            let offered = judged.drafts.offered as f64;
            let error = (share * (1.0 - share) / offered).sqrt();
            self.row(&config.benchmark, "draft_acceptance", share, Some(error), offered as usize)?;
        }
        for sample in &judged.samples {
            self.unit.write(&self.out.samples, sample.clone())?;
        }
        Ok(())
    }
}

/// Mean, and its standard error by the spread of the values.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, if n > 1.0 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        let (mean, error) = mean_and_error(&[1.0, 0.0, 1.0, 1.0]);
        assert_eq!(mean, 0.75);
        assert!((error - (0.75f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_error(&[0.5]), (0.5, 0.0));
    }
}
