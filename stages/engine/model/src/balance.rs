//! Balance losses: what pulls the router's scores towards equal loads, where the correction bias only steers the
//! choice.
//!
//! With f_e = E/(K·T) times how often expert e counts among T tokens (no gradient), and P_e the mean of its share of a
//! token's scores, a layer's loss is Σ_e f_e·P_e: 1 when all is even. Sequence-wise (DeepSeek-V3, eq. 17 to 20) T
//! runs over one sequence and the losses are averaged; batch-wise (Fedus et al. 2022; DeepSeek-V3, §4.5.3) over all
//! tokens of a pass, which leaves a sequence free to specialise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::{DocumentBounds, Router, Routing, Tensor};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalanceScope {
    /// Every sequence is to be balanced in itself.
    #[default]
    Sequence,
    /// The tokens of a pass together.
    Batch,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalanceCounts {
    /// An expert counts when it is among a token's best raw scores (DeepSeek-V3, eq. 18).
    #[default]
    Scores,
    /// An expert counts when the token is sent to it, bias and groups applied.
    Routes,
}

/// A balance loss as a pass adds it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balance {
    /// Of one sequence's loss, or of the pass's; 0 leaves the loss out.
    pub weight: f64,
    pub scope: BalanceScope,
    pub counts: BalanceCounts,
    /// The MTP modules have it too.
    pub mtp: bool,
}

impl Balance {
    pub const NONE: Self =
        Self { weight: 0.0, scope: BalanceScope::Sequence, counts: BalanceCounts::Scores, mtp: false };

    /// The weighted loss of one layer, and its gradient in the scores, `[N, E]`.
    pub(crate) fn loss(&self, router: &Router, routing: &Routing, documents: &DocumentBounds) -> (f64, Tensor) {
        let scores = routing.scores.to_f64();
        let (mut loss, mut dscores) = (0.0, vec![0.0; scores.len()]);
        let mut add = |rows| loss += self.part(router, routing, &scores, rows, &mut dscores);
        match self.scope {
            BalanceScope::Sequence => documents.iter().filter(|rows| !rows.is_empty()).for_each(add),
            BalanceScope::Batch => add(0..routing.scores.rows()),
        }
        (loss, Tensor::new(routing.scores.shape(), &dscores).cast(routing.scores.dtype()))
    }

    /// Of the tokens `rows` together; writes their rows of `dscores`.
    fn part(
        &self,
        router: &Router,
        routing: &Routing,
        scores: &[f64],
        rows: std::ops::Range<usize>,
        dscores: &mut [f64],
    ) -> f64 {
        let (e, k, tokens) = (router.experts, router.top_k, rows.len() as f64);
        let (mut f, mut p) = (vec![0.0; e], vec![0.0; e]);
        let mut order: Vec<usize> = Vec::new();
        for t in rows.clone() {
            let row = &scores[t * e..][..e];
            order.clear();
            match self.counts {
                BalanceCounts::Scores => {
                    order.extend(0..e);
                    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                }
                BalanceCounts::Routes => order.extend(routing.ids[t * k..][..k].iter().map(|&e| e as usize)),
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
                *ds = self.weight * (f - mean) / sum / tokens;
            }
        }
        self.weight * f.iter().zip(&p).map(|(f, p)| f * p).sum::<f64>()
    }
}
