//! The model's sizes, with the names and meanings of Hugging Face's `DeepseekV3Config`.
//!
//! transformers 5 reads `rope_parameters`, transformers 4 and vLLM read `rope_theta` and `rope_scaling`; a file with only one set
//! loads in the other without an error and computes wrong logits. So both are read, and both are written.

use crate::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use smelt_kernels::{AttentionShape, Rope, Router, math};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Width of dense feed-forward layers.
    pub intermediate_size: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Modules that predict further tokens (multi-token prediction).
    #[serde(default)]
    pub num_nextn_predict_layers: usize,
    pub num_attention_heads: usize,
    #[serde(default)]
    pub n_shared_experts: usize,
    pub n_routed_experts: usize,
    #[serde(default = "one")]
    pub routed_scaling_factor: f64,
    pub kv_lora_rank: usize,
    /// None: queries are not compressed.
    #[serde(default)]
    pub q_lora_rank: Option<usize>,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub qk_nope_head_dim: usize,
    #[serde(default = "one_group")]
    pub n_group: usize,
    #[serde(default = "one_group")]
    pub topk_group: usize,
    pub num_experts_per_tok: usize,
    /// Layers before this one are dense.
    pub first_k_dense_replace: usize,
    #[serde(default = "yes")]
    pub norm_topk_prob: bool,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    #[serde(default = "ten_thousand")]
    pub rope_theta: f64,
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    #[serde(default = "yes")]
    pub rope_interleave: bool,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default = "two_percent")]
    pub initializer_range: f64,
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    #[serde(default)]
    pub eos_token_id: Option<u32>,
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// Ours: the checkpoint has a scalar head (`score.weight`) and the weights of the likelihood beside it (`score.likelihood`).
    #[serde(default)]
    pub reward_head: bool,
}

/// YaRN (Peng et al. 2023), the one scaling DeepSeek-V3 uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    #[serde(default = "thirty_two")]
    pub beta_fast: f64,
    #[serde(default = "one")]
    pub beta_slow: f64,
    #[serde(default)]
    pub mscale: Option<f64>,
    #[serde(default)]
    pub mscale_all_dim: Option<f64>,
    #[serde(default)]
    pub attention_factor: Option<f64>,
}

fn one() -> f64 {
    1.0
}
fn one_group() -> usize {
    1
}
fn yes() -> bool {
    true
}
fn ten_thousand() -> f64 {
    10_000.0
}
fn two_percent() -> f64 {
    0.02
}
fn thirty_two() -> f64 {
    32.0
}

impl Config {
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        let mut fields: Map<String, Value> = serde_json::from_slice(bytes)?;
        if let Some(model) = fields.get("model_type").and_then(Value::as_str)
            && model != "deepseek_v3"
        {
            return Err(Error::Config {
                what: format!("`model_type` is `{model}`"),
                hint: "only `deepseek_v3` checkpoints can be read",
            });
        }
        // whichever set of rotary fields there is
        let scaling =
            ["rope_scaling", "rope_parameters"].into_iter().find_map(|name| fields.get(name)?.as_object().cloned());
        fields.remove("rope_scaling");
        if let Some(rope) = scaling {
            if let Some(theta) = rope.get("rope_theta") {
                fields.entry("rope_theta").or_insert(theta.clone());
            }
            let kind = rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str).unwrap_or("default");
            match kind {
                "default" => {}
                "yarn" => drop(fields.insert("rope_scaling".into(), Value::Object(rope))),
                other => {
                    return Err(Error::Config {
                        what: format!("`rope_type` is `{other}`"),
                        hint: "`default` and `yarn` are known",
                    });
                }
            }
        }
        fields.retain(|_, value| !value.is_null()); // null means the default, as in Python
        let config: Config = serde_json::from_value(Value::Object(fields))?;
        config.check()?;
        Ok(config)
    }

    /// As transformers 4 and 5 and vLLM read it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            other => unreachable!("a config is a JSON object, not {other:?}"),
        };
        let mut rope = match &self.rope_scaling {
            Some(scaling) => serde_json::to_value(scaling).expect("numbers only"),
            None => json!({}),
        };
        let rope = rope.as_object_mut().expect("an object by construction");
        rope.retain(|_, value| !value.is_null());
        rope.insert("rope_type".into(), if self.rope_scaling.is_some() { "yarn".into() } else { "default".into() });
        fields.insert(
            "rope_scaling".into(),
            self.rope_scaling.as_ref().map_or(Value::Null, |_| Value::Object(rope.clone())),
        );
        rope.insert("rope_theta".into(), self.rope_theta.into());
        fields.insert("rope_parameters".into(), Value::Object(rope.clone()));
        if !self.reward_head {
            fields.remove("reward_head");
        }
        let fixed = json!({
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.qk_rope_head_dim,
            "qk_head_dim": self.qk_nope_head_dim + self.qk_rope_head_dim,
            "moe_layer_freq": 1,
            "ep_size": 1,
            "pretraining_tp": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "use_cache": true,
        });
        fields.extend(fixed.as_object().expect("an object by construction").clone());
        let mut bytes = serde_json::to_vec_pretty(&fields).expect("a JSON object serialises");
        bytes.push(b'\n');
        bytes
    }

    /// Refuses sizes that cannot be a model.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |what: String, hint| Err(Error::Config { what, hint });
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(format!("`{name}` is 0"), "every size is at least 1");
        }
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            return refuse(
                format!("`qk_rope_head_dim` is {}", self.qk_rope_head_dim),
                "rotary dims come in pairs: make it even",
            );
        }
        if self.first_k_dense_replace > self.num_hidden_layers {
            return refuse(
                format!(
                    "`first_k_dense_replace` is {}, `num_hidden_layers` {}",
                    self.first_k_dense_replace, self.num_hidden_layers
                ),
                "at most all layers are dense",
            );
        }
        let (experts, groups) = (self.n_routed_experts, self.n_group);
        if self.first_k_dense_replace < self.num_hidden_layers || self.num_nextn_predict_layers > 0 {
            if experts == 0 || groups == 0 || !experts.is_multiple_of(groups) {
                return refuse(
                    format!("`n_routed_experts` is {experts}, `n_group` {groups}"),
                    "experts stand in groups of equal size",
                );
            }
            if self.topk_group == 0 || self.topk_group > groups {
                return refuse(
                    format!("`topk_group` is {} of {groups} groups", self.topk_group),
                    "keep 1 to `n_group` groups",
                );
            }
            let reachable = self.topk_group * (experts / groups);
            if self.num_experts_per_tok == 0 || self.num_experts_per_tok > reachable {
                return refuse(
                    format!(
                        "`num_experts_per_tok` is {}, {reachable} experts can be reached",
                        self.num_experts_per_tok
                    ),
                    "choose fewer experts per token, or keep more groups",
                );
            }
            if self.moe_intermediate_size == 0 {
                return refuse("`moe_intermediate_size` is 0".into(), "every size is at least 1");
            }
        }
        for (name, id) in [("bos", self.bos_token_id), ("eos", self.eos_token_id), ("pad", self.pad_token_id)] {
            if let Some(id) = id
                && id as usize >= self.vocab_size
            {
                return refuse(
                    format!("`{name}_token_id` is {id}, `vocab_size` {}", self.vocab_size),
                    "the special tokens belong to the vocabulary",
                );
            }
        }
        Ok(())
    }

    pub fn attention_shape(&self) -> AttentionShape {
        let mut scale = 1.0 / ((self.qk_nope_head_dim + self.qk_rope_head_dim) as f64).sqrt();
        if let Some(s) = &self.rope_scaling
            && let Some(all) = s.mscale_all_dim
        {
            let m = mscale(s.factor, all);
            scale *= m * m;
        }
        AttentionShape {
            heads: self.num_attention_heads,
            nope: self.qk_nope_head_dim,
            rope: self.qk_rope_head_dim,
            value: self.v_head_dim,
            scale,
        }
    }

    pub fn router(&self) -> Router {
        Router {
            experts: self.n_routed_experts,
            groups: self.n_group,
            kept_groups: self.topk_group,
            top_k: self.num_experts_per_tok,
            normalise: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
        }
    }

    /// Tables for `positions` positions.
    pub fn rope(&self, positions: usize) -> Rope {
        let (d, theta) = (self.qk_rope_head_dim, self.rope_theta);
        let plain = |j: usize| math::pow(theta, -(2.0 * j as f64) / d as f64);
        let Some(s) = &self.rope_scaling else {
            let frequencies: Vec<f32> = (0..d / 2).map(|j| plain(j) as f32).collect();
            return Rope::new(&frequencies, positions, 1.0, self.rope_interleave);
        };
        // dims that turn often keep their frequency, those that never turn once are stretched, a ramp between
        let dim_of = |turns: f64| {
            let length = s.original_max_position_embeddings as f64;
            d as f64 * math::ln(length / (turns * 2.0 * math::PI)) / (2.0 * math::ln(theta))
        };
        let low = dim_of(s.beta_fast).floor().max(0.0);
        let high = dim_of(s.beta_slow).ceil().min(d as f64 - 1.0);
        let high = if low == high { high + 0.001 } else { high };
        let frequency = |j: usize| {
            let ramp = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
            (plain(j) / s.factor * ramp + plain(j) * (1.0 - ramp)) as f32
        };
        let factor = s.attention_factor.unwrap_or_else(|| match (s.mscale, s.mscale_all_dim) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(s.factor, m) / mscale(s.factor, all),
            _ => mscale(s.factor, 1.0),
        });
        let frequencies: Vec<f32> = (0..d / 2).map(frequency).collect();
        Rope::new(&frequencies, positions, factor, self.rope_interleave)
    }
}

fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * math::ln(factor) + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    #[test]
    fn a_config_comes_back_as_it_went() {
        let mut config = tiny();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        config.rope_scaling = Some(RopeScaling {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(1.0),
            mscale_all_dim: Some(0.7),
            attention_factor: None,
        });
        config.q_lora_rank = None;
        config.reward_head = true;
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
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
    fn contradictions_are_named() {
        let refused = |change: fn(&mut Config)| {
            let mut config = tiny();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        let text = refused(|c| c.num_experts_per_tok = 9);
        assert!(text.contains("`num_experts_per_tok` is 9, 4 experts can be reached"), "{text}");
        assert!(refused(|c| c.qk_rope_head_dim = 3).contains("make it even"));
        assert!(refused(|c| c.n_group = 3).contains("groups of equal size"));
        assert!(refused(|c| c.eos_token_id = Some(4000)).contains("`eos_token_id` is 4000"));
        assert!(refused(|c| c.first_k_dense_replace = 7).contains("`num_hidden_layers`"));
        assert!(Config::from_json(b"{\"model_type\": \"llama\"}").unwrap_err().to_string().contains("`llama`"));
    }
}
