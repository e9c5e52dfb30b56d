//! A device without memory: shapes alone, and what they would take.

use crate::backend::*;
use crate::cpu;
use crate::document_bounds::Documents;
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser, Scaled, Tile};
use crate::place::{Device, Gauge};
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Operations check nothing and compute nothing; they give tensors of the shapes that they would give.
/// [`live`](Self::live) and [`take_peak`](Self::take_peak) say what its tensors would take, and [`flops`](Self::flops)
/// what products and attention would compute. What is downloaded is zero. Attention and the head keep for backward what
/// they keep on the CPU.
#[derive(Debug, Default)]
pub struct Meta {
    gauge: Arc<Gauge>,
    flops: AtomicU64,
}

impl Meta {
    pub fn new() -> Self {
        Self::default()
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

    fn spend(&self, multiply_adds: usize) {
        self.flops.fetch_add(2 * multiply_adds as u64, Ordering::Relaxed);
    }

    fn new_tensor(&self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        self.gauge.within(|| Tensor::empty(shape, dtype))
    }

    fn like(&self, x: &Tensor) -> Tensor {
        self.new_tensor(x.shape(), x.dtype())
    }

    fn operand(operand: &Operand) -> &Tensor {
        match operand {
            Operand::Plain(x) => x,
            Operand::Fp8(scaled) => &scaled.q,
        }
    }

    /// Pairs of a query and a key that it sees, in causal attention within documents.
    fn pairs(documents: &Documents) -> usize {
        documents.iter().map(|rows| rows.len() * (rows.len() + 1) / 2).sum()
    }

    fn softmax(&self, heads: usize, documents: &Documents, dtype: DType) -> Softmax {
        self.gauge.within(|| match dtype {
            DType::F64 => cpu::kept_of_attention::<f64>(heads, documents),
            _ => cpu::kept_of_attention::<f32>(heads, documents),
        })
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
        let Some(how) = how else { return Operand::Plain(self.new_tensor(x.shape(), DType::Bf16)) };
        let (n, d) = (x.rows(), x.cols());
        // the ends of segments are on the device: each may cut one more tile
        let cuts = segments.map_or(0, Segments::count);
        let bands = match how.tile {
            Tile::Row => n,
            Tile::Column | Tile::Block => n.div_ceil(crate::fp8::TILE) + cuts,
            Tile::Tensor => 1,
        };
        let scale = self.new_tensor([bands, d.div_ceil(how.tile.width(d))], DType::F32);
        Operand::Fp8(Scaled { q: self.new_tensor(x.shape(), DType::E4m3), scale, how })
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

    fn low_gemm(&self, _: Layout, a: &Operand, _: &Tensor, _: Option<&Segments>, c: &mut Tensor, _: Write) {
        self.spend(c.len() * Self::operand(a).cols());
    }

    fn low_gradient(&self, dy: &Operand, x: &Operand, _: Option<&Segments>, _: &mut Tensor, _: Write) {
        self.spend(Self::operand(dy).len() * Self::operand(x).cols());
    }

    fn rms_norm(&self, x: &Tensor, _: &Tensor, _: f64) -> (Tensor, Tensor) {
        (self.like(x), self.new_tensor([x.rows()], x.dtype()))
    }

    fn rms_norm_backward(&self, x: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &mut Tensor) -> Tensor {
        self.like(x)
    }

    fn swiglu(&self, h: &Tensor) -> Tensor {
        self.new_tensor([h.rows(), h.cols() / 2], h.dtype())
    }

    fn swiglu_backward(&self, h: &Tensor, _: &Tensor) -> Tensor {
        self.like(h)
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
        self.spend(2 * x.rows() * w.rows() * w.cols());
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
