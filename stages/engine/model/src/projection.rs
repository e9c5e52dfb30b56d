//! A linear layer that may have a bias: `y = x·Wᵀ + b`. The bias starts at zero; weight decay leaves it alone, as
//! all of one dim.

use crate::params::Specs;
use crate::product::Input;
use crate::{Cx, Grads, Linear, Param, Start};
use smelt_kernels::fp8::Operand;
use smelt_kernels::{Tensor, Write};

#[derive(Clone, Debug)]
pub struct Projection {
    linear: Linear,
    bias: Option<Param>, // [out]
}

impl Projection {
    pub(crate) fn new(specs: &mut Specs, name: &str, out: usize, inner: usize, has_bias: bool) -> Self {
        let linear = Linear { w: specs.linear(format!("{name}.weight"), &[out, inner]) };
        Self { linear, bias: has_bias.then(|| specs.one(format!("{name}.bias"), &[out], Start::Zero)) }
    }

    pub(crate) fn apply(&self, cx: &Cx, x: &Input) -> Tensor {
        let mut y = self.linear.apply(cx, x);
        if let Some(bias) = self.bias {
            cx.backend.bias(&mut y, cx.params.get(bias));
        }
        y
    }

    /// `dx = dy·W`, or `+=`; the bias' gradient is added at once. `x`: what its input kept.
    pub(crate) fn backward_into(
        &self,
        cx: &Cx,
        x: Operand,
        dy: Tensor,
        dx: &mut Tensor,
        write: Write,
        grads: &mut Grads,
    ) {
        if let Some(bias) = self.bias {
            cx.backend.bias_backward(&dy, grads.get_mut(cx.backend, bias));
        }
        self.linear.backward_into(cx, x, dy, dx, write, grads);
    }
}
