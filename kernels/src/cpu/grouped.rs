//! Grouped-query attention (Ainslie et al. 2023): query head h reads key-value head h / (heads / kv_heads).
//!
//! Training's form has a task per query head of a document; gradients of keys and values are summed over the query
//! heads of a key-value head, in their order. Generation's form reads a cache and has a task per request and key-value
//! head. Prefill and decoding differ in the number of rows, and a row does not depend on the other rows. Pages change
//! no bit, as in latent attention.

use super::device::Cpu;
use super::gemm::{Causal, View, wide};
use super::one_head::{self, BLOCK, OneHead, Seen, part};
use super::products::Products;
use super::scratch::Scratch;
use super::vectors::{exp_row, padded};
use crate::backend::Write;
use crate::backend::{CachedRows, GroupedShape, Softmax};
use crate::document_bounds::Documents;
use crate::dtype::{DType, Real};
use crate::rectangle::Rectangle;
use crate::spans::spans;
use crate::tensor::Tensor;
use std::ops::Range;

fn check(s: &GroupedShape, q: &Tensor, k: &Tensor, v: &Tensor, documents: &Documents) {
    let (n, kv_row) = (documents.rows(), s.kv_heads * s.dim);
    q.expect("grouped_attention: q", [n, s.heads * s.dim]);
    k.expect("grouped_attention: k", [n, kv_row]);
    v.expect("grouped_attention: v", [n, kv_row]);
}

/// The rows of one query head and of the key-value head it reads.
fn one<'a, T: Real>(s: &GroupedShape, [q, k, v]: [&'a [T]; 3], rows: &Range<usize>, head: usize) -> OneHead<'a, T> {
    let (column, kv_row) = (head / s.queries_per_kv_head() * s.dim, s.kv_heads * s.dim);
    OneHead {
        q: part(q, rows.clone(), head * s.dim, s.dim, s.heads * s.dim),
        k: part(k, rows.clone(), column, s.dim, kv_row),
        v: part(v, rows.clone(), column, s.dim, kv_row),
        scale: T::of(s.scale),
    }
}

pub(super) fn forward<T: Products>(
    cpu: &Cpu,
    s: &GroupedShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
) -> (Tensor, Softmax) {
    check(s, q, k, v, documents);
    let (n, row) = (documents.rows(), s.heads * s.dim);
    let (mut o, mut softmax) = (Tensor::empty([n, row], T::DTYPE), one_head::softmax::<T>(s.heads, documents));
    let inputs = [q, k, v].map(|x| x.read::<T>());
    let (out, mut rest) = (one_head::parts(o.write::<T>(), s.heads, documents), softmax.0.write::<T>());
    let tasks = one_head::tasks(s.heads, documents, |len| rest.split_off_mut(..len));
    cpu.gemm.pool().each(tasks.into_iter().zip(out).collect(), |((rows, head, softmax), o)| {
        one_head::forward(cpu, one(s, inputs, &rows, head), o, softmax);
    });
    (o, softmax)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward<T: Products>(
    cpu: &Cpu,
    s: &GroupedShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    softmax: &Softmax,
    d_o: &Tensor,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    check(s, q, k, v, documents);
    let (n, row) = (documents.rows(), s.heads * s.dim);
    d_o.expect("grouped_attention_backward: do", [n, row]);
    let mut dq = Tensor::empty(q.shape(), T::DTYPE);
    // one slab per query head
    let width = padded(s.dim);
    let slabs = || Tensor::empty([s.heads, n, width], T::DTYPE);
    let (mut dk, mut dv) = (slabs(), slabs());
    let inputs = [q, k, v].map(|x| x.read::<T>());
    let (o, d_o, mut rest) = (o.read::<T>(), d_o.read::<T>(), softmax.0.read::<T>());
    let tasks = one_head::tasks(s.heads, documents, |len| rest.split_off(..len));
    let out = one_head::parts(dq.write::<T>(), s.heads, documents)
        .zip(one_head::slabs(dk.write::<T>(), s.heads, width, documents))
        .zip(one_head::slabs(dv.write::<T>(), s.heads, width, documents));
    let tasks = tasks.into_iter().zip(out).collect();
    cpu.gemm.pool().each(tasks, |((rows, head, softmax), ((dq, dk), dv))| {
        let seen = Seen {
            o: part(o, rows.clone(), head * s.dim, s.dim, row),
            d_o: part(d_o, rows.clone(), head * s.dim, s.dim, row),
            softmax,
        };
        one_head::backward(cpu, one(s, inputs, &rows, head), seen, dq, dk, dv);
    });
    (dq, sum_over_queries::<T>(cpu, s, &dk), sum_over_queries::<T>(cpu, s, &dv))
}

/// Slabs `[H, N, padded(d)]` to `[N, G·d]`: each key-value head gets the sum over its query heads, in their order.
fn sum_over_queries<T: Real>(cpu: &Cpu, s: &GroupedShape, slabs: &Tensor) -> Tensor {
    let ([_, n, width], d) = (slabs.dims("sum_over_queries"), s.dim);
    let mut sum = Tensor::empty([n, s.kv_heads * d], T::DTYPE);
    let (slabs, step) = (slabs.read::<T>(), cpu.step(n, s.heads * d));
    let tasks = sum.write::<T>().chunks_mut(step * s.kv_heads * d).enumerate().collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(task, sum): (usize, &mut [T])| {
            for (i, sum) in sum.chunks_exact_mut(d).enumerate() {
                let (row, first) = (task * step + i / s.kv_heads, i % s.kv_heads * s.queries_per_kv_head());
                sum.copy_from_slice(&slabs[(first * n + row) * width..][..d]);
                for head in first + 1..first + s.queries_per_kv_head() {
                    sum.iter_mut().zip(&slabs[(head * n + row) * width..][..d]).for_each(|(sum, &x)| *sum += x);
                }
            }
        },
    );
    sum
}

/// q `[N, H·d]`; rows of the pages are [keys | values] of all key-value heads.
pub(super) fn cached(cpu: &Cpu, s: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor {
    let (n, d, per_kv_head) = (q.rows(), s.dim, s.queries_per_kv_head());
    let (row, width) = (s.heads * d, 2 * s.kv_heads * d);
    q.expect("cached_attention: q", [n, row]);
    let rows: usize = requests.iter().map(|request| request.rows.len()).sum();
    assert!(rows == n, "cached_attention: requests have {rows} of {n} rows");
    let mut o = Tensor::empty([n, row], DType::F32);
    let (q, out) = (q.read::<f32>(), Rectangle::new(o.write::<f32>(), n, row, row));
    let caches: Vec<_> = requests.iter().map(|request| (request, request.read("cached_attention", width))).collect();
    let bands = out.bands(requests.iter().map(|request| request.rows.clone()));
    let mut tasks = Vec::new();
    for ((request, pages), band) in caches.iter().zip(bands) {
        tasks.extend(band.columns(s.kv_heads).enumerate().map(|(head, out)| (*request, &pages[..], head, out)));
    }
    cpu.gemm.pool().each(tasks, |(request, pages, head, mut out): (&CachedRows, &[&[f32]], usize, Rectangle<f32>)| {
        let (rows, length) = (&request.rows, request.length);
        let block = rows.len().clamp(1, BLOCK);
        let mut queries = Scratch::<f32>::new(block * per_kv_head * d); // also holds the result
        let mut scores = Scratch::<f32>::new(block * per_kv_head * length);
        let mut inverse = Scratch::<f32>::new(block * per_kv_head);
        for first in rows.clone().step_by(block) {
            let block = first..(first + block).min(rows.end);
            let (count, visible) = (block.len() * per_kv_head, length - (rows.end - block.end));
            let queries = &mut queries.0[..count * d];
            let scores = &mut scores.0[..count * visible];
            for (row_of_q, queries) in block.clone().zip(queries.chunks_exact_mut(per_kv_head * d)) {
                queries.copy_from_slice(&q[row_of_q * row + head * per_kv_head * d..][..per_kv_head * d]);
            }
            let query = View::new(queries, count, d);
            for (page, seen) in pages.iter().zip(spans(visible, request.page_rows())) {
                let keys = part(page, 0..seen.len(), head * d, d, width).t();
                cpu.gemm.alone_into(query, keys, &mut scores[seen.start..], visible, Write::Set, Causal::All);
            }
            wide(
                cpu.gemm.level(),
                #[inline(always)]
                || {
                    for (i, (row, inverse)) in scores.chunks_exact_mut(visible).zip(inverse.0.iter_mut()).enumerate() {
                        let seen = visible - block.len() + i / per_kv_head + 1;
                        *inverse = 1.0 / exp_row(row, seen, s.scale as f32).1;
                    }
                },
            );
            for (page, seen) in pages.iter().zip(spans(visible, request.page_rows())) {
                let weights = View::strided(&scores[seen.start..], count, seen.len(), visible);
                let values = part(page, 0..seen.len(), (s.kv_heads + head) * d, d, width);
                let write = if seen.start == 0 { Write::Set } else { Write::Add };
                cpu.gemm.alone(weights, values, queries, write);
            }
            let read = queries.chunks_exact(per_kv_head * d).zip(inverse.0.chunks_exact(per_kv_head));
            for (row_of_o, (read, inverse)) in block.zip(read) {
                let out = out.row(row_of_o - rows.start);
                for ((out, read), inverse) in out.chunks_exact_mut(d).zip(read.chunks_exact(d)).zip(inverse) {
                    out.iter_mut().zip(read).for_each(|(out, x)| *out = x * inverse);
                }
            }
        }
    });
    o
}
