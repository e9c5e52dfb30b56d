//! A weight in lower precision, packed for both products that read it. Made once, and again after the weight was written.

use crate::fp8::Quantiser;
use crate::gemm::{Bf16, PackedB};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Bf16,
    Fp8(Quantiser),
}

pub struct Lowered {
    pub form: Form,
    /// Cleared when the weight is written; the memory is used again.
    pub is_current: bool,
    /// Per leading index.
    pub matrices: Vec<Matrix>,
}

#[derive(Default)]
pub struct Matrix {
    /// For `x·wᵀ` and for `dy·w`.
    pub nt: Side,
    pub nn: Side,
}

/// `[K, N]`, and for FP8 the scales `[⌈K/128⌉, N]`.
pub struct Side {
    pub packed: PackedB<Bf16>,
    pub scale: Vec<f32>,
}

impl Default for Side {
    fn default() -> Self {
        Self { packed: PackedB::empty(), scale: Vec::new() }
    }
}
