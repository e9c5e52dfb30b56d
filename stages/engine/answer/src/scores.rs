//! What a model makes of answers that are given: log-probabilities, and a reward model's scores.

use crate::Unusable;
use smelt_checkpoint::{Loaded, fault, with_system};
use smelt_kernels::Backend;
use smelt_model::{Model, Params};
use smelt_stage::Error;
use smelt_stage::kinds::{Message, Preference};
use smelt_text::Chat;
use smelt_train::{Example, reward_scores};

/// Sequences with the place of the first token to score (at least 1), about `limit` tokens at a time. Returns the
/// log-probability of every token from there on, of a sampler at `temperature`.
pub fn logprobs(
    model: &Model,
    params: &Params,
    backend: &dyn Backend,
    sequences: &[(&[u32], usize)],
    limit: usize,
    temperature: f64,
) -> Result<Vec<Vec<f64>>, Error> {
    smelt_generate::logprobs(model, params, backend, sequences, limit, temperature).map_err(fault)
}

/// How answers are put to a reward model: by a chat template, under the row's own system message, or else under a
/// system prompt of the reward model's, whatever the policy was given.
#[derive(Debug)]
pub struct Scorer {
    chat: Chat,
    system: String,
    positions: usize,
}

/// Pairs that can be scored.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    pub rows: Vec<Preference>,
    /// Chosen and rejected of each row, by turns.
    pub examples: Vec<Example>,
    pub unusable: Vec<Unusable>,
}

impl Scorer {
    /// `speaker`: the checkpoint whose template and tokenizer the answers are written with.
    pub fn new(speaker: &Loaded, system: &str) -> Result<Self, Error> {
        let positions = speaker.model.config().max_position_embeddings;
        Ok(Self { chat: speaker.chat()?, system: system.into(), positions })
    }

    /// An answer that is given as ids, its end included.
    pub fn example(&self, messages: &[Message], answer: &[u32]) -> Result<Example, Error> {
        let prompt = self.chat.prompt(&with_system(messages, Some(&self.system))).map_err(fault)?;
        Ok(Example::new(&prompt, answer))
    }

    /// The chosen and the rejected answer of every pair, by turns, and the pairs that cannot be scored.
    pub fn pairs(&self, rows: Vec<Preference>) -> Result<Pairs, Error> {
        let (mut pairs, stop) = (Pairs::default(), self.chat.stop().map_err(fault)?);
        for row in rows {
            match self.pair(&row, stop)? {
                Ok(examples) => {
                    pairs.examples.extend(examples);
                    pairs.rows.push(row);
                }
                Err(unusable) => pairs.unusable.push(unusable),
            }
        }
        Ok(pairs)
    }

    fn pair(&self, row: &Preference, stop: u32) -> Result<Result<[Example; 2], Unusable>, Error> {
        let prompt = match self.chat.prompt(&with_system(&row.messages, Some(&self.system))) {
            Ok(prompt) => prompt,
            Err(error) => return Ok(Err(Unusable::of_chat(&row.id, error)?)),
        };
        let encode = |answer: &str| self.chat.tokenizer.encode(answer).map_err(fault);
        let [chosen, rejected] = [encode(&row.chosen)?, encode(&row.rejected)?];
        if chosen == rejected {
            return Ok(Err(Unusable::new(&row.id, "equal_answers", "the chosen answer is the rejected one")));
        }
        let examples = [chosen, rejected].map(|mut answer| {
            answer.push(stop);
            Example::new(&prompt, &answer)
        });
        let longest = examples.iter().map(|example| example.ids.len()).max().unwrap_or(0);
        Ok(if longest > self.positions {
            Err(Unusable::too_long(&row.id, longest, self.positions))
        } else {
            Ok(examples)
        })
    }

    /// One score per example; about `limit` tokens are computed at once.
    pub fn scores(
        &self,
        model: &Model,
        params: &Params,
        backend: &dyn Backend,
        examples: &[Example],
        limit: usize,
    ) -> Result<Vec<f64>, Error> {
        reward_scores(model, params, backend, examples, limit).map_err(fault)
    }

    /// Of each pair, whether the chosen answer scores higher than the rejected one.
    pub fn prefers(
        &self,
        model: &Model,
        params: &Params,
        backend: &dyn Backend,
        pairs: &[Example],
        limit: usize,
    ) -> Result<Vec<bool>, Error> {
        let scores = self.scores(model, params, backend, pairs, limit)?;
        Ok(scores.chunks_exact(2).map(|pair| pair[0] > pair[1]).collect())
    }
}
