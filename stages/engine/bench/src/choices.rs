//! What a GPU may do in two ways: launches one by one or as graphs, dense products by smelt's kernels or by cuBLASLt.

use crate::gpu::{
    NEXT, Row, batch, distance, fp8, gpu, lowered, noise, opened, scaled, seconds, small, times, trainer,
};
use serde_json::json;
use smelt_kernels::*;
use smelt_model::Recomputed;
use std::sync::Arc;
use std::time::Instant;

/// Steps of a small model, whose kernels are short: the same bits in both ways, and the seconds of a step.
pub(crate) fn graphs() -> Vec<Row> {
    let config = small();
    let run = |gpu: Cuda| {
        let mut trainer = trainer(&config, Arc::new(gpu), fp8(), Recomputed::None);
        let mut step = |at| drop(trainer.step(&[(batch(&config, 4, scaled(128), at), &NEXT as _)]));
        (0..3).for_each(&mut step); // the second time makes the graphs
        let (begun, steps) = (Instant::now(), times(30));
        (3..3 + steps).for_each(&mut step);
        let time = begun.elapsed().as_secs_f64() / steps as f64;
        (trainer.save(), time)
    };
    let ((as_graphs, with), (one_by_one, without)) = (run(opened()), run(opened().without_graphs()));
    let apart = if as_graphs == one_by_one { 0.0 } else { 1.0 };
    vec![
        Row::check("a training as graphs and one by one", apart, 0.0),
        Row::new("seconds per step", json!({ "graphs": with, "one_by_one": without, "ratio": without / with })),
    ]
}

/// The three products of a dense layer in bf16, against smelt's kernels: right, and how fast beside them.
pub(crate) fn cublaslt() -> Vec<Row> {
    let library = match Cuda::cublaslt() {
        Ok(library) => library,
        Err(error) => return vec![Row::new("no cuBLASLt", json!({ "why": error.to_string() }))],
    };
    let (own, theirs) = (gpu(), opened().with_cublaslt());
    let theirs = theirs.unwrap_or_else(|error| panic!("{error}"));
    let mut rows = vec![Row::new(library, json!({}))];
    for (m, n, k) in [(8192, 8192, 8192), (16_384, 3072, 2048), (16, 3072, 2048)] {
        let [m, n, k] = [m, n, k].map(scaled);
        let (w, x, dy) = (noise(1, &[n, k]), noise(2, &[m, k]), noise(3, &[m, n]));
        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        let of = |gpu: &Cuda| {
            let device: &dyn Backend = gpu;
            let [x, dy] = [&x, &dy].map(|x| lowered(device, x, None, None));
            let (w, mut dw) = (device.upload(&w), device.zeros([n, k], DType::F32));
            let (mut y, mut dx) = (device.zeros([m, n], DType::F32), device.zeros([m, k], DType::F32));
            let times = [
                seconds(gpu, || device.low_gemm(Layout::Nt, &x, &w, None, &mut y, Write::Set)),
                seconds(gpu, || device.low_gemm(Layout::Nn, &dy, &w, None, &mut dx, Write::Set)),
                seconds(gpu, || device.low_gradient(&dy, &x, None, &mut dw, Write::Set)),
            ];
            ([y, dx, dw].map(|x| device.download(&x)), times)
        };
        let ((expected, own_times), (found, times)) = (of(&own), of(&theirs));
        for (at, what) in ["forward", "input gradient", "weight gradient"].into_iter().enumerate() {
            let what = format!("{what} {m}×{n}×{k}");
            rows.push(Row::check(what.clone(), distance(&found[at], &expected[at]), 4e-3));
            let tflops = |time: f64| flops / time / 1e12;
            let (own, theirs) = (tflops(own_times[at]), tflops(times[at]));
            rows.push(Row::new(what, json!({ "own_tflops": own, "cublaslt_tflops": theirs, "ratio": own / theirs })));
        }
    }
    rows
}
