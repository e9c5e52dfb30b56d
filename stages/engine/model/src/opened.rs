//! The files of a checkpoint, matched to the parameters of its model: what is missing, extra, of another shape or of
//! another kind is found before a value is read, and values are read tensor by tensor.

use crate::params::{Part, expect_finite, layer_of};
use crate::quantised::Quantisation;
use crate::tensor_file::write_tensors;
use crate::{Config, Error, Family, Model, Params, pickle};
use bytemuck::cast_slice;
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use serde::Deserialize;
use smelt_kernels::{Tensor, bf16};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

const INDEX: [&str; 2] = [".safetensors.index.json", ".bin.index.json"];
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A checkpoint whose tensors are known and whose values are still in its files.
#[derive(Debug)]
pub struct Opened<'a> {
    model: Model,
    quantisation: Option<Quantisation>,
    /// By the names of the model's parts.
    found: HashMap<String, TensorView<'a>>,
    is_renamed: bool,
    is_pickled: bool,
    /// Tensors that no file holds: see [`drawn`](Self::drawn).
    drawn: BTreeMap<String, Vec<f32>>,
}

/// Whether a file of this name holds tensors, or names the files that do.
pub fn is_weight_file(name: &str) -> bool {
    let is_pickled = name.starts_with("pytorch_model") && name.ends_with(".bin");
    name.ends_with(".safetensors") || is_pickled || INDEX.iter().any(|end| name.ends_with(end))
}

impl<'a> Opened<'a> {
    /// `files`: names and contents; those of weights are read, and an index of them is checked; others are ignored.
    /// safetensors are taken where there are both. MTP modules of which the files hold nothing are left out.
    pub fn new(config: &[u8], files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Self, Error> {
        let mut fields = Config::from_json(config)?;
        let quantisation = Quantisation::from_json(config)?;
        let files: Vec<(&str, &[u8])> = files.into_iter().filter(|(name, _)| is_weight_file(name)).collect();
        let is_safe = |name: &str| name.contains(".safetensors");
        let is_pickled = !files.iter().any(|(name, _)| is_safe(name));
        let files = files.into_iter().filter(|(name, _)| is_pickled || is_safe(name));
        let (indices, files): (Vec<_>, Vec<_>) =
            files.partition(|(name, _)| INDEX.iter().any(|end| name.ends_with(end)));
        for (index, bytes) in indices {
            check_index(index, bytes, &files)?;
        }
        let mut found = HashMap::new();
        for (file, bytes) in files {
            expect_no_pointer(file, bytes)?;
            if is_pickled {
                found.extend(pickle::tensors(file, bytes)?);
            } else {
                let tensors =
                    SafeTensors::deserialize(bytes).map_err(|source| Error::File { file: file.into(), source })?;
                found.extend(tensors.tensors()); // borrows from `bytes`, not from the list
            }
        }
        let is_renamed =
            found.contains_key("embed_tokens.weight") && !found.keys().any(|name| name.starts_with("model."));
        if is_renamed {
            let own = |name: &str| name.starts_with("lm_head.") || name.starts_with("score.");
            let renamed = |name: String| if own(&name) { name } else { format!("model.{name}") };
            found = found.into_iter().map(|(name, view)| (renamed(name), view)).collect();
        }
        // transformers drops the MTP modules, and its config.json goes on naming them
        let last = fields.num_hidden_layers;
        let has_mtp = found.keys().any(|name| layer_of(name).is_some_and(|layer| layer >= last));
        if let (Family::DeepseekV3(v3), false) = (&mut fields.family, has_mtp) {
            v3.num_nextn_predict_layers = 0;
        }
        let model = Model::new(fields)?;
        let mut opened = Self { model, quantisation, found, is_renamed, is_pickled, drawn: BTreeMap::new() };
        opened.expect_copies()?;
        opened.match_parts()?;
        Ok(opened)
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    /// All trainable elements.
    pub fn parameters(&self) -> usize {
        self.model.specs().count()
    }

    /// Tensors that no file holds, with values drawn as transformers draws them: the head of a model that was saved
    /// without one.
    pub fn drawn(&self) -> impl Iterator<Item = &str> {
        self.drawn.keys().map(String::as_str)
    }

    /// Released files repeat the shared tensors under the MTP modules, and some the head although it is tied. A copy
    /// that differs would be another model.
    fn expect_copies(&mut self) -> Result<(), Error> {
        let config = self.model.config();
        let head = if config.tie_word_embeddings { EMBEDDING } else { HEAD };
        let mut copies = Vec::new();
        if config.tie_word_embeddings {
            copies.push((HEAD.to_owned(), EMBEDDING, "config.json says `tie_word_embeddings`: true"));
        }
        for layer in config.num_hidden_layers..config.num_hidden_layers + config.num_nextn_predict_layers() {
            let why = "an MTP module shares it with the model";
            copies.push((format!("model.layers.{layer}.embed_tokens.weight"), EMBEDDING, why));
            copies.push((format!("model.layers.{layer}.shared_head.head.weight"), head, why));
        }
        for (name, of, why) in copies {
            let (Some(copy), Some(original)) = (self.found.remove(&name), self.found.get(of)) else { continue };
            let is_same = copy.shape() == original.shape()
                && if copy.dtype() == original.dtype() {
                    copy.data() == original.data()
                } else {
                    self.values(&name, &copy)? == self.values(of, original)?
                };
            if !is_same {
                return Err(Error::Tied { name, of: of.into(), why });
            }
        }
        Ok(())
    }

    /// Every part of the model has its tensor, and every tensor its part.
    fn match_parts(&mut self) -> Result<(), Error> {
        let mut left: HashMap<&str, &TensorView> =
            self.found.iter().map(|(name, view)| (name.as_str(), view)).collect();
        let mut drawn = Vec::new();
        for part in self.model.specs().0.iter().flat_map(|spec| &spec.parts) {
            let expected = || format!("{:?}", part.shape);
            let Some(view) = left.remove(part.name.as_str()) else {
                if self.is_renamed && part.name == HEAD {
                    drawn.push(part.clone());
                    continue;
                }
                return Err(Error::Missing { name: part.name.clone(), expected: expected() });
            };
            if view.shape() != part.shape {
                let found = format!("{:?}", view.shape());
                return Err(Error::Shape { name: part.name.clone(), expected: expected(), found });
            }
            if view.dtype() == Dtype::F8_E4M3 {
                if self.quantisation.is_none() {
                    return Err(Error::Config {
                        what: format!("`{}` is stored in FP8, but there is no `quantization_config`", part.name),
                        hint: "take the config.json that was written with these files",
                    });
                }
                left.remove(format!("{}_scale_inv", part.name).as_str());
            }
        }
        // no elements, as of zero shared experts; or a table that follows from the config, in old Llama files
        left.retain(|name, view| !view.shape().contains(&0) && !name.ends_with(".rotary_emb.inv_freq"));
        if let Some(name) = left.into_keys().min() {
            return Err(Error::Extra { name: name.into() });
        }
        let spread = self.model.config().initializer_range as f32;
        for (i, part) in drawn.into_iter().enumerate() {
            let normal = |at: usize| smelt_kernels::random::normal(0, i as u64, at as u64) as f32 * spread;
            let values = (0..part.shape.iter().product()).map(normal).collect();
            self.drawn.insert(part.name, values);
        }
        Ok(())
    }

    /// Values of a tensor, dequantised.
    fn values(&self, name: &str, view: &TensorView) -> Result<Vec<f32>, Error> {
        let mut out = Vec::with_capacity(view.shape().iter().product());
        let halves =
            |view: &TensorView| view.data().as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect::<Vec<_>>();
        match (view.dtype(), &self.quantisation) {
            // files promise no alignment
            (Dtype::F32, _) => out.extend(view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
            (Dtype::BF16, _) => out.extend(halves(view).into_iter().map(|bits| bf16::from_bits(bits).to_f32())),
            (Dtype::F16, _) => out.extend(halves(view).into_iter().map(|bits| f16::from_bits(bits).to_f32())),
            (Dtype::F8_E4M3, Some(quantisation)) => {
                let scale = self.found.get(&format!("{name}_scale_inv"));
                quantisation.read(name, view, scale, &mut out)?;
            }
            (other, _) => return Err(Error::DType { name: name.into(), found: format!("{other:?}") }),
        }
        Ok(out)
    }

    /// The values of one part, all finite.
    fn read(&self, part: &Part) -> Result<Vec<f32>, Error> {
        let values = match self.drawn.get(&part.name) {
            Some(values) => values.clone(),
            None => self.values(&part.name, &self.found[&part.name])?,
        };
        expect_finite(&part.name, &values)?;
        Ok(values)
    }

    /// Reads every value once, a tensor at a time, and keeps none; `each` is called after each tensor.
    pub fn verify(&self, each: impl Fn()) -> Result<(), Error> {
        self.parts().try_for_each(|part| self.read(part).map(|_| each()))
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.model.specs().0.iter().flat_map(|spec| &spec.parts)
    }

    pub fn load(self) -> Result<(Model, Params), Error> {
        let mut values = Vec::new();
        for spec in &self.model.specs().0 {
            let mut flat = Vec::with_capacity(spec.shape.len());
            for part in &spec.parts {
                flat.extend(self.read(part)?);
            }
            values.push(Tensor::new(spec.shape, &flat));
        }
        let params = Params::new(self.model.specs().clone(), values);
        Ok((self.model, params))
    }

    /// Whether [`write`](Self::write) would give other tensors than the files hold: other names, other types.
    pub fn is_foreign(&self) -> bool {
        let is_half = |view: &TensorView| view.dtype() == Dtype::F16;
        self.is_renamed || self.is_pickled || self.found.values().any(is_half)
    }

    /// The checkpoint as one safetensors file, tensor by tensor: names as the model knows them, F16 as F32, which holds
    /// its every value.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut tensors: Vec<(String, Plain)> = Vec::new();
        for part in self.parts() {
            tensors.push(match self.drawn.get(&part.name) {
                Some(values) => (part.name.clone(), Plain::Drawn(values, &part.shape)),
                None => (part.name.clone(), Plain::Found(&self.found[&part.name])),
            });
            let scale = format!("{}_scale_inv", part.name);
            tensors.extend(self.found.get(&scale).map(|view| (scale.clone(), Plain::Found(view))));
        }
        write_tensors(tensors, Some(HashMap::from([("format".to_owned(), "pt".to_owned())])), out)
    }
}

/// A tensor as it is written: F16 becomes F32.
enum Plain<'a> {
    Found(&'a TensorView<'a>),
    Drawn(&'a [f32], &'a [usize]),
}

impl View for Plain<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Plain::Found(view) if view.dtype() != Dtype::F16 => view.dtype(),
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Plain::Found(view) => view.shape(),
            Plain::Drawn(_, shape) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Plain::Drawn(values, _) => cast_slice(values).into(),
            Plain::Found(view) if view.dtype() == Dtype::F16 => {
                let data = view.data();
                let halves = data.as_chunks().0.iter().map(|&bytes| f16::from_bits(u16::from_le_bytes(bytes)));
                halves.flat_map(|half| half.to_f32().to_le_bytes()).collect::<Vec<u8>>().into()
            }
            Plain::Found(view) => view.data(),
        }
    }

    fn data_len(&self) -> usize {
        self.shape().iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// `files` as a checkpoint in memory. Weights in FP8 are dequantised.
pub fn load<'a>(config: &[u8], files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<(Model, Params), Error> {
    Opened::new(config, files)?.load()
}

/// Every shard that the index names must be there.
fn check_index(index: &str, bytes: &[u8], files: &[(&str, &[u8])]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = serde_json::from_slice(bytes)?;
    let is_missing = |shard: &&String| files.iter().all(|(file, _)| file != shard);
    match weight_map.values().find(is_missing) {
        Some(shard) => Err(Error::Shard { index: index.into(), shard: shard.clone() }),
        None => Ok(()),
    }
}

/// What stands in place of a file that Git LFS keeps elsewhere.
pub fn expect_no_pointer(file: &str, bytes: &[u8]) -> Result<(), Error> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")).unwrap_or("?").to_owned();
    Err(Error::Foreign {
        file: file.into(),
        what: format!("is a Git LFS pointer to {size} bytes that were not downloaded"),
        hint: "run `git lfs pull` in its folder",
    })
}
