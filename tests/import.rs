//! Checkpoints that others made: imported, fine-tuned, measured, and written as others read them.

use crate::smoke::undisturbed;
use crate::support::Bench;
use serde_json::json;
use smelt_model::{Config, Init, Model, save};
use smelt_store::Store;
use std::path::{Path, PathBuf};

/// A model folder as on Hugging Face: a random model of `family`, a byte-level tokenizer without a start token, and a
/// chat template in a separate file, whose end-of-turn token is not the end-of-text token.
fn folder(bench: &Bench, family: &str, sizes: serde_json::Value) -> PathBuf {
    let folder = bench.path(family);
    std::fs::create_dir_all(&folder).unwrap();
    let mut fields = json!({
        "model_type": family, "vocab_size": 520, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6
    });
    fields.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
    let model = Model::new(Config::from_json(fields.to_string().as_bytes()).unwrap()).unwrap();
    let params = model.init(&Init { seed: 1, embedding: 0.3, router: 0.02, weight: None });
    for file in save(&model, &params, smelt_kernels::DType::Bf16) {
        file.write(&mut std::fs::File::create_new(folder.join(&file.name)).unwrap()).unwrap();
    }
    let store = Store::open(undisturbed().to_str().unwrap()).unwrap();
    let manifest = store.manifest(&store.pointer("smoke", "tokens").unwrap().unwrap().artifact).unwrap().unwrap();
    std::fs::copy(files(undisturbed(), &manifest).join("tokenizer/tokenizer.json"), folder.join("tokenizer.json"))
        .unwrap();
    let about = json!({ "bos_token": null, "eos_token": { "content": "<|eos|>" } });
    std::fs::write(folder.join("tokenizer_config.json"), about.to_string()).unwrap();
    let template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|pad|>' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    folder
}

/// Where the files of an artifact lie.
fn files(store: &Path, manifest: &smelt_schemas::Manifest) -> PathBuf {
    let recipe = store.join("artifacts").join(&manifest.stage).join(manifest.fingerprint.to_string());
    recipe.join("attempts").join(&manifest.attempt).join("files")
}

const PIPELINE: &str = "name: hub
jobs:
  hub: { stage: import, config: { path: FOLDER } }
  talks: { stage: problems, config: { stream: 1, conversations: 24, answers: long, characters: 40000, prompts: 4, \
  sizes: [2] } }
  tuned: { stage: sft, input: { model: hub, conversations: talks.conversations }, config: { epochs: 1, batch: 8, \
  warmup: 1, storage: bf16 } }
  text: { stage: tokenize, input: { documents: talks.documents, tokenizer: hub.tokenizer }, config: { validation: 0.3 \
  } }
  longer:
    stage: pretrain
    input: { tokens: text, tokenizer: hub.tokenizer, init: tuned }
    config: { steps: 2, sequences: 2, context: 32, warmup: 1 }
  score:
    stage: evaluate
    input: { models: [hub, tuned, longer], prompts: talks.prompts, tokens: text.validation }
    config: { names: [hub, tuned, longer], samples: 1, max_tokens: 8 }
";

#[test]
fn dense_checkpoints_of_others_are_tuned_measured_and_read_again() {
    for (family, sizes) in [
        ("qwen2", json!({ "tie_word_embeddings": true })),
        ("qwen3", json!({ "head_dim": 12 })),
        ("llama", json!({ "rope_theta": 500_000.0 })),
    ] {
        let bench = Bench::new();
        let given = folder(&bench, family, sizes);
        bench.pipeline("hub.yaml", &PIPELINE.replace("FOLDER", given.to_str().unwrap()));
        bench.smelt(&["run", "hub.yaml"]).ok();
        let text = bench
            .smelt(&["sql", "select count(*) as n from score where metric = 'bits_per_byte'", "--format", "csv"])
            .ok()
            .out;
        assert_eq!(text, "n\n3\n");
        assert!(bench.smelt(&["run", "hub.yaml"]).ok().out.contains("nothing to do"));

        // what was tuned is a folder as it was given, smaller than in f32, and can be imported again
        let store = bench.store();
        let manifest = store.manifest(&store.pointer("hub", "tuned").unwrap().unwrap().artifact).unwrap().unwrap();
        let tuned = files(&bench.path("artifacts"), &manifest).join("model");
        let size = |folder: &Path| std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
        assert!(size(&tuned).abs_diff(size(&given)) < 4096, "{} {}", size(&tuned), size(&given));
        bench.pipeline("again.yaml", &PIPELINE.replace("FOLDER", tuned.to_str().unwrap()));
        bench.smelt(&["run", "again.yaml", "--only", "hub"]).ok();

        // a change of the folder makes the job new
        std::fs::write(given.join("tokenizer_config.json"), r#"{ "eos_token": "<|pad|>" }"#).unwrap();
        let plan = bench.smelt(&["plan", "hub.yaml"]).ok().out;
        assert!(plan.contains("hub     new"), "{plan}");
    }
}

#[test]
fn a_folder_that_is_no_checkpoint_is_refused_with_what_it_lacks() {
    let bench = Bench::new();
    let given = folder(&bench, "llama", json!({}));
    bench.pipeline("hub.yaml", &PIPELINE.replace("FOLDER", given.to_str().unwrap()));
    let config = std::fs::read_to_string(given.join("config.json")).unwrap();
    std::fs::write(given.join("config.json"), config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"))
        .unwrap();
    let said = bench.smelt(&["run", "hub.yaml", "--only", "hub"]).fails(3).err;
    assert!(said.contains("`model.layers.2.input_layernorm.weight` is missing: the model expects [32]"), "{said}");
    std::fs::remove_file(given.join("tokenizer.json")).unwrap();
    let said = bench.smelt(&["check", "hub.yaml"]).fails(2).err;
    assert!(said.contains("has no tokenizer.json") && said.contains("hub.yaml:3:"), "{said}");
    std::fs::remove_dir_all(&given).unwrap();
    let said = bench.smelt(&["check", "hub.yaml"]).fails(2).err;
    assert!(said.contains("cannot be read: No such file or directory"), "{said}");
}
