//! `sft`: fine-tunes a checkpoint on conversations.
//!
//! Reads a `checkpoint` and `conversations`, writes a `checkpoint` with the chat template it was trained with. Only the
//! assistant's answers and the tokens that end them are learnt. Conversations that cannot be used are dropped, each
//! with its reason.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::{Loaded, Storage, fault, write};
use smelt_kernels::Cpu;
use smelt_loop::{Course, Figures, Training};
use smelt_model::Batch;
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Conversations, Drops, Metrics};
use smelt_stage::{Artifact, Context, Cores, Error, Estimate, Source, Stage};
use smelt_train::{
    Decay, Example, Hyper, Masked, Objective, Schedule, Settings, Trainer, masked_batch, mean_loss, micro_batches,
    sample,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Passes over the conversations.
    pub epochs: f64,
    /// Conversations per step.
    pub batch: u64,
    /// Tokens computed at once; a step with more is cut into micro-batches.
    pub micro_batch_tokens: usize,
    /// Largest learning rate.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Course after the warm-up.
    pub decay: Decay,
    /// Last learning rate as a share of the largest.
    pub floor: f64,
    pub optimizer: Hyper,
    /// Change of the routers' correction biases per step.
    pub bias_speed: f64,
    /// Jinja, as transformers renders it; empty keeps the checkpoint's, or takes our own when it has none.
    pub chat_template: String,
    /// How the weights are written.
    #[serde(skip_serializing_if = "smelt_stage::is_default")]
    pub storage: Storage,
    /// Steps between two evaluations on the input `validation`; 0 evaluates after the last step alone.
    #[serde(skip_serializing_if = "smelt_stage::is_default")]
    pub evaluate_every: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            epochs: 2.0,
            batch: 32,
            micro_batch_tokens: 4096,
            lr: 1e-3,
            warmup: 5,
            decay: Decay::Cosine,
            floor: 0.2,
            optimizer: Hyper { beta2: 0.98, weight_decay: 0.01, ..Hyper::default() },
            bias_speed: 1e-3,
            chat_template: String::new(),
            storage: Storage::Fp32,
            evaluate_every: 0,
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        model: Artifact<Checkpoint>,
        conversations: Vec<Artifact<Conversations>>,
        /// Held out: its loss is measured while training.
        validation: Option<Artifact<Conversations>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs { model: Port<Checkpoint>, drops: Port<Drops>, metrics: Port<Metrics> }
}

#[derive(Debug)]
pub struct Sft;

impl Stage for Sft {
    const NAME: &'static str = "sft";
    const VERSION: u32 = 4; // the MTP modules, which are not trained, no longer decay
    const ABOUT: &'static str = "Fine-tunes a model on conversations";
    const ROWS: &'static str = "conversations";
    const CORES: Cores = Cores::All;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if inputs.get("conversations").is_some_and(|&n| n == 0) {
            return Err(Error::config("", "`sft` reads conversations, but no input is given"));
        }
        if config.batch == 0 || !(config.epochs > 0.0 && config.epochs.is_finite()) {
            let (batch, epochs) = (config.batch, config.epochs);
            return Err(Error::config("", format!("`batch` is {batch} and `epochs` {epochs}, expected more than 0")));
        }
        Ok(Vec::new())
    }

    fn estimate(config: &Config) -> Estimate {
        let (batch, at_once) = (config.batch as f64, config.micro_batch_tokens as f64);
        let details = [("conversations_per_step", batch), ("tokens_at_once", at_once), ("epochs", config.epochs)];
        let unknown =
            ["the conversations come with the input: there are `epochs` / `conversations_per_step` times as many \
             steps as of them"];
        before_the_checkpoint(config.optimizer.bytes_per_parameter(), 6.0, &details, &unknown)
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let loaded = Loaded::open(&inputs.model)?;
        let text = loaded.text.speaking(&config.chat_template)?;
        let limit = loaded.model.config().max_position_embeddings;
        let conversations = inputs.conversations.iter().flat_map(Artifact::read_all);
        let (examples, unusable) = smelt_answer::examples(&text, conversations, limit)?;
        if examples.is_empty() {
            return Err(Error::data("not one conversation can be trained on").hint("the port `drops` would say why"));
        }
        let held_out = inputs.validation.iter().flat_map(Artifact::read_all);
        let (held_out, left_out) = smelt_answer::examples(&text, held_out, limit)?;
        if let Some(first) = left_out.first() {
            let (count, all) = (left_out.len(), left_out.len() + held_out.len());
            cx.warn(&format!("{count} of {all} validation conversations are left out, the first as {}", first.rule));
        }
        let steps = ((config.epochs * examples.len() as f64 / config.batch as f64) as u64).max(1);
        let schedule = Schedule::over(steps, config.lr, config.warmup, config.decay, config.floor);
        let frozen = loaded.model.mtp_parameters().collect();
        let settings = Settings { bias_speed: config.bias_speed, frozen, ..Settings::new(config.optimizer, schedule) };
        let mut trainer = Trainer::new(loaded.model, loaded.params, Arc::new(Cpu::new(cx.threads())), settings);
        let course = Course { steps, evaluate_every: config.evaluate_every };
        let mut tuning = Tuning { config: &config, examples: &examples, held_out: &held_out };
        smelt_loop::run(cx, course, &mut trainer, &mut tuning)?;
        cx.single(|unit| {
            unit.count_read((examples.len() + unusable.len()) as u64);
            unit.count_written(examples.len() as u64);
            for row in &unusable {
                unit.drop_row(&out.drops, &row.id, row.rule, None, Some(row.detail.clone()))?;
            }
            write(unit, &out.model, trainer.model(), trainer.result(), &text, config.storage)
        })
    }
}

struct Tuning<'a> {
    config: &'a Config,
    examples: &'a [Example],
    held_out: &'a [Example],
}

impl Training for Tuning<'_> {
    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error> {
        let Self { config, examples, .. } = *self;
        let place = |i| sample(config.seed, trainer.steps(), config.batch, i, examples.len() as u64) as usize;
        let chosen: Vec<&Example> = (0..config.batch).map(|i| &examples[place(i)]).collect();
        let parts = micro_batches(chosen.iter().map(|example| example.ids.len()), config.micro_batch_tokens);
        let micro: Vec<(Batch, &dyn Objective)> =
            parts.into_iter().map(|part| (masked_batch(chosen[part].iter().copied()), &Masked as _)).collect();
        let report = trainer.step(&micro).map_err(fault)?;
        let values = [("loss", report.loss), ("gradient_norm", report.gradient_norm), ("lr", report.lr)];
        Ok(Figures::new(&values, format!("loss {:.3}", report.loss)))
    }

    fn evaluate(&self, trainer: &Trainer) -> Result<Vec<(&'static str, f64)>, Error> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let lengths = self.held_out.iter().map(|example| example.ids.len());
        let parts = micro_batches(lengths, self.config.micro_batch_tokens);
        let batches = parts.into_iter().map(|part| masked_batch(&self.held_out[part]));
        Ok(vec![("validation_loss", mean_loss(trainer, batches).map_err(fault)?)])
    }
}
