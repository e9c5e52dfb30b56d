//! Parameters live beside the model: a layer holds handles, values and gradients are parallel stores.
//!
//! A parameter's one name is Hugging Face's. A packed tensor (gate and up of a feed-forward layer; all experts of a
//! layer) lists the names it holds in the order of memory; the optimizer walks packed tensors, checkpoints the parts.

use crate::Error;
use smelt_kernels::{Backend, DType, Shape, Tensor, random};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Param(usize);

impl Param {
    pub(crate) fn at(index: usize) -> Self {
        Self(index)
    }

    pub fn index(self) -> usize {
        self.0
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// Normal draws, by [`Init::weight`].
    Weight,
    /// Normal draws, by [`Init::embedding`].
    Embedding,
    /// Normal draws, by [`Init::router`].
    Router,
    One,
    Zero,
    Values(&'static [f32]),
}

/// What moves a parameter in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Its gradient, through the optimizer.
    Gradient,
    /// A rule of its own, such as that of a router's correction bias. It has no gradient and no moments.
    Rule,
}

/// How a checkpoint stores a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A linear layer's weight: in the checkpoint's type, FP8 in blocks included.
    Linear,
    /// In the checkpoint's type, or bf16 where that is FP8.
    Plain,
    /// In f32, whatever the checkpoint's type.
    Full,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub shape: Vec<usize>,
}

impl Part {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub shape: Shape,
    pub start: Start,
    pub update: Update,
    pub stored: Stored,
    /// One after the other in memory.
    pub parts: Vec<Part>,
}

impl Spec {
    /// The parts with the elements that each has of the packed tensor.
    pub fn spans(&self) -> impl Iterator<Item = (&Part, Range<usize>)> {
        let mut end = 0;
        self.parts.iter().map(move |part| {
            let start = end;
            end += part.elements();
            (part, start..end)
        })
    }
}

/// Elements that one thread draws at a time: 65,536 normals take some milliseconds.
const PIECE: usize = 1 << 16;

/// Calls `work` for each piece, on all cores when there are several.
fn on_all_cores<T: Send>(pieces: Vec<T>, work: impl Fn(T) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(pieces.len());
    if threads <= 1 {
        return pieces.into_iter().for_each(work);
    }
    let pieces = Mutex::new(pieces.into_iter());
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| std::iter::from_fn(next).for_each(&work));
        }
    });
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
    fn add(&mut self, spec: Spec) -> Param {
        debug_assert_eq!(spec.parts.iter().map(Part::elements).sum::<usize>(), spec.shape.len());
        self.0.push(spec);
        Param(self.0.len() - 1)
    }

    /// A tensor of one part that its gradient moves.
    pub(crate) fn one(&mut self, name: String, shape: &[usize], start: Start) -> Param {
        let parts = vec![Part { name, shape: shape.to_vec() }];
        self.add(Spec { shape: shape.into(), start, update: Update::Gradient, stored: Stored::Plain, parts })
    }

    /// The weight of a linear layer.
    pub(crate) fn linear(&mut self, name: String, shape: &[usize]) -> Param {
        let part = (name, shape.to_vec());
        self.packed(shape, [part])
    }

    /// Weights of linear layers in one tensor.
    pub(crate) fn packed(&mut self, shape: &[usize], parts: impl IntoIterator<Item = (String, Vec<usize>)>) -> Param {
        let parts = parts.into_iter().map(|(name, shape)| Part { name, shape }).collect();
        let (start, update) = (Start::Weight, Update::Gradient);
        self.add(Spec { shape: shape.into(), start, update, stored: Stored::Linear, parts })
    }

    /// A router's correction bias.
    pub(crate) fn correction(&mut self, name: String, experts: usize) -> Param {
        let parts = vec![Part { name, shape: vec![experts] }];
        let shape = Shape::from(&[experts][..]);
        self.add(Spec { shape, start: Start::Zero, update: Update::Rule, stored: Stored::Full, parts })
    }

    /// All trainable elements.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().filter(|spec| spec.update == Update::Gradient).map(|spec| spec.shape.len()).sum()
    }
}

pub struct Params {
    specs: Arc<Specs>,
    values: Vec<Tensor>,
}

/// # Errors
/// [`Error::NotFinite`] for the first value of tensor `name` that is NaN or infinite.
pub(crate) fn expect_finite(name: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(place) => Err(Error::NotFinite { name: name.into(), place, value: values[place] }),
    }
}

/// Counts alone: there are too many values to print.
impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Params")
            .field("tensors", &self.values.len())
            .field("trained", &self.count())
            .finish_non_exhaustive()
    }
}

impl Params {
    pub(crate) fn new(specs: Arc<Specs>, values: Vec<Tensor>) -> Self {
        Self { specs, values }
    }

    /// Draws depend on seed and tensor name alone, not on the order of layers.
    pub(crate) fn init(specs: Arc<Specs>, init: &Init) -> Self {
        let draw = |spec: &Spec| {
            let mut tensor = Tensor::empty(spec.shape, DType::F32);
            let (mut rest, mut pieces) = (tensor.write::<f32>(), Vec::new());
            for part in &spec.parts {
                let stream = part.name.bytes().fold(0, |hash, byte| random::mix(hash ^ u64::from(byte)));
                let inputs = part.shape.last().copied().unwrap_or(1) as f64;
                let std = match spec.start {
                    Start::Weight => init.weight.unwrap_or(1.0 / (3.0 * inputs).sqrt()),
                    Start::Embedding => init.embedding,
                    Start::Router => init.router,
                    Start::One | Start::Zero | Start::Values(_) => 0.0,
                };
                let values = rest.split_off_mut(..part.elements()).expect("parts fill the tensor");
                let draw = (stream, std);
                pieces.extend(values.chunks_mut(PIECE).enumerate().map(|(at, piece)| (draw, at * PIECE, piece)));
            }
            on_all_cores(pieces, |((stream, std), first, piece)| {
                for (i, value) in piece.iter_mut().enumerate().map(|(i, value)| (first + i, value)) {
                    *value = match spec.start {
                        Start::One => 1.0,
                        Start::Zero => 0.0,
                        Start::Values(values) => values[i],
                        _ => (std * random::normal(init.seed, stream, i as u64)) as f32,
                    };
                }
            });
            tensor
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

    /// # Errors
    /// [`Error::NotFinite`] for the first value that is NaN or infinite.
    pub fn expect_finite(&self) -> Result<(), Error> {
        for (_, spec, value) in self.iter() {
            let values = value.read::<f32>();
            for (part, span) in spec.spans() {
                expect_finite(&part.name, &values[span])?;
            }
        }
        Ok(())
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

    /// On the device of `backend`.
    pub fn on(self, backend: &dyn Backend) -> Self {
        let values = self.values.into_iter().map(|value| backend.upload(&value)).collect();
        Self { specs: self.specs, values }
    }

    /// On the host, from the device of `backend`.
    pub fn on_host(&self, backend: &dyn Backend) -> Self {
        Self { specs: self.specs.clone(), values: self.values.iter().map(|value| backend.download(value)).collect() }
    }

    /// Values with memory of their own, on the device of `backend`, where these are.
    pub fn copy_on(&self, backend: &dyn Backend) -> Self {
        Self { specs: self.specs.clone(), values: self.values.iter().map(|value| backend.copy(value)).collect() }
    }

    /// All trainable elements.
    pub fn count(&self) -> usize {
        self.specs.count()
    }

    /// Packs the weights once for many small batches: for generation, while the values stay.
    pub fn prepare(&self, backend: &dyn Backend) {
        for (_, spec, value) in self.iter() {
            // embeddings are looked up; an untied head starts as a weight, a tied one is not packed
            if matches!(spec.start, Start::Weight | Start::Router) {
                backend.prepare(value);
            }
        }
    }

    /// Takes the values of all parameters that `other` also has by name; the rest keeps what it is. For a reward model
    /// that starts from a language model.
    pub fn adopt(&mut self, other: &Params) {
        for i in 0..self.values.len() {
            let name = &self.specs.0[i].parts[0].name;
            if let Some((_, _, value)) = other.iter().find(|(_, spec, _)| spec.parts[0].name == *name) {
                self.values[i] = value.copy();
            }
        }
    }
}

/// 3 of `model.layers.3.enorm.weight`.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}
