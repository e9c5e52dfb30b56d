//! One step: ask, answer, reward, update.

use crate::Config;
use crate::guard::Guard;
use serde_json::Value;
use smelt_answer::{Answer, Asker, Judge, Question, logprobs};
use smelt_checkpoint::{Loaded, fault};
use smelt_kernels::{math, random};
use smelt_loop::{Figures, Training};
use smelt_model::{Batch, Params};
use smelt_stage::Error;
use smelt_stage::kinds::{Prompt, Sample};
use smelt_train::{Example, Grpo, Objective, Trainer, masked_batch, micro_batches, sample};

/// Below this a group's rewards count as equal.
const SPREAD: f64 = 1e-3;

pub(crate) struct Policy<'a> {
    pub config: &'a Config,
    pub prompts: &'a [Prompt],
    pub held_out: &'a [Prompt],
    pub asker: &'a Asker<'a>,
    pub judge: &'a Judge,
    pub reward: Option<&'a Loaded>,
    pub reference: &'a Params,
    pub guard: Guard,
    pub last: Option<Rollout>,
}

/// Answers of one step with what they earned.
pub(crate) struct Rollout {
    answers: Vec<Scored>,
    group: usize,
}

struct Scored {
    answer: Answer,
    is_right: bool,
    reward: f64,
}

type Values = Vec<(&'static str, f64)>;

impl Training for Policy<'_> {
    fn step(&mut self, trainer: &mut Trainer) -> Result<Figures, Error> {
        let rollout = self.rollout(trainer)?;
        let values = self.update(&rollout, trainer)?;
        let find = |name| values.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
        let get = |name| find(name).unwrap_or(0.0);
        let note = format!("reward {:.3}, right {:.0} %, KL {:.3}", get("reward"), 100.0 * get("right"), get("kl"));
        self.guard.check(self.config, trainer.steps(), get("kl"), get("truncated"), find("entropy"))?;
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

    fn memory(&self) -> Value {
        self.guard.save()
    }

    fn remember(&mut self, memory: Value) -> Result<(), Error> {
        self.guard = Guard::restore(memory)?;
        Ok(())
    }
}

impl Policy<'_> {
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
        let (answers, _) = self.asker.ask(trainer.params(), &questions, config.partial_credit)?;
        let mut scored = Vec::with_capacity(answers.len());
        for (answer, Question { prompt, .. }) in answers.into_iter().zip(&questions) {
            let verdict = answer.judged(prompt)?;
            let reward = verdict.reward(config.partial_credit);
            scored.push(Scored { answer, is_right: verdict.is_right, reward });
        }
        if let Some(model) = self.reward {
            let answers = scored.iter().zip(&questions);
            let examples: Vec<Example> = answers
                .map(|(scored, question)| self.judge.example(&question.prompt.messages, &scored.answer.ids))
                .collect::<Result<_, _>>()?;
            let backend = trainer.backend().as_ref();
            let scores = self.judge.scores(&model.model, &model.params, backend, &examples)?;
            for (scored, score) in scored.iter_mut().zip(scores) {
                scored.reward += config.reward_weight * math::sigmoid(score);
            }
        }
        Ok(Rollout { answers: scored, group: config.group })
    }

    /// One optimizer step on the groups with spread, or a step without an update when there is none; returns the
    /// metrics.
    fn update(&self, rollout: &Rollout, trainer: &mut Trainer) -> Result<Values, Error> {
        let (config, advantages) = (self.config, rollout.advantages());
        let used: Vec<usize> = (0..advantages.len()).filter(|&i| advantages[i].is_some()).collect();
        let mut values = rollout.metrics();
        values.push(("used", used.len() as f64 / advantages.len() as f64));
        if used.is_empty() {
            trainer.skip();
            return Ok(values);
        }
        let answers: Vec<&Answer> = used.iter().map(|&i| &rollout.answers[i].answer).collect();
        let examples: Vec<Example> =
            answers.iter().map(|answer| Example::new(&answer.prompt_ids, &answer.ids)).collect();
        let sequences = examples.iter().zip(&answers);
        let sequences: Vec<(&[u32], usize)> =
            sequences.map(|(example, answer)| (example.ids.as_slice(), answer.prompt_ids.len())).collect();
        let (backend, limit) = (trainer.backend().clone(), config.micro_batch_tokens);
        let reference = logprobs(trainer.model(), self.reference, backend.as_ref(), &sequences, limit)?;
        let mut parts: Vec<(Batch, Grpo)> = Vec::new();
        for part in micro_batches(examples.iter().map(|example| example.ids.len()), limit) {
            let mut grpo = Grpo { clip: config.clip, beta: config.beta, ..Grpo::default() };
            for at in part.clone() {
                let count = answers[at].ids.len();
                grpo.advantage.extend(std::iter::repeat_n(advantages[used[at]].unwrap_or(0.0), count));
                grpo.old.extend(&answers[at].logp);
                grpo.reference.extend(&reference[at]);
                grpo.weight.extend(std::iter::repeat_n(1.0 / (count * rollout.answers.len()) as f64, count));
            }
            parts.push((masked_batch(&examples[part]), grpo));
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
    /// (reward − mean) / (standard deviation + 1e-4) within each group; None for groups without spread.
    fn advantages(&self) -> Vec<Option<f64>> {
        let groups = self.answers.chunks(self.group);
        groups
            .flat_map(|group| {
                let n = group.len() as f64;
                let mean = group.iter().map(|answer| answer.reward).sum::<f64>() / n;
                let squares = group.iter().map(|answer| (answer.reward - mean) * (answer.reward - mean)).sum::<f64>();
                let deviation = (squares / (n - 1.0)).sqrt();
                group
                    .iter()
                    .map(move |answer| (deviation > SPREAD).then(|| (answer.reward - mean) / (deviation + 1e-4)))
            })
            .collect()
    }

    fn metrics(&self) -> Vec<(&'static str, f64)> {
        let mean =
            |value: &dyn Fn(&Scored) -> f64| self.answers.iter().map(value).sum::<f64>() / self.answers.len() as f64;
        let flag = |is: bool| f64::from(u8::from(is));
        vec![
            ("reward", mean(&|answer| answer.reward)),
            ("right", mean(&|answer| flag(answer.is_right))),
            ("tokens_per_answer", mean(&|scored| scored.answer.ids.len() as f64)),
            ("truncated", mean(&|scored| flag(!scored.answer.is_whole))),
        ]
    }

    /// Rewarded as the update saw them.
    pub(crate) fn samples(self) -> Vec<Sample> {
        let sample = |Scored { answer, reward, .. }| Answer { reward: Some(reward), ..answer }.into_sample();
        self.answers.into_iter().map(sample).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(reward: f64) -> Scored {
        let answer = Answer {
            prompt: "p".into(),
            sample: 0,
            prompt_ids: vec![0],
            ids: vec![1],
            logp: vec![-1.0],
            text: String::new(),
            is_whole: true,
            verdict: None,
            reward: None,
        };
        Scored { answer, is_right: false, reward }
    }

    #[test]
    fn advantages_are_normalised_within_groups_and_flat_groups_are_left_out() {
        let rollout = Rollout { answers: [1.0, 0.0, 0.5, 0.5].map(scored).into(), group: 2 };
        let found = rollout.advantages();
        assert!((found[0].unwrap() - 0.5 / (0.5f64.sqrt() + 1e-4)).abs() < 1e-12);
        assert_eq!(found[1].unwrap(), -found[0].unwrap());
        assert_eq!(found[2..], [None, None]);
    }
}
