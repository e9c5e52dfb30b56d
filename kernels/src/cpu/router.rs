//! The choice of experts, dispatch of rows to them, and the way back.

use super::device::Cpu;
use super::vectors::dot;
use crate::backend::{Router, Routing};
use crate::dtype::{DType, Real};
use crate::segments::Segments;
use crate::tensor::Tensor;

/// Calls `take` with the index of each of the `count` largest of `values`, largest first; of equal values the first.
/// Counts are small, so each takes a scan.
fn best<T: Real>(values: &mut [T], count: usize, mut take: impl FnMut(usize)) {
    for _ in 0..count {
        let mut at = 0;
        for i in 1..values.len() {
            if values[i] > values[at] {
                at = i;
            }
        }
        take(at);
        values[at] = T::LOWEST;
    }
}

pub(super) fn route<T: Real>(cpu: &Cpu, router: &Router, logits: &Tensor, bias: &Tensor) -> Routing {
    let (e, k) = (router.experts, router.top_k);
    let [n, width] = logits.dims("route: logits");
    assert!(width == e, "route: expected {e} logits, found {width}");
    bias.expect("route: bias", [e]);
    let (mut scores, mut weights) = (Tensor::empty([n, e], T::DTYPE), Tensor::empty([n, k], T::DTYPE));
    let mut ids = Tensor::empty([n, k], DType::U32);
    let (logits, bias) = (logits.read::<T>(), bias.read::<T>());
    let step = cpu.step(n, 16 * e);
    let out = scores.write::<T>().chunks_mut(step * e).zip(weights.write::<T>().chunks_mut(step * k));
    let tasks = logits.chunks(step * e).zip(out.zip(ids.write::<u32>().chunks_mut(step * k))).collect();
    let size = e / router.expert_groups;
    let (floor, scale) = (T::of(1e-20), T::of(router.scale));
    cpu.each(
        tasks,
        #[inline(always)]
        |(logits, ((scores, weights), ids))| {
            scores.iter_mut().zip(logits).for_each(|(s, &z)| *s = z.sigmoid());
            let (mut chosen, mut scores_of_groups) = (vec![T::ZERO; e], vec![T::ZERO; router.expert_groups]);
            let mut is_kept = vec![false; router.expert_groups];
            for ((s, w), ids) in scores.chunks_exact(e).zip(weights.chunks_exact_mut(k)).zip(ids.chunks_exact_mut(k)) {
                chosen.iter_mut().zip(s).zip(bias).for_each(|((c, &s), &b)| *c = s + b);
                if router.node_limit < router.expert_groups {
                    for (sum, c) in scores_of_groups.iter_mut().zip(chosen.chunks_exact(size)) {
                        let (mut first, mut second) = (T::LOWEST, T::LOWEST);
                        for &c in c {
                            if c > first {
                                (first, second) = (c, first);
                            } else if c > second {
                                second = c;
                            }
                        }
                        *sum = if size > 1 { first + second } else { first };
                    }
                    is_kept.fill(false);
                    best(&mut scores_of_groups, router.node_limit, |kept| is_kept[kept] = true);
                    for (c, is_kept) in chosen.chunks_exact_mut(size).zip(&is_kept) {
                        if !is_kept {
                            c.fill(T::LOWEST);
                        }
                    }
                }
                let mut slot = 0;
                best(&mut chosen, k, |expert| {
                    (ids[slot], w[slot]) = (expert as u32, s[expert]);
                    slot += 1;
                });
                if router.normalise {
                    let sum = w.iter().fold(T::ZERO, |sum, &w| sum + w) + floor;
                    w.iter_mut().for_each(|w| *w = *w / sum);
                }
                w.iter_mut().for_each(|w| *w *= scale);
            }
        },
    );
    Routing::new(ids, weights, scores, e)
}

/// With normalised weights and S the sum of the chosen scores: `ds_k = (dw_k − Σ_j dw_j·w_j/scale)·scale/S`. Then
/// the derivative of the sigmoid.
pub(super) fn route_backward<T: Real>(
    cpu: &Cpu,
    router: &Router,
    r: &Routing,
    dweights: &Tensor,
    dscores: Option<&Tensor>,
) -> Tensor {
    let (e, k, n) = (router.experts, router.top_k, r.weights.rows());
    dweights.expect("route_backward: dweights", [n, k]);
    let mut dlogits = Tensor::empty([n, e], T::DTYPE);
    match dscores {
        Some(dscores) => dlogits.write::<T>().copy_from_slice(dscores.read::<T>()),
        None => dlogits.write::<T>().fill(T::ZERO),
    }
    let step = cpu.step(n, 8 * e);
    let read = r
        .scores
        .read::<T>()
        .chunks(step * e)
        .zip(r.ids.read::<u32>().chunks(step * k))
        .zip(dweights.read::<T>().chunks(step * k));
    let tasks = read.zip(dlogits.write::<T>().chunks_mut(step * e)).collect();
    let (floor, scale) = (T::of(1e-20), T::of(router.scale));
    cpu.each(
        tasks,
        #[inline(always)]
        |(((scores, ids), dw), dlogits)| {
            let rows = scores.chunks_exact(e).zip(ids.chunks_exact(k)).zip(dw.chunks_exact(k));
            for (((s, ids), dw), dz) in rows.zip(dlogits.chunks_exact_mut(e)) {
                let sum = ids.iter().fold(T::ZERO, |sum, &e| sum + s[e as usize]) + floor;
                let mean = ids.iter().zip(dw).fold(T::ZERO, |mean, (&e, &dw)| mean + dw * s[e as usize]) / sum;
                for (&e, &dw) in ids.iter().zip(dw) {
                    dz[e as usize] += if router.normalise { (dw - mean) * scale / sum } else { dw * scale };
                }
                dz.iter_mut().zip(s).for_each(|(dz, &s)| *dz *= s * (T::ONE - s));
            }
        },
    );
    dlogits
}

pub(super) fn count(segments: &Segments, counts: &mut Tensor) {
    counts.expect("count: counts", [segments.count()]);
    counts.write::<u32>().iter_mut().zip(segments.iter()).for_each(|(count, rows)| *count += rows.len() as u32);
}

pub(super) fn balance_bias(bias: &mut Tensor, counts: &Tensor, speed: f64) {
    counts.expect("balance_bias: counts", bias.shape());
    let counts = counts.read::<u32>();
    let (total, experts) = (counts.iter().map(|&count| u64::from(count)).sum::<u64>(), counts.len() as u64);
    for (bias, &count) in bias.write::<f32>().iter_mut().zip(counts) {
        *bias += match total.cmp(&(u64::from(count) * experts)) {
            std::cmp::Ordering::Greater => speed as f32,
            std::cmp::Ordering::Less => -speed as f32,
            std::cmp::Ordering::Equal => 0.0,
        };
    }
}

pub(super) fn gather_backward<T: Real>(cpu: &Cpu, drows: &Tensor, slots: &Tensor, dx: &mut Tensor) {
    let (n, d, slots) = (dx.rows(), dx.cols(), slots.read::<u32>());
    let k = slots.len() / n.max(1);
    let (drows, step) = (drows.read::<T>(), cpu.step(n, d * k));
    let tasks = dx.write::<T>().chunks_mut(step * d).zip(slots.chunks((step * k).max(1))).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(dx, slots): (&mut [T], &[u32])| {
            for (dx, slots) in dx.chunks_exact_mut(d).zip(slots.chunks_exact(k)) {
                for &slot in slots {
                    dx.iter_mut().zip(&drows[slot as usize * d..][..d]).for_each(|(dx, &d)| *dx += d);
                }
            }
        },
    );
}

pub(super) fn combine<T: Real>(cpu: &Cpu, rows: &Tensor, r: &Routing, y: &mut Tensor) {
    let (n, d, k) = (y.rows(), y.cols(), r.weights.cols());
    let (rows, step) = (rows.read::<T>(), cpu.step(n, d * k));
    let choices = r.slots.read::<u32>().chunks(step * k).zip(r.weights.read::<T>().chunks(step * k));
    let tasks = y.write::<T>().chunks_mut(step * d).zip(choices).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(y, (slots, weights)): (&mut [T], (&[u32], &[T]))| {
            for (y, (slots, weights)) in y.chunks_exact_mut(d).zip(slots.chunks_exact(k).zip(weights.chunks_exact(k))) {
                for (&slot, &w) in slots.iter().zip(weights) {
                    y.iter_mut().zip(&rows[slot as usize * d..][..d]).for_each(|(y, &x)| *y += w * x);
                }
            }
        },
    );
}

/// Slots, gradients of weights, and dispatched rows of some choices.
type Choices<'a, 'b, T> = ((&'a [u32], &'a mut [T]), &'a mut [&'b mut [T]]);

pub(super) fn combine_backward<T: Real>(cpu: &Cpu, rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor) {
    let (n, d, k) = (dy.rows(), dy.cols(), r.weights.cols());
    let (mut drows, mut dweights) = (Tensor::empty(rows.shape(), T::DTYPE), Tensor::empty([n, k], T::DTYPE));
    let (rows, dy, weights) = (rows.read::<T>(), dy.read::<T>(), r.weights.read::<T>());
    let step = cpu.step(n, 2 * d * k);
    // dispatched rows in the order of choices
    let mut rest: Vec<_> = drows.write::<T>().chunks_exact_mut(d.max(1)).map(Some).collect();
    let take = |&slot: &u32| rest[slot as usize].take().expect("combine_backward: a slot belongs to one choice");
    let mut drows_of_choices: Vec<&mut [T]> = r.slots.read::<u32>().iter().map(take).collect();
    let choices = r.slots.read::<u32>().chunks(step * k).zip(dweights.write::<T>().chunks_mut(step * k));
    let tasks = choices.zip(drows_of_choices.chunks_mut(step * k)).enumerate().collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(task, ((slots, dweights), drows)): (usize, Choices<T>)| {
            for (i, ((&slot, dw), drow)) in slots.iter().zip(dweights).zip(drows).enumerate() {
                let (choice, slot) = (task * step * k + i, slot as usize);
                let dy = &dy[choice / k * d..][..d];
                *dw = dot(dy, &rows[slot * d..][..d]);
                drow.iter_mut().zip(dy).for_each(|(drow, &dy)| *drow = weights[choice] * dy);
            }
        },
    );
    (drows, dweights)
}
