//! `align`: reinforcement learning with group-relative advantages (GRPO; Shao et al. 2024, DeepSeek-V3, §5.2).
//!
//! Reads a `checkpoint` (the policy to start from, which is also the reference), `prompts` and optionally a reward
//! model; writes a `checkpoint`, curves, and the `samples` of the last step. Every step asks some prompts, answers each
//! several times, rewards by rule and by the reward model, and moves the policy towards what was better than its
//! group's mean. Groups without spread say nothing and are left out.

mod guard;
mod step;

use guard::Guard;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_answer::{Asker, Prompting, Scorer, expect_by_row, nothing_left, write_unusable};
use smelt_checkpoint::{Loaded, Storage, Use, device, expect_one_tokenizer, write};
use smelt_loop::{Course, Step, TokensAtOnce};
use smelt_model::{Precision, Recomputed};
use smelt_stage::estimates::before_the_checkpoint;
use smelt_stage::kinds::{Checkpoint, Drops, Metrics, Prompts, Samples};
use smelt_stage::{Artifact, Context, Cores, Doctor, Error, Estimate, Source, Stage};
use smelt_train::{Decay, Hyper, Schedule, Settings, Trainer};
use std::collections::BTreeMap;
use step::{Policy, Rollout};

/// Defaults are the quickstart's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Rollouts, each with one update.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: u64,
    /// Prompts per step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub prompts: u64,
    /// Answers per prompt.
    #[schemars(range(min = 2, max = 1_000_000))]
    pub group: usize,
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub temperature: f64,
    /// Tokens of an answer at most.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_tokens: usize,
    /// Tokens computed at once; a step with more is cut into micro-batches of whole sequences. `auto` takes as many as
    /// the memory of the device allows.
    pub micro_batch_tokens: TokensAtOnce,
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    #[schemars(range(max = 1_000_000_000))]
    pub warmup: u64,
    /// Last learning rate as a share of the largest; the course is linear.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub floor: f64,
    pub optimizer: Hyper,
    /// Change of the routers' correction biases per step.
    #[schemars(range(min = 0.0))]
    pub bias_speed: f64,
    /// Of the products of linear layers, in training and in asking. `bf16` and `fp8` are for GPUs: the CPU is no faster
    /// with them.
    pub precision: Precision,
    /// What backward computes again instead of keeping it, which saves memory and changes no bit: `light` (outputs of
    /// norms, gated activations, rows sent to experts), `experts` (what each expert gives, too) or `full` (one more
    /// forward of each block).
    pub recompute: Recomputed,
    /// The ratio of new to old probability is clipped to 1 ± this.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub clip: f64,
    /// Weight of the KL to the reference.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// System prompt of the rollouts, for prompts without one of their own; empty asks without one.
    pub system: String,
    /// A right answer earns 1 by rule, a wrong one this times its share of leading right steps.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub partial_credit: f64,
    /// Weight of the reward model's sigmoid beside the rule.
    #[schemars(range(min = 0.0))]
    pub reward_weight: f64,
    /// System prompt under which the reward model scores, for prompts without one of their own.
    pub reward_system: String,
    /// Stop when the mean KL to the reference per token passes this.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_kl: f64,
    /// Stop when for ten steps in a row more than this share of answers is cut off.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_truncated: f64,
    /// Stop when the mean entropy of a step falls below this, in nats per token: the policy has collapsed onto single
    /// answers and groups have no spread. 0, the default, does not check.
    #[schemars(range(min = 0.0))]
    pub min_entropy: f64,
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
            steps: 60,
            prompts: 16,
            group: 8,
            temperature: 1.0,
            max_tokens: 68,
            micro_batch_tokens: TokensAtOnce::Count(4096),
            lr: 3e-4,
            warmup: 5,
            floor: 0.2,
            optimizer: Hyper { beta2: 0.95, weight_decay: 0.0, ..Hyper::default() },
            bias_speed: 1e-4,
            precision: Precision::Fp32,
            recompute: Recomputed::None,
            clip: 0.2,
            beta: 0.003,
            system: String::new(),
            partial_credit: 0.5,
            reward_weight: 0.5,
            reward_system: "Think step by step.".into(),
            max_kl: 5.0,
            max_truncated: 0.9,
            min_entropy: 0.0,
            storage: Storage::Fp32,
            evaluate_every: 0,
        }
    }
}

smelt_stage::inputs! {
    pub struct Inputs {
        model: Artifact<Checkpoint>,
        prompts: Artifact<Prompts>,
        reward: Option<Artifact<Checkpoint>>,
        /// Held out: how many of them are answered right, greedily, is measured while training.
        validation: Option<Artifact<Prompts>>,
    }
}
smelt_stage::outputs! {
    pub struct Outputs {
        model: Port<Checkpoint>, samples: Port<Samples>, drops: Port<Drops>, metrics: Port<Metrics>,
    }
}

#[derive(Debug)]
pub struct Align;

impl Stage for Align {
    const NAME: &'static str = "align";
    const VERSION: u32 = 6; // `precision`
    const ABOUT: &'static str = "Aligns a model by group-relative policy optimisation";
    const ROWS: &'static str = "samples";
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
        let answers = (config.steps * config.prompts) as f64 * config.group as f64;
        let mut details = vec![
            ("steps", config.steps as f64),
            ("answers", answers),
            ("answer_tokens_at_most", answers * config.max_tokens as f64),
        ];
        details.extend(config.micro_batch_tokens.count().map(|count| ("tokens_at_once", count as f64)));
        let unknown = [
            "the lengths of the problems come with the input",
            "a reward model holds 4 bytes per parameter more, and takes 2 FLOPs per parameter and token more",
        ];
        // the reference is a copy; sampling and the reference are passes of 2, the training is 6
        before_the_checkpoint(config.optimizer.bytes_per_parameter() + 4.0, 10.0, &details, &unknown)
    }

    fn doctor() -> Doctor {
        device::needs_of::<Self>()
    }

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let open = |checkpoint| Loaded::open(checkpoint)?.in_precision(config.precision);
        let loaded = open(&inputs.model)?.ending_turns()?;
        let reward = inputs.reward.as_ref().map(open).transpose()?;
        if reward.as_ref().is_some_and(|reward| !reward.model.config().reward_head) {
            return Err(
                Error::data("input `reward` is a checkpoint without a reward head").hint("connect a job of `reward`")
            );
        }
        let reward = reward.filter(|_| config.reward_weight != 0.0);
        if let (Some(port), Some(reward)) = (&inputs.reward, &reward) {
            // the reward model reads the policy's ids
            expect_one_tokenizer(&[
                Use::new(inputs.model.label(), Some(loaded.text.tokenizer_digest()?)),
                Use::new(port.label(), Some(reward.text.tokenizer_digest()?)),
            ])?;
        }
        let opened = device::open(cx, cx.threads(), config.precision)?;
        let backend = opened.backend.clone();
        let reward = reward.map(|reward| reward.on(backend.as_ref()));
        let scorer = Scorer::new(&loaded, &config.reward_system)?;
        let form = Prompting::Chat { system: (!config.system.is_empty()).then_some(config.system.as_str()) };
        let (model, text) = (loaded.model.clone(), &loaded.text);
        let mut asker = Asker::of(&model, text, backend.as_ref(), form, config.max_tokens, &[])?;
        let (prompts, unusable) = asker.usable(inputs.prompts.read_all())?;
        if prompts.is_empty() {
            return Err(nothing_left("prompts", &unusable));
        }
        let (held_out, left_out) = asker.usable(inputs.validation.iter().flat_map(Artifact::read_all))?;
        if let Some(first) = left_out.first() {
            let (count, all) = (left_out.len(), left_out.len() + held_out.len());
            cx.warn(&format!("{count} of {all} validation prompts are left out, the first as {}", first.rule));
        }
        asker.concurrency = config.prompts as usize * config.group;
        let reference = loaded.params.copy().on(backend.as_ref());
        let schedule = Schedule::over(config.steps, config.lr, config.warmup, Decay::Linear, config.floor);
        let frozen = loaded.model.mtp_parameters().collect();
        let Config { bias_speed, recompute, .. } = config;
        let settings = Settings { bias_speed, recompute, frozen, ..Settings::new(config.optimizer, schedule) };
        let other_models = [Some(&loaded), reward.as_ref()].into_iter().flatten(); // the reference is like the policy
        let step = Step {
            model: &loaded.model,
            hyper: &config.optimizer,
            recompute,
            sequences: config.prompts as usize * config.group,
            longest: asker.longest(&prompts)?,
            beside: other_models.map(|other| 4 * other.params.count() as u64).sum(),
        };
        let tokens_at_once = config.micro_batch_tokens.on(&opened, &step, cx);
        let mut trainer = Trainer::new(loaded.model.clone(), loaded.params, backend.clone(), settings);
        let mut policy = Policy {
            config: &config,
            prompts: &prompts,
            held_out: &held_out,
            asker: &asker,
            scorer: &scorer,
            tokens_at_once,
            reward: reward.as_ref(),
            reference: &reference,
            guard: Guard::default(),
            last: None,
            flat: 0,
        };
        let course = Course { steps: config.steps, evaluate_every: config.evaluate_every };
        smelt_loop::run(cx, course, &mut trainer, &mut policy)?;
        policy.warn_if_flat(cx);
        // saves lie before the last step, so every process that gets here has made it
        let rows = policy.last.map_or_else(Vec::new, Rollout::samples);
        cx.single(|unit| {
            write_unusable(unit, &out.drops, &unusable)?;
            for row in &rows {
                unit.count_derived(1);
                unit.keep(&out.samples, row.clone())?;
            }
            let weights = trainer.result().on_host(backend.as_ref());
            write(unit, &out.model, trainer.model(), &weights, &loaded.text, config.storage)
        })
    }
}
