//! `pretrain`: trains a model on tokens, from nothing or from a checkpoint.
//!
//! Reads `tokens` and `tokenizer`, writes a `checkpoint`, the optimizer's `state`, and curves. Documents are packed end to end into
//! sequences of one length, attention and loss stay inside a document, and which sequences make up a step is a function of seed and
//! step: a job that was killed goes on from its last save to the same bits.

mod architecture;

pub use architecture::Architecture;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::{Loaded, fault, tokenizer, write};
use smelt_kernels::{Cpu, DType};
use smelt_model::{Batch, Init, Model, Precision};
use smelt_stage::kinds::{Checkpoint, Metrics, State, Tokenizer, Tokens};
use smelt_stage::{Artifact, Context, Cores, Error, Source, Stage};
use smelt_train::{Corpus, Decay, Hyper, NextToken, Objective, Schedule, Settings, Trainer, sample};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences per step.
    pub sequences: u64,
    /// Tokens per sequence.
    pub context: usize,
    /// Tokens computed at once; a step with more is cut into micro-batches of whole sequences.
    pub micro_batch_tokens: usize,
    /// Largest learning rate.
    pub lr: f64,
    /// Steps of linear warm-up, within `steps`.
    pub warmup: u64,
    /// Course after the warm-up.
    pub decay: Decay,
    /// Last learning rate as a share of the largest.
    pub floor: f64,
    pub optimizer: Hyper,
    /// Weight of the further tokens' loss, when the model has such modules.
    pub mtp_weight: f64,
    /// Weight of the sequence-wise balance loss.
    pub balance_loss: f64,
    /// Change of the routers' correction biases per step.
    pub bias_speed: f64,
    /// Of the products of linear layers. On the CPU `fp8` is emulated: it shows what training in FP8 does, at no gain in speed.
    #[serde(skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
    /// The model's sizes; not used with `init`.
    pub model: Architecture,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 1000,
            sequences: 16,
            context: 128,
            micro_batch_tokens: 16_384,
            lr: 3e-3,
            warmup: 50,
            decay: Decay::Cosine,
            floor: 0.05,
            optimizer: Hyper { beta2: 0.98, weight_decay: 0.05, ..Hyper::default() },
            mtp_weight: 0.3,
            balance_loss: 0.0,
            bias_speed: 1e-3,
            precision: Precision::Fp32,
            model: Architecture::default(),
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        tokens: Vec<Artifact<Tokens>>,
        tokenizer: Artifact<Tokenizer>,
        /// Goes on from this checkpoint instead of from nothing.
        init: Option<Artifact<Checkpoint>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs { model: Port<Checkpoint>, state: Port<State>, metrics: Port<Metrics> }
}

pub struct Pretrain;

impl Stage for Pretrain {
    const NAME: &'static str = "pretrain";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Trains a language model on tokens";
    const CORES: Cores = Cores::All;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if inputs.get("tokens").is_some_and(|&n| n == 0) {
            return Err(Error::config("", "`pretrain` reads tokens, but no input is given").hint("set `tokens: JOB`"));
        }
        let positive = [
            ("steps", config.steps as usize),
            ("sequences", config.sequences as usize),
            ("context", config.context),
            ("micro_batch_tokens", config.micro_batch_tokens),
        ];
        if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::config(&format!("/{field}"), format!("`{field}` is 0, expected at least 1")));
        }
        if !(config.lr.is_finite() && config.lr >= 0.0) {
            return Err(Error::config("/lr", format!("{} is no learning rate", config.lr)));
        }
        // sizes that contradict each other are found before anything runs; the vocabulary comes with the tokenizer
        let model = config.model.config(512, config.context);
        model.check().map_err(|error| Error::config("/model", error.to_string()))?;
        Ok(Vec::new())
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let text = tokenizer(&inputs.tokenizer)?;
        let (corpus, documents) = corpus(&inputs.tokens, &text.tokenizer)?;
        let (model, params) = match &inputs.init {
            Some(init) => {
                let loaded = Loaded::open(init)?;
                (loaded.model, loaded.params)
            }
            None => {
                let vocabulary = smelt_text::Tokenizer::from_bytes(&text.tokenizer).map_err(fault)?.vocabulary();
                let model = Model::new(config.model.config(vocabulary, config.context)).map_err(fault)?;
                let params = model.init(&Init { seed: config.seed, ..config.model.init() });
                (Arc::new(model), params)
            }
        };
        cx.result("parameters", params.count() as f64);
        let settings = Settings {
            hyper: config.optimizer,
            schedule: Schedule::over(config.steps, config.lr, config.warmup, config.decay, config.floor),
            balance_loss: config.balance_loss,
            bias_speed: config.bias_speed,
            precision: config.precision,
        };
        let mut trainer = Trainer::new(model, params, Arc::new(Cpu::new(cx.threads())), settings);
        if let Some((_, state)) = cx.saved_training()? {
            trainer.restore(&state).map_err(fault)?;
        }
        train(&config, &corpus, &mut trainer, cx)?;
        cx.single(|unit| {
            unit.count_read(documents);
            unit.count_written(documents);
            write(unit, &out.model, trainer.model(), trainer.params(), &text, DType::F32)?;
            unit.put(&out.state, "state.safetensors", &trainer.save())
        })
    }
}

/// All documents, each behind its `<|bos|>` and closed by `<|eos|>`; and how many there are.
fn corpus(tokens: &[Artifact<Tokens>], tokenizer: &[u8]) -> Result<(Corpus, u64), Error> {
    let tokenizer = smelt_text::Tokenizer::from_bytes(tokenizer).map_err(fault)?;
    let (bos, eos) = (tokenizer.bos().map_err(fault)?, tokenizer.eos().map_err(fault)?);
    let (mut corpus, mut documents) = (Corpus::default(), 0);
    for row in tokens.iter().flat_map(Artifact::read_all) {
        corpus.push(&[&[bos], row?.ids.as_slice(), &[eos]].concat());
        documents += 1;
    }
    if documents == 0 {
        return Err(Error::data("there is not one document to train on").hint("look at the drops of the jobs before"));
    }
    Ok((corpus, documents))
}

fn train(config: &Config, corpus: &Corpus, trainer: &mut Trainer, cx: &Context) -> Result<(), Error> {
    let windows = corpus.windows(config.context) as u64;
    let modules = trainer.model().config().num_nextn_predict_layers;
    let per_part = (config.micro_batch_tokens / config.context).max(1);
    let (started, first) = (Instant::now(), trainer.steps());
    while trainer.steps() < config.steps {
        let step = trainer.steps();
        let place = |i| sample(config.seed, step, config.sequences, i, windows) as usize;
        let pieces: Vec<Vec<&[u32]>> = (0..config.sequences).map(|i| corpus.window(place(i), config.context)).collect();
        let batches: Vec<Batch> = pieces.chunks(per_part).map(|part| Batch::next_token(&part.concat())).collect();
        let objective = NextToken::of(&batches, config.mtp_weight, modules);
        let micro: Vec<(Batch, &dyn Objective)> = batches.into_iter().map(|batch| (batch, &objective as _)).collect();
        let report = trainer.step(&micro).map_err(fault)?;
        let mut values = vec![
            ("loss", report.loss),
            ("gradient_norm", report.gradient_norm),
            ("lr", report.lr),
            ("max_violation", report.max_violation),
        ];
        values.extend(report.parts.iter().map(|(name, value)| (*name, *value)));
        cx.metrics(report.step, &values);
        let rate = (report.step - first) as f64 * (config.sequences as usize * config.context) as f64
            / started.elapsed().as_secs_f64().max(1e-9);
        cx.progress(
            "train",
            report.step,
            Some(config.steps),
            "steps",
            &format!("loss {:.3}, {rate:.0} tokens/s", report.loss),
        );
        if report.step < config.steps {
            cx.save_when_due(report.step, || trainer.save())?;
        }
    }
    Ok(())
}
