//! AVX-512: 6 × 64 outputs in 24 of 32 registers, 4 for B, the rest for splats of A.
//! Per k 10 loads feed 24 multiply-adds, few enough where a cycle takes as many of each (Zen 4 measured, Zen 5 not).

#![allow(clippy::undocumented_unsafe_blocks, reason = "one SAFETY comment speaks for a trait's methods")]

use super::kernel::{Lanes, Tile, micro};
use std::arch::x86_64::*;
use std::mem::transmute;

#[derive(Clone, Copy)]
struct F32(__m512);

#[derive(Clone, Copy)]
struct Pairs(__m512);

/// As `Pairs`, for CPUs without the instruction; of E4M3 numbers nothing needs flushing.
#[derive(Clone, Copy)]
struct ExactPairs(__m512);

macro_rules! lanes {
    ($name:ident, |$acc:ident, $a:ident, $b:ident| $step:expr) => {
        impl Lanes for $name {
            type Cells = __m512i;
            const ROWS: usize = 6;
            const VECTORS: usize = 4;
            // SAFETY, of all: inlined into the functions below, which enable the features; pointers as `Tile` says.
            #[inline(always)]
            unsafe fn load(c: *const f32) -> Self {
                unsafe { Self(_mm512_loadu_ps(c)) }
            }
            #[inline(always)]
            unsafe fn store(self, c: *mut f32) {
                unsafe { _mm512_storeu_ps(c, self.0) }
            }
            #[inline(always)]
            unsafe fn zero() -> Self {
                unsafe { Self(_mm512_setzero_ps()) }
            }
            #[inline(always)]
            unsafe fn cells(b: *const u32) -> __m512i {
                unsafe { _mm512_loadu_si512(b.cast()) }
            }
            #[inline(always)]
            unsafe fn splat(a: *const u32) -> __m512i {
                unsafe { _mm512_set1_epi32(a.cast::<i32>().read()) }
            }
            #[inline(always)]
            unsafe fn step(self, $a: __m512i, $b: __m512i) -> Self {
                let $acc = self.0;
                unsafe { Self($step) }
            }
        }
    };
}

lanes!(F32, |acc, a, b| _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc));
lanes!(ExactPairs, |acc, a, b| {
    let odd = |x| _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000u32 as i32)));
    let even = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
    _mm512_fmadd_ps(even(a), even(b), _mm512_fmadd_ps(odd(a), odd(b), acc))
});
lanes!(Pairs, |acc, a, b| _mm512_dpbf16_ps(acc, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)));

#[target_feature(enable = "avx512f")]
pub unsafe fn f32_tile(t: &Tile) {
    // SAFETY: the caller's promise; AVX-512 F is enabled here.
    unsafe { micro::<F32>(t) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn bf16_tile(t: &Tile) {
    // SAFETY: the caller's promise; both features are enabled here.
    unsafe { micro::<Pairs>(t) }
}

#[target_feature(enable = "avx512f")]
pub unsafe fn e4m3_tile(t: &Tile) {
    // SAFETY: the caller's promise; AVX-512 F is enabled here.
    unsafe { micro::<ExactPairs>(t) }
}
