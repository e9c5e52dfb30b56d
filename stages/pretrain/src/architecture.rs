//! The sizes of a new model, with defaults that are the quickstart's: 0.8 million parameters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_model::{Config, DeepseekV3, Family, Init};

/// A DeepSeek-V3. Names say what Hugging Face's config says in its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Of the residual stream.
    pub width: usize,
    pub layers: usize,
    /// The first so many layers have a dense feed-forward.
    pub dense_layers: usize,
    /// Width of a dense feed-forward.
    pub dense_width: usize,
    /// Routed experts per layer.
    pub experts: usize,
    pub experts_per_token: usize,
    pub expert_width: usize,
    /// Experts that every token uses.
    pub shared_experts: usize,
    /// Experts stand in so many groups, of which a token may use `kept_groups`.
    pub groups: usize,
    pub kept_groups: usize,
    /// Weights of a token's experts sum to this.
    pub expert_scale: f64,
    pub heads: usize,
    /// Per head, of queries and keys: without and with a position.
    pub nope: usize,
    pub rope: usize,
    /// Per head, of values.
    pub value: usize,
    /// Of the latent from which keys and values come.
    pub latent: usize,
    /// Of the latent from which queries come; 0 does not compress them.
    pub query_latent: usize,
    pub rope_theta: f64,
    /// Positions the model knows; 0 takes twice the training context.
    pub positions: usize,
    /// Embedding and output head are one.
    pub tied: bool,
    /// Modules that predict further tokens.
    pub mtp_layers: usize,
    /// Standard deviation of new embeddings.
    pub embedding_std: f64,
    /// Standard deviation of new weights; 0 takes 1/√(3·inputs).
    pub weight_std: f64,
}

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
        }
    }
}

impl Architecture {
    /// For a vocabulary, with the ids that `tokenize` reserves.
    pub fn config(&self, vocabulary: usize, context: usize) -> Config {
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
