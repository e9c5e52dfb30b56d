//! A training of the benchmark model on a GPU: tokens per second, memory beside what was planned, and where a step's
//! time goes.

use crate::gpu::{NEXT, Row, batch, config, fp8, gpu, is_small, scaled, small, times, trainer};
use serde_json::{Map, json};
use smelt_kernels::{Backend, Meta, Trace};
use smelt_model::{Config, Model, Precision, Recomputed, Work};
use smelt_train::{Hyper, Memory, Moments};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// 2.863B parameters, 0.889B active.
fn benchmark() -> Config {
    config(json!({ "vocab_size": 65_536, "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 16, "kv_lora_rank": 512, "n_routed_experts": 32, "num_experts_per_tok": 6,
        "moe_intermediate_size": 768, "intermediate_size": 6144 }))
}

/// Sequences at once, and what is computed again: as little as fits, of a step of four sequences.
const WAYS: [(usize, Recomputed); 6] = [
    (4, Recomputed::None),
    (4, Recomputed::Light),
    (4, Recomputed::Experts),
    (2, Recomputed::Experts),
    (4, Recomputed::Full),
    (1, Recomputed::Full),
];

/// Ten steps and twenty that are timed, of four sequences of 4,096 tokens; and one by operation.
pub(crate) fn benchmark_model() -> Vec<Row> {
    let config = if is_small() { small() } else { benchmark() };
    let context = scaled(4096);
    let mut rows = Vec::new();
    for (word, precision) in [("fp8", fp8()), ("bf16", Precision::BF16)] {
        let gpu = gpu();
        let shapes = Model::new(config.clone()).expect("the sizes are a model").in_precision(precision);
        let hyper = Hyper { moments: Moments::Bf16, ..Hyper::default() };
        let planned = |(sequences, recompute): (usize, Recomputed)| {
            Memory::of(&Meta::of_gpu(true), &shapes, &hyper, recompute, [sequences, context]).peak
        };
        let budget = gpu.found().memory / 10 * 9;
        let way = WAYS.into_iter().find(|way| planned(*way) <= budget).unwrap_or(WAYS[WAYS.len() - 1]);
        let (at_once, recompute) = way;
        let by_operation = Arc::new(AtomicBool::new(false));
        let (waits, device) = (by_operation.clone(), gpu.clone());
        let trace = Trace::new(gpu.clone()).waiting(move || {
            if waits.load(Ordering::Relaxed) {
                device.wait();
            }
        });
        let trace = Arc::new(trace);
        let backend: Arc<dyn Backend> = trace.clone();
        let mut trainer = trainer(&config, backend, precision, recompute);
        let work = Work::of(trainer.model(), context);
        let mut step = |at: u64| {
            let parts = (4 / at_once) as u64;
            let micro = (0..parts).map(|i| (batch(&config, at_once, context, parts * at + i), &NEXT as _));
            trainer.step(&micro.collect::<Vec<_>>()).map_or(f64::NAN, |report| report.loss)
        };
        let (first, warm) = (step(0), times(10));
        for at in 1..warm {
            step(at);
        }
        gpu.take_peak();
        let (begun, steps) = (Instant::now(), times(20));
        let losses: Vec<f64> = (warm..warm + steps).map(&mut step).collect();
        let time = begun.elapsed().as_secs_f64() / steps as f64;
        let (rate, gib) = (4.0 * context as f64 / time, |bytes: f64| bytes / f64::from(1 << 30));
        let (peak, plan) = (gpu.take_peak() as f64, planned(way) as f64);
        let what = format!("training of {:.2}B parameters, {word}", work.parameters as f64 / 1e9);
        rows.push(Row::new(
            &what,
            json!({ "tokens_per_second": rate, "model_tflops": rate * work.flops / 1e12,
                "share_of_bf16_peak": rate * work.flops / 989.4e12, "peak_gib": gib(peak), "planned_gib": gib(plan),
                "tokens_at_once": at_once * context, "recompute": format!("{recompute:?}"), "seconds_per_step": time,
                "first_loss": first, "last_loss": losses[losses.len() - 1] }),
        ));
        rows.push(Row::check(format!("{what}: peak memory against the plan"), (peak / plan - 1.0).abs(), 0.07));
        by_operation.store(true, Ordering::Relaxed);
        trace.take();
        step(warm + steps);
        let spent = trace.take().into_iter().take(16);
        let figures = spent.map(|(name, spent)| (name.into(), json!(1e3 * spent.time.as_secs_f64())));
        rows.push(Row::new(format!("{what}: ms of a step by operation"), figures.collect::<Map<_, _>>().into()));
    }
    rows
}
