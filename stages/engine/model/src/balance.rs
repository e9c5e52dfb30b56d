//! Balance losses: what pulls the router's scores towards equal loads, where the correction bias only steers the
//! choice.
//!
//! With f_e = E/(K·T) times how often expert e counts among T tokens (no gradient), and P_e the mean of its share of a
//! token's scores, a layer's loss is Σ_e f_e·P_e: 1 when all is even. Sequence-wise (DeepSeek-V3, eq. 17 to 20) T
//! runs over one sequence and the losses are averaged; batch-wise (Fedus et al. 2022; DeepSeek-V3, §4.5.3) over all
//! tokens of a pass, which leaves a sequence free to specialise.

use crate::Cx;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::{Counted, Router, Routing, Tensor};

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

    /// Adds the weighted loss of one router to `loss`, F64 `[1]`; returns its gradient in the scores, `[N, E]`.
    pub(crate) fn add(self, cx: &Cx, router: &Router, routing: &Routing, loss: &mut Tensor) -> Tensor {
        let documents = match self.scope {
            BalanceScope::Sequence => Some(cx.documents),
            BalanceScope::Batch => None,
        };
        let counted = match self.counts {
            BalanceCounts::Scores => Counted::Scores,
            BalanceCounts::Routes => Counted::Routes,
        };
        cx.backend.balance(router, routing, counted, documents, self.weight, loss)
    }
}
