//! `pretrain`: trains a model on tokens, from nothing or from a checkpoint.
//!
//! Reads `tokens` and `tokenizer`, writes a `checkpoint`, the optimizer's `state`, and curves. Documents are packed end
//! to end into sequences of one length, attention and loss stay inside a document, and which sequences make up a step
//! is a function of seed and step: a job that was killed goes on from its last save to the same bits.

mod architecture;
mod corpus;

pub use architecture::Architecture;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::{Loaded, Storage, Use, about, device, expect_one_tokenizer, fault, tokenizer, write};
use smelt_kernels::Meta;
use smelt_loop::{Ahead, Course, Figures, Step, TokensAtOnce, Training};
use smelt_model::{Balance, BalanceCounts, BalanceScope, Batch, Init, Model, Precision, Recomputed, Work};
use smelt_stage::kinds::{self, Checkpoint, Metrics, State, Tokens};
use smelt_stage::{Artifact, Context, Cores, Doctor, Error, Estimate, Source, Stage};
use smelt_text::Tokenizer;
use smelt_train::{
    Batches, Decay, FillInMiddle, Hyper, Memory, MicroBatch, Mixture, NextToken, Objective, Packing, Ragged, Ramp,
    Report, Schedule, Settings, SpikeGuard, Tail, Trainer, Uploader, mean_loss,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::corpus::{Corpus, Frame};

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Optimizer steps.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: u64,
    /// Sequences per step.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub sequences: u64,
    /// Smaller steps at the start: `{ from: 4, steps: 100 }` grows from 4 sequences to `sequences` over 100 steps.
    pub ramp: Option<Ramp>,
    /// Tokens per sequence.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub context: usize,
    /// How documents become sequences; attention and loss stay inside a document in both.
    #[serde(skip_serializing_if = "is_concatenated")]
    pub packing: Packing,
    /// Tokens computed at once; a step with more is cut into micro-batches of whole sequences. `auto` takes as many as
    /// the memory of the device allows.
    pub micro_batch_tokens: TokensAtOnce,
    /// Largest learning rate.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Steps of linear warm-up, within `steps`.
    #[schemars(range(max = 1_000_000_000))]
    pub warmup: u64,
    /// Steps at the largest learning rate after the warm-up.
    #[schemars(range(max = 1_000_000_000))]
    pub constant: u64,
    /// Course after that, over the steps that the tails leave.
    pub decay: Decay,
    /// Last learning rate as a share of the largest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub floor: f64,
    /// The last steps of all, at constant rates: `[{ steps: 20, share: 0.1 }]`, shares of the largest rate.
    pub tails: Vec<Tail>,
    pub optimizer: Hyper,
    /// Weight of the MTP loss, when the model has MTP modules.
    #[schemars(range(min = 0.0))]
    pub mtp_weight: f64,
    /// Weight of the MTP loss from `mtp_switch` on, 0.1 unless set (DeepSeek-V3 goes from 0.3 to 0.1, §4.2).
    #[schemars(range(min = 0.0))]
    pub mtp_weight_late: f64,
    /// Share of the steps after which `mtp_weight_late` holds; 1, the default, is never.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mtp_switch: f64,
    /// Weight of the mean of the squared log-sum-exp of the logits.
    #[schemars(range(min = 0.0))]
    pub z_loss: f64,
    /// Weight of the balance loss.
    #[schemars(range(min = 0.0))]
    pub balance_loss: f64,
    /// Whether each sequence is to be balanced, or the tokens computed at once (see `micro_batch_tokens`) together.
    pub balance_scope: BalanceScope,
    /// Which experts of a token the balance loss counts.
    pub balance_counts: BalanceCounts,
    /// Change of the routers' correction biases per step.
    #[schemars(range(min = 0.0))]
    pub bias_speed: f64,
    /// Skips steps whose loss is a spike, and goes back after several: `{ window: 100, z: 6, patience: 3 }`.
    pub guard: Option<SpikeGuard>,
    /// Shares of the inputs in every stretch of training, in their order; empty takes all documents as one corpus.
    pub weights: Vec<f64>,
    /// Share of the documents whose middle comes last, to learn to complete between two ends (DeepSeek-V3: 0.1).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub fim_rate: f64,
    /// Of the products of linear layers. On the CPU `fp8` is emulated: it shows what training in FP8 does, at no gain
    /// in speed.
    pub precision: Precision,
    /// What backward computes again instead of keeping it, which saves memory and changes no bit: `light` (outputs of
    /// norms, gated activations, rows sent to experts), `experts` (what each expert gives, too) or `full` (one more
    /// forward of each block).
    pub recompute: Recomputed,
    /// The model's sizes; not used with `init`.
    pub model: Architecture,
    /// How the weights are written.
    pub storage: Storage,
    /// Steps between two evaluations on the input `validation`; 0 evaluates after the last step alone.
    #[schemars(range(max = 1_000_000_000))]
    pub evaluate_every: u64,
}

fn is_concatenated(packing: &Packing) -> bool {
    *packing == Packing::Concatenate
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 1000,
            sequences: 16,
            ramp: None,
            context: 128,
            packing: Packing::Concatenate,
            micro_batch_tokens: TokensAtOnce::Count(16_384),
            lr: 3e-3,
            warmup: 50,
            constant: 0,
            decay: Decay::Cosine,
            floor: 0.05,
            tails: Vec::new(),
            optimizer: Hyper { beta2: 0.98, weight_decay: 0.05, ..Hyper::default() },
            mtp_weight: 0.3,
            mtp_weight_late: 0.1,
            mtp_switch: 1.0,
            z_loss: 0.0,
            balance_loss: 0.0,
            balance_scope: BalanceScope::Sequence,
            balance_counts: BalanceCounts::Scores,
            bias_speed: 1e-3,
            guard: None,
            weights: Vec::new(),
            fim_rate: 0.0,
            precision: Precision::Fp32,
            recompute: Recomputed::None,
            model: Architecture::default(),
            storage: Storage::Fp32,
            evaluate_every: 0,
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        tokens: Vec<Artifact<Tokens>>,
        tokenizer: Artifact<kinds::Tokenizer>,
        /// Goes on from this checkpoint instead of from nothing.
        init: Option<Artifact<Checkpoint>>,
        /// Held out: its loss is measured while training.
        validation: Option<Artifact<Tokens>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs { model: Port<Checkpoint>, state: Port<State>, metrics: Port<Metrics> }
}

/// Tokens of a micro-batch whose memory is estimated.
const LARGEST_STEP: usize = 1 << 20;

/// Of an estimate.
const ASSUMED_VOCABULARY: usize = 4096;

#[derive(Debug)]
pub struct Pretrain;

impl Stage for Pretrain {
    const NAME: &'static str = "pretrain";
    const VERSION: u32 = 5; // with `init`, the checkpoint keeps that one's chat template and ends
    const ABOUT: &'static str = "Trains a language model on tokens";
    const CORES: Cores = Cores::All;
    const DEVICES: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if inputs.get("tokens").is_some_and(|&n| n == 0) {
            return Err(Error::config("", "`pretrain` reads tokens, but no input is given").hint("set `tokens: JOB`"));
        }
        let refuse = |field: &str, what: String| Err(Error::config(&format!("/{field}"), what));
        if let Some(ramp) = config.ramp
            && !(1..=config.sequences).contains(&ramp.from)
        {
            return refuse("ramp", format!("`from` is {}, expected 1 to `sequences`, {}", ramp.from, config.sequences));
        }
        if !config.weights.is_empty() {
            let found = inputs.get("tokens").copied().unwrap_or_default();
            if config.weights.len() != found {
                return refuse("weights", format!("{} weights for {found} inputs of `tokens`", config.weights.len()));
            }
            if let Some(weight) = config.weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
                return refuse("weights", format!("{weight} is no share, expected more than 0"));
            }
        }
        // sizes that contradict each other are found before anything runs; the vocabulary comes with the tokenizer
        let model = config.model.config(512, config.context);
        model.map_err(|error| Error::in_config("/model", &error))?;
        Ok(Vec::new())
    }

    fn estimate(config: &Config) -> Estimate {
        Self::estimate_with(config, None)
    }

    fn estimate_with(config: &Config, vocabulary: Option<usize>) -> Estimate {
        let mut estimate = Estimate::default();
        let tokens = config.batches().before(config.steps) as f64 * config.context as f64;
        let model = config.model.config(vocabulary.unwrap_or(ASSUMED_VOCABULARY), config.context).and_then(Model::new);
        if let Ok(model) = model.map(|model| model.in_precision(config.precision)) {
            let work = Work::of(&model, config.context);
            let context = config.context.max(1);
            let at_once = config.micro_batch_tokens.count().unwrap_or(context); // at least one sequence
            let together = (at_once / context).clamp(1, config.sequences.max(1) as usize);
            let Config { recompute, optimizer, .. } = config;
            // a step on shapes takes a list of its tokens
            let is_low = config.precision != Precision::Fp32;
            let memory = (together.saturating_mul(context) <= LARGEST_STEP).then(|| {
                let of = |meta| Memory::of(&meta, &model, optimizer, *recompute, [together, context]);
                [Meta::new(), Meta::of_gpu(is_low)].map(of)
            });
            let own = work.parameters as f64 * config.optimizer.bytes_per_parameter();
            if let Some([cpu, gpu]) = memory {
                // what the guard keeps, and a save has: all but the gradients
                let state = cpu.weights + cpu.optimizer;
                let kept = config.guard.map_or(0, |_| state);
                estimate.memory_bytes = Some(cpu.peak + kept);
                estimate.details.extend([
                    ("activations_bytes".to_owned(), cpu.activations as f64),
                    ("gpu_memory_bytes".into(), (gpu.peak + kept) as f64),
                    ("gpu_activations_bytes".into(), gpu.activations as f64),
                    ("gpu_save_host_bytes".into(), (state + kept) as f64),
                ]);
            }
            estimate.flops = Some(work.flops * tokens);
            estimate.details.extend([
                ("parameters".to_owned(), work.parameters as f64),
                ("active_parameters".to_owned(), work.active as f64),
                ("flops_per_token".to_owned(), work.flops),
                ("weights_gradients_moments_bytes".to_owned(), own),
            ]);
        }
        estimate.details.insert("tokens".into(), tokens);
        estimate.notes = vec![
            match vocabulary {
                Some(vocabulary) => format!("the vocabulary of {vocabulary} is that of the job that makes `tokenizer`"),
                None => format!("a vocabulary of {ASSUMED_VOCABULARY} is assumed: the real one comes with `tokenizer`"),
            },
            "with `init` the model comes with that".into(),
            "memory is the most that the tensors of a step take at once: `weights_gradients_moments_bytes`, \
             `activations_bytes` of a micro-batch (see `recompute`), what backward adds, and what a `guard` keeps; \
             `gpu_memory_bytes` is the \
             same on a GPU, whose attention keeps less, and which keeps weights in the precision of products too; a \
             save is copied beside the training to `gpu_save_host_bytes` of the host's memory, which are page-locked; \
             the corpus is read by pages, of which 64 MiB stay in the host's memory"
                .into(),
        ];
        estimate
    }

    fn doctor() -> Doctor {
        device::needs_of::<Self>()
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let text = tokenizer(&inputs.tokenizer)?;
        let mut uses = vec![Use::new(inputs.tokenizer.label(), Some(text.tokenizer_digest()?))];
        let tokens = inputs.tokens.iter().chain(&inputs.validation);
        uses.extend(tokens.map(|tokens| Use::new(tokens.label(), tokens.tokenizer().map(str::to_owned))));
        if let Some(init) = &inputs.init {
            uses.push(Use::new(init.label(), Some(about(init)?.1.tokenizer_digest()?)));
        }
        expect_one_tokenizer(&uses)?;
        let tokenizer = text.tokenizer()?;
        let data = Data::open(&config, &inputs.tokens, &tokenizer, cx.threads())?;
        let (model, params, text) = match &inputs.init {
            // with its own chat template and ends
            Some(init) => {
                let loaded = Loaded::open(init)?.in_precision(config.precision)?;
                (loaded.model, loaded.params, loaded.text)
            }
            None => {
                let model =
                    config.model.config(tokenizer.vocabulary(), config.context).and_then(Model::new).map_err(fault)?;
                let params = model.init(&Init { seed: config.seed, ..config.model.init() });
                (Arc::new(model.in_precision(config.precision)), params, text)
            }
        };
        cx.result("parameters", params.count() as f64);
        let balance = Balance {
            weight: config.balance_loss,
            scope: config.balance_scope,
            counts: config.balance_counts,
            mtp: true,
        };
        let settings = Settings {
            balance,
            bias_speed: config.bias_speed,
            guard: config.guard,
            recompute: config.recompute,
            ..Settings::new(config.optimizer, config.schedule())
        };
        let opened = device::open(cx, cx.threads(), config.precision)?;
        // a snapshot has all but the gradients
        let snapshot = ((config.optimizer.bytes_per_parameter() - 4.0) * params.count() as f64) as u64;
        let step = Step {
            model: &model,
            hyper: &config.optimizer,
            recompute: config.recompute,
            sequences: config.sequences as usize,
            longest: config.context,
            beside: config.guard.map_or(0, |_| snapshot),
        };
        let tokens_at_once = config.micro_batch_tokens.on(&opened, &step, cx);
        let mut trainer = Trainer::new(model, params, opened.backend, settings);
        let held_out = held_out(&config, inputs.validation.as_ref(), &tokenizer, cx.threads())?;
        let ahead = Ahead::default();
        let mut pretraining = Pretraining {
            config: &config,
            data: &data,
            held_out: held_out.as_ref(),
            cx,
            began: None,
            tokens_at_once,
            ahead,
        };
        let course = Course { steps: config.steps, evaluate_every: config.evaluate_every };
        smelt_loop::run(cx, course, &mut trainer, &mut pretraining)?;
        cx.single(|unit| {
            unit.count_read(data.corpus.documents());
            unit.count_written(data.corpus.documents());
            let weights = trainer.result().on_host(trainer.backend().as_ref());
            write(unit, &out.model, trainer.model(), &weights, &text, config.storage)?;
            let mut state = unit.file(&out.state, "state.safetensors")?;
            let written = trainer.write_part(0, 1, &mut state);
            written.map_err(|e| state.error(e))?;
            state.finish(unit)
        })
    }
}

impl Config {
    fn schedule(&self) -> Schedule {
        let warmup = self.warmup.min(self.steps);
        let constant = self.constant.min(self.steps - warmup);
        let tails: u64 = self.tails.iter().map(|tail| tail.steps).sum();
        Schedule {
            peak: self.lr,
            warmup,
            constant,
            decay: (self.steps - warmup - constant).saturating_sub(tails),
            shape: self.decay,
            floor: self.floor,
            tails: self.tails.clone(),
        }
    }

    fn batches(&self) -> Batches {
        Batches { sequences: self.sequences, ramp: self.ramp }
    }

    /// Weight of the MTP loss in step `step`, from 0.
    fn mtp_weight_at(&self, step: u64) -> f64 {
        if step as f64 >= self.mtp_switch * self.steps as f64 { self.mtp_weight_late } else { self.mtp_weight }
    }
}

/// What is held out, without fill-in-the-middle.
fn held_out(
    config: &Config,
    tokens: Option<&Artifact<Tokens>>,
    tokenizer: &Tokenizer,
    threads: usize,
) -> Result<Option<Corpus>, Error> {
    let Some(tokens) = tokens else { return Ok(None) };
    let frame = Frame { bos: tokenizer.bos().map_err(fault)?, eos: tokenizer.eos().map_err(fault)?, fim: None };
    Corpus::open(std::slice::from_ref(tokens), &[1], frame, (Packing::Concatenate, config.context), threads).map(Some)
}

/// What is trained on, and in which order.
struct Data {
    corpus: Corpus,
    mixture: Mixture,
}

impl Data {
    fn open(
        config: &Config,
        tokens: &[Artifact<Tokens>],
        tokenizer: &Tokenizer,
        threads: usize,
    ) -> Result<Self, Error> {
        let (bos, eos) = (tokenizer.bos().map_err(fault)?, tokenizer.eos().map_err(fault)?);
        let fim = match config.fim_rate > 0.0 {
            true => {
                let [begin, hole, end] = tokenizer.fim().map_err(fault)?;
                Some(FillInMiddle { seed: config.seed, rate: config.fim_rate, begin, hole, end })
            }
            false => None,
        };
        let is_one = config.weights.is_empty();
        let groups = if is_one { vec![tokens.len()] } else { vec![1; tokens.len()] };
        let corpus = Corpus::open(tokens, &groups, Frame { bos, eos, fim }, (config.packing, config.context), threads)?;
        let hint = "look at the drops of the jobs before";
        if corpus.documents() == 0 {
            return Err(Error::data("there is not one document to train on").hint(hint));
        }
        let sequences = corpus.sequences();
        if let Some(empty) = sequences.iter().position(|&count| count == 0) {
            return Err(Error::data(format!("input {empty} of `tokens` has not one document to train on")).hint(hint));
        }
        let weights = if is_one { &[1.0][..] } else { &config.weights };
        Ok(Self { mixture: Mixture::new(config.seed, &sequences, weights), corpus })
    }

    /// The pieces of documents of the sequence at place `at` of the whole training.
    fn sequence(&self, at: u64) -> Result<Ragged, Error> {
        let (group, sequence) = self.mixture.sample(at);
        self.corpus.sequence(group, sequence)
    }
}

/// Sequences as rows that each predict the next token.
fn batch(sequences: &[Ragged]) -> Batch {
    let pieces: Vec<&[u32]> = sequences.iter().flat_map(Ragged::lists).collect();
    Batch::next_token(&pieces)
}

struct Pretraining<'a> {
    config: &'a Config,
    data: &'a Data,
    held_out: Option<&'a Corpus>,
    cx: &'a Context,
    tokens_at_once: usize,
    ahead: Ahead<Vec<MicroBatch>>,
    /// When this process began, and with which step: what the rate of tokens is taken over.
    began: Option<(Instant, u64)>,
}

impl Pretraining<'_> {
    /// Of a micro-batch.
    fn sequences_at_once(&self) -> usize {
        (self.tokens_at_once / self.config.context).max(1)
    }

    /// Of step `step`, from 0.
    fn micro_batches(&self, step: u64, to: &Uploader) -> Result<Vec<MicroBatch>, Error> {
        let batches = self.config.batches();
        let places = batches.before(step)..batches.before(step) + batches.size(step);
        let sequences = places.map(|at| self.data.sequence(at)).collect::<Result<Vec<Ragged>, Error>>()?;
        Ok(sequences.chunks(self.sequences_at_once()).map(|part| to.upload(batch(part))).collect())
    }
}

impl Training for Pretraining<'_> {
    fn tokens_at_once(&mut self) -> Option<&mut usize> {
        (self.config.micro_batch_tokens == TokensAtOnce::Auto).then_some(&mut self.tokens_at_once)
    }

    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error> {
        let config = self.config;
        let (step, batches) = (trainer.steps(), config.batches());
        let (started, first) = *self.began.get_or_insert_with(|| (Instant::now(), step));
        let micro = match self.ahead.take(step) {
            Some(micro) => micro,
            None => self.micro_batches(step, &trainer.uploader())?,
        };
        let objective = NextToken { mtp_weight: config.mtp_weight_at(step), z: config.z_loss };
        let micro: Vec<(&MicroBatch, &dyn Objective)> = micro.iter().map(|batch| (batch, &objective as _)).collect();
        let mut next = None;
        let report = trainer.step_beside(&micro, |to| {
            next = (step + 1 < config.steps).then(|| self.micro_batches(step + 1, to));
        });
        let report = report.map_err(fault)?;
        self.ahead.put(step + 1, next.transpose()?);
        let sequences = batches.before(report.step) - batches.before(first);
        let rate = sequences as f64 * config.context as f64 / started.elapsed().as_secs_f64().max(1e-9);
        let note = format!("loss {:.3}, {rate:.0} tokens/s", report.loss);
        Ok(Figures { values: values(&report, config.steps, self.cx), note })
    }

    fn evaluate(&self, trainer: &Trainer) -> Result<Vec<(&'static str, f64)>, Error> {
        let Some(held_out) = self.held_out.filter(|corpus| corpus.documents() > 0) else { return Ok(Vec::new()) };
        let at_once = self.sequences_at_once() as u64;
        let count = held_out.sequences()[0];
        let unreadable = RefCell::new(None);
        let batches = (0..count.div_ceil(at_once)).map_while(|part| {
            let places = part * at_once..((part + 1) * at_once).min(count);
            let sequences = places.map(|i| held_out.sequence(0, i)).collect::<Result<Vec<Ragged>, Error>>();
            sequences.map(|sequences| batch(&sequences)).map_err(|e| unreadable.replace(Some(e))).ok()
        });
        let loss = mean_loss(trainer, batches).map_err(fault)?;
        unreadable.into_inner().map_or(Ok(vec![("validation_loss", loss)]), Err)
    }
}

/// Steps of a training at which the load of every expert is noted: they tell which ones are used, and cost little where
/// layers and experts are many.
const LOAD_POINTS: u64 = 64;

/// A step's figures as points of curves; per layer of experts the largest and the least load, as shares of the mean,
/// and at some of the `steps` the load of each: `expert_load.LAYER.EXPERT`.
fn values(report: &Report, steps: u64, cx: &Context) -> Vec<(String, f64)> {
    let mut values = vec![
        ("loss".to_owned(), report.loss),
        ("gradient_norm".into(), report.gradient_norm),
        ("lr".into(), report.lr),
        ("max_violation".into(), report.totals.max_violation()),
    ];
    values.extend(report.parts.iter().map(|(name, value)| ((*name).to_owned(), *value)));
    for (layer, loads) in &report.totals.loads {
        let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
        let share = |load: Option<&u64>| load.map_or(0.0, |&load| load as f64 / mean.max(1.0));
        values.push((format!("load_max.{layer}"), share(loads.iter().max())));
        values.push((format!("load_min.{layer}"), share(loads.iter().min())));
        if report.step.is_multiple_of((steps / LOAD_POINTS).max(1)) || report.step == steps {
            let of_expert = |(expert, load)| (format!("expert_load.{layer}.{expert}"), share(Some(load)));
            values.extend(loads.iter().enumerate().map(of_expert));
        }
    }
    if report.is_skipped {
        values.push(("skipped".into(), 1.0));
        cx.warn(&format!("step {}: the loss of {:.3} is a spike, the step is skipped", report.step, report.loss));
    }
    if let Some(updates) = report.went_back_to {
        cx.warn(&format!("step {}: the training goes back to what it was after {updates} updates", report.step));
    }
    values
}
