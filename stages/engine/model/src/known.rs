//! Which fields of a config.json are understood, and which change no logit.
//!
//! A field that is neither may change what the model computes, as `final_logit_softcapping` or `embedding_multiplier`
//! do in other families; a model that loads without it would answer wrongly without a word. So it is refused by name.

use crate::{Error, Family};
use serde_json::{Map, Value};

/// Read by [`Config`](crate::Config) and [`Family`], or checked there.
const READ: [&str; 48] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "reward_head",
    "model_type",
    "architectures",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "layer_types",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "quantization_config",
    "moe_intermediate_size",
    "num_nextn_predict_layers",
    "n_shared_experts",
    "n_routed_experts",
    "routed_scaling_factor",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "qk_head_dim",
    "v_head_dim",
    "n_group",
    "topk_group",
    "num_experts_per_tok",
    "first_k_dense_replace",
    "norm_topk_prob",
    "rope_interleave",
    "moe_layer_freq",
    "scoring_func",
];

/// About training, generation, storage, or the program that wrote the file.
const WITHOUT_EFFECT: [&str; 60] = [
    "topk_method", // checked
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "auto_map",
    "use_cache",
    "ep_size",
    "pretraining_tp",
    "aux_loss_alpha",
    "router_aux_loss_coef",
    "seq_aux",
    "output_router_logits",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "finetuning_task",
    "tokenizer_class",
    "prefix",
    "return_dict",
    "return_dict_in_generate",
    "output_scores",
    "output_attentions",
    "output_hidden_states",
    "keys_to_ignore_at_inference",
    "is_decoder",
    "is_encoder_decoder",
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "sep_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "max_length",
    "min_length",
    "max_new_tokens",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "num_return_sequences",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
];

/// Shares of values that are dropped while others train; this engine drops none.
const DROPOUT: [&str; 5] = ["attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "classifier_dropout"];

fn unsupported(what: String, hint: impl Into<String>) -> Result<(), Error> {
    Err(Error::Unsupported { what, hint: hint.into() })
}

/// Refuses models of another kind, and fields that nothing here understands.
pub(crate) fn check_fields(fields: &Map<String, Value>) -> Result<(), Error> {
    let names = || Family::NAMES.map(|name| format!("`{name}`")).join(", ");
    let kind = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if !Family::NAMES.contains(&kind) {
        return unsupported(
            format!("`model_type` is `{kind}`"),
            format!("models of the types {} are supported", names()),
        );
    }
    let heads = fields.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let known = |name: &str| name.ends_with("ForCausalLM") || name.ends_with("Model");
    if let Some(other) = heads.into_iter().find(|name| !known(name)) {
        return unsupported(
            format!("`architectures` names `{other}`"),
            format!("language models (`…ForCausalLM`) of the types {} are supported", names()),
        );
    }
    if let Some((name, share)) = DROPOUT
        .iter()
        .find_map(|name| Some((name, fields.get(*name)?)))
        .filter(|(_, share)| share.as_f64() != Some(0.0))
    {
        return unsupported(
            format!("`{name}` is {share}"),
            format!("nothing is dropped here: set `{name}` to 0, which changes no answer, only further training"),
        );
    }
    let is_known = |name: &str| [&READ[..], &WITHOUT_EFFECT, &DROPOUT].concat().contains(&name);
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    };
    match fields.iter().find(|(name, value)| !is_known(name) && !is_off(value)) {
        None => Ok(()),
        Some((name, value)) => unsupported(
            format!("`{name}` is {value}"),
            "nothing here knows this field, and it may change what the model computes: remove it if it changes nothing",
        ),
    }
}
