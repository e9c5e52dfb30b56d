//! From logits to tokens, in f64.

use crate::backend::Draw;
use crate::tensor::Tensor;
use crate::{math, random};

/// Of one token.
fn one(d: &Draw, logits: &[f64]) -> (u32, f64) {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let temperature = if d.temperature == 0.0 { 1.0 } else { d.temperature };
    let weights: Vec<f64> = logits.iter().map(|z| math::exp((z - max) / temperature)).collect();
    let total: f64 = weights.iter().sum();
    // the most probable first; of equals the first
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let cut = if d.top_k == 0 { order.len() } else { d.top_k.min(order.len()) };
    let share: f64 = order[..cut].iter().map(|&i| weights[i]).sum();
    let before = |n: usize| order[..n].iter().map(|&i| weights[i]).sum::<f64>();
    let mut kept: Vec<usize> = (0..cut).filter(|&n| n == 0 || before(n) < d.top_p * share).map(|n| order[n]).collect();
    if d.top_p >= 1.0 && cut == order.len() {
        kept.sort_unstable(); // nothing is cut: in the order of the vocabulary
    }
    let at = random::uniform(d.seed, 0x5a3c, d.place) * kept.iter().map(|&i| weights[i]).sum::<f64>();
    let mut sum = 0.0;
    let drawn = kept.iter().copied().find(|&i| {
        sum += weights[i];
        sum > at
    });
    let id = if d.temperature == 0.0 { order[0] } else { drawn.unwrap_or(kept[kept.len() - 1]) };
    (id as u32, (logits[id] - max) / temperature - math::ln(total))
}

pub(super) fn draw(logits: &Tensor, draws: &[Draw]) -> (Tensor, Tensor) {
    let (v, logits) = (logits.cols(), logits.to_f64());
    let drawn = draws.iter().map(|draw| one(draw, &logits[draw.row * v..][..v]));
    let (tokens, logp): (Vec<u32>, Vec<f64>) = drawn.unzip();
    (Tensor::new([draws.len()], &tokens), Tensor::new([draws.len()], &logp))
}
