//! The balance loss of a router, in f64.

use crate::backend::{Counted, Router, Routing};
use crate::document_bounds::Documents;
use crate::tensor::Tensor;

/// Over T tokens: `f_e = E/(K·T)·Σ_t [t counts for e]`, `P_e = 1/T·Σ_t s_te / S_t` with `S_t = Σ_j s_tj`,
/// `loss += weight·Σ_e f_e·P_e`. Since `∂(s_te / S_t)/∂s_tj = [e = j]/S_t − s_te/S_t²`,
/// `ds_tj = weight/T·(f_j/S_t − Σ_e f_e·s_te/S_t²)`.
pub(super) fn balance(
    router: &Router,
    r: &Routing,
    counted: Counted,
    documents: Option<&Documents>,
    weight: f64,
    loss: &mut Tensor,
) -> Tensor {
    let (e, k, n) = (router.experts, router.top_k, r.scores.rows());
    let (all, ids) = (r.scores.to_f64(), r.ids.read::<u32>());
    let score = |t: usize, e_: usize| all[t * e + e_];
    let total = |t: usize| (0..e).map(|j| score(t, j)).sum::<f64>();
    let counts = |t: usize, expert: usize| match counted {
        Counted::Routes => ids[t * k..][..k].contains(&(expert as u32)),
        // fewer than K have a higher score; of equal scores the first count
        Counted::Scores => {
            let is_before = |j: usize| score(t, j) > score(t, expert) || score(t, j) == score(t, expert) && j < expert;
            (0..e).filter(|&j| is_before(j)).count() < k
        }
    };
    let parts =
        documents.map_or_else(|| std::iter::once(0..n).collect::<Vec<_>>(), |documents| documents.iter().collect());
    let mut dscores = vec![0.0; n * e];
    for rows in parts.into_iter().filter(|rows| !rows.is_empty()) {
        let tokens = rows.len() as f64;
        let counted = |expert: usize| rows.clone().filter(|&t| counts(t, expert)).count() as f64;
        let f: Vec<f64> = (0..e).map(|expert| e as f64 / (k as f64 * tokens) * counted(expert)).collect();
        let share = |expert: usize| rows.clone().map(|t| score(t, expert) / total(t)).sum::<f64>() / tokens;
        loss.write::<f64>()[0] += weight * (0..e).map(|expert| f[expert] * share(expert)).sum::<f64>();
        for t in rows.clone() {
            let mixed = (0..e).map(|j| f[j] * score(t, j)).sum::<f64>() / (total(t) * total(t));
            (0..e).for_each(|j| dscores[t * e + j] = weight / tokens * (f[j] / total(t) - mixed));
        }
    }
    Tensor::new(r.scores.shape(), &dscores).cast(r.scores.dtype())
}
