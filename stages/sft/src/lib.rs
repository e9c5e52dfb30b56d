//! `sft`: fine-tunes a checkpoint on conversations.
//!
//! Reads a `checkpoint` and `conversations`, writes a `checkpoint` with the chat template it was trained with. Only the assistant's
//! answers and the tokens that end them are learnt. Conversations that cannot be used are dropped, each with its reason.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::{Loaded, Storage, TextFiles, fault, messages, write};
use smelt_kernels::Cpu;
use smelt_model::Batch;
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Conversations, Drops, Metrics};
use smelt_stage::{Artifact, Context, Cores, Error, Estimate, Source, Stage};
use smelt_text::{CHAT_TEMPLATE, Chat, with_chat_template};
use smelt_train::{
    Decay, Example, Hyper, Masked, Objective, Schedule, Settings, Trainer, masked_batch, micro_batches, sample,
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
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs { model: Artifact<Checkpoint>, conversations: Vec<Artifact<Conversations>> }
}
smelt_stage::outputs! {
    pub struct Outputs { model: Port<Checkpoint>, drops: Port<Drops>, metrics: Port<Metrics> }
}

pub struct Sft;

/// A conversation that is not used: id, rule, detail.
type Dropped = (String, &'static str, String);

impl Stage for Sft {
    const NAME: &'static str = "sft";
    const VERSION: u32 = 3; // attention goes back from exponentials before they are divided by their sum
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
        let unknown = [
            "the conversations come with the input: there are `epochs` / `conversations_per_step` times as many steps as of them",
        ];
        before_the_checkpoint(config.optimizer.bytes_per_parameter(), 6.0, &details, &unknown)
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let loaded = Loaded::open(&inputs.model)?;
        let text = speaking(loaded.text, &config.chat_template)?;
        let chat = text.chat()?;
        let limit = loaded.model.config().max_position_embeddings;
        let (examples, dropped) = examples(&chat, &inputs.conversations, limit)?;
        if examples.is_empty() {
            return Err(Error::data("not one conversation can be trained on").hint("the port `drops` would say why"));
        }
        let steps = ((config.epochs * examples.len() as f64 / config.batch as f64) as u64).max(1);
        let schedule = Schedule::over(steps, config.lr, config.warmup, config.decay, config.floor);
        let settings = Settings { bias_speed: config.bias_speed, ..Settings::new(config.optimizer, schedule) };
        let mut trainer = Trainer::new(loaded.model, loaded.params, Arc::new(Cpu::new(cx.threads())), settings);
        if let Some((_, state)) = cx.saved_training()? {
            trainer.restore(&state).map_err(fault)?;
        }
        train(&config, steps, &examples, &mut trainer, cx)?;
        cx.single(|unit| {
            unit.count_read((examples.len() + dropped.len()) as u64);
            unit.count_written(examples.len() as u64);
            for (id, rule, detail) in &dropped {
                unit.drop_row(&out.drops, id, rule, None, Some(detail.clone()))?;
            }
            write(unit, &out.model, trainer.model(), trainer.result(), &text, config.storage)
        })
    }
}

/// The checkpoint's files with the chat template that is trained.
fn speaking(text: TextFiles, template: &str) -> Result<TextFiles, Error> {
    let has_own = text.chat().is_ok();
    if template.is_empty() && has_own {
        return Ok(text);
    }
    let template = if template.is_empty() { CHAT_TEMPLATE } else { template };
    Ok(TextFiles { config: with_chat_template(&text.config, template).map_err(fault)?, ..text })
}

fn examples(
    chat: &Chat,
    conversations: &[Artifact<Conversations>],
    limit: usize,
) -> Result<(Vec<Example>, Vec<Dropped>), Error> {
    let (mut examples, mut dropped) = (Vec::new(), Vec::new());
    for row in conversations.iter().flat_map(Artifact::read_all) {
        let row = row?;
        match chat.trained(&messages(&row.messages)) {
            Ok(trained) if trained.ids.len() > limit => {
                dropped.push((row.id, "too_long", format!("{} tokens, {limit} positions", trained.ids.len())));
            }
            Ok(trained) => examples.push(Example { ids: trained.ids, mask: trained.mask }),
            Err(error) => {
                let rule = match error {
                    smelt_text::Error::Nothing => "no_answer",
                    smelt_text::Error::Spelled { .. } => "special_token",
                    smelt_text::Error::Prefix { .. } | smelt_text::Error::Template { .. } => "template",
                    _ => return Err(fault(error)),
                };
                dropped.push((row.id, rule, error.to_string().lines().next().unwrap_or_default().to_owned()));
            }
        }
    }
    Ok((examples, dropped))
}

fn train(config: &Config, steps: u64, examples: &[Example], trainer: &mut Trainer, cx: &Context) -> Result<(), Error> {
    while trainer.steps() < steps {
        let step = trainer.steps();
        let place = |i| sample(config.seed, step, config.batch, i, examples.len() as u64) as usize;
        let chosen: Vec<&Example> = (0..config.batch).map(|i| &examples[place(i)]).collect();
        let lengths: Vec<usize> = chosen.iter().map(|example| example.ids.len()).collect();
        let objective = Masked { targets: chosen.iter().map(|example| example.targets()).sum() };
        let parts = micro_batches(&lengths, config.micro_batch_tokens);
        let micro: Vec<(Batch, &dyn Objective)> =
            parts.into_iter().map(|part| (masked_batch(chosen[part].iter().copied()), &objective as _)).collect();
        let report = trainer.step(&micro).map_err(fault)?;
        let values = [("loss", report.loss), ("gradient_norm", report.gradient_norm), ("lr", report.lr)];
        cx.metrics(report.step, &values);
        cx.progress("train", report.step, Some(steps), "steps", &format!("loss {:.3}", report.loss));
        if report.step < steps {
            cx.save_when_due(report.step, || trainer.save())?;
        }
    }
    Ok(())
}
