//! What a layer may touch while it runs, and what a pass tells besides its result.

use crate::{Balance, Params, Precision, Recomputed};
use smelt_kernels::{Backend, DType, Documents, Rope, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// What a layer may touch while it runs.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    pub backend: &'a dyn Backend,
    pub params: &'a Params,
    pub documents: &'a Documents,
    pub rope: &'a Rope,
    pub balance: Balance,
    pub precision: Precision,
    pub recompute: Recomputed,
    /// Backward follows: layers keep what it needs.
    pub keeps: bool,
    pub stats: &'a RefCell<Stats>,
}

impl fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let rows = self.documents.rows();
        f.debug_struct("Cx").field("rows", &rows).field("precision", &self.precision).finish_non_exhaustive()
    }
}

impl Cx<'_> {
    /// For what [`Recomputed::Light`] computes again instead of keeping it.
    pub(crate) fn light(&self) -> Self {
        Self { keeps: self.keeps && !self.recompute.is_light(), ..*self }
    }

    /// For a layer whose products stay in f32 whatever the rest does.
    pub fn full(&self) -> Self {
        Self { precision: Precision::Fp32, ..*self }
    }
}

/// What passes tell besides their results, on the device: the host reads it when a step is done.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rows each expert got, by layer: U32 `[E]`.
    pub loads: BTreeMap<usize, Tensor>,
    /// Keep the experts of every token in `routes`, for tests and analysis.
    pub keeps_routes: bool,
    /// U32 `[N, K]` of each pass, by layer.
    pub routes: BTreeMap<usize, Vec<Tensor>>,
    balance: Option<Tensor>,
    saturated: Option<Tensor>,
}

impl Stats {
    pub fn keeping_routes() -> Self {
        Self { keeps_routes: true, ..Self::default() }
    }

    /// Balance loss so far, already weighted: F64 `[1]`.
    pub fn balance(&mut self, backend: &dyn Backend) -> &mut Tensor {
        self.balance.get_or_insert_with(|| backend.zeros([1], DType::F64))
    }

    /// 1 if an infinite or NaN value was quantised, U32 `[1]`: where FP8 saturates, the loss alone would not tell.
    pub fn saturated(&mut self, backend: &dyn Backend) -> &mut Tensor {
        self.saturated.get_or_insert_with(|| backend.zeros([1], DType::U32))
    }
}
