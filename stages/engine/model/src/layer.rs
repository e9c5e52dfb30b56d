//! The contract of a differentiable layer, and the simplest layers.

use crate::product::{Gradient, Input, Product};
use crate::{Cx, Grads, Param};
use smelt_kernels::fp8::Operand;
use smelt_kernels::{Tensor, Write};

/// A function and its derivative, side by side. `Saved` is everything backward needs, by name; it is moved.
pub trait Layer {
    type Saved;
    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, Self::Saved);
    /// Returns dx; gradients of parameters are added to `grads`, weight products deferred.
    fn backward(&self, cx: &Cx, saved: Self::Saved, dy: Tensor, grads: &mut Grads) -> Tensor;
}

/// `y = x·Wᵀ`, no bias.
#[derive(Clone, Debug)]
pub struct Linear {
    pub w: Param, // [out, in]
}

impl Linear {
    pub(crate) fn apply(&self, cx: &Cx, x: &Input) -> Tensor {
        Product { w: self.w, segments: None }.forward(cx, x)
    }

    /// Of an input that no other product reads, and that nothing keeps.
    pub(crate) fn of(&self, cx: &Cx, x: &Tensor) -> Tensor {
        self.apply(cx, &Input::new(cx, x, None))
    }

    /// `dx = dy·W`, or `+=`. `x`: what its input kept.
    pub(crate) fn backward_into(
        &self,
        cx: &Cx,
        x: Operand,
        dy: Tensor,
        dx: &mut Tensor,
        write: Write,
        grads: &mut Grads,
    ) {
        Product { w: self.w, segments: None }.backward(cx, x, Gradient::new(cx, &dy, None), dx, write, grads);
    }
}

impl Linear {
    /// The gradient of x, when the layer's result h is gated and `swiglu(h)` has the gradient `dact`.
    pub(crate) fn backward_gated(&self, cx: &Cx, x: Operand, h: &Tensor, dact: &Tensor, grads: &mut Grads) -> Tensor {
        let mut dx = cx.backend.empty([h.rows(), cx.params.get(self.w).cols()].into(), h.dtype());
        let dh = Gradient::gated(cx, h, dact, None);
        Product { w: self.w, segments: None }.backward(cx, x, dh, &mut dx, Write::Set, grads);
        dx
    }
}

impl Layer for Linear {
    type Saved = Option<Operand>; // x [N, in]

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, Option<Operand>) {
        let x = Input::new(cx, &x, None);
        (self.apply(cx, &x), x.into_kept())
    }

    fn backward(&self, cx: &Cx, x: Option<Operand>, dy: Tensor, grads: &mut Grads) -> Tensor {
        let x = x.expect("linear: its input is kept or recalled");
        let mut dx = cx.backend.empty([dy.rows(), cx.params.get(self.w).cols()].into(), dy.dtype());
        self.backward_into(cx, x, dy, &mut dx, Write::Set, grads);
        dx
    }
}

#[derive(Clone, Debug)]
pub struct RmsNorm {
    pub gain: Param, // [D]
    pub eps: f64,
}

#[derive(Debug)]
pub struct RmsNormSaved {
    x: Tensor,    // [N, D]
    rstd: Tensor, // [N]
}

impl RmsNorm {
    /// What forward gave, computed again.
    pub(crate) fn again(&self, cx: &Cx, s: &RmsNormSaved) -> Tensor {
        cx.backend.rms_norm(&s.x, cx.params.get(self.gain), self.eps).0
    }
}

impl RmsNorm {
    /// `acc += x`, and forward of the sum.
    pub(crate) fn forward_of_sum(&self, cx: &Cx, acc: &mut Tensor, x: &Tensor) -> (Tensor, RmsNormSaved) {
        let (y, rstd) = cx.backend.add_rms_norm(acc, x, cx.params.get(self.gain), self.eps);
        (y, RmsNormSaved { x: acc.clone(), rstd })
    }

    /// dx plus `beside`, the gradient that comes past the norm.
    pub(crate) fn backward_beside(
        &self,
        cx: &Cx,
        s: &RmsNormSaved,
        dy: &Tensor,
        beside: &Tensor,
        grads: &mut Grads,
    ) -> Tensor {
        let dgain = grads.get_mut(cx.backend, self.gain);
        cx.backend.rms_norm_backward_add(&s.x, &s.rstd, cx.params.get(self.gain), dy, dgain, beside)
    }
}

impl Layer for RmsNorm {
    type Saved = RmsNormSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, RmsNormSaved) {
        let (y, rstd) = cx.backend.rms_norm(&x, cx.params.get(self.gain), self.eps);
        (y, RmsNormSaved { x, rstd })
    }

    fn backward(&self, cx: &Cx, s: RmsNormSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let dgain = grads.get_mut(cx.backend, self.gain);
        cx.backend.rms_norm_backward(&s.x, &s.rstd, cx.params.get(self.gain), &dy, dgain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Start;
    use crate::testing::check_gradients;

    #[test]
    fn linear_has_the_gradient_of_its_loss() {
        check_gradients(&[4, 3], 5, |specs, _| Linear { w: specs.linear("w".into(), &[5, 6]) }, 6);
    }

    #[test]
    fn rms_norm_has_the_gradient_of_its_loss() {
        check_gradients(
            &[140],
            8,
            |specs, _| RmsNorm { gain: specs.one("gain".into(), &[8], Start::Embedding), eps: 1e-3 },
            8,
        );
    }
}
