//! A training on a device with memory of its own: the host touches none of it, and waits for it once per step.

#[path = "../../../../kernels/sim/simulator.rs"]
mod simulator;

use smelt_kernels::{Backend, Cpu, Cuda, Fenced, Meta};
use smelt_model::{
    Balance, BalanceCounts, BalanceScope, Batch, Config, Fp8, Init, Model, Params, Precision, Recomputed,
};
use smelt_train::*;
use std::sync::{Arc, Mutex};

/// One test on the GPU at a time: the driver counts waits for all of them.
static ONE: Mutex<()> = Mutex::new(());

const DEEPSEEK: &str = r#"{ "model_type": "deepseek_v3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_nextn_predict_layers": 2, "num_attention_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 8, "kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "max_position_embeddings": 128, "rms_norm_eps": 1e-6 }"#;
const QWEN: &str = r#"{ "model_type": "qwen2", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6 }"#;

fn trainer(config: &Config, backend: Arc<dyn Backend>, precision: Precision) -> Trainer {
    let model = Arc::new(Model::new(config.clone()).unwrap().in_precision(precision));
    let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
    let hyper = Hyper { moments: Moments::Bf16, average: 0.9, ..Hyper::default() };
    let balance = Balance { weight: 1e-3, scope: BalanceScope::Sequence, counts: BalanceCounts::Scores, mtp: true };
    let guard = Some(SpikeGuard { window: 2, ..SpikeGuard::default() });
    let schedule = Schedule::over(10, 1e-2, 0, Decay::Constant, 1.0);
    let settings = Settings { balance, bias_speed: 1e-3, guard, ..Settings::new(hyper, schedule) };
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
        for precision in [Precision::Fp32, Precision::BF16, Precision::Fp8(Fp8::default())] {
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

/// What the simulated GPU counted.
fn counted(what: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(&simulator::report()).unwrap()[what].as_u64().unwrap()
}

/// How often the host has waited for the simulated GPU.
fn waits() -> u64 {
    counted("host_waits")
}

/// √Σ(a − b)² / √Σb²
fn distance(a: &Params, a_backend: &dyn Backend, b: &Params) -> f64 {
    let values = |params: &Params, backend: &dyn Backend| -> Vec<f64> {
        params.iter().flat_map(|(_, _, value)| backend.download(value).to_f64()).collect()
    };
    let (a, b) = (values(a, a_backend), values(b, &Cpu::new(1)));
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Sums have another order on a GPU than on the CPU, so results differ by roundings: of f32 after the products, and in
/// bf16 and FP8 now and then by a step of that format. AdamW turns the sign of a gradient near zero into a whole step.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_model_trains_on_a_gpu_as_on_the_cpu() {
    let _one = ONE.lock();
    let next = NextToken { mtp_weight: 0.3, z: 1e-4 };
    let gpu = simulator::gpu();
    for (text, precision) in [DEEPSEEK, QWEN].into_iter().flat_map(|text| {
        [Precision::Fp32, Precision::BF16, Precision::Fp8(Fp8::default())].map(|precision| (text, precision))
    }) {
        let config = Config::from_json(text.as_bytes()).unwrap();
        let micro = |step| batches(step).into_iter().map(|batch| (batch, &next as &dyn Objective)).collect::<Vec<_>>();
        let on_gpu = || trainer(&config, gpu.clone(), precision);
        let (mut expected, mut found) = (trainer(&config, Arc::new(Cpu::new(2)), precision), on_gpu());
        let mut saved = Vec::new();
        for step in 0..3 {
            let report = expected.step(&micro(step)).unwrap();
            if step == 2 {
                saved = found.save();
            }
            let before = waits();
            let of_gpu = found.step(&micro(step)).unwrap();
            assert_eq!(waits() - before, 1, "step {step}, {precision:?}");
            let close = |a: f64, b: f64, share: f64| (a - b).abs() <= share * b.abs();
            assert!(close(of_gpu.loss, report.loss, 1e-4), "step {step}, {precision:?}: {of_gpu:?}, {report:?}");
            assert!(close(of_gpu.gradient_norm, report.gradient_norm, 1e-3), "step {step}, {precision:?}");
            assert_eq!(of_gpu.totals.targets, report.totals.targets);
        }
        let apart = distance(found.params(), gpu.as_ref(), expected.params());
        let most = if precision == Precision::Fp32 { 1e-4 } else { 5e-3 };
        println!("{} parameters, {precision:?}: weights are {apart:.1e} apart", found.params().count());
        assert!(apart <= most, "{precision:?}: weights are {apart} apart");

        // another run, whose batches are uploaded beside the step before, and one that goes on from a save have the
        // same bits
        let (mut again, mut resumed) = (on_gpu(), on_gpu());
        let upload = |to: &Uploader, step| batches(step).into_iter().map(|batch| to.upload(batch)).collect::<Vec<_>>();
        let mut ready = upload(&again.uploader(), 0);
        for step in 0..3 {
            let pairs: Vec<_> = ready.iter().map(|batch| (batch, &next as &dyn Objective)).collect();
            let (before, mut beside) = (waits(), Vec::new());
            again
                .step_beside(&pairs, |to| {
                    beside = upload(to, step + 1);
                    assert_eq!(waits(), before, "the host waits before it uploads what comes next");
                })
                .unwrap();
            assert_eq!(waits() - before, 1, "step {step}, {precision:?}");
            ready = beside;
        }
        resumed.restore(&saved).unwrap();
        resumed.step(&micro(2)).unwrap();
        for other in [again, resumed] {
            assert!(bits(other.params(), gpu.as_ref()) == bits(found.params(), gpu.as_ref()), "{precision:?}");
        }
    }
}

/// A save after every step, of the guard's snapshot too. The simulated GPU copies as late as the order of streams
/// allows: an update that did not wait for the copies would be in them.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_save_is_copied_beside_the_next_step() {
    let _one = ONE.lock();
    let next = NextToken { mtp_weight: 0.3, z: 1e-4 };
    let gpu = simulator::gpu();
    for (text, precision) in [(DEEPSEEK, Precision::Fp8(Fp8::default())), (QWEN, Precision::BF16)] {
        let config = Config::from_json(text.as_bytes()).unwrap();
        let micro = |step| batches(step).into_iter().map(|batch| (batch, &next as &dyn Objective)).collect::<Vec<_>>();
        let on_gpu = || trainer(&config, gpu.clone(), precision);
        let (mut expected, mut found) = (on_gpu(), on_gpu());
        let (mut states, mut saves) = (Vec::new(), Vec::new());
        for step in 0..5 {
            expected.step(&micro(step)).unwrap();
            states.push(expected.save());
            let before = waits();
            found.step(&micro(step)).unwrap();
            assert_eq!(waits() - before, 1, "step {step}, {precision:?}: as without a save");
            saves.push(found.save_beside());
            assert_eq!(waits() - before, 1, "step {step}, {precision:?}: the host waits to save");
        }
        found.step(&micro(5)).unwrap();
        expected.step(&micro(5)).unwrap();
        let write = |save: Save| {
            let mut bytes = Vec::new();
            save.write(&mut bytes).unwrap();
            bytes
        };
        let written: Vec<_> = std::thread::spawn(move || saves.into_iter().map(write).collect()).join().unwrap();
        for (step, (written, state)) in written.iter().zip(&states).enumerate() {
            assert!(written == state, "the save after step {step}, {precision:?}, differs");
        }
        let mut resumed = on_gpu();
        resumed.restore(&written[4]).unwrap();
        resumed.step(&micro(5)).unwrap();
        for other in [resumed, found] {
            assert!(bits(other.params(), gpu.as_ref()) == bits(expected.params(), gpu.as_ref()), "{precision:?}");
        }
    }
    assert_eq!(counted("changed_copies"), 0);
}

/// What shapes alone say of a step's memory, beside what the tensors of a GPU take at once: these are rounded up by up
/// to 6 %, and some operations want less than the estimate gives them.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_step_on_a_gpu_takes_the_memory_that_shapes_say() {
    let _one = ONE.lock();
    simulator::gpu(); // the driver; other tests use memory of that one
    let gpu = Arc::new(Cuda::new(0).unwrap());
    let fp8 = Precision::Fp8(Fp8::default());
    for (text, precision, recompute) in
        [(DEEPSEEK, fp8, Recomputed::None), (QWEN, Precision::BF16, Recomputed::Full), (QWEN, fp8, Recomputed::Light)]
    {
        let text = text.replace("\"hidden_size\": 32", "\"hidden_size\": 128");
        let config = Config::from_json(text.as_bytes()).unwrap();
        let model = Arc::new(Model::new(config).unwrap().in_precision(precision));
        let params = model.init(&Init { seed: 1, embedding: 0.5, router: 0.1, weight: None });
        let (hyper, schedule) = (Hyper::default(), Schedule::over(10, 1e-3, 0, Decay::Constant, 1.0));
        let settings = Settings { recompute, ..Settings::new(hyper, schedule) };
        let mut trainer = Trainer::new(model.clone(), params, gpu.clone(), settings);
        let ids: Vec<u32> = (0..129).map(|i| i * 7 % 50).collect();
        gpu.take_peak();
        let objective = NextToken { mtp_weight: 0.3, z: 0.0 };
        trainer.step(&[(Batch::next_token(&[&ids]), &objective as _)]).unwrap();
        let found = gpu.take_peak() as f64;
        let said = Memory::of(&Meta::of_gpu(false), &model, &hyper, recompute, [1, 128]).peak as f64;
        println!("{precision:?}, {recompute:?}: {found} bytes, {said} by shapes: {:.3}", found / said);
        assert!((0.9..1.07).contains(&(found / said)), "{precision:?}, {recompute:?}: {found} bytes, {said} by shapes");
    }
}
