//! SwiGLU feed-forward (Shazeer 2020): `down(silu(gate(x)) · up(x))`, gate and up in one product.

use crate::params::Specs;
use crate::product::Input;
use crate::{Cx, Grads, Layer, Linear};
use smelt_kernels::Tensor;
use smelt_kernels::fp8::Operand;

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
        let h = self.gate_up.of(cx, x);
        self.down.of(cx, &cx.backend.swiglu(&h))
    }
}

#[derive(Debug)]
pub struct MlpSaved {
    x: Option<Operand>,   // [N, D]
    h: Tensor,            // [N, 2F]
    act: Option<Operand>, // [N, F]
}

impl MlpSaved {
    pub(crate) fn recall_input(&mut self, cx: &Cx, x: &Tensor) {
        self.x = Some(Input::again(cx, x, None));
    }
}

impl Layer for Mlp {
    type Saved = MlpSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, MlpSaved) {
        let light = cx.light();
        let x = Input::new(&light, &x, None);
        let h = self.gate_up.apply(cx, &x);
        let act = Input::gated(&light, &h, None);
        let y = self.down.apply(cx, &act);
        (y, MlpSaved { x: x.into_kept(), h, act: act.into_kept() })
    }

    fn backward(&self, cx: &Cx, s: MlpSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let act = s.act.unwrap_or_else(|| Input::again(cx, &cx.backend.swiglu(&s.h), None));
        let dact = self.down.backward(cx, Some(act), dy, grads);
        let x = s.x.expect("mlp: its input is kept or recalled");
        self.gate_up.backward_gated(cx, x, &s.h, &dact, grads)
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
