//! What a model makes of answers that are given: log-probabilities, and a reward model's scores.

use smelt_checkpoint::{Loaded, fault, with_system};
use smelt_kernels::Backend;
use smelt_model::{Model, Params};
use smelt_stage::Error;
use smelt_stage::kinds::{Message, Preference};
use smelt_text::Chat;
use smelt_train::{Example, reward_scores};

/// Sequences with the place of the first token to score (at least 1), about `limit` tokens at a time. Returns the
/// log-probability of every token from there on.
pub fn logprobs(
    model: &Model,
    params: &Params,
    backend: &dyn Backend,
    sequences: &[(&[u32], usize)],
    limit: usize,
) -> Result<Vec<Vec<f64>>, Error> {
    smelt_generate::logprobs(model, params, backend, sequences, limit).map_err(fault)
}

/// How answers are put to a reward model: by a chat template, under a system prompt of its own, whatever the policy was
/// given.
#[derive(Debug)]
pub struct Scorer {
    chat: Chat,
    system: String,
    /// Tokens computed at once.
    limit: usize,
}

impl Scorer {
    /// `speaker`: the checkpoint whose template and tokenizer the answers are written with.
    pub fn new(speaker: &Loaded, system: &str, limit: usize) -> Result<Self, Error> {
        Ok(Self { chat: speaker.chat()?, system: system.into(), limit })
    }

    /// An answer that is given as ids, its end included.
    pub fn example(&self, messages: &[Message], answer: &[u32]) -> Result<Example, Error> {
        let prompt = self.chat.prompt(&with_system(messages, Some(&self.system))).map_err(fault)?;
        Ok(Example::new(&prompt, answer))
    }

    /// The chosen and the rejected answer of every pair, by turns.
    pub fn pairs<'p>(&self, rows: impl IntoIterator<Item = &'p Preference>) -> Result<Vec<Example>, Error> {
        let (mut examples, stop) = (Vec::new(), self.chat.stop().map_err(fault)?);
        for row in rows {
            let prompt = self.chat.prompt(&with_system(&row.messages, Some(&self.system))).map_err(fault)?;
            for answer in [&row.chosen, &row.rejected] {
                let mut ids = self.chat.tokenizer.encode(answer).map_err(fault)?;
                ids.push(stop);
                examples.push(Example::new(&prompt, &ids));
            }
        }
        Ok(examples)
    }

    /// One score per example.
    pub fn scores(
        &self,
        model: &Model,
        params: &Params,
        backend: &dyn Backend,
        examples: &[Example],
    ) -> Result<Vec<f64>, Error> {
        reward_scores(model, params, backend, examples, self.limit).map_err(fault)
    }

    /// Of each pair, whether the chosen answer scores higher than the rejected one.
    pub fn prefers(
        &self,
        model: &Model,
        params: &Params,
        backend: &dyn Backend,
        pairs: &[Example],
    ) -> Result<Vec<bool>, Error> {
        let scores = self.scores(model, params, backend, pairs)?;
        Ok(scores.chunks_exact(2).map(|pair| pair[0] > pair[1]).collect())
    }
}
