//! `smelt bench gpu`: one command for the day a GPU is there. Correctness first, then times; each part in a process of
//! its own, because a kernel that fails ends its process, and the results are written as they come.

use crate::models::find;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use smelt_kernels::fp8::{Operand, Quantiser, Role, Tile};
use smelt_kernels::*;
use smelt_model::{Batch, Config, Fp8, Init, Model, Precision, Recomputed};
use smelt_train::{Decay, Hyper, Moments, NextToken, Schedule, Settings, Trainer};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

/// One part, with the seconds it may take.
struct Part {
    name: &'static str,
    seconds: u64,
    run: fn() -> Vec<Row>,
}

/// In order of value: what comes first is still there when the time is over.
const PARTS: [Part; 18] = [
    Part { name: "device", seconds: 20, run: device },
    Part { name: "products_right", seconds: 90, run: products_right },
    Part { name: "attention_right", seconds: 60, run: attention_right },
    Part { name: "rows_right", seconds: 60, run: rows_right },
    Part { name: "operations_right", seconds: 90, run: crate::operations::right },
    Part { name: "train_20m", seconds: 120, run: train_20m },
    Part { name: "resume", seconds: 60, run: resume },
    Part { name: "graphs", seconds: 60, run: crate::choices::graphs },
    Part { name: "nccl", seconds: 60, run: crate::nccl::part },
    Part { name: "compiler", seconds: 60, run: crate::compiler::part },
    Part { name: "copy_speed", seconds: 30, run: copy_speed },
    Part { name: "products_speed", seconds: 60, run: products_speed },
    Part { name: "cublaslt", seconds: 40, run: crate::choices::cublaslt },
    Part { name: "attention_speed", seconds: 40, run: attention_speed },
    Part { name: "rows_speed", seconds: 40, run: rows_speed },
    Part { name: "benchmark_model", seconds: 150, run: crate::whole::benchmark_model },
    Part { name: "generation", seconds: 60, run: generation },
    Part { name: "operations_compiled", seconds: 90, run: crate::compiler::operations },
];

/// Whether sizes are those of a test of this command, in which a simulator can compute it.
static IS_SMALL: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_small() -> bool {
    IS_SMALL.load(Ordering::Relaxed)
}

/// A size, or a small one.
pub(crate) fn scaled(size: usize) -> usize {
    if is_small() { (size / 32).next_multiple_of(2).max(20) } else { size }
}

/// How often something is done.
pub(crate) fn times(count: u64) -> u64 {
    if is_small() { 1.max(count / 16) } else { count }
}

/// One line of the results: what was measured, the figures, and whether a check holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_right: Option<bool>,
    figures: Map<String, Value>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, figures: Value) -> Self {
        let Value::Object(figures) = figures else { unreachable!("figures are an object") };
        Self { what: what.into(), is_right: None, figures }
    }

    /// A check that a distance is at most `most`.
    pub(crate) fn check(what: impl Into<String>, distance: f64, most: f64) -> Self {
        let row = Self::new(what, json!({ "distance": distance, "most": most }));
        Self { is_right: Some(distance <= most), ..row }
    }

    /// A check that holds.
    pub(crate) fn right(what: impl Into<String>, figures: Value) -> Self {
        Self { is_right: Some(true), ..Self::new(what, figures) }
    }

    /// A check that does not hold, or did not come to an end.
    pub(crate) fn wrong(what: impl Into<String>, figures: Value) -> Self {
        Self { is_right: Some(false), ..Self::new(what, figures) }
    }

    fn line(&self) -> String {
        let verdict = match self.is_right {
            None => "     ",
            Some(true) => "right",
            Some(false) => "WRONG",
        };
        let figure = |(name, value): (&String, &Value)| match value.as_f64() {
            Some(x) if x != 0.0 && (x.abs() < 1e-2 || x.abs() >= 1e6) => format!("{name} {x:.3e}"),
            Some(x) => format!("{name} {x:.3}"),
            None => format!("{name} {}", value.to_string().trim_matches('"')),
        };
        format!("  {verdict}  {:<44} {}", self.what, self.figures.iter().map(figure).collect::<Vec<_>>().join("  "))
    }
}

/// Runs one part in this process, and prints its rows as JSON.
pub(crate) fn run_part(name: &str, from: usize, is_small: bool) -> i32 {
    IS_SMALL.store(is_small, Ordering::Relaxed);
    crate::operations::FIRST.store(from, Ordering::Relaxed);
    let Some(part) = PARTS.iter().find(|part| part.name == name) else {
        eprintln!("error: `{name}` is no part of `smelt bench gpu`");
        return 2;
    };
    std::panic::set_hook(Box::new(|info| match DeviceError::of_panic(info.payload()) {
        Some(error) => eprintln!("{error}"),
        None => eprintln!("{info}"),
    }));
    let Ok(rows) = std::panic::catch_unwind(part.run) else { return 4 };
    println!("{}", serde_json::to_string(&rows).expect("rows are plain data"));
    0
}

/// Runs all parts, each in a process of its own, for at most `seconds` in all; writes `out` after each. Whether all
/// that was checked is right.
pub(crate) fn run(out: &Path, seconds: u64, is_small: bool) -> io::Result<bool> {
    let (begun, mut all, mut is_right) = (Instant::now(), Map::new(), true);
    for part in &PARTS {
        let left = Duration::from_secs(seconds).saturating_sub(begun.elapsed());
        let started = Instant::now();
        println!("{}", part.name);
        let result = match left.is_zero() {
            true => Err("not reached: the time is over".to_owned()),
            false => apart(part.name, left.min(Duration::from_secs(part.seconds)), is_small)?,
        };
        let value = match result {
            Ok(rows) => {
                rows.iter().for_each(|row| println!("{}", row.line()));
                is_right &= rows.iter().all(|row| row.is_right != Some(false));
                json!({ "rows": rows, "seconds": started.elapsed().as_secs_f64() })
            }
            Err(error) => {
                println!("  FAILED  {error}");
                is_right = false;
                json!({ "error": error, "seconds": started.elapsed().as_secs_f64() })
            }
        };
        all.insert(part.name.into(), value);
        let (text, beside) = (serde_json::to_vec_pretty(&all)?, out.with_extension("part"));
        fs::write(&beside, text)?;
        fs::rename(&beside, out)?;
    }
    println!("{} after {:.0} s", out.display(), begun.elapsed().as_secs_f64());
    Ok(is_right)
}

/// The rows of a part that a process of its own computes, or how it ended.
fn apart(name: &str, limit: Duration, is_small: bool) -> io::Result<Result<Vec<Row>, String>> {
    let said = env::temp_dir().join(format!("smelt-bench-{}-{name}", std::process::id()));
    let file = fs::File::create(&said)?;
    let mut child = Command::new(env::current_exe()?)
        .args(["--gpu-part", name])
        .args(is_small.then_some("--small"))
        .stdout(file.try_clone()?)
        .stderr(Stdio::from(file))
        .spawn()?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if begun.elapsed() > limit => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let text = fs::read_to_string(&said).unwrap_or_default();
    fs::remove_file(&said)?;
    let last = text.lines().last().unwrap_or_default();
    Ok(match status {
        None => Err(format!("ended after {:.0} s: {last}", limit.as_secs_f64())),
        Some(status) if status.success() => serde_json::from_str(last).map_err(|e| format!("{e}: {text}")),
        Some(status) => Err(format!("{status}: {}", text.trim())),
    })
}

pub(crate) fn in_full_precision() -> Cuda {
    Cuda::new(0).unwrap_or_else(|e| {
        eprintln!("error: {e}\nhint: {}", e.hint());
        std::process::exit(6)
    })
}

pub(crate) fn opened() -> Cuda {
    in_full_precision().in_low_precision()
}

pub(crate) fn gpu() -> Arc<Cuda> {
    Arc::new(opened())
}

fn device() -> Vec<Row> {
    let gpu = gpu();
    let kernels = cuda::kernels_of(gpu.found()).unwrap_or_else(|e| e.to_string());
    let (count, smelt) = (gpu.found().multiprocessors, env!("CARGO_PKG_VERSION"));
    let [nccl, cublaslt] =
        [collective::Nccl::found().map_err(|e| e.to_string()), { Cuda::cublaslt().map_err(|e| e.to_string()) }]
            .map(|found| found.unwrap_or_else(|e| format!("none: {e}")));
    // the driver's own tool, where it is: clocks decide what times are worth
    let asked = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu";
    let said = Command::new("nvidia-smi").args([asked, "--format=csv"]).output();
    let clocks = said.map_or_else(|e| e.to_string(), |said| String::from_utf8_lossy(&said.stdout).trim().into());
    vec![
        Row::new(gpu.found().to_string(), json!({ "multiprocessors": count, "kernels": kernels, "smelt": smelt })),
        Row::new("libraries", json!({ "nccl": nccl, "cublaslt": cublaslt })),
        Row::new("nvidia-smi", json!({ "says": clocks })),
    ]
}

pub(crate) fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    // a permuted period of 2¹⁶ normals: drawing 10⁸ of them anew would take longer than the products
    let period: Vec<f32> = (0..1 << 16).map(|i| random::normal(seed, 1, i) as f32).collect();
    let values: Vec<f32> = (0..n).map(|i| period[(i.wrapping_mul(0x9e37_79b1) >> 7) & 0xffff]).collect();
    Tensor::new(shape, &values)
}

/// ‖a − b‖ / ‖b‖; infinite if a holds a NaN.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (mut off, mut size) = (0.0, 0.0);
    for (a, b) in a.to_f64().into_iter().zip(b.to_f64()) {
        off += (a - b) * (a - b);
        size += b * b;
    }
    let distance = (off / size).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// bf16, or FP8 by tiles.
pub(crate) fn lowered(device: &dyn Backend, x: &Tensor, tile: Option<Tile>, segments: Option<&Segments>) -> Operand {
    let how = tile.map(|tile| Quantiser { tile, role: Role::Activation, power_of_two: false });
    device.lower(&device.upload(x), how, segments, &mut device.zeros([1], DType::U32))
}

/// Rows of each of `experts` experts, uneven and some empty.
fn uneven(rows: usize, experts: usize) -> Segments {
    let mut counts: Vec<usize> =
        (0..experts).map(|e| if e % 5 == 3 { 0 } else { rows / experts / 2 + 7 * e }).collect();
    let rest = rows - counts.iter().sum::<usize>().min(rows);
    counts[0] += rest;
    Segments::of_counts(&counts)
}

/// Products against the CPU's, whose operands have the same bytes: exact products, summed in another order.
fn products_right() -> Vec<Row> {
    let (gpu, cpu) = (gpu(), Cpu::new(0));
    let mut rows = Vec::new();
    for (what, segments, out, inner) in [
        ("dense", None, scaled(1536), scaled(2048)),
        ("ragged", None, 250, scaled(900)),
        ("experts", Some(uneven(scaled(4096), scaled(32))), scaled(1536), scaled(2048)),
        ("experts, down", Some(uneven(scaled(4096), scaled(32))), scaled(2048), scaled(768)),
    ] {
        let n = segments.as_ref().map_or(scaled(1000), Segments::rows);
        let w = match &segments {
            Some(segments) => noise(2, &[segments.count(), out, inner]),
            None => noise(2, &[out, inner]),
        };
        let on_gpu = segments.as_ref().map(|segments| segments.on(gpu.as_ref()));
        let sides: [(&dyn Backend, Option<&Segments>); 2] =
            [(gpu.as_ref(), on_gpu.as_ref()), (&cpu, segments.as_ref())];
        for (precision, row, column) in [("bf16", None, None), ("fp8", Some(Tile::Row), Some(Tile::Column))] {
            for (layout, k, cols) in [(Layout::Nt, inner, out), (Layout::Nn, out, inner)] {
                let x = noise(1, &[n, k]);
                let [found, expected] = sides.map(|(device, segments)| {
                    let (a, mut c) = (lowered(device, &x, row, segments), device.empty([n, cols].into(), DType::F32));
                    device.fill(&mut c, f64::NAN);
                    device.low_gemm(layout, &a, &device.upload(&w), segments, &mut c, Write::Set);
                    device.download(&c)
                });
                rows.push(Row::check(format!("{precision} {what} {layout:?}"), distance(&found, &expected), 4e-3));
            }
            let (dy, x) = (noise(3, &[n, out]), noise(4, &[n, inner]));
            let [found, expected] = sides.map(|(device, segments)| {
                let (dy, x) = (lowered(device, &dy, column, segments), lowered(device, &x, column, segments));
                let mut dw = device.empty(w.shape(), DType::F32);
                device.fill(&mut dw, f64::NAN);
                device.low_gradient(&dy, &x, segments, &mut dw, Write::Set);
                device.download(&dw)
            });
            rows.push(Row::check(format!("{precision} {what} weight gradient"), distance(&found, &expected), 4e-3));
        }
    }
    rows
}

const LATENT: AttentionShape = AttentionShape { heads: 4, nope: 128, rope: 64, value: 128, scale: 0.0722 };

fn attention_right() -> Vec<Row> {
    let (gpu, cpu) = (gpu(), Cpu::new(0));
    let (s, bounds) = (LATENT, DocumentBounds::of_lengths(&[scaled(700), 1, scaled(130), scaled(193)]));
    let n = bounds.rows();
    let inputs = [4 * 192, 4 * 256, 64, 4 * 128].map(|cols| noise(cols as u64, &[n, cols]));
    let [found, expected] = [gpu.as_ref() as &dyn Backend, &cpu].map(|device| {
        let [q, kv, k_rope, d_o] = inputs.each_ref().map(|x| device.upload(x));
        let documents = Documents::new(device, bounds.clone());
        let (o, softmax) = device.attention(&s, &q, &kv, &k_rope, &documents);
        let (dq, dkv, d_rope) = device.attention_backward(&s, &q, &kv, &k_rope, &o, &softmax, &d_o, &documents);
        [o, dq, dkv, d_rope].map(|x| device.download(&x))
    });
    let pairs = ["o", "dq", "dkv", "dk_rope"].into_iter().zip(found.iter().zip(&expected));
    let mut rows: Vec<Row> =
        pairs.map(|(name, (a, b))| Row::check(format!("latent attention {name}"), distance(a, b), 1e-2)).collect();
    for dim in [64, 128] {
        let s = GroupedShape { heads: 4, kv_heads: 2, dim, scale: 0.1 };
        let inputs = [4, 2, 2, 4].map(|heads| noise((dim + heads) as u64, &[n, heads * dim]));
        let [found, expected] = [gpu.as_ref() as &dyn Backend, &cpu].map(|device| {
            let [q, k, v, d_o] = inputs.each_ref().map(|x| device.upload(x));
            let documents = Documents::new(device, bounds.clone());
            let (o, softmax) = device.grouped_attention(&s, &q, &k, &v, &documents);
            let (dq, dk, dv) = device.grouped_attention_backward(&s, &q, &k, &v, &o, &softmax, &d_o, &documents);
            [o, dq, dk, dv].map(|x| device.download(&x))
        });
        for (name, (a, b)) in ["o", "dq", "dk", "dv"].into_iter().zip(found.iter().zip(&expected)) {
            rows.push(Row::check(format!("grouped attention of {dim}, {name}"), distance(a, b), 1e-2));
        }
    }
    rows
}

/// Norm, SwiGLU, routing and the optimizer, against the CPU in f32.
fn rows_right() -> Vec<Row> {
    let (gpu, cpu) = (gpu(), Cpu::new(0));
    let (n, d, e) = (scaled(1000), scaled(2048), 32);
    let (x, dy, gain, logits) = (noise(1, &[n, d]), noise(2, &[n, d]), noise(3, &[d]), noise(4, &[n, e]));
    let router = Router { experts: e, expert_groups: 4, node_limit: 2, top_k: 6, normalise: true, scale: 2.5 };
    let [found, expected] = [gpu.as_ref() as &dyn Backend, &cpu].map(|device| {
        let [x, dy, gain, logits] = [&x, &dy, &gain, &logits].map(|x| device.upload(x));
        let (y, rstd) = device.rms_norm(&x, &gain, 1e-6);
        let mut dgain = device.zeros([d], DType::F32);
        let dx = device.rms_norm_backward(&x, &rstd, &gain, &dy, &mut dgain);
        let (gated, bias) = (device.swiglu(&x), device.zeros([e], DType::F32));
        let routing = device.route(&router, &logits, &bias);
        let dispatched = device.dispatch(&x, &routing);
        let mut combined = device.zeros([n, d], DType::F32);
        device.combine(&dispatched, &routing, &mut combined);
        let ids = device.cast(&routing.ids, DType::F32);
        let [mut w, mut m, mut v] = [(); 3].map(|()| device.copy(&x));
        device.fill(&mut v, 1e-4);
        let hyper = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step: 3 };
        device.adamw(&hyper, &mut w, &dy, &device.numbers(&[0.5]), &mut m, &mut v);
        [y, dx, dgain, gated, ids, combined, w].map(|x| device.download(&x))
    });
    let names = ["rms_norm", "rms_norm_backward", "its gain", "swiglu", "route", "combine", "adamw"];
    let pairs = names.into_iter().zip(found.iter().zip(&expected));
    let mut rows: Vec<Row> = pairs.map(|(name, (a, b))| Row::check(name, distance(a, b), 1e-5)).collect();
    rows.extend(fused_right(gpu.as_ref(), n, d.max(512)));
    rows
}

const BOTH: [Quantiser; 2] = [
    Quantiser { tile: Tile::Row, role: Role::Gradient, power_of_two: false },
    Quantiser { tile: Tile::Column, role: Role::Gradient, power_of_two: false },
];

/// Kernels that do two things in one pass, against the two on the same GPU: equal to the bit.
fn fused_right(device: &dyn Backend, n: usize, d: usize) -> Vec<Row> {
    let [x, dy] = [1, 2].map(|seed| device.upload(&noise(seed, &[n, d])));
    let (dy_of_gates, _) = device.split(&dy, dy.cols() / 2);
    let mut flag = device.zeros([1], DType::U32);
    let forward = [device.swiglu_lower(&x, BOTH, None, &mut flag), {
        let act = device.swiglu(&x);
        device.lower_both(&act, BOTH, None, &mut flag)
    }];
    let backward = [device.swiglu_backward_lower(&x, &dy_of_gates, BOTH, None, &mut flag), {
        let dh = device.swiglu_backward(&x, &dy_of_gates);
        device.lower_both(&dh, BOTH, None, &mut flag)
    }];
    let bits = |operands: &[Operand; 2]| -> Vec<f64> {
        let tensors = operands.iter().flat_map(|operand| match operand {
            Operand::Fp8(x) => [&x.q, &x.scale],
            Operand::Plain(_) => unreachable!("lower_both quantises"),
        });
        tensors.flat_map(|x| device.download(x).to_f64()).collect()
    };
    let hyper = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step: 3 };
    let stepped = [true, false].map(|is_low| {
        let [mut w, mut m, mut v] = [(); 3].map(|()| device.copy(&x));
        device.fill(&mut v, 1e-4);
        let a = device.lower(&x, Some(BOTH[0]), None, &mut device.zeros([1], DType::U32));
        let mut c = device.zeros([x.rows(), w.rows()], DType::F32);
        if is_low {
            device.low_gemm(Layout::Nt, &a, &w, None, &mut c, Write::Set);
        }
        device.adamw(&hyper, &mut w, &dy, &device.numbers(&[0.5]), &mut m, &mut v);
        device.low_gemm(Layout::Nt, &a, &w, None, &mut c, Write::Set);
        device.download(&c).to_f64()
    });
    let equal = |name: &str, is_equal: bool| Row::check(name, if is_equal { 0.0 } else { 1.0 }, 0.0);
    vec![
        equal("swiglu quantised, in one pass and in two", bits(&forward[0]) == bits(&forward[1])),
        equal("its gradient", bits(&backward[0]) == bits(&backward[1])),
        equal("adamw that also writes FP8, and FP8 made anew", stepped[0] == stepped[1]),
    ]
}

pub(crate) fn config(fields: Value) -> Config {
    let mut all = json!({ "model_type": "deepseek_v3", "first_k_dense_replace": 1, "n_shared_experts": 1,
        "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 4096 });
    if let (Value::Object(all), Value::Object(fields)) = (&mut all, fields) {
        all.extend(fields);
    }
    Config::from_json(all.to_string().as_bytes()).expect("the sizes are a model")
}

/// About 20M parameters, with the head widths of DeepSeek-V3.
pub(crate) fn small() -> Config {
    if is_small() {
        return config(json!({ "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1,
            "kv_lora_rank": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "intermediate_size": 48 }));
    }
    config(json!({ "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
        "kv_lora_rank": 128, "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 192,
        "intermediate_size": 704 }))
}

pub(crate) fn trainer(
    config: &Config,
    backend: Arc<dyn Backend>,
    precision: Precision,
    recompute: Recomputed,
) -> Trainer {
    let model = Arc::new(Model::new(config.clone()).expect("the sizes are a model").in_precision(precision));
    let params = model.init(&Init { seed: 1, embedding: 0.02, router: 0.02, weight: Some(0.02) });
    let schedule = Schedule::over(1_000, 1e-3, 10, Decay::Constant, 1.0);
    let hyper = Hyper { moments: Moments::Bf16, ..Hyper::default() };
    let settings = Settings { bias_speed: 1e-3, recompute, ..Settings::new(hyper, schedule) };
    Trainer::new(model, params, backend, settings)
}

/// Sequences that can be learnt: each token follows from the one before, with some noise.
pub(crate) fn batch(config: &Config, sequences: usize, context: usize, step: u64) -> Batch {
    let vocabulary = config.vocab_size as u64;
    let sequence = |i: u64| -> Vec<u32> {
        let mut token = random::below(step, 3, i, vocabulary);
        let next = |at: u64| {
            let is_drawn = random::uniform(step, 4 + i, at) < 0.1;
            token = if is_drawn { random::below(step, 5 + i, at, vocabulary) } else { (token * 31 + 7) % 509 };
            token as u32
        };
        (0..=context as u64).map(next).collect()
    };
    let rows: Vec<Vec<u32>> = (0..sequences as u64).map(sequence).collect();
    Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

pub(crate) const NEXT: NextToken = NextToken { mtp_weight: 0.3, z: 0.0 };

pub(crate) fn fp8() -> Precision {
    Precision::Fp8(Fp8::default())
}

/// 50 steps on the CPU in f32, and on the GPU in bf16 and FP8: the loss of FP8 is within 0.25 % of that of bf16
/// (DeepSeek-V3, §3.3).
fn train_20m() -> Vec<Row> {
    let config = small();
    let losses = |backend: Arc<dyn Backend>, precision: Precision| -> (Vec<f64>, f64) {
        let (mut trainer, begun) = (trainer(&config, backend, precision, Recomputed::None), Instant::now());
        let mut step = |at| {
            trainer.step(&[(batch(&config, 8, scaled(256), at), &NEXT as _)]).map_or(f64::NAN, |report| report.loss)
        };
        ((0..times(50)).map(&mut step).collect(), begun.elapsed().as_secs_f64() / times(50) as f64)
    };
    let (bf16, bf16_seconds) = losses(gpu(), Precision::BF16);
    let (fp8, fp8_seconds) = losses(gpu(), fp8());
    let (cpu, cpu_seconds) = losses(Arc::new(Cpu::new(0)), Precision::Fp32);
    let last = |losses: &[f64]| losses[losses.len() - 1];
    let mean = |losses: &[f64]| {
        let tail = &losses[losses.len() - losses.len().min(10)..];
        tail.iter().sum::<f64>() / tail.len() as f64
    };
    let apart = |a: &[f64], b: &[f64]| (mean(a) / mean(b) - 1.0).abs();
    let seconds = json!({ "cpu_fp32": cpu_seconds, "gpu_bf16": bf16_seconds, "gpu_fp8": fp8_seconds });
    vec![
        Row::check("loss of bf16 against the CPU's f32", apart(&bf16, &cpu), 2.5e-3),
        Row::check("loss of fp8 against bf16", apart(&fp8, &bf16), 2.5e-3),
        Row::new(
            "losses of the first and the last step",
            json!({ "cpu": [cpu[0], last(&cpu)], "bf16": [bf16[0], last(&bf16)], "fp8": [fp8[0], last(&fp8)] }),
        ),
        Row::new("seconds per step", seconds),
    ]
}

/// Two runs, and one that goes on from a save, have the same bits.
fn resume() -> Vec<Row> {
    let (config, gpu) = (small(), gpu());
    let start = || trainer(&config, gpu.clone(), fp8(), Recomputed::Light);
    let step = |trainer: &mut Trainer, at| drop(trainer.step(&[(batch(&config, 4, scaled(256), at), &NEXT as _)]));
    let (mut first, mut second, mut third) = (start(), start(), start());
    (0..3).for_each(|at| step(&mut first, at));
    let saved = first.save();
    (3..5).for_each(|at| step(&mut first, at));
    (0..5).for_each(|at| step(&mut second, at));
    let restored = third.restore(&saved);
    (3..5).for_each(|at| step(&mut third, at));
    let bits = first.save();
    let apart = |other: &Trainer| if other.save() == bits { 0.0 } else { 1.0 };
    let of_resume = if restored.is_ok() { apart(&third) } else { f64::INFINITY };
    vec![Row::check("another run", apart(&second), 0.0), Row::check("a run that goes on from a save", of_resume, 0.0)]
}

/// Median seconds of `work`, which only asks the device to compute.
pub(crate) fn seconds(gpu: &Cuda, mut work: impl FnMut()) -> f64 {
    let mut once = |count: u32| {
        gpu.wait();
        let begun = Instant::now();
        (0..count).for_each(|_| work());
        gpu.wait();
        begun.elapsed().as_secs_f64() / f64::from(count)
    };
    let first = once(2);
    let count = (0.02 / first).clamp(1.0, 50.0) as u32;
    let mut times: Vec<f64> = (0..7).map(|_| once(count)).collect();
    times.sort_by(f64::total_cmp);
    times[3]
}

fn copy_speed() -> Vec<Row> {
    let gpu = gpu();
    let device: &dyn Backend = gpu.as_ref();
    let x = device.zeros([1 << if is_small() { 12 } else { 28 }], DType::F32);
    let time = seconds(&gpu, || drop(device.copy(&x)));
    vec![Row::new(
        "copy of 1 GiB",
        json!({ "ms": 1e3 * time, "gb_per_second": 2.0 * 4.0 * x.len() as f64 / time / 1e9 }),
    )]
}

/// The benchmark model's products, at 16,384 tokens: dense, by expert, and weight gradients.
fn products_speed() -> Vec<Row> {
    let gpu = gpu();
    let device: &dyn Backend = gpu.as_ref();
    let mut rows = Vec::new();
    for (what, m, n, k, experts) in [
        ("dense", 8192, 8192, 8192, 1),
        ("q", 16_384, 3072, 2048, 1),
        ("gate and up", 16_384 * 6, 1536, 2048, 32),
        ("down", 16_384 * 6, 2048, 768, 32),
        ("DeepSeek-V3 dense", 4096, 7168, 16_384, 1),
    ] {
        let experts = if experts > 1 { scaled(experts) } else { 1 };
        let (m, n, k) = (scaled(m / experts) * experts, scaled(n), scaled(k));
        let segments = (experts > 1).then(|| Segments::of_counts(&vec![m / experts; experts]).on(device));
        let segments = segments.as_ref();
        let w = if experts > 1 { noise(1, &[experts, n, k]) } else { noise(1, &[n, k]) };
        let (w, x, dy) = (device.upload(&w), noise(2, &[m, k]), noise(3, &[m, n]));
        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        for (precision, row, column) in [("bf16", None, None), ("fp8", Some(Tile::Row), Some(Tile::Column))] {
            let (a, mut c) = (lowered(device, &x, row, segments), device.zeros([m, n], DType::F32));
            let time = seconds(&gpu, || device.low_gemm(Layout::Nt, &a, &w, segments, &mut c, Write::Set));
            let figures = |time: f64| json!({ "shape": [m, n, k], "ms": 1e3 * time, "tflops": flops / time / 1e12 });
            rows.push(Row::new(format!("{precision} {what}"), figures(time)));
            let (dy, x) = (lowered(device, &dy, column, segments), lowered(device, &x, column, segments));
            let mut dw = device.zeros(w.shape(), DType::F32);
            let time = seconds(&gpu, || device.low_gradient(&dy, &x, segments, &mut dw, Write::Set));
            rows.push(Row::new(format!("{precision} {what}, weight gradient"), figures(time)));
        }
    }
    rows
}

fn attention_speed() -> Vec<Row> {
    let gpu = gpu();
    let device: &dyn Backend = gpu.as_ref();
    let (s, length, count) = (AttentionShape { heads: 16, ..LATENT }, scaled(4096), 4);
    let n = length * count;
    let [q, kv, k_rope, d_o] =
        [16 * 192, 16 * 256, 64, 16 * 128].map(|cols| device.upload(&noise(cols as u64, &[n, cols])));
    let documents = Documents::new(device, DocumentBounds::of_lengths(&[length; 4]));
    let flops = 2.0 * (count * s.heads * length * length / 2) as f64 * f64::from(192 + 128);
    let forward = seconds(&gpu, || drop(device.attention(&s, &q, &kv, &k_rope, &documents)));
    let (o, softmax) = device.attention(&s, &q, &kv, &k_rope, &documents);
    let backward = seconds(&gpu, || {
        drop(device.attention_backward(&s, &q, &kv, &k_rope, &o, &softmax, &d_o, &documents));
    });
    [("forward", forward, 1.0), ("backward", backward, 2.5)]
        .map(|(what, time, times)| {
            let figures = json!({ "ms": 1e3 * time, "tflops": times * flops / time / 1e12 });
            Row::new(format!("attention {what}, 4×16×4096×192/128"), figures)
        })
        .into()
}

/// Kernels that memory bounds: bytes that must move at least, by the time.
fn rows_speed() -> Vec<Row> {
    let gpu = gpu();
    let device: &dyn Backend = gpu.as_ref();
    let (n, d) = (scaled(16_384), scaled(2048));
    let (x, dy, gain) =
        (device.upload(&noise(1, &[n, d])), device.upload(&noise(2, &[n, d])), device.upload(&noise(3, &[d])));
    let bytes = (4 * n * d) as f64;
    let (_, rstd) = device.rms_norm(&x, &gain, 1e-6);
    let (mut dgain, mut flag) = (device.zeros([d], DType::F32), device.zeros([1], DType::U32));
    let mut rows = Vec::new();
    let mut add = |what: &str, moved: f64, time: f64| {
        rows.push(Row::new(what, json!({ "ms": 1e3 * time, "gb_per_second": moved / time / 1e9 })));
    };
    add("rms_norm", 2.0 * bytes, seconds(&gpu, || drop(device.rms_norm(&x, &gain, 1e-6))));
    let time = seconds(&gpu, || drop(device.rms_norm_backward(&x, &rstd, &gain, &dy, &mut dgain)));
    add("rms_norm_backward", 3.0 * bytes, time);
    add("swiglu", 1.5 * bytes, seconds(&gpu, || drop(device.swiglu(&x))));
    for (what, tile) in [("quantise by rows", Tile::Row), ("quantise by columns", Tile::Column)] {
        let how = Some(Quantiser { tile, role: Role::Activation, power_of_two: false });
        add(what, 1.25 * bytes, seconds(&gpu, || drop(device.lower(&x, how, None, &mut flag))));
    }
    add("quantise both ways", 1.5 * bytes, seconds(&gpu, || drop(device.lower_both(&x, BOTH, None, &mut flag))));
    let time = seconds(&gpu, || drop(device.swiglu_lower(&x, BOTH, None, &mut flag)));
    add("swiglu, quantised both ways", 1.25 * bytes, time);
    let (dy_of_gates, _) = device.split(&dy, d / 2);
    let time = seconds(&gpu, || drop(device.swiglu_backward_lower(&x, &dy_of_gates, BOTH, None, &mut flag)));
    add("swiglu_backward, quantised both ways", 2.0 * bytes, time);
    let (experts, top_k) = (32, 6);
    let router = Router { experts, expert_groups: 1, node_limit: 1, top_k, normalise: true, scale: 2.5 };
    let logits = device.upload(&noise(4, &[n, experts]));
    let routing = device.route(&router, &logits, &device.zeros([experts], DType::F32));
    let by_expert = device.dispatch(&x, &routing);
    let k = top_k as f64;
    add("dispatch, 6 of 32", (1.0 + k) * bytes, seconds(&gpu, || drop(device.dispatch(&x, &routing))));
    let mut y = device.copy(&x);
    let time = seconds(&gpu, || device.combine(&by_expert, &routing, &mut y));
    add("combine", (2.0 + k) * bytes, time);
    let time = seconds(&gpu, || drop(device.combine_backward(&by_expert, &routing, &dy)));
    add("combine_backward", (1.0 + 2.0 * k) * bytes, time);
    let time = seconds(&gpu, || device.gather_backward(&by_expert, &routing.slots, &mut y));
    add("gather_backward", (2.0 + k) * bytes, time);
    let mut sum = device.copy(&x);
    let time = seconds(&gpu, || drop(device.add_rms_norm(&mut sum, &dy, &gain, 1e-6)));
    add("residual and rms_norm", 4.0 * bytes, time);
    let size = if is_small() { 10_000 } else { 100_000_000 };
    let [mut w, dw] = [(); 2].map(|()| device.zeros([size], DType::F32));
    let [mut m, mut v] = [(); 2].map(|()| device.zeros([size], DType::Bf16));
    let (hyper, one) =
        (AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step: 3 }, device.numbers(&[1.0]));
    let time = seconds(&gpu, || device.adamw(&hyper, &mut w, &dw, &one, &mut m, &mut v));
    add("adamw, 100M parameters", 20.0 * size as f64, time);
    let side = scaled(8192);
    let [mut w, dw] = [(); 2].map(|()| device.zeros([side, side], DType::F32));
    let [mut m, mut v] = [(); 2].map(|()| device.zeros([side, side], DType::Bf16));
    let one_row = device.lower(&device.zeros([1, side], DType::F32), Some(BOTH[0]), None, &mut flag);
    let mut c = device.zeros([1, side], DType::F32);
    device.low_gemm(Layout::Nt, &one_row, &w, None, &mut c, Write::Set);
    let time = seconds(&gpu, || device.adamw(&hyper, &mut w, &dw, &one, &mut m, &mut v));
    add("adamw and FP8 weights", 22.0 * (side * side) as f64, time);
    rows
}

fn generation() -> Vec<Row> {
    let (gpu, batch) = (gpu(), times(16) as usize);
    let config = if is_small() { small() } else { find("10m").config };
    let rate = crate::measure::generate_on(gpu.as_ref(), &config, batch, times(64) as usize);
    vec![Row::new(format!("generation, {batch} requests at once"), json!({ "tokens_per_second": rate }))]
}
