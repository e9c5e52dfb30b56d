//! The table of operations on a GPU: where each is implemented.

use super::device::Cuda;
use super::operations::Operations;
use crate::backend::{
    AdamW, AttentionShape, CachedRows, Counted, Draw, GroupedShape, Head, Layout, Rope, Router, Routing, Softmax, Write,
};
use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser, TILE, Tile};
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::ops::Range;

impl Operations for Cuda {
    fn empty(&self, shape: Shape, dtype: DType) -> Tensor {
        self.make(shape, dtype)
    }

    fn upload(&self, x: &Tensor) -> Tensor {
        self.upload_one(x)
    }

    fn download(&self, x: &Tensor) -> Tensor {
        self.download_one(x)
    }

    fn download_beside(&self, tensors: &[&Tensor]) -> Downloads {
        self.land(tensors)
    }

    fn hold_back(&self, copied: &Copied) {
        self.hold_back_behind(copied);
    }

    fn copy(&self, x: &Tensor) -> Tensor {
        self.copy_one(x)
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        self.cast_one(x, dtype)
    }

    fn collect(&self, parts: &[&Tensor]) -> Tensor {
        self.collect_all(parts)
    }

    fn gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, c: &mut Tensor, write: Write) {
        self.full_gemm(layout, a, b, c, write);
    }

    fn grouped_gemm(&self, layout: Layout, a: &Tensor, w: &Tensor, segments: &Segments, c: &mut Tensor, write: Write) {
        self.full_grouped_gemm(layout, a, w, segments, c, write);
    }

    fn grouped_gradient(&self, dy: &Tensor, x: &Tensor, segments: &Segments, dw: &mut Tensor, write: Write) {
        self.full_grouped_gradient(dy, x, segments, dw, write);
    }

    fn prepare(&self, _: &Tensor) {}

    fn lower(
        &self,
        x: &Tensor,
        how: Option<Quantiser>,
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> Operand {
        self.lower_operand(x, how, segments, saturated)
    }

    fn lower_both(
        &self,
        x: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        match how.map(|how| how.tile) {
            [Tile::Row, Tile::Column] => self.quantise_both(x, how, segments, saturated),
            _ => how.map(|how| self.lower(x, Some(how), segments, saturated)),
        }
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
            _ => self.low_product(layout, a, w, segments, c, write),
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
            _ => self.low_gradient_of(dy, x, segments, dw, write),
        }
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
        self.rms_norm_forward(self.read(x), None, x, gain, eps)
    }

    fn rms_norm_backward(&self, x: &Tensor, rstd: &Tensor, gain: &Tensor, dy: &Tensor, dgain: &mut Tensor) -> Tensor {
        self.rms_norm_gradient(x, rstd, gain, dy, dgain, None)
    }

    fn add_rms_norm(&self, acc: &mut Tensor, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
        acc.expect("add_rms_norm: acc", x.shape());
        self.rms_norm_forward(self.write(acc), Some(x), x, gain, eps)
    }

    fn rms_norm_backward_add(
        &self,
        x: &Tensor,
        rstd: &Tensor,
        gain: &Tensor,
        dy: &Tensor,
        dgain: &mut Tensor,
        beside: &Tensor,
    ) -> Tensor {
        self.rms_norm_gradient(x, rstd, gain, dy, dgain, Some(beside))
    }

    fn swiglu(&self, h: &Tensor) -> Tensor {
        self.swiglu_forward(h)
    }

    fn swiglu_backward(&self, h: &Tensor, dy: &Tensor) -> Tensor {
        self.swiglu_gradient(h, dy)
    }

    fn swiglu_lower(
        &self,
        h: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        match how.map(|how| how.tile) {
            [Tile::Row, Tile::Column] => self.quantise_gated(h, how, segments, saturated),
            _ => self.lower_both(&self.swiglu(h), how, segments, saturated),
        }
    }

    fn swiglu_backward_lower(
        &self,
        h: &Tensor,
        dy: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        // the kernel's blocks have whole tiles of gates and of values
        match how.map(|how| how.tile) {
            [Tile::Row, Tile::Column] if dy.cols().is_multiple_of(TILE) => {
                self.quantise_gated_gradient(h, dy, how, segments, saturated)
            }
            _ => self.lower_both(&self.swiglu_backward(h, dy), how, segments, saturated),
        }
    }

    fn rope(&self, x: &mut Tensor, heads: usize, offset: usize, rope: &Rope, positions: &Tensor, is_backward: bool) {
        self.rotate(x, heads, offset, rope, positions, is_backward);
    }

    fn bias(&self, y: &mut Tensor, bias: &Tensor) {
        self.add_bias(y, bias);
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) {
        self.bias_gradient(dy, dbias);
    }

    fn scale(&self, x: &mut Tensor, by: f64, over: f64) {
        self.scale_all(x, by, over);
    }

    fn fill(&self, x: &mut Tensor, value: f64) {
        self.fill_all(x, value);
    }

    fn add(&self, acc: &mut Tensor, x: &Tensor) {
        self.add_to(acc, x);
    }

    fn split(&self, x: &Tensor, at: usize) -> (Tensor, Tensor) {
        self.split_at(x, at)
    }

    fn join(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.join_two(a, b)
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        self.attention_of(shape, q, kv, k_rope, documents)
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
        self.attention_gradient(shape, q, kv, k_rope, o, softmax, d_o, documents)
    }

    fn append(&self, page: &mut Tensor, at: usize, parts: &[&Tensor], rows: Range<usize>) {
        self.append_rows(page, at, parts, rows);
    }

    fn latent_attention(&self, shape: &AttentionShape, q: &Tensor, kv_b: &Tensor, requests: &[CachedRows]) -> Tensor {
        self.latent_attention_of(shape, q, kv_b, requests)
    }

    fn grouped_attention(
        &self,
        shape: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        self.grouped_attention_of(shape, q, k, v, documents)
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
        self.grouped_attention_gradient(shape, q, k, v, o, softmax, d_o, documents)
    }

    fn cached_attention(&self, shape: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor {
        self.cached_attention_of(shape, q, requests)
    }

    fn embedding(&self, ids: &Tensor, w: &Tensor) -> Tensor {
        self.gather_rows(w, ids)
    }

    fn embedding_backward(&self, ids: &Tensor, dx: &Tensor, dw: &mut Tensor) {
        self.embedding_gradient(ids, dx, dw);
    }

    fn head(&self, x: &Tensor, w: &Tensor, targets: &Tensor) -> Head {
        self.head_forward(x, w, targets)
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
        self.head_gradient(&head, x, w, targets, dlogp, dlse, dw)
    }

    fn draw(&self, logits: &Tensor, draws: &[Draw]) -> (Tensor, Tensor) {
        self.draw_tokens(logits, draws)
    }

    fn route(&self, router: &Router, logits: &Tensor, bias: &Tensor) -> Routing {
        self.route_tokens(router, logits, bias)
    }

    fn route_backward(&self, router: &Router, r: &Routing, dweights: &Tensor, dscores: Option<&Tensor>) -> Tensor {
        self.route_gradient(router, r, dweights, dscores)
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
        self.balance_loss(router, r, counted, documents, weight, loss)
    }

    fn count(&self, segments: &Segments, counts: &mut Tensor) {
        self.count_rows(segments, counts);
    }

    fn balance_bias(&self, bias: &mut Tensor, counts: &Tensor, speed: f64) {
        self.move_bias(bias, counts, speed);
    }

    fn gather(&self, x: &Tensor, rows: &Tensor) -> Tensor {
        self.gather_rows(x, rows)
    }

    fn dispatch(&self, x: &Tensor, r: &Routing) -> Tensor {
        self.dispatch_rows(x, r)
    }

    fn gather_backward(&self, drows: &Tensor, slots: &Tensor, dx: &mut Tensor) {
        self.gather_gradient(drows, slots, dx);
    }

    fn combine(&self, rows: &Tensor, r: &Routing, y: &mut Tensor) {
        self.combine_rows(rows, r, y);
    }

    fn combine_backward(&self, rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor) {
        self.combine_gradient(rows, r, dy)
    }

    fn square_sum(&self, x: &Tensor, sum: &mut Tensor) {
        self.square_sum_of(x, sum);
    }

    fn total(&self, x: &Tensor, is_squared: bool, sums: &mut Tensor, at: usize) {
        self.total_of(x, is_squared, sums, at);
    }

    fn clip(&self, square_sum: &Tensor, most: f64) -> Tensor {
        self.clip_factor(square_sum, most)
    }

    fn average(&self, acc: &mut Tensor, x: &Tensor, keep: f64) {
        self.average_into(acc, x, keep);
    }

    fn adamw(&self, hyper: &AdamW, w: &mut Tensor, dw: &Tensor, scale: &Tensor, m: &mut Tensor, v: &mut Tensor) {
        self.adamw_step(hyper, w, dw, scale, m, v);
    }
}
