//! From logits to a token.

use smelt_kernels::{math, random};

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

/// One token from a row of exp(logit − max) whose sum is `sum`, for place `place` of the completion with seed `seed`.
pub(crate) fn draw(s: &Sampling, row: &[f32], seed: u64, place: u64) -> usize {
    if s.temperature == 0.0 {
        return row.iter().enumerate().fold((0, f32::MIN), |best, (i, &e)| if e > best.1 { (i, e) } else { best }).0;
    }
    let u = random::uniform(seed, 0x5a3c, place);
    // exp((logit − max)/T) from what is there; a token whose exp vanished stays out at any temperature
    let weight = |e: f32| match (s.temperature == 1.0, e > 0.0) {
        (true, _) => f64::from(e),
        (false, true) => math::exp(math::ln(e.into()) / s.temperature),
        (false, false) => 0.0,
    };
    if s.top_p >= 1.0 && (s.top_k == 0 || s.top_k >= row.len()) {
        let sum: f64 = row.iter().map(|&e| weight(e)).sum();
        return pick(row.iter().map(|&e| weight(e)).enumerate(), u * sum);
    }
    let mut order: Vec<(usize, f64)> = row.iter().map(|&e| weight(e)).enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if s.top_k > 0 {
        order.truncate(s.top_k);
    }
    let sum: f64 = order.iter().map(|(_, w)| w).sum();
    let mut held = 0.0;
    let kept = order.iter().take_while(|(_, w)| {
        let is_needed = held < s.top_p * sum;
        held += w;
        is_needed
    });
    let kept = kept.count().max(1);
    let sum: f64 = order[..kept].iter().map(|(_, w)| w).sum();
    pick(order[..kept].iter().copied(), u * sum)
}

/// The first whose running sum passes `at`.
fn pick(weights: impl Iterator<Item = (usize, f64)>, at: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (i, weight) in weights {
        sum += weight;
        if weight > 0.0 {
            last = i;
        }
        if sum > at {
            return i;
        }
    }
    last // rounding left `at` at the very end
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [f32; 5] = [0.1, 1.0, 0.0, 0.5, 0.4];

    fn shares(s: &Sampling) -> [f64; 5] {
        let mut counts = [0.0; 5];
        (0..100_000).for_each(|i| counts[draw(s, &ROW, i, 3)] += 1e-5);
        counts
    }

    /// 10⁵ draws: a share's standard error is at most 0.0016; 0.008 is five of them.
    fn close(found: [f64; 5], expected: [f64; 5]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.008), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn shares_follow_the_probabilities() {
        close(shares(&Sampling::default()), [0.05, 0.5, 0.0, 0.25, 0.2]);
        let cold = ROW.map(|e| f64::from(e).powi(2));
        let sum: f64 = cold.iter().sum();
        close(shares(&Sampling { temperature: 0.5, ..Default::default() }), cold.map(|w| w / sum));
    }

    #[test]
    fn top_k_and_top_p_keep_the_best() {
        let two = [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0, 0.0];
        close(shares(&Sampling { top_k: 2, ..Default::default() }), two);
        close(shares(&Sampling { top_p: 0.7, ..Default::default() }), two);
        close(shares(&Sampling { top_p: 0.01, ..Default::default() }), [0.0, 1.0, 0.0, 0.0, 0.0]);
        close(shares(&Sampling { temperature: 0.0, ..Default::default() }), [0.0, 1.0, 0.0, 0.0, 0.0]);
    }
}
