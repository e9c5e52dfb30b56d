//! `reward`: trains a reward model on pairs of a better and a worse answer (Bradley and Terry 1952).
//!
//! Reads a `checkpoint` and `preferences` that are given, or `prompts` to make some from, or both; writes a
//! `checkpoint` with a reward head, the `preferences` it learnt from and those held out. Of a pair that is made, the
//! better answer is the right solution, or one that `sampler` gave; the worse one is spoilt on purpose (a wrong step, a
//! slip in copying, a wrong last digit, a missing part, a repeated step) or a wrong one of `sampler`'s. The score reads
//! the answer under the row's own system message or else under the system prompt, whatever the policy will be given.
//! Pairs that cannot be used are dropped, each with its reason.

mod pairs;

use pairs::Made;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_answer::{Scorer, expect_by_row, nothing_left};
use smelt_checkpoint::{Loaded, Storage, Use, device, expect_one_tokenizer, fault, with_reward_head, write};
use smelt_kernels::{Backend, random};
use smelt_loop::{Ahead, Course, Figures, Step, TokensAtOnce, Training};
use smelt_model::{Init, Model, Params, Precision, Recomputed};
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Drops, Metrics, Preferences, Prompt, Prompts};
use smelt_stage::{Artifact, Context, Cores, Doctor, Error, Estimate, Source, Stage};
use smelt_train::{
    BradleyTerry, Decay, Example, Hyper, MicroBatch, Objective, Schedule, Settings, Trainer, Uploader, micro_batches,
    scored_batch,
};
use std::collections::BTreeMap;
use std::ops::Range;

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Pairs to learn from, spoilt on purpose; needs `prompts`.
    #[schemars(range(max = 1_000_000_000))]
    pub pairs: usize,
    /// Pairs held out: spoilt on purpose, or without `prompts` taken from the given ones, all of a prompt or none.
    #[schemars(range(max = 1_000_000_000))]
    pub held_out: usize,
    /// Pairs of each of the two, of right and wrong answers that `sampler` gave; needs that input.
    #[schemars(range(max = 1_000_000_000))]
    pub sampled: usize,
    /// Optimizer steps.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: u64,
    /// Pairs per step.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub batch: usize,
    /// Tokens computed at once; a step with more is cut into micro-batches of whole sequences. `auto` takes as many as
    /// the memory of the device allows.
    pub micro_batch_tokens: TokensAtOnce,
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    #[schemars(range(max = 1_000_000_000))]
    pub warmup: u64,
    /// Last learning rate as a share of the largest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub floor: f64,
    pub optimizer: Hyper,
    /// Of the products of linear layers, in training and in asking. `bf16` and `fp8` are for GPUs: the CPU is no faster
    /// with them.
    pub precision: Precision,
    /// What backward computes again instead of keeping it, which saves memory and changes no bit: `light` (outputs of
    /// norms, gated activations, rows sent to experts), `experts` (what each expert gives, too) or `full` (one more
    /// forward of each block).
    pub recompute: Recomputed,
    /// The system prompt under which answers are scored, for rows without one of their own.
    pub system: String,
    /// Tokens of a sampled answer at most.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_tokens: usize,
    /// Steps between two measurements of the accuracy on the held-out pairs; 0 measures before the first step and after
    /// the last.
    #[schemars(range(max = 1_000_000_000))]
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
            micro_batch_tokens: TokensAtOnce::Count(4096),
            lr: 7e-4,
            warmup: 20,
            floor: 0.1,
            optimizer: Hyper { beta2: 0.98, weight_decay: 0.01, ..Hyper::default() },
            precision: Precision::Fp32,
            recompute: Recomputed::None,
            system: "Think step by step.".into(),
            max_tokens: 68,
            evaluate_every: 0,
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        model: Artifact<Checkpoint>,
        prompts: Option<Artifact<Prompts>>,
        /// Given pairs to learn from.
        preferences: Vec<Artifact<Preferences>>,
        /// Given pairs that are held out.
        validation: Option<Artifact<Preferences>>,
        sampler: Option<Artifact<Checkpoint>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs {
        model: Port<Checkpoint>,
        preferences: Port<Preferences>,
        validation: Port<Preferences>,
        drops: Port<Drops>,
        metrics: Port<Metrics>,
    }
}

#[derive(Debug)]
pub struct Reward;

impl Stage for Reward {
    const NAME: &'static str = "reward";
    const VERSION: u32 = 6; // `precision`
    const ABOUT: &'static str = "Trains a reward model on pairs of answers";
    const ROWS: &'static str = "pairs";
    const CORES: Cores = Cores::All;
    const DEVICES: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        expect_by_row(config.precision)?;
        let given = |name: &str| inputs.get(name).is_some_and(|&n| n > 0);
        if !given("prompts") {
            // nothing to make pairs from: the effective config says so
            (config.pairs, config.sampled) = (0, 0);
        }
        if config.pairs + config.sampled == 0 && !given("preferences") && !inputs.is_empty() {
            return Err(Error::config(
                "/pairs",
                "there is nothing to learn from: no pairs are given and none are made",
            )
            .hint("connect `preferences`, or `prompts` and set `pairs` or `sampled` above 0"));
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
        let mut details = vec![("steps", steps), ("answers_trained_on", 2.0 * steps * config.batch as f64)];
        details.extend(config.micro_batch_tokens.count().map(|count| ("tokens_at_once", count as f64)));
        let unknown =
            ["the lengths of problems and answers come with the input", "a `sampler` holds 4 bytes per parameter more"];
        before_the_checkpoint(config.optimizer.bytes_per_parameter(), 6.0, &details, &unknown)
    }

    fn doctor() -> Doctor {
        device::needs_of::<Self>()
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let open = |checkpoint| Loaded::open(checkpoint)?.in_precision(config.precision);
        let loaded = open(&inputs.model)?;
        let sampler = inputs.sampler.as_ref().map(open).transpose()?;
        let digest = loaded.text.tokenizer_digest()?;
        let mut uses = vec![Use::new(inputs.model.label(), Some(digest.clone()))];
        let given = || inputs.preferences.iter().chain(&inputs.validation);
        uses.extend(given().map(|pairs| Use::new(pairs.label(), pairs.tokenizer().map(str::to_owned))));
        expect_one_tokenizer(&uses)?;
        cx.made_with_tokenizer(&out.preferences, &digest);
        cx.made_with_tokenizer(&out.validation, &digest);
        let prompts: Vec<Prompt> = inputs.prompts.iter().flat_map(Artifact::read_all).collect::<Result<_, _>>()?;
        let opened = device::open(cx, cx.threads(), config.precision)?;
        let backend = opened.backend.clone();
        let scorer = Scorer::new(&loaded, &config.system)?;
        let sampler = sampler.map(|sampler| sampler.on(backend.as_ref()));
        let mut made = Made::make(&config, &prompts, sampler.as_ref(), backend.as_ref())?;
        let (count_given, count_made) = made.add(
            &config,
            inputs.preferences.iter().flat_map(Artifact::read_all).collect::<Result<_, _>>()?,
            inputs.validation.as_ref().map(|pairs| pairs.read_all().collect::<Result<_, _>>()).transpose()?,
        );
        let (train, validation) = (scorer.pairs(made.train)?, scorer.pairs(made.validation)?);
        if train.rows.is_empty() {
            return Err(nothing_left("pairs", &train.unusable));
        }
        if validation.rows.is_empty() {
            cx.warn("no pair is held out, so there is no accuracy on pairs that were not learnt: raise `held_out`");
        }
        let (examples, held_out) = (&train.examples, &validation.examples);

        let init = Init { seed: config.seed, embedding: 0.02, router: 0.02, weight: None };
        let (model, params) = with_reward_head(&loaded, &init)?;
        let params = params.on(backend.as_ref());
        let schedule = Schedule::over(config.steps, config.lr, config.warmup, Decay::Linear, config.floor);
        let frozen = model.mtp_parameters().collect();
        let settings = Settings { frozen, recompute: config.recompute, ..Settings::new(config.optimizer, schedule) };
        let tokens_of_pair = |pair: &[Example]| pair.iter().map(|example| example.ids.len()).sum::<usize>();
        let step = Step {
            model: &model,
            hyper: &config.optimizer,
            recompute: config.recompute,
            sequences: config.batch,
            longest: examples.chunks(2).map(tokens_of_pair).max().unwrap_or(1),
            beside: sampler.as_ref().map_or(0, |sampler| 4 * sampler.params.count() as u64),
        };
        let tokens_at_once = config.micro_batch_tokens.on(&opened, &step, cx);
        let ahead = Ahead::default();
        let mut ranking = Ranking { config: &config, scorer: &scorer, examples, held_out, tokens_at_once, ahead };
        let is_measured = !ranking.held_out.is_empty();
        if is_measured {
            cx.result("accuracy_untrained", ranking.accuracy(&model, &params, backend.as_ref())?);
        }
        let mut trainer = Trainer::new(model, params, backend.clone(), settings);
        let course = Course { steps: config.steps, evaluate_every: config.evaluate_every };
        smelt_loop::run(cx, course, &mut trainer, &mut ranking)?;
        if is_measured {
            cx.result("accuracy", ranking.accuracy(trainer.model(), trainer.result(), backend.as_ref())?);
        }
        cx.single(|unit| {
            unit.count_read(count_given);
            unit.count_derived(count_made);
            for (port, pairs) in [(&out.preferences, &train), (&out.validation, &validation)] {
                for row in &pairs.rows {
                    unit.keep(port, row.clone())?;
                }
                for row in &pairs.unusable {
                    unit.drop_row(&out.drops, &row.id, row.rule, row.value, Some(row.detail.clone()))?;
                }
            }
            for row in &made.unusable {
                unit.count_read(1);
                unit.drop_row(&out.drops, &row.id, row.rule, row.value, Some(row.detail.clone()))?;
            }
            let weights = trainer.result().on_host(backend.as_ref());
            write(unit, &out.model, trainer.model(), &weights, &loaded.text, Storage::Fp32)
        })
    }
}

/// Examples 2i and 2i + 1 are a pair.
struct Ranking<'a> {
    config: &'a Config,
    scorer: &'a Scorer,
    examples: &'a [Example],
    held_out: &'a [Example],
    tokens_at_once: usize,
    ahead: Ahead<Vec<(MicroBatch, BradleyTerry)>>,
}

impl Ranking<'_> {
    /// Of step `step`, from 0.
    fn micro_batches(&self, step: u64, to: &Uploader) -> Vec<(MicroBatch, BradleyTerry)> {
        let (Self { config, examples, .. }, pairs) = (self, (self.examples.len() / 2) as u64);
        let chosen: Vec<[&Example; 2]> = (0..config.batch as u64)
            .map(|i| random::below(config.seed, 0xb7 ^ (step << 8), i, pairs) as usize)
            .map(|pair| [&examples[2 * pair], &examples[2 * pair + 1]])
            .collect();
        let lengths = chosen.iter().map(|[a, b]| a.ids.len() + b.ids.len());
        let part = |part: Range<usize>| {
            let (batch, scored) = scored_batch(chosen[part].iter().flatten().copied());
            (to.upload(batch), BradleyTerry { scored, pairs: config.batch })
        };
        micro_batches(lengths, self.tokens_at_once).into_iter().map(part).collect()
    }

    /// Share of the held-out pairs whose chosen answer scores higher.
    fn accuracy(&self, model: &Model, params: &Params, backend: &dyn Backend) -> Result<f64, Error> {
        let prefers = self.scorer.prefers(model, params, backend, self.held_out, self.tokens_at_once)?;
        Ok(prefers.iter().filter(|&&is_right| is_right).count() as f64 / prefers.len().max(1) as f64)
    }
}

impl Training for Ranking<'_> {
    fn tokens_at_once(&mut self) -> Option<&mut usize> {
        (self.config.micro_batch_tokens == TokensAtOnce::Auto).then_some(&mut self.tokens_at_once)
    }

    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error> {
        let step = trainer.steps();
        let parts = self.ahead.take(step).unwrap_or_else(|| self.micro_batches(step, &trainer.uploader()));
        let micro: Vec<(&MicroBatch, &dyn Objective)> =
            parts.iter().map(|(batch, objective)| (batch, objective as _)).collect();
        let mut next = None;
        let report = trainer.step_beside(&micro, |to| {
            next = (step + 1 < self.config.steps).then(|| self.micro_batches(step + 1, to));
        });
        let report = report.map_err(fault)?;
        self.ahead.put(step + 1, next);
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
