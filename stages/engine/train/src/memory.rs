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
    /// What forward of one micro-batch keeps for backward.
    pub activations: u64,
    /// The most at once, in all phases of a step.
    pub peak: u64,
    /// Floating-point operations of one micro-batch: products and attention, forward and back.
    pub flops: u64,
}

impl Memory {
    /// Of a training in micro-batches of `sequences` sequences of `context` tokens.
    pub fn of(model: &Model, hyper: &Hyper, recompute: Recomputed, [sequences, context]: [usize; 2]) -> Self {
        let meta = Meta::new();
        let (mut params, weights) = (model.shapes(&meta), meta.live());
        let mut grads = Grads::zeros(&meta, &params);
        let gradients = meta.live() - weights;
        let mut optimizer = Optimizer::new(&meta, &params, hyper, &[]);
        let own = meta.live();
        let ids = vec![0; context + 1];
        let batch = Batch::next_token(&vec![ids.as_slice(); sequences]);
        let (totals, stats) =
            (StepTotals::count(std::iter::once(&batch), model.config().num_nextn_predict_layers()), RefCell::default());
        let (head, saved) =
            model.forward_in(recompute, &meta, &params, &batch, Balance::NONE, &RefCell::<Stats>::default());
        let activations = meta.live() - own;
        let loss = NextToken { mtp_weight: 0.3, z: 0.0 }.loss(&meta, &head, &batch, &totals);
        drop(head);
        model.backward(&meta, &params, saved, loss.gradient, &mut grads, &stats);
        let square_sum = optimizer.square_sum(&meta, &params, &grads);
        let flops = meta.flops();
        optimizer.update(&meta, hyper, 0.0, &square_sum, &mut params, &grads);
        Self { weights, gradients, optimizer: own - weights - gradients, activations, peak: meta.take_peak(), flops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_model::{Config, Work};

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
        let memory = Memory::of(&model, &hyper, Recomputed::None, [1, 8]);
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
            Memory::of(&model(&text), &Hyper::default(), recompute, [3, 10]).activations
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
        let memory = Memory::of(&model, &Hyper::default(), Recomputed::None, [2, context]);
        let work = Work::of(&model, context).flops * (2 * context) as f64;
        let off = (memory.flops as f64 / work - 1.0).abs();
        assert!(off < 0.02, "{} and {work}", memory.flops);
    }
}
