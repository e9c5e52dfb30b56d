//! A training on a device with memory of its own: the host touches none of it, and waits for it once per step.

use smelt_kernels::{Backend, Cpu, Fenced};
use smelt_model::{Balance, BalanceCounts, BalanceScope, Batch, Config, Fp8, Init, Model, Params, Precision};
use smelt_train::*;
use std::sync::Arc;

const DEEPSEEK: &str = r#"{ "model_type": "deepseek_v3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_nextn_predict_layers": 2, "num_attention_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "max_position_embeddings": 128, "rms_norm_eps": 1e-6 }"#;
const QWEN: &str = r#"{ "model_type": "qwen2", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6 }"#;

fn trainer(config: &Config, backend: Arc<dyn Backend>, precision: Precision) -> Trainer {
    let model = Arc::new(Model::new(config.clone()).unwrap());
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    let hyper = Hyper { moments: Moments::Bf16, average: 0.9, ..Hyper::default() };
    let balance = Balance { weight: 1e-3, scope: BalanceScope::Sequence, counts: BalanceCounts::Scores, mtp: true };
    let guard = Some(SpikeGuard { window: 2, ..SpikeGuard::default() });
    let schedule = Schedule::over(10, 1e-2, 0, Decay::Constant, 1.0);
    let settings = Settings { balance, bias_speed: 1e-3, guard, precision, ..Settings::new(hyper, schedule) };
    Trainer::new(model, params, backend, settings)
}

/// Two micro-batches, of two documents each.
fn batches(step: u32) -> Vec<Batch> {
    let document = |length: u32, stride: u32| -> Vec<u32> { (0..length).map(|i| (step + i * stride) % 50).collect() };
    let pairs = [[document(20, 3), document(7, 7)], [document(11, 2), document(15, 5)]];
    pairs.iter().map(|pair| Batch::next_token(&[&pair[0], &pair[1]])).collect()
}

fn bits(params: &Params, backend: &dyn Backend) -> Vec<u64> {
    params.iter().flat_map(|(_, _, value)| backend.download(value).to_f64()).map(f64::to_bits).collect()
}

/// Steps with `objectives`, one for each micro-batch, on the CPU and behind a fence; `waits` in each step.
fn check(config: &Config, precision: Precision, objectives: [&dyn Objective; 2], waits: usize) {
    let (cpu, fenced) = (Arc::new(Cpu::new(2)), Arc::new(Fenced::new(Arc::new(Cpu::new(2)))));
    let (mut expected, mut found) =
        (trainer(config, cpu.clone(), precision), trainer(config, fenced.clone(), precision));
    for step in 0..3 {
        let micro = || batches(step).into_iter().zip(objectives).collect::<Vec<_>>();
        let report = expected.step(&micro()).unwrap();
        fenced.take_waits();
        let behind = found.step(&micro()).unwrap();
        assert_eq!(fenced.take_waits(), waits, "step {step}, {precision:?}");
        assert_eq!(format!("{report:?}"), format!("{behind:?}"), "step {step}, {precision:?}");
    }
    assert!(bits(expected.params(), cpu.as_ref()) == bits(found.params(), fenced.as_ref()), "{precision:?}");
    assert!(bits(expected.result(), cpu.as_ref()) == bits(found.result(), fenced.as_ref()), "{precision:?}");

    // a save is the same file, and a training goes on from it behind the fence
    let saved = found.save();
    assert!(saved == expected.save());
    let mut other = trainer(config, fenced.clone(), precision);
    other.restore(&saved).unwrap();
    let micro = || batches(3).into_iter().zip(objectives).collect::<Vec<_>>();
    assert_eq!(other.step(&micro()).unwrap().loss.to_bits(), expected.step(&micro()).unwrap().loss.to_bits());
    assert!(bits(expected.params(), cpu.as_ref()) == bits(other.params(), fenced.as_ref()));
}

#[test]
fn a_step_waits_for_the_device_once() {
    let configs = [DEEPSEEK, QWEN].map(|text| Config::from_json(text.as_bytes()).unwrap());
    let next = NextToken { mtp_weight: 0.3, z: 1e-4 };
    for config in &configs {
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp8(Fp8::default())] {
            check(config, precision, [&next, &next], 1);
        }
        check(config, Precision::Fp32, [&Masked, &Masked], 1);
    }
}

/// Whoever needs log-probabilities on the host reads them once per micro-batch.
#[test]
fn grpo_waits_once_more_for_each_micro_batch() {
    let config = Config::from_json(QWEN.as_bytes()).unwrap();
    let grpo = |rows: usize| Grpo {
        advantage: (0..rows).map(|i| if i % 2 == 0 { 1.0 } else { -0.5 }).collect(),
        old: vec![-3.0; rows],
        reference: vec![-3.5; rows],
        weight: vec![1.0 / 60.0; rows],
        clip: 0.2,
        beta: 0.1,
    };
    let [first, second] = [0, 1].map(|at| grpo(batches(0)[at].target_rows().len()));
    check(&config, Precision::Fp32, [&first, &second], 3);
}

#[test]
#[should_panic(expected = "tensor: read by Host, but its memory is Fenced's")]
fn the_host_cannot_read_behind_the_fence() {
    let fenced: &dyn Backend = &Fenced::new(Arc::new(Cpu::new(1)));
    fenced.numbers(&[1.0]).to_f64();
}

#[test]
#[should_panic(expected = "tensor: read by Fenced, but its memory is Host's")]
fn an_operation_takes_no_tensor_of_the_host() {
    let fenced = Fenced::new(Arc::new(Cpu::new(1)));
    fenced.copy(&smelt_kernels::Tensor::new([1], &[1.0f32]));
}
