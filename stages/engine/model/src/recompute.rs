//! What backward computes again instead of keeping it: memory against time, with the same bits.

use crate::{Balance, Cx, Grads, Layer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::Tensor;
use std::cell::RefCell;

/// What each block computes again in backward (Chen et al. 2016; DeepSeek-V3, §3.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recomputed {
    /// Nothing: the fastest.
    #[default]
    None,
    /// Outputs of norms and gated activations, and the rows sent to experts: cheap to make again.
    Light,
    /// As `light`, and what each expert gives: one more of their products. What is kept does not grow when there are
    /// more and finer experts for each token (SonicMoE's point).
    Experts,
    /// Everything between its input and its output: one more forward.
    Full,
}

impl Recomputed {
    /// Whether cheap values are computed again.
    pub(crate) fn is_light(self) -> bool {
        matches!(self, Recomputed::Light | Recomputed::Experts)
    }
}

/// A layer that keeps its input alone, and runs forward again in backward.
#[derive(Debug)]
pub struct Recompute<'a, L>(pub &'a L);

/// What it keeps.
#[derive(Debug)]
pub struct RecomputeSaved {
    x: Tensor, // [N, D]
    /// As forward had it: its gradient is made again, too.
    balance: Balance,
}

impl<L: Layer> Layer for Recompute<'_, L> {
    type Saved = RecomputeSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, RecomputeSaved) {
        let (y, _) = self.0.forward(&Cx { keeps: false, ..*cx }, x.clone());
        (y, RecomputeSaved { x, balance: cx.balance })
    }

    fn backward(&self, cx: &Cx, s: RecomputeSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let told = RefCell::default(); // what forward tells besides has been told
        let (_, saved) = self.0.forward(&Cx { balance: s.balance, stats: &told, ..*cx }, s.x);
        self.0.backward(cx, saved, dy, grads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Specs;
    use crate::testing::check_gradients;
    use crate::{Config, Mlp};

    struct Wrapped(Mlp);

    impl Layer for Wrapped {
        type Saved = RecomputeSaved;

        fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, RecomputeSaved) {
            Recompute(&self.0).forward(cx, x)
        }

        fn backward(&self, cx: &Cx, s: RecomputeSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
            Recompute(&self.0).backward(cx, s, dy, grads)
        }
    }

    #[test]
    fn a_layer_that_is_computed_again_has_the_gradient_of_its_loss() {
        let layer = |specs: &mut Specs, _: &mut Config| Wrapped(Mlp::new(specs, "mlp", 6, 4));
        check_gradients(&[5], 6, layer, 6);
    }
}
