//! Causal attention of one head over one document, for every form that has keys and values per head.
//!
//! Blocks of queries meet the keys up to the block's end, so memory grows with the document's length, not with its square. What a
//! mask hides has probability 0 and adds nothing, to the bit. Rows of working memory are whole vectors, so that no loop has a rest.

use super::{Cpu, LANES, Scratch, Shared, copy, dot, exp_from, max_of, padded, wide};
use crate::gemm::{Causal, PackedB, View};
use crate::{Real, Write};
use std::ops::Range;

/// Queries per block: eight tiles of a product, and few enough that little is computed behind the mask.
pub const BLOCK: usize = 48;

/// T rows of q and k `[T, qk]`, and of v `[T, value]`.
#[derive(Clone, Copy)]
pub struct OneHead<'a, T> {
    pub q: View<'a, T>,
    pub k: View<'a, T>,
    pub v: View<'a, T>,
    /// Of the softmax; positive.
    pub scale: T,
}

/// The same rows and columns of a matrix that other tasks write elsewhere.
pub struct Place<'a, T> {
    pub data: &'a Shared<T>,
    /// Element of the first row, and the distance to the next.
    pub start: usize,
    pub stride: usize,
}

impl<T> Place<'_, T> {
    /// Asks for rows that will be written soon.
    fn prefetch(&self, rows: Range<usize>, width: usize) {
        rows.for_each(|row| self.data.prefetch(self.start + row * self.stride, width));
    }

    /// # Safety
    /// While the result lives nobody else reads or writes these elements.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, row: usize, width: usize) -> &mut [T] {
        // SAFETY: as promised to this function.
        unsafe { self.data.part(self.start + row * self.stride, width) }
    }
}

/// `rows` of columns `first..first + cols` of a matrix `stride` wide.
pub fn part<T: Real>(x: &[T], rows: Range<usize>, first: usize, cols: usize, stride: usize) -> View<'_, T> {
    let start = (rows.start * stride + first).min(x.len());
    View::strided(&x[start..], rows.len(), cols, stride)
}

/// Rows `first..` of a, queries, with the keys that they see: `c = a·keysᵀ`, of keys packed once for all blocks where they can be. What c has
/// for other keys is of no account.
fn by_keys<T: Real>(
    cpu: &Cpu,
    first: usize,
    a: View<T>,
    packed: &Option<PackedB<f32>>,
    keys: View<T>,
    c: &mut [T],
    c_row: usize,
) {
    let causal = Causal::Columns { first };
    match packed {
        Some(packed) => T::multiply_corner(&cpu.gemm, a, packed, c_row, c, c_row, causal),
        None => {
            let keys = keys.slice(0, c_row.min(keys.rows));
            T::multiply_alone_into(&cpu.gemm, a, keys.t(), c, c_row, Write::Set, causal);
        }
    }
}

/// Writes o, of which this task alone writes the rows, and `lse` `[T]`.
pub fn forward<T: Real>(cpu: &Cpu, head: OneHead<T>, o: Place<T>, lse: &mut [T]) {
    let (length, value) = (head.q.rows, head.v.cols);
    let block = length.clamp(1, BLOCK);
    let mut scores = Scratch::<T>::new(block * padded(length));
    let mut y = Scratch::<T>::new(block * padded(value));
    let keys = T::packed(&cpu.gemm, head.k.t());
    for first in (0..length).step_by(block) {
        let last = (first + block).min(length);
        let (count, width) = (last - first, padded(last));
        let scores = &mut scores.0[..count * width];
        let y = &mut y.0[..count * padded(value)];
        o.prefetch(first..last, value);
        by_keys(cpu, first, head.q.slice(first, last), &keys, head.k, scores, width);
        let lse = &mut lse[first..last];
        let mut sums = [T::ZERO; BLOCK];
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                // all maxima first: a row's exp waits for its maximum, and nothing else could be done meanwhile
                for (i, row) in scores.chunks_exact(width).enumerate() {
                    lse[i] = max_of(row, first + i + 1) * head.scale;
                }
                for (i, row) in scores.chunks_exact_mut(width).enumerate() {
                    sums[i] = exp_from(row, first + i + 1, head.scale, lse[i]);
                }
                for (lse, sum) in lse.iter_mut().zip(&mut sums) {
                    *lse += sum.ln_normal(); // of 1 but for rounding, or more: the largest score adds that
                    *sum = T::ONE / *sum;
                }
            },
        );
        let (p, v) = (View::strided(scores, count, last, width), head.v.slice(0, last).whole_vectors());
        T::multiply_alone_into(&cpu.gemm, p, v, y, padded(value), Write::Set, Causal::Before { first });
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                for ((row, y), &inverse) in (first..last).zip(y.chunks_exact_mut(padded(value))).zip(&sums) {
                    y.iter_mut().for_each(|y| *y *= inverse);
                    // SAFETY: the caller's promise: these rows of o are this task's.
                    copy(unsafe { o.row(row, value) }, &y[..value]);
                }
            },
        );
    }
}

/// What forward left, and the gradient of o; all `[T, value]`, lse `[T]`.
#[derive(Clone, Copy)]
pub struct Seen<'a, T> {
    pub o: View<'a, T>,
    pub d_o: View<'a, T>,
    pub lse: &'a [T],
}

/// Writes dq, of which this task alone writes the rows, dk `[T, padded(qk)]` and dv `[T, padded(value)]`. With P the probabilities and
/// D_i = Σ_j do_ij·o_ij: dV = Pᵀ·do, dS = P∘(do·Vᵀ − D)·scale, dQ = dS·K, dK = dSᵀ·Q.
pub fn backward<T: Real>(cpu: &Cpu, head: OneHead<T>, seen: Seen<T>, dq: Place<T>, dk: &mut [T], dv: &mut [T]) {
    let (length, qk, value) = (head.q.rows, head.q.cols, head.v.cols);
    let block = length.clamp(1, BLOCK);
    let (mut p, mut ds) = (Scratch::<T>::new(block * padded(length)), Scratch::<T>::new(block * padded(length)));
    let mut rows = Scratch::<T>::new(block * padded(qk));
    dk.fill(T::ZERO);
    dv.fill(T::ZERO);
    let (keys, values) = (T::packed(&cpu.gemm, head.k.t()), T::packed(&cpu.gemm, head.v.t()));
    for first in (0..length).step_by(block) {
        let last = (first + block).min(length);
        let (count, width) = (last - first, padded(last));
        let (q, k, d_o) = (head.q.slice(first, last), head.k.slice(0, last), seen.d_o.slice(first, last));
        let (p, ds) = (&mut p.0[..count * width], &mut ds.0[..count * width]);
        (first..last).for_each(|row| seen.o.prefetch(row, 0, value));
        dq.prefetch(first..last, qk);
        by_keys(cpu, first, q, &keys, head.k, p, width);
        by_keys(cpu, first, d_o, &values, head.v, ds, width);
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                let rows = p.chunks_exact_mut(width).zip(ds.chunks_exact_mut(width));
                for (i, (p, ds)) in rows.enumerate() {
                    let d = dot(seen.o.run(first + i, 0, value), d_o.run(i, 0, value));
                    let (lse, visible) = (seen.lse[first + i], first + i + 1);
                    gradient_of_scores(p, ds, visible, head.scale, lse, d);
                }
            },
        );
        let (p, ds) = (View::strided(p, count, last, width), View::strided(ds, count, last, width));
        let (before, after) = (Causal::Before { first }, Causal::After { first });
        let (dk, dv) = (&mut dk[..last * padded(qk)], &mut dv[..last * padded(value)]);
        T::multiply_alone_into(&cpu.gemm, p.t(), d_o.whole_vectors(), dv, padded(value), Write::Add, after);
        T::multiply_alone_into(&cpu.gemm, ds.t(), q.whole_vectors(), dk, padded(qk), Write::Add, after);
        let rows = &mut rows.0[..count * padded(qk)];
        T::multiply_alone_into(&cpu.gemm, ds, k.whole_vectors(), rows, padded(qk), Write::Set, before);
        for (row, rows) in (first..last).zip(rows.chunks_exact(padded(qk))) {
            // SAFETY: the caller's promise: these rows of dq are this task's.
            copy(unsafe { dq.row(row, qk) }, &rows[..qk]);
        }
    }
}

/// Of one query: scores to probabilities p, gradients of probabilities to those of scores, for the keys it sees; 0 for the others.
#[inline(always)]
fn gradient_of_scores<T: Real>(p: &mut [T], ds: &mut [T], visible: usize, scale: T, lse: T, d: T) {
    let gradient = |p: &mut [T; LANES], ds: &mut [T; LANES]| {
        for lane in 0..LANES {
            p[lane] = p[lane].mul_add(scale, -lse).exp_below();
            ds[lane] = p[lane] * (ds[lane] - d) * scale;
        }
    };
    let (p, ds) = (p.as_chunks_mut().0, ds.as_chunks_mut().0);
    let (whole, count) = (visible / LANES, visible % LANES);
    p[..whole].iter_mut().zip(&mut ds[..whole]).for_each(|(p, ds)| gradient(p, ds));
    let mut hidden = whole;
    if count > 0 {
        let (p, ds) = (&mut p[whole], &mut ds[whole]);
        gradient(p, ds);
        for lane in 0..LANES {
            p[lane] = if lane < count { p[lane] } else { T::ZERO };
            ds[lane] = if lane < count { ds[lane] } else { T::ZERO };
        }
        hidden += 1;
    }
    p[hidden..].fill([T::ZERO; LANES]);
    ds[hidden..].fill([T::ZERO; LANES]);
}
