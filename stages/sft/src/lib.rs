//! `sft`: fine-tunes a checkpoint on conversations.
//!
//! Reads a `checkpoint` and `conversations`, writes a `checkpoint` with the chat template it was trained with. Only the
//! assistant's answers and the tokens that end them are learnt, and the checkpoint's configs name the token that ends a
//! turn as its end. Conversations that cannot be used are dropped, each with its reason; so are single answers that the
//! template rewrites in longer chats, whose conversation is trained without them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_answer::{nothing_left, write_unusable};
use smelt_checkpoint::{Loaded, Storage, device, fault, write};
use smelt_loop::{Ahead, Course, Figures, Step, TokensAtOnce, Training};
use smelt_model::{Precision, Recomputed};
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Conversations, Drops, Metrics};
use smelt_stage::{Artifact, Context, Cores, Doctor, Error, Estimate, Source, Stage};
use smelt_train::{
    Decay, Example, Hyper, Masked, MicroBatch, Objective, Schedule, Settings, Trainer, Uploader, masked_batch,
    mean_loss, micro_batches, sample,
};
use std::collections::BTreeMap;

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Passes over the conversations: every pass trains each once. The last step has what is left.
    #[schemars(range(max = 1_000_000.0), extend("exclusiveMinimum" = 0.0))]
    pub epochs: f64,
    /// Conversations per step.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub batch: u64,
    /// Tokens computed at once; a step with more is cut into micro-batches of whole sequences. `auto` takes as many as
    /// the memory of the device allows.
    pub micro_batch_tokens: TokensAtOnce,
    /// Largest learning rate.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Steps of linear warm-up.
    #[schemars(range(max = 1_000_000_000))]
    pub warmup: u64,
    /// Course after the warm-up.
    pub decay: Decay,
    /// Last learning rate as a share of the largest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub floor: f64,
    pub optimizer: Hyper,
    /// Change of the routers' correction biases per step.
    #[schemars(range(min = 0.0))]
    pub bias_speed: f64,
    /// Of the products of linear layers. `bf16` and `fp8` are for GPUs: the CPU is no faster with them.
    pub precision: Precision,
    /// What backward computes again instead of keeping it, which saves memory and changes no bit: `light` (outputs of
    /// norms, gated activations, rows sent to experts), `experts` (what each expert gives, too) or `full` (one more
    /// forward of each block).
    pub recompute: Recomputed,
    /// Jinja, as transformers renders it; empty keeps the checkpoint's own, or takes smelt's when it has none.
    pub chat_template: String,
    /// How the weights are written.
    pub storage: Storage,
    /// Steps between two evaluations on the input `validation`; 0 evaluates after the last step alone.
    #[schemars(range(max = 1_000_000_000))]
    pub evaluate_every: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            epochs: 2.0,
            batch: 32,
            micro_batch_tokens: TokensAtOnce::Count(4096),
            lr: 1e-3,
            warmup: 5,
            decay: Decay::Cosine,
            floor: 0.2,
            optimizer: Hyper { beta2: 0.98, weight_decay: 0.01, ..Hyper::default() },
            bias_speed: 1e-3,
            precision: Precision::Fp32,
            recompute: Recomputed::None,
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
    const VERSION: u32 = 6; // `precision`
    const ABOUT: &'static str = "Fine-tunes a model on conversations";
    const ROWS: &'static str = "conversations";
    const CORES: Cores = Cores::All;
    const DEVICES: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(_config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if inputs.get("conversations").is_some_and(|&n| n == 0) {
            return Err(Error::config("", "`sft` reads conversations, but no input is given"));
        }
        Ok(Vec::new())
    }

    fn estimate(config: &Config) -> Estimate {
        let mut details = vec![("conversations_per_step", config.batch as f64), ("epochs", config.epochs)];
        details.extend(config.micro_batch_tokens.count().map(|count| ("tokens_at_once", count as f64)));
        let unknown =
            ["the conversations come with the input: there are `epochs` / `conversations_per_step` times as many \
             steps as of them"];
        before_the_checkpoint(config.optimizer.bytes_per_parameter(), 6.0, &details, &unknown)
    }

    fn doctor() -> Doctor {
        device::needs_of::<Self>()
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let loaded = Loaded::open(&inputs.model)?.in_precision(config.precision)?;
        let text = loaded.text.speaking(&config.chat_template)?;
        let loaded = Loaded { text, ..loaded }.ending_turns()?;
        let limit = loaded.model.config().max_position_embeddings;
        let conversations = inputs.conversations.iter().flat_map(Artifact::read_all);
        let read = smelt_answer::examples(&loaded.text, conversations, limit)?;
        let examples = &read.examples;
        if examples.is_empty() {
            return Err(nothing_left("conversations", &read.unusable));
        }
        if let Some(first) = read.without_thoughts.first() {
            let (some, all) = (read.without_thoughts.len(), examples.len());
            cx.warn(&format!(
                "the chat template leaves out the thoughts of answers in {some} of {all} conversations, such as \
                 `{first}`: they are not learnt"
            ));
        }
        let held_out = inputs.validation.iter().flat_map(Artifact::read_all);
        let held_out = smelt_answer::examples(&loaded.text, held_out, limit)?;
        if let Some(first) = held_out.unusable.first() {
            let (count, all) = (held_out.unusable.len(), held_out.unusable.len() + held_out.examples.len());
            cx.warn(&format!("{count} of {all} validation conversations are left out, the first as {}", first.rule));
        }
        let course = Epochs::new(config.epochs, examples.len(), config.batch);
        let steps = course.steps();
        cx.result("conversations_trained", course.places as f64);
        let schedule = Schedule::over(steps, config.lr, config.warmup, config.decay, config.floor);
        let frozen = loaded.model.mtp_parameters().collect();
        let Config { bias_speed, recompute, .. } = config;
        let settings = Settings { bias_speed, recompute, frozen, ..Settings::new(config.optimizer, schedule) };
        let opened = device::open(cx, cx.threads(), config.precision)?;
        let step = Step {
            model: &loaded.model,
            hyper: &config.optimizer,
            recompute: config.recompute,
            sequences: config.batch as usize,
            longest: examples.iter().map(|example| example.ids.len()).max().unwrap_or(1),
            beside: 0,
        };
        let tokens_at_once = config.micro_batch_tokens.on(&opened, &step, cx);
        let mut trainer = Trainer::new(loaded.model, loaded.params, opened.backend, settings);
        let ahead = Ahead::default();
        let mut tuning =
            Tuning { config: &config, course, examples, held_out: &held_out.examples, tokens_at_once, ahead };
        let loop_course = Course { steps, evaluate_every: config.evaluate_every };
        smelt_loop::run(cx, loop_course, &mut trainer, &mut tuning)?;
        cx.single(|unit| {
            let used = course.used();
            unit.count_read(examples.len() as u64);
            unit.count_written(used);
            if used < examples.len() as u64 {
                unit.count_dropped("beyond_epochs", examples.len() as u64 - used);
            }
            write_unusable(unit, &out.drops, &read.unusable)?;
            // single answers: more rows than were read
            for row in &read.untrained_answers {
                unit.count_derived(1);
                unit.drop_row(&out.drops, &row.id, row.rule, row.value, Some(row.detail.clone()))?;
            }
            let weights = trainer.result().on_host(trainer.backend().as_ref());
            write(unit, &out.model, trainer.model(), &weights, &loaded.text, config.storage)
        })
    }
}

/// Passes over examples in batches: pass after pass, each example once in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Epochs {
    examples: u64,
    batch: u64,
    /// Examples of all passes together.
    places: u64,
}

impl Epochs {
    fn new(epochs: f64, examples: usize, batch: u64) -> Self {
        let places = (epochs * examples as f64).round().max(1.0) as u64;
        Self { examples: examples as u64, batch, places }
    }

    fn steps(&self) -> u64 {
        self.places.div_ceil(self.batch)
    }

    /// Examples of step `step`, from 0: the last may have fewer.
    fn size(&self, step: u64) -> u64 {
        self.batch.min(self.places - step * self.batch)
    }

    /// Examples that are trained on at all.
    fn used(&self) -> u64 {
        self.places.min(self.examples)
    }
}

struct Tuning<'a> {
    config: &'a Config,
    course: Epochs,
    examples: &'a [Example],
    held_out: &'a [Example],
    tokens_at_once: usize,
    ahead: Ahead<Vec<MicroBatch>>,
}

impl Tuning<'_> {
    /// Of step `step`, from 0.
    fn micro_batches(&self, step: u64, to: &Uploader) -> Vec<MicroBatch> {
        let Self { config, course, examples, .. } = *self;
        let place = |i| sample(config.seed, step, config.batch, i, examples.len() as u64) as usize;
        let chosen: Vec<&Example> = (0..course.size(step)).map(|i| &examples[place(i)]).collect();
        let parts = micro_batches(chosen.iter().map(|example| example.ids.len()), self.tokens_at_once);
        parts.into_iter().map(|part| to.upload(masked_batch(chosen[part].iter().copied()))).collect()
    }
}

impl Training for Tuning<'_> {
    fn tokens_at_once(&mut self) -> Option<&mut usize> {
        (self.config.micro_batch_tokens == TokensAtOnce::Auto).then_some(&mut self.tokens_at_once)
    }

    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error> {
        let step = trainer.steps();
        let micro = self.ahead.take(step).unwrap_or_else(|| self.micro_batches(step, &trainer.uploader()));
        let micro: Vec<(&MicroBatch, &dyn Objective)> = micro.iter().map(|batch| (batch, &Masked as _)).collect();
        let mut next = None;
        let report = trainer.step_beside(&micro, |to| {
            next = (step + 1 < self.course.steps()).then(|| self.micro_batches(step + 1, to));
        });
        let report = report.map_err(fault)?;
        self.ahead.put(step + 1, next);
        let values = [("loss", report.loss), ("gradient_norm", report.gradient_norm), ("lr", report.lr)];
        Ok(Figures::new(&values, format!("loss {:.3}", report.loss)))
    }

    fn evaluate(&self, trainer: &Trainer) -> Result<Vec<(&'static str, f64)>, Error> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let lengths = self.held_out.iter().map(|example| example.ids.len());
        let parts = micro_batches(lengths, self.tokens_at_once);
        let batches = parts.into_iter().map(|part| masked_batch(&self.held_out[part]));
        Ok(vec![("validation_loss", mean_loss(trainer, batches).map_err(fault)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_trains_each_example_once() {
        for (epochs, examples, batch) in [(3.0, 10, 4), (1.0, 5, 8), (2.0, 8, 4), (0.5, 9, 2)] {
            let course = Epochs::new(epochs, examples, batch);
            let mut seen = vec![0u64; examples];
            for step in 0..course.steps() {
                assert!(course.size(step) > 0);
                (0..course.size(step)).for_each(|i| seen[sample(1, step, batch, i, examples as u64) as usize] += 1);
            }
            let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
            assert_eq!(seen.iter().sum::<u64>(), (epochs * examples as f64).round() as u64);
            assert!(most - least <= u64::from(epochs.fract() > 0.0), "{epochs} {seen:?}");
            assert_eq!(course.used(), seen.iter().filter(|&&times| times > 0).count() as u64);
        }
    }
}
