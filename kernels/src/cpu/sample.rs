//! From logits to tokens.

use super::device::Cpu;
use super::vectors::exp_row;
use crate::backend::Draw;
use crate::dtype::DType;
use crate::tensor::Tensor;
use crate::{math, random};

/// See [`Backend::draw`](crate::Backend::draw).
pub(super) fn draw(cpu: &Cpu, logits: &Tensor, draws: &[Draw]) -> (Tensor, Tensor) {
    let v = logits.cols();
    let mut e = logits.copy();
    let [max, sum] = exponentials(cpu, &mut e);
    let (mut tokens, mut logp) = (Tensor::empty([draws.len()], DType::U32), Tensor::empty([draws.len()], DType::F64));
    let step = cpu.step(draws.len(), 8 * v);
    let out = tokens.write::<u32>().chunks_mut(step).zip(logp.write::<f64>().chunks_mut(step));
    let tasks = draws.chunks(step).zip(out).collect();
    let (e, logits) = (e.read::<f32>(), logits.read::<f32>());
    let (max, sum) = (max.read::<f64>(), sum.read::<f64>());
    cpu.each(
        tasks,
        #[inline(always)]
        |(draws, (tokens, logp)): (&[Draw], (&mut [u32], &mut [f64]))| {
            for (draw, (token, logp)) in draws.iter().zip(tokens.iter_mut().zip(logp)) {
                let at = draw.row * v..(draw.row + 1) * v;
                let id = one(draw, &e[at.clone()]);
                (*token, *logp) = (id as u32, log_probability(draw, &logits[at], max[draw.row], sum[draw.row], id));
            }
        },
    );
    (tokens, logp)
}

/// Turns every row into exp(x − max); returns maxima and sums, F64 `[N]`.
fn exponentials(cpu: &Cpu, x: &mut Tensor) -> [Tensor; 2] {
    let (n, v) = (x.rows(), x.cols());
    let [mut max, mut sum] = [(); 2].map(|()| Tensor::empty([n], DType::F64));
    let step = cpu.step(n, 4 * v);
    let out = max.write::<f64>().chunks_mut(step).zip(sum.write::<f64>().chunks_mut(step));
    let tasks = x.write::<f32>().chunks_mut((step * v).max(1)).zip(out).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(x, (max, sum)): (&mut [f32], (&mut [f64], &mut [f64]))| {
            for (x, (max, sum)) in x.chunks_exact_mut(v).zip(max.iter_mut().zip(sum)) {
                let (m, s) = exp_row(x, x.len(), 1.0);
                (*max, *sum) = (m.into(), s.into());
            }
        },
    );
    [max, sum]
}

fn log_probability(draw: &Draw, logits: &[f32], max: f64, sum: f64, id: usize) -> f64 {
    let above = f64::from(logits[id]) - max;
    if draw.temperature == 0.0 || draw.temperature == 1.0 {
        return above - math::ln(sum);
    }
    let tempered = |logit: &f32| math::exp((f64::from(*logit) - max) / draw.temperature);
    above / draw.temperature - math::ln(logits.iter().map(tempered).sum())
}

/// One token from a row of exp(logit − max).
fn one(s: &Draw, row: &[f32]) -> usize {
    if s.temperature == 0.0 {
        return row.iter().enumerate().fold((0, f32::MIN), |best, (i, &e)| if e > best.1 { (i, e) } else { best }).0;
    }
    let u = random::uniform(s.seed, 0x5a3c, s.place);
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

    const ALL: Draw = Draw { row: 0, temperature: 1.0, top_p: 1.0, top_k: 0, seed: 0, place: 3 };
    const ROW: [f32; 5] = [0.1, 1.0, 0.0, 0.5, 0.4];

    fn shares(s: Draw) -> [f64; 5] {
        let mut counts = [0.0; 5];
        (0..100_000).for_each(|seed| counts[one(&Draw { seed, ..s }, &ROW)] += 1e-5);
        counts
    }

    /// 10⁵ draws: a share's standard error is at most 0.0016; 0.008 is five of them.
    fn close(found: [f64; 5], expected: [f64; 5]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.008), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn shares_follow_the_probabilities() {
        close(shares(ALL), [0.05, 0.5, 0.0, 0.25, 0.2]);
        let cold = ROW.map(|e| f64::from(e).powi(2));
        let sum: f64 = cold.iter().sum();
        close(shares(Draw { temperature: 0.5, ..ALL }), cold.map(|w| w / sum));
    }

    #[test]
    fn top_k_and_top_p_keep_the_best() {
        let two = [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0, 0.0];
        close(shares(Draw { top_k: 2, ..ALL }), two);
        close(shares(Draw { top_p: 0.7, ..ALL }), two);
        close(shares(Draw { top_p: 0.01, ..ALL }), [0.0, 1.0, 0.0, 0.0, 0.0]);
        close(shares(Draw { temperature: 0.0, ..ALL }), [0.0, 1.0, 0.0, 0.0, 0.0]);
    }
}
