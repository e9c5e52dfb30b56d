//! Causal attention of one head over one document, for every form that has keys and values per head.
//!
//! Each block of queries is multiplied by the keys up to the block's end. The exponentials of short documents are kept
//! for backward; those of long ones are computed again, so that memory grows with a document's length and not with its
//! square. A masked key has probability exactly 0 and changes no bit. Rows of working memory are whole vectors, so that
//! no loop has a remainder.

use super::device::Cpu;
use super::gemm::wide;
use super::gemm::{Causal, View};
use super::products::Products;
use super::scratch::Scratch;
use super::vectors::vectors;
use super::vectors::{copy, dot, exp_from, max_of, padded};
use crate::backend::Softmax;
use crate::backend::Write;
use crate::document_bounds::Documents;
use crate::dtype::Real;
use crate::prefetch::prefetch_run;
use crate::rectangle::Rectangle;
use crate::tensor::Tensor;
use std::ops::Range;

/// Queries per block: eight tiles of a product, but few enough that little of the masked part is computed.
pub(super) const BLOCK: usize = 48;
/// Exponentials per query and head that are kept at most, on average: those of documents of 512 tokens, about as much
/// memory as queries, keys and values take.
const KEPT: usize = 320;
/// How many rows ahead the rows of a head are prefetched.
pub(super) const AHEAD: usize = 12;

/// Blocks of queries, and how wide their rows of scores are.
fn blocks(length: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    (0..length)
        .step_by(BLOCK)
        .map(move |first| first..length.min(first + BLOCK))
        .map(|rows| (rows.clone(), padded(rows.end)))
}

/// Scores of one head of a document.
fn scores(length: usize) -> usize {
    blocks(length).map(|(rows, width)| rows.len() * width).sum()
}

/// Whether the exponentials of all heads are few enough to keep.
fn keeps(documents: &Documents) -> bool {
    documents.iter().map(|rows| scores(rows.len())).sum::<usize>() <= documents.rows() * KEPT
}

/// A task per head of a document: its rows, the head, and its part of [`softmax`], which `split` cuts off by length, in
/// this order.
pub(super) fn tasks<P>(
    heads: usize,
    documents: &Documents,
    mut split: impl FnMut(usize) -> Option<P>,
) -> Vec<(Range<usize>, usize, P)> {
    let keeps = keeps(documents);
    let tasks = documents.iter().flat_map(|rows| (0..heads).map(move |head| (rows.clone(), head)));
    let part = |length| 2 * padded(length) + if keeps { scores(length) } else { 0 };
    tasks.map(|(rows, head)| (rows.clone(), head, split(part(rows.len())).expect("as long as all parts"))).collect()
}

/// Memory for what forward keeps for backward. The part of a task: per query the largest score·scale, and one over Σ
/// exp(score·scale − largest), each padded to whole vectors; then these exponentials, block by block, if they are
/// few enough to keep. (Otherwise backward computes them again by the same products and loops, with the same bits.)
pub(crate) fn softmax<T: Real>(heads: usize, documents: &Documents) -> Softmax {
    let mut all = 0;
    tasks(heads, documents, |len| {
        all += len;
        Some(())
    });
    Softmax(Tensor::empty([all], T::DTYPE))
}

/// T rows of q and k `[T, qk]`, and of v `[T, value]`.
#[derive(Clone, Copy)]
pub(super) struct OneHead<'a, T> {
    pub q: View<'a, T>,
    pub k: View<'a, T>,
    pub v: View<'a, T>,
    /// Of the softmax; positive.
    pub scale: T,
}

/// The part of each task of [`tasks`] in a matrix whose rows hold `heads` parts of equal width.
pub(super) fn parts<'a, T: Real>(
    matrix: &'a mut [T],
    heads: usize,
    documents: &Documents,
) -> impl Iterator<Item = Rectangle<'a, T>> {
    let (rows, width) = (documents.rows(), matrix.len() / documents.rows().max(1));
    Rectangle::new(matrix, rows, width, width).bands(documents.iter()).flat_map(move |band| band.columns(heads))
}

/// The rows of each task of [`tasks`] in a matrix that has a slab per head, `[H, N, width]`.
pub(super) fn slabs<'a, T: Real>(
    matrix: &'a mut [T],
    heads: usize,
    width: usize,
    documents: &Documents,
) -> impl Iterator<Item = &'a mut [T]> {
    let mut slabs: Vec<&mut [T]> = matrix.chunks_mut((documents.rows() * width).max(1)).collect();
    slabs.resize_with(heads, Default::default); // without rows there are no chunks
    let mut parts = Vec::with_capacity(heads * documents.count());
    for rows in documents.iter() {
        parts.extend(slabs.iter_mut().map(|slab| slab.split_off_mut(..rows.len() * width).expect("a slab has N rows")));
    }
    parts.into_iter()
}

/// `rows` of columns `first..first + cols` of a matrix `stride` wide.
pub(super) fn part<T: Real>(x: &[T], rows: Range<usize>, first: usize, cols: usize, stride: usize) -> View<'_, T> {
    let start = (rows.start * stride + first).min(x.len());
    View::strided(&x[start..], rows.len(), cols, stride)
}

/// `c = a·keysᵀ` for queries `first..` and the keys that each sees. What c holds for other keys is ignored.
fn by_keys<T: Products>(cpu: &Cpu, first: usize, a: View<T>, keys: &T::Ready<'_>, c: &mut [T], c_row: usize) {
    let causal = Causal::Columns { first };
    T::alone_into(&cpu.gemm, a, T::first_columns(keys, c_row), c, c_row, Write::Set, causal);
}

/// Writes o `[T, value]` and the task's part of [`softmax`].
pub(super) fn forward<T: Products>(cpu: &Cpu, head: OneHead<T>, mut o: Rectangle<T>, softmax: &mut [T]) {
    let (length, value) = (head.q.rows, head.v.cols);
    let (largest, rest) = softmax.split_at_mut(padded(length));
    let (inverse, mut kept) = rest.split_at_mut(padded(length));
    let mut memory = Scratch::<T>::new(if kept.is_empty() { BLOCK.min(length) * padded(length) } else { 0 });
    let mut y = Scratch::<T>::new(BLOCK.min(length) * padded(value));
    let keys = T::ready(&cpu.gemm, head.k.t());
    for (rows, width) in blocks(length) {
        let (first, last, count) = (rows.start, rows.end, rows.len());
        let scores = kept.split_off_mut(..count * width).unwrap_or_else(|| &mut memory.0[..count * width]);
        let y = &mut y.0[..count * padded(value)];
        o.prefetch(rows.clone());
        by_keys(cpu, first, head.q.slice(first, last), &keys, scores, width);
        let (largest, inverse) = (&mut largest[rows.clone()], &mut inverse[rows.clone()]);
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                // all maxima first: within one row the exponentials would wait for the maximum, with nothing to compute
                // meanwhile
                for (i, row) in scores.chunks_exact(width).enumerate() {
                    largest[i] = max_of(row, first + i + 1) * head.scale;
                }
                for (i, row) in scores.chunks_exact_mut(width).enumerate() {
                    if !kept.is_empty() {
                        // a row of the next block
                        prefetch_run(kept.as_ptr().wrapping_add(i * (width + BLOCK)), width + BLOCK);
                    }
                    inverse[i] = T::ONE / exp_from(row, first + i + 1, head.scale, largest[i]);
                }
            },
        );
        let (p, v) = (View::strided(scores, count, last, width), head.v.slice(0, last).whole_vectors());
        T::alone_into(&cpu.gemm, p, v.into(), y, padded(value), Write::Set, Causal::Before { first });
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                for ((row, y), &inverse) in rows.zip(y.chunks_exact_mut(padded(value))).zip(&*inverse) {
                    y.iter_mut().for_each(|y| *y *= inverse);
                    copy(o.row(row), &y[..value]);
                }
            },
        );
    }
}

/// What forward kept; o and its gradient `[T, value]`.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a, T> {
    pub o: View<'a, T>,
    pub d_o: View<'a, T>,
    pub softmax: &'a [T],
}

/// Where backward gets the exponentials from.
enum Exponentials<'a, T: Products> {
    /// Kept by forward: those of the remaining blocks.
    Kept(&'a [T]),
    /// Computed again.
    Again { keys: T::Ready<'a>, memory: Scratch<T> },
}

/// Writes dq `[T, qk]`, dk `[T, padded(qk)]` and dv `[T, padded(value)]`. With E the exponentials, and do' = do / ΣE
/// and D_i = Σ_j do'_ij·o_ij by rows: dV = Eᵀ·do', dS = E∘(do'·Vᵀ − D)·scale, dQ = dS·K, dK = dSᵀ·Q.
pub(super) fn backward<T: Products>(
    cpu: &Cpu,
    head: OneHead<T>,
    seen: Seen<T>,
    mut dq: Rectangle<T>,
    dk: &mut [T],
    dv: &mut [T],
) {
    let (length, qk, value) = (head.q.rows, head.q.cols, head.v.cols);
    let (largest, rest) = seen.softmax.split_at(padded(length));
    let (inverse, kept) = rest.split_at(padded(length));
    let block = BLOCK.min(length);
    let mut exponentials = match kept {
        [] => {
            Exponentials::Again { keys: T::ready(&cpu.gemm, head.k.t()), memory: Scratch::new(block * padded(length)) }
        }
        kept => Exponentials::Kept(kept),
    };
    let mut ds = Scratch::<T>::new(block * padded(length));
    let (mut d_o, mut rows_of_dq) = (Scratch::<T>::new(block * padded(value)), Scratch::<T>::new(block * padded(qk)));
    dk.fill(T::ZERO);
    dv.fill(T::ZERO);
    let values = T::ready(&cpu.gemm, head.v.t());
    for (rows, width) in blocks(length) {
        let (first, last, count) = (rows.start, rows.end, rows.len());
        let (q, k) = (head.q.slice(first, last), head.k.slice(0, last));
        dq.prefetch(rows.clone());
        let d_o = &mut d_o.0[..count * padded(value)];
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                let rows = rows.clone().zip(&inverse[rows.clone()]);
                for ((row, &inverse), to) in rows.zip(d_o.chunks_exact_mut(padded(value))) {
                    seen.d_o.prefetch(row + AHEAD, 0, value);
                    seen.o.prefetch(row, 0, value);
                    copy(&mut to[..value], seen.d_o.run(row, 0, value));
                    to.iter_mut().for_each(|x| *x *= inverse);
                }
            },
        );
        let e = match &mut exponentials {
            Exponentials::Kept(rest) => rest.split_off(..count * width).expect("forward kept those of all blocks"),
            Exponentials::Again { keys, memory } => {
                let e = &mut memory.0[..count * width];
                by_keys(cpu, first, q, keys, e, width);
                wide(
                    cpu.gemm.level(),
                    #[inline(always)]
                    || {
                        for (i, e) in e.chunks_exact_mut(width).enumerate() {
                            exp_from(e, first + i + 1, head.scale, largest[first + i]);
                        }
                    },
                );
                &*e
            }
        };
        let ds = &mut ds.0[..count * width];
        by_keys(cpu, first, View::strided(d_o, count, value, padded(value)), &values, ds, width);
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                let gradients = ds.chunks_exact_mut(width).zip(d_o.chunks_exact(padded(value)));
                for (i, (e, (ds, d_o))) in e.chunks_exact(width).zip(gradients).enumerate() {
                    let d = dot(seen.o.run(first + i, 0, value), &d_o[..value]);
                    gradient_of_scores(e, ds, first + i + 1, head.scale, d);
                }
            },
        );
        let (e, ds) = (View::strided(e, count, last, width), View::strided(ds, count, last, width));
        let (before, after) = (Causal::Before { first }, Causal::After { first });
        let (dk, dv) = (&mut dk[..last * padded(qk)], &mut dv[..last * padded(value)]);
        T::alone_into(
            &cpu.gemm,
            e.t(),
            View::new(d_o, count, padded(value)).into(),
            dv,
            padded(value),
            Write::Add,
            after,
        );
        T::alone_into(&cpu.gemm, ds.t(), q.whole_vectors().into(), dk, padded(qk), Write::Add, after);
        let rows_of_dq = &mut rows_of_dq.0[..count * padded(qk)];
        T::alone_into(&cpu.gemm, ds, k.whole_vectors().into(), rows_of_dq, padded(qk), Write::Set, before);
        for (row, of_dq) in rows.zip(rows_of_dq.chunks_exact(padded(qk))) {
            copy(dq.row(row), &of_dq[..qk]);
        }
    }
}

/// Turns one query's gradients of exponentials into gradients of scores, for the keys it sees; 0 for the others.
#[inline(always)]
fn gradient_of_scores<T: Real>(e: &[T], ds: &mut [T], visible: usize, scale: T, d: T) {
    // the exponentials of masked keys are 0, but the gradients beside them hold arbitrary values, perhaps NaN
    let whole = padded(visible);
    vectors([&e[..whole]], [&mut ds[..whole]], |[e], [ds]| [e * (ds - d) * scale]);
    ds[visible..].fill(T::ZERO);
}
