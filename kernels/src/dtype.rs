//! What a tensor may hold: f32 to work with, f64 to check gradients with, bf16 and E4M3 to store and to multiply.

use crate::fp8::E4m3;
use crate::gemm::{Causal, Gemm, Operand, PackedB, View, Write};
use crate::math;
use crate::memory::Arena;
use bytemuck::Pod;
use half::bf16;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    /// Only for gradient checks: products are plain loops.
    F64,
    /// For storage, and for products that are summed in f32.
    Bf16,
    /// As `Bf16`, with scales beside it: see [`fp8`](crate::fp8).
    E4m3,
}

impl DType {
    pub fn bytes(self) -> usize {
        match self {
            DType::E4m3 => 1,
            DType::Bf16 => 2,
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }
}

/// An element a tensor can hold.
pub trait Element: Pod + Default + Debug + PartialEq + Send + Sync + 'static {
    const DTYPE: DType;
    /// What unwritten memory is filled with in debug builds.
    const POISON: Self;
    #[doc(hidden)]
    fn arena() -> &'static Arena<Self>;
}

macro_rules! element {
    ($type:ty, $dtype:ident, $nan:expr) => {
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
            const POISON: Self = $nan;
            fn arena() -> &'static Arena<Self> {
                static ARENA: Arena<$type> = Arena::new();
                &ARENA
            }
        }
    };
}

element!(f32, F32, f32::NAN);
element!(f64, F64, f64::NAN);
element!(bf16, Bf16, bf16::NAN);
element!(E4m3, E4m3, E4m3::NAN);

/// An element one can calculate with: every operation is written once, for f32 and f64.
pub trait Real:
    Element
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    const ZERO: Self;
    const ONE: Self;
    const LOWEST: Self;
    fn of(x: f64) -> Self;
    fn f64(self) -> f64;
    fn sqrt(self) -> Self;
    /// self·a + b, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// eˣ of x up to 88: see [`math::exp_below_f32`].
    fn exp_below(self) -> Self;
    fn sigmoid(self) -> Self;

    /// `c = a·b` or `c += a·b`, on all threads.
    fn multiply(gemm: &Gemm, a: View<Self>, b: View<Self>, c: &mut [Self], write: Write);
    /// The same by the caller alone.
    fn multiply_alone(gemm: &Gemm, a: View<Self>, b: View<Self>, c: &mut [Self], write: Write);
    /// The same into some columns of a wider c, all of it or at least what `causal` leaves.
    fn multiply_alone_into(
        gemm: &Gemm,
        a: View<Self>,
        b: View<Self>,
        c: &mut [Self],
        c_row: usize,
        write: Write,
        causal: Causal,
    );
    /// `b` packed for products by the caller alone; only f32 packs.
    fn packed(gemm: &Gemm, b: View<Self>) -> Option<PackedB<f32>>;
    /// `c = a·b` by the caller alone, with the first columns of what [`packed`](Self::packed) gave, into some columns of a wider c.
    fn multiply_corner(
        gemm: &Gemm,
        a: View<Self>,
        b: &PackedB<f32>,
        columns: usize,
        c: &mut [Self],
        c_row: usize,
        causal: Causal,
    );
    /// With b packed before. Only f32 packs.
    fn multiply_packed(gemm: &Gemm, a: View<Self>, b: &PackedB<f32>, c: &mut [Self], write: Write);
    /// Segment e of the rows of `a` times `b[e]`.
    fn grouped(gemm: &Gemm, a: View<Self>, ends: &[usize], b: &[View<Self>], c: &mut [Self], write: Write);
    fn grouped_packed(gemm: &Gemm, a: View<Self>, ends: &[usize], b: &[PackedB<f32>], c: &mut [Self], write: Write);
    /// `dw[e] (+)= dy[segment]ᵀ·x[segment]`.
    fn grouped_gradient(gemm: &Gemm, dy: View<Self>, x: View<Self>, ends: &[usize], dw: &mut [Self], write: Write);
}

macro_rules! arithmetic {
    ($type:ty, $exp_below:path, $sigmoid:path) => {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        const LOWEST: Self = <$type>::MIN;
        #[inline(always)]
        fn of(x: f64) -> Self {
            x as $type
        }
        #[inline(always)]
        fn f64(self) -> f64 {
            self as f64
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            self.sqrt()
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            self.mul_add(a, b)
        }
        #[inline(always)]
        fn exp_below(self) -> Self {
            $exp_below(self)
        }
        #[inline(always)]
        fn sigmoid(self) -> Self {
            $sigmoid(self)
        }
    };
}

impl Real for f32 {
    arithmetic!(f32, math::exp_below_f32, math::sigmoid_f32);

    fn multiply(gemm: &Gemm, a: View<f32>, b: View<f32>, c: &mut [f32], write: Write) {
        gemm.multiply(a, b, c, write);
    }
    fn multiply_alone(gemm: &Gemm, a: View<f32>, b: View<f32>, c: &mut [f32], write: Write) {
        gemm.alone(a, b, c, write);
    }
    fn multiply_alone_into(
        gemm: &Gemm,
        a: View<f32>,
        b: View<f32>,
        c: &mut [f32],
        c_row: usize,
        write: Write,
        causal: Causal,
    ) {
        gemm.alone_into(a, b, c, c_row, write, causal);
    }
    fn packed(gemm: &Gemm, b: View<f32>) -> Option<PackedB<f32>> {
        let mut packed = PackedB::empty();
        gemm.pack(&mut packed, b);
        Some(packed)
    }
    fn multiply_corner(
        gemm: &Gemm,
        a: View<f32>,
        b: &PackedB<f32>,
        columns: usize,
        c: &mut [f32],
        c_row: usize,
        causal: Causal,
    ) {
        gemm.alone_into(a, Operand::Corner { b, k: b.k, n: columns }, c, c_row, Write::Set, causal);
    }
    fn multiply_packed(gemm: &Gemm, a: View<f32>, b: &PackedB<f32>, c: &mut [f32], write: Write) {
        gemm.multiply(a, b, c, write);
    }
    fn grouped(gemm: &Gemm, a: View<f32>, ends: &[usize], b: &[View<f32>], c: &mut [f32], write: Write) {
        let b: Vec<Operand<f32>> = b.iter().map(|&b| b.into()).collect();
        gemm.grouped(a, ends, &b, c, write);
    }
    fn grouped_packed(gemm: &Gemm, a: View<f32>, ends: &[usize], b: &[PackedB<f32>], c: &mut [f32], write: Write) {
        let b: Vec<Operand<f32>> = b.iter().map(Operand::from).collect();
        gemm.grouped(a, ends, &b, c, write);
    }
    fn grouped_gradient(gemm: &Gemm, dy: View<f32>, x: View<f32>, ends: &[usize], dw: &mut [f32], write: Write) {
        gemm.grouped_gradient(dy, x, ends, dw, write);
    }
}

impl Real for f64 {
    arithmetic!(f64, math::exp, math::sigmoid);

    fn multiply(gemm: &Gemm, a: View<f64>, b: View<f64>, c: &mut [f64], write: Write) {
        assert_eq!(c.len(), a.rows * b.cols, "multiply: [M, K]·[K, N] into [M, N]");
        Self::multiply_alone_into(gemm, a, b, c, b.cols, write, Causal::All);
    }
    fn multiply_alone_into(_: &Gemm, a: View<f64>, b: View<f64>, c: &mut [f64], c_row: usize, write: Write, _: Causal) {
        assert_eq!(a.cols, b.rows, "multiply: [M, K]·[K, N]");
        for (i, row) in c.chunks_mut(c_row.max(1)).take(a.rows).enumerate() {
            for (j, c) in row.iter_mut().take(b.cols).enumerate() {
                let start = if write == Write::Add { *c } else { 0.0 };
                *c = (0..a.cols).fold(start, |c, k| c + a.at(i, k) * b.at(k, j));
            }
        }
    }
    fn multiply_alone(gemm: &Gemm, a: View<f64>, b: View<f64>, c: &mut [f64], write: Write) {
        Self::multiply(gemm, a, b, c, write);
    }
    fn packed(_: &Gemm, _: View<f64>) -> Option<PackedB<f32>> {
        None
    }
    fn multiply_corner(_: &Gemm, _: View<f64>, _: &PackedB<f32>, _: usize, _: &mut [f64], _: usize, _: Causal) {
        unreachable!("only f32 tensors are packed");
    }
    fn multiply_packed(_: &Gemm, _: View<f64>, _: &PackedB<f32>, _: &mut [f64], _: Write) {
        unreachable!("only f32 tensors are packed");
    }
    fn grouped(gemm: &Gemm, a: View<f64>, ends: &[usize], b: &[View<f64>], c: &mut [f64], write: Write) {
        let mut start = 0;
        for (&end, &b) in ends.iter().zip(b) {
            Self::multiply(gemm, a.slice(start, end), b, &mut c[start * b.cols..end * b.cols], write);
            start = end;
        }
    }
    fn grouped_packed(_: &Gemm, _: View<f64>, _: &[usize], _: &[PackedB<f32>], _: &mut [f64], _: Write) {
        unreachable!("only f32 tensors are packed");
    }
    fn grouped_gradient(gemm: &Gemm, dy: View<f64>, x: View<f64>, ends: &[usize], dw: &mut [f64], write: Write) {
        let (mut start, size) = (0, dy.cols * x.cols);
        for (e, &end) in ends.iter().enumerate() {
            Self::multiply(gemm, dy.slice(start, end).t(), x.slice(start, end), &mut dw[e * size..][..size], write);
            start = end;
        }
    }
}
