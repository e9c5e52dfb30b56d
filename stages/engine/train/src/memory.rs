//! What a training takes, before it begins: a step on shapes alone.

use crate::{Hyper, NextToken, Objective, Optimizer, StepTotals};
use smelt_kernels::Meta;
use smelt_model::{Balance, Batch, Grads, Model, Recomputed, Stats};
use std::cell::RefCell;

/// Bytes of a training's tensors, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub weights: u64,
    pub gradients: u64,
    /// Moments, and the moving average when one is kept.
    pub optimizer: u64,
    /// Copies of weights in the precision of products, which a GPU keeps beside them.
    pub lowered: u64,
    /// What forward of one micro-batch keeps for backward.
    pub activations: u64,
    /// The most at once, in all phases of a step.
    pub peak: u64,
    /// Floating-point operations of one micro-batch: products and attention, forward and back.
    pub flops: u64,
}

impl Memory {
    /// Of a training in micro-batches of `sequences` sequences of `context` tokens, on the device that `meta`, which is
    /// new, stands for.
    pub fn of(
        meta: &Meta,
        model: &Model,
        hyper: &Hyper,
        recompute: Recomputed,
        [sequences, context]: [usize; 2],
    ) -> Self {
        let (mut params, weights) = (model.shapes(meta), meta.live());
        let mut grads = Grads::zeros(meta, &params);
        let gradients = meta.live() - weights;
        let mut optimizer = Optimizer::new(meta, &params, hyper, &[]);
        let own = meta.live();
        let ids = vec![0; context + 1];
        let batch = Batch::next_token(&vec![ids.as_slice(); sequences]);
        let (totals, stats) =
            (StepTotals::count(std::iter::once(&batch), model.config().num_nextn_predict_layers()), RefCell::default());
        let prepared = model.prepare(meta, &batch);
        let (head, saved) =
            model.forward_in(recompute, meta, &params, prepared, Balance::NONE, &RefCell::<Stats>::default());
        let activations = meta.live() - own - meta.lowered();
        let loss = NextToken { mtp_weight: 0.3, z: 0.0 }.loss(meta, &head, &batch, &totals);
        drop(head);
        model.backward(meta, &params, saved, loss.gradient, &mut grads, &stats);
        let square_sum = optimizer.square_sum(meta, &params, &grads);
        let flops = meta.flops();
        optimizer.update(meta, hyper, 0.0, &square_sum, &mut params, &grads);
        let (optimizer, lowered) = (own - weights - gradients, meta.lowered());
        Self { weights, gradients, optimizer, lowered, activations, peak: meta.take_peak(), flops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_model::{Config, Fp8, Precision, Work};

    const QWEN: &str = r#"{ "model_type": "qwen2", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6 }"#;

    fn model(config: &str) -> Model {
        Model::new(Config::from_json(config.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn weights_gradients_and_moments_are_what_their_elements_take() {
        let model = model(QWEN);
        let hyper = Hyper { average: 0.9, ..Hyper::default() };
        let memory = Memory::of(&Meta::new(), &model, &hyper, Recomputed::None, [1, 8]);
        let n = 4 * model.parameters() as u64;
        assert_eq!((memory.weights, memory.gradients, memory.optimizer), (n, n, 3 * n));
        assert!(memory.peak >= 5 * n + memory.activations);
    }

    /// One more block keeps, for N tokens: its input and the residual stream behind attention, the normed copies of
    /// both and their rstd; q, k, v and o; gate, up and their product; and what attention keeps of the softmax.
    #[test]
    fn a_block_keeps_what_a_hand_counts() {
        let of = |layers: usize, recompute| {
            let text = QWEN.replace("\"num_hidden_layers\": 2", &format!("\"num_hidden_layers\": {layers}"));
            Memory::of(&Meta::new(), &model(&text), &Hyper::default(), recompute, [3, 10]).activations
        };
        let block = |recompute| of(3, recompute) - of(2, recompute);
        let (n, d, f, heads) = (30, 16, 24, 2);
        // per query the largest score and one over the sum, both in whole vectors of 16; exponentials of 10 × 16
        let attention = 3 * heads * (2 * 16 + 10 * 16);
        let whole = n * (2 * d + 2 * d + 2 + (d + 8 + 8 + d) + 3 * f) + attention;
        assert_eq!(block(Recomputed::None), 4 * whole as u64);
        assert_eq!(block(Recomputed::Light), 4 * (whole - n * (2 * d + f)) as u64);
        assert_eq!(block(Recomputed::Full), 4 * (n * d) as u64);
    }

    /// `Work` counts attention at half of the square, and no embedding; both count a backward pass as two.
    #[test]
    fn the_arithmetic_of_a_step_is_what_work_says_of_a_token() {
        let (model, context) = (model(QWEN), 32);
        let memory = Memory::of(&Meta::new(), &model, &Hyper::default(), Recomputed::None, [2, context]);
        let work = Work::of(&model, context).flops * (2 * context) as f64;
        let off = (memory.flops as f64 / work - 1.0).abs();
        assert!(off < 0.02, "{} and {work}", memory.flops);
    }

    /// A block of experts of DeepSeek-V3 (arXiv 2412.19437, §4.2) for one sequence of 4,096 tokens in FP8 on a GPU.
    #[test]
    fn a_block_of_deepseek_v3_on_a_gpu_keeps_what_a_hand_counts() {
        let of = |layers: usize, recompute| {
            let text = format!(
                r#"{{ "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
                "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": {layers},
                "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8,
                "n_group": 8, "topk_group": 4, "first_k_dense_replace": 0, "q_lora_rank": 1536, "kv_lora_rank": 512,
                "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-6, "routed_scaling_factor": 2.5 }}"#
            );
            let model = model(&text).in_precision(Precision::Fp8(Fp8::default()));
            Memory::of(&Meta::of_gpu(true), &model, &Hyper::default(), recompute, [1, 4096])
        };
        let block = |recompute| {
            let [two, one] = [2, 1].map(|layers| of(layers, recompute));
            (two.weights - one.weights, two.lowered - one.lowered, two.activations - one.activations)
        };
        let (n, d, e, heads, routed, f) = (4096, 7168, 256, 128, 8 * 4096, 2048);
        let attention = d * 1536 + 1536 * heads * 192 + d * (512 + 64) + 512 * heads * 256 + heads * 128 * d;
        let products = attention + (e + 1) * 3 * d * f;
        // router and correction bias; the norms of the block, of the queries' and of the keys' latents
        let (weights, lowered, kept) = block(Recomputed::None);
        assert_eq!(weights, 4 * (products + d * e + e + 2 * d + 1536 + 512) as u64);
        // E4M3 for two products, and two copies of a scale for each block of 128×128; kv_a's 576 rows are 640
        let scales = 4 * (products + d * 64) / (128 * 128);
        assert_eq!(lowered, (2 * products + d * 64 + 2 * scales) as u64);

        // an operand of a weight's gradient: E4M3, and a scale for each 128 tokens; an expert's tokens begin at
        // multiples of 128
        let (bands, bands_of_experts) = (n / 128, routed / 128 + 255);
        let operand = |width: usize| width * (128 + 4) * bands;
        let of_experts = |width: usize| width * (128 + 4) * bands_of_experts;
        let residual = 2 * (n * d + n) * 4; // with 1/rms of each row
        let queries = operand(d) + (n * 1536 + n) * 4 + operand(1536);
        let keys = (n * 512 + n) * 4 + operand(512);
        let heads = n * heads * (192 + 256 + 128 + 1) * 4 + n * 64 * 4; // q, kv, o, log-sum-exp; rotary key
        let routing = (n * d + n * 8 * 2 + n * e + routed + n * 8 + e) * 4; // the input too
        let experts = of_experts(d) + of_experts(f) + (routed * 2 * f + routed * d) * 4;
        let shared = operand(d) + operand(f) + n * 2 * f * 4;
        assert_eq!(kept, (residual + queries + keys + heads + routing + experts + shared) as u64);
        // no outputs of norms, no gated activations, no rows sent to experts; and not what experts give
        let light = operand(d) + n * d * 4 + of_experts(d) + of_experts(f) + operand(d) + operand(f);
        assert_eq!(block(Recomputed::Light).2, kept - light as u64);
        assert_eq!(block(Recomputed::Experts).2, kept - (light + routed * d * 4) as u64);
        // the block's input alone
        assert_eq!(block(Recomputed::Full).2, (n * d * 4) as u64);
        for recompute in [Recomputed::None, Recomputed::Light, Recomputed::Experts, Recomputed::Full] {
            println!("a block keeps {:.2} GB, {recompute:?}", block(recompute).2 as f64 / 1e9);
        }
    }
}
