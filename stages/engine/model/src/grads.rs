//! Gradients beside the parameters, and the weight products that fill them.

use crate::{Cx, Param, Params};
use smelt_kernels::fp8::Operand;
use smelt_kernels::{Backend, DType, Layout, Segments, Tensor, Write};
use std::fmt;

/// A weight gradient not yet computed: `dW += dyᵀ·x`, per segment if grouped.
pub struct WeightGemm {
    pub param: Param,
    pub dy: Operand,
    pub x: Operand,
    pub segments: Option<Segments>,
}

/// Gradients of all parameters. A weight's product runs at once, while its operands are in the caches, or waits for its
/// turn in a timetable: see [`holding`](Self::holding).
pub struct Grads {
    values: Vec<Tensor>,
    /// The gradient is zero, whatever the memory holds: the first product of a weight sets it, which saves a pass that
    /// clears it.
    is_clear: Vec<bool>,
    is_holding: bool,
    deferred: Vec<WeightGemm>,
}

impl fmt::Debug for Grads {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (tensors, deferred) = (self.values.len(), self.deferred.len());
        f.debug_struct("Grads").field("tensors", &tensors).field("deferred", &deferred).finish_non_exhaustive()
    }
}

impl fmt::Debug for WeightGemm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("WeightGemm").field("param", &self.param).finish_non_exhaustive()
    }
}

impl Grads {
    pub fn zeros(backend: &dyn Backend, params: &Params) -> Self {
        let values: Vec<_> = params.iter().map(|(_, spec, value)| backend.zeros(spec.shape, value.dtype())).collect();
        Self { is_clear: vec![false; values.len()], values, is_holding: false, deferred: Vec::new() }
    }

    /// Sets all gradients to zero; they can be read after [`settle`](Self::settle).
    pub fn clear(&mut self) {
        self.is_clear.fill(true);
    }

    /// Writes the zeros of gradients that nothing was added to since [`clear`](Self::clear).
    pub fn settle(&mut self, backend: &dyn Backend) {
        for p in 0..self.values.len() {
            self.get_mut(backend, Param::at(p));
        }
    }

    pub fn get(&self, p: Param) -> &Tensor {
        assert!(!self.is_clear[p.index()], "grads: {p:?} was cleared and read before it was settled");
        &self.values[p.index()]
    }

    pub fn get_mut(&mut self, backend: &dyn Backend, p: Param) -> &mut Tensor {
        let value = &mut self.values[p.index()];
        if std::mem::take(&mut self.is_clear[p.index()]) {
            backend.fill(value, 0.0);
        }
        value
    }

    /// From now on the products of weights wait until they are taken, for a schedule that splits backward in two.
    pub fn holding(self) -> Self {
        Self { is_holding: true, ..self }
    }

    pub(crate) fn add(&mut self, cx: &Cx, work: WeightGemm) {
        if self.is_holding { self.deferred.push(work) } else { self.run_one(cx, &work) }
    }

    /// The weight work held back since the last call: one `W` of a timetable.
    pub fn take_deferred(&mut self) -> Vec<WeightGemm> {
        std::mem::take(&mut self.deferred)
    }

    /// `+=`, in the order of `work`.
    pub fn run(&mut self, cx: &Cx, work: Vec<WeightGemm>) {
        work.iter().for_each(|work| self.run_one(cx, work));
    }

    fn run_one(&mut self, cx: &Cx, work: &WeightGemm) {
        let is_clear = std::mem::take(&mut self.is_clear[work.param.index()]);
        work.run(cx, &mut self.values[work.param.index()], if is_clear { Write::Set } else { Write::Add });
    }
}

impl WeightGemm {
    /// Sets `dw`, or adds to it.
    fn run(&self, cx: &Cx, dw: &mut Tensor, write: Write) {
        match (&self.dy, &self.x, &self.segments) {
            (Operand::Plain(dy), Operand::Plain(x), None) if x.dtype() != DType::Bf16 => {
                cx.backend.gemm(Layout::Tn, dy, x, dw, write);
            }
            (Operand::Plain(dy), Operand::Plain(x), Some(segments)) if x.dtype() != DType::Bf16 => {
                cx.backend.grouped_gradient(dy, x, segments, dw, write);
            }
            (dy, x, segments) => cx.backend.low_gradient(dy, x, segments.as_ref(), dw, write),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;
    use crate::params::Specs;
    use smelt_kernels::Reference;
    use std::sync::Arc;

    /// Gradients of two parameters, full of ones, and cleared.
    fn cleared() -> (Grads, Vec<Param>) {
        let mut specs = Specs::default();
        let handles = ["a", "b"].map(|name| specs.linear(name.into(), &[2, 3]));
        let params = Params::init(Arc::new(specs), &Init { seed: 1, embedding: 1.0, router: 1.0, weight: None });
        let mut grads = Grads::zeros(&Reference, &params);
        handles.iter().for_each(|&p| grads.get_mut(&Reference, p).write::<f32>().fill(1.0));
        grads.clear();
        (grads, handles.to_vec())
    }

    #[test]
    fn a_cleared_gradient_is_zero_to_who_adds_and_once_it_is_settled() {
        let (mut grads, p) = cleared();
        grads.get_mut(&Reference, p[0]).write::<f32>()[0] += 5.0;
        grads.settle(&Reference);
        assert_eq!(grads.get(p[0]).read::<f32>(), [5.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(grads.get(p[1]).read::<f32>(), [0.0; 6]);
    }

    #[test]
    #[should_panic(expected = "Param(1) was cleared and read before it was settled")]
    fn a_cleared_gradient_is_not_read_before_it_is_settled() {
        let (grads, p) = cleared();
        grads.get(p[1]);
    }
}
