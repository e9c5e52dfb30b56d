//! The models that are timed: those of the comparison with PyTorch, and the quickstart's.

use serde_json::{Value, json};
use smelt_model::Config;

pub(crate) const NAMES: [&str; 4] = ["quickstart", "1m", "10m", "50m"];

/// A model with its sequences per step and tokens per sequence.
pub(crate) struct Sized {
    pub config: Config,
    pub sequences: usize,
    pub context: usize,
}

pub(crate) fn find(name: &str) -> Sized {
    let (sizes, sequences, context) = match name {
        "quickstart" => (
            json!({ "vocab_size": 2048, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
                "kv_lora_rank": 64,
                "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24, "n_routed_experts": 8,
                "num_experts_per_tok": 2, "moe_intermediate_size": 48, "intermediate_size": 192,
                "routed_scaling_factor": 1.0,
                "num_nextn_predict_layers": 1 }),
            16,
            128,
        ),
        "1m" => (
            json!({ "vocab_size": 1024, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
                "q_lora_rank": 48,
                "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 24,
                "n_routed_experts": 8,
                "num_experts_per_tok": 2, "moe_intermediate_size": 96, "intermediate_size": 256 }),
            8,
            256,
        ),
        "10m" => (
            json!({ "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
                "q_lora_rank": 96,
                "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
                "n_routed_experts": 8,
                "num_experts_per_tok": 2, "moe_intermediate_size": 192, "intermediate_size": 704 }),
            8,
            256,
        ),
        "50m" => (
            json!({ "vocab_size": 8192, "hidden_size": 640, "num_hidden_layers": 10, "num_attention_heads": 10,
                "q_lora_rank": 256,
                "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
                "n_routed_experts": 16,
                "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 320,
                "intermediate_size": 1792 }),
            8,
            256,
        ),
        other => unreachable!("the command line knows no model `{other}`"),
    };
    let mut fields = json!({ "first_k_dense_replace": 1, "n_shared_experts": 1, "routed_scaling_factor": 2.5,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0 });
    if let (Value::Object(fields), Value::Object(sizes)) = (&mut fields, sizes) {
        fields.extend(sizes);
    }
    let config = Config::from_json(fields.to_string().as_bytes()).expect("the sizes above are a model");
    Sized { config, sequences, context }
}
