//! The table of operations on the reference: chooses the element type.

use super::{attention, balance, head, optimizer, products, router, rows, sample};
use crate::backend::*;
use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::{DType, real};
use crate::fp8::{Operand, Quantiser};
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::ops::Range;

/// The device of the tests: slow, and obvious.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
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
        real!(a, T => products::gemm::<T>(layout, a, b, c, write));
    }

    fn grouped_gemm(&self, layout: Layout, a: &Tensor, w: &Tensor, segments: &Segments, c: &mut Tensor, write: Write) {
        real!(a, T => products::grouped_gemm::<T>(layout, a, w, segments, c, write));
    }

    fn grouped_gradient(&self, dy: &Tensor, x: &Tensor, segments: &Segments, dw: &mut Tensor, write: Write) {
        real!(dy, T => products::grouped_gradient::<T>(dy, x, segments, dw, write));
    }

    fn prepare(&self, _: &Tensor) {}

    fn lower(
        &self,
        x: &Tensor,
        how: Option<Quantiser>,
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> Operand {
        products::lower(x, how, segments, saturated)
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
        products::low_gemm(layout, a, w, segments, c, write);
    }

    fn low_gradient(&self, dy: &Operand, x: &Operand, segments: Option<&Segments>, dw: &mut Tensor, write: Write) {
        products::low_gradient(dy, x, segments, dw, write);
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
        real!(x, T => rows::rms_norm::<T>(x, gain, eps))
    }

    fn rms_norm_backward(&self, x: &Tensor, rstd: &Tensor, gain: &Tensor, dy: &Tensor, dgain: &mut Tensor) -> Tensor {
        real!(x, T => rows::rms_norm_backward::<T>(x, rstd, gain, dy, dgain))
    }

    in_two_passes!(norm);

    fn swiglu(&self, h: &Tensor) -> Tensor {
        real!(h, T => rows::swiglu::<T>(h))
    }

    fn swiglu_backward(&self, h: &Tensor, dy: &Tensor) -> Tensor {
        real!(h, T => rows::swiglu_backward::<T>(h, dy))
    }

    in_two_passes!(swiglu);

    fn rope(&self, x: &mut Tensor, heads: usize, offset: usize, rope: &Rope, positions: &Tensor, is_backward: bool) {
        real!(x, T => rows::rope::<T>(x, heads, offset, rope, positions.read(), is_backward))
    }

    fn bias(&self, y: &mut Tensor, bias: &Tensor) {
        real!(bias, T => rows::bias::<T>(y, bias))
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) {
        real!(dy, T => rows::bias_backward::<T>(dy, dbias))
    }

    fn scale(&self, x: &mut Tensor, by: f64, over: f64) {
        real!(x, T => rows::scale::<T>(x, by, over))
    }

    fn fill(&self, x: &mut Tensor, value: f64) {
        *x = Tensor::new(x.shape(), &vec![value; x.len()]).cast(x.dtype());
    }

    fn add(&self, acc: &mut Tensor, x: &Tensor) {
        real!(x, T => rows::add::<T>(acc, x))
    }

    fn split(&self, x: &Tensor, at: usize) -> (Tensor, Tensor) {
        real!(x, T => rows::split::<T>(x, at))
    }

    fn join(&self, a: &Tensor, b: &Tensor) -> Tensor {
        real!(a, T => rows::join::<T>(a, b))
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        (real!(q, T => attention::attention::<T>(shape, q, kv, k_rope, documents)), nothing(q))
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        _: &Tensor,
        _: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        real!(q, T => attention::attention_backward::<T>(shape, q, kv, k_rope, d_o, documents))
    }

    fn append(&self, page: &mut Tensor, at: usize, parts: &[&Tensor], rows: Range<usize>) {
        rows::append(page, at, parts, rows);
    }

    fn latent_attention(&self, shape: &AttentionShape, q: &Tensor, kv_b: &Tensor, requests: &[CachedRows]) -> Tensor {
        attention::latent_attention(shape, q, kv_b, requests)
    }

    fn grouped_attention(
        &self,
        shape: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        (real!(q, T => attention::grouped_attention::<T>(shape, q, k, v, documents)), nothing(q))
    }

    fn grouped_attention_backward(
        &self,
        shape: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        _: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        real!(q, T => attention::grouped_attention_backward::<T>(shape, q, k, v, d_o, documents))
    }

    fn cached_attention(&self, shape: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor {
        attention::cached_attention(shape, q, requests)
    }

    fn embedding(&self, ids: &Tensor, w: &Tensor) -> Tensor {
        real!(w, T => rows::gather::<T>(w, ids.read()))
    }

    fn embedding_backward(&self, ids: &Tensor, dx: &Tensor, dw: &mut Tensor) {
        real!(dx, T => rows::embedding_backward::<T>(ids.read(), dx, dw))
    }

    fn head(&self, x: &Tensor, w: &Tensor, targets: &Tensor) -> Head {
        let (logp, lse) = real!(x, T => head::head::<T>(x, w, targets.read()));
        Head { logp: numbers(&logp), lse: numbers(&lse), kept: None }
    }

    fn head_backward(
        &self,
        _: Head,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        dlogp: &Tensor,
        dlse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor {
        real!(x, T => head::head_backward::<T>(x, w, targets.read(), dlogp.read(), dlse.read(), dw))
    }

    fn draw(&self, logits: &Tensor, draws: &[Draw]) -> (Tensor, Tensor) {
        sample::draw(logits, draws)
    }

    fn route(&self, router: &Router, logits: &Tensor, bias: &Tensor) -> Routing {
        real!(logits, T => router::route::<T>(router, logits, bias))
    }

    fn route_backward(&self, router: &Router, r: &Routing, dweights: &Tensor, dscores: Option<&Tensor>) -> Tensor {
        real!(dweights, T => router::route_backward::<T>(router, r, dweights, dscores))
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
        balance::balance(router, r, counted, documents, weight, loss)
    }

    fn count(&self, segments: &Segments, counts: &mut Tensor) {
        counts.write::<u32>().iter_mut().zip(segments.iter()).for_each(|(count, rows)| *count += rows.len() as u32);
    }

    fn balance_bias(&self, bias: &mut Tensor, counts: &Tensor, speed: f64) {
        let counts = counts.to_f64();
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        for (bias, count) in bias.write::<f32>().iter_mut().zip(counts) {
            *bias += if count == mean { 0.0 } else { (speed as f32).copysign((mean - count) as f32) };
        }
    }

    fn gather(&self, x: &Tensor, rows: &Tensor) -> Tensor {
        real!(x, T => rows::gather::<T>(x, rows.read()))
    }

    fn dispatch(&self, x: &Tensor, r: &Routing) -> Tensor {
        self.gather(x, &r.tokens)
    }

    fn gather_backward(&self, drows: &Tensor, slots: &Tensor, dx: &mut Tensor) {
        real!(drows, T => router::gather_backward::<T>(drows, slots.read(), dx))
    }

    fn combine(&self, rows: &Tensor, r: &Routing, y: &mut Tensor) {
        real!(rows, T => router::combine::<T>(rows, r, y))
    }

    fn combine_backward(&self, rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor) {
        real!(rows, T => router::combine_backward::<T>(rows, r, dy))
    }

    fn square_sum(&self, x: &Tensor, sum: &mut Tensor) {
        sum.write::<f64>()[0] += optimizer::square_sum(x);
    }

    fn total(&self, x: &Tensor, is_squared: bool, sums: &mut Tensor, at: usize) {
        let of = |x: &f64| if is_squared { x * x } else { *x };
        sums.write::<f64>()[at] = x.read::<f64>().iter().map(of).sum();
    }

    fn clip(&self, square_sum: &Tensor, most: f64) -> Tensor {
        let norm = square_sum.read::<f64>()[0].sqrt();
        Tensor::new([1], &[(most / (norm + 1e-6)).min(1.0)])
    }

    fn average(&self, acc: &mut Tensor, x: &Tensor, keep: f64) {
        real!(x, T => optimizer::average::<T>(acc, x, keep));
    }

    fn adamw(&self, hyper: &AdamW, w: &mut Tensor, dw: &Tensor, scale: &Tensor, m: &mut Tensor, v: &mut Tensor) {
        real!(dw, T => optimizer::adamw::<T>(hyper, w, dw, scale, m, v))
    }
}

fn numbers(values: &[f64]) -> Tensor {
    Tensor::new([values.len()], values)
}

/// Backward computes the softmax again.
fn nothing(like: &Tensor) -> Softmax {
    Softmax(Tensor::empty([0], like.dtype()))
}
