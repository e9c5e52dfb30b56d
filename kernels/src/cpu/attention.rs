//! Training's form of multi-head latent attention, causal within documents: every head has its own keys and values, but
//! all share the rotary part of the keys. A task is one head of one document.

use super::device::Cpu;
use super::gemm::View;
use super::one_head::{self, AHEAD, OneHead, Seen, part};
use super::products::Products;
use super::scratch::Scratch;
use super::vectors::{copy, padded};
use crate::backend::{AttentionShape, Softmax};
use crate::document_bounds::Documents;
use crate::dtype::Real;
use crate::prefetch::prefetch_run;
use crate::tensor::Tensor;
use std::ops::Range;

/// Widths of one head and of all heads in the rows of q, kv and o.
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

/// Copies the keys `[T, nope + rope]` of one head, its own part and the shared part, to rows of whole vectors.
fn gather_keys<T: Real>(s: &AttentionShape, kv: &[T], k_rope: &[T], rows: Range<usize>, head: usize, k: &mut [T]) {
    let w = Widths::of(s);
    for (row, k) in rows.zip(k.chunks_exact_mut(padded(w.qk))) {
        // the keys, and the values behind them
        prefetch_run(kv.as_ptr().wrapping_add((row + AHEAD) * w.kv_row + head * w.kv), w.kv);
        copy(&mut k[..s.nope], &kv[row * w.kv_row + head * w.kv..][..s.nope]);
        copy(&mut k[s.nope..w.qk], &k_rope[row * s.rope..][..s.rope]);
    }
}

fn check(s: &AttentionShape, q: &Tensor, kv: &Tensor, k_rope: &Tensor, documents: &Documents) {
    let (n, w) = (documents.rows(), Widths::of(s));
    q.expect("attention: q", [n, w.q_row]);
    kv.expect("attention: kv", [n, w.kv_row]);
    k_rope.expect("attention: k_rope", [n, s.rope]);
}

pub(super) fn forward<T: Products>(
    cpu: &Cpu,
    s: &AttentionShape,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    documents: &Documents,
) -> (Tensor, Softmax) {
    check(s, q, kv, k_rope, documents);
    let (n, w) = (documents.rows(), Widths::of(s));
    let (mut o, mut softmax) = (Tensor::empty([n, w.o_row], T::DTYPE), one_head::softmax::<T>(s.heads, documents));
    let (q, kv, k_rope) = (q.read::<T>(), kv.read::<T>(), k_rope.read::<T>());
    let (out, mut rest) = (one_head::parts(o.write::<T>(), s.heads, documents), softmax.0.write::<T>());
    let tasks = one_head::tasks(s.heads, documents, |len| rest.split_off_mut(..len));
    cpu.gemm.pool().each(tasks.into_iter().zip(out).collect(), |((rows, head, softmax), o)| {
        let length = rows.len();
        let mut k = Scratch::<T>::new(length * padded(w.qk));
        gather_keys(s, kv, k_rope, rows.clone(), head, &mut k.0);
        let one = OneHead {
            q: part(q, rows.clone(), head * w.qk, w.qk, w.q_row),
            k: View::strided(&k.0, length, w.qk, padded(w.qk)),
            v: part(kv, rows.clone(), head * w.kv + s.nope, s.value, w.kv_row),
            scale: T::of(s.scale),
        };
        one_head::forward(cpu, one, o, softmax);
    });
    (o, softmax)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward<T: Products>(
    cpu: &Cpu,
    s: &AttentionShape,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    o: &Tensor,
    softmax: &Softmax,
    d_o: &Tensor,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    check(s, q, kv, k_rope, documents);
    let (n, w) = (documents.rows(), Widths::of(s));
    d_o.expect("attention_backward: do", [n, w.o_row]);
    let (mut dq, mut dkv) = (Tensor::empty(q.shape(), T::DTYPE), Tensor::empty(kv.shape(), T::DTYPE));
    // gradients of the shared part, one slab per head, summed below in the order of heads
    let mut partial = Tensor::empty([s.heads, n, s.rope], T::DTYPE);
    let (q, kv, k_rope) = (q.read::<T>(), kv.read::<T>(), k_rope.read::<T>());
    let (o, d_o, mut rest) = (o.read::<T>(), d_o.read::<T>(), softmax.0.read::<T>());
    let tasks = one_head::tasks(s.heads, documents, |len| rest.split_off(..len));
    let out = one_head::parts(dq.write::<T>(), s.heads, documents)
        .zip(one_head::parts(dkv.write::<T>(), s.heads, documents))
        .zip(one_head::slabs(partial.write::<T>(), s.heads, s.rope, documents));
    let tasks = tasks.into_iter().zip(out).collect();
    cpu.gemm.pool().each(tasks, |((rows, head, softmax), ((dq, mut dkv), d_rope))| {
        let length = rows.len();
        let (k_width, v_width) = (padded(w.qk), padded(s.value));
        let mut k = Scratch::<T>::new(length * k_width);
        let (mut dk, mut dv) = (Scratch::<T>::new(length * k_width), Scratch::<T>::new(length * v_width));
        let (dk, dv) = (&mut dk.0[..length * k_width], &mut dv.0[..length * v_width]);
        gather_keys(s, kv, k_rope, rows.clone(), head, &mut k.0);
        let one = OneHead {
            q: part(q, rows.clone(), head * w.qk, w.qk, w.q_row),
            k: View::strided(&k.0, length, w.qk, k_width),
            v: part(kv, rows.clone(), head * w.kv + s.nope, s.value, w.kv_row),
            scale: T::of(s.scale),
        };
        let seen = Seen {
            o: part(o, rows.clone(), head * s.value, s.value, w.o_row),
            d_o: part(d_o, rows.clone(), head * s.value, s.value, w.o_row),
            softmax,
        };
        one_head::backward(cpu, one, seen, dq, dk, dv);
        for (row, (dk, dv)) in dk.chunks_exact(k_width).zip(dv.chunks_exact(v_width)).enumerate() {
            dkv.prefetch(row + AHEAD..row + AHEAD + 1);
            let dkv = dkv.row(row);
            copy(&mut dkv[..s.nope], &dk[..s.nope]);
            copy(&mut dkv[s.nope..], &dv[..s.value]);
            copy(&mut d_rope[row * s.rope..][..s.rope], &dk[s.nope..w.qk]);
        }
    });
    let mut d_rope = Tensor::empty([n, s.rope], T::DTYPE);
    let (partial, size, step) = (partial.read::<T>(), n * s.rope, cpu.step(n, s.heads * s.rope) * s.rope);
    cpu.each(
        d_rope.write::<T>().chunks_mut(step).enumerate().collect(),
        #[inline(always)]
        |(task, sum): (usize, &mut [T])| {
            let len = sum.len();
            let of = |head: usize| &partial[head * size + task * step..][..len];
            sum.copy_from_slice(of(0));
            for head in 1..s.heads {
                sum.iter_mut().zip(of(head)).for_each(|(sum, &x)| *sum += x);
            }
        },
    );
    (dq, dkv, d_rope)
}
