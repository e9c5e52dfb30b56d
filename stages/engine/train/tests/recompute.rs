//! Backward may keep a value or compute it again: no bit of a training depends on it.

use smelt_kernels::{Backend, Cpu, OPERATIONS, Trace};
use smelt_model::{Balance, Batch, Config, Fp8, Init, Model, Precision, Recomputed};
use smelt_train::*;
use std::sync::Arc;

const CONFIGS: [&str; 2] = [
    r#"{ "model_type": "deepseek_v3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "num_attention_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "max_position_embeddings": 128, "rms_norm_eps": 1e-6 }"#,
    r#"{ "model_type": "qwen3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6 }"#,
];

fn trainer(config: &str, precision: Precision, recompute: Recomputed, backend: Arc<dyn Backend>) -> Trainer {
    let model = Model::new(Config::from_json(config.as_bytes()).unwrap()).unwrap();
    let model = Arc::new(model.in_precision(precision));
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    let balance = Balance { weight: 1e-2, mtp: true, ..Balance::NONE };
    let schedule = Schedule::over(10, 1e-2, 0, Decay::Constant, 1.0);
    let new = Settings::new(Hyper::default(), schedule);
    Trainer::new(model, params, backend, Settings { balance, bias_speed: 1e-3, recompute, ..new })
}

fn step(trainer: &mut Trainer, at: u32) -> Report {
    let document = |length: u32, stride: u32| -> Vec<u32> { (0..length).map(|i| (at + i * stride) % 50).collect() };
    let batches = [[document(20, 3), document(7, 7)], [document(11, 2), document(15, 5)]];
    let objective = NextToken { mtp_weight: 0.3, z: 0.0 };
    let batches = batches.iter().map(|pair| Batch::next_token(&[&pair[0], &pair[1]]));
    trainer.step(&batches.map(|batch| (batch, &objective as &dyn Objective)).collect::<Vec<_>>()).unwrap()
}

#[test]
fn what_is_computed_again_changes_no_bit() {
    for config in CONFIGS {
        for precision in [Precision::Fp32, Precision::BF16, Precision::Fp8(Fp8::default())] {
            let new = |recompute| trainer(config, precision, recompute, Arc::new(Cpu::new(2)));
            let mut whole = new(Recomputed::None);
            let reports: Vec<String> = (0..4).map(|at| format!("{:?}", step(&mut whole, at))).collect();
            for recompute in [Recomputed::Light, Recomputed::Experts, Recomputed::Full] {
                let mut trainer = new(recompute);
                for (at, expected) in reports.iter().enumerate() {
                    assert_eq!(format!("{:?}", step(&mut trainer, at as u32)), *expected, "{recompute:?}, step {at}");
                }
                assert!(trainer.save() == whole.save(), "{recompute:?}, {precision:?}");
            }
            // a training goes on under another policy
            let mut first = new(Recomputed::None);
            (0..2).for_each(|at| drop(step(&mut first, at)));
            let mut second = new(Recomputed::Full);
            second.restore(&first.save()).unwrap();
            (2..4).for_each(|at| drop(step(&mut second, at)));
            assert!(second.save() == whole.save(), "resumed under another policy, {precision:?}");
        }
    }
}

/// How often an operation runs in a step.
fn calls(recompute: Recomputed, operation: &str) -> u64 {
    assert!(OPERATIONS.contains(&operation));
    let trace = Arc::new(Trace::new(Arc::new(Cpu::new(1))));
    let mut trainer = trainer(CONFIGS[0], Precision::Fp32, recompute, trace.clone());
    trace.take();
    step(&mut trainer, 0);
    trace.take().into_iter().find(|(name, _)| *name == operation).map_or(0, |(_, spent)| spent.calls)
}

/// Two micro-batches through three blocks and one of an MTP module.
#[test]
fn a_policy_computes_again_what_it_says() {
    let [none, light, experts, full] = [Recomputed::None, Recomputed::Light, Recomputed::Experts, Recomputed::Full]
        .map(|r| ["attention", "route", "swiglu", "rms_norm", "grouped_gemm"].map(|op| calls(r, op)));
    let blocks = 2 * 4;
    assert_eq!(none[0], blocks);
    assert_eq!((light[0], light[1]), (none[0], none[1]), "attention and routes are kept");
    assert_eq!(light[2], 2 * none[2], "gated activations are made again");
    assert_eq!(light[3], none[3] + 2 * blocks, "and two norms of each block");
    let of_experts = 2 * 3; // blocks with experts
    assert_eq!(experts[..4], [light[0], light[1], light[2], light[3]]);
    assert_eq!(experts[4], light[4] + of_experts, "what experts give is made again");
    assert_eq!((full[0], full[1], full[2]), (2 * none[0], 2 * none[1], 2 * none[2]));
}
