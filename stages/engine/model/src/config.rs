//! The model's sizes, with the names and meanings of Hugging Face's configs.
//!
//! transformers 5 reads `rope_parameters`, transformers 4 and vLLM read `rope_theta` and `rope_scaling`; a file with
//! only one set loads in the other without an error and computes wrong logits. So both are read, and both are written.

use crate::family::{check_known, check_sizes, complete};
use crate::known::check_fields;
use crate::rope_scaling::tables;
use crate::{AttentionKind, DeepseekV3, Error, Family, RopeScaling};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use smelt_kernels::Rope;

/// What all families have, and [`Family`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Width of dense feed-forward layers.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    #[serde(default = "ten_thousand")]
    pub rope_theta: f64,
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default = "two_percent")]
    pub initializer_range: f64,
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    #[serde(default)]
    pub eos_token_id: Option<TokenIds>,
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// Ours: the checkpoint has a scalar head (`score.weight`) and the weights of the likelihood beside it
    /// (`score.likelihood`).
    #[serde(default)]
    pub reward_head: bool,
    #[serde(flatten)]
    pub family: Family,
}

/// One token, or a list of them: released files have either.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    One(u32),
    Several(Vec<u32>),
}

impl From<u32> for TokenIds {
    fn from(id: u32) -> Self {
        TokenIds::One(id)
    }
}

impl TokenIds {
    pub fn as_slice(&self) -> &[u32] {
        match self {
            TokenIds::One(id) => std::slice::from_ref(id),
            TokenIds::Several(ids) => ids,
        }
    }
}

fn ten_thousand() -> f64 {
    10_000.0
}
fn two_percent() -> f64 {
    0.02
}

/// Fields of config.json in the order they are written: a checkpoint's digest depends on it.
#[rustfmt::skip]
const ORDER: [&str; 50] = [
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_nextn_predict_layers", "num_attention_heads", "n_shared_experts", "n_routed_experts", "routed_scaling_factor",
    "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim", "n_group", "topk_group",
    "num_experts_per_tok", "first_k_dense_replace", "norm_topk_prob", "max_position_embeddings", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_interleave", "tie_word_embeddings", "initializer_range", "bos_token_id",
    "eos_token_id", "pad_token_id", "reward_head", "rope_parameters", "architectures", "model_type", "hidden_act",
    "attention_bias", "attention_dropout", "num_key_value_heads", "head_dim", "qk_head_dim", "moe_layer_freq",
    "ep_size", "mlp_bias", "use_sliding_window", "sliding_window", "max_window_layers", "pretraining_tp",
    "scoring_func", "topk_method", "use_cache",
];

impl Config {
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        let mut fields: Map<String, Value> = serde_json::from_slice(bytes)?;
        fields.retain(|_, value| !value.is_null()); // null means the default, as in Python
        let model = fields.entry("model_type").or_insert("deepseek_v3".into()).clone();
        check_fields(&fields)?;
        read_rope(&mut fields)?;
        match model == "deepseek_v3" {
            true => check_known(&fields)?,
            false => complete(&mut fields)?,
        }
        let mut config: Config = serde_json::from_value(Value::Object(fields))?;
        if let Family::DeepseekV3(v3) = &mut config.family {
            // transformers takes any number here
            v3.first_k_dense_replace = v3.first_k_dense_replace.min(config.num_hidden_layers);
        }
        config.check()?;
        Ok(config)
    }

    /// As transformers 4 and 5 and vLLM read it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            other => unreachable!("a config is a JSON object, not {other:?}"),
        };
        let scaling = self.rope_scaling.as_ref().map(RopeScaling::fields);
        let (kind, mut rope) = scaling.clone().unwrap_or(("default", Map::new()));
        rope.insert("rope_type".into(), kind.into());
        fields.insert("rope_scaling".into(), scaling.map_or(Value::Null, |_| Value::Object(rope.clone())));
        rope.insert("rope_theta".into(), self.rope_theta.into());
        fields.insert("rope_parameters".into(), Value::Object(rope));
        if !self.reward_head {
            fields.remove("reward_head");
        }
        if let Value::Object(constants) = self.family.constants(self) {
            fields.extend(constants);
        }
        let place = |name: &str| ORDER.iter().position(|&known| known == name).unwrap_or(ORDER.len());
        let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
        fields.sort_by_key(|(name, _)| place(name));
        let fields: Map<String, Value> = fields.into_iter().collect();
        let mut bytes = serde_json::to_vec_pretty(&fields).expect("a JSON object serialises");
        bytes.push(b'\n');
        bytes
    }

    /// Refuses sizes that cannot be a model.
    pub fn check(&self) -> Result<(), Error> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        self.family.check(self)?;
        self.rope_scaling.as_ref().map_or(Ok(()), RopeScaling::check)?;
        let eos = self.eos_token_id.iter().flat_map(TokenIds::as_slice).map(|&id| ("eos", id));
        let others = [("bos", self.bos_token_id), ("pad", self.pad_token_id)];
        let others = others.into_iter().filter_map(|(name, id)| Some((name, id?)));
        match others.chain(eos).find(|(_, id)| *id as usize >= self.vocab_size) {
            None => Ok(()),
            Some((name, id)) => Err(Error::Config {
                what: format!("`{name}_token_id` is {id}, `vocab_size` {}", self.vocab_size),
                hint: "the special tokens belong to the vocabulary",
            }),
        }
    }

    /// Modules for multi-token prediction (MTP).
    pub fn num_nextn_predict_layers(&self) -> usize {
        match &self.family {
            Family::DeepseekV3(v3) => v3.num_nextn_predict_layers,
            _ => 0,
        }
    }

    /// The sizes of a layer's experts, when it has some. Layers after the last are the MTP modules.
    pub fn experts(&self, layer: usize) -> Option<&DeepseekV3> {
        match &self.family {
            Family::DeepseekV3(v3) if layer >= v3.first_k_dense_replace => Some(v3),
            _ => None,
        }
    }

    /// Tables for `positions` positions.
    pub fn rope(&self, positions: usize) -> Rope {
        let (dim, is_interleaved) = match self.family.attention() {
            AttentionKind::Latent(v3) => (v3.qk_rope_head_dim, v3.rope_interleave),
            AttentionKind::Grouped(grouped) => (grouped.heads.head_dim, false),
        };
        tables(self.rope_scaling.as_ref(), dim, self.rope_theta, is_interleaved, positions)
    }
}

/// Whichever set of rotary fields there is becomes `rope_theta` and `rope_scaling`; two that differ are refused.
fn read_rope(fields: &mut Map<String, Value>) -> Result<(), Error> {
    let refuse = |what, hint: &str| Err(Error::Unsupported { what, hint: hint.into() });
    let set = |name: &str| {
        let mut set = fields.get(name).and_then(Value::as_object).cloned()?;
        set.retain(|_, value| !value.is_null());
        Some(set)
    };
    let (old, new) = (set("rope_scaling"), set("rope_parameters"));
    if let (Some(old), Some(new)) = (&old, &new) {
        let is_other = |name: &&String| new.get(*name).is_some_and(|value| !is_same(value, &old[*name]));
        if let Some(name) = old.keys().find(is_other) {
            return Err(Error::Config {
                what: format!("`{name}` is {} in `rope_scaling`, {} in `rope_parameters`", old[name], new[name]),
                hint: "transformers 5 reads the second, older programs the first: keep the right one",
            });
        }
    }
    let mut rope = old.unwrap_or_default();
    rope.extend(new.unwrap_or_default());
    fields.remove("rope_scaling");
    if let Some(theta) = rope.get("rope_theta") {
        let own = fields.entry("rope_theta").or_insert(theta.clone());
        if !is_same(own, theta) {
            return Err(Error::Config {
                what: format!("`rope_theta` is {own}, and {theta} in `rope_parameters` or `rope_scaling`"),
                hint: "transformers 5 reads the second, older programs the first: keep the right one",
            });
        }
    }
    let share = rope.get("partial_rotary_factor").or(fields.get("partial_rotary_factor"));
    if let Some(share) = share.filter(|share| share.as_f64() != Some(1.0)) {
        return refuse(format!("`partial_rotary_factor` is {share}"), "all of a rotary head is rotated here");
    }
    if rope.get("truncate").and_then(Value::as_bool) == Some(false) {
        return refuse("`truncate` of the rotary scaling is false".into(), "the ramp's ends are whole dims here");
    }
    let kind = rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str).unwrap_or("default").to_owned();
    match kind.as_str() {
        "default" => Ok(()),
        "yarn" | "llama3" => {
            if let Some(positions) = fields.get("max_position_embeddings") {
                rope.entry("original_max_position_embeddings").or_insert(positions.clone());
            }
            rope.insert("rope_type".into(), kind.into());
            fields.insert("rope_scaling".into(), Value::Object(rope));
            Ok(())
        }
        other => refuse(format!("`rope_type` is `{other}`"), "`default`, `yarn` and `llama3` are known"),
    }
}

/// 10000 and 10000.0 are the same number.
fn is_same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{deepseek, dense, tiny};
    use crate::{KeyValueHeads, Llama3, Yarn};
    use serde_json::json;

    fn yarn() -> RopeScaling {
        RopeScaling::Yarn(Yarn {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(1.0),
            mscale_all_dim: Some(0.7),
            attention_factor: None,
        })
    }

    fn bands() -> RopeScaling {
        RopeScaling::Llama3(Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        })
    }

    #[test]
    fn a_config_comes_back_as_it_went() {
        let mut config = tiny();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        config.rope_scaling = Some(yarn());
        deepseek(&mut config).q_lora_rank = None;
        config.reward_head = true;
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        for mut config in dense() {
            assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
            config.rope_scaling = Some(bands());
            config.eos_token_id = Some(TokenIds::Several(vec![1, 5]));
            config.tie_word_embeddings = true;
            assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn either_set_of_rotary_fields_is_read() {
        let mut fields: Map<String, Value> = serde_json::from_slice(&tiny().to_json()).unwrap();
        fields.remove("rope_theta");
        fields.remove("rope_scaling");
        fields["rope_parameters"]["rope_theta"] = json!(500.0);
        let new = Config::from_json(&serde_json::to_vec(&fields).unwrap()).unwrap();
        fields.remove("rope_parameters");
        fields.insert("rope_theta".into(), json!(500.0));
        let old = Config::from_json(&serde_json::to_vec(&fields).unwrap()).unwrap();
        assert_eq!(new, old);
        assert_eq!(new.rope_theta, 500.0);
    }

    #[test]
    fn a_published_config_is_read_with_its_familys_defaults() {
        let read = |text: &str| Config::from_json(text.as_bytes()).unwrap();
        let qwen = read(
            r#"{ "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
                "hidden_act": "silu",
            "eos_token_id": 151645, "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
            "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
            "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
            "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
            "use_sliding_window": false, "vocab_size": 151936 }"#,
        );
        assert_eq!(qwen.family, Family::Qwen2(KeyValueHeads { num_key_value_heads: 2, head_dim: 64 }));
        assert!(qwen.rope_theta == 1e6 && qwen.tie_word_embeddings && qwen.rope_scaling.is_none());
        let llama = read(
            r#"{ "attention_bias": false, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
                "hidden_size": 4096,
            "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": null, "rms_norm_eps": 1e-05,
            "rope_scaling": { "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192 }, "rope_theta": 500000.0, "vocab_size": 128256 }"#,
        );
        let heads = KeyValueHeads { num_key_value_heads: 32, head_dim: 128 };
        assert_eq!(llama.family, Family::Llama { heads, attention_bias: false });
        assert_eq!(llama.eos_token_id, Some(TokenIds::Several(vec![128001, 128008, 128009])));
        assert!(
            matches!(&llama.rope_scaling, Some(RopeScaling::Llama3(b)) if b.original_max_position_embeddings == 8192)
        );
    }

    fn told(error: Error) -> String {
        format!("{error}\nhint: {}", smelt_schemas::Fault::hint(&error).unwrap())
    }

    #[test]
    fn what_a_dense_family_cannot_be_is_named() {
        let refused = |change: Value| {
            let Ok(Value::Object(mut fields)) = serde_json::from_slice(&dense()[1].to_json()) else { unreachable!() };
            let Value::Object(change) = change else { unreachable!() };
            if change.contains_key("rope_scaling") {
                fields.remove("rope_parameters"); // the same in newer words
            }
            fields.extend(change);
            told(Config::from_json(&serde_json::to_vec(&fields).unwrap()).unwrap_err())
        };
        let texts = [
            (
                json!({ "num_key_value_heads": 3 }),
                "`num_attention_heads` is 4, `num_key_value_heads` 3\nhint: every key",
            ),
            (json!({ "num_key_value_heads": 0 }), "`num_key_value_heads` is 0\nhint: every size is at least 1"),
            (json!({ "head_dim": 5 }), "`head_dim` is 5\nhint: rotary dims come in pairs: make it even"),
            (
                json!({ "head_dim": null, "hidden_size": 13 }),
                "`hidden_size` is 13, `num_attention_heads` 4, and there is",
            ),
            (
                json!({ "use_sliding_window": true }),
                "`use_sliding_window` is true\nhint: every layer attends to the whole",
            ),
            (
                json!({ "layer_types": ["full_attention", "sliding_attention"] }),
                "`layer_types` has \"sliding_attention\"",
            ),
            (json!({ "hidden_act": "gelu" }), "`hidden_act` is \"gelu\"\nhint: only `silu` is known"),
            (json!({ "mlp_bias": true }), "`mlp_bias` is true"),
            (json!({ "partial_rotary_factor": 0.5 }), "`partial_rotary_factor` is 0.5"),
            (
                json!({ "rope_scaling": { "rope_type": "dynamic" } }),
                "`rope_type` is `dynamic`\nhint: `default`, `yarn` and",
            ),
            (
                json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                    "high_freq_factor": 4 } }),
                "`low_freq_factor` is 4, `high_freq_factor` 4",
            ),
            (
                json!({ "rope_scaling": { "type": "yarn", "factor": 0 } }),
                "the rotary `factor` is 0, `original_max_position",
            ),
            (json!({ "eos_token_id": [1, 99] }), "`eos_token_id` is 99, `vocab_size` 32"),
        ];
        for (change, expected) in texts {
            let text = refused(change);
            let begins = ["the model's config contradicts itself: ", "this model is not supported: "];
            assert!(begins.iter().any(|begin| text.starts_with(&format!("{begin}{expected}"))), "{text}");
        }
    }

    #[test]
    fn what_would_compute_something_else_is_refused_by_name() {
        let refused = |change: Value| {
            let Ok(Value::Object(mut fields)) = serde_json::from_slice(&dense()[2].to_json()) else { unreachable!() };
            let Value::Object(change) = change else { unreachable!() };
            fields.extend(change);
            Config::from_json(&serde_json::to_vec(&fields).unwrap()).map(drop).map_err(told)
        };
        let begin = |change: Value| refused(change).unwrap_err();
        assert_eq!(
            begin(json!({ "model_type": "mistral" })),
            "this model is not supported: `model_type` is `mistral`\nhint: models of the types `deepseek_v3`, `qwen2`, \
             `qwen3`, `llama` are supported"
        );
        assert!(
            begin(json!({ "architectures": ["LlamaForSequenceClassification"] })).contains("`architectures` names")
        );
        assert!(
            begin(json!({ "embedding_multiplier": 12.0 })).contains("`embedding_multiplier` is 12.0\nhint: nothing")
        );
        assert!(begin(json!({ "attention_dropout": 0.1 })).contains("set `attention_dropout` to 0"));
        let theta = begin(json!({ "rope_theta": 500.0 }));
        assert!(theta.contains("contradicts itself: `rope_theta` is 500.0, and 100.0 in `rope_parameters`"), "{theta}");
        let scaling = begin(json!({ "rope_scaling": { "rope_type": "llama3" } }));
        assert!(scaling.contains("`rope_type` is \"llama3\" in `rope_scaling`, \"default\" in"), "{scaling}");
        for change in [
            json!({ "final_logit_softcapping": null, "use_qk_norm": false, "torch_dtype": "bfloat16" }),
            json!({ "rope_theta": 100, "architectures": ["LlamaModel"], "attention_dropout": 0, "pruned_heads": {} }),
        ] {
            refused(change).unwrap();
        }
    }

    /// The digest of a checkpoint covers these bytes.
    #[test]
    fn a_deepseek_config_is_written_as_ever() {
        let mut config = tiny();
        config.rope_scaling = Some(yarn());
        let text = String::from_utf8(config.to_json()).unwrap();
        assert_eq!(text, include_str!("testing/deepseek_config.json"));
    }

    #[test]
    fn a_dense_config_has_the_fields_of_its_family() {
        let [qwen2, qwen3, llama] = dense().map(|c| serde_json::from_slice::<Value>(&c.to_json()).unwrap());
        let rope = json!({ "rope_type": "default", "rope_theta": 100.0 });
        for (fields, name, model) in
            [(&qwen2, "Qwen2", "qwen2"), (&qwen3, "Qwen3", "qwen3"), (&llama, "Llama", "llama")]
        {
            assert_eq!(fields["architectures"], json!([format!("{name}ForCausalLM")]));
            assert_eq!((&fields["model_type"], &fields["hidden_act"]), (&json!(model), &json!("silu")));
            assert_eq!((&fields["head_dim"], &fields["num_key_value_heads"]), (&json!(4), &json!(2)));
            assert_eq!((&fields["rope_parameters"], &fields["rope_theta"]), (&rope, &json!(100.0)));
            assert_eq!(fields.get("kv_lora_rank"), None);
        }
        assert_eq!(qwen2.get("attention_bias"), None);
        assert_eq!((&qwen3["attention_bias"], &llama["attention_bias"]), (&json!(false), &json!(true)));
    }

    #[test]
    fn contradictions_are_named() {
        let refused = |change: fn(&mut Config)| {
            let mut config = tiny();
            change(&mut config);
            told(config.check().unwrap_err())
        };
        let text = refused(|c| deepseek(c).num_experts_per_tok = 9);
        assert!(text.contains("`num_experts_per_tok` is 9, 4 experts can be reached"), "{text}");
        assert!(refused(|c| deepseek(c).qk_rope_head_dim = 3).contains("make it even"));
        assert!(refused(|c| deepseek(c).n_group = 3).contains("groups of equal size"));
        assert!(refused(|c| c.eos_token_id = Some(4000.into())).contains("`eos_token_id` is 4000"));
        assert!(refused(|c| deepseek(c).first_k_dense_replace = 7).contains("`num_hidden_layers`"));
        assert!(Config::from_json(b"{\"model_type\": \"mamba\"}").unwrap_err().to_string().contains("`mamba`"));
    }
}
