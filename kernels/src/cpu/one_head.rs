//! Causal attention of one head over one document, for every form that has keys and values per head.
//!
//! Blocks of queries meet the keys up to the block's end, so memory grows with the document's length, not with its square. What a
//! mask hides has probability 0 and adds nothing, to the bit.

use super::{Cpu, Scratch, Shared, dot, exp_row, wide};
use crate::gemm::View;
use crate::{Real, Write};
use std::ops::Range;

/// Queries per block.
pub const BLOCK: usize = 64;

/// T rows of q and k `[T, qk]`, and of v `[T, value]`.
#[derive(Clone, Copy)]
pub struct OneHead<'a, T> {
    pub q: View<'a, T>,
    pub k: View<'a, T>,
    pub v: View<'a, T>,
    /// Of the softmax.
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

/// Writes o, of which this task alone writes the rows, and `lse` `[T]`.
pub fn forward<T: Real>(cpu: &Cpu, head: OneHead<T>, o: Place<T>, lse: &mut [T]) {
    let (length, value) = (head.q.rows, head.v.cols);
    let block = length.clamp(1, BLOCK);
    let mut scores = Scratch::<T>::new(block * length);
    let mut y = Scratch::<T>::new(block * value);
    for first in (0..length).step_by(block) {
        let last = (first + block).min(length);
        let count = last - first;
        let scores = &mut scores.0[..count * last];
        let y = &mut y.0[..count * value];
        T::multiply_alone(&cpu.gemm, head.q.slice(first, last), head.k.slice(0, last).t(), scores, Write::Set);
        let lse = &mut lse[first..last];
        let mut sums = [T::ZERO; BLOCK];
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                for (i, row) in scores.chunks_exact_mut(last).enumerate() {
                    let (seen, hidden) = row.split_at_mut(first + i + 1);
                    let (max, sum) = exp_row(seen, head.scale);
                    hidden.fill(T::ZERO);
                    sums[i] = T::ONE / sum;
                    lse[i] = max + sum.ln();
                }
            },
        );
        T::multiply_alone(&cpu.gemm, View::new(scores, count, last), head.v.slice(0, last), y, Write::Set);
        for ((row, y), &inverse) in (first..last).zip(y.chunks_exact(value)).zip(&sums) {
            // SAFETY: the caller's promise: these rows of o are this task's.
            let out = unsafe { o.row(row, value) };
            out.iter_mut().zip(y).for_each(|(out, &y)| *out = y * inverse);
        }
    }
}

/// What forward left, and the gradient of o; all `[T, value]`, lse `[T]`.
#[derive(Clone, Copy)]
pub struct Seen<'a, T> {
    pub o: View<'a, T>,
    pub d_o: View<'a, T>,
    pub lse: &'a [T],
}

/// Writes dq, of which this task alone writes the rows, dk `[T, qk]` and dv `[T, value]`. With P the probabilities and
/// D_i = Σ_j do_ij·o_ij: dV = Pᵀ·do, dS = P∘(do·Vᵀ − D)·scale, dQ = dS·K, dK = dSᵀ·Q.
pub fn backward<T: Real>(cpu: &Cpu, head: OneHead<T>, seen: Seen<T>, dq: Place<T>, dk: &mut [T], dv: &mut [T]) {
    let (length, qk, value) = (head.q.rows, head.q.cols, head.v.cols);
    let block = length.clamp(1, BLOCK);
    let (mut p, mut ds) = (Scratch::<T>::new(block * length), Scratch::<T>::new(block * length));
    let mut rows = Scratch::<T>::new(block * qk);
    dk.fill(T::ZERO);
    dv.fill(T::ZERO);
    for first in (0..length).step_by(block) {
        let last = (first + block).min(length);
        let count = last - first;
        let (p, ds) = (&mut p.0[..count * last], &mut ds.0[..count * last]);
        let (q, k, v) = (head.q.slice(first, last), head.k.slice(0, last), head.v.slice(0, last));
        let d_o = seen.d_o.slice(first, last);
        T::multiply_alone(&cpu.gemm, q, k.t(), p, Write::Set);
        T::multiply_alone(&cpu.gemm, d_o, v.t(), ds, Write::Set);
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                for i in 0..count {
                    let d = dot(seen.o.run(first + i, 0, value), d_o.run(i, 0, value));
                    let (lse, visible) = (seen.lse[first + i], first + i + 1);
                    let (p, hidden) = p[i * last..(i + 1) * last].split_at_mut(visible);
                    let (ds, ds_hidden) = ds[i * last..(i + 1) * last].split_at_mut(visible);
                    for (p, ds) in p.iter_mut().zip(ds) {
                        *p = (*p * head.scale - lse).exp();
                        *ds = *p * (*ds - d) * head.scale;
                    }
                    hidden.fill(T::ZERO);
                    ds_hidden.fill(T::ZERO);
                }
            },
        );
        let (p, ds) = (View::new(p, count, last), View::new(ds, count, last));
        T::multiply_alone(&cpu.gemm, p.t(), d_o, &mut dv[..last * value], Write::Add);
        T::multiply_alone(&cpu.gemm, ds.t(), q, &mut dk[..last * qk], Write::Add);
        T::multiply_alone(&cpu.gemm, ds, k, &mut rows.0[..count * qk], Write::Set);
        for (row, rows) in (first..last).zip(rows.0.chunks_exact(qk)) {
            // SAFETY: the caller's promise: these rows of dq are this task's.
            unsafe { dq.row(row, qk) }.copy_from_slice(rows);
        }
    }
}
