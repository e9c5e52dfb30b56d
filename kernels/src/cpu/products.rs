//! The products of each element type that operations compute in: f32 through [`Gemm`]; f64, which only gradient checks
//! use, through plain loops.

use super::gemm::{Causal, Gemm, PackedB, RightSide};
use crate::backend::Write;
use crate::dtype::Real;
use crate::tensor::Tensor;
use crate::view::View;

pub(super) trait Products: Real {
    /// b of a product `a·b`.
    type Right<'a>: Copy + From<View<'a, Self>>;
    /// b made ready for several products.
    type Ready<'a>;

    /// What [`Backend::prepare`](crate::Backend::prepare) kept of `w`, for products `x·wᵀ`; one per leading index.
    fn packed(w: &Tensor) -> Option<Vec<Self::Right<'_>>>;
    fn ready<'a>(gemm: &Gemm, b: View<'a, Self>) -> Self::Ready<'a>;
    /// The first `columns` columns; f32 may have some of zeros beyond b's own.
    fn first_columns<'a>(b: &'a Self::Ready<'_>, columns: usize) -> Self::Right<'a>;

    /// `c = a·b` or `c += a·b`, on all threads.
    fn multiply(gemm: &Gemm, a: View<Self>, b: Self::Right<'_>, c: &mut [Self], write: Write);
    /// By the calling thread alone, into some columns of a wider c, all of it or at least what `causal` leaves.
    fn alone_into(
        gemm: &Gemm,
        a: View<Self>,
        b: Self::Right<'_>,
        c: &mut [Self],
        c_row: usize,
        write: Write,
        causal: Causal,
    );
    /// Segment e of the rows of `a` times `b[e]`.
    fn grouped(gemm: &Gemm, a: View<Self>, ends: &[usize], b: &[Self::Right<'_>], c: &mut [Self], write: Write);
    /// `dw[e] (+)= dy[segment]ᵀ·x[segment]`.
    fn grouped_gradient(gemm: &Gemm, dy: View<Self>, x: View<Self>, ends: &[usize], dw: &mut [Self], write: Write);
}

/// wᵀ of a product `x·wᵀ`: what was kept of w, or a view.
pub(super) fn transposed<T: Products>(w: &Tensor) -> T::Right<'_> {
    match T::packed(w).as_deref() {
        Some([packed]) => *packed,
        _ => w.view::<T>().t().into(),
    }
}

impl Products for f32 {
    type Right<'a> = RightSide<'a, f32>;
    type Ready<'a> = PackedB<f32>;

    fn packed(w: &Tensor) -> Option<Vec<RightSide<'_, f32>>> {
        w.kept::<Vec<PackedB<f32>>>().map(|packed| packed.iter().map(RightSide::from).collect())
    }
    fn ready(gemm: &Gemm, b: View<f32>) -> PackedB<f32> {
        let mut packed = PackedB::empty();
        gemm.pack(&mut packed, b);
        packed
    }
    fn first_columns<'a>(b: &'a PackedB<f32>, columns: usize) -> RightSide<'a, f32> {
        RightSide::Corner { b, k: b.k, n: columns }
    }
    fn multiply(gemm: &Gemm, a: View<f32>, b: RightSide<f32>, c: &mut [f32], write: Write) {
        gemm.multiply(a, b, c, write);
    }
    fn alone_into(
        gemm: &Gemm,
        a: View<f32>,
        b: RightSide<f32>,
        c: &mut [f32],
        c_row: usize,
        write: Write,
        causal: Causal,
    ) {
        gemm.alone_into(a, b, c, c_row, write, causal);
    }
    fn grouped(gemm: &Gemm, a: View<f32>, ends: &[usize], b: &[RightSide<f32>], c: &mut [f32], write: Write) {
        gemm.grouped(a, ends, b, c, write);
    }
    fn grouped_gradient(gemm: &Gemm, dy: View<f32>, x: View<f32>, ends: &[usize], dw: &mut [f32], write: Write) {
        gemm.grouped_gradient(dy, x, ends, dw, write);
    }
}

impl Products for f64 {
    type Right<'a> = View<'a, f64>;
    type Ready<'a> = View<'a, f64>;

    fn packed(_: &Tensor) -> Option<Vec<View<'_, f64>>> {
        None
    }
    fn ready<'a>(_: &Gemm, b: View<'a, f64>) -> View<'a, f64> {
        b
    }
    fn first_columns<'a>(b: &'a View<'_, f64>, columns: usize) -> View<'a, f64> {
        b.t().slice(0, columns.min(b.cols)).t()
    }
    fn multiply(gemm: &Gemm, a: View<f64>, b: View<f64>, c: &mut [f64], write: Write) {
        assert_eq!(c.len(), a.rows * b.cols, "multiply: [M, K]·[K, N] into [M, N]");
        Self::alone_into(gemm, a, b, c, b.cols, write, Causal::All);
    }
    fn alone_into(_: &Gemm, a: View<f64>, b: View<f64>, c: &mut [f64], c_row: usize, write: Write, _: Causal) {
        assert_eq!(a.cols, b.rows, "multiply: [M, K]·[K, N]");
        for (i, row) in c.chunks_mut(c_row.max(1)).take(a.rows).enumerate() {
            for (j, c) in row.iter_mut().take(b.cols).enumerate() {
                let start = if write == Write::Add { *c } else { 0.0 };
                *c = (0..a.cols).fold(start, |c, k| c + a.at(i, k) * b.at(k, j));
            }
        }
    }
    fn grouped(gemm: &Gemm, a: View<f64>, ends: &[usize], b: &[View<f64>], c: &mut [f64], write: Write) {
        let mut start = 0;
        for (&end, &b) in ends.iter().zip(b) {
            Self::multiply(gemm, a.slice(start, end), b, &mut c[start * b.cols..end * b.cols], write);
            start = end;
        }
    }
    fn grouped_gradient(gemm: &Gemm, dy: View<f64>, x: View<f64>, ends: &[usize], dw: &mut [f64], write: Write) {
        let (mut start, size) = (0, dy.cols * x.cols);
        for (e, &end) in ends.iter().enumerate() {
            Self::multiply(gemm, dy.slice(start, end).t(), x.slice(start, end), &mut dw[e * size..][..size], write);
            start = end;
        }
    }
}
