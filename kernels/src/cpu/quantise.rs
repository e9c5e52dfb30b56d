//! Quantises f32 to FP8, rounds f32 to bf16, and decodes FP8 to bf16, which holds every E4M3 number exactly.

use super::device::Cpu;
use crate::dtype::DType;
use crate::fp8::{E4m3, Quantiser, Scaled, TILE};
use crate::segments::Segments;
use crate::spans::spans;
use crate::tensor::Tensor;
use half::bf16;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bits of infinity. As integers, the bits of magnitudes are in the order of the magnitudes.
const INFINITE: u32 = 0x7f80_0000;

/// Two passes: the first finds the largest magnitude of every tile, the second computes the bytes. Returns also whether
/// no value was infinite or NaN.
pub(super) fn quantise(cpu: &Cpu, x: &Tensor, how: Quantiser, segments: Option<&Segments>) -> (Scaled, bool) {
    let (n, d) = (x.rows(), x.cols());
    if let Some(segments) = segments {
        assert!(segments.rows() == n, "quantise: x has {n} rows, its segments {}", segments.rows());
    }
    let (bands, width) = (how.tile.bands(n, segments), how.tile.width(d));
    let across = d.div_ceil(width);
    // bands are cut into pieces of 128 rows, so that a single band (`Tile::Tensor`) keeps all threads busy
    let cut = |(band, rows): (usize, &Range<usize>)| {
        let start = rows.start;
        spans(rows.len(), TILE).map(move |part| (band, start + part.start..start + part.end))
    };
    let pieces: Vec<(usize, Range<usize>)> = bands.iter().enumerate().flat_map(cut).collect();
    let rows_per_piece = n.div_ceil(pieces.len().max(1)).max(1);
    let step = cpu.step(pieces.len(), 2 * rows_per_piece * d);

    let x = x.read::<f32>();
    let (mut largest, is_finite) = (vec![0u32; pieces.len() * across], AtomicBool::new(true));
    let tasks = pieces.chunks(step).zip(largest.chunks_mut(step * across)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(pieces, largest): (&[(usize, Range<usize>)], &mut [u32])| {
            let mut any = 0;
            for ((_, rows), largest) in pieces.iter().zip(largest.chunks_exact_mut(across)) {
                for row in x[rows.start * d..rows.end * d].chunks_exact(d) {
                    any = any.max(row_maxima(row, width, largest));
                }
            }
            if any >= INFINITE {
                is_finite.store(false, Ordering::Relaxed);
            }
        },
    );
    let mut scale = Tensor::zeros([bands.len(), across], DType::F32);
    let scales = scale.write::<f32>();
    let mut of_band = vec![0; bands.len() * across];
    for ((band, _), largest) in pieces.iter().zip(largest.chunks_exact(across)) {
        of_band[band * across..].iter_mut().zip(largest).for_each(|(all, &one)| *all = one.max(*all));
    }
    scales.iter_mut().zip(of_band).for_each(|(scale, bits)| *scale = how.scale(f32::from_bits(bits)));

    let (mut q, scales) = (Tensor::empty([n, d], DType::E4m3), &*scales);
    let (mut rest, mut tasks) = (q.write::<E4m3>(), Vec::new());
    for pieces in pieces.chunks(step) {
        let rows = pieces[0].1.start..pieces[pieces.len() - 1].1.end;
        tasks.push((pieces, rest.split_off_mut(..rows.len() * d).expect("pieces cover the rows in order")));
    }
    cpu.each(
        tasks,
        #[inline(always)]
        |(pieces, q): (&[(usize, Range<usize>)], &mut [E4m3])| {
            let first = pieces[0].1.start;
            for (band, rows) in pieces {
                let scale = &scales[band * across..][..across];
                let q = &mut q[(rows.start - first) * d..(rows.end - first) * d];
                for (x, q) in x[rows.start * d..rows.end * d].chunks_exact(d).zip(q.chunks_exact_mut(d)) {
                    encode_row(x, scale, width, q);
                }
            }
        },
    );
    (Scaled { q, scale, how }, is_finite.into_inner())
}

/// Raises `largest` to the finite magnitudes of a row, per tile of `width`; returns the largest of all, as bits.
#[inline(always)]
fn row_maxima(row: &[f32], width: usize, largest: &mut [u32]) -> u32 {
    let finite = |bits: u32| if bits < INFINITE { bits } else { 0 };
    let mut any = 0;
    if width == 1 {
        for (&x, largest) in row.iter().zip(largest) {
            let bits = x.abs().to_bits();
            any = any.max(bits);
            *largest = finite(bits).max(*largest);
        }
        return any;
    }
    for (part, largest) in row.chunks(width).zip(largest) {
        let (mut here, mut top) = (0, 0);
        for &x in part {
            let bits = x.abs().to_bits();
            here = here.max(bits);
            top = finite(bits).max(top);
        }
        any = any.max(here);
        *largest = top.max(*largest);
    }
    any
}

#[inline(always)]
fn encode_row(x: &[f32], scale: &[f32], width: usize, q: &mut [E4m3]) {
    if width == 1 {
        q.iter_mut().zip(x.iter().zip(scale)).for_each(|(q, (&x, &scale))| *q = E4m3::from_f32(x / scale));
        return;
    }
    for ((x, q), &scale) in x.chunks(width).zip(q.chunks_mut(width)).zip(scale) {
        q.iter_mut().zip(x).for_each(|(q, &x)| *q = E4m3::from_f32(x / scale));
    }
}

/// E4M3 to bf16, exactly.
pub(super) fn decode(cpu: &Cpu, q: &Tensor) -> Tensor {
    let mut y = Tensor::empty(q.shape(), DType::Bf16);
    let step = cpu.step(q.len(), 1);
    let tasks = q.read::<E4m3>().chunks(step).zip(y.write::<bf16>().chunks_mut(step)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(q, y): (&[E4m3], &mut [bf16])| {
            y.iter_mut().zip(q).for_each(|(y, q)| *y = bf16::from_bits((q.to_f32().to_bits() >> 16) as u16));
        },
    );
    y
}

/// To the nearest bf16, ties to even.
pub(super) fn round(cpu: &Cpu, x: &Tensor) -> Tensor {
    let mut y = Tensor::empty(x.shape(), DType::Bf16);
    let step = cpu.step(x.len(), 1);
    let tasks = x.read::<f32>().chunks(step).zip(y.write::<bf16>().chunks_mut(step)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(x, y): (&[f32], &mut [bf16])| {
            for (y, x) in y.iter_mut().zip(x) {
                let bits = x.to_bits();
                let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
                let quiet = bits >> 16 | 0x40; // a NaN stays a NaN even if its high bits are those of infinity
                *y = bf16::from_bits(if x.is_nan() { quiet } else { nearest } as u16);
            }
        },
    );
    y
}
