//! What a layer may touch while it runs, and what a pass tells besides its result.

use crate::{Balance, Params, Precision};
use smelt_kernels::{Backend, DocumentBounds, Rope};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// What a layer may touch while it runs.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    pub backend: &'a dyn Backend,
    pub params: &'a Params,
    pub documents: &'a DocumentBounds,
    pub rope: &'a Rope,
    pub balance: Balance,
    pub precision: Precision,
    pub stats: &'a RefCell<Stats>,
}

impl fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let rows = self.documents.rows();
        f.debug_struct("Cx").field("rows", &rows).field("precision", &self.precision).finish_non_exhaustive()
    }
}

impl Cx<'_> {
    /// For a layer whose products stay in f32 whatever the rest does.
    pub fn full(&self) -> Self {
        Self { precision: Precision::Fp32, ..*self }
    }
}

/// What a pass tells besides its result.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rows each expert got, by layer.
    pub loads: BTreeMap<usize, Vec<u64>>,
    /// Balance loss so far, already weighted.
    pub balance: f64,
    /// Keep the experts of every token in `routes`, for tests and analysis.
    pub keeps_routes: bool,
    /// `[N, K]` by layer.
    pub routes: BTreeMap<usize, Vec<u32>>,
    /// An infinite or NaN value was quantised: where FP8 saturates, the loss alone would not tell.
    pub has_saturated: bool,
}
