//! The elements of a matrix as kernels see them, and the arithmetic of one step of the chain.
//!
//! Kernels see *cells* of 32 bits: an f32, or a pair of bf16 at k and k + 1 (an odd K is padded with zero). So f32 and
//! bf16 share one tile shape, one packing and one blocking.

use crate::view::View;
pub use half::bf16 as Bf16;

mod sealed {
    /// Kernels read elements through raw pointers, so other crates must not add element types.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::Bf16 {}
}

/// `f32` or [`Bf16`].
///
/// The step of a bf16 cell is that of `vdpbf16ps`, two fused multiply-adds into f32, **the odd k first**:
///
/// ```text
/// c = fma(a[k+1], b[k+1], c);  c = fma(a[k], b[k], c)
/// ```
///
/// each rounded to nearest even. Inputs, and results after rounding, below 2⁻¹²⁶ are flushed to zero and keep
/// their sign; MXCSR is ignored. CPU levels without the instruction compute the same bits, more slowly.
pub trait Cells: Copy + Default + Send + Sync + sealed::Sealed + 'static {
    /// Elements per cell, along k.
    const PER_CELL: usize;
    fn cell(pair: [Self; 2]) -> u32;
    /// One step of the chain. It specifies what every kernel computes.
    fn step(c: f32, a: u32, b: u32) -> f32;
    /// Address of `rows × depth` cells of A and the strides of rows and k, if a kernel can read A without a copy: an
    /// element is a cell.
    #[doc(hidden)]
    fn in_place(a: &View<Self>, row: usize, k: usize, rows: usize, depth: usize) -> Option<(*const u32, [usize; 2])> {
        let _ = (a, row, k, rows, depth);
        None
    }
}

impl Cells for f32 {
    const PER_CELL: usize = 1;

    #[inline(always)]
    fn cell([x, _]: [f32; 2]) -> u32 {
        x.to_bits()
    }

    #[inline(always)]
    fn step(c: f32, a: u32, b: u32) -> f32 {
        f32::from_bits(a).mul_add(f32::from_bits(b), c)
    }

    fn in_place(a: &View<f32>, row: usize, k: usize, rows: usize, depth: usize) -> Option<(*const u32, [usize; 2])> {
        a.in_place(row, k, rows, depth).map(|(first, strides)| (first.cast(), strides))
    }
}

impl Cells for Bf16 {
    const PER_CELL: usize = 2;

    #[inline(always)]
    fn cell([even, odd]: [Bf16; 2]) -> u32 {
        u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16
    }

    #[inline(always)]
    fn step(c: f32, a: u32, b: u32) -> f32 {
        let odd = |x: u32| flush(f32::from_bits(x & 0xffff_0000));
        let even = |x: u32| flush(f32::from_bits(x << 16));
        fma_flushed(even(a), even(b), fma_flushed(odd(a), odd(b), flush(c)))
    }
}

#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// Flushes results below 2⁻¹²⁶ after rounding *with an unbounded exponent*, as x86 does. Just below 2⁻¹²⁶
/// the result of `mul_add` is subnormal, has one bit less and may round up to 2⁻¹²⁶.
#[inline(always)]
fn fma_flushed(a: f32, b: f32, c: f32) -> f32 {
    const TINY: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1 << 25) as f64);
    let x = a.mul_add(b, c);
    // a and b have 8 bits: in f64 the product is exact, and so is every sum near enough to TINY to decide the
    // comparison
    let is_tiny = || (f64::from(a) * f64::from(b) + f64::from(c)).abs() < TINY;
    if x.abs() <= f32::MIN_POSITIVE && is_tiny() { 0f32.copysign(x) } else { x }
}
