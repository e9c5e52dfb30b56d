//! SwiGLU feed-forward (Shazeer 2020): `down(silu(gate(x)) · up(x))`, gate and up in one product.

use crate::params::Specs;
use crate::{Cx, Grads, Layer, Linear, Recomputed};
use smelt_kernels::Tensor;

#[derive(Clone, Debug)]
pub struct Mlp {
    gate_up: Linear, // [2F, D]
    down: Linear,    // [D, F]
}

impl Mlp {
    pub(crate) fn new(specs: &mut Specs, name: &str, d: usize, f: usize) -> Self {
        let half = |part: &str| (format!("{name}.{part}_proj.weight"), vec![f, d]);
        let gate_up = Linear { w: specs.packed(&[2 * f, d], [half("gate"), half("up")]) };
        Self { gate_up, down: Linear { w: specs.linear(format!("{name}.down_proj.weight"), &[d, f]) } }
    }

    /// Without saving anything.
    pub fn apply(&self, cx: &Cx, x: &Tensor) -> Tensor {
        let h = self.gate_up.apply(cx, x);
        self.down.apply(cx, &cx.backend.swiglu(&h))
    }
}

#[derive(Debug)]
pub struct MlpSaved {
    x: Option<Tensor>,   // [N, D]
    h: Tensor,           // [N, 2F]
    act: Option<Tensor>, // [N, F]
}

impl MlpSaved {
    pub(crate) fn forget_input(&mut self) {
        self.x = None;
    }

    pub(crate) fn recall_input(&mut self, x: &Tensor) {
        self.x = Some(x.clone());
    }
}

impl Layer for Mlp {
    type Saved = MlpSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, MlpSaved) {
        let h = self.gate_up.apply(cx, &x);
        let act = cx.backend.swiglu(&h);
        let y = self.down.apply(cx, &act);
        (y, MlpSaved { x: Some(x), h, act: (cx.recompute != Recomputed::Light).then_some(act) })
    }

    fn backward(&self, cx: &Cx, s: MlpSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let act = s.act.unwrap_or_else(|| cx.backend.swiglu(&s.h));
        let dact = self.down.backward(cx, act, dy, grads);
        let dh = cx.backend.swiglu_backward(&s.h, &dact);
        self.gate_up.backward(cx, s.x.expect("mlp: its input is kept or recalled"), dh, grads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_gradients;

    #[test]
    fn mlp_has_the_gradient_of_its_loss() {
        check_gradients(&[5], 6, |specs, _| Mlp::new(specs, "mlp", 6, 4), 6);
    }
}
