//! The measurements. Medians, because a machine may be shared; the best beside them, for what it can do undisturbed.

use crate::Precision as Asked;
use crate::models::find;
use serde::{Deserialize, Serialize};
use smelt_generate::{Generator, Request, Sampling};
use smelt_kernels::{Backend, Cpu, DType, Layout, Tensor, Trace, Write, random};
use smelt_model::{Batch, Config, Fp8, Init, Model, Params, Precision, Recomputed, Work};
use smelt_train::{Decay, Hyper, NextToken, Schedule, Settings, Trainer};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// What one measurement found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "measured", rename_all = "snake_case")]
pub(crate) enum Figures {
    Gemm {
        /// Of a linear layer: its output, the gradient of its input, or that of its weight.
        layout: String,
        /// M, N, K.
        shape: [usize; 3],
        threads: usize,
        gflops: f64,
        best_gflops: f64,
    },
    Train {
        model: String,
        precision: String,
        recompute: String,
        threads: usize,
        parameters: usize,
        active: usize,
        tokens_per_second: f64,
        best_tokens_per_second: f64,
        /// FLOPs of products and attention, over the median time.
        gflops: f64,
        /// Of the rate that a product of 1024³ in f32 reached in the same process.
        share_of_sgemm: f64,
        peak_memory_bytes: u64,
        /// Of the last steps: operation, calls, seconds per step.
        profile: Vec<(String, u64, f64)>,
        seconds_per_step: f64,
    },
    Generate {
        model: String,
        batch: usize,
        threads: usize,
        tokens_per_second: f64,
        best_tokens_per_second: f64,
        /// Tokens of prompts of 256 read per second.
        prefill_tokens_per_second: f64,
        peak_memory_bytes: u64,
    },
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mega = |bytes: u64| bytes as f64 / 1e6;
        match self {
            Figures::Gemm { layout, shape: [m, n, k], threads, gflops, best_gflops } => {
                write!(
                    f,
                    "gemm {layout} {m:>6} × {n:>5} × {k:>5}  {threads} threads  {gflops:>7.1} GFLOP/s, best \
                     {best_gflops:.1}"
                )
            }
            Figures::Train {
                model,
                precision,
                recompute,
                threads,
                parameters,
                active,
                tokens_per_second,
                best_tokens_per_second,
                gflops,
                share_of_sgemm,
                peak_memory_bytes,
                profile,
                seconds_per_step,
            } => {
                write!(
                    f,
                    "train     {model:<10} {precision:<5} recompute {recompute:<5} {threads} threads  \
                     {tokens_per_second:>9.0} tokens/s, best \
                     {best_tokens_per_second:.0}; {gflops:.1} GFLOP/s, {:.0} % of sgemm; {:.0} MB; \
                     {:.2}M parameters, {:.2}M active",
                    100.0 * share_of_sgemm,
                    mega(*peak_memory_bytes),
                    *parameters as f64 / 1e6,
                    *active as f64 / 1e6,
                )?;
                let inside: f64 = profile.iter().map(|(_, _, seconds)| seconds).sum();
                for (operation, calls, seconds) in profile {
                    let share = 100.0 * seconds / seconds_per_step;
                    write!(
                        f,
                        "\n            {operation:<26} {calls:>5} calls  {:>8.2} ms  {share:>5.1} %",
                        1e3 * seconds
                    )?;
                }
                if !profile.is_empty() {
                    let rest = seconds_per_step - inside;
                    let share = 100.0 * rest / seconds_per_step;
                    write!(
                        f,
                        "\n            {:<26} {:>5}        {:>8.2} ms  {share:>5.1} %",
                        "between them",
                        "",
                        1e3 * rest
                    )?;
                }
                Ok(())
            }
            Figures::Generate {
                model,
                batch,
                threads,
                tokens_per_second,
                best_tokens_per_second,
                prefill_tokens_per_second,
                peak_memory_bytes,
            } => write!(
                f,
                "generate  {model:<10} batch {batch:<3} {threads} threads  {tokens_per_second:>9.0} tokens/s, best \
                 {best_tokens_per_second:.0}; prompts {prefill_tokens_per_second:.0} tokens/s; {:.0} MB",
                mega(*peak_memory_bytes),
            ),
        }
    }
}

/// Median and least of seconds.
fn summary(mut seconds: Vec<f64>) -> (f64, f64) {
    seconds.sort_by(f64::total_cmp);
    (seconds[seconds.len() / 2], seconds[0])
}

fn timed(count: usize, mut work: impl FnMut()) -> (f64, f64) {
    work(); // warm
    let mut once = || {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    summary((0..count.max(1)).map(|_| once()).collect())
}

/// Resident memory of this process at its peak.
fn peak_memory_bytes() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage fills the whole struct that it is given; zeroed is a valid one should it fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_maxrss as u64 * 1024
}

fn noise(count: usize, stream: u64) -> Vec<f32> {
    (0..count as u64).map(|i| random::uniform(0, stream, i) as f32 - 0.5).collect()
}

/// FLOP/s of one product of f32: median and best.
fn rate(cpu: &Cpu, layout: Layout, [m, n, k]: [usize; 3]) -> (f64, f64) {
    let [a, b] = match layout {
        Layout::Nt => [[m, k], [n, k]],
        Layout::Nn => [[m, k], [k, n]],
        Layout::Tn => [[k, m], [k, n]],
    };
    let (a, b) = (Tensor::new(a, &noise(m * k, 1)), Tensor::new(b, &noise(n * k, 2)));
    let mut c = Tensor::zeros([m, n], DType::F32);
    let flops = 2.0 * (m * n * k) as f64;
    let count = (4e9 / flops).clamp(9.0, 400.0) as usize;
    let (median, best) = timed(count, || cpu.gemm(layout, &a, &b, &mut c, Write::Set));
    (flops / median, flops / best)
}

/// First what libraries are compared by, then products of a training step of 2,048 tokens, 1m to 50m.
pub(crate) fn gemm(cpu: Cpu) -> Vec<Figures> {
    let outputs = [[1024; 3], [256, 384, 256], [64; 3], [2048, 8192, 256], [16, 1024, 1024], [1, 1024, 1024]];
    let step = [
        (Layout::Nt, [2048, 96, 96]),
        (Layout::Nn, [2048, 96, 96]),
        (Layout::Tn, [96, 96, 2048]),
        (Layout::Nt, [2048, 384, 256]),
        (Layout::Nn, [2048, 256, 384]),
        (Layout::Tn, [384, 256, 2048]),
        (Layout::Nt, [2048, 8192, 640]),
        (Layout::Nn, [2048, 640, 8192]),
        (Layout::Tn, [8192, 640, 2048]),
    ];
    let one = |(layout, shape)| {
        let (median, best) = rate(&cpu, layout, shape);
        let layout = format!("{layout:?}").to_lowercase();
        Figures::Gemm { layout, shape, threads: cpu.threads(), gflops: median / 1e9, best_gflops: best / 1e9 }
    };
    outputs.map(|shape| (Layout::Nt, shape)).into_iter().chain(step).map(one).collect()
}

fn params(model: &Model) -> Params {
    model.init(&Init { seed: 1, embedding: 0.02, router: 0.02, weight: Some(0.02) })
}

fn ids(count: usize, vocabulary: usize, stream: u64) -> Vec<u32> {
    (0..count as u64).map(|i| random::below(0, stream, i, vocabulary as u64) as u32).collect()
}

pub(crate) fn train(
    cpu: Cpu,
    name: &str,
    (asked, again): (Asked, crate::Recompute),
    steps: usize,
    profile: bool,
) -> Vec<Figures> {
    let threads = cpu.threads();
    let sgemm = rate(&cpu, Layout::Nt, [1024; 3]).0;
    let sized = find(name);
    let (precision, word) = match asked {
        Asked::Fp32 => (Precision::Fp32, "fp32"),
        Asked::Bf16 => (Precision::BF16, "bf16"),
        Asked::Fp8 => (Precision::Fp8(Fp8::default()), "fp8"),
    };
    let (recompute, recompute_word) = match again {
        crate::Recompute::None => (Recomputed::None, "none"),
        crate::Recompute::Light => (Recomputed::Light, "light"),
        crate::Recompute::Experts => (Recomputed::Experts, "experts"),
        crate::Recompute::Full => (Recomputed::Full, "full"),
    };
    let model = Model::new(sized.config.clone()).expect("the sizes are a model");
    let model = Arc::new(model.in_precision(precision));
    let params = params(&model);
    let work = Work::of(&model, sized.context);
    let trace = profile.then(|| Arc::new(Trace::new(Arc::new(Cpu::new(threads)))));
    let backend: Arc<dyn Backend> = match &trace {
        Some(trace) => trace.clone(),
        None => Arc::new(cpu),
    };
    let schedule = Schedule::over(1_000_000, 1e-4, 0, Decay::Constant, 1.0);
    let settings = Settings { bias_speed: 1e-3, recompute, ..Settings::new(Hyper::default(), schedule) };
    let mut trainer = Trainer::new(model, params, backend, settings);
    let rows: Vec<Vec<u32>> =
        (0..sized.sequences).map(|i| ids(sized.context + 1, sized.config.vocab_size, i as u64)).collect();
    let batch = Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let objective = NextToken { mtp_weight: 0.3, z: 0.0 };
    let mut step = || drop(trainer.step(&[(batch.clone(), &objective as _)]).expect("a finite loss"));
    step();
    drop(trace.as_ref().map(|trace| trace.take()));
    let (median, best) = timed(steps, &mut step);
    let runs = (steps + 1) as f64; // with the one that warms up
    let spent = trace.map(|trace| trace.take()).unwrap_or_default();
    let profile = spent.into_iter().map(|(operation, spent)| {
        (operation.to_owned(), (spent.calls as f64 / runs) as u64, spent.time.as_secs_f64() / runs)
    });
    let tokens = (sized.sequences * sized.context) as f64;
    let rate = work.flops * tokens / median;
    vec![Figures::Train {
        model: name.into(),
        precision: word.into(),
        recompute: recompute_word.into(),
        threads,
        parameters: work.parameters,
        active: work.active,
        tokens_per_second: tokens / median,
        best_tokens_per_second: tokens / best,
        gflops: rate / 1e9,
        share_of_sgemm: rate / sgemm,
        peak_memory_bytes: peak_memory_bytes(),
        profile: profile.collect(),
        seconds_per_step: median,
    }]
}

/// Tokens per second of greedy generation of `new` tokens each on any device, with prompts of 32 tokens.
pub(crate) fn generate_on(backend: &dyn Backend, config: &Config, batch: usize, new: usize) -> f64 {
    let model = Model::new(config.clone()).expect("the sizes are a model");
    let params = params(&model).on(backend);
    let sampling = Sampling { temperature: 0.0, max_tokens: new, ..Sampling::default() };
    let request =
        |i: usize| Request { prompt: ids(32, config.vocab_size, i as u64), seed: 0, sampling: sampling.clone() };
    let requests: Vec<Request> = (0..batch).map(request).collect();
    let generator = Generator::new(&model, &params, backend, batch);
    let (median, _) = timed(3, || drop(generator.run(&requests).expect("positions are left")));
    (batch * new) as f64 / median
}

pub(crate) fn generate(cpu: Cpu, name: &str, batch: usize, steps: usize, one_prompt: bool) -> Vec<Figures> {
    let (threads, sized) = (cpu.threads(), find(name));
    let model = Model::new(sized.config.clone()).expect("the sizes are a model");
    let params = params(&model);
    let (vocabulary, new) = (sized.config.vocab_size, 128);
    let requests = |length: usize, max_tokens: usize| -> Vec<Request> {
        let sampling = Sampling { temperature: 0.0, max_tokens, ..Sampling::default() };
        let seed = |i: usize| if one_prompt { 0 } else { i as u64 };
        let request =
            |i: usize| Request { prompt: ids(length, vocabulary, seed(i)), seed: 0, sampling: sampling.clone() };
        (0..batch).map(request).collect()
    };
    let generator = Generator::new(&model, &params, &cpu, batch);
    let run = |requests: &[Request]| drop(generator.run(requests).expect("positions are left"));
    let runs = steps.div_ceil(4).max(3);
    let (length, distinct) = if one_prompt { (256, 1) } else { (32, batch) };
    let (answers, prompts) = (requests(length, new), requests(256, 1));
    let (median, best) = timed(runs, || run(&answers));
    let (read, _) = timed(runs, || run(&prompts));
    vec![Figures::Generate {
        model: name.into(),
        batch,
        threads,
        tokens_per_second: (batch * new) as f64 / median,
        best_tokens_per_second: (batch * new) as f64 / best,
        prefill_tokens_per_second: (distinct * 256) as f64 / read,
        peak_memory_bytes: peak_memory_bytes(),
    }]
}
