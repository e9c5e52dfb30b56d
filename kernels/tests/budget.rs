//! What each kernel moves, counted by the simulator, beside the least that it must: kept in `docs/kernels.md`.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::cuda::{SOURCES, Source};
use smelt_kernels::fp8::{Quantiser, Role, Tile};
use smelt_kernels::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

/// The rows of the simulated operations, and those of the benchmark model's micro-batch.
const ROWS: usize = 256;
const BENCHMARK_ROWS: f64 = 16_384.0;
/// Of an H100 SXM, per second: bytes of memory, and operations of tensor cores in E4M3 and bf16, and in F32 without.
const MEMORY: f64 = 3.35e12;
const E4M3: f64 = 1978.9e12;
const BF16: f64 = 989.4e12;
const F32: f64 = 67e12;
/// Times the least that a kernel may move which memory bounds.
const MOST: f64 = 1.1;
/// Seconds. A kernel that asks for less than memory gives meanwhile is bounded by its launch.
const LAUNCH: f64 = 1e-6;

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

/// FLOPs for each byte of operands and result of the benchmark model's products of experts (3,072 rows each, gate and
/// up), and of its attention (a document of 4,096 rows, one head; decoding, 16 heads that share latents); and the
/// operations per second that are possible. None for kernels that multiply no matrices.
fn arithmetic(kernel: &str) -> Option<(f64, f64)> {
    let product = |[m, n, k]: [f64; 3], bytes: f64| 2.0 * m * n * k / (bytes * (m * k + k * n) + 4.0 * m * n);
    let (forward, gradient) = ([3072.0, 1536.0, 2048.0], [1536.0, 2048.0, 3072.0]);
    let pairs = 4096.0 * 4097.0 / 2.0;
    // queries, keys and values of `bytes`, and an F32 result, and as many products of so many elements per pair
    let attention =
        |[qk, v]: [f64; 2], bytes: f64| 2.0 * pairs * (qk + v) / (4096.0 * (bytes * (2.0 * qk + v) + 4.0 * v));
    let starts = |with: &str| kernel.starts_with(with);
    Some(match kernel {
        "attention_latent" => (2.0 * 16.0 * (576.0 + 512.0) / (4.0 * 576.0), F32),
        "gemm" | "grouped_gemm" => (product(forward, 4.0), F32),
        "grouped_gradient" => (product(gradient, 4.0), F32),
        "attention_forward" | "attention_dq" | "attention_dkv" => (attention([192.0, 128.0], 4.0), F32),
        "any_fp8_gemm" => (product(forward, 1.0), F32),
        "any_fp8_gradient" => (product(gradient, 1.0), F32),
        "any_bf16_gemm" => (product(forward, 2.0), F32),
        "any_bf16_gradient" => (product(gradient, 2.0), F32),
        _ if starts("fp8_gemm") => (product(forward, 1.0), E4M3),
        _ if starts("fp8_gradient") => (product(gradient, 1.0), E4M3),
        _ if starts("bf16_gemm") => (product(forward, 2.0), BF16),
        _ if starts("bf16_gradient") => (product(gradient, 2.0), BF16),
        _ if ["flash_forward_", "flash_keys_", "flash_queries_"].into_iter().any(starts) => {
            let mut widths = kernel.rsplit('_').map(|width| width.parse::<f64>().expect("a width"));
            let [v, qk] = [(); 2].map(|()| widths.next().expect("a flash kernel is named by its widths"));
            (attention([qk, v], 2.0), BF16)
        }
        _ => return None,
    })
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
    let rows = gpu.dispatch(&x, &routing);
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

/// What else a training step does to rows: the benchmark model's routing, rotation, embedding, output projection.
fn rest_of_a_step(gpu: &dyn Backend) {
    let (n, d, e, v) = (ROWS, 512, 32, 2048);
    let router = Router { experts: e, expert_groups: 4, node_limit: 2, top_k: 6, normalise: true, scale: 2.5 };
    let mut bias = gpu.zeros([e], DType::F32);
    let routing = gpu.route(&router, &gpu.upload(&noise(1, &[n, e])), &bias);
    let documents = Documents::new(gpu, DocumentBounds::of_lengths(&[n]));
    let mut loss = gpu.zeros([1], DType::F64);
    for counted in [Counted::Scores, Counted::Routes] {
        let dscores = gpu.balance(&router, &routing, counted, Some(&documents), 0.3, &mut loss);
        gpu.route_backward(&router, &routing, &gpu.upload(&noise(2, &[n, 6])), Some(&dscores));
    }
    let mut counts = gpu.zeros([e], DType::U32);
    gpu.count(&routing.segments, &mut counts);
    gpu.balance_bias(&mut bias, &counts, 1e-3);
    let rope = Rope::new(&[0.9; 32], n, 1.0, true).on(gpu);
    let positions = gpu.ids(&(0..n as u32).collect::<Vec<_>>());
    gpu.rope(&mut gpu.upload(&noise(3, &[n, 16 * 192])), 16, 128, &rope, &positions, false);
    let mut x = gpu.upload(&noise(4, &[n, d]));
    let mut of_bias = gpu.zeros([d], DType::F32);
    gpu.bias_backward(&x, &mut of_bias);
    gpu.bias(&mut x, &of_bias);
    let ids: Vec<u32> = (0..n as u64).map(|i| random::below(5, 1, i, v as u64) as u32).collect();
    let (ids, w) = (gpu.ids(&ids), gpu.upload(&noise(6, &[v, d])));
    let mut dw = gpu.zeros([v, d], DType::F32);
    gpu.embedding(&ids, &w);
    gpu.embedding_backward(&ids, &x, &mut dw);
    let head = gpu.head(&x, &w, &ids);
    let numbers = gpu.numbers(&vec![0.5; n]);
    gpu.head_backward(head, &x, &w, &ids, &numbers, &numbers, &mut dw);
    let mut all = gpu.collect(&[&numbers, &numbers]);
    gpu.add(&mut gpu.copy(&numbers), &numbers);
    gpu.scale(&mut all, 0.5, 1.0);
    gpu.clip(&numbers, 1.0);
}

/// The shapes for which the tensor cores have other kernels, and operands by other tiles.
fn other_shapes(gpu: &dyn Backend) {
    let n = ROWS;
    let mut flag = gpu.zeros([1], DType::U32);
    let [x, dy] = [1, 2].map(|seed| gpu.upload(&noise(seed, &[n, 256])));
    let lower = |x: &Tensor, tile: Option<Tile>, flag: &mut Tensor| {
        let how = tile.map(|tile| Quantiser { tile, role: Role::Activation, power_of_two: false });
        gpu.lower(x, how, None, flag)
    };
    for (row, column) in [(None, None), (Some(Tile::Row), Some(Tile::Column)), (Some(Tile::Block), Some(Tile::Block))]
        .into_iter()
        .chain([(Some(Tile::Tensor), Some(Tile::Tensor))])
    {
        let mut w = gpu.upload(&noise(3, &[256, 256]));
        let a = lower(&x, row, &mut flag);
        for layout in [Layout::Nt, Layout::Nn] {
            gpu.low_gemm(layout, &a, &w, None, &mut gpu.zeros([n, 256], DType::F32), Write::Set);
        }
        let (dy, x) = (lower(&dy, column, &mut flag), lower(&x, column, &mut flag));
        gpu.low_gradient(&dy, &x, None, &mut w, Write::Set);
    }
    // the other way, in tiles of 256 columns
    let (x, w) = (gpu.upload(&noise(4, &[n, 128])), gpu.upload(&noise(5, &[128, 2048])));
    let a = lower(&x, None, &mut flag);
    gpu.low_gemm(Layout::Nn, &a, &w, None, &mut gpu.zeros([n, 2048], DType::F32), Write::Set);
    // odd widths, which the tensor cores do not have
    let [x, dy] = [(6, 131), (7, 64)].map(|(seed, cols)| gpu.upload(&noise(seed, &[n, cols])));
    for (row, column) in [(None, None), (Some(Tile::Row), Some(Tile::Column))] {
        let mut w = gpu.upload(&noise(8, &[64, 131]));
        let a = lower(&dy, row, &mut flag);
        gpu.low_gemm(Layout::Nn, &a, &w, None, &mut gpu.zeros([n, 131], DType::F32), Write::Set);
        let (dy, x) = (lower(&dy, column, &mut flag), lower(&x, column, &mut flag));
        gpu.low_gradient(&dy, &x, None, &mut w, Write::Set);
    }
    let documents = Documents::new(gpu, DocumentBounds::of_lengths(&[n]));
    for dim in [64, 128] {
        let s = GroupedShape { heads: 2, kv_heads: 1, dim, scale: 0.1 };
        let [q, k, v] = [2 * dim, dim, dim].map(|cols| gpu.upload(&noise(9, &[n, cols])));
        let (o, softmax) = gpu.grouped_attention(&s, &q, &k, &v, &documents);
        gpu.grouped_attention_backward(&s, &q, &k, &v, &o, &softmax, &q, &documents);
    }
}

/// In full precision, and generation.
fn in_f32(gpu: &dyn Backend) {
    let (n, d) = (64, 128);
    let [x, w] = [1, 2].map(|seed| gpu.upload(&noise(seed, &[n, d])));
    gpu.gemm(Layout::Nt, &x, &w, &mut gpu.zeros([n, n], DType::F32), Write::Set);
    let segments = Segments::of_counts(&[n]).on(gpu);
    let experts = gpu.upload(&noise(3, &[1, d, d]));
    let mut y = gpu.zeros([n, d], DType::F32);
    gpu.grouped_gemm(Layout::Nt, &x, &experts, &segments, &mut y, Write::Set);
    gpu.grouped_gradient(&y, &x, &segments, &mut gpu.zeros([1, d, d], DType::F32), Write::Set);
    let documents = Documents::new(gpu, DocumentBounds::of_lengths(&[n]));
    let s = AttentionShape { heads: 2, nope: 32, rope: 16, value: 32, scale: 0.1 };
    let [q, kv, k_rope] = [2 * 48, 2 * 64, 16].map(|cols| gpu.upload(&noise(4, &[n, cols])));
    let (o, softmax) = gpu.attention(&s, &q, &kv, &k_rope, &documents);
    gpu.attention_backward(&s, &q, &kv, &k_rope, &o, &softmax, &gpu.copy(&o), &documents);
    let (ids, numbers) = (gpu.ids(&vec![1; n]), gpu.numbers(&vec![0.5; n]));
    let wide = gpu.upload(&noise(5, &[2048, d]));
    let head = gpu.head(&x, &wide, &ids);
    gpu.head_backward(head, &x, &wide, &ids, &numbers, &numbers, &mut gpu.zeros([2048, d], DType::F32));
    let s = GroupedShape { heads: 8, kv_heads: 2, dim: 64, scale: 0.1 };
    let pages = [1, 2].map(|seed| gpu.upload(&noise(seed, &[128, 2 * 2 * 64])));
    let request = CachedRows { rows: 0..1, pages: &pages, length: 256 };
    gpu.cached_attention(&s, &gpu.upload(&noise(6, &[1, 8 * 64])), &[request]);
    let s = AttentionShape { heads: 16, nope: 32, rope: 16, value: 32, scale: 0.1 };
    let pages = [1, 2].map(|seed| gpu.upload(&noise(seed, &[128, 128 + 16])));
    let request = CachedRows { rows: 0..1, pages: &pages, length: 256 };
    let (q, kv_b) = (gpu.upload(&noise(6, &[1, 16 * 48])), gpu.upload(&noise(7, &[16 * 64, 128])));
    gpu.latent_attention(&s, &q, &kv_b, &[request]);
    let draws = [0, 1].map(|row| Draw { row, temperature: 1.0, top_p: 1.0, top_k: 0, seed: 1, place: 1 });
    gpu.draw(&gpu.upload(&noise(7, &[2, 2048])), &draws);
    gpu.cast(&x, DType::Bf16);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn the_budget_of_each_kernel_is_kept() {
    simulator::gpu();
    let gpu = Cuda::new(0).expect("the simulated GPU opens").in_low_precision();
    let before = counts();
    step(&gpu);
    rest_of_a_step(&gpu);
    other_shapes(&gpu);
    in_f32(simulator::gpu().as_ref());
    gpu.wait();
    simulator::gpu().wait();
    let mut table = String::from(
        "| kernel | bytes asked for | bytes touched | ratio | FLOPs of tensor cores | FLOPs per byte | bounded by | \
         µs of memory for 16,384 rows |\n|---|---|---|---|---|---|---|---|\n",
    );
    let mut missing: Vec<&str> = SOURCES.iter().flat_map(Source::kernels).map(|(name, _)| name).collect();
    let mut wrong = Vec::new();
    for (kernel, after) in counts() {
        let start = before.get(&kernel).copied().unwrap_or_default();
        let (moved, least, flops) = (after.moved - start.moved, after.least - start.least, after.flops - start.flops);
        if least == 0 {
            continue;
        }
        missing.retain(|name| *name != kernel);
        let ratio = moved as f64 / least as f64;
        let seconds = |bytes: u64| bytes as f64 * BENCHMARK_ROWS / ROWS as f64 / MEMORY;
        let work = arithmetic(&kernel);
        let bound = match work {
            Some((intensity, peak)) if intensity >= peak / MEMORY => "arithmetic",
            _ if seconds(moved) < LAUNCH => "launch",
            _ => "memory",
        };
        let intensity = work.map_or_else(String::new, |(intensity, _)| format!("{intensity:.0}"));
        let micros = seconds(least) * 1e6;
        writeln!(
            table,
            "| `{kernel}` | {moved} | {least} | {ratio:.2} | {flops} | {intensity} | {bound} | {micros:.1} |"
        )
        .unwrap();
        if bound == "memory" && ratio > MOST {
            wrong.push(format!("`{kernel}` moves {ratio:.2} times the least, bounded by {bound}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{table}");
    assert!(missing.is_empty(), "no budget of {missing:?}");
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
