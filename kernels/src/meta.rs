//! A device without memory: shapes alone, and what they would take.

use crate::backend::*;
use crate::cpu;
use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser, Scaled, TILE, Tile};
use crate::place::{Device, Gauge};
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Operations check nothing and compute nothing; they give tensors of the shapes that they would give.
/// [`live`](Self::live) and [`take_peak`](Self::take_peak) say what its tensors would take, and [`flops`](Self::flops)
/// what products and attention would compute. What is downloaded is zero. Operations take for themselves and keep for
/// backward what they take and keep on the CPU, or on a GPU.
#[derive(Debug, Default)]
pub struct Meta {
    gauge: Arc<Gauge>,
    flops: AtomicU64,
    /// Bytes of weights in lower precision.
    lowered: AtomicU64,
    gpu: Option<Gpu>,
}

/// What operations do on a GPU.
#[derive(Clone, Copy, Debug)]
struct Gpu {
    /// Attention and the output projection multiply in bf16 by the tensor cores.
    is_low: bool,
}

/// Copies of a weight in lower precision, kept until it is written.
struct LowWeight {
    _forms: Vec<Tensor>,
}

impl Meta {
    /// Of the CPU.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of a GPU; `is_low` as of a [`Cuda`](crate::Cuda) that is `in_low_precision`.
    pub fn of_gpu(is_low: bool) -> Self {
        Self { gpu: Some(Gpu { is_low }), ..Self::default() }
    }

    /// Bytes of the tensors that are alive.
    pub fn live(&self) -> u64 {
        self.gauge.live()
    }

    /// The most bytes at once since the last call.
    pub fn take_peak(&self) -> u64 {
        self.gauge.take_peak()
    }

    /// Floating-point operations of products and attention; multiply and add count as two.
    pub fn flops(&self) -> u64 {
        self.flops.load(Ordering::Relaxed)
    }

    /// Bytes of the copies of weights in lower precision that a GPU keeps until the weights are written.
    pub fn lowered(&self) -> u64 {
        self.lowered.load(Ordering::Relaxed)
    }

    fn spend(&self, multiply_adds: usize) {
        self.flops.fetch_add(2 * multiply_adds as u64, Ordering::Relaxed);
    }

    fn new_tensor(&self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        self.gauge.within(|| Tensor::empty(shape, dtype))
    }

    fn like(&self, x: &Tensor) -> Tensor {
        self.new_tensor(x.shape(), x.dtype())
    }

    /// Rows of a lowered matrix; with their padding where it is stored transposed.
    fn tokens(&self, operand: &Operand) -> usize {
        match operand {
            Operand::Plain(x) => x.rows(),
            Operand::Fp8(scaled) if self.gpu.is_some() && scaled.how.tile == Tile::Column => scaled.q.cols(),
            Operand::Fp8(scaled) => scaled.q.rows(),
        }
    }

    /// Pairs of a query and a key that it sees, in causal attention within documents.
    fn pairs(documents: &Documents) -> usize {
        documents.iter().map(|rows| rows.len() * (rows.len() + 1) / 2).sum()
    }

    fn softmax(&self, heads: usize, documents: &Documents, dtype: DType) -> Softmax {
        if self.gpu.is_some() {
            return Softmax(self.new_tensor([heads, documents.rows()], DType::F32));
        }
        self.gauge.within(|| match dtype {
            DType::F64 => cpu::kept_of_attention::<f64>(heads, documents),
            _ => cpu::kept_of_attention::<f32>(heads, documents),
        })
    }

    /// What `lower` gives of a matrix `[n, d]`.
    fn lowered_form(&self, [n, d]: [usize; 2], how: Option<Quantiser>, segments: Option<&Segments>) -> Operand {
        let pitch = |to: usize| if self.gpu.is_some() { d.next_multiple_of(to) } else { d };
        let Some(how) = how else { return Operand::Plain(self.new_tensor([n, pitch(64)], DType::Bf16)) };
        // the ends of segments are on the device: each may cut one more tile
        let cuts = match self.gpu {
            Some(_) => segments.map_or(0, |segments| (segments.count() - 1).min(n)),
            None => segments.map_or(0, Segments::count),
        };
        let bands = match how.tile {
            Tile::Row => n,
            Tile::Column | Tile::Block => n.div_ceil(TILE) + cuts,
            Tile::Tensor => 1,
        };
        let scale = self.new_tensor([bands, d.div_ceil(how.tile.width(d))], DType::F32);
        let shape = match how.tile {
            Tile::Column if self.gpu.is_some() => [d, bands * TILE],
            _ => [n, pitch(TILE)],
        };
        Operand::Fp8(Scaled { q: self.new_tensor(shape, DType::E4m3), scale, how })
    }

    /// `lower_both` of `[rows of h, cols]`, which a GPU never has in memory.
    fn lower_gated(&self, h: &Tensor, cols: usize, how: [Quantiser; 2], segments: Option<&Segments>) -> [Operand; 2] {
        let shape = [h.rows(), cols];
        let _between = self.gpu.is_none().then(|| self.new_tensor(shape, h.dtype()));
        how.map(|how| self.lowered_form(shape, Some(how), segments))
    }

    /// bf16 copies of queries, keys and values of `widths` elements a row.
    fn packed(&self, rows: usize, widths: [usize; 3]) -> Option<[Tensor; 3]> {
        self.gpu.is_some_and(|gpu| gpu.is_low).then(|| widths.map(|width| self.new_tensor([rows, width], DType::Bf16)))
    }

    /// Makes what a GPU keeps of a weight `[experts·out, in]` for its products.
    fn lower_weight(&self, w: &Tensor, experts: usize, is_fp8: bool) {
        let (rows, inner) = (w.rows(), w.cols());
        let (out, pad) = (rows / experts.max(1), |cols: usize, to: usize| cols.next_multiple_of(to));
        let bf16 = || vec![self.new_tensor([rows, pad(inner, 64)], DType::Bf16)];
        let fp8 = || {
            let scales = || self.new_tensor([experts, out.div_ceil(TILE), inner.div_ceil(TILE)], DType::F32);
            let other = self.new_tensor([experts * inner, pad(out, TILE)], DType::E4m3);
            vec![self.new_tensor([rows, pad(inner, TILE)], DType::E4m3), other, scales(), scales()]
        };
        w.derive(
            |_: &LowWeight| true,
            |_| {
                let forms = if is_fp8 { fp8() } else { bf16() };
                let bytes = forms.iter().map(|form| form.len() * form.dtype().bytes()).sum::<usize>();
                self.lowered.fetch_add(bytes as u64, Ordering::Relaxed);
                LowWeight { _forms: forms }
            },
        );
    }

    /// The logits of a block of rows, as in `cuda/head.rs`.
    fn block_of_logits(&self, n: usize, v: usize) -> Tensor {
        self.new_tensor([crate::cuda::rows_of_logits(n, v), v], DType::F32)
    }
}

impl Backend for Meta {
    fn empty(&self, shape: Shape, dtype: DType) -> Tensor {
        self.new_tensor(shape, dtype)
    }

    fn upload(&self, x: &Tensor) -> Tensor {
        self.like(x)
    }

    fn download(&self, x: &Tensor) -> Tensor {
        Device::Host.within(|| Tensor::zeros(x.shape(), x.dtype()))
    }

    fn download_beside(&self, tensors: &[&Tensor]) -> Downloads {
        Downloads::there(tensors.iter().map(|x| self.download(x)).collect())
    }

    fn hold_back(&self, _: &Copied) {}

    fn copy(&self, x: &Tensor) -> Tensor {
        self.like(x)
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        if dtype == x.dtype() { x.clone() } else { self.new_tensor(x.shape(), dtype) }
    }

    fn collect(&self, parts: &[&Tensor]) -> Tensor {
        self.new_tensor([parts.iter().map(|part| part.len()).sum()], DType::F64)
    }

    fn gemm(&self, layout: Layout, a: &Tensor, _: &Tensor, c: &mut Tensor, _: Write) {
        let inner = if layout == Layout::Tn { a.rows() } else { a.cols() };
        self.spend(c.len() * inner);
    }

    fn grouped_gemm(&self, _: Layout, a: &Tensor, _: &Tensor, _: &Segments, c: &mut Tensor, _: Write) {
        self.spend(c.len() * a.cols());
    }

    fn grouped_gradient(&self, dy: &Tensor, x: &Tensor, _: &Segments, _: &mut Tensor, _: Write) {
        self.spend(dy.len() * x.cols());
    }

    fn prepare(&self, _: &Tensor) {}

    fn lower(&self, x: &Tensor, how: Option<Quantiser>, segments: Option<&Segments>, _: &mut Tensor) -> Operand {
        self.lowered_form([x.rows(), x.cols()], how, segments)
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

    fn low_gemm(&self, layout: Layout, a: &Operand, w: &Tensor, segments: Option<&Segments>, c: &mut Tensor, _: Write) {
        let experts = segments.map_or(1, Segments::count);
        self.spend(c.len() * if layout == Layout::Nt { w.cols() } else { w.rows() / experts.max(1) });
        if self.gpu.is_some() {
            self.lower_weight(w, experts, matches!(a, Operand::Fp8(_)));
        }
    }

    fn low_gradient(&self, dy: &Operand, _: &Operand, segments: Option<&Segments>, dw: &mut Tensor, _: Write) {
        let experts = segments.map_or(1, Segments::count);
        let rows = segments.map_or_else(|| self.tokens(dy), Segments::rows);
        self.spend(rows * (dw.len() / experts.max(1))); // dw is [experts·out, in], and a row is of one expert
    }

    fn rms_norm(&self, x: &Tensor, _: &Tensor, _: f64) -> (Tensor, Tensor) {
        (self.like(x), self.new_tensor([x.rows()], x.dtype()))
    }

    fn rms_norm_backward(&self, x: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &mut Tensor) -> Tensor {
        self.like(x)
    }

    in_two_passes!(norm);

    fn swiglu(&self, h: &Tensor) -> Tensor {
        self.new_tensor([h.rows(), h.cols() / 2], h.dtype())
    }

    fn swiglu_backward(&self, h: &Tensor, _: &Tensor) -> Tensor {
        self.like(h)
    }

    fn swiglu_lower(
        &self,
        h: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        _: &mut Tensor,
    ) -> [Operand; 2] {
        self.lower_gated(h, h.cols() / 2, how, segments)
    }

    fn swiglu_backward_lower(
        &self,
        h: &Tensor,
        _: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        _: &mut Tensor,
    ) -> [Operand; 2] {
        self.lower_gated(h, h.cols(), how, segments)
    }

    fn rope(&self, _: &mut Tensor, _: usize, _: usize, _: &Rope, _: &Tensor, _: bool) {}

    fn bias(&self, _: &mut Tensor, _: &Tensor) {}

    fn bias_backward(&self, _: &Tensor, _: &mut Tensor) {}

    fn scale(&self, _: &mut Tensor, _: f64, _: f64) {}

    fn fill(&self, _: &mut Tensor, _: f64) {}

    fn add(&self, _: &mut Tensor, _: &Tensor) {}

    fn split(&self, x: &Tensor, at: usize) -> (Tensor, Tensor) {
        let part = |cols| self.new_tensor([x.rows(), cols], x.dtype());
        (part(at), part(x.cols() - at))
    }

    fn join(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.new_tensor([a.rows(), a.cols() + b.cols()], a.dtype())
    }

    fn attention(
        &self,
        s: &AttentionShape,
        q: &Tensor,
        _: &Tensor,
        _: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        self.spend(Self::pairs(documents) * s.heads * (s.nope + s.rope + s.value));
        let _packed = self.packed(q.rows(), [q.cols(), q.cols(), s.heads * s.value]);
        let o = self.new_tensor([q.rows(), s.heads * s.value], q.dtype());
        (o, self.softmax(s.heads, documents, q.dtype()))
    }

    fn attention_backward(
        &self,
        s: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        _: &Tensor,
        _: &Softmax,
        _: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        self.spend(2 * Self::pairs(documents) * s.heads * (s.nope + s.rope + s.value));
        let (n, value) = (q.rows(), s.heads * s.value);
        let packed = self.packed(n, [q.cols(), q.cols(), value]);
        let _d_o = packed.is_some().then(|| self.new_tensor([n, value], DType::Bf16));
        let _parts = self.gpu.is_some().then(|| [q.cols(), value].map(|width| self.new_tensor([n, width], q.dtype())));
        (self.like(q), self.like(kv), self.like(k_rope))
    }

    fn append(&self, _: &mut Tensor, _: usize, _: &[&Tensor], _: Range<usize>) {}

    fn latent_attention(&self, s: &AttentionShape, q: &Tensor, _: &Tensor, _: &[CachedRows]) -> Tensor {
        self.new_tensor([q.rows(), s.heads * s.value], q.dtype())
    }

    fn grouped_attention(
        &self,
        s: &GroupedShape,
        q: &Tensor,
        _: &Tensor,
        _: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        self.spend(Self::pairs(documents) * s.heads * 2 * s.dim);
        let _packed = self.packed(q.rows(), [q.cols(), s.kv_heads * s.dim, s.kv_heads * s.dim]);
        (self.like(q), self.softmax(s.heads, documents, q.dtype()))
    }

    fn grouped_attention_backward(
        &self,
        s: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        _: &Softmax,
        _: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        self.spend(2 * Self::pairs(documents) * s.heads * 2 * s.dim);
        let packed = self.packed(q.rows(), [q.cols(), k.cols(), v.cols()]);
        let _d_o = packed.is_some().then(|| self.new_tensor(q.shape(), DType::Bf16));
        (self.like(q), self.like(k), self.like(v))
    }

    fn cached_attention(&self, _: &GroupedShape, q: &Tensor, _: &[CachedRows]) -> Tensor {
        self.like(q)
    }

    fn embedding(&self, ids: &Tensor, w: &Tensor) -> Tensor {
        self.new_tensor([ids.len(), w.cols()], w.dtype())
    }

    fn embedding_backward(&self, _: &Tensor, _: &Tensor, _: &mut Tensor) {}

    fn head(&self, x: &Tensor, w: &Tensor, _: &Tensor) -> Head {
        let (n, v) = (x.rows(), w.rows());
        self.spend(n * v * w.cols());
        let numbers = || self.new_tensor([n], DType::F64);
        if let Some(gpu) = self.gpu {
            let _x = gpu.is_low.then(|| self.new_tensor(x.shape(), DType::Bf16));
            if gpu.is_low {
                self.lower_weight(w, 1, false);
            }
            drop(self.block_of_logits(n, v));
            return Head { logp: numbers(), lse: numbers(), kept: None };
        }
        let kept = cpu::keeps_logits(n, v).then(|| (self.new_tensor([n, v], x.dtype()), numbers()));
        Head { logp: numbers(), lse: numbers(), kept }
    }

    fn head_backward(
        &self,
        _: Head,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &mut Tensor,
    ) -> Tensor {
        let (n, v) = (x.rows(), w.rows());
        self.spend(2 * n * v * w.cols());
        if let Some(gpu) = self.gpu {
            let logits = self.block_of_logits(n, v);
            let _gradient = gpu.is_low.then(|| self.new_tensor([logits.rows(), v], DType::Bf16));
            let _x = gpu.is_low.then(|| self.new_tensor(x.shape(), DType::Bf16));
            return self.like(x);
        }
        self.like(x)
    }

    fn draw(&self, _: &Tensor, draws: &[Draw]) -> (Tensor, Tensor) {
        (self.new_tensor([draws.len()], DType::U32), self.new_tensor([draws.len()], DType::F64))
    }

    fn route(&self, router: &Router, logits: &Tensor, _: &Tensor) -> Routing {
        let (n, k) = (logits.rows(), router.top_k);
        let choices = || self.new_tensor([n, k], DType::U32);
        Routing {
            ids: choices(),
            weights: self.new_tensor([n, k], logits.dtype()),
            scores: self.like(logits),
            segments: Segments::on_device(self.new_tensor([router.experts], DType::U32), n * k),
            tokens: self.new_tensor([n * k], DType::U32),
            slots: choices(),
        }
    }

    fn route_backward(&self, _: &Router, r: &Routing, _: &Tensor, _: Option<&Tensor>) -> Tensor {
        self.like(&r.scores)
    }

    fn balance(&self, _: &Router, r: &Routing, _: Counted, _: Option<&Documents>, _: f64, _: &mut Tensor) -> Tensor {
        self.like(&r.scores)
    }

    fn count(&self, _: &Segments, _: &mut Tensor) {}

    fn balance_bias(&self, _: &mut Tensor, _: &Tensor, _: f64) {}

    fn gather(&self, x: &Tensor, rows: &Tensor) -> Tensor {
        self.new_tensor([rows.len(), x.cols()], x.dtype())
    }

    fn dispatch(&self, x: &Tensor, r: &Routing) -> Tensor {
        self.gather(x, &r.tokens)
    }

    fn gather_backward(&self, _: &Tensor, _: &Tensor, _: &mut Tensor) {}

    fn combine(&self, _: &Tensor, _: &Routing, _: &mut Tensor) {}

    fn combine_backward(&self, rows: &Tensor, r: &Routing, _: &Tensor) -> (Tensor, Tensor) {
        (self.like(rows), self.like(&r.weights))
    }

    fn square_sum(&self, _: &Tensor, _: &mut Tensor) {}

    fn total(&self, _: &Tensor, _: bool, _: &mut Tensor, _: usize) {}

    fn clip(&self, _: &Tensor, _: f64) -> Tensor {
        self.new_tensor([1], DType::F64)
    }

    fn average(&self, _: &mut Tensor, _: &Tensor, _: f64) {}

    fn adamw(&self, _: &AdamW, _: &mut Tensor, _: &Tensor, _: &Tensor, _: &mut Tensor, _: &mut Tensor) {}
}
