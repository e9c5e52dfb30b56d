//! `reward`: trains a reward model on pairs of a better and a worse answer (Bradley and Terry 1952).
//!
//! Reads a `checkpoint` and `prompts`, writes a `checkpoint` with a reward head, the `preferences` it learnt from and
//! those held out. The better answer is the right solution, or one that `sampler` gave; the worse one is spoilt on
//! purpose (a wrong step, a slip in copying, a wrong last digit, a missing part, a repeated step) or a wrong one of
//! `sampler`'s. The score reads the answer under the system prompt, whatever the policy will be given.

mod pairs;

use pairs::Pairs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_answer::Scorer;
use smelt_checkpoint::{Loaded, Storage, fault, with_reward_head, write};
use smelt_kernels::{Backend, Cpu, random};
use smelt_loop::{Course, Figures, Training};
use smelt_model::{Batch, Init, Model, Params};
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Metrics, Preferences, Prompt, Prompts};
use smelt_stage::{Artifact, Context, Cores, Error, Estimate, Source, Stage};
use smelt_train::{
    BradleyTerry, Decay, Example, Hyper, Objective, Schedule, Settings, Trainer, micro_batches, scored_batch,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Pairs to learn from, spoilt on purpose.
    pub pairs: usize,
    /// Pairs held out, spoilt on purpose.
    pub held_out: usize,
    /// Pairs of each of the two, of right and wrong answers that `sampler` gave; needs that input.
    pub sampled: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Pairs per step.
    pub batch: usize,
    /// Tokens computed at once.
    pub micro_batch_tokens: usize,
    pub lr: f64,
    pub warmup: u64,
    /// Last learning rate as a share of the largest.
    pub floor: f64,
    pub optimizer: Hyper,
    /// The system prompt under which answers are scored.
    pub system: String,
    /// Tokens of a sampled answer at most.
    pub max_tokens: usize,
    /// Steps between two measurements of the accuracy on the held-out pairs; 0 measures before the first step and after
    /// the last.
    #[serde(skip_serializing_if = "smelt_stage::is_default")]
    pub evaluate_every: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            pairs: 1280,
            held_out: 240,
            sampled: 0,
            steps: 40,
            batch: 32,
            micro_batch_tokens: 4096,
            lr: 7e-4,
            warmup: 20,
            floor: 0.1,
            optimizer: Hyper { beta2: 0.98, weight_decay: 0.01, ..Hyper::default() },
            system: "Think step by step.".into(),
            max_tokens: 68,
            evaluate_every: 0,
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        model: Artifact<Checkpoint>,
        prompts: Artifact<Prompts>,
        sampler: Option<Artifact<Checkpoint>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs {
        model: Port<Checkpoint>,
        preferences: Port<Preferences>,
        validation: Port<Preferences>,
        metrics: Port<Metrics>,
    }
}

#[derive(Debug)]
pub struct Reward;

impl Stage for Reward {
    const NAME: &'static str = "reward";
    const VERSION: u32 = 4; // MTP modules no longer decay; sampled answers are whole, and end with a document too
    const ABOUT: &'static str = "Trains a reward model on pairs of answers";
    const ROWS: &'static str = "pairs";
    const CORES: Cores = Cores::All;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if config.pairs + config.sampled == 0 || config.batch == 0 {
            return Err(Error::config("/pairs", "there is nothing to learn from: `pairs`, `sampled` or `batch` is 0"));
        }
        if config.sampled > 0 && inputs.get("sampler").is_none_or(|&n| n == 0) {
            return Err(
                Error::config("/sampled", "sampled pairs need the input `sampler`").hint("connect it, or set 0")
            );
        }
        Ok(Vec::new())
    }

    fn estimate(config: &Config) -> Estimate {
        let steps = config.steps as f64;
        let details = [
            ("steps", steps),
            ("answers_trained_on", 2.0 * steps * config.batch as f64),
            ("tokens_at_once", config.micro_batch_tokens as f64),
        ];
        let unknown =
            ["the lengths of problems and answers come with the input", "a `sampler` holds 4 bytes per parameter more"];
        before_the_checkpoint(config.optimizer.bytes_per_parameter(), 6.0, &details, &unknown)
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let loaded = Loaded::open(&inputs.model)?;
        let sampler = inputs.sampler.as_ref().map(Loaded::open).transpose()?;
        let prompts: Vec<Prompt> = inputs.prompts.read_all().collect::<Result<_, _>>()?;
        let backend = Arc::new(Cpu::new(cx.threads()));
        let scorer = Scorer::new(&loaded, &config.system, config.micro_batch_tokens)?;
        let pairs = Pairs::make(&config, &prompts, sampler.as_ref(), backend.as_ref())?;
        let (examples, held_out) = (scorer.pairs(&pairs.train)?, scorer.pairs(&pairs.validation)?);

        let init = Init { seed: config.seed, embedding: 0.02, router: 0.02, weight: None };
        let (model, params) = with_reward_head(&loaded, &init)?;
        let schedule = Schedule::over(config.steps, config.lr, config.warmup, Decay::Linear, config.floor);
        let frozen = model.mtp_parameters().collect();
        let settings = Settings { frozen, ..Settings::new(config.optimizer, schedule) };
        let mut ranking = Ranking { config: &config, scorer: &scorer, examples: &examples, held_out: &held_out };
        cx.result("accuracy_untrained", ranking.accuracy(&model, &params, backend.as_ref())?);
        let mut trainer = Trainer::new(model, params, backend.clone(), settings);
        let course = Course { steps: config.steps, evaluate_every: config.evaluate_every };
        smelt_loop::run(cx, course, &mut trainer, &mut ranking)?;
        cx.result("accuracy", ranking.accuracy(trainer.model(), trainer.result(), backend.as_ref())?);
        cx.single(|unit| {
            for (port, rows) in [(&out.preferences, &pairs.train), (&out.validation, &pairs.validation)] {
                for row in rows {
                    unit.count_derived(1);
                    unit.keep(port, row.clone())?;
                }
            }
            write(unit, &out.model, trainer.model(), trainer.result(), &loaded.text, Storage::Fp32)
        })
    }
}

/// Examples 2i and 2i + 1 are a pair.
struct Ranking<'a> {
    config: &'a Config,
    scorer: &'a Scorer,
    examples: &'a [Example],
    held_out: &'a [Example],
}

impl Ranking<'_> {
    /// Share of the held-out pairs whose chosen answer scores higher.
    fn accuracy(&self, model: &Model, params: &Params, backend: &dyn Backend) -> Result<f64, Error> {
        let prefers = self.scorer.prefers(model, params, backend, self.held_out)?;
        Ok(prefers.iter().filter(|&&is_right| is_right).count() as f64 / prefers.len().max(1) as f64)
    }
}

impl Training for Ranking<'_> {
    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error> {
        let Self { config, examples, .. } = *self;
        let (step, pairs) = (trainer.steps(), (examples.len() / 2) as u64);
        let chosen: Vec<[&Example; 2]> = (0..config.batch as u64)
            .map(|i| random::below(config.seed, 0xb7 ^ (step << 8), i, pairs) as usize)
            .map(|pair| [&examples[2 * pair], &examples[2 * pair + 1]])
            .collect();
        let lengths = chosen.iter().map(|[a, b]| a.ids.len() + b.ids.len());
        let parts: Vec<(Batch, BradleyTerry)> = micro_batches(lengths, config.micro_batch_tokens)
            .into_iter()
            .map(|part| {
                let (batch, scored) = scored_batch(chosen[part].iter().flatten().copied());
                (batch, BradleyTerry { scored, pairs: config.batch })
            })
            .collect();
        let micro: Vec<(Batch, &dyn Objective)> =
            parts.iter().map(|(batch, objective)| (batch.clone(), objective as _)).collect();
        let report = trainer.step(&micro).map_err(fault)?;
        let accuracy = report.parts["accuracy"];
        let values = [
            ("loss", report.loss),
            ("pair_accuracy", accuracy),
            ("gradient_norm", report.gradient_norm),
            ("lr", report.lr),
        ];
        Ok(Figures::new(&values, format!("loss {:.3}, {:.0} % of pairs right", report.loss, 100.0 * accuracy)))
    }

    fn evaluate(&self, trainer: &Trainer) -> Result<Vec<(&'static str, f64)>, Error> {
        if self.config.evaluate_every == 0 || self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let accuracy = self.accuracy(trainer.model(), trainer.result(), trainer.backend().as_ref())?;
        Ok(vec![("validation_accuracy", accuracy)])
    }
}
