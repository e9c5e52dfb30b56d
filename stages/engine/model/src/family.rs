//! What sets the families apart: the sizes and switches that only one kind of model has.

use crate::{Config, Error, RopeScaling};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use smelt_kernels::{AttentionShape, Router};

/// `model_type` in config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "snake_case")]
pub enum Family {
    DeepseekV3(DeepseekV3),
    Qwen2(KeyValueHeads),
    Qwen3 {
        #[serde(flatten)]
        heads: KeyValueHeads,
        #[serde(default)]
        attention_bias: bool,
    },
    Llama {
        #[serde(flatten)]
        heads: KeyValueHeads,
        #[serde(default)]
        attention_bias: bool,
    },
}

/// Latent attention, and experts from some layer on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeepseekV3 {
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    /// Modules for multi-token prediction (MTP).
    #[serde(default)]
    pub num_nextn_predict_layers: usize,
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
    #[serde(default = "yes")]
    pub rope_interleave: bool,
}

/// Sizes of grouped-query attention; the feed-forward is dense in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyValueHeads {
    /// Divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Of queries, keys and values.
    pub head_dim: usize,
}

/// The attention of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionKind<'a> {
    Latent(&'a DeepseekV3),
    Grouped(Grouped),
}

/// The parts of grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grouped {
    pub heads: KeyValueHeads,
    /// On q, k and v.
    pub has_qkv_bias: bool,
    pub has_o_bias: bool,
    /// Queries and keys are normed per head, before rope.
    pub has_norms: bool,
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

impl Family {
    pub const NAMES: [&'static str; 4] = ["deepseek_v3", "qwen2", "qwen3", "llama"];

    pub fn attention(&self) -> AttentionKind<'_> {
        let grouped = |heads: &KeyValueHeads, has_qkv_bias, has_o_bias, has_norms| {
            AttentionKind::Grouped(Grouped { heads: *heads, has_qkv_bias, has_o_bias, has_norms })
        };
        match self {
            Family::DeepseekV3(v3) => AttentionKind::Latent(v3),
            Family::Qwen2(heads) => grouped(heads, true, false, false),
            Family::Qwen3 { heads, attention_bias } => grouped(heads, *attention_bias, *attention_bias, true),
            Family::Llama { heads, attention_bias } => grouped(heads, *attention_bias, *attention_bias, false),
        }
    }

    /// What config.json says besides the sizes, for transformers and vLLM.
    pub(crate) fn constants(&self, c: &Config) -> Value {
        let qwen = |architecture| {
            json!({
                "architectures": [architecture],
                "hidden_act": "silu",
                "attention_dropout": 0.0,
                "use_sliding_window": false,
                "sliding_window": null,
                "max_window_layers": c.num_hidden_layers,
                "use_cache": true,
            })
        };
        match self {
            Family::DeepseekV3(v3) => json!({
                "architectures": ["DeepseekV3ForCausalLM"],
                "hidden_act": "silu",
                "attention_bias": false,
                "attention_dropout": 0.0,
                "num_key_value_heads": c.num_attention_heads,
                "head_dim": v3.qk_rope_head_dim,
                "qk_head_dim": v3.qk_nope_head_dim + v3.qk_rope_head_dim,
                "moe_layer_freq": 1,
                "ep_size": 1,
                "pretraining_tp": 1,
                "scoring_func": "sigmoid",
                "topk_method": "noaux_tc",
                "use_cache": true,
            }),
            Family::Qwen2(_) => qwen("Qwen2ForCausalLM"),
            Family::Qwen3 { .. } => qwen("Qwen3ForCausalLM"),
            Family::Llama { .. } => json!({
                "architectures": ["LlamaForCausalLM"],
                "hidden_act": "silu",
                "attention_dropout": 0.0,
                "mlp_bias": false,
                "pretraining_tp": 1,
                "use_cache": true,
            }),
        }
    }

    pub(crate) fn check(&self, c: &Config) -> Result<(), Error> {
        match self.attention() {
            AttentionKind::Latent(v3) => v3.check(c),
            AttentionKind::Grouped(grouped) => grouped.heads.check(c),
        }
    }
}

fn refuse(what: String, hint: &'static str) -> Result<(), Error> {
    Err(Error::Config { what, hint })
}

fn unsupported(what: String, hint: &str) -> Result<(), Error> {
    Err(Error::Unsupported { what, hint: hint.into() })
}

/// The first of `sizes` that is 0.
pub(crate) fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), Error> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, _)) => refuse(format!("`{name}` is 0"), "every size is at least 1"),
        None => Ok(()),
    }
}

/// Refuses fields of a DeepSeek config.json that would compute something else.
pub(crate) fn check_known(fields: &Map<String, Value>) -> Result<(), Error> {
    let known: [(&str, Value); 5] = [
        ("hidden_act", "silu".into()),
        ("attention_bias", false.into()),
        ("moe_layer_freq", 1.into()),
        ("scoring_func", "sigmoid".into()),
        ("topk_method", "noaux_tc".into()),
    ];
    let other =
        known.iter().find_map(|(name, value)| fields.get(*name).filter(|found| *found != value).zip(Some(name)));
    match other {
        None => Ok(()),
        Some((found, name)) => unsupported(
            format!("`{name}` is {found}"),
            "only DeepSeek-V3's own is known: silu, no biases, experts in every layer, sigmoid, noaux_tc",
        ),
    }
}

/// Fields of a dense family's config.json: fills in what follows from others, and refuses what would compute something
/// else.
pub(crate) fn complete(fields: &mut Map<String, Value>) -> Result<(), Error> {
    let is_on = |name: &str| fields.get(name).and_then(Value::as_bool) == Some(true);
    if let Some(act) = fields.get("hidden_act").filter(|act| act.as_str() != Some("silu")) {
        return unsupported(format!("`hidden_act` is {act}"), "only `silu` is known");
    }
    if is_on("mlp_bias") {
        return unsupported("`mlp_bias` is true".into(), "feed-forward layers have no biases here");
    }
    let mut kinds = fields.get("layer_types").and_then(Value::as_array).into_iter().flatten();
    let other = kinds.find(|kind| kind.as_str() != Some("full_attention"));
    if is_on("use_sliding_window") || other.is_some() {
        let what = other.map_or("`use_sliding_window` is true".into(), |kind| format!("`layer_types` has {kind}"));
        return unsupported(what, "every layer attends to the whole document; sliding windows are not known");
    }
    let size = |name: &str| fields.get(name).and_then(Value::as_u64);
    let (Some(width), Some(heads)) = (size("hidden_size"), size("num_attention_heads")) else {
        return Ok(()); // reading the fields will say which is missing
    };
    fields.entry("num_key_value_heads").or_insert(heads.into());
    if !fields.contains_key("head_dim") {
        if heads == 0 || !width.is_multiple_of(heads) {
            return refuse(
                format!("`hidden_size` is {width}, `num_attention_heads` {heads}, and there is no `head_dim`"),
                "heads divide the width, unless `head_dim` says how wide they are",
            );
        }
        fields.insert("head_dim".into(), (width / heads).into());
    }
    Ok(())
}

impl KeyValueHeads {
    fn check(&self, c: &Config) -> Result<(), Error> {
        let (heads, kv_heads) = (c.num_attention_heads, self.num_key_value_heads);
        check_sizes(&[("num_key_value_heads", kv_heads), ("head_dim", self.head_dim)])?;
        if !heads.is_multiple_of(kv_heads) {
            return refuse(
                format!("`num_attention_heads` is {heads}, `num_key_value_heads` {kv_heads}"),
                "every key-value head serves the same number of query heads",
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!("`head_dim` is {}", self.head_dim), "rotary dims come in pairs: make it even");
        }
        Ok(())
    }
}

impl DeepseekV3 {
    pub(crate) fn attention_shape(&self, c: &Config) -> AttentionShape {
        let scale = 1.0 / ((self.qk_nope_head_dim + self.qk_rope_head_dim) as f64).sqrt();
        AttentionShape {
            heads: c.num_attention_heads,
            nope: self.qk_nope_head_dim,
            rope: self.qk_rope_head_dim,
            value: self.v_head_dim,
            scale: scale * c.rope_scaling.as_ref().map_or(1.0, RopeScaling::softmax_factor),
        }
    }

    pub(crate) fn router(&self) -> Router {
        Router {
            experts: self.n_routed_experts,
            expert_groups: self.n_group,
            node_limit: self.topk_group,
            top_k: self.num_experts_per_tok,
            normalise: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
        }
    }

    fn check(&self, c: &Config) -> Result<(), Error> {
        check_sizes(&[
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
        ])?;
        if let Some(RopeScaling::Llama3(_)) = &c.rope_scaling {
            return unsupported("`rope_type` is `llama3`".into(), "DeepSeek-V3 has `default` or `yarn`");
        }
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            return refuse(
                format!("`qk_rope_head_dim` is {}", self.qk_rope_head_dim),
                "rotary dims come in pairs: make it even",
            );
        }
        if self.first_k_dense_replace > c.num_hidden_layers {
            return refuse(
                format!(
                    "`first_k_dense_replace` is {}, `num_hidden_layers` {}",
                    self.first_k_dense_replace, c.num_hidden_layers
                ),
                "at most all layers are dense",
            );
        }
        if self.first_k_dense_replace == c.num_hidden_layers && self.num_nextn_predict_layers == 0 {
            return Ok(()); // no layer has experts
        }
        let (experts, groups) = (self.n_routed_experts, self.n_group);
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
                format!("`num_experts_per_tok` is {}, {reachable} experts can be reached", self.num_experts_per_tok),
                "choose fewer experts per token, or keep more groups",
            );
        }
        check_sizes(&[("moe_intermediate_size", self.moe_intermediate_size)])
    }
}
