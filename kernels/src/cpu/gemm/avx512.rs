//! AVX-512: 6 × 64 outputs in 24 of 32 registers, 4 for B, the rest for splats of A. Each k takes 10 loads and 24
//! multiply-adds, so loads are no limit on a core that starts as many loads as multiply-adds per cycle (measured on Zen
//! 4; not on Zen 5). Also the transpose that packs B.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one SAFETY comment speaks for a trait's methods")]

use super::kernel::{Lanes, NR, micro};
use std::arch::x86_64::*;
use std::mem::transmute;

#[derive(Clone, Copy)]
struct F32(__m512);

#[derive(Clone, Copy)]
struct Pairs(__m512);

/// As `Pairs`, for CPUs without the instruction. Products of E4M3 numbers never need flushing.
#[derive(Clone, Copy)]
struct ExactPairs(__m512);

macro_rules! lanes {
    ($name:ident, |$acc:ident, $a:ident, $b:ident| $step:expr) => {
        impl Lanes for $name {
            type Cells = __m512i;
            const ROWS: usize = 6;
            const VECTORS: usize = 4;
            // SAFETY, of all: inlined into the functions below, which enable the features; the pointers are those of a
            // `RegisterTile`.
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
micro!(F32_TILES, F32, target_feature(enable = "avx512f"));
micro!(BF16_TILES, Pairs, target_feature(enable = "avx512f,avx512bf16"));
micro!(E4M3_TILES, ExactPairs, target_feature(enable = "avx512f"));

/// Transposes `depth` cells of each of up to 16 columns, which are contiguous from the pointers in `columns`, to rows
/// of 16 cells, [`NR`] apart. With fewer than 16 columns the rows end in zeros.
///
/// # Safety
/// The CPU has AVX-512 F; `columns` have `depth` cells, `to` has room for 16 cells in each of `depth` rows, and
/// `depth ≤ 16`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(columns: &[*const u32], depth: usize, to: *mut u32) {
    let mask = ((1u32 << depth) - 1) as u16;
    let mut x = [_mm512_setzero_ps(); 16];
    for (x, &column) in x.iter_mut().zip(columns) {
        // SAFETY: the mask reads `depth` cells.
        *x = unsafe { _mm512_maskz_loadu_ps(mask, column.cast()) };
    }
    // blocks of four columns by four cells: in lane l of y[4·b + c] cell 4·l + c of columns 4·b..4·b + 4
    let pair = |i: usize| (_mm512_unpacklo_ps(x[i], x[i + 1]), _mm512_unpackhi_ps(x[i], x[i + 1]));
    let double = _mm512_castps_pd;
    let mut y = [_mm512_setzero_pd(); 16];
    for b in (0..16).step_by(4) {
        let ((low, high), (next_low, next_high)) = (pair(b), pair(b + 2));
        y[b] = _mm512_unpacklo_pd(double(low), double(next_low));
        y[b + 1] = _mm512_unpackhi_pd(double(low), double(next_low));
        y[b + 2] = _mm512_unpacklo_pd(double(high), double(next_high));
        y[b + 3] = _mm512_unpackhi_pd(double(high), double(next_high));
    }
    // then those blocks of 128 bits, four by four
    for c in 0..4 {
        let [p, q, r, s] = [y[c], y[c + 4], y[c + 8], y[c + 12]].map(|y| _mm512_castpd_ps(y));
        let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(p, q), _mm512_shuffle_f32x4::<0xdd>(p, q));
        let (next_even, next_odd) = (_mm512_shuffle_f32x4::<0x88>(r, s), _mm512_shuffle_f32x4::<0xdd>(r, s));
        let cells = [
            _mm512_shuffle_f32x4::<0x88>(even, next_even),
            _mm512_shuffle_f32x4::<0x88>(odd, next_odd),
            _mm512_shuffle_f32x4::<0xdd>(even, next_even),
            _mm512_shuffle_f32x4::<0xdd>(odd, next_odd),
        ];
        for (l, cells) in cells.into_iter().enumerate() {
            if 4 * l + c < depth {
                // SAFETY: a row below `depth`.
                unsafe { _mm512_storeu_ps(to.add((4 * l + c) * NR).cast(), cells) }
            }
        }
    }
}
