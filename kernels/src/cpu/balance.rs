//! The balance loss of a router.

use crate::backend::{Counted, Router, Routing};
use crate::document_bounds::Documents;
use crate::tensor::Tensor;
use std::ops::Range;

/// See [`Backend::balance`](crate::Backend::balance). Sums are in f64, in the order of the tokens.
pub(super) fn loss(
    router: &Router,
    r: &Routing,
    counted: Counted,
    documents: Option<&Documents>,
    weight: f64,
    loss: &mut Tensor,
) -> Tensor {
    let scores = r.scores.to_f64();
    let (mut sum, mut dscores) = (0.0, vec![0.0; scores.len()]);
    let mut add = |rows| sum += part(router, r, counted, weight, &scores, rows, &mut dscores);
    match documents {
        Some(documents) => documents.iter().filter(|rows| !rows.is_empty()).for_each(add),
        None => add(0..r.scores.rows()),
    }
    loss.write::<f64>()[0] += sum;
    Tensor::new(r.scores.shape(), &dscores).cast(r.scores.dtype())
}

/// The loss over `rows`, and its gradient.
fn part(
    router: &Router,
    r: &Routing,
    counted: Counted,
    weight: f64,
    scores: &[f64],
    rows: Range<usize>,
    dscores: &mut [f64],
) -> f64 {
    let (e, k, tokens, ids) = (router.experts, router.top_k, rows.len() as f64, r.ids.read::<u32>());
    let (mut f, mut p) = (vec![0.0; e], vec![0.0; e]);
    let mut order: Vec<usize> = Vec::new();
    for t in rows.clone() {
        let row = &scores[t * e..][..e];
        order.clear();
        match counted {
            Counted::Scores => {
                order.extend(0..e);
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            }
            Counted::Routes => order.extend(ids[t * k..][..k].iter().map(|&e| e as usize)),
        }
        order[..k].iter().for_each(|&i| f[i] += e as f64 / (k as f64 * tokens));
        let sum: f64 = row.iter().sum::<f64>() + 1e-20;
        p.iter_mut().zip(row).for_each(|(p, s)| *p += s / sum / tokens);
    }
    for t in rows {
        let row = &scores[t * e..][..e];
        let sum: f64 = row.iter().sum::<f64>() + 1e-20;
        let mean: f64 = f.iter().zip(row).map(|(f, s)| f * s / sum).sum();
        for (ds, f) in dscores[t * e..][..e].iter_mut().zip(&f) {
            *ds = weight * (f - mean) / sum / tokens;
        }
    }
    weight * f.iter().zip(&p).map(|(f, p)| f * p).sum::<f64>()
}
