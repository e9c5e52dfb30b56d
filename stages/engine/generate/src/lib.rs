//! Sampling from the cache, and scoring of given sequences.
//!
//! A request's tokens and log-probabilities depend on model, prompt, seed and sampling alone: not on its batch-mates,
//! the batch's size or the threads. Rows of a product do not depend on each other, prefill and decoding are one form,
//! and every draw is a function of (seed, position).

mod generator;
mod sampler;
mod score;

pub use generator::{Batcher, Completion, Drafts, Finish, Generator, Request, Ticket};
pub use sampler::Sampling;
pub use score::logprobs;
