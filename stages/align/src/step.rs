//! One step: ask, answer, reward, update.

use crate::Config;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smelt_checkpoint::{Loaded, fault, with_system};
use smelt_generate::{Completion, Finish, Generator, Request, Sampling, logprobs};
use smelt_kernels::{math, random};
use smelt_model::{Batch, Params};
use smelt_stage::Error;
use smelt_stage::kinds::{Prompt, Sample};
use smelt_text::Chat;
use smelt_train::{Example, Grpo, Objective, Trainer, masked_batch, micro_batches, reward_scores, sample};
use smelt_verify::Verifier;

/// Below this a group's rewards count as equal.
const SPREAD: f64 = 1e-3;

pub struct Sampler<'a> {
    pub config: &'a Config,
    pub prompts: &'a [Prompt],
    pub chat: &'a Chat,
    pub reward: Option<&'a Loaded>,
    pub reference: &'a Params,
}

/// Answers of one step with what they earned.
pub struct Rollout {
    answers: Vec<Answer>,
    group: usize,
}

struct Answer {
    prompt_id: String,
    place: u32,
    prompt: Vec<u32>,
    completion: Completion,
    text: String,
    is_right: bool,
    reward: f64,
}

impl Sampler<'_> {
    /// Asks the policy as it is now.
    pub fn rollout(&self, step: u64, trainer: &Trainer) -> Result<Rollout, Error> {
        let (config, stop) = (self.config, self.chat.stop().map_err(fault)?);
        let system = (!config.system.is_empty()).then_some(config.system.as_str());
        let (mut requests, mut rows) = (Vec::new(), Vec::new());
        for i in 0..config.prompts {
            let row = &self.prompts[sample(config.seed, step, config.prompts, i, self.prompts.len() as u64) as usize];
            let prompt = self.chat.prompt(&with_system(&row.messages, system)).map_err(fault)?;
            for place in 0..config.group {
                let at = (i * config.group as u64) + place as u64;
                requests.push(Request {
                    prompt: prompt.clone(),
                    seed: random::bits(config.seed, 0xa11 ^ (step << 16), at),
                    sampling: Sampling {
                        temperature: config.temperature,
                        max_tokens: config.max_tokens,
                        stop: vec![stop],
                        ..Sampling::default()
                    },
                });
                rows.push((row, place as u32));
            }
        }
        let backend = trainer.backend().as_ref();
        let generator = Generator::new(trainer.model(), trainer.params(), backend, requests.len());
        let completions = generator.run(&requests).map_err(fault)?;
        let mut answers = Vec::with_capacity(requests.len());
        for ((request, completion), (row, place)) in requests.into_iter().zip(completions).zip(&rows) {
            let text = self.chat.tokenizer.decode(&completion.tokens).map_err(fault)?;
            let verifier: Verifier = row.verifier.parse().map_err(fault)?;
            let score = verifier.score(&row.answer, &text).ok_or_else(|| {
                Error::data(format!("prompt `{}` cannot be scored: its answer is `{}`", row.id, row.answer))
            })?;
            // an answer that was cut off is not right, whatever stands at its end
            let is_right = score.right && completion.finish == Finish::Stop;
            let reward = if is_right { 1.0 } else { config.partial_credit * score.leading_steps };
            let prompt_id = row.id.clone();
            answers.push(Answer {
                prompt_id,
                place: *place,
                prompt: request.prompt,
                completion,
                text,
                is_right,
                reward,
            });
        }
        if let Some(model) = self.reward.filter(|_| config.reward_weight != 0.0) {
            let mut examples = Vec::with_capacity(answers.len());
            for (answer, (row, _)) in answers.iter().zip(&rows) {
                let messages = with_system(&row.messages, Some(&config.reward_system));
                let prompt = self.chat.prompt(&messages).map_err(fault)?;
                examples.push(Example::new(&prompt, &answer.completion.tokens));
            }
            let scores = reward_scores(&model.model, &model.params, backend, &examples, config.micro_batch_tokens)
                .map_err(fault)?;
            for (answer, score) in answers.iter_mut().zip(scores) {
                answer.reward += config.reward_weight * math::sigmoid(score);
            }
        }
        Ok(Rollout { answers, group: config.group })
    }

    /// One optimizer step on the groups with spread; returns the metrics.
    pub fn update(&self, rollout: &Rollout, trainer: &mut Trainer) -> Result<Vec<(&'static str, f64)>, Error> {
        let (config, advantages) = (self.config, rollout.advantages());
        let used: Vec<usize> = (0..advantages.len()).filter(|&i| advantages[i].is_some()).collect();
        let mut values = rollout.metrics();
        values.push(("used", used.len() as f64 / advantages.len() as f64));
        if used.is_empty() {
            return Ok(values);
        }
        let examples: Vec<Example> = used
            .iter()
            .map(|&i| Example::new(&rollout.answers[i].prompt, &rollout.answers[i].completion.tokens))
            .collect();
        let sequences: Vec<(&[u32], usize)> = used
            .iter()
            .zip(&examples)
            .map(|(&i, example)| (example.ids.as_slice(), rollout.answers[i].prompt.len()))
            .collect();
        let backend = trainer.backend().clone();
        let limit = config.micro_batch_tokens;
        let reference =
            logprobs(trainer.model(), self.reference, backend.as_ref(), &sequences, limit).map_err(fault)?;
        let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        let mut parts: Vec<(Batch, Grpo)> = Vec::new();
        for part in micro_batches(&lengths, limit) {
            let mut grpo = Grpo { clip: config.clip, beta: config.beta, ..Grpo::default() };
            for at in part.clone() {
                let answer = &rollout.answers[used[at]];
                let count = answer.completion.tokens.len();
                grpo.advantage.extend(std::iter::repeat_n(advantages[used[at]].unwrap_or(0.0), count));
                grpo.old.extend(&answer.completion.logp);
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
            |value: &dyn Fn(&Answer) -> f64| self.answers.iter().map(value).sum::<f64>() / self.answers.len() as f64;
        let flag = |is: bool| f64::from(u8::from(is));
        vec![
            ("reward", mean(&|answer| answer.reward)),
            ("right", mean(&|answer| flag(answer.is_right))),
            ("tokens_per_answer", mean(&|answer| answer.completion.tokens.len() as f64)),
            ("truncated", mean(&|answer| flag(answer.completion.finish == Finish::Length))),
        ]
    }

    pub fn samples(self) -> Vec<Sample> {
        let sample = |answer: Answer| Sample {
            prompt: answer.prompt_id,
            sample: answer.place,
            completion: answer.text,
            ids: answer.completion.tokens,
            logp: answer.completion.logp.iter().map(|&x| x as f32).collect(),
            reward: Some(answer.reward),
            finish: if answer.completion.finish == Finish::Stop { "stop" } else { "length" }.into(),
        };
        self.answers.into_iter().map(sample).collect()
    }
}

/// Stops a training that has left its reference, lost its end, or collapsed. What it counts is part of every save: a training that was
/// killed stops at the same step as one that was not.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    truncated_steps: u64,
}

impl Guard {
    pub fn save(&self) -> Value {
        serde_json::json!(self)
    }

    /// Counts on from what was saved; anew where a save says nothing of it.
    pub fn restore(saved: Value) -> Result<Self, Error> {
        let saved: Option<Self> = serde_json::from_value(saved)
            .map_err(|e| Error::bug(format!("what a save says of the guard cannot be read: {e}")))?;
        Ok(saved.unwrap_or_default())
    }

    /// `entropy` in nats per token; none in a step whose groups had no spread.
    pub fn check(
        &mut self,
        config: &Config,
        step: u64,
        kl: f64,
        truncated: f64,
        entropy: Option<f64>,
    ) -> Result<(), Error> {
        if kl > config.max_kl {
            let what = format!("step {step}: the KL to the reference is {kl:.2} per token, above {}", config.max_kl);
            return Err(Error::config("/max_kl", what).hint("lower `lr` or raise `beta`"));
        }
        if let Some(entropy) = entropy.filter(|entropy| *entropy < config.min_entropy) {
            let least = config.min_entropy;
            let what = format!(
                "step {step}: the policy has collapsed: its entropy is {entropy:.3} nats per token, below {least}"
            );
            return Err(
                Error::config("/min_entropy", what).hint("lower `lr`, raise `beta`, or stop earlier by `steps`")
            );
        }
        self.truncated_steps = if truncated > config.max_truncated { self.truncated_steps + 1 } else { 0 };
        if self.truncated_steps >= 10 {
            let what = format!(
                "step {step}: for 10 steps more than {:.0} % of answers were cut off",
                100.0 * config.max_truncated
            );
            return Err(Error::config("/max_truncated", what)
                .hint("raise `max_tokens`, or look at `samples`: the answers may not end"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(reward: f64) -> Answer {
        let completion = Completion { tokens: vec![1], logp: vec![-1.0], finish: Finish::Stop, cut: None };
        Answer {
            prompt_id: "p".into(),
            place: 0,
            prompt: vec![0],
            completion,
            text: String::new(),
            is_right: false,
            reward,
        }
    }

    #[test]
    fn advantages_are_normalised_within_groups_and_flat_groups_are_left_out() {
        let rollout = Rollout { answers: [1.0, 0.0, 0.5, 0.5].map(answer).into(), group: 2 };
        let found = rollout.advantages();
        assert!((found[0].unwrap() - 0.5 / (0.5f64.sqrt() + 1e-4)).abs() < 1e-12);
        assert_eq!(found[1].unwrap(), -found[0].unwrap());
        assert_eq!(found[2..], [None, None]);
    }

    #[test]
    fn a_policy_that_runs_away_is_stopped() {
        let (config, mut guard) = (Config::default(), Guard::default());
        assert!(guard.check(&config, 1, 0.1, 0.2, None).is_ok());
        let error = guard.check(&config, 2, 9.0, 0.2, None).unwrap_err().to_string();
        assert_eq!(error, "step 2: the KL to the reference is 9.00 per token, above 5");
        assert!((3..12).all(|step| guard.check(&config, step, 0.1, 0.95, None).is_ok()));
        assert!(guard.check(&config, 12, 0.1, 0.95, None).is_err());
    }

    #[test]
    fn a_policy_that_collapses_is_stopped_when_asked_for() {
        let (config, mut guard) = (Config::default(), Guard::default());
        assert!(guard.check(&config, 1, 0.1, 0.0, Some(0.0)).is_ok(), "by default nobody looks");
        let config = Config { min_entropy: 0.05, ..config };
        assert!(guard.check(&config, 2, 0.1, 0.0, Some(0.05)).is_ok());
        assert!(guard.check(&config, 3, 0.1, 0.0, None).is_ok(), "a step without an update has no entropy");
        let error = guard.check(&config, 4, 0.1, 0.0, Some(0.0123)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "step 4: the policy has collapsed: its entropy is 0.012 nats per token, below 0.05"
        );
        assert_eq!(error.problem().field.as_deref(), Some("/min_entropy"));
    }

    #[test]
    fn a_guard_taken_up_from_a_save_counts_on() {
        let (config, mut guard) = (Config::default(), Guard::default());
        assert!((1..10).all(|step| guard.check(&config, step, 0.1, 0.95, None).is_ok()));
        let mut resumed = Guard::restore(guard.save()).unwrap();
        assert_eq!(resumed, guard);
        let [undisturbed, resumed] =
            [&mut guard, &mut resumed].map(|guard| guard.check(&config, 10, 0.1, 0.95, None).unwrap_err().to_string());
        assert_eq!(resumed, undisturbed);
        assert_eq!(Guard::restore(Value::Null).unwrap(), Guard::default(), "saves of before know no guard");
    }

    #[test]
    fn a_guard_that_is_not_asked_for_is_no_part_of_the_config() {
        let printed = serde_json::to_value(Config::default()).unwrap();
        assert!(printed.get("min_entropy").is_none(), "{printed}");
    }
}
