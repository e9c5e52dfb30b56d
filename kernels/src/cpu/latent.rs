//! Attention from the latent cache. Its key half of kv_b is absorbed into the query and its value half into the output,
//! so a cached position takes latent + rope elements whatever the number of heads (DeepSeek-V2, §2.1.2).
//!
//! Generation has only this form: prefill, decoding and verification differ in the number of rows, and a row does not
//! depend on the other rows. So a request's tokens have the same bits in any batch.
//!
//! Pages change no bit either: a page's scores are a product of its own, and the weighted sum of the latents goes on
//! from one page to the next in one chain of additions.

use super::device::Cpu;
use super::gemm::{Causal, View, wide};
use super::scratch::Scratch;
use super::vectors::exp_row;
use crate::backend::Write;
use crate::backend::{AttentionShape, CachedRows};
use crate::dtype::DType;
use crate::rectangle::Rectangle;
use crate::tensor::Tensor;

pub(super) fn attention(cpu: &Cpu, s: &AttentionShape, q: &Tensor, kv_b: &Tensor, requests: &[CachedRows]) -> Tensor {
    let (n, qk, kv) = (q.rows(), s.nope + s.rope, s.nope + s.value);
    let latent = kv_b.cols();
    let width = latent + s.rope;
    q.expect("latent_attention: q", [n, s.heads * qk]);
    kv_b.expect("latent_attention: kv_b", [s.heads * kv, latent]);
    let rows: usize = requests.iter().map(|request| request.rows.len()).sum();
    assert!(rows == n, "latent_attention: requests have {rows} of {n} rows");
    let (q, kv_b) = (q.read::<f32>(), kv_b.read::<f32>());
    let up = |head: usize, first: usize, rows: usize| {
        View::new(&kv_b[(head * kv + first) * latent..][..rows * latent], rows, latent)
    };

    // queries multiplied by the key half of kv_b, [N, H, latent + rope]
    let mut absorbed = Scratch::<f32>::new(n * s.heads * width);
    let row = s.heads * width;
    let heads = Rectangle::new(&mut absorbed.0, n, row, row).columns(s.heads).enumerate().collect();
    cpu.gemm.pool().each(heads, |(head, mut absorbed): (usize, Rectangle<f32>)| {
        let mut part = Scratch::<f32>::new(n * latent);
        let view = View::strided(&q[head * qk..], n, s.nope, s.heads * qk);
        cpu.gemm.alone(view, up(head, 0, s.nope), &mut part.0[..n * latent], Write::Set);
        for (row, part) in part.0.chunks_exact(latent).take(n).enumerate() {
            let out = absorbed.row(row);
            out[..latent].copy_from_slice(part);
            out[latent..].copy_from_slice(&q[row * s.heads * qk + head * qk + s.nope..][..s.rope]);
        }
    });

    // attention over the cached latents, per head, [N, H, latent]
    let mut seen = Scratch::<f32>::new(n * s.heads * latent);
    let (mut rest, mut tasks, absorbed) = (&mut seen.0[..n * s.heads * latent], Vec::new(), &absorbed.0);
    let mut next = 0;
    for request in requests {
        let rows = &request.rows;
        assert!(rows.start == next, "latent_attention: rows {rows:?} after row {next}");
        next = rows.end;
        if rows.is_empty() {
            continue;
        }
        let out = rest.split_off_mut(..rows.len() * s.heads * latent).expect("there are as many rows");
        tasks.push((request, request.read("latent_attention", width), out));
    }
    cpu.gemm.pool().each(tasks, |(request, pages, out): (&CachedRows, Vec<&[f32]>, &mut [f32])| {
        let (rows, length) = (&request.rows, request.length);
        let count = rows.len() * s.heads;
        let mut scores = Scratch::<f32>::new(count * length);
        let scores = &mut scores.0[..count * length];
        let query = View::new(&absorbed[rows.start * s.heads * width..][..count * width], count, width);
        for (page, held) in pages.iter().zip(request.spans()) {
            let keys = View::new(page, held.len(), width).t();
            cpu.gemm.alone_into(query, keys, &mut scores[held.start..], length, Write::Set, Causal::All);
        }
        let mut inverse = Scratch::<f32>::new(count);
        wide(
            cpu.gemm.level(),
            #[inline(always)]
            || {
                for (i, (row, inverse)) in scores.chunks_exact_mut(length).zip(inverse.0.iter_mut()).enumerate() {
                    let visible = length - rows.len() + i / s.heads + 1;
                    *inverse = 1.0 / exp_row(row, visible, s.scale as f32).1;
                }
            },
        );
        for (page, held) in pages.iter().zip(request.spans()) {
            let weights = View::strided(&scores[held.start..], count, held.len(), length);
            let write = if held.start == 0 { Write::Set } else { Write::Add };
            cpu.gemm.alone(weights, View::strided(page, held.len(), latent, width), out, write);
        }
        for (out, &inverse) in out.chunks_exact_mut(latent).zip(inverse.0.iter()) {
            out.iter_mut().for_each(|x| *x *= inverse);
        }
    });

    let mut o = Tensor::empty([n, s.heads * s.value], DType::F32);
    let (seen, row) = (&seen.0, s.heads * s.value);
    let heads = Rectangle::new(o.write::<f32>(), n, row, row).columns(s.heads).enumerate().collect();
    cpu.gemm.pool().each(heads, |(head, mut o): (usize, Rectangle<f32>)| {
        let mut part = Scratch::<f32>::new(n * s.value);
        let view = View::strided(&seen[head * latent..], n, latent, s.heads * latent);
        cpu.gemm.alone(view, up(head, s.nope, s.value).t(), &mut part.0[..n * s.value], Write::Set);
        for (row, part) in part.0.chunks_exact(s.value).take(n).enumerate() {
            o.row(row).copy_from_slice(part);
        }
    });
    o
}
