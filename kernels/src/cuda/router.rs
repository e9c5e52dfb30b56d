//! The choice of experts, dispatch of rows to them, the way back, and the balance loss.

use super::device::Cuda;
use super::launch::{Arg, flag, int, long};
use super::rows::expect_f32;
use crate::backend::{Counted, Router, Routing};
use crate::document_bounds::Documents;
use crate::dtype::DType;
use crate::segments::Segments;
use crate::tensor::Tensor;

/// Tokens per block of kernels with a warp per token.
const WARPS: usize = 8;
/// Choices per block when rows are sorted.
const CHOICES: usize = 256;
/// Tokens per partial sum of the balance loss.
const TOKENS: usize = 32;

impl Cuda {
    pub(super) fn route_tokens(&self, router: &Router, logits: &Tensor, bias: &Tensor) -> Routing {
        expect_f32("route", logits);
        let (e, k, groups) = (router.experts, router.top_k, router.expert_groups);
        let [n, width] = logits.dims("route: logits");
        assert!(width == e, "route: expected {e} logits, found {width}");
        bias.expect("route: bias", [e]);
        let mut scores = self.like(logits);
        let (mut weights, mut ids) = (self.make([n, k], DType::F32), self.make([n, k], DType::U32));
        let args = [
            self.read(logits),
            self.read(bias),
            self.write(&mut scores),
            self.write(&mut weights),
            self.write(&mut ids),
            int(n),
            int(e),
            int(k),
            int(groups),
            int(router.node_limit),
            flag(router.normalise),
            Arg::Float(router.scale as f32),
        ];
        self.launch("route", [n.div_ceil(WARPS), 1, 1], 4 * (e + 2 * WARPS * (e + groups + k)), &args);
        let (segments, tokens, slots) = self.sort_choices(&ids, e, k);
        Routing { ids, weights, scores, segments, tokens, slots }
    }

    /// Choices modulo `e`, k for each token, sorted by what they are, tokens in order within each.
    pub(super) fn sort_choices(&self, ids: &Tensor, e: usize, k: usize) -> (Segments, Tensor, Tensor) {
        let choices = ids.len();
        let blocks = choices.div_ceil(CHOICES);
        let (mut counts, mut ends) = (self.make([blocks, e], DType::U32), self.make([e], DType::U32));
        let args = [self.read(ids), self.write(&mut counts), long(choices), int(e)];
        self.launch("count_choices", [blocks, 1, 1], 4 * e, &args);
        let args = [self.write(&mut counts), self.write(&mut ends), int(blocks), int(e)];
        self.launch("first_rows", [1, 1, 1], 4 * e, &args);
        let (mut tokens, mut slots) = (self.make([choices], DType::U32), self.make(ids.shape(), DType::U32));
        let args = [
            self.read(ids),
            self.read(&counts),
            self.write(&mut tokens),
            self.write(&mut slots),
            long(choices),
            int(e),
            int(k),
        ];
        self.launch("place_rows", [blocks, 1, 1], 0, &args);
        (Segments::on_device(ends, choices), tokens, slots)
    }

    pub(super) fn route_gradient(
        &self,
        router: &Router,
        r: &Routing,
        dweights: &Tensor,
        dscores: Option<&Tensor>,
    ) -> Tensor {
        let (e, k, n) = (router.experts, router.top_k, r.weights.rows());
        dweights.expect("route_backward: dweights", [n, k]);
        let mut dlogits = self.like(&r.scores);
        let args = [
            self.read(&r.scores),
            self.read(&r.ids),
            self.read(dweights),
            dscores.map_or(Arg::Address(0), |dscores| self.read(dscores)),
            self.write(&mut dlogits),
            int(n),
            int(e),
            int(k),
            flag(router.normalise),
            Arg::Float(router.scale as f32),
        ];
        self.launch("route_backward", [n.div_ceil(WARPS), 1, 1], 4 * WARPS * (e + 2 * k), &args);
        dlogits
    }

    pub(super) fn balance_loss(
        &self,
        router: &Router,
        r: &Routing,
        counted: Counted,
        documents: Option<&Documents>,
        weight: f64,
        loss: &mut Tensor,
    ) -> Tensor {
        let (e, k, n) = (router.experts, router.top_k, r.scores.rows());
        let (count, longest) = documents.map_or((1, n), |documents| (documents.count(), documents.longest()));
        let parts = longest.div_ceil(TOKENS).max(1);
        let ends = documents.map_or(Arg::Address(0), |documents| self.read(documents.ends()));
        let [mut shares, mut counts] = [(); 2].map(|()| self.make([count, parts, e], DType::F64));
        let (mut losses, mut dscores) = (self.make([count], DType::F64), self.like(&r.scores));
        let [of_part, of_gradient] = [4 * TOKENS * (e + k), 8 * e + 4 * WARPS * e];
        let (n, e, k, parts_) = (int(n), int(e), int(k), int(parts));
        let args = [
            self.read(&r.scores),
            self.read(&r.ids),
            ends,
            self.write(&mut shares),
            self.write(&mut counts),
            n,
            e,
            k,
            Arg::Int((counted == Counted::Routes).into()),
            parts_,
        ];
        self.launch("balance_partial", [parts, count, 1], of_part, &args);
        let args = [
            self.read(&shares),
            self.write(&mut counts),
            ends,
            self.write(&mut losses),
            n,
            e,
            k,
            parts_,
            Arg::Double(weight),
        ];
        self.launch("balance_total", [count, 1, 1], 0, &args);
        let args = [
            self.read(&r.scores),
            self.read(&counts),
            ends,
            self.write(&mut dscores),
            n,
            e,
            parts_,
            Arg::Double(weight),
        ];
        self.launch("balance_gradient", [parts, count, 1], of_gradient, &args);
        self.add_total(&losses, loss);
        dscores
    }

    pub(super) fn count_rows(&self, segments: &Segments, counts: &mut Tensor) {
        counts.expect("count: counts", [segments.count()]);
        let e = segments.count();
        self.each("count", e, &[self.read(segments.ends()), self.write(counts), int(e)]);
    }

    pub(super) fn move_bias(&self, bias: &mut Tensor, counts: &Tensor, speed: f64) {
        counts.expect("balance_bias: counts", bias.shape());
        let e = bias.len();
        self.each("balance_bias", e, &[self.write(bias), self.read(counts), Arg::Float(speed as f32), int(e)]);
    }

    pub(super) fn gather_gradient(&self, drows: &Tensor, slots: &Tensor, dx: &mut Tensor) {
        expect_f32("gather_backward", drows);
        let (n, d) = (dx.rows(), dx.cols());
        let k = slots.len() / n.max(1);
        let args = [self.read(drows), self.read(slots), self.write(dx), long(n), int(d), int(k)];
        self.each_token("gather_backward", n, &args);
    }

    pub(super) fn dispatch_rows(&self, x: &Tensor, r: &Routing) -> Tensor {
        expect_f32("dispatch", x);
        let (n, d, k) = (x.rows(), x.cols(), r.weights.cols());
        let mut rows = self.make([n * k, d], DType::F32);
        let args = [self.read(x), self.read(&r.slots), self.write(&mut rows), long(n), int(d), int(k)];
        self.each_token("dispatch", n, &args);
        rows
    }

    pub(super) fn combine_rows(&self, rows: &Tensor, r: &Routing, y: &mut Tensor) {
        expect_f32("combine", rows);
        let (n, d, k) = (y.rows(), y.cols(), r.weights.cols());
        let args =
            [self.read(rows), self.read(&r.slots), self.read(&r.weights), self.write(y), long(n), int(d), int(k)];
        self.each_token("combine", n, &args);
    }

    pub(super) fn combine_gradient(&self, rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor) {
        expect_f32("combine_backward", rows);
        let (n, d, k) = (dy.rows(), dy.cols(), r.weights.cols());
        let (mut drows, mut dweights) = (self.like(rows), self.like(&r.weights));
        let args = [
            self.read(rows),
            self.read(&r.slots),
            self.read(&r.weights),
            self.read(dy),
            self.write(&mut drows),
            self.write(&mut dweights),
            int(d),
            int(k),
        ];
        self.launch("combine_backward", [n, 1, 1], 4 * (d + 2 * k), &args);
        (drows, dweights)
    }
}
