//! The table of operations on the CPU: chooses the element type, and where each operation is implemented.

use super::device::Cpu;
use super::{
    attention, balance, full_precision, grouped, head, latent, low_precision, optimizer, router, rows, sample,
};
use crate::backend::*;
use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::{DType, real};
use crate::fp8::{Operand, Quantiser};
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::ops::Range;

impl Backend for Cpu {
    fn empty(&self, shape: Shape, dtype: DType) -> Tensor {
        Tensor::empty(shape, dtype)
    }

    fn upload(&self, x: &Tensor) -> Tensor {
        x.clone()
    }

    fn download(&self, x: &Tensor) -> Tensor {
        x.clone()
    }

    fn download_beside(&self, tensors: &[&Tensor]) -> Downloads {
        Downloads::there(tensors.iter().map(|&x| x.clone()).collect())
    }

    fn hold_back(&self, _: &Copied) {}

    fn copy(&self, x: &Tensor) -> Tensor {
        x.copy()
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        x.cast(dtype)
    }

    fn collect(&self, parts: &[&Tensor]) -> Tensor {
        Tensor::concat(parts)
    }

    fn gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, c: &mut Tensor, write: Write) {
        real!(a, T => full_precision::gemm::<T>(self, layout, a, b, c, write));
    }

    fn grouped_gemm(&self, layout: Layout, a: &Tensor, w: &Tensor, segments: &Segments, c: &mut Tensor, write: Write) {
        real!(a, T => full_precision::grouped_gemm::<T>(self, layout, a, w, segments, c, write));
    }

    fn grouped_gradient(&self, dy: &Tensor, x: &Tensor, segments: &Segments, dw: &mut Tensor, write: Write) {
        real!(dy, T => full_precision::grouped_gradient::<T>(self, dy, x, segments, dw, write));
    }

    fn prepare(&self, w: &Tensor) {
        full_precision::prepare(self, w);
    }

    fn lower(
        &self,
        x: &Tensor,
        how: Option<Quantiser>,
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> Operand {
        low_precision::lower(self, x, how, segments, saturated)
    }

    fn lower_both(
        &self,
        x: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        how.map(|how| self.lower(x, Some(how), segments, saturated))
    }

    fn low_gemm(
        &self,
        layout: Layout,
        a: &Operand,
        w: &Tensor,
        segments: Option<&Segments>,
        c: &mut Tensor,
        write: Write,
    ) {
        match (a, segments) {
            (Operand::Plain(a), None) if a.dtype() != DType::Bf16 => self.gemm(layout, a, w, c, write),
            (Operand::Plain(a), Some(segments)) if a.dtype() != DType::Bf16 => {
                self.grouped_gemm(layout, a, w, segments, c, write);
            }
            _ => low_precision::gemm(self, layout, a, w, segments, c, write),
        }
    }

    fn low_gradient(&self, dy: &Operand, x: &Operand, segments: Option<&Segments>, dw: &mut Tensor, write: Write) {
        match (dy, x, segments) {
            (Operand::Plain(dy), Operand::Plain(x), None) if x.dtype() != DType::Bf16 => {
                self.gemm(Layout::Tn, dy, x, dw, write);
            }
            (Operand::Plain(dy), Operand::Plain(x), Some(segments)) if x.dtype() != DType::Bf16 => {
                self.grouped_gradient(dy, x, segments, dw, write);
            }
            _ => low_precision::gradient(self, dy, x, segments, dw, write),
        }
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
        real!(x, T => rows::rms_norm::<T>(self, x, gain, eps))
    }

    fn rms_norm_backward(&self, x: &Tensor, rstd: &Tensor, gain: &Tensor, dy: &Tensor, dgain: &mut Tensor) -> Tensor {
        real!(x, T => rows::rms_norm_backward::<T>(self, x, rstd, gain, dy, dgain))
    }

    in_two_passes!(norm);

    fn swiglu(&self, h: &Tensor) -> Tensor {
        real!(h, T => rows::swiglu::<T>(self, h))
    }

    fn swiglu_backward(&self, h: &Tensor, dy: &Tensor) -> Tensor {
        real!(h, T => rows::swiglu_backward::<T>(self, h, dy))
    }

    in_two_passes!(swiglu);

    fn rope(&self, x: &mut Tensor, heads: usize, offset: usize, rope: &Rope, positions: &Tensor, is_backward: bool) {
        real!(x, T => rows::rope::<T>(self, x, heads, offset, rope, positions, is_backward))
    }

    fn bias(&self, y: &mut Tensor, bias: &Tensor) {
        real!(bias, T => rows::bias::<T>(self, y, bias))
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) {
        real!(dy, T => rows::bias_backward::<T>(self, dy, dbias))
    }

    fn scale(&self, x: &mut Tensor, by: f64, over: f64) {
        real!(x, T => rows::scale::<T>(self, x, by, over))
    }

    fn fill(&self, x: &mut Tensor, value: f64) {
        x.fill(value);
    }

    fn add(&self, acc: &mut Tensor, x: &Tensor) {
        real!(x, T => rows::add::<T>(self, acc, x))
    }

    fn split(&self, x: &Tensor, at: usize) -> (Tensor, Tensor) {
        real!(x, T => rows::split::<T>(self, x, at))
    }

    fn join(&self, a: &Tensor, b: &Tensor) -> Tensor {
        real!(a, T => rows::join::<T>(self, a, b))
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        real!(q, T => attention::forward::<T>(self, shape, q, kv, k_rope, documents))
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        o: &Tensor,
        softmax: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        real!(q, T => attention::backward::<T>(self, shape, q, kv, k_rope, o, softmax, d_o, documents))
    }

    fn append(&self, page: &mut Tensor, at: usize, parts: &[&Tensor], rows: Range<usize>) {
        rows::append(page, at, parts, rows);
    }

    fn latent_attention(&self, shape: &AttentionShape, q: &Tensor, kv_b: &Tensor, requests: &[CachedRows]) -> Tensor {
        latent::attention(self, shape, q, kv_b, requests)
    }

    fn grouped_attention(
        &self,
        shape: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        real!(q, T => grouped::forward::<T>(self, shape, q, k, v, documents))
    }

    fn grouped_attention_backward(
        &self,
        shape: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        softmax: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        real!(q, T => grouped::backward::<T>(self, shape, q, k, v, o, softmax, d_o, documents))
    }

    fn cached_attention(&self, shape: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor {
        grouped::cached(self, shape, q, requests)
    }

    fn embedding(&self, ids: &Tensor, w: &Tensor) -> Tensor {
        real!(w, T => rows::gather::<T>(self, w, ids))
    }

    fn embedding_backward(&self, ids: &Tensor, dx: &Tensor, dw: &mut Tensor) {
        real!(dx, T => rows::embedding_backward::<T>(ids, dx, dw))
    }

    fn head(&self, x: &Tensor, w: &Tensor, targets: &Tensor) -> Head {
        real!(x, T => head::forward::<T>(self, x, w, targets))
    }

    fn head_backward(
        &self,
        head: Head,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        dlogp: &Tensor,
        dlse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor {
        real!(x, T => head::backward::<T>(self, head, x, w, targets, dlogp, dlse, dw))
    }

    fn draw(&self, logits: &Tensor, draws: &[Draw]) -> (Tensor, Tensor) {
        sample::draw(self, logits, draws)
    }

    fn route(&self, router: &Router, logits: &Tensor, bias: &Tensor) -> Routing {
        real!(logits, T => router::route::<T>(self, router, logits, bias))
    }

    fn route_backward(&self, router: &Router, r: &Routing, dweights: &Tensor, dscores: Option<&Tensor>) -> Tensor {
        real!(dweights, T => router::route_backward::<T>(self, router, r, dweights, dscores))
    }

    fn balance(
        &self,
        router: &Router,
        r: &Routing,
        counted: Counted,
        documents: Option<&Documents>,
        weight: f64,
        loss: &mut Tensor,
    ) -> Tensor {
        balance::loss(router, r, counted, documents, weight, loss)
    }

    fn count(&self, segments: &Segments, counts: &mut Tensor) {
        router::count(segments, counts);
    }

    fn balance_bias(&self, bias: &mut Tensor, counts: &Tensor, speed: f64) {
        router::balance_bias(bias, counts, speed);
    }

    fn gather(&self, x: &Tensor, rows: &Tensor) -> Tensor {
        real!(x, T => rows::gather::<T>(self, x, rows))
    }

    fn dispatch(&self, x: &Tensor, r: &Routing) -> Tensor {
        self.gather(x, &r.tokens)
    }

    fn gather_backward(&self, drows: &Tensor, slots: &Tensor, dx: &mut Tensor) {
        real!(drows, T => router::gather_backward::<T>(self, drows, slots, dx))
    }

    fn combine(&self, rows: &Tensor, r: &Routing, y: &mut Tensor) {
        real!(rows, T => router::combine::<T>(self, rows, r, y))
    }

    fn combine_backward(&self, rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor) {
        real!(rows, T => router::combine_backward::<T>(self, rows, r, dy))
    }

    fn square_sum(&self, x: &Tensor, sum: &mut Tensor) {
        sum.write::<f64>()[0] += real!(x, T => optimizer::square_sum::<T>(self, x));
    }

    fn total(&self, x: &Tensor, is_squared: bool, sums: &mut Tensor, at: usize) {
        optimizer::total(x, is_squared, sums, at);
    }

    fn clip(&self, square_sum: &Tensor, most: f64) -> Tensor {
        optimizer::clip(square_sum, most)
    }

    fn average(&self, acc: &mut Tensor, x: &Tensor, keep: f64) {
        real!(x, T => optimizer::average::<T>(self, acc, x, keep));
    }

    fn adamw(&self, hyper: &AdamW, w: &mut Tensor, dw: &Tensor, scale: &Tensor, m: &mut Tensor, v: &mut Tensor) {
        if m.dtype() == DType::Bf16 {
            return optimizer::adamw::<f32, half::bf16>(self, hyper, w, dw, scale, m, v);
        }
        real!(dw, T => optimizer::adamw::<T, T>(self, hyper, w, dw, scale, m, v))
    }
}
