//! The three products of a weight, in the precision of the pass.

use crate::{Cx, Grads, Param, Precision, WeightGemm};
use smelt_kernels::fp8::{Operand, Quantiser, Tile};
use smelt_kernels::{DType, Layout, Segments, Tensor, Write};

/// `y = x·Wᵀ` with W `[out, in]`, or per segment with `W[e]` of `[E, out, in]`.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub w: Param,
    pub segments: Option<&'a Segments>,
}

impl Product<'_> {
    pub fn forward(self, cx: &Cx, x: &Tensor) -> Tensor {
        let w = cx.params.get(self.w);
        let out = if self.segments.is_some() { w.dims::<3>("experts")[1] } else { w.rows() };
        let mut y = Tensor::empty([x.rows(), out], x.dtype());
        let x = match cx.precision {
            Precision::Fp8(fp8) => self.lower(cx, x, Some(fp8.activations(Tile::Row))),
            _ => self.lower(cx, x, None),
        };
        self.multiply(cx, Layout::Nt, &x, &mut y, Write::Set);
        y
    }

    /// `dx = dy·W`, or `+=`; the weight's gradient is deferred, its sides lowered now: they wait in fewer bytes.
    pub fn backward(self, cx: &Cx, x: Tensor, dy: Tensor, dx: &mut Tensor, write: Write, grads: &mut Grads) {
        let (rows, dy, x) = match cx.precision {
            Precision::Fp8(fp8) => {
                let [row, column] = [fp8.gradients(Tile::Row), fp8.gradients(Tile::Column)];
                let rows = self.lower(cx, &dy, Some(row));
                let columns = if row == column { rows.clone() } else { self.lower(cx, &dy, Some(column)) };
                (rows, columns, self.lower(cx, &x, Some(fp8.activations(Tile::Column))))
            }
            _ => {
                let dy = self.lower(cx, &dy, None);
                (dy.clone(), dy, self.lower(cx, &x, None))
            }
        };
        self.multiply(cx, Layout::Nn, &rows, dx, write);
        grads.defer(WeightGemm { param: self.w, dy, x, segments: self.segments.cloned() });
    }

    /// One side of a product; as it is in full precision, and in f64 always.
    fn lower(self, cx: &Cx, x: &Tensor, how: Option<Quantiser>) -> Operand {
        if cx.precision == Precision::Fp32 || x.dtype() != DType::F32 {
            return Operand::Plain(x.clone());
        }
        let lowered = cx.backend.lower(x, how, self.segments);
        if let Operand::Fp8(scaled) = &lowered
            && !scaled.is_finite
        {
            cx.stats.borrow_mut().has_saturated = true;
        }
        lowered
    }

    fn multiply(self, cx: &Cx, layout: Layout, a: &Operand, c: &mut Tensor, write: Write) {
        let w = cx.params.get(self.w);
        match (a, self.segments) {
            (Operand::Plain(a), None) if a.dtype() != DType::Bf16 => cx.backend.gemm(layout, a, w, c, write),
            (Operand::Plain(a), Some(segments)) if a.dtype() != DType::Bf16 => {
                cx.backend.grouped_gemm(layout, a, w, segments, c, write);
            }
            _ => cx.backend.low_gemm(layout, a, w, self.segments, c, write),
        }
    }
}

impl WeightGemm {
    /// Adds to `dw`.
    pub(crate) fn run(&self, cx: &Cx, dw: &mut Tensor) {
        match (&self.dy, &self.x, &self.segments) {
            (Operand::Plain(dy), Operand::Plain(x), None) if x.dtype() != DType::Bf16 => {
                cx.backend.gemm(Layout::Tn, dy, x, dw, Write::Add);
            }
            (Operand::Plain(dy), Operand::Plain(x), Some(segments)) if x.dtype() != DType::Bf16 => {
                cx.backend.grouped_gradient(dy, x, segments, dw);
            }
            (dy, x, segments) => cx.backend.low_gradient(dy, x, segments.as_ref(), dw),
        }
    }
}
