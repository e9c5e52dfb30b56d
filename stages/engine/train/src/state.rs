//! A training as bytes: parameters, moments and the step, and what average and guard hold, as safetensors. Nothing else is needed, because
//! nothing else has a state.
//!
//! Tensors carry a parameter's name behind what they are: `w.`, `m.`, `v.`, `average.`, and `kept.w.` … for the guard's copy.

use crate::{Error, Optimizer, Trainer};
use bytemuck::cast_slice;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use smelt_kernels::{DType, Tensor, bf16};
use smelt_model::Params;
use std::collections::HashMap;

const NUMBERS: &str = "training";
const LOSSES: &str = "guard.losses";

impl Trainer {
    /// Everything that the next step depends on, bit for bit.
    pub fn save(&self) -> Vec<u8> {
        let mut views = Vec::new();
        push(&mut views, "", &self.params, &self.optimizer);
        let mut numbers =
            json!({ "step": self.steps, "updates": self.optimizer.updates, "skipped": self.spikes.skipped });
        if let Some((params, optimizer)) = &self.spikes.kept {
            push(&mut views, "kept.", params, optimizer);
            numbers["kept"] = optimizer.updates.into();
        }
        // one entry: the file's metadata have no order of their own
        let metadata = HashMap::from([(NUMBERS.to_owned(), numbers.to_string())]);
        let losses: Vec<f64> = self.spikes.losses.iter().copied().collect();
        if !losses.is_empty() {
            let view = TensorView::new(Dtype::F64, vec![losses.len()], cast_slice(&losses));
            views.push((LOSSES.to_owned(), view.expect("8 bytes per loss")));
        }
        safetensors::serialize(views, Some(metadata)).expect("names are unique and shapes fit")
    }

    /// Goes on where `bytes` were saved. On an error the trainer is as it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| state(error.to_string()))?;
        let numbers = header.metadata().as_ref().and_then(|metadata| metadata.get(NUMBERS));
        let numbers: Value = numbers.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let number = |name: &str| numbers[name].as_u64().ok_or_else(|| state(format!("it names no {name}")));
        let file = SafeTensors::deserialize(bytes).map_err(|error| state(error.to_string()))?;
        let (params, mut optimizer) = self.pull(&file, "")?;
        let (steps, skipped) = (number("step")?, number("skipped")?);
        optimizer.updates = number("updates")?;
        let kept = match numbers.get("kept").is_some() {
            true => {
                let (params, mut optimizer) = self.pull(&file, "kept.")?;
                optimizer.updates = number("kept")?;
                Some((params, optimizer))
            }
            false => None,
        };
        let losses = file.tensor(LOSSES).ok();
        let losses = losses.iter().flat_map(|view| view.data().as_chunks().0.iter().map(|&x| f64::from_le_bytes(x)));
        self.spikes = crate::guard::Spikes { losses: losses.collect(), skipped, kept };
        (self.params, self.optimizer, self.steps) = (params, optimizer, steps);
        Ok(())
    }

    /// Parameters and optimizer under `prefix`, shaped like this trainer's; `updates` is left at 0.
    fn pull(&self, file: &SafeTensors, prefix: &str) -> Result<(Params, Optimizer), Error> {
        let mut params = self.params.copy();
        let mut optimizer = Optimizer { updates: 0, ..self.optimizer.copy() };
        for (p, spec, like) in self.params.iter() {
            let name = &spec.parts[0].name;
            let pull = |kind: &str, like: &Tensor| read(file, &format!("{prefix}{kind}.{name}"), like);
            *params.get_mut(p) = pull("w", like)?;
            let at = p.index();
            optimizer.m[at] = pull("m", &self.optimizer.m[at])?;
            optimizer.v[at] = pull("v", &self.optimizer.v[at])?;
            if let Some(average) = &mut optimizer.average {
                *average.get_mut(p) = pull("average", like)?;
            }
        }
        Ok((params, optimizer))
    }
}

fn state(what: String) -> Error {
    Error::State { what }
}

fn push<'a>(views: &mut Vec<(String, TensorView<'a>)>, prefix: &str, params: &'a Params, optimizer: &'a Optimizer) {
    for (p, spec, value) in params.iter() {
        let name = &spec.parts[0].name;
        let mut tensors = vec![("w", value), ("m", &optimizer.m[p.index()]), ("v", &optimizer.v[p.index()])];
        tensors.extend(optimizer.average.as_ref().map(|average| ("average", average.get(p))));
        for (kind, tensor) in tensors {
            let (dtype, bytes) = match tensor.dtype() {
                DType::Bf16 => (Dtype::BF16, cast_slice(tensor.read::<bf16>())),
                _ => (Dtype::F32, cast_slice(tensor.read::<f32>())),
            };
            let view = TensorView::new(dtype, spec.shape.dims().to_vec(), bytes);
            views.push((format!("{prefix}{kind}.{name}"), view.expect("a tensor's bytes fit its shape")));
        }
    }
}

fn read(file: &SafeTensors, name: &str, like: &Tensor) -> Result<Tensor, Error> {
    let view = file.tensor(name).map_err(|_| state(format!("`{name}` is missing")))?;
    let dtype = if like.dtype() == DType::Bf16 { Dtype::BF16 } else { Dtype::F32 };
    if view.shape() != like.shape().dims() {
        return Err(state(format!("`{name}` has shape {:?}, the model {:?}", view.shape(), like.shape())));
    }
    if view.dtype() != dtype {
        return Err(state(format!("`{name}` is {:?}, the optimizer keeps {dtype:?}", view.dtype())));
    }
    Ok(match like.dtype() {
        DType::Bf16 => {
            let bits = view.data().as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
            Tensor::new(like.shape(), &bits.map(bf16::from_bits).collect::<Vec<_>>())
        }
        _ => {
            let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            Tensor::new(like.shape(), &values.collect::<Vec<f32>>())
        }
    })
}
