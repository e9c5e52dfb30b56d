//! Causal attention of one head over one document, for every form that has keys and values per head.
//!
//! Blocks of queries meet the keys up to the block's end, so memory grows with the document's length, not with its square. What a
//! mask hides has probability 0 and adds nothing, to the bit.

use super::{Cpu, Scratch, Shared, dot, exp_row, wide};
use crate::gemm::{PackedB, View};
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

/// `c = a·b` for the first `columns` of b, packed once for all blocks where it can be.
fn by_keys<T: Real>(cpu: &Cpu, a: View<T>, packed: &Option<PackedB<f32>>, b: View<T>, columns: usize, c: &mut [T]) {
    match packed {
        Some(packed) => T::multiply_corner(&cpu.gemm, a, packed, columns, c),
        None => T::multiply_alone(&cpu.gemm, a, b.slice(0, columns).t(), c, Write::Set),
    }
}

/// `[rows, columns]` at the start of memory that goes on for a vector: products then read it where it lies.
fn matrix<T: Real>(x: &[T], rows: usize, columns: usize) -> View<'_, T> {
    View::strided(&x[..rows * columns + VECTOR], rows, columns, columns)
}

/// Elements of the widest vector.
const VECTOR: usize = 16;

/// Writes o, of which this task alone writes the rows, and `lse` `[T]`.
pub fn forward<T: Real>(cpu: &Cpu, head: OneHead<T>, o: Place<T>, lse: &mut [T]) {
    let (length, value) = (head.q.rows, head.v.cols);
    let block = length.clamp(1, BLOCK);
    let mut scores = Scratch::<T>::new(block * length);
    let mut y = Scratch::<T>::new(block * value);
    let keys = T::packed(&cpu.gemm, head.k.t());
    for first in (0..length).step_by(block) {
        let last = (first + block).min(length);
        let count = last - first;
        let scores = &mut scores.0[..count * last];
        let y = &mut y.0[..count * value];
        by_keys(cpu, head.q.slice(first, last), &keys, head.k, last, scores);
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
/// D_i = Σ_j do_ij·o_ij: dVᵀ = doᵀ·P, dS = P∘(do·Vᵀ − D)·scale, dQ = dS·K, dKᵀ = Qᵀ·dS.
pub fn backward<T: Real>(cpu: &Cpu, head: OneHead<T>, seen: Seen<T>, dq: Place<T>, dk: &mut [T], dv: &mut [T]) {
    let (length, qk, value) = (head.q.rows, head.q.cols, head.v.cols);
    let block = length.clamp(1, BLOCK);
    let mut p = Scratch::<T>::new(block * length + VECTOR);
    let mut ds = Scratch::<T>::new(block * length + VECTOR);
    let mut rows = Scratch::<T>::new(block * qk);
    // dk and dv transposed: so the large factor, a block of p or ds, is read where it lies
    let (mut dk_t, mut dv_t) = (Scratch::<T>::new(qk * length), Scratch::<T>::new(value * length));
    let (dk_t, dv_t) = (&mut dk_t.0[..qk * length], &mut dv_t.0[..value * length]);
    dk_t.fill(T::ZERO);
    dv_t.fill(T::ZERO);
    let (keys, values) = (T::packed(&cpu.gemm, head.k.t()), T::packed(&cpu.gemm, head.v.t()));
    for first in (0..length).step_by(block) {
        let last = (first + block).min(length);
        let count = last - first;
        let (q, k, d_o) = (head.q.slice(first, last), head.k.slice(0, last), seen.d_o.slice(first, last));
        by_keys(cpu, q, &keys, head.k, last, &mut p.0[..count * last]);
        by_keys(cpu, d_o, &values, head.v, last, &mut ds.0[..count * last]);
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                for i in 0..count {
                    let d = dot(seen.o.run(first + i, 0, value), d_o.run(i, 0, value));
                    let (lse, visible) = (seen.lse[first + i], first + i + 1);
                    let (p, hidden) = p.0[i * last..(i + 1) * last].split_at_mut(visible);
                    let (ds, ds_hidden) = ds.0[i * last..(i + 1) * last].split_at_mut(visible);
                    for (p, ds) in p.iter_mut().zip(ds) {
                        *p = (*p * head.scale - lse).exp();
                        *ds = *p * (*ds - d) * head.scale;
                    }
                    hidden.fill(T::ZERO);
                    ds_hidden.fill(T::ZERO);
                }
            },
        );
        let (p, ds) = (matrix(&p.0, count, last), matrix(&ds.0, count, last));
        T::multiply_alone_into(&cpu.gemm, d_o.t(), p, dv_t, length, Write::Add);
        T::multiply_alone_into(&cpu.gemm, q.t(), ds, dk_t, length, Write::Add);
        T::multiply_alone(&cpu.gemm, ds, k, &mut rows.0[..count * qk], Write::Set);
        for (row, rows) in (first..last).zip(rows.0.chunks_exact(qk)) {
            // SAFETY: the caller's promise: these rows of dq are this task's.
            unsafe { dq.row(row, qk) }.copy_from_slice(rows);
        }
    }
    transpose(dk_t, dk, length);
    transpose(dv_t, dv, length);
}

/// `[width, length]` into `[length, width]`.
fn transpose<T: Real>(from: &[T], to: &mut [T], length: usize) {
    let width = from.len() / length.max(1);
    for (row, to) in to.chunks_exact_mut(width.max(1)).enumerate() {
        to.iter_mut().zip(from[row..].iter().step_by(length)).for_each(|(to, from)| *to = *from);
    }
}
