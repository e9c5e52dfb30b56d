//! What each kernel moves, counted by the simulator, beside the least that it must: kept in `docs/kernels.md`.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::fp8::{Quantiser, Role, Tile};
use smelt_kernels::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

/// Kernels that read and write each byte once: memory alone bounds them.
const STREAMS: [&str; 13] = [
    "add",
    "adamw",
    "adamw_fp8",
    "average",
    "quantise_both",
    "quantise_columns",
    "quantise_gated",
    "quantise_gated_gradient",
    "quantise_rows",
    "scale",
    "square_sum_partial",
    "swiglu",
    "swiglu_backward",
];
/// The rows of the simulated operations, and those of the benchmark model's micro-batch.
const ROWS: usize = 256;
const BENCHMARK_ROWS: f64 = 16_384.0;
/// Of an H100 SXM, bytes and FP8 operations per second.
const MEMORY: f64 = 3.35e12;

/// What the driver counted of one kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    moved: u64,
    least: u64,
    flops: u64,
}

fn counts() -> BTreeMap<String, Count> {
    let report = simulator::report();
    let (_, kernels) = report.split_once("\"kernels\": {").expect("the report has kernels");
    let line = |line: &str| {
        let (name, rest) = line.trim().trim_start_matches('"').split_once("\": {")?;
        let number = |key: &str| -> Option<u64> {
            let (_, rest) = rest.split_once(&format!("\"{key}\": "))?;
            rest.split([',', '}']).next()?.parse().ok()
        };
        let count = Count {
            moved: number("read")? + number("written")?,
            least: number("distinct_read")? + number("distinct_written")?,
            flops: number("flops")?,
        };
        Some((name.to_owned(), count))
    };
    kernels.lines().filter_map(line).collect()
}

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::new(shape, &(0..n).map(|i| random::normal(seed, 1, i as u64) as f32).collect::<Vec<_>>())
}

/// The operations of a training step, each once, on rows as wide as 512.
fn step(gpu: &dyn Backend) {
    let (n, d, e) = (ROWS, 512, 8);
    let [x, dy] = [1, 2].map(|seed| gpu.upload(&noise(seed, &[n, d])));
    let gain = gpu.upload(&noise(3, &[d]));
    let (_, rstd) = gpu.rms_norm(&x, &gain, 1e-6);
    gpu.rms_norm_backward_add(&x, &rstd, &gain, &dy, &mut gpu.zeros([d], DType::F32), &gpu.copy(&dy));
    gpu.add_rms_norm(&mut gpu.copy(&x), &dy, &gain, 1e-6);
    let h = gpu.join(&x, &dy);
    let act = gpu.swiglu(&h);
    gpu.swiglu_backward(&h, &act);
    let mut y = gpu.copy(&x);
    gpu.add(&mut y, &dy);
    gpu.scale(&mut y, 0.5, 1.0);
    gpu.average(&mut y, &x, 0.9);
    gpu.square_sum(&y, &mut gpu.zeros([1], DType::F64));
    let router = Router { experts: e, expert_groups: 4, node_limit: 2, top_k: 2, normalise: true, scale: 2.5 };
    let routing = gpu.route(&router, &gpu.upload(&noise(4, &[n, e])), &gpu.zeros([e], DType::F32));
    let rows = gpu.gather(&x, &routing.tokens);
    gpu.combine(&rows, &routing, &mut y);
    gpu.combine_backward(&rows, &routing, &dy);
    gpu.gather_backward(&rows, &routing.slots, &mut y);
    let mut w = gpu.upload(&noise(5, &[e, 256, d]));
    let mut flag = gpu.zeros([1], DType::U32);
    let lower = |x: &Tensor, tile: Option<Tile>, flag: &mut Tensor| {
        let how = tile.map(|tile| Quantiser { tile, role: Role::Activation, power_of_two: false });
        gpu.lower(x, how, Some(&routing.segments), flag)
    };
    let both = [Tile::Row, Tile::Column].map(|tile| Quantiser { tile, role: Role::Gradient, power_of_two: false });
    gpu.lower_both(&rows, both, Some(&routing.segments), &mut flag);
    gpu.swiglu_lower(&h, both, None, &mut flag);
    gpu.swiglu_backward_lower(&h, &act, both, None, &mut flag);
    let mut c = gpu.zeros([2 * n, 256], DType::F32);
    for (row, column) in [(None, None), (Some(Tile::Row), Some(Tile::Column))] {
        let a = lower(&rows, row, &mut flag);
        gpu.low_gemm(Layout::Nt, &a, &w, Some(&routing.segments), &mut c, Write::Set);
        let (dy, x) = (lower(&c, column, &mut flag), lower(&rows, column, &mut flag));
        gpu.low_gradient(&dy, &x, Some(&routing.segments), &mut gpu.zeros([e, 256, d], DType::F32), Write::Set);
    }
    let s = AttentionShape { heads: 2, nope: 128, rope: 64, value: 128, scale: 0.07 };
    let documents = Documents::new(gpu, DocumentBounds::of_lengths(&[n]));
    let [q, kv, k_rope] = [2 * 192, 2 * 256, 64].map(|cols| gpu.upload(&noise(6, &[n, cols])));
    let (o, softmax) = gpu.attention(&s, &q, &kv, &k_rope, &documents);
    let d_o = gpu.copy(&o);
    gpu.attention_backward(&s, &q, &kv, &k_rope, &o, &softmax, &d_o, &documents);
    let (mut m, mut v) = (gpu.zeros([n, d], DType::Bf16), gpu.zeros([n, d], DType::Bf16));
    let hyper = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step: 1 };
    gpu.adamw(&hyper, &mut y, &dy, &gpu.numbers(&[1.0]), &mut m, &mut v);
    let dw = gpu.copy(&w);
    let [mut m, mut v] = [(); 2].map(|_| gpu.zeros(w.shape(), DType::Bf16));
    gpu.adamw(&hyper, &mut w, &dw, &gpu.numbers(&[1.0]), &mut m, &mut v); // also writes its FP8 forms
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn the_budget_of_each_kernel_is_kept() {
    simulator::gpu();
    let gpu = Cuda::new(0).expect("the simulated GPU opens").in_low_precision();
    let before = counts();
    step(&gpu);
    gpu.wait();
    let mut table = String::from(
        "| kernel | bytes asked for | bytes touched | ratio | FLOPs of tensor cores | µs of memory for 16,384 rows |\n\
         |---|---|---|---|---|---|\n",
    );
    for (kernel, after) in counts() {
        let start = before.get(&kernel).copied().unwrap_or_default();
        let (moved, least, flops) = (after.moved - start.moved, after.least - start.least, after.flops - start.flops);
        if least == 0 {
            continue;
        }
        let ratio = moved as f64 / least as f64;
        let micros = least as f64 * BENCHMARK_ROWS / ROWS as f64 / MEMORY * 1e6;
        writeln!(table, "| `{kernel}` | {moved} | {least} | {ratio:.2} | {flops} | {micros:.1} |").unwrap();
        assert!(!STREAMS.contains(&kernel.as_str()) || ratio <= 1.1, "`{kernel}` moves {ratio:.2} times the least");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kernels.md");
    let page = fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- table of budgets -->\n", "<!-- end of the budgets -->");
    let (head, rest) = page.split_once(start).expect("docs/kernels.md has the budgets");
    let (kept, tail) = rest.split_once(end).expect("docs/kernels.md has their end");
    if env::var_os("SMELT_BLESS").is_some() {
        fs::write(&path, format!("{head}{start}{table}{end}{tail}")).unwrap();
    } else {
        assert!(kept == table, "docs/kernels.md has other budgets; SMELT_BLESS=1 writes them anew\n{table}");
    }
}
