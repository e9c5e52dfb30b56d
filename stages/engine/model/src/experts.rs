//! DeepSeekMoE (Dai et al. 2024; DeepSeek-V3, §2.1.2): shared experts for every token, and a few of many routed ones.
//!
//! The correction bias takes part in the choice alone. An optional balance loss enters at the router: it needs the
//! scores, not the loss of the step.

use crate::mlp::MlpSaved;
use crate::params::Specs;
use crate::product::{Gradient, Input, Product};
use crate::{Config, Cx, DeepseekV3, Grads, Layer, Linear, Mlp, Param, Recomputed, Start};
use smelt_kernels::fp8::Operand;
use smelt_kernels::{DType, Router, Routing, Tensor, Write};

#[derive(Clone, Debug)]
pub struct Experts {
    layer: usize,
    choice: Router,
    router: Linear, // [E, D]
    bias: Param,    // [E]
    gate_up: Param, // [E, 2F, D]
    down: Param,    // [E, D, F]
    shared: Option<Mlp>,
}

// The layer is cut at route → dispatch → experts → combine. The types between the cuts keep that order, forward
// and backward; with expert parallelism the two all-to-all lie in dispatch and combine, and another micro-batch
// computes meanwhile.

/// Which experts the tokens go to.
#[derive(Debug)]
struct Routed {
    routing: Routing,
    dscores: Option<Tensor>, // of the balance loss, [N, E]
}

/// Rows by expert.
#[derive(Debug)]
struct Dispatched(Tensor); // [R, D]

/// What the experts gave, by row.
#[derive(Debug)]
struct Computed(Tensor); // [R, D]

/// The gradients of the values of the same name.
struct DComputed(Tensor); // [R, D]
struct DDispatched(Tensor); // [R, D]
struct DWeights(Tensor); // of the routed weights, [N, K]

/// What the experts' backward needs.
#[derive(Debug)]
struct ComputedSaved {
    x: Option<Operand>,   // [R, D]
    h: Tensor,            // [R, 2F]
    act: Option<Operand>, // [R, F]
}

#[derive(Debug)]
pub struct ExpertsSaved {
    x: Option<Tensor>, // [N, D]
    routed: Routed,
    inside: ComputedSaved,
    computed: Option<Computed>,
    shared: Option<MlpSaved>,
}

impl ExpertsSaved {
    pub(crate) fn recall_input(&mut self, cx: &Cx, x: &Tensor) {
        self.x = Some(x.clone());
        self.shared.iter_mut().for_each(|shared| shared.recall_input(cx, x));
    }
}

impl Experts {
    pub(crate) fn new(specs: &mut Specs, name: &str, c: &Config, v3: &DeepseekV3, layer: usize) -> Self {
        let (e, d, f) = (v3.n_routed_experts, c.hidden_size, v3.moe_intermediate_size);
        let expert = |e: usize, part: &str, shape: [usize; 2]| {
            (format!("{name}.experts.{e}.{part}_proj.weight"), shape.to_vec())
        };
        let gate_up = (0..e).flat_map(|e| [expert(e, "gate", [f, d]), expert(e, "up", [f, d])]);
        Self {
            layer,
            choice: v3.router(),
            router: Linear { w: specs.one(format!("{name}.gate.weight"), &[e, d], Start::Router) },
            bias: specs.correction(format!("{name}.gate.e_score_correction_bias"), e),
            gate_up: specs.packed(&[e, 2 * f, d], gate_up),
            down: specs.packed(&[e, d, f], (0..e).map(|e| expert(e, "down", [d, f]))),
            shared: (v3.n_shared_experts > 0)
                .then(|| Mlp::new(specs, &format!("{name}.shared_experts"), d, f * v3.n_shared_experts)),
        }
    }

    pub fn bias(&self) -> Param {
        self.bias
    }

    pub fn layer(&self) -> usize {
        self.layer
    }

    fn route(&self, cx: &Cx, x: &Tensor) -> Routed {
        let routing = cx.backend.route(&self.choice, &self.router.of(&cx.full(), x), cx.params.get(self.bias));
        let mut stats = cx.stats.borrow_mut();
        let zeros = || cx.backend.zeros([self.choice.experts], DType::U32);
        cx.backend.count(&routing.segments, stats.loads.entry(self.layer).or_insert_with(zeros));
        if stats.keeps_routes {
            stats.routes.entry(self.layer).or_default().push(routing.ids.clone());
        }
        let dscores =
            (cx.balance.weight > 0.0).then(|| cx.balance.add(cx, &self.choice, &routing, stats.balance(cx.backend)));
        Routed { routing, dscores }
    }

    fn dispatch(&self, cx: &Cx, x: &Tensor, routed: &Routed) -> Dispatched {
        Dispatched(cx.backend.dispatch(x, &routed.routing))
    }

    fn compute(&self, cx: &Cx, x: Dispatched, routed: &Routed) -> (Computed, ComputedSaved) {
        let segments = Some(&routed.routing.segments);
        let (light, Dispatched(x)) = (cx.light(), x);
        let input = Input::new(&light, &x, segments);
        drop(x);
        let h = Product { w: self.gate_up, segments }.forward(cx, &input);
        let (y, act) = self.gate(&light, &h, routed);
        (y, ComputedSaved { x: input.into_kept(), h, act })
    }

    /// The second half of the experts: of h `[R, 2F]`, and what backward needs of the gated activations.
    fn gate(&self, cx: &Cx, h: &Tensor, routed: &Routed) -> (Computed, Option<Operand>) {
        let segments = Some(&routed.routing.segments);
        let act = Input::gated(cx, h, segments);
        let y = Product { w: self.down, segments }.forward(cx, &act);
        (Computed(y), act.into_kept())
    }

    /// Adds the experts' rows to y `[N, D]`.
    fn combine(&self, cx: &Cx, computed: &Computed, routed: &Routed, y: &mut Tensor) {
        cx.backend.combine(&computed.0, &routed.routing, y);
    }

    fn combine_backward(&self, cx: &Cx, computed: &Computed, routed: &Routed, dy: &Tensor) -> (DComputed, DWeights) {
        let (drows, dweights) = cx.backend.combine_backward(&computed.0, &routed.routing, dy);
        (DComputed(drows), DWeights(dweights))
    }

    fn compute_backward(
        &self,
        cx: &Cx,
        x: Operand,
        (h, act): (Tensor, Option<Operand>),
        dy: DComputed,
        routed: &Routed,
        grads: &mut Grads,
    ) -> DDispatched {
        let (segments, dtype) = (Some(&routed.routing.segments), dy.0.dtype());
        let (rows, f, d) = (h.rows(), h.cols() / 2, dy.0.cols());
        let act = act.unwrap_or_else(|| Input::again(cx, &cx.backend.swiglu(&h), segments));
        let mut dact = cx.backend.empty([rows, f].into(), dtype);
        let dy = Gradient::new(cx, &dy.0, segments);
        Product { w: self.down, segments }.backward(cx, act, dy, &mut dact, Write::Set, grads);
        let dh = Gradient::gated(cx, &h, &dact, segments);
        let mut dx = cx.backend.empty([rows, d].into(), dtype);
        Product { w: self.gate_up, segments }.backward(cx, x, dh, &mut dx, Write::Set, grads);
        DDispatched(dx)
    }

    /// Adds to dx `[N, D]`.
    fn dispatch_backward(&self, cx: &Cx, d: &DDispatched, routed: &Routed, dx: &mut Tensor) {
        cx.backend.gather_backward(&d.0, &routed.routing.slots, dx);
    }

    /// Adds to dx `[N, D]`.
    fn route_backward(&self, cx: &Cx, x: Tensor, routed: &Routed, d: &DWeights, dx: &mut Tensor, grads: &mut Grads) {
        let dlogits = cx.backend.route_backward(&self.choice, &routed.routing, &d.0, routed.dscores.as_ref());
        let full = cx.full();
        self.router.backward_into(&full, Input::again(&full, &x, None), dlogits, dx, Write::Add, grads);
    }

    /// Without saving anything.
    pub fn apply(&self, cx: &Cx, x: &Tensor) -> Tensor {
        let routed = self.route(cx, x);
        let (computed, _) = self.compute(cx, self.dispatch(cx, x, &routed), &routed);
        let mut y = match &self.shared {
            Some(shared) => shared.apply(cx, x),
            None => cx.backend.zeros(x.shape(), x.dtype()),
        };
        self.combine(cx, &computed, &routed, &mut y);
        y
    }
}

impl Layer for Experts {
    type Saved = ExpertsSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, ExpertsSaved) {
        let routed = self.route(cx, &x);
        let (computed, inside) = self.compute(cx, self.dispatch(cx, &x, &routed), &routed);
        let (mut y, shared) = match &self.shared {
            Some(shared) => {
                let (y, saved) = shared.forward(cx, x.clone());
                (y, Some(saved))
            }
            None => (cx.backend.zeros(x.shape(), x.dtype()), None),
        };
        self.combine(cx, &computed, &routed, &mut y);
        let computed = (cx.recompute != Recomputed::Experts).then_some(computed);
        (y, ExpertsSaved { x: cx.light().keeps.then_some(x), routed, inside, computed, shared })
    }

    fn backward(&self, cx: &Cx, s: ExpertsSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let x = s.x.expect("experts: their input is kept or recalled");
        let ComputedSaved { x: dispatched, h, mut act } = s.inside;
        let computed = s.computed.unwrap_or_else(|| {
            let (computed, again) = self.gate(cx, &h, &s.routed);
            act = again;
            computed
        });
        let (dcomputed, dweights) = self.combine_backward(cx, &computed, &s.routed, &dy);
        drop(computed);
        let dispatched = dispatched
            .unwrap_or_else(|| Input::again(cx, &self.dispatch(cx, &x, &s.routed).0, Some(&s.routed.routing.segments)));
        let ddispatched = self.compute_backward(cx, dispatched, (h, act), dcomputed, &s.routed, grads);
        let mut dx = match (&self.shared, s.shared) {
            (Some(shared), Some(saved)) => shared.backward(cx, saved, dy, grads),
            _ => cx.backend.zeros(x.shape(), dy.dtype()),
        };
        self.dispatch_backward(cx, &ddispatched, &s.routed, &mut dx);
        self.route_backward(cx, x, &s.routed, &dweights, &mut dx, grads);
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, check_gradients_with, deepseek, tiny};
    use crate::{Balance, BalanceCounts, BalanceScope};

    #[test]
    fn experts_have_the_gradient_of_their_loss() {
        let layer = |specs: &mut Specs, config: &mut Config| {
            let v3 = deepseek(config).clone();
            Experts::new(specs, "moe", config, &v3, 0)
        };
        check_gradients(&[6, 3], 12, layer, tiny().hidden_size);
    }

    #[test]
    fn experts_with_balance_loss_have_the_gradient_of_their_loss() {
        let layer = |specs: &mut Specs, config: &mut Config| {
            let v3 = deepseek(config);
            v3.n_shared_experts = 0;
            v3.norm_topk_prob = false;
            let v3 = v3.clone();
            Experts::new(specs, "moe", config, &v3, 0)
        };
        for scope in [BalanceScope::Sequence, BalanceScope::Batch] {
            for counts in [BalanceCounts::Scores, BalanceCounts::Routes] {
                let balance = Balance { weight: 0.7, scope, counts, mtp: true };
                check_gradients_with(&[6, 3], 12, layer, tiny().hidden_size, balance);
            }
        }
    }
}
