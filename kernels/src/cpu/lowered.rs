//! A weight in lower precision, packed for the two products that read it.

use super::gemm::{Bf16, PackedB};
use crate::quantiser::Quantiser;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lowering {
    Bf16,
    Fp8(Quantiser),
}

pub(super) struct Lowered {
    pub lowering: Lowering,
    /// One per leading index.
    pub matrices: Vec<Matrix>,
}

#[derive(Default)]
pub(super) struct Matrix {
    /// For `x·wᵀ`, and for `dy·w`.
    pub nt: Side,
    pub nn: Side,
}

/// `[K, N]`, and for FP8 the scales `[⌈K/128⌉, N]`.
pub(super) struct Side {
    pub packed: PackedB<Bf16>,
    pub scale: Vec<f32>,
}

impl Default for Side {
    fn default() -> Self {
        Self { packed: PackedB::empty(), scale: Vec::new() }
    }
}
