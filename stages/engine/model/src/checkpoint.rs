//! Checkpoints as Hugging Face lays them out: config.json and safetensors whose names are the parameters' own.
//!
//! Bytes in, bytes out, tensor by tensor: readers may map files (`opened.rs`), writers stream them. Reading is strict:
//! a tensor that is missing, extra, or of another shape is an error that names it, because a model that loads "almost"
//! computes nonsense without a word.

use crate::params::Part;
use crate::quantised::{config_with, is_quantised, quantise, scale_shape};
use crate::tensor_file::write_tensors;
use crate::{Model, Params, Stored};
use bytemuck::cast_slice;
use safetensors::tensor::{Dtype, View};
use serde_json::json;
use smelt_kernels::{DType, bf16};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

/// Bytes of tensors per file; larger models are written in shards with an index.
const SHARD: usize = 4 << 30;

/// A tensor of a checkpoint whose bytes are computed when they are written.
#[derive(Clone, Debug)]
enum Deferred<'a> {
    Full {
        values: &'a [f32],
        shape: &'a [usize],
    },
    Bf16 {
        values: &'a [f32],
        shape: &'a [usize],
    },
    /// E4M3, or with `is_scale` its scales, `shape` of them.
    Fp8 {
        values: &'a [f32],
        part: &'a Part,
        is_scale: bool,
        shape: Vec<usize>,
    },
}

impl View for Deferred<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Deferred::Full { .. } | Deferred::Fp8 { is_scale: true, .. } => Dtype::F32,
            Deferred::Bf16 { .. } => Dtype::BF16,
            Deferred::Fp8 { .. } => Dtype::F8_E4M3,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Deferred::Full { shape, .. } | Deferred::Bf16 { shape, .. } => shape,
            Deferred::Fp8 { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Deferred::Full { values, .. } => Cow::Borrowed(cast_slice(values)),
            Deferred::Bf16 { values, .. } => {
                let short: Vec<u16> = values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                Cow::Owned(cast_slice(&short).to_vec())
            }
            Deferred::Fp8 { values, part, is_scale, .. } => {
                let (bytes, scale) = quantise(part, values);
                Cow::Owned(if *is_scale { cast_slice(&scale).to_vec() } else { bytes })
            }
        }
    }

    fn data_len(&self) -> usize {
        self.shape().iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// One file of a checkpoint, to be written.
#[derive(Debug)]
pub struct CheckpointFile<'a> {
    pub name: String,
    content: Content<'a>,
}

#[derive(Debug)]
enum Content<'a> {
    Json(Vec<u8>),
    Tensors(Vec<(String, Deferred<'a>)>),
}

impl CheckpointFile<'_> {
    /// Tensor by tensor: the file is never whole in memory.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match &self.content {
            Content::Json(bytes) => out.write_all(bytes),
            Content::Tensors(tensors) => {
                let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
                write_tensors(tensors.clone(), Some(metadata), out)
            }
        }
    }
}

/// config.json and the safetensors: F32, bf16, or E4M3 in blocks of 128 × 128 where bf16 is what is not quantised.
/// Parameters that are [`Stored::Full`] stay F32 whatever `dtype` is.
pub fn save<'a>(model: &Model, params: &'a Params, dtype: DType) -> Vec<CheckpointFile<'a>> {
    save_in_shards(model, params, dtype, SHARD)
}

/// With at most `limit` bytes of tensors per file, but at least one tensor.
fn save_in_shards<'a>(model: &Model, params: &'a Params, dtype: DType, limit: usize) -> Vec<CheckpointFile<'a>> {
    let (mut tensors, mut plain) = (BTreeMap::new(), Vec::new());
    for (_, spec, value) in params.iter() {
        for (part, span) in spec.spans() {
            let (values, shape) = (&value.read::<f32>()[span], part.shape.as_slice());
            if dtype == DType::E4m3 && is_quantised(spec.stored, part) {
                let scale = Deferred::Fp8 { values, part, is_scale: true, shape: scale_shape(part) };
                tensors.insert(format!("{}_scale_inv", part.name), scale);
                let bytes = Deferred::Fp8 { values, part, is_scale: false, shape: shape.to_vec() };
                tensors.insert(part.name.clone(), bytes);
                continue;
            }
            if spec.stored == Stored::Linear {
                plain.push(part.name.clone());
            }
            let is_full = dtype == DType::F32 || spec.stored == Stored::Full;
            let written = if is_full { Deferred::Full { values, shape } } else { Deferred::Bf16 { values, shape } };
            tensors.insert(part.name.clone(), written);
        }
    }
    // vLLM looks for the shared tensors under each MTP module too
    let config = model.config();
    for layer in config.num_hidden_layers..config.num_hidden_layers + config.num_nextn_predict_layers() {
        let head = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        for (copy, of) in [("embed_tokens", "model.embed_tokens.weight"), ("shared_head.head", head)] {
            let tensor = tensors[of].clone();
            plain.extend((copy == "shared_head.head").then(|| format!("model.layers.{layer}.{copy}.weight")));
            tensors.insert(format!("model.layers.{layer}.{copy}.weight"), tensor);
        }
    }
    let json = config.to_json();
    let json = if dtype == DType::E4m3 { config_with(&json, &plain) } else { json };
    let mut files = vec![CheckpointFile { name: "config.json".into(), content: Content::Json(json) }];
    files.extend(shards(tensors, limit));
    files
}

fn shards(tensors: BTreeMap<String, Deferred>, limit: usize) -> Vec<CheckpointFile> {
    let total: usize = tensors.values().map(View::data_len).sum();
    let (mut shards, mut bytes_in_last) = (vec![Vec::new()], 0);
    for (name, tensor) in tensors {
        let bytes = tensor.data_len();
        if bytes_in_last + bytes > limit && bytes_in_last > 0 {
            shards.push(Vec::new());
            bytes_in_last = 0;
        }
        bytes_in_last += bytes;
        shards.last_mut().expect("there is a first").push((name, tensor));
    }
    let count = shards.len();
    let (mut files, mut map) = (Vec::new(), serde_json::Map::new());
    for (i, shard) in shards.into_iter().enumerate() {
        let name = if count == 1 {
            "model.safetensors".into()
        } else {
            format!("model-{:05}-of-{count:05}.safetensors", i + 1)
        };
        map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), name.as_str().into())));
        files.push(CheckpointFile { name, content: Content::Tensors(shard) });
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let index = serde_json::to_vec_pretty(&index).expect("plain JSON");
        files.push(CheckpointFile { name: "model.safetensors.index.json".into(), content: Content::Json(index) });
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{deepseek, dense, tiny};
    use crate::{Config, Init, load};
    use safetensors::tensor::SafeTensors;

    const INIT: Init = Init { seed: 1, embedding: 0.5, router: 0.1, weight: None };

    fn written(files: Vec<CheckpointFile>) -> Vec<(String, Vec<u8>)> {
        let bytes = |file: CheckpointFile| {
            let mut bytes = Vec::new();
            file.write(&mut bytes).unwrap();
            (file.name, bytes)
        };
        files.into_iter().map(bytes).collect()
    }

    /// What a directory holds after the checkpoint was written to it.
    fn save(model: &Model, params: &Params, dtype: DType) -> Vec<(String, Vec<u8>)> {
        written(super::save(model, params, dtype))
    }

    fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect()
    }

    fn bits(params: &Params) -> Vec<Vec<u32>> {
        params.iter().map(|(_, _, t)| t.read::<f32>().iter().map(|x| x.to_bits()).collect()).collect()
    }

    #[test]
    fn a_checkpoint_comes_back_to_the_bit() {
        for (is_tied, reward_head) in [(false, false), (true, true)] {
            let mut config = Config { tie_word_embeddings: is_tied, reward_head, ..tiny() };
            deepseek(&mut config).num_nextn_predict_layers = 1;
            let model = Model::new(config).unwrap();
            let params = model.init(&INIT);
            let files = save(&model, &params, DType::F32);
            let (again, loaded) = load(&files[0].1, borrowed(&files)).unwrap();
            assert_eq!(again.config(), model.config());
            assert_eq!(bits(&loaded), bits(&params));
            assert_eq!(save(&again, &loaded, DType::F32), files);
        }
    }

    #[test]
    fn a_checkpoint_of_a_dense_family_comes_back_to_the_bit() {
        for (config, is_tied) in dense().into_iter().zip([true, false, false]) {
            let model = Model::new(Config { tie_word_embeddings: is_tied, ..config }).unwrap();
            let mut params = model.init(&INIT);
            for (i, p) in params.handles().enumerate() {
                let noise = |j: usize| smelt_kernels::random::normal(7, i as u64, j as u64) as f32;
                params.get_mut(p).write::<f32>().iter_mut().enumerate().for_each(|(j, x)| *x = noise(j));
            }
            for dtype in [DType::F32, DType::Bf16] {
                let files = save(&model, &params, dtype);
                let (again, loaded) = load(&files[0].1, borrowed(&files)).unwrap();
                assert_eq!(again.config(), model.config());
                assert_eq!(save(&again, &loaded, dtype), files);
                if dtype == DType::F32 {
                    assert_eq!(bits(&loaded), bits(&params));
                }
            }
        }
    }

    #[test]
    fn tensors_of_a_dense_layer_have_hugging_faces_names_and_shapes() {
        let layer = |config: Config| {
            let specs = Model::new(config).unwrap().specs().clone();
            let parts = specs.0.iter().flat_map(|spec| &spec.parts);
            let parts = parts.filter_map(|p| Some((p.name.strip_prefix("model.layers.0.self_attn.")?, &p.shape)));
            parts.map(|(name, shape)| format!("{name} {shape:?}")).collect::<Vec<_>>().join(", ")
        };
        let [qwen2, qwen3, llama] = dense().map(layer);
        let weights =
            ["q_proj.weight [16, 12]", "k_proj.weight [8, 12]", "v_proj.weight [8, 12]", "o_proj.weight [12, 16]"];
        let [q, k, v, o] = weights;
        assert_eq!(qwen2, format!("{q}, q_proj.bias [16], {k}, k_proj.bias [8], {v}, v_proj.bias [8], {o}"));
        assert_eq!(qwen3, format!("{q}, {k}, {v}, {o}, q_norm.weight [4], k_norm.weight [4]"));
        assert_eq!(
            llama,
            format!("{q}, q_proj.bias [16], {k}, k_proj.bias [8], {v}, v_proj.bias [8], {o}, o_proj.bias [12]")
        );
    }

    #[test]
    fn bf16_halves_the_file_and_rounds_once() {
        let model = Model::new(tiny()).unwrap();
        let params = model.init(&INIT);
        let (full, half) = (save(&model, &params, DType::F32), save(&model, &params, DType::Bf16));
        let saved = full[1].1.len() - half[1].1.len();
        assert!(saved > 2 * params.count() * 9 / 10, "{saved} bytes"); // two per element; the header differs a little
        let (_, loaded) = load(&half[0].1, borrowed(&half)).unwrap();
        for ((_, spec, a), (_, _, b)) in params.iter().zip(loaded.iter()) {
            let rounded = if spec.stored == Stored::Full { a.clone() } else { a.cast(DType::Bf16).cast(DType::F32) };
            assert_eq!(rounded.read::<f32>(), b.read::<f32>());
        }
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let model = Model::new(tiny()).unwrap();
        let params = model.init(&INIT);
        let files = written(save_in_shards(&model, &params, DType::F32, 4000));
        assert!(files.len() > 5, "{} files", files.len());
        assert_eq!(files.last().unwrap().0, "model.safetensors.index.json");
        let (_, loaded) = load(&files[0].1, borrowed(&files)).unwrap();
        assert_eq!(bits(&loaded), bits(&params));
        let (lost, rest) = (&files[2].0, borrowed(&files).into_iter().enumerate().filter(|(i, _)| *i != 2));
        let text = load(&files[0].1, rest.map(|(_, file)| file)).err().unwrap().to_string();
        assert!(text.contains(&format!("names the shard `{lost}`, which is missing")), "{text}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let model = Model::new(tiny()).unwrap();
        let files = save(&model, &model.init(&INIT), DType::F32);
        let load_as = |change: fn(&mut Config)| {
            let mut config = tiny();
            change(&mut config);
            let error = load(&config.to_json(), borrowed(&files)).expect_err("it does not fit");
            error.to_string()
        };
        let text = load_as(|c| c.vocab_size = 40);
        assert!(text.contains("`model.embed_tokens.weight` has shape [32, 12] in the checkpoint, [40, 12]"), "{text}");
        let text = load_as(|c| c.num_hidden_layers = 3);
        assert!(text.contains("`model.layers.2.input_layernorm.weight` is missing: the model expects [12]"), "{text}");
        let text = load_as(|c| deepseek(c).n_shared_experts = 0);
        assert!(text.contains("`model.layers.1.mlp.shared_experts.down_proj.weight` is in the checkpoint"), "{text}");
        let text = load(&tiny().to_json(), [("model.safetensors", &files[1].1[..100])]).err().unwrap().to_string();
        assert!(text.starts_with("`model.safetensors` is no safetensors file: "), "{text}");
    }

    /// As transformers saves a DeepSeek-V3 that it has loaded.
    #[test]
    fn mtp_modules_that_no_file_holds_are_left_out() {
        let model = Model::new(tiny()).unwrap();
        let files = save(&model, &model.init(&INIT), DType::F32);
        let mut config = tiny();
        deepseek(&mut config).num_nextn_predict_layers = 1;
        let (loaded, _) = load(&config.to_json(), borrowed(&files)).unwrap();
        assert_eq!(loaded.config(), model.config());

        let whole = Model::new(config).unwrap();
        let files = save(&whole, &whole.init(&INIT), DType::F32);
        let tensors = SafeTensors::deserialize(&files[1].1).unwrap();
        let some = tensors.tensors().into_iter().filter(|(name, _)| name != "model.layers.2.enorm.weight");
        let bytes = safetensors::serialize(some, None).unwrap();
        let text = load(&files[0].1, [("model.safetensors", bytes.as_slice())]).err().unwrap().to_string();
        assert!(text.contains("`model.layers.2.enorm.weight` is missing: the model expects [12]"), "{text}");
    }
}
