//! Causal attention within documents, training's form: keys and values are there for every head.
//!
//! A task is one head of one document; inside it blocks of queries meet the keys up to the block's end, so memory grows with
//! the document's length, not with its square. What a mask hides has probability 0 and adds nothing, to the bit.

use super::{Cpu, Scratch, Shared, dot, exp_row, wide};
use crate::backend::AttentionShape;
use crate::gemm::View;
use crate::{Documents, Real, Tensor, Write};
use std::ops::Range;

/// Queries per block.
const BLOCK: usize = 128;

/// Where one head lies in the rows of q, kv and o.
struct Widths {
    qk: usize,
    q_row: usize,
    kv: usize,
    kv_row: usize,
    o_row: usize,
}

impl Widths {
    fn of(s: &AttentionShape) -> Self {
        let (qk, kv) = (s.nope + s.rope, s.nope + s.value);
        Self { qk, q_row: s.heads * qk, kv, kv_row: s.heads * kv, o_row: s.heads * s.value }
    }
}

fn tasks(s: &AttentionShape, documents: &Documents) -> Vec<(Range<usize>, usize)> {
    documents.iter().flat_map(|rows| (0..s.heads).map(move |head| (rows.clone(), head))).collect()
}

/// `rows` of columns `first..first + cols` of a matrix `stride` wide.
fn part<T: Real>(x: &[T], rows: Range<usize>, first: usize, cols: usize, stride: usize) -> View<'_, T> {
    let start = (rows.start * stride + first).min(x.len());
    View::strided(&x[start..], rows.len(), cols, stride)
}

/// Keys `[T, nope + rope]` of one head: its own part and the shared one.
fn gather_keys<T: Real>(s: &AttentionShape, kv: &[T], k_rope: &[T], rows: Range<usize>, head: usize, k: &mut [T]) {
    let w = Widths::of(s);
    for (row, k) in rows.zip(k.chunks_exact_mut(w.qk)) {
        k[..s.nope].copy_from_slice(&kv[row * w.kv_row + head * w.kv..][..s.nope]);
        k[s.nope..].copy_from_slice(&k_rope[row * s.rope..][..s.rope]);
    }
}

fn check(s: &AttentionShape, q: &Tensor, kv: &Tensor, k_rope: &Tensor, documents: &Documents) {
    let (n, w) = (documents.rows(), Widths::of(s));
    q.expect("attention: q", [n, w.q_row]);
    kv.expect("attention: kv", [n, w.kv_row]);
    k_rope.expect("attention: k_rope", [n, s.rope]);
}

pub fn forward<T: Real>(
    cpu: &Cpu,
    s: &AttentionShape,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    documents: &Documents,
) -> (Tensor, Tensor) {
    check(s, q, kv, k_rope, documents);
    let (n, w) = (documents.rows(), Widths::of(s));
    let (mut o, mut lse) = (Tensor::empty([n, w.o_row], T::DTYPE), Tensor::empty([s.heads, n], T::DTYPE));
    let (q, kv, k_rope) = (q.read::<T>(), kv.read::<T>(), k_rope.read::<T>());
    let (out, lse_out) = (Shared::new(o.write::<T>()), Shared::new(lse.write::<T>()));
    let scale = T::of(s.scale);
    cpu.gemm.pool().each(tasks(s, documents), |(rows, head)| {
        let length = rows.len();
        let block = length.min(BLOCK);
        let mut k = Scratch::<T>::new(length * w.qk);
        let mut scores = Scratch::<T>::new(block * length);
        let mut y = Scratch::<T>::new(block * s.value);
        gather_keys(s, kv, k_rope, rows.clone(), head, &mut k.0);
        for first in (0..length).step_by(block) {
            let last = (first + block).min(length);
            let (count, queries) = (last - first, rows.start + first..rows.start + last);
            let scores = &mut scores.0[..count * last];
            let y = &mut y.0[..count * s.value];
            let q = part(q, queries.clone(), head * w.qk, w.qk, w.q_row);
            T::multiply_alone(&cpu.gemm, q, View::new(&k.0[..last * w.qk], last, w.qk).t(), scores, Write::Set);
            // SAFETY: this task alone writes this head's rows of this document.
            let lse = unsafe { lse_out.part(head * n + queries.start, count) };
            let mut sums = [T::ZERO; BLOCK];
            wide(
                cpu.gemm.level(),
                #[inline(always)]
                || {
                    for (i, row) in scores.chunks_exact_mut(last).enumerate() {
                        let (seen, hidden) = row.split_at_mut(first + i + 1);
                        let (max, sum) = exp_row(seen, scale);
                        hidden.fill(T::ZERO);
                        sums[i] = T::ONE / sum;
                        lse[i] = max + sum.ln();
                    }
                },
            );
            let v = part(kv, rows.start..rows.start + last, head * w.kv + s.nope, s.value, w.kv_row);
            T::multiply_alone(&cpu.gemm, View::new(scores, count, last), v, y, Write::Set);
            for ((row, y), &inverse) in queries.zip(y.chunks_exact(s.value)).zip(&sums) {
                // SAFETY: as above.
                let out = unsafe { out.part(row * w.o_row + head * s.value, s.value) };
                out.iter_mut().zip(y).for_each(|(out, &y)| *out = y * inverse);
            }
        }
    });
    (o, lse)
}

/// With P the probabilities and D_i = Σ_j do_ij·o_ij: dV = Pᵀ·do, dS = P∘(do·Vᵀ − D)·scale, dQ = dS·K, dK = dSᵀ·Q.
#[allow(clippy::too_many_arguments)]
pub fn backward<T: Real>(
    cpu: &Cpu,
    s: &AttentionShape,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    d_o: &Tensor,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    check(s, q, kv, k_rope, documents);
    let (n, w) = (documents.rows(), Widths::of(s));
    d_o.expect("attention_backward: do", [n, w.o_row]);
    let (mut dq, mut dkv) = (Tensor::empty(q.shape(), T::DTYPE), Tensor::empty(kv.shape(), T::DTYPE));
    // one slab per head, summed below in the order of heads
    let mut partial = Tensor::empty([s.heads, n, s.rope], T::DTYPE);
    let (q, kv, k_rope) = (q.read::<T>(), kv.read::<T>(), k_rope.read::<T>());
    let (o, lse, d_o) = (o.read::<T>(), lse.read::<T>(), d_o.read::<T>());
    let out_q = Shared::new(dq.write::<T>());
    let (out_kv, out_rope) = (Shared::new(dkv.write::<T>()), Shared::new(partial.write::<T>()));
    let scale = T::of(s.scale);
    cpu.gemm.pool().each(tasks(s, documents), |(rows, head)| {
        let length = rows.len();
        let block = length.min(BLOCK);
        let mut k = Scratch::<T>::new(length * w.qk);
        let (mut dk, mut dv) = (Scratch::<T>::new(length * w.qk), Scratch::<T>::new(length * s.value));
        let (mut p, mut ds) = (Scratch::<T>::new(block * length), Scratch::<T>::new(block * length));
        let mut dq = Scratch::<T>::new(block * w.qk);
        gather_keys(s, kv, k_rope, rows.clone(), head, &mut k.0);
        dk.0[..length * w.qk].fill(T::ZERO);
        dv.0[..length * s.value].fill(T::ZERO);
        for first in (0..length).step_by(block) {
            let last = (first + block).min(length);
            let (count, queries) = (last - first, rows.start + first..rows.start + last);
            let (p, ds) = (&mut p.0[..count * last], &mut ds.0[..count * last]);
            let q = part(q, queries.clone(), head * w.qk, w.qk, w.q_row);
            let k = View::new(&k.0[..last * w.qk], last, w.qk);
            let v = part(kv, rows.start..rows.start + last, head * w.kv + s.nope, s.value, w.kv_row);
            let d_o_view = part(d_o, queries.clone(), head * s.value, s.value, w.o_row);
            T::multiply_alone(&cpu.gemm, q, k.t(), p, Write::Set);
            T::multiply_alone(&cpu.gemm, d_o_view, v.t(), ds, Write::Set);
            wide(
                cpu.gemm.level(),
                #[inline(always)]
                || {
                    for (i, row) in queries.clone().enumerate() {
                        let at = row * w.o_row + head * s.value;
                        let d = dot(&o[at..at + s.value], &d_o[at..at + s.value]);
                        let (lse, seen) = (lse[head * n + row], first + i + 1);
                        let (p, hidden) = p[i * last..(i + 1) * last].split_at_mut(seen);
                        let (ds, ds_hidden) = ds[i * last..(i + 1) * last].split_at_mut(seen);
                        for (p, ds) in p.iter_mut().zip(ds) {
                            *p = (*p * scale - lse).exp();
                            *ds = *p * (*ds - d) * scale;
                        }
                        hidden.fill(T::ZERO);
                        ds_hidden.fill(T::ZERO);
                    }
                },
            );
            let (p, ds) = (View::new(p, count, last), View::new(ds, count, last));
            T::multiply_alone(&cpu.gemm, p.t(), d_o_view, &mut dv.0[..last * s.value], Write::Add);
            T::multiply_alone(&cpu.gemm, ds.t(), q, &mut dk.0[..last * w.qk], Write::Add);
            T::multiply_alone(&cpu.gemm, ds, k, &mut dq.0[..count * w.qk], Write::Set);
            for (row, dq) in queries.zip(dq.0.chunks_exact(w.qk)) {
                // SAFETY: this task alone writes this head's rows of this document.
                unsafe { out_q.part(row * w.q_row + head * w.qk, w.qk) }.copy_from_slice(dq);
            }
        }
        for ((row, dk), dv) in rows.zip(dk.0.chunks_exact(w.qk)).zip(dv.0.chunks_exact(s.value)) {
            // SAFETY: as above; the slab of `out_rope` is this head's.
            unsafe {
                let dkv = out_kv.part(row * w.kv_row + head * w.kv, w.kv);
                dkv[..s.nope].copy_from_slice(&dk[..s.nope]);
                dkv[s.nope..].copy_from_slice(dv);
                out_rope.part((head * n + row) * s.rope, s.rope).copy_from_slice(&dk[s.nope..]);
            }
        }
    });
    let mut d_rope = Tensor::empty([n, s.rope], T::DTYPE);
    let (sum, partial) = (d_rope.write::<T>(), partial.read::<T>());
    let size = n * s.rope;
    sum.copy_from_slice(&partial[..size]);
    for head in 1..s.heads {
        sum.iter_mut().zip(&partial[head * size..]).for_each(|(sum, &x)| *sum += x);
    }
    (dq, dkv, d_rope)
}
