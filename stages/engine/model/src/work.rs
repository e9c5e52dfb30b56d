//! What a model costs: parameters, and arithmetic per token.

use crate::{AttentionKind, Model};

/// Of one model at one length of sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// All that are trained.
    pub parameters: usize,
    /// Those that one token meets: of the routed experts only as many as it is sent to.
    pub active: usize,
    /// Operations per token of training, forward and twice that back; multiply and add count as two.
    pub flops: f64,
}

impl Work {
    /// The part of attention that grows with the length is counted at half of `context`, for it is causal.
    pub fn of(model: &Model, context: usize) -> Self {
        let (c, parameters) = (model.config(), model.parameters());
        let modules = c.num_nextn_predict_layers();
        let layers = c.num_hidden_layers + modules;
        let idle = |layer| {
            c.experts(layer).map_or(0, |v3| {
                (v3.n_routed_experts - v3.num_experts_per_tok) * 3 * c.hidden_size * v3.moe_intermediate_size
            })
        };
        let active = parameters - (0..layers).map(idle).sum::<usize>();
        // an embedding is looked up; the head is multiplied once more for each MTP module
        let table = c.vocab_size * c.hidden_size;
        let products = active - table + table * (modules + usize::from(c.tie_word_embeddings));
        let widths = match c.family.attention() {
            AttentionKind::Latent(v3) => v3.qk_nope_head_dim + v3.qk_rope_head_dim + v3.v_head_dim,
            AttentionKind::Grouped(grouped) => 2 * grouped.heads.head_dim,
        };
        let attention = layers * c.num_attention_heads * widths * context;
        Self { parameters, active, flops: 6.0 * products as f64 + 3.0 * attention as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn work(fields: &str) -> Work {
        Work::of(&Model::new(Config::from_json(fields.as_bytes()).unwrap()).unwrap(), 8)
    }

    /// Counted by hand.
    #[test]
    fn a_token_meets_its_own_experts_and_multiplies_the_head_once() {
        let sizes = r#""vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 6,
            "max_position_embeddings": 8, "rms_norm_eps": 1e-6"#;
        // q 4·4, k and v 4·2 each, o 4·4; three of 4·6; two norms and the last one of 4; embedding and head of 40
        let llama = work(&format!(r#"{{ "model_type": "llama", "num_key_value_heads": 1, {sizes} }}"#));
        assert_eq!((llama.parameters, llama.active), (48 + 72 + 12 + 80, 212));
        assert_eq!(llama.flops, 6.0 * 172.0 + 3.0 * (2 * 4 * 8) as f64);
        let tied = work(&format!(
            r#"{{ "model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": true, {sizes} }}"#
        ));
        assert_eq!((tied.parameters, tied.flops), (172, llama.flops));

        // q 4·2·4, down 4·(2 + 2), norm 2, up 2·2·(2 + 2), o 4·4; router 4·4, four experts of 3·4·2 of which
        // two are met
        let v3 = work(&format!(
            r#"{{ "kv_lora_rank": 2, "qk_rope_head_dim": 2, "qk_nope_head_dim": 2, "v_head_dim": 2,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2, "moe_intermediate_size": 2, "first_k_dense_replace": 0, {sizes} }}"#
        ));
        assert_eq!(v3.parameters, 32 + 16 + 2 + 16 + 16 + 16 + 4 * 24 + 12 + 80);
        assert_eq!(v3.active, v3.parameters - 2 * 24);
        assert_eq!(v3.flops, 6.0 * (v3.active - 40) as f64 + 3.0 * (2 * 6 * 8) as f64);
    }

    /// "671B total parameters with 37B activated for each token" (arXiv 2412.19437), without the MTP module; and the
    /// H800 hours that its report gives for 10¹² tokens of 4,096: 180,000, at 39 % of the peak in bf16.
    #[test]
    fn deepseek_v3_has_its_own_figures() {
        let fields = r#"{ "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
            "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
            "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8,
            "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6, "routed_scaling_factor": 2.5 }"#;
        let work = Work::of(&Model::new(Config::from_json(fields.as_bytes()).unwrap()).unwrap(), 4096);
        assert_eq!(work.parameters / 100_000_000, 6_710);
        assert_eq!(work.active / 1_000_000_000, 37);
        let hours = 1e12 * work.flops / (0.39 * 989.4e12) / 3600.0;
        assert!((hours / 180_000.0 - 1.0).abs() < 0.02, "{hours} hours, {} FLOPs per token", work.flops);
    }
}
