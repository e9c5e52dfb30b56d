//! DeepSeekMoE (Dai et al. 2024; DeepSeek-V3, §2.1.2): shared experts for every token, and a few of many routed ones.
//!
//! The correction bias takes part in the choice alone. An optional balance loss enters at the router: it needs the scores, not the loss of
//! the step.

use crate::mlp::MlpSaved;
use crate::params::Specs;
use crate::product::Product;
use crate::{Config, Cx, DeepseekV3, Grads, Kind, Layer, Linear, Mlp, Param};
use smelt_kernels::{Router, Routing, Tensor, Write};

#[derive(Clone, Debug)]
pub struct Experts {
    layer: usize,
    router: Router,
    gate: Linear,   // [E, D]
    bias: Param,    // [E]
    gate_up: Param, // [E, 2F, D]
    down: Param,    // [E, D, F]
    shared: Option<Mlp>,
}

pub struct ExpertsSaved {
    x: Tensor, // [N, D]
    routing: Routing,
    dscores: Option<Tensor>, // of the balance loss, [N, E]
    dispatched: Tensor,      // [R, D]
    h: Tensor,               // [R, 2F]
    act: Tensor,             // [R, F]
    rows: Tensor,            // [R, D]
    shared: Option<MlpSaved>,
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
            router: v3.router(),
            gate: Linear { w: specs.one(format!("{name}.gate.weight"), &[e, d], Kind::Router) },
            bias: specs.one(format!("{name}.gate.e_score_correction_bias"), &[e], Kind::Bias),
            gate_up: specs.add(&[e, 2 * f, d], Kind::Weight, gate_up),
            down: specs.add(&[e, d, f], Kind::Weight, (0..e).map(|e| expert(e, "down", [d, f]))),
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

    fn route(&self, cx: &Cx, x: &Tensor) -> Routing {
        let routing = cx.backend.route(&self.router, &self.gate.apply(&cx.full(), x), cx.params.get(self.bias));
        let mut stats = cx.stats.borrow_mut();
        let loads = stats.loads.entry(self.layer).or_insert_with(|| vec![0; self.router.experts]);
        loads.iter_mut().zip(routing.segments.iter()).for_each(|(load, rows)| *load += rows.len() as u64);
        if stats.keeps_routes {
            stats.routes.entry(self.layer).or_default().extend(&routing.ids);
        }
        routing
    }

    /// Dispatched rows through their experts: h, act and the experts' outputs.
    fn run(&self, cx: &Cx, dispatched: &Tensor, routing: &Routing) -> [Tensor; 3] {
        let segments = Some(&routing.segments);
        let h = Product { w: self.gate_up, segments }.forward(cx, dispatched);
        let act = cx.backend.swiglu(&h);
        let y = Product { w: self.down, segments }.forward(cx, &act);
        [h, act, y]
    }

    /// Without saving anything.
    pub fn apply(&self, cx: &Cx, x: &Tensor) -> Tensor {
        let routing = self.route(cx, x);
        let [_, _, rows] = self.run(cx, &cx.backend.gather(x, &routing.tokens), &routing);
        let mut y = match &self.shared {
            Some(shared) => shared.apply(cx, x),
            None => Tensor::zeros(x.shape(), x.dtype()),
        };
        cx.backend.combine(&rows, &routing, &mut y);
        y
    }
}

impl Layer for Experts {
    type Saved = ExpertsSaved;

    fn forward(&self, cx: &Cx, x: Tensor) -> (Tensor, ExpertsSaved) {
        let routing = self.route(cx, &x);
        let dscores = (cx.balance.weight > 0.0).then(|| {
            let (loss, dscores) = cx.balance.loss(&self.router, &routing, cx.documents);
            cx.stats.borrow_mut().balance += loss;
            dscores
        });
        let dispatched = cx.backend.gather(&x, &routing.tokens);
        let [h, act, rows] = self.run(cx, &dispatched, &routing);
        let (mut y, shared) = match &self.shared {
            Some(shared) => {
                let (y, saved) = shared.forward(cx, x.clone());
                (y, Some(saved))
            }
            None => (Tensor::zeros(x.shape(), x.dtype()), None),
        };
        cx.backend.combine(&rows, &routing, &mut y);
        (y, ExpertsSaved { x, routing, dscores, dispatched, h, act, rows, shared })
    }

    fn backward(&self, cx: &Cx, s: ExpertsSaved, dy: Tensor, grads: &mut Grads) -> Tensor {
        let segments = Some(&s.routing.segments);
        let (drows, dweights) = cx.backend.combine_backward(&s.rows, &s.routing, &dy);
        let mut dact = Tensor::empty(s.act.shape(), dy.dtype());
        Product { w: self.down, segments }.backward(cx, s.act, drows, &mut dact, Write::Set, grads);
        let dh = cx.backend.swiglu_backward(&s.h, &dact);
        let mut ddispatched = Tensor::empty(s.dispatched.shape(), dy.dtype());
        Product { w: self.gate_up, segments }.backward(cx, s.dispatched, dh, &mut ddispatched, Write::Set, grads);
        let mut dx = match (&self.shared, s.shared) {
            (Some(shared), Some(saved)) => shared.backward(cx, saved, dy, grads),
            _ => Tensor::zeros(s.x.shape(), dy.dtype()),
        };
        cx.backend.gather_backward(&ddispatched, &s.routing.slots, &mut dx);
        let dlogits = cx.backend.route_backward(&self.router, &s.routing, &dweights, s.dscores.as_ref());
        self.gate.backward_into(&cx.full(), s.x, dlogits, &mut dx, Write::Add, grads);
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
                let balance = Balance { weight: 0.7, scope, counts, further: true };
                check_gradients_with(&[6, 3], 12, layer, tiny().hidden_size, balance);
            }
        }
    }
}
