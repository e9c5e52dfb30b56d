//! NCCL on one GPU: a world of one gets its own data back from every operation, and the library's speed where it
//! copies.

use crate::gpu::{Row, gpu, scaled, seconds};
use serde_json::json;
use smelt_kernels::collective::{Group, Nccl, Reduce};
use smelt_kernels::*;

/// Whole numbers that every type has, and that a sum with nothing keeps.
fn values(n: usize) -> Vec<f64> {
    (0..n).map(|i| (i * 7 % 16) as f64).collect()
}

/// The share of elements that differ from `expected`.
fn wrong(device: &dyn Backend, found: &Tensor, expected: &[f64]) -> f64 {
    let found = device.download(found).to_f64();
    if found.len() != expected.len() {
        return 1.0;
    }
    found.iter().zip(expected).filter(|(a, b)| a != b).count() as f64 / expected.len() as f64
}

pub(crate) fn part() -> Vec<Row> {
    let library = match Nccl::found() {
        Ok(library) => library,
        Err(error) => return vec![Row::new("no NCCL library", json!({ "why": error.to_string() }))],
    };
    let gpu = gpu();
    let device: &dyn Backend = gpu.as_ref();
    let joined = Nccl::unique_id().and_then(|id| Nccl::join(&gpu, &id, 0, 1));
    let group = joined.unwrap_or_else(|error| panic!("{error}"));
    let mut rows = vec![Row::new(library, json!({ "ranks": group.size() }))];

    let [n, width] = [1000, 24];
    let expected = values(n * width);
    for dtype in [DType::F32, DType::F64, DType::Bf16, DType::E4m3, DType::U32] {
        let mut x = device.upload(&Tensor::new([n, width], &expected).cast(dtype));
        let mut results =
            vec![("all_gather", group.all_gather(&x).wait()), ("all_to_all", group.all_to_all(&x, &[n], &[n]).wait())];
        if dtype != DType::E4m3 {
            results.push(("reduce_scatter", group.reduce_scatter(&x, Reduce::Sum).wait()));
            group.all_reduce(&mut x, Reduce::Max);
            results.push(("all_reduce", x));
        }
        for (what, result) in results {
            rows.push(Row::check(format!("{what}, {dtype:?}"), wrong(device, &result, &expected), 0.0));
        }
    }

    // A world of one reduces nothing in place, so an all-reduce shows what a call costs and no more.
    let (bytes, width) = (scaled(1 << 28), 1 << 10);
    let mut x = device.zeros([bytes / 4 / width, width], DType::F32);
    let (n, bytes) = (x.rows(), (4 * x.len()) as f64);
    let mib = bytes / (1 << 20) as f64;
    let mut copies = |what: &str, time: f64| {
        let figures = json!({ "ms": 1e3 * time, "gb_per_second": 2.0 * bytes / time / 1e9 });
        rows.push(Row::new(format!("{what} of {mib:.0} MiB"), figures));
    };
    copies("all_gather", seconds(&gpu, || drop(group.all_gather(&x).wait())));
    copies("all_to_all", seconds(&gpu, || drop(group.all_to_all(&x, &[n], &[n]).wait())));
    let time = seconds(&gpu, || group.all_reduce(&mut x, Reduce::Sum));
    rows.push(Row::new(format!("all_reduce of {mib:.0} MiB, in place"), json!({ "us": 1e6 * time })));
    rows
}
