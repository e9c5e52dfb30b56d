//! The choice of experts, and the rows that go to them and come back.

use crate::backend::{Router, Routing};
use crate::dtype::Real;
use crate::tensor::Tensor;

/// The largest of `values`, `count` of them, largest first; of equals the first.
fn best<T: Real>(values: &[T], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).expect("scores are numbers")); // stable
    order.truncate(count);
    order
}

/// `score = σ(logit)`. A token takes the `top_k` experts with the largest score + bias, out of the best expert groups:
/// those in which the two largest score + bias have the largest sum.
///
/// `weight = scale·score`, or `scale·score / Σ scores` of the chosen.
pub(super) fn route<T: Real>(router: &Router, logits: &Tensor, bias: &Tensor) -> Routing {
    let (n, e, bias) = (logits.rows(), router.experts, bias.read::<T>());
    let scores: Vec<T> = logits.read::<T>().iter().map(|z| z.sigmoid()).collect();
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for scores in scores.chunks(e) {
        let biased: Vec<T> = scores.iter().zip(bias).map(|(&s, &b)| s + b).collect();
        let size = e / router.expert_groups;
        let score_of_group =
            |group: &[T]| best(group, 2).into_iter().map(|i| group[i]).reduce(|a, b| a + b).expect("not empty");
        let groups = best(&biased.chunks(size).map(score_of_group).collect::<Vec<T>>(), router.node_limit);
        let allowed: Vec<T> =
            (0..e).map(|expert| if groups.contains(&(expert / size)) { biased[expert] } else { T::LOWEST }).collect();
        let chosen = best(&allowed, router.top_k);
        let total = chosen.iter().fold(T::ZERO, |sum, &expert| sum + scores[expert]) + T::of(1e-20);
        for expert in chosen {
            let share = if router.normalise { scores[expert] / total } else { scores[expert] };
            ids.push(expert as u32);
            weights.push(share * T::of(router.scale));
        }
    }
    let ids = Tensor::new([n, router.top_k], &ids);
    Routing::new(ids, Tensor::new([n, router.top_k], &weights), Tensor::new([n, e], &scores), e)
}

/// With S the sum of the chosen scores: `ds_k = scale·(dw_k / S − Σ_j dw_j·s_j / S²)`, or `scale·dw_k`; then
/// `dlogit = ds·s·(1 − s)`.
pub(super) fn route_backward<T: Real>(
    router: &Router,
    r: &Routing,
    dweights: &Tensor,
    dscores: Option<&Tensor>,
) -> Tensor {
    let (e, k, scale) = (router.experts, router.top_k, T::of(router.scale));
    let (scores, dweights) = (r.scores.read::<T>(), dweights.read::<T>());
    let mut ds = dscores.map_or(vec![T::ZERO; scores.len()], |ds| ds.read::<T>().to_vec());
    for (t, ids) in r.ids.read::<u32>().chunks(k).enumerate() {
        let (s, dw) = (&scores[t * e..][..e], &dweights[t * k..][..k]);
        let total = ids.iter().fold(T::ZERO, |sum, &id| sum + s[id as usize]);
        let mixed = ids.iter().zip(dw).fold(T::ZERO, |sum, (&id, &dw)| sum + dw * s[id as usize]);
        for (&id, &dw) in ids.iter().zip(dw) {
            let normalised = scale * (dw / total - mixed / (total * total));
            ds[t * e + id as usize] += if router.normalise { normalised } else { scale * dw };
        }
    }
    let dlogits: Vec<T> = ds.iter().zip(scores).map(|(&ds, &s)| ds * s * (T::ONE - s)).collect();
    Tensor::new(r.scores.shape(), &dlogits)
}

/// `dx[t] += Σ_k drows[slots[t, k]]`
pub(super) fn gather_backward<T: Real>(drows: &Tensor, slots: &[u32], dx: &mut Tensor) {
    let (n, d, drows) = (dx.rows(), dx.cols(), drows.read::<T>());
    let (k, dx) = (slots.len() / n, dx.write::<T>());
    for (choice, &slot) in slots.iter().enumerate() {
        for j in 0..d {
            dx[choice / k * d + j] += drows[slot as usize * d + j];
        }
    }
}

/// `y[t] += Σ_k weights[t, k] · rows[slots[t, k]]`
pub(super) fn combine<T: Real>(rows: &Tensor, r: &Routing, y: &mut Tensor) {
    let (d, k, rows, weights) = (y.cols(), r.weights.cols(), rows.read::<T>(), r.weights.read::<T>());
    let y = y.write::<T>();
    for (choice, &slot) in r.slots.read::<u32>().iter().enumerate() {
        for j in 0..d {
            y[choice / k * d + j] += weights[choice] * rows[slot as usize * d + j];
        }
    }
}

/// `drows[slots[t, k]] = weights[t, k]·dy[t]`, `dweights[t, k] = dy[t]·rows[slots[t, k]]`
pub(super) fn combine_backward<T: Real>(rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor) {
    let (d, k, weights) = (dy.cols(), r.weights.cols(), r.weights.read::<T>());
    let mut drows = Tensor::zeros(rows.shape(), T::DTYPE);
    let (rows, dy, of_rows) = (rows.read::<T>(), dy.read::<T>(), drows.write::<T>());
    let mut dweights = vec![T::ZERO; r.slots.len()];
    for (choice, &slot) in r.slots.read::<u32>().iter().enumerate() {
        for j in 0..d {
            let (dy, at) = (dy[choice / k * d + j], slot as usize * d + j);
            dweights[choice] += dy * rows[at];
            of_rows[at] = weights[choice] * dy;
        }
    }
    (drows, Tensor::new(r.weights.shape(), &dweights))
}
