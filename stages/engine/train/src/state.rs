//! A training as bytes: parameters, moments and the step, as safetensors. Nothing else is needed, because nothing else has a state.

use crate::{Error, Optimizer, Trainer};
use bytemuck::cast_slice;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use smelt_kernels::Tensor;
use std::collections::HashMap;

impl Trainer {
    /// Everything that the next step depends on, bit for bit.
    pub fn save(&self) -> Vec<u8> {
        let mut views = Vec::new();
        for (p, spec, value) in self.params().iter() {
            let name = &spec.parts[0].name;
            let (m, v) = (&self.optimizer.m[p.index()], &self.optimizer.v[p.index()]);
            for (kind, tensor) in [("w", value), ("m", m), ("v", v)] {
                let view = TensorView::new(Dtype::F32, spec.shape.dims().to_vec(), cast_slice(tensor.read::<f32>()));
                views.push((format!("{kind}.{name}"), view.expect("a tensor's bytes fit its shape")));
            }
        }
        let metadata = HashMap::from([("step".to_owned(), self.optimizer.step.to_string())]);
        safetensors::serialize(views, Some(metadata)).expect("names are unique and shapes fit")
    }

    /// Goes on where `bytes` were saved. On an error the trainer is as it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let state = |what: String| Error::State { what };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| state(error.to_string()))?;
        let step = header.metadata().as_ref().and_then(|metadata| metadata.get("step")?.parse().ok());
        let step: u64 = step.ok_or_else(|| state("it names no step".into()))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| state(error.to_string()))?;
        let read = |name: String, like: &Tensor| {
            let view = file.tensor(&name).map_err(|_| state(format!("`{name}` is missing")))?;
            if view.shape() != like.shape().dims() || view.dtype() != Dtype::F32 {
                let (found, expected) = (view.shape(), like.shape());
                return Err(state(format!("`{name}` has shape {found:?}, the model {expected:?}")));
            }
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Ok(Tensor::new(like.shape(), &values))
        };
        let mut found = Vec::new();
        for (p, spec, value) in self.params.iter() {
            let name = &spec.parts[0].name;
            let tensors = [
                read(format!("w.{name}"), value)?,
                read(format!("m.{name}"), value)?,
                read(format!("v.{name}"), value)?,
            ];
            found.push((p, tensors));
        }
        let mut optimizer = Optimizer { m: Vec::new(), v: Vec::new(), step };
        for (p, [w, m, v]) in found {
            *self.params.get_mut(p) = w;
            optimizer.m.push(m);
            optimizer.v.push(v);
        }
        self.optimizer = optimizer;
        Ok(())
    }
}
