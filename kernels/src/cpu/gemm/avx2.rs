//! AVX2 and FMA: 6 × 16 outputs in 12 of 16 registers.
//!
//! bf16 is computed as `vdpbf16ps` does, with two fused multiply-adds per cell. Compare and mask flush to zero, because
//! this library does not change MXCSR. Products of E4M3 numbers never need flushing.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one SAFETY comment speaks for a trait's methods")]

use super::cells::{Bf16, Cells};
use super::kernel::{Lanes, micro};
use std::{arch::x86_64::*, mem::transmute};

const EDGE: f32 = f32::MIN_POSITIVE;

#[derive(Clone, Copy)]
struct F32(__m256, __m256);

#[derive(Clone, Copy)]
struct Pairs(__m256, __m256);

#[derive(Clone, Copy)]
struct ExactPairs(__m256, __m256);

macro_rules! lanes {
    ($name:ident, $rows:literal, $step:path) => {
        impl Lanes for $name {
            type Cells = (__m256i, __m256i);
            const ROWS: usize = $rows;
            const VECTORS: usize = 1;
            // SAFETY, of all: inlined into the functions below, which enable the features; the pointers are those of a
            // `RegisterTile`.
            #[inline(always)]
            unsafe fn load(c: *const f32) -> Self {
                unsafe { Self(_mm256_loadu_ps(c), _mm256_loadu_ps(c.add(8))) }
            }
            #[inline(always)]
            unsafe fn store(self, c: *mut f32) {
                unsafe {
                    _mm256_storeu_ps(c, self.0);
                    _mm256_storeu_ps(c.add(8), self.1);
                }
            }
            #[inline(always)]
            unsafe fn zero() -> Self {
                unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
            }
            #[inline(always)]
            unsafe fn cells(b: *const u32) -> Self::Cells {
                unsafe { (_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(8).cast())) }
            }
            #[inline(always)]
            unsafe fn splat(a: *const u32) -> Self::Cells {
                unsafe {
                    let x = _mm256_set1_epi32(a.cast::<i32>().read());
                    (x, x)
                }
            }
            #[inline(always)]
            unsafe fn step(self, a: Self::Cells, b: Self::Cells) -> Self {
                unsafe { Self($step(self.0, a.0, b.0), $step(self.1, a.1, b.1)) }
            }
        }
    };
}

lanes!(F32, 6, fma);
lanes!(Pairs, 2, dot_pairs);
lanes!(ExactPairs, 4, dot_exact_pairs);

#[inline(always)]
unsafe fn fma(c: __m256, a: __m256i, b: __m256i) -> __m256 {
    unsafe { _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), c) }
}

#[inline(always)]
unsafe fn dot_pairs(c: __m256, a: __m256i, b: __m256i) -> __m256 {
    unsafe {
        let odd = |x| flush(_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000u32 as i32))));
        let even = |x| flush(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)));
        let x = _mm256_fmadd_ps(odd(a), odd(b), flush(c));
        let y = _mm256_fmadd_ps(even(a), even(b), flush(x));
        let is_edge = |x| _mm256_cmp_ps::<_CMP_EQ_OQ>(_mm256_andnot_ps(_mm256_set1_ps(-0.0), x), _mm256_set1_ps(EDGE));
        if _mm256_movemask_ps(_mm256_or_ps(is_edge(x), is_edge(y))) == 0 { flush(y) } else { at_the_edge(c, a, b) }
    }
}

/// For products and sums that are never below 2⁻¹²⁶ unless zero.
#[inline(always)]
unsafe fn dot_exact_pairs(c: __m256, a: __m256i, b: __m256i) -> __m256 {
    unsafe {
        let odd = |x| _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000u32 as i32)));
        let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
        _mm256_fmadd_ps(even(a), even(b), _mm256_fmadd_ps(odd(a), odd(b), c))
    }
}

/// Some lane is at the edge of underflow, which rounding may have hidden: computes lane by lane, by the definition.
#[cold]
fn at_the_edge(c: __m256, a: __m256i, b: __m256i) -> __m256 {
    // SAFETY: plain bits of the same size, both ways.
    unsafe {
        let c = transmute::<__m256, [f32; 8]>(c);
        let [a, b] = [a, b].map(|x| transmute::<__m256i, [u32; 8]>(x));
        transmute::<[f32; 8], __m256>(std::array::from_fn(|lane| Bf16::step(c[lane], a[lane], b[lane])))
    }
}

/// Flushes subnormals to zero; they keep their sign.
#[inline(always)]
unsafe fn flush(x: __m256) -> __m256 {
    unsafe {
        let sign = _mm256_set1_ps(-0.0);
        let is_small = _mm256_cmp_ps::<_CMP_LT_OQ>(_mm256_andnot_ps(sign, x), _mm256_set1_ps(EDGE));
        _mm256_blendv_ps(x, _mm256_and_ps(x, sign), is_small)
    }
}

micro!(F32_TILES, F32, target_feature(enable = "avx2,fma"));
micro!(BF16_TILES, Pairs, target_feature(enable = "avx2,fma"));
micro!(E4M3_TILES, ExactPairs, target_feature(enable = "avx2,fma"));
