//! `distill`: samples an expert and keeps what a verifier accepts (rejection sampling; DeepSeek-V3, §5.1).
//!
//! Reads a `checkpoint` (the expert) and `prompts`, writes `conversations` in two forms, <problem, original answer> and
//! <system prompt, problem, long answer>, and all `samples`. A prompt of which no sample is accepted is dropped. From
//! the long conversations the system prompt can be left out for a share: a model that never answered at length without
//! it cannot learn to by reinforcement. A prompt's own system message stays in all forms.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_answer::{
    Answer, Asker, Prompting, Question, Unusable, Verdict, expect_by_row, nothing_left, write_unusable,
};
use smelt_checkpoint::{Loaded, device};
use smelt_kernels::random;
use smelt_model::Precision;
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Conversation, Conversations, Drops, Message, Prompt, Prompts, Samples};
use smelt_stage::{Artifact, Context, Cores, Doctor, Error, Estimate, Source, Stage, Unit};
use std::collections::BTreeMap;

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Answers drawn per prompt.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub samples: u32,
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Tokens of an answer at most.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_tokens: usize,
    /// Of the products of linear layers. `bf16` and `fp8` are for GPUs: the CPU is no faster with them.
    pub precision: Precision,
    /// What an answer has to be.
    pub keep: Keep,
    /// The system prompt with which the expert is asked, for prompts without one of their own; empty for none.
    pub expert_system: String,
    /// The system prompt of long conversations, for prompts without one of their own.
    pub system: String,
    /// Share of the long conversations that are written without it, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drop_system: f64,
    /// Also write the problem with its original answer.
    pub originals: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The final answer is right.
    Answer,
    /// Every step is right.
    EveryStep,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            samples: 4,
            temperature: 1.0,
            max_tokens: 68,
            precision: Precision::Fp32,
            keep: Keep::EveryStep,
            expert_system: String::new(),
            system: "Think step by step.".into(),
            drop_system: 0.15,
            originals: true,
        }
    }
}

smelt_stage::inputs! { pub struct Inputs { model: Artifact<Checkpoint>, prompts: Artifact<Prompts> } }
smelt_stage::outputs! {
    pub struct Outputs { conversations: Port<Conversations>, samples: Port<Samples>, drops: Port<Drops> }
}

#[derive(Debug)]
pub struct Distill;

/// Prompts of one unit. No answer depends on it; it is the work that a kill can cost.
const UNIT: usize = 32;

impl Stage for Distill {
    const NAME: &'static str = "distill";
    const VERSION: u32 = 5; // `precision`
    const ABOUT: &'static str = "Samples an expert and keeps the answers that a verifier accepts";
    const ROWS: &'static str = "conversations";
    const CORES: Cores = Cores::All;
    const DEVICES: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        expect_by_row(config.precision)?;
        Ok(Vec::new())
    }

    fn estimate(config: &Config) -> Estimate {
        let (samples, tokens) = (f64::from(config.samples), config.max_tokens as f64);
        let details = [("answers_per_prompt", samples), ("answer_tokens_per_prompt_at_most", samples * tokens)];
        before_the_checkpoint(4.0, 2.0, &details, &["the number of prompts and their lengths come with the input"])
    }

    fn doctor() -> Doctor {
        device::needs_of::<Self>()
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let prompts: Vec<Prompt> = inputs.prompts.read_all().collect::<Result<_, _>>()?;
        let backend = device::backend(cx, 1, config.precision)?; // units run side by side
        let loaded = Loaded::open(&inputs.model)?.in_precision(config.precision)?.on(backend.as_ref());
        let system = (!config.expert_system.is_empty()).then_some(config.expert_system.as_str());
        let asker = Asker::new(&loaded, backend.as_ref(), Prompting::Chat { system }, config.max_tokens, &[])?;
        let objections: Vec<Option<Unusable>> =
            prompts.iter().map(|row| asker.objection(row)).collect::<Result<_, _>>()?;
        if objections.iter().all(Option::is_some) {
            return Err(nothing_left("prompts", &objections.into_iter().flatten().collect::<Vec<_>>()));
        }
        let expert = Expert { config: &config, loaded: &loaded, asker: &asker, out: &out };
        cx.units("sample", prompts.len().div_ceil(UNIT), |i, unit| {
            let rows = i * UNIT..prompts.len().min((i + 1) * UNIT);
            let unusable: Vec<Unusable> = objections[rows.clone()].iter().flatten().cloned().collect();
            write_unusable(unit, &out.drops, &unusable)?;
            let usable: Vec<(usize, &Prompt)> =
                rows.filter(|&at| objections[at].is_none()).map(|at| (at, &prompts[at])).collect();
            expert.unit(&usable, unit)
        })?;
        Ok(())
    }
}

/// What a wrong answer earns in `samples`: this times its share of leading right steps.
const PARTIAL_CREDIT: f64 = 0.5;

struct Expert<'a> {
    config: &'a Config,
    loaded: &'a Loaded,
    asker: &'a Asker<'a>,
    out: &'a Outputs,
}

impl Expert<'_> {
    /// Prompts with their places in the input: draws, judges, writes.
    fn unit(&self, prompts: &[(usize, &Prompt)], unit: &mut Unit) -> Result<(), Error> {
        let config = self.config;
        let question = |at: usize, prompt, sample: u32| {
            let seed = random::bits(config.seed, at as u64, sample.into());
            Question { prompt, sample, seed, temperature: config.temperature }
        };
        let rows = prompts.iter();
        let questions: Vec<Question> =
            rows.flat_map(|&(at, row)| (0..config.samples).map(move |sample| question(at, row, sample))).collect();
        let (answers, _) = self.asker.ask(&self.loaded.params, &questions, PARTIAL_CREDIT)?;
        let mut answers = answers.into_iter();
        for &(at, row) in prompts {
            unit.count_read(1);
            self.prompt(at as u64, row, answers.by_ref().take(config.samples as usize), unit)?;
        }
        Ok(())
    }

    fn prompt(
        &self,
        index: u64,
        row: &Prompt,
        answers: impl Iterator<Item = Answer>,
        unit: &mut Unit,
    ) -> Result<(), Error> {
        let mut best: Option<String> = None;
        let mut is_scorable = false;
        for answer in answers {
            is_scorable |= answer.verdict.is_some();
            if answer.verdict.is_some_and(|verdict| self.accepts(verdict))
                && best.as_ref().is_none_or(|best| answer.text.len() < best.len())
            {
                best = Some(answer.text.clone());
            }
            unit.write(&self.out.samples, answer.into_sample())?;
        }
        let Some(best) = best else {
            let rule = if is_scorable { "no_accepted_answer" } else { "unscorable" };
            return unit.drop_row(&self.out.drops, &row.id, rule, None, None);
        };
        let config = self.config;
        let own_system: Vec<Message> =
            row.messages.iter().filter(|message| message.role == "system").cloned().collect();
        let has_system = random::uniform(config.seed, 0x5e5, index) >= config.drop_system;
        let conversation = |kind: &str, system: Option<&str>, answer: &str, checkpoint: Option<String>| {
            let user = row.messages.iter().filter(|message| message.role != "system").cloned();
            let system = system.filter(|_| own_system.is_empty()).map(|text| Message::new("system", text));
            let messages = own_system
                .iter()
                .cloned()
                .chain(system)
                .chain(user)
                .chain([Message::new("assistant", answer)])
                .collect();
            Conversation { id: format!("{}/{kind}", row.id), messages, source: format!("distill/{kind}"), checkpoint }
        };
        let system = has_system.then_some(config.system.as_str());
        let long = conversation("long", system, &best, Some(self.loaded.digest.clone()));
        unit.keep(&self.out.conversations, long)?;
        if config.originals {
            unit.count_derived(1);
            unit.keep(&self.out.conversations, conversation("original", None, &row.answer, None))?;
        }
        Ok(())
    }

    fn accepts(&self, verdict: Verdict) -> bool {
        match self.config.keep {
            Keep::Answer => verdict.is_right,
            Keep::EveryStep => verdict.is_right_throughout,
        }
    }
}
