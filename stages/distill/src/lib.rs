//! `distill`: samples an expert and keeps what a verifier accepts (rejection sampling; DeepSeek-V3, §5.1).
//!
//! Reads a `checkpoint` (the expert) and `prompts`, writes `conversations` in two forms, <problem, original answer> and <system prompt,
//! problem, long answer>, and all `samples`. A prompt of which no sample is accepted is dropped. From the long conversations the system
//! prompt can be left out for a share: a model that never answered at length without it cannot learn to by reinforcement.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::{Loaded, fault, with_system};
use smelt_generate::{Completion, Finish, Generator, Request, Sampling};
use smelt_kernels::{Cpu, random};
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Conversation, Conversations, Drops, Message, Prompt, Prompts, Sample, Samples};
use smelt_stage::{Artifact, Context, Cores, Error, Estimate, Source, Stage, Unit};
use smelt_text::Chat;
use smelt_verify::{Score, Verifier};
use std::collections::BTreeMap;

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Answers drawn per prompt.
    pub samples: u32,
    pub temperature: f64,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// What an answer has to be.
    pub keep: Keep,
    /// Prompts with which the expert is asked: empty for none.
    pub expert_system: String,
    /// The system prompt of long conversations.
    pub system: String,
    /// Share of the long conversations that are written without it, in [0, 1].
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

pub struct Distill;

/// Prompts of one unit: the composition of a batch is part of no answer, but it is the piece of work that a kill costs.
const UNIT: usize = 32;

impl Stage for Distill {
    const NAME: &'static str = "distill";
    const VERSION: u32 = 2; // exp in fused multiply-adds
    const ABOUT: &'static str = "Samples an expert and keeps the answers that a verifier accepts";
    const ROWS: &'static str = "conversations";
    const CORES: Cores = Cores::All;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if config.samples == 0 || config.max_tokens == 0 {
            return Err(Error::config("", "`samples` and `max_tokens` must be at least 1"));
        }
        if !(0.0..=1.0).contains(&config.drop_system) {
            return Err(Error::config("/drop_system", format!("{} is no share, expected 0 to 1", config.drop_system)));
        }
        if !(config.temperature >= 0.0 && config.temperature.is_finite()) {
            return Err(Error::config("/temperature", format!("{} is no temperature", config.temperature)));
        }
        Ok(Vec::new())
    }

    fn estimate(config: &Config) -> Estimate {
        let (samples, tokens) = (f64::from(config.samples), config.max_tokens as f64);
        let details = [("answers_per_prompt", samples), ("answer_tokens_per_prompt_at_most", samples * tokens)];
        before_the_checkpoint(4.0, 2.0, &details, &["the number of prompts and their lengths come with the input"])
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let loaded = Loaded::open(&inputs.model)?;
        let chat = loaded.chat()?;
        let prompts: Vec<Prompt> = inputs.prompts.read_all().collect::<Result<_, _>>()?;
        let cpu = Cpu::new(1); // units run side by side
        let job = Job { config: &config, loaded: &loaded, chat: &chat, cpu: &cpu, out: &out };
        cx.units("sample", prompts.len().div_ceil(UNIT), |i, unit| {
            let rows = &prompts[i * UNIT..prompts.len().min((i + 1) * UNIT)];
            job.unit(i * UNIT, rows, unit)
        })?;
        Ok(())
    }
}

struct Job<'a> {
    config: &'a Config,
    loaded: &'a Loaded,
    chat: &'a Chat,
    cpu: &'a Cpu,
    out: &'a Outputs,
}

impl Job<'_> {
    /// Prompts `first..`: draws, judges, writes.
    fn unit(&self, first: usize, prompts: &[Prompt], unit: &mut Unit) -> Result<(), Error> {
        let (config, stop) = (self.config, self.chat.stop().map_err(fault)?);
        let system = (!config.expert_system.is_empty()).then_some(config.expert_system.as_str());
        let mut requests = Vec::new();
        for (i, row) in prompts.iter().enumerate() {
            let prompt = self.chat.prompt(&with_system(&row.messages, system)).map_err(fault)?;
            requests.extend((0..config.samples).map(|sample| Request {
                prompt: prompt.clone(),
                seed: random::bits(config.seed, (first + i) as u64, sample.into()),
                sampling: Sampling {
                    temperature: config.temperature,
                    max_tokens: config.max_tokens,
                    stop: vec![stop],
                    ..Sampling::default()
                },
            }));
        }
        let Loaded { model, params, .. } = self.loaded;
        let generator = Generator::new(model, params, self.cpu, 128);
        let completions = generator.run(&requests).map_err(fault)?;
        for ((i, row), completions) in prompts.iter().enumerate().zip(completions.chunks(config.samples as usize)) {
            unit.count_read(1);
            self.prompt((first + i) as u64, row, completions, unit)?;
        }
        Ok(())
    }

    fn prompt(&self, index: u64, row: &Prompt, completions: &[Completion], unit: &mut Unit) -> Result<(), Error> {
        let verifier: Verifier = row.verifier.parse().map_err(fault)?;
        let mut best: Option<String> = None;
        let mut scorable = false;
        for (sample, completion) in completions.iter().enumerate() {
            let text = self.chat.tokenizer.decode(&completion.tokens).map_err(fault)?;
            let score = verifier.score(&row.answer, &text);
            scorable |= score.is_some();
            if score.is_some_and(|score| self.accepts(completion, score))
                && best.as_ref().is_none_or(|best| text.len() < best.len())
            {
                best = Some(text.clone());
            }
            let reward = score.map(Score::reward);
            let finish = if completion.finish == Finish::Stop { "stop" } else { "length" };
            let sample = Sample {
                prompt: row.id.clone(),
                sample: sample as u32,
                completion: text,
                ids: completion.tokens.clone(),
                logp: completion.logp.iter().map(|&x| x as f32).collect(),
                reward,
                finish: finish.into(),
            };
            unit.write(&self.out.samples, sample)?;
        }
        let Some(best) = best else {
            let rule = if scorable { "no_accepted_answer" } else { "unscorable" };
            return unit.drop_row(&self.out.drops, &row.id, rule, None, None);
        };
        let config = self.config;
        let has_system = random::uniform(config.seed, 0x5e5, index) >= config.drop_system;
        let conversation = |kind: &str, system: Option<&str>, answer: &str, checkpoint: Option<String>| {
            let user = row.messages.iter().filter(|message| message.role != "system").cloned();
            let system = system.map(|text| Message::new("system", text));
            let messages = system.into_iter().chain(user).chain([Message::new("assistant", answer)]).collect();
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

    fn accepts(&self, completion: &Completion, score: Score) -> bool {
        let is_right = match self.config.keep {
            Keep::Answer => score.right,
            Keep::EveryStep => score.every_step,
        };
        completion.finish == Finish::Stop && is_right
    }
}
