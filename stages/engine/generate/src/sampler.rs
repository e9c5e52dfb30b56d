//! How tokens are drawn.

use smelt_kernels::Draw;

#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token.
    pub temperature: f64,
    /// Draw from the smallest set of tokens that holds this share of the probability.
    pub top_p: f64,
    /// Draw from this many most probable tokens; 0 from all.
    pub top_k: usize,
    pub max_tokens: usize,
    /// Tokens that end the completion; they are part of it.
    pub stop: Vec<u32>,
    /// Texts that end the completion; its text ends before them. Empty strings are none.
    pub stop_strings: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, max_tokens: 256, stop: Vec::new(), stop_strings: Vec::new() }
    }
}

impl Sampling {
    /// Of row `row` of the logits, for place `place` of the completion with seed `seed`.
    pub(crate) fn draw(&self, row: usize, seed: u64, place: usize) -> Draw {
        let Self { temperature, top_p, top_k, .. } = *self;
        Draw { row, temperature, top_p, top_k, seed, place: place as u64 }
    }
}
