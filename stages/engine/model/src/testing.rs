//! Gradients against central differences, in f64.

use crate::params::Specs;
use crate::{
    Balance, Config, Cx, DeepseekV3, Family, Grads, Init, KeyValueHeads, Layer, Params, Precision, Recomputed, Start,
    Stats, Update,
};
use smelt_kernels::{Cpu, DType, DocumentBounds, Documents, Tensor, random};
use std::cell::RefCell;
use std::sync::Arc;

/// Small, with every feature on.
pub(crate) fn tiny() -> Config {
    Config {
        vocab_size: 32,
        hidden_size: 12,
        intermediate_size: 10,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-6,
        rope_theta: 100.0,
        rope_scaling: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        bos_token_id: Some(0),
        eos_token_id: Some(1.into()),
        pad_token_id: None,
        reward_head: false,
        family: Family::DeepseekV3(DeepseekV3 {
            moe_intermediate_size: 6,
            num_nextn_predict_layers: 0,
            n_shared_experts: 1,
            n_routed_experts: 8,
            routed_scaling_factor: 2.5,
            kv_lora_rank: 5,
            q_lora_rank: Some(7),
            qk_rope_head_dim: 4,
            v_head_dim: 3,
            qk_nope_head_dim: 6,
            n_group: 4,
            topk_group: 2,
            num_experts_per_tok: 3,
            first_k_dense_replace: 1,
            norm_topk_prob: true,
            rope_interleave: true,
        }),
    }
}

/// What is DeepSeek-V3's own of [`tiny`].
pub(crate) fn deepseek(config: &mut Config) -> &mut DeepseekV3 {
    match &mut config.family {
        Family::DeepseekV3(v3) => v3,
        other => panic!("{other:?} has no experts"),
    }
}

/// One small model of every dense family, biases on.
pub(crate) fn dense() -> [Config; 3] {
    let heads = KeyValueHeads { num_key_value_heads: 2, head_dim: 4 };
    let families = [
        Family::Qwen2(heads),
        Family::Qwen3 { heads, attention_bias: false },
        Family::Llama { heads, attention_bias: true },
    ];
    families.map(|family| Config { num_attention_heads: 4, family, ..tiny() })
}

/// Builds a layer, and compares its gradients in x `[N, width]` and in every parameter with central differences.
pub(crate) fn check_gradients<L: Layer>(
    lengths: &[usize],
    out: usize,
    layer: impl FnOnce(&mut Specs, &mut Config) -> L,
    width: usize,
) {
    check_gradients_with(lengths, out, layer, width, Balance::NONE);
}

/// The loss is Σ c·y for random c, plus the loss of `balance`. With steps of 1e-5 the truncation is about 1e-10 and
/// the rounding 1e-16/1e-5; the tolerance leaves a factor of 1000 above both.
pub(crate) fn check_gradients_with<L: Layer>(
    lengths: &[usize],
    out: usize,
    layer: impl FnOnce(&mut Specs, &mut Config) -> L,
    width: usize,
    balance: Balance,
) {
    let (mut specs, mut config) = (Specs::default(), tiny());
    let layer = layer(&mut specs, &mut config);
    let specs = Arc::new(specs);
    let init = Init { seed: 3, embedding: 1.0, router: 1.0, weight: None };
    let mut params = Params::init(specs, &init).copy_as(DType::F64);
    let zeros: Vec<_> = params
        .iter()
        .filter(|(_, spec, _)| spec.start == Start::Zero && spec.update == Update::Gradient)
        .map(|(p, _, _)| p)
        .collect();
    let biases: Vec<_> = params.iter().filter(|(_, spec, _)| spec.update == Update::Rule).map(|(p, _, _)| p).collect();
    for p in zeros.iter().chain(&biases) {
        let bias = params.get_mut(*p).write::<f64>();
        bias.iter_mut().enumerate().for_each(|(i, b)| *b = 0.1 * random::normal(9, 9, i as u64));
    }
    let cpu = Cpu::new(1);
    let documents = Documents::new(&cpu, DocumentBounds::of_lengths(lengths));
    let rope = config.rope(64);
    let n = documents.rows();
    let draws = |seed: u64, len: usize| (0..len).map(|i| random::normal(seed, 1, i as u64)).collect::<Vec<_>>();
    let mut x = Tensor::new([n, width], &draws(1, n * width));
    let c = Tensor::new([n, out], &draws(2, n * out));

    let loss = |params: &Params, x: &Tensor| {
        let stats = RefCell::<Stats>::default();
        let cx = Cx {
            backend: &cpu,
            params,
            documents: &documents,
            rope: &rope,
            balance,
            precision: Precision::Fp32,
            recompute: Recomputed::None,
            keeps: true,
            stats: &stats,
        };
        let (y, _) = layer.forward(&cx, x.clone());
        assert_eq!((y.rows(), y.cols()), (n, out));
        let sum: f64 = y.read::<f64>().iter().zip(c.read::<f64>()).map(|(y, c)| y * c).sum();
        sum + stats.borrow_mut().balance(&cpu).read::<f64>()[0]
    };
    let stats = RefCell::<Stats>::default();
    let cx = Cx {
        backend: &cpu,
        params: &params,
        documents: &documents,
        rope: &rope,
        balance,
        precision: Precision::Fp32,
        recompute: Recomputed::None,
        keeps: true,
        stats: &stats,
    };
    let mut grads = Grads::zeros(&cpu, &params);
    let (_, saved) = layer.forward(&cx, x.copy());
    let dx = layer.backward(&cx, saved, c.clone(), &mut grads);

    const STEP: f64 = 1e-5;
    let close = |found: f64, up: f64, down: f64, what: &str| {
        let expected = (up - down) / (2.0 * STEP);
        assert!(
            (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
            "{what}: {found}, by differences {expected}"
        );
    };
    for i in 0..x.len() {
        let old = x.read::<f64>()[i];
        let mut at = |value| {
            x.write::<f64>()[i] = value;
            loss(&params, &x)
        };
        let (up, down) = (at(old + STEP), at(old - STEP));
        at(old);
        close(dx.read::<f64>()[i], up, down, &format!("dx[{i}]"));
    }
    for p in params.handles().filter(|p| !biases.contains(p)) {
        for i in 0..params.get(p).len() {
            let old = params.get(p).read::<f64>()[i];
            let mut at = |value| {
                params.get_mut(p).write::<f64>()[i] = value;
                loss(&params, &x)
            };
            let (up, down) = (at(old + STEP), at(old - STEP));
            at(old);
            let name = &params.spec(p).parts[0].name;
            close(grads.get(p).read::<f64>()[i], up, down, &format!("d {name}[{i}]"));
        }
    }
}
