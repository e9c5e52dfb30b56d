//! One step: ask, answer, reward, update.

use crate::Config;
use crate::guard::Guard;
use serde_json::Value;
use smelt_answer::{Answer, Asker, Question, Scorer, logprobs};
use smelt_checkpoint::{Loaded, fault};
use smelt_kernels::{math, random};
use smelt_loop::{Figures, TokensAtOnce, Training};
use smelt_model::{Batch, Params};
use smelt_stage::kinds::{Prompt, Sample};
use smelt_stage::{Context, Error};
use smelt_train::{Example, Grpo, Objective, Trainer, group_advantages, masked_batch, micro_batches, sample};

pub(crate) struct Policy<'a> {
    pub config: &'a Config,
    pub prompts: &'a [Prompt],
    pub held_out: &'a [Prompt],
    pub asker: &'a Asker<'a>,
    pub scorer: &'a Scorer,
    pub tokens_at_once: usize,
    pub reward: Option<&'a Loaded>,
    pub reference: &'a Params,
    pub guard: Guard,
    pub last: Option<Rollout>,
    /// Steps of this process in which no group had spread.
    pub flat: u64,
}

/// Answers of one step, each with what it earned; groups stand one after the other.
pub(crate) struct Rollout(Vec<Answer>);

type Values = Vec<(&'static str, f64)>;

impl Training for Policy<'_> {
    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error> {
        let rollout = self.rollout(trainer)?;
        let values = self.update(&rollout, trainer)?;
        let find = |name| values.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
        let get = |name| find(name).unwrap_or(0.0);
        let note = format!("reward {:.3}, right {:.0} %, KL {:.3}", get("reward"), 100.0 * get("right"), get("kl"));
        self.guard.check(self.config, trainer.steps(), get("kl"), get("truncated"), find("entropy"))?;
        self.flat += u64::from(get("used") == 0.0);
        self.last = Some(rollout);
        Ok(Figures::new(&values, note))
    }

    fn evaluate(&self, trainer: &Trainer) -> Result<Values, Error> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let greedy = |prompt| Question { prompt, sample: 0, seed: 0, temperature: 0.0 };
        let questions: Vec<Question> = self.held_out.iter().map(greedy).collect();
        let (answers, _) = self.asker.ask(trainer.result(), &questions, 0.0)?;
        let mut right = 0.0;
        for (answer, row) in answers.iter().zip(self.held_out) {
            right += f64::from(u8::from(answer.judged(row)?.is_right));
        }
        Ok(vec![("validation_right", right / answers.len() as f64)])
    }

    fn tokens_at_once(&mut self) -> Option<&mut usize> {
        (self.config.micro_batch_tokens == TokensAtOnce::Auto).then_some(&mut self.tokens_at_once)
    }

    fn memory(&self) -> Value {
        self.guard.save()
    }

    fn remember(&mut self, memory: Value) -> Result<(), Error> {
        self.guard = Guard::restore(memory)?;
        Ok(())
    }
}

impl Policy<'_> {
    /// Says so when the training had nothing to learn from.
    pub(crate) fn warn_if_flat(&self, cx: &Context) {
        if self.flat > 0 {
            let (flat, steps) = (self.flat, self.config.steps);
            cx.warn(&format!(
                "{flat} of {steps} steps changed nothing: all answers of every group earned the same, so no group has \
                 spread; raise `group` or `temperature`, or take prompts that are answered right sometimes"
            ));
        }
    }

    /// Asks the policy as it is now.
    fn rollout(&self, trainer: &Trainer) -> Result<Rollout, Error> {
        let (config, step, group) = (self.config, trainer.steps(), self.config.group as u64);
        let row = |i| &self.prompts[sample(config.seed, step, config.prompts, i, self.prompts.len() as u64) as usize];
        let question = |at| {
            let seed = random::bits(config.seed, 0xa11 ^ (step << 16), at);
            let (prompt, sample) = (row(at / group), (at % group) as u32);
            Question { prompt, sample, seed, temperature: config.temperature }
        };
        let questions: Vec<Question> = (0..config.prompts * group).map(question).collect();
        let (mut answers, _) = self.asker.ask(trainer.params(), &questions, config.partial_credit)?;
        for (answer, question) in answers.iter().zip(&questions) {
            answer.judged(question.prompt)?;
        }
        if let Some(model) = self.reward {
            let examples: Vec<Example> = (answers.iter().zip(&questions))
                .map(|(answer, question)| self.scorer.example(&question.prompt.messages, &answer.ids))
                .collect::<Result<_, _>>()?;
            let backend = trainer.backend().as_ref();
            let scores = self.scorer.scores(&model.model, &model.params, backend, &examples, self.tokens_at_once)?;
            for (answer, score) in answers.iter_mut().zip(scores) {
                answer.reward = answer.reward.map(|rule| rule + config.reward_weight * math::sigmoid(score));
            }
        }
        Ok(Rollout(answers))
    }

    /// One optimizer step on the groups with spread, or a step without an update when there is none; returns the
    /// metrics.
    fn update(&self, rollout: &Rollout, trainer: &mut Trainer) -> Result<Values, Error> {
        let config = self.config;
        let advantages = group_advantages(&rollout.rewards(), config.group);
        let used: Vec<usize> = (0..advantages.len()).filter(|&i| advantages[i].is_some()).collect();
        let mut values = rollout.metrics();
        values.push(("used", used.len() as f64 / advantages.len() as f64));
        if used.is_empty() {
            trainer.skip();
            return Ok(values);
        }
        let answers: Vec<&Answer> = used.iter().map(|&i| &rollout.0[i]).collect();
        let examples: Vec<Example> =
            answers.iter().map(|answer| Example::new(&answer.prompt_ids, &answer.ids)).collect();
        let sequences = examples.iter().zip(&answers);
        let sequences: Vec<(&[u32], usize)> =
            sequences.map(|(example, answer)| (example.ids.as_slice(), answer.prompt_ids.len())).collect();
        let (backend, limit) = (trainer.backend().clone(), self.tokens_at_once);
        let reference =
            logprobs(trainer.model(), self.reference, backend.as_ref(), &sequences, limit, config.temperature)?;
        let mut parts: Vec<(Batch, Grpo)> = Vec::new();
        for part in micro_batches(examples.iter().map(|example| example.ids.len()), limit) {
            let mut grpo = Grpo { clip: config.clip, beta: config.beta, ..Grpo::default() };
            for at in part.clone() {
                let count = answers[at].ids.len();
                grpo.advantage.extend(std::iter::repeat_n(advantages[used[at]].unwrap_or(0.0), count));
                grpo.old.extend(&answers[at].logp);
                grpo.reference.extend(&reference[at]);
                grpo.weight.extend(std::iter::repeat_n(1.0 / (count * rollout.0.len()) as f64, count));
            }
            let batch = masked_batch(&examples[part]);
            parts.push((Batch { temperature: config.temperature, ..batch }, grpo));
        }
        let micro: Vec<(Batch, &dyn Objective)> =
            parts.iter().map(|(batch, grpo)| (batch.clone(), grpo as _)).collect();
        let report = trainer.step(&micro).map_err(fault)?;
        let share = used.len() as f64 / advantages.len() as f64; // the parts are means over all answers
        values.extend([
            ("loss", report.loss),
            ("kl", report.parts["kl"] / share),
            ("clipped", report.parts["clipped"] / share),
            ("entropy", report.parts["entropy"] / share),
            ("gradient_norm", report.gradient_norm),
            ("lr", report.lr),
        ]);
        Ok(values)
    }
}

impl Rollout {
    /// Every answer has a verdict, so it has a reward.
    fn rewards(&self) -> Vec<f64> {
        self.0.iter().map(|answer| answer.reward.unwrap_or(0.0)).collect()
    }

    fn metrics(&self) -> Values {
        let mean = |value: &dyn Fn(&Answer) -> f64| self.0.iter().map(value).sum::<f64>() / self.0.len() as f64;
        let flag = |is: bool| f64::from(u8::from(is));
        vec![
            ("reward", mean(&|answer| answer.reward.unwrap_or(0.0))),
            ("right", mean(&|answer| flag(answer.verdict.is_some_and(|verdict| verdict.is_right)))),
            ("tokens_per_answer", mean(&|answer| answer.ids.len() as f64)),
            ("truncated", mean(&|answer| flag(!answer.is_whole))),
        ]
    }

    /// Rewarded as the update saw them.
    pub(crate) fn samples(self) -> Vec<Sample> {
        self.0.into_iter().map(Answer::into_sample).collect()
    }
}
