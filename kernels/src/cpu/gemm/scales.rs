//! The factors of a product of FP8 operands.

use crate::view::View;

/// Elements of K that are summed before they are scaled.
pub(super) const PROMOTION: usize = 128;

/// Factors of the partial sums of one product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scales<'a> {
    /// `[M, ⌈K/128⌉]`
    pub a: View<'a, f32>,
    /// `[⌈K/128⌉, N]`
    pub b: &'a [f32],
}
