//! Element types of tensors: f32 to compute in, f64 to check gradients and to sum in, bf16 and E4M3 to store and to
//! multiply, u32 to count and to name rows.

use crate::e4m3::E4m3;
use crate::math;
use crate::memory::Arena;
use bytemuck::Pod;
use half::bf16;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    /// For gradient checks (products are plain loops), log-probabilities and sums.
    F64,
    /// To store, and to multiply: sums are f32.
    Bf16,
    /// As `Bf16`, with a tensor of scales: see [`fp8`](crate::fp8).
    E4m3,
    /// Token ids, rows, positions, counts.
    U32,
}

impl DType {
    pub fn bytes(self) -> usize {
        match self {
            DType::E4m3 => 1,
            DType::Bf16 => 2,
            DType::F32 | DType::U32 => 4,
            DType::F64 => 8,
        }
    }
}

/// An element a tensor can hold.
pub trait Element: Pod + Default + Debug + PartialEq + Send + Sync + 'static {
    const DTYPE: DType;
    /// Debug builds fill new memory with it, so that reading an element nobody wrote shows.
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
element!(u32, U32, u32::MAX);

/// An element type that operations compute in: each operation is written once, for f32 and f64.
pub(crate) trait Real:
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
}

impl Real for f64 {
    arithmetic!(f64, math::exp, math::sigmoid);
}

/// Runs `$body` with `$T` the element type of `$tensor`.
macro_rules! real {
    ($tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype() {
            $crate::dtype::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::DType::F64 => {
                type $T = f64;
                $body
            }
            other => panic!("no operation computes in {other:?}"),
        }
    };
}
pub(crate) use real;
