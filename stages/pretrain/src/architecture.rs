//! The sizes of a new model, with defaults that are the quickstart's: 0.8 million parameters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use smelt_model::{Config, DeepseekV3, Error, Family, Init};

/// A DeepSeek-V3, or another family by `fields`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Of the residual stream.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub width: usize,
    #[schemars(range(min = 1, max = 1000))]
    pub layers: usize,
    /// How many of the first layers have a dense feed-forward.
    #[schemars(range(max = 1000))]
    pub dense_layers: usize,
    /// Width of a dense feed-forward.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub dense_width: usize,
    /// Routed experts per layer.
    #[schemars(range(max = 4096))]
    pub experts: usize,
    #[schemars(range(max = 4096))]
    pub experts_per_token: usize,
    #[schemars(range(min = 1, max = 1_000_000))]
    pub expert_width: usize,
    /// Experts that every token uses.
    #[schemars(range(max = 4096))]
    pub shared_experts: usize,
    /// Number of groups of experts; a token may use `kept_groups` of them.
    #[schemars(range(max = 4096))]
    pub groups: usize,
    #[schemars(range(max = 4096))]
    pub kept_groups: usize,
    /// Weights of a token's experts sum to this.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub expert_scale: f64,
    #[schemars(range(min = 1, max = 1_000_000))]
    pub heads: usize,
    /// Per head, of queries and keys: without and with a position.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub nope: usize,
    #[schemars(range(min = 1, max = 1_000_000))]
    pub rope: usize,
    /// Per head, of values.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub value: usize,
    /// Of the latent from which keys and values come.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub latent: usize,
    /// Of the latent from which queries come; 0 does not compress them.
    #[schemars(range(max = 1_000_000))]
    pub query_latent: usize,
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub rope_theta: f64,
    /// Positions the model knows; 0 takes twice the training context.
    #[schemars(range(max = 100_000_000))]
    pub positions: usize,
    /// Embedding and output head share one tensor.
    pub tied: bool,
    /// Modules for multi-token prediction (MTP).
    #[schemars(range(max = 1000))]
    pub mtp_layers: usize,
    /// Standard deviation of new embeddings.
    #[schemars(range(min = 0.0))]
    pub embedding_std: f64,
    /// Standard deviation of new weights; 0 takes 1/√(3·inputs).
    #[schemars(range(min = 0.0))]
    pub weight_std: f64,
    /// Fields of Hugging Face's config.json, which overrule the sizes above: `{ rope_scaling: { type: yarn, factor: 4,
    /// … } }`, `{ model_type: qwen3, num_key_value_heads: 2 }`. The ids of the tokenizer cannot be set.
    pub fields: Map<String, Value>,
}

/// Fields that `fields` may not say.
const OF_THE_TOKENIZER: [&str; 4] = ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"];
/// Fields that other families have.
const FURTHER: [&str; 4] = ["rope_parameters", "mlp_bias", "layer_types", "sliding_window"];

impl Default for Architecture {
    fn default() -> Self {
        Self {
            width: 96,
            layers: 3,
            dense_layers: 1,
            dense_width: 192,
            experts: 8,
            experts_per_token: 2,
            expert_width: 48,
            shared_experts: 1,
            groups: 1,
            kept_groups: 1,
            expert_scale: 1.0,
            heads: 4,
            nope: 16,
            rope: 16,
            value: 24,
            latent: 64,
            query_latent: 0,
            rope_theta: 1000.0,
            positions: 0,
            tied: false,
            mtp_layers: 0,
            embedding_std: 0.5,
            weight_std: 0.0,
            fields: Map::new(),
        }
    }
}

impl Architecture {
    /// For a vocabulary, with the ids that `tokenize` reserves.
    pub fn config(&self, vocabulary: usize, context: usize) -> Result<Config, Error> {
        let own = self.own(vocabulary, context);
        if self.fields.is_empty() {
            return own.check().map(|()| own);
        }
        let mut all: Map<String, Value> = serde_json::from_slice(&own.to_json())?;
        all.remove("rope_parameters"); // the same in newer words
        if self.fields.contains_key("rope_parameters") {
            all.remove("rope_theta");
        }
        for (name, value) in &self.fields {
            if OF_THE_TOKENIZER.contains(&name.as_str()) {
                let what = format!("`{name}` in `fields`");
                return Err(Error::Config { what, hint: "it comes with the tokenizer" });
            }
            if !all.contains_key(name) && !FURTHER.contains(&name.as_str()) {
                let what = format!("`{name}` in `fields` is no field of config.json that is known here");
                return Err(Error::Config { what, hint: "look at the config.json of a checkpoint of this family" });
            }
            all.insert(name.clone(), value.clone());
        }
        if self.fields.get("model_type").is_some_and(|kind| kind != "deepseek_v3")
            && !self.fields.contains_key("head_dim")
        {
            all.remove("head_dim"); // ours is that of the rope
        }
        Config::from_json(&serde_json::to_vec(&all)?)
    }

    fn own(&self, vocabulary: usize, context: usize) -> Config {
        Config {
            vocab_size: vocabulary,
            hidden_size: self.width,
            intermediate_size: self.dense_width,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            max_position_embeddings: if self.positions > 0 { self.positions } else { 2 * context },
            rms_norm_eps: 1e-6,
            rope_theta: self.rope_theta,
            rope_scaling: None,
            tie_word_embeddings: self.tied,
            initializer_range: if self.weight_std > 0.0 { self.weight_std } else { 0.02 },
            bos_token_id: Some(0),
            eos_token_id: Some(1.into()),
            pad_token_id: Some(2),
            reward_head: false,
            family: Family::DeepseekV3(DeepseekV3 {
                moe_intermediate_size: self.expert_width,
                num_nextn_predict_layers: self.mtp_layers,
                n_shared_experts: self.shared_experts,
                n_routed_experts: self.experts,
                routed_scaling_factor: self.expert_scale,
                kv_lora_rank: self.latent,
                q_lora_rank: (self.query_latent > 0).then_some(self.query_latent),
                qk_rope_head_dim: self.rope,
                v_head_dim: self.value,
                qk_nope_head_dim: self.nope,
                n_group: self.groups,
                topk_group: self.kept_groups,
                num_experts_per_tok: self.experts_per_token,
                first_k_dense_replace: self.dense_layers,
                norm_topk_prob: true,
                rope_interleave: true,
            }),
        }
    }

    pub fn init(&self) -> Init {
        Init {
            seed: 0,
            embedding: self.embedding_std,
            router: 0.02,
            weight: (self.weight_std > 0.0).then_some(self.weight_std),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use smelt_model::RopeScaling;

    fn config(fields: Value) -> Result<Config, String> {
        let Value::Object(fields) = fields else { panic!("fields are an object") };
        Architecture { fields, ..Architecture::default() }.config(512, 64).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_of_hugging_face_overrule_the_sizes() {
        let base = Architecture::default().config(512, 64).unwrap();
        assert_eq!(config(json!({})).unwrap(), base);
        let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0,
            "mscale_all_dim": 1.0 });
        let found =
            config(json!({ "rope_scaling": yarn, "norm_topk_prob": false, "rope_theta": 5e4, "hidden_size": 64 }))
                .unwrap();
        assert!(matches!(&found.rope_scaling, Some(RopeScaling::Yarn(yarn)) if yarn.factor == 4.0));
        assert_eq!((found.rope_theta, found.hidden_size, found.num_hidden_layers), (5e4, 64, 3));
        assert!(matches!(&found.family, Family::DeepseekV3(v3) if !v3.norm_topk_prob && v3.rope_interleave));
        assert_eq!(config(json!({ "rope_parameters": { "rope_theta": 7.0 } })).unwrap().rope_theta, 7.0);

        let found = config(json!({ "model_type": "qwen3", "num_key_value_heads": 2 })).unwrap();
        assert!(matches!(found.family, Family::Qwen3 { heads, .. }
                if heads.num_key_value_heads == 2 && heads.head_dim == 24));
        assert_eq!(found.eos_token_id, base.eos_token_id);
    }

    #[test]
    fn fields_that_would_do_nothing_or_something_else_are_refused() {
        let refused = |fields| config(fields).unwrap_err().lines().next().unwrap().to_owned();
        let says = |what: &str| format!("the model's config contradicts itself: {what}");
        assert_eq!(
            refused(json!({ "hiden_size": 64 })),
            says("`hiden_size` in `fields` is no field of config.json that is known here")
        );
        assert_eq!(refused(json!({ "vocab_size": 64 })), says("`vocab_size` in `fields`"));
        assert_eq!(
            refused(json!({ "scoring_func": "softmax" })),
            "this model is not supported: `scoring_func` is \"softmax\""
        );
    }
}
