//! Parameters live beside the model: a layer holds handles, values and gradients are parallel stores.
//!
//! A parameter's one name is Hugging Face's. A packed tensor (gate and up of a feed-forward layer; all experts of a layer) lists the
//! names it holds in the order of memory; the optimizer walks packed tensors, checkpoints the parts.

use crate::Cx;
use smelt_kernels::fp8::Operand;
use smelt_kernels::{Backend, DType, Segments, Shape, Tensor, Write, random};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Param(usize);

impl Param {
    pub fn index(self) -> usize {
        self.0
    }
}

/// How a parameter starts, and whether gradients reach it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Weight,
    Embedding,
    /// The router's weight.
    Router,
    /// A norm's gain, from 1.
    Gain,
    /// The router's correction bias: selects, has no gradient, moves by its own rule.
    Bias,
    /// Starts at these values (the reward model's likelihood weights).
    Fixed([f64; 2]),
    /// Starts at zero.
    Zero,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub shape: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub shape: Shape,
    pub kind: Kind,
    /// One after the other in memory.
    pub parts: Vec<Part>,
}

/// Standard deviations of normal draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Init {
    pub seed: u64,
    pub embedding: f64,
    pub router: f64,
    /// None: 1/√(3·inputs), what PyTorch's linear layers start with.
    pub weight: Option<f64>,
}

/// What a model with given sizes is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Specs(pub Vec<Spec>);

impl Specs {
    pub fn add(&mut self, shape: &[usize], kind: Kind, parts: impl IntoIterator<Item = (String, Vec<usize>)>) -> Param {
        let parts: Vec<Part> = parts.into_iter().map(|(name, shape)| Part { name, shape }).collect();
        let shape = Shape::from(shape);
        debug_assert_eq!(parts.iter().map(|p| p.shape.iter().product::<usize>()).sum::<usize>(), shape.len());
        self.0.push(Spec { shape, kind, parts });
        Param(self.0.len() - 1)
    }

    pub fn one(&mut self, name: String, shape: &[usize], kind: Kind) -> Param {
        self.add(shape, kind, [(name, shape.to_vec())])
    }

    /// All trainable elements.
    pub fn count(&self) -> usize {
        self.0.iter().filter(|spec| spec.kind != Kind::Bias).map(|spec| spec.shape.len()).sum()
    }
}

pub struct Params {
    specs: Arc<Specs>,
    values: Vec<Tensor>,
}

impl Params {
    pub(crate) fn new(specs: Arc<Specs>, values: Vec<Tensor>) -> Self {
        Self { specs, values }
    }

    /// Draws depend on seed and tensor name alone, not on the order of layers.
    pub(crate) fn init(specs: Arc<Specs>, init: &Init) -> Self {
        let draw = |spec: &Spec| {
            let mut values = Vec::with_capacity(spec.shape.len());
            for part in &spec.parts {
                let stream = part.name.bytes().fold(0, |hash, byte| random::mix(hash ^ u64::from(byte)));
                let inputs = part.shape.last().copied().unwrap_or(1) as f64;
                let std = match spec.kind {
                    Kind::Weight => init.weight.unwrap_or(1.0 / (3.0 * inputs).sqrt()),
                    Kind::Embedding => init.embedding,
                    Kind::Router => init.router,
                    _ => 0.0,
                };
                values.extend((0..part.shape.iter().product::<usize>()).map(|i| match spec.kind {
                    Kind::Gain => 1.0,
                    Kind::Bias | Kind::Zero => 0.0,
                    Kind::Fixed(values) => values[i] as f32,
                    _ => (std * random::normal(init.seed, stream, i as u64)) as f32,
                }));
            }
            Tensor::new(spec.shape, &values)
        };
        let values = specs.0.iter().map(draw).collect();
        Self { specs, values }
    }

    pub fn get(&self, p: Param) -> &Tensor {
        &self.values[p.0]
    }

    /// To write: panics in the tensor when a clone is alive.
    pub fn get_mut(&mut self, p: Param) -> &mut Tensor {
        &mut self.values[p.0]
    }

    pub fn spec(&self, p: Param) -> &Spec {
        &self.specs.0[p.0]
    }

    pub fn iter(&self) -> impl Iterator<Item = (Param, &Spec, &Tensor)> {
        self.specs.0.iter().zip(&self.values).enumerate().map(|(i, (spec, value))| (Param(i), spec, value))
    }

    pub fn handles(&self) -> impl Iterator<Item = Param> + use<> {
        (0..self.values.len()).map(Param)
    }

    /// Values with memory of their own, in `dtype`.
    pub fn copy_as(&self, dtype: DType) -> Self {
        let copy = |t: &Tensor| if t.dtype() == dtype { t.copy() } else { t.cast(dtype) };
        Self { specs: self.specs.clone(), values: self.values.iter().map(copy).collect() }
    }

    /// Values with memory of their own: a reference that stays while the policy moves.
    pub fn copy(&self) -> Self {
        self.copy_as(DType::F32)
    }

    /// All trainable elements.
    pub fn count(&self) -> usize {
        self.specs.count()
    }

    /// Packs the weights once for many small batches: for generation, while the values stay.
    pub fn prepare(&self, backend: &dyn Backend) {
        for (_, spec, value) in self.iter() {
            if matches!(spec.kind, Kind::Weight | Kind::Router) {
                backend.prepare(value);
            }
        }
    }

    /// Takes the values of all parameters that `other` also has by name; the rest keeps what it is. For a reward model that starts
    /// from a language model.
    pub fn adopt(&mut self, other: &Params) {
        for i in 0..self.values.len() {
            let name = &self.specs.0[i].parts[0].name;
            if let Some((_, _, value)) = other.iter().find(|(_, spec, _)| spec.parts[0].name == *name) {
                self.values[i] = value.copy();
            }
        }
    }
}

/// A weight gradient not yet computed: `dW += dyᵀ·x`, per segment if grouped.
pub struct WeightGemm {
    pub param: Param,
    pub dy: Operand,
    pub x: Operand,
    pub segments: Option<Segments>,
}

/// Gradients of all parameters. A weight's product is run at once, while its sides are in the caches, or waits for its turn in a timetable:
/// see [`holding`](Self::holding).
pub struct Grads {
    values: Vec<Tensor>,
    /// Stands for zero, whatever the memory holds: the first product of a weight sets its gradient, which spares a pass to clear it.
    is_clear: Vec<bool>,
    is_holding: bool,
    deferred: Vec<WeightGemm>,
    /// A gradient that was infinite or NaN was quantised, since it was last asked.
    has_saturated: bool,
}

impl Grads {
    pub fn zeros(params: &Params) -> Self {
        let values: Vec<_> = params.iter().map(|(_, spec, value)| Tensor::zeros(spec.shape, value.dtype())).collect();
        Self {
            is_clear: vec![false; values.len()],
            values,
            is_holding: false,
            deferred: Vec::new(),
            has_saturated: false,
        }
    }

    /// Zero again; to be read only when [`settle`](Self::settle) followed.
    pub fn clear(&mut self) {
        self.is_clear.fill(true);
    }

    /// Writes the zeros of those to which nothing was added since [`clear`](Self::clear).
    pub fn settle(&mut self) {
        for p in 0..self.values.len() {
            self.get_mut(Param(p));
        }
    }

    pub fn get(&self, p: Param) -> &Tensor {
        assert!(!self.is_clear[p.0], "grads: {p:?} was cleared and read before it was settled");
        &self.values[p.0]
    }

    pub fn get_mut(&mut self, p: Param) -> &mut Tensor {
        let value = &mut self.values[p.0];
        if std::mem::take(&mut self.is_clear[p.0]) {
            value.fill_zeros();
        }
        value
    }

    pub(crate) fn note_saturated(&mut self, has_saturated: bool) {
        self.has_saturated |= has_saturated;
    }

    /// Whether an infinite or NaN gradient was quantised since the last call.
    pub fn take_saturated(&mut self) -> bool {
        std::mem::take(&mut self.has_saturated)
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
        let is_clear = std::mem::take(&mut self.is_clear[work.param.0]);
        work.run(cx, &mut self.values[work.param.0], if is_clear { Write::Set } else { Write::Add });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gradients of two parameters, full of ones, and cleared.
    fn cleared() -> (Grads, Vec<Param>) {
        let mut specs = Specs::default();
        let handles = ["a", "b"].map(|name| specs.one(name.into(), &[2, 3], Kind::Weight));
        let params = Params::init(Arc::new(specs), &Init { seed: 1, embedding: 1.0, router: 1.0, weight: None });
        let mut grads = Grads::zeros(&params);
        handles.iter().for_each(|&p| grads.get_mut(p).write::<f32>().fill(1.0));
        grads.clear();
        (grads, handles.to_vec())
    }

    #[test]
    fn a_cleared_gradient_is_zero_to_who_adds_and_once_it_is_settled() {
        let (mut grads, p) = cleared();
        grads.get_mut(p[0]).write::<f32>()[0] += 5.0;
        grads.settle();
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
