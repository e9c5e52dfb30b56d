//! FP8 checkpoints of transformers, our own, and what a linear layer computes in FP8.
//!
//! A small reference lies in `tests/parity/engine/fp8`; the full set is found through `SMELT_PARITY`, else beside the
//! repository (`../shared/parity/engine`). Logits: 1e-4 absolute, thirty times what two honest f32 implementations
//! differ by.

#[path = "../../../../tests/parity/say.rs"]
mod say;

use safetensors::SafeTensors;
use say::say;
use smelt_kernels::{Cpu, DType, DocumentBounds};
use smelt_model::{Balance, Batch, CheckpointFile, Config, Init, Model, Params, load, save};
use smelt_schemas::Fault;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect()
}

/// The folders of `fp8` that hold a checkpoint: the repository's own, and those of the full set where it is.
fn checkpoints() -> Vec<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let full = std::env::var_os("SMELT_PARITY").map_or(repository.join("../shared/parity/engine"), PathBuf::from);
    let folders = [repository.join("tests/parity/engine/fp8"), full.join("fp8")];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("config.json").is_file()).collect();
    found.sort();
    assert!(!found.is_empty(), "the repository has a checkpoint of its own");
    found
}

fn logits(model: &Model, params: &Params, ids: &[u32]) -> Vec<f32> {
    let documents = DocumentBounds::of_lengths(&[ids.len()]);
    let batch = Batch { ids: ids.to_vec(), targets: vec![0; ids.len()], documents, ..Default::default() };
    let cpu = Cpu::new(2);
    let (_, saved) = model.forward(&cpu, params, &batch, Balance::NONE, &RefCell::default());
    model.logits(&cpu, params, saved.hidden()).read::<f32>().to_vec()
}

#[test]
fn fp8_checkpoints_of_transformers_give_its_logits() {
    for folder in checkpoints() {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let (weights, expected) = (read("model.safetensors"), read("expected.safetensors"));
        let (model, params) = load(&read("config.json"), [("model.safetensors", weights.as_slice())]).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let ids = expected.tensor("input_ids").unwrap();
        let ids: Vec<u32> = ids.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
        let expected = expected.tensor("logits_dequant_fp32").unwrap();
        let expected = expected.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let found = logits(&model, &params, &ids);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        say(&format!("{}: logits off by at most {worst:.1e}", folder.display()));
        assert!(worst < 1e-4, "{}: off by {worst}", folder.display());
    }
    say(&format!("{} FP8 checkpoints", checkpoints().len()));
}

/// Some dims are multiples of 128, others not.
fn config() -> Config {
    let text = r#"{ "model_type": "deepseek_v3", "vocab_size": 128, "hidden_size": 128, "intermediate_size": 256,
        "moe_intermediate_size": 96, "num_hidden_layers": 2, "num_nextn_predict_layers": 1, "num_attention_heads": 2,
        "n_shared_experts": 4, "n_routed_experts": 4, "routed_scaling_factor": 1.0, "kv_lora_rank": 64,
        "q_lora_rank": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 64, "qk_nope_head_dim": 64, "n_group": 1, "topk_group": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-6 }"#;
    Config::from_json(text.as_bytes()).unwrap()
}

fn written(model: &Model, params: &Params) -> Vec<(String, Vec<u8>)> {
    let bytes = |file: CheckpointFile| {
        let mut bytes = Vec::new();
        file.write(&mut bytes).unwrap();
        (file.name, bytes)
    };
    save(model, params, DType::E4m3).into_iter().map(bytes).collect()
}

fn saved() -> (Model, Params, Vec<(String, Vec<u8>)>) {
    let model = Model::new(config()).unwrap();
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    let files = written(&model, &params);
    (model, params, files)
}

/// E4M3 has 3 bits of mantissa: half a step is 1/16 of the value, or of the smallest normal number 2⁻⁶ · amax /
/// 448.
#[test]
fn an_fp8_checkpoint_comes_back_within_its_rounding_and_then_to_the_bit() {
    let (model, params, files) = saved();
    let (again, loaded) = load(&files[0].1, borrowed(&files)).unwrap();
    assert_eq!(again.config(), model.config());
    let tensors = SafeTensors::deserialize(&files[1].1).unwrap();
    let (mut quantised, mut plain) = (Vec::new(), Vec::new());
    for ((_, spec, a), (_, _, b)) in params.iter().zip(loaded.iter()) {
        let (a, b, mut start) = (a.read::<f32>(), b.read::<f32>(), 0);
        for part in &spec.parts {
            let len: usize = part.shape.iter().product();
            let (a, b) = (&a[start..start + len], &b[start..start + len]);
            start += len;
            let is_fp8 = tensors.tensor(&part.name).unwrap().dtype() == safetensors::Dtype::F8_E4M3;
            let amax = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (a, b) in a.iter().zip(b) {
                let step = if is_fp8 { a.abs().max(amax / 448.0 / 64.0) / 16.0 } else { a.abs() / 256.0 };
                assert!((a - b).abs() <= step * 1.0001, "{}: {a} {b}", part.name);
            }
            if is_fp8 { &mut quantised } else { &mut plain }.push(part.name.as_str());
        }
    }
    let has = |names: &[&str], name: &str| names.contains(&name);
    assert!(has(&quantised, "model.layers.0.mlp.gate_proj.weight"));
    assert!(has(&quantised, "model.layers.1.mlp.shared_experts.down_proj.weight")); // 4 × 96 = 3 × 128
    assert!(has(&quantised, "model.layers.2.self_attn.o_proj.weight"));
    for name in ["model.embed_tokens", "lm_head", "model.norm", "model.layers.1.mlp.gate", "model.layers.2.eh_proj"] {
        assert!(has(&plain, &format!("{name}.weight")), "{name}");
    }
    assert!(has(&plain, "model.layers.1.mlp.experts.0.down_proj.weight")); // 96
    assert!(has(&plain, "model.layers.0.self_attn.kv_b_proj.weight")); // 64
    // the values of E4M3 are their own nearest ones
    let third = written(&again, &loaded);
    let (_, thrice) = load(&third[0].1, borrowed(&third)).unwrap();
    for ((_, spec, a), (_, _, b)) in loaded.iter().zip(thrice.iter()) {
        let off = a
            .read::<f32>()
            .iter()
            .zip(b.read::<f32>())
            .map(|(a, b)| (a - b).abs() / a.abs().max(1e-9))
            .fold(0.0, f32::max);
        assert!(off < 1e-6, "{}: {off}", spec.parts[0].name); // the scale may be rounded once more
    }
}

#[test]
fn config_json_names_what_is_not_quantised() {
    let (_, _, files) = saved();
    let config: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
    let expected = serde_json::json!({
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
        "modules_to_not_convert": [
            "model.layers.0.self_attn.kv_b_proj", "model.layers.1.self_attn.kv_b_proj", "model.layers.1.mlp.experts",
            "lm_head", "model.layers.2.eh_proj", "model.layers.2.self_attn.kv_b_proj", "model.layers.2.mlp.experts",
            "model.layers.2.shared_head.head"
        ]
    });
    assert_eq!(config["quantization_config"], expected);
}

/// Writes the checkpoint again with one tensor changed.
fn with(
    files: &[(String, Vec<u8>)],
    name: &str,
    change: impl Fn(&mut safetensors::Dtype, &mut Vec<usize>, &mut Vec<u8>) -> bool,
) -> String {
    let file = SafeTensors::deserialize(&files[1].1).unwrap();
    let mut tensors = Vec::new();
    for (found, view) in file.tensors() {
        let (mut dtype, mut shape, mut bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        if found != name || change(&mut dtype, &mut shape, &mut bytes) {
            tensors.push((found, dtype, shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let error = load(&files[0].1, [("model.safetensors", bytes.as_slice())]).expect_err("it is refused");
    format!("{error}\nhint: {}", error.hint().expect("there is something to do"))
}

#[test]
fn a_scale_that_is_missing_or_of_another_shape_is_named() {
    let (_, _, files) = saved();
    let name = "model.layers.0.mlp.gate_proj.weight_scale_inv";
    let text = with(&files, name, |_, _, _| false);
    assert!(text.starts_with("`model.layers.0.mlp.gate_proj.weight` is stored in FP8"), "{text}");
    assert!(text.contains("_scale_inv` is missing, expected F32 [2, 1]\nhint: "), "{text}");
    let text = with(&files, name, |_, shape, _| {
        shape.reverse();
        true
    });
    assert!(text.contains("_scale_inv` is F32 [1, 2], expected F32 [2, 1]"), "{text}");
    let text = with(&files, "model.layers.0.mlp.gate_proj.weight", |dtype, _, bytes| {
        *dtype = safetensors::Dtype::BF16;
        *bytes = [bytes.as_slice(), bytes.as_slice()].concat();
        true
    });
    assert!(text.contains("`model.layers.0.mlp.gate_proj.weight_scale_inv` is in the checkpoint but not in"), "{text}");
    let plain = config().to_json();
    let text = load(&plain, borrowed(&files)).err().unwrap().to_string();
    assert!(text.contains("is stored in FP8, but there is no `quantization_config`"), "{text}");
    let mut other: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
    other["quantization_config"]["quant_method"] = "awq".into();
    let text = load(&serde_json::to_vec(&other).unwrap(), borrowed(&files)).err().unwrap().to_string();
    assert!(text.contains("quantised as `awq`"), "{text}");
}
