//! AdamW over all parameters (Loshchilov and Hutter 2019), with clipping by the global norm.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::{AdamW, Backend, DType, Tensor};
use smelt_model::{Grads, Param, Params, Spec, Update};

/// How the optimizer's moments are kept between steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    #[default]
    F32,
    /// Half of the memory, as in DeepSeek-V3 (§3.3.2); the step itself is computed in f32.
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hyper {
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta1: f64,
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta2: f64,
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub eps: f64,
    /// On tensors of two or more dims: gains are not pulled to zero.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0 does not clip.
    #[schemars(range(min = 0.0))]
    pub clip: f64,
    pub moments: Moments,
    /// Decay of an exponential moving average of the weights, such as 0.999; the average is what is written. 0 writes
    /// the last weights.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub average: f64,
}

impl Default for Hyper {
    /// DeepSeek-V3's (§4.2).
    fn default() -> Self {
        let (moments, average) = (Moments::F32, 0.0);
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0, moments, average }
    }
}

impl Hyper {
    /// Memory of a training per parameter: the weight and its gradient in f32, two moments, and the average when one is
    /// kept.
    pub fn bytes_per_parameter(&self) -> f64 {
        let moments = match self.moments {
            Moments::F32 => 8.0,
            Moments::Bf16 => 4.0,
        };
        8.0 + moments + if self.average > 0.0 { 4.0 } else { 0.0 }
    }
}

/// First and second moment of one parameter.
#[derive(Debug)]
pub(crate) struct Moment {
    pub m: Tensor,
    pub v: Tensor,
}

#[derive(Debug)]
pub struct Optimizer {
    /// None for parameters that are frozen or follow a rule of their own.
    pub(crate) moments: Vec<Option<Moment>>,
    /// Moving average of the weights, when one is kept.
    pub(crate) average: Option<Params>,
    /// Parameters that nothing moves.
    pub(crate) frozen: Vec<bool>,
    /// Updates made.
    pub(crate) updates: u64,
}

impl Optimizer {
    /// On the device of `backend`, where the parameters are.
    pub fn new(backend: &dyn Backend, params: &Params, hyper: &Hyper, frozen: &[Param]) -> Self {
        let dtype = match hyper.moments {
            Moments::F32 => DType::F32,
            Moments::Bf16 => DType::Bf16,
        };
        let frozen: Vec<bool> = params.handles().map(|p| frozen.contains(&p)).collect();
        let moment = |(p, spec, _): (Param, &Spec, &Tensor)| {
            let zeros = || backend.zeros(spec.shape, dtype);
            (spec.update == Update::Gradient && !frozen[p.index()]).then(|| Moment { m: zeros(), v: zeros() })
        };
        let moments = params.iter().map(moment).collect();
        Self { moments, average: (hyper.average > 0.0).then(|| params.copy_on(backend)), frozen, updates: 0 }
    }

    /// Moments and average with memory of their own.
    pub(crate) fn copy_on(&self, backend: &dyn Backend) -> Self {
        let copy = |moment: &Moment| Moment { m: backend.copy(&moment.m), v: backend.copy(&moment.v) };
        Self {
            moments: self.moments.iter().map(|moment| moment.as_ref().map(copy)).collect(),
            average: self.average.as_ref().map(|average| average.copy_on(backend)),
            frozen: self.frozen.clone(),
            updates: self.updates,
        }
    }

    /// Of the gradients of everything that is trained: F64 `[1]`.
    pub fn square_sum(&self, backend: &dyn Backend, params: &Params, grads: &Grads) -> Tensor {
        let mut sum = backend.zeros([1], DType::F64);
        let trained = params.handles().filter(|p| self.moments[p.index()].is_some());
        trained.for_each(|p| backend.square_sum(grads.get(p), &mut sum));
        sum
    }

    /// An expert without tokens has gradient zero, not none: it still decays and moves. `square_sum`: of the gradients.
    pub fn update(
        &mut self,
        backend: &dyn Backend,
        hyper: &Hyper,
        lr: f64,
        square_sum: &Tensor,
        params: &mut Params,
        grads: &Grads,
    ) {
        self.updates += 1;
        let scale = if hyper.clip > 0.0 { backend.clip(square_sum, hyper.clip) } else { backend.numbers(&[1.0]) };
        for p in params.handles() {
            let Some(Moment { m, v }) = &mut self.moments[p.index()] else { continue };
            let decay = if params.spec(p).shape.dims().len() >= 2 { hyper.weight_decay } else { 0.0 };
            let Hyper { beta1, beta2, eps, .. } = *hyper;
            let adamw = AdamW { lr, beta1, beta2, eps, decay, step: self.updates };
            backend.adamw(&adamw, params.get_mut(p), grads.get(p), &scale, m, v);
        }
    }

    /// Moves the average towards `params`: after the update and the routers' biases.
    pub fn follow(&mut self, backend: &dyn Backend, hyper: &Hyper, params: &Params) {
        if let Some(average) = &mut self.average {
            for p in params.handles().filter(|p| !self.frozen[p.index()]) {
                backend.average(average.get_mut(p), params.get(p), hyper.average);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_kernels::Cpu;
    use smelt_model::{Config, Init, Model};

    /// Gains and biases; a step without a gradient shows decay alone.
    #[test]
    fn tensors_of_one_dim_do_not_decay() {
        let text = r#"{ "model_type": "qwen2", "vocab_size": 9, "hidden_size": 4, "intermediate_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 8, "rms_norm_eps": 1e-6 }"#;
        let model = Model::new(Config::from_json(text.as_bytes()).unwrap()).unwrap();
        let mut params = model.init(&Init { seed: 1, embedding: 1.0, router: 1.0, weight: None });
        for p in params.handles() {
            params.get_mut(p).write::<f32>().fill(1.0);
        }
        let cpu = Cpu::new(1);
        let grads = Grads::zeros(&cpu, &params);
        let (hyper, sum) = (Hyper { weight_decay: 0.5, ..Hyper::default() }, Tensor::new([1], &[0.0]));
        Optimizer::new(&cpu, &params, &hyper, &[]).update(&cpu, &hyper, 0.5, &sum, &mut params, &grads);
        for (_, spec, value) in params.iter() {
            let expected = if spec.shape.dims().len() == 1 { 1.0 } else { 0.75 };
            assert!(value.read::<f32>().iter().all(|&w| w == expected), "{}", spec.parts[0].name);
        }
        let names = params.iter().map(|(_, spec, _)| spec.parts[0].name.as_str());
        assert_eq!(names.filter(|name| name.ends_with(".bias")).count(), 3);
    }

    /// PyTorch's order of operations in f64; f32 adds a rounding or two per step, ten steps stay within 1e-6.
    #[test]
    fn adamw_is_the_textbooks() {
        let cpu = Cpu::new(2);
        let n = 1000;
        let gradient = |step: u64, i: usize| smelt_kernels::random::normal(1, step, i as u64);
        let mut w = Tensor::new([n], &(0..n).map(|i| gradient(0, i) as f32).collect::<Vec<_>>());
        let (mut m, mut v) = (Tensor::zeros([n], w.dtype()), Tensor::zeros([n], w.dtype()));
        let mut expected: Vec<[f64; 3]> = w.to_f64().into_iter().map(|w| [w, 0.0, 0.0]).collect();
        for step in 1..=10 {
            let dw = Tensor::new([n], &(0..n).map(|i| gradient(step, i) as f32).collect::<Vec<_>>());
            let hyper = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step };
            cpu.adamw(&hyper, &mut w, &dw, &Tensor::new([1], &[0.5]), &mut m, &mut v);
            for ([w, m, v], g) in expected.iter_mut().zip(dw.to_f64()) {
                let (g, t) = (g * 0.5, step as i32);
                *w -= 0.01 * 0.1 * *w;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.95 * *v + 0.05 * g * g;
                *w -= 0.01 * (*m / (1.0 - 0.9f64.powi(t))) / ((*v / (1.0 - 0.95f64.powi(t))).sqrt() + 1e-8);
            }
        }
        for (found, [expected, ..]) in w.to_f64().iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{found} {expected}");
        }
    }

    /// The step in f32, and moments rounded to bf16 after it: exactly what a loop with that rounding gives.
    #[test]
    fn moments_in_bf16_are_rounded_after_the_step() {
        let (cpu, n) = (Cpu::new(2), 500);
        let draw = |step: u64| (0..n).map(|i| smelt_kernels::random::normal(1, step, i) as f32).collect::<Vec<_>>();
        let round = |x: f32| smelt_kernels::bf16::from_f32(x).to_f32();
        let (mut w, mut expected) = (Tensor::new([n as usize], &draw(0)), draw(0).into_iter().map(|w| (w, 0.0, 0.0)));
        let mut expected: Vec<(f32, f32, f32)> = expected.by_ref().collect();
        let (mut m, mut v) = (Tensor::zeros(w.shape(), DType::Bf16), Tensor::zeros(w.shape(), DType::Bf16));
        for step in 1..=10 {
            let dw = draw(step);
            let hyper = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.0, step };
            let scale = Tensor::new([1], &[1.0]);
            cpu.adamw(&hyper, &mut w, &Tensor::new([n as usize], &dw), &scale, &mut m, &mut v);
            let (one, two) = (1.0 - 0.9f64.powi(step as i32), 1.0 - 0.95f64.powi(step as i32));
            for ((w, m, v), g) in expected.iter_mut().zip(dw) {
                (*m, *v) = (*m * 0.9 + g * (1.0f64 - 0.9) as f32, *v * 0.95 + g * g * (1.0f64 - 0.95) as f32);
                *w -= (0.01 / one) as f32 * *m / (v.sqrt() * (1.0 / two.sqrt()) as f32 + 1e-8);
                (*m, *v) = (round(*m), round(*v));
            }
        }
        let found = w.read::<f32>().iter().zip(m.to_f64()).zip(v.to_f64());
        for (((w, m), v), expected) in found.zip(&expected) {
            assert!((w - expected.0).abs() < 1e-6, "{w} {expected:?}"); // powers of beta by squaring: another last bit
            assert!((m, v) == (expected.1.into(), expected.2.into()), "{m} {v} {expected:?}");
        }
    }
}
