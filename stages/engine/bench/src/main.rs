//! `smelt bench`: how fast products, training and generation are on this machine, and where the time of a step goes.
//!
//! Every measurement runs in a process of its own, so that its peak memory is its own, and prints one line as it ends.
//! `tests/parity/bench_with_pytorch.py` sets the same figures beside PyTorch's.

mod choices;
mod compiler;
mod gpu;
mod measure;
mod models;
mod nccl;
mod operations;
mod whole;

use clap::{Parser, ValueEnum};
use measure::Figures;
use smelt_kernels::Cpu;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Products of matrices, in GFLOP/s
    Gemm,
    /// Steps of training: forward, backward, clipping, AdamW
    Train,
    /// Greedy generation from a prompt of 32 tokens, and reading prompts of 256
    Generate,
    /// Everything on a GPU: whether it is right, then times; alone, and only when asked for
    Gpu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    Fp32,
    Bf16,
    Fp8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    /// One object a line
    Json,
}

/// What backward computes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Recompute {
    None,
    Light,
    Experts,
    Full,
}

/// Measures how fast smelt trains and generates on this machine, and where the time goes.
#[derive(Clone, Debug, Parser)]
#[command(name = "smelt bench", max_term_width = 100)]
pub struct Args {
    /// What to measure; everything if not said
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Models to train and to generate with
    #[arg(long, value_delimiter = ',', value_parser = models::NAMES, default_values = ["1m", "10m", "50m"])]
    models: Vec<String>,
    /// Of the products of linear layers in training
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["fp32", "bf16"])]
    precision: Vec<Precision>,
    /// What backward computes again instead of keeping it in training
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["none"])]
    recompute: Vec<Recompute>,
    /// Requests that generate at once
    #[arg(long, value_delimiter = ',', default_values = ["1", "16"])]
    batch: Vec<usize>,
    /// Requests that generate have one prompt of 256 tokens, as the samples of a group do, instead of 32 tokens each
    #[arg(long)]
    one_prompt: bool,
    /// Threads; all of the machine's if 0
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Steps of training that are timed, and thrice as many tokens of generation
    #[arg(long, default_value_t = 12)]
    steps: usize,
    /// Also say where the time of a training step goes, by operation
    #[arg(long)]
    profile: bool,
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Where `gpu` writes its results, after each part
    #[arg(long, default_value = "results.json")]
    out: PathBuf,
    /// Seconds that `gpu` may take
    #[arg(long, default_value_t = 480)]
    seconds: u64,
    /// Sizes that a simulator can compute
    #[arg(long, hide = true)]
    small: bool,
    #[arg(long, hide = true)]
    gpu_part: Option<String>,
    /// Operations of the part before this one are left out
    #[arg(long, hide = true, default_value_t = 0)]
    gpu_from: usize,
}

/// One measurement.
#[derive(Clone)]
enum Task {
    Gemm,
    Train { model: String, precision: Precision, recompute: Recompute },
    Generate { model: String, batch: usize },
}

fn tasks(args: &Args) -> Vec<Task> {
    let wants = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut tasks = Vec::new();
    if wants(Part::Gemm) {
        tasks.push(Task::Gemm);
    }
    for model in args.models.iter().filter(|_| wants(Part::Train)) {
        for &precision in &args.precision {
            let train = |&recompute: &Recompute| Task::Train { model: model.clone(), precision, recompute };
            tasks.extend(args.recompute.iter().map(train));
        }
    }
    for model in args.models.iter().filter(|_| wants(Part::Generate)) {
        tasks.extend(args.batch.iter().map(|&batch| Task::Generate { model: model.clone(), batch }));
    }
    tasks
}

fn measure(task: &Task, args: &Args) -> Vec<Figures> {
    let cpu = Cpu::new(args.threads);
    match task {
        Task::Gemm => measure::gemm(cpu),
        Task::Train { model, precision, recompute } => {
            measure::train(cpu, model, (*precision, *recompute), args.steps.max(1), args.profile)
        }
        Task::Generate { model, batch } => {
            measure::generate(cpu, model, (*batch).max(1), args.steps.max(1), args.one_prompt)
        }
    }
}

/// The same program for one task alone.
fn apart(task: &Task, args: &Args) -> std::io::Result<Vec<Figures>> {
    let word = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| value().map(|v| v.get_name().to_owned());
    let mut command = Command::new(std::env::current_exe()?);
    match task {
        Task::Gemm => command.arg("gemm"),
        Task::Train { model, precision, recompute } => {
            let precision = word(&|| precision.to_possible_value()).unwrap_or_default();
            let recompute = word(&|| recompute.to_possible_value()).unwrap_or_default();
            command.args(["train", "--models", model, "--precision", &precision, "--recompute", &recompute])
        }
        Task::Generate { model, batch } => command.args(["generate", "--models", model, "--batch", &batch.to_string()]),
    };
    command.args(["--threads", &args.threads.to_string(), "--steps", &args.steps.to_string(), "--format", "json"]);
    command.args(args.profile.then_some("--profile"));
    command.args(args.one_prompt.then_some("--one-prompt"));
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(out) = child.stdout.as_mut() {
        out.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(std::io::Error::other(format!("a measurement ended with {status}")));
    }
    said.lines().map(|line| serde_json::from_str(line).map_err(std::io::Error::other)).collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(part) = &args.gpu_part {
        return ExitCode::from(gpu::run_part(part, args.gpu_from, args.small) as u8);
    }
    if args.parts.contains(&Part::Gpu) {
        return match gpu::run(&args.out, args.seconds, args.small) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => {
                eprintln!("error: {}: {error}", args.out.display());
                ExitCode::from(6)
            }
        };
    }
    let tasks = tasks(&args);
    let mut out = std::io::stdout().lock();
    let is_one = tasks.len() == 1;
    for task in &tasks {
        let figures = match is_one {
            true => measure(task, &args),
            false => match apart(task, &args) {
                Ok(figures) => figures,
                Err(error) => {
                    eprintln!("error: {error}");
                    return ExitCode::from(6);
                }
            },
        };
        for figures in figures {
            let line = match args.format {
                Format::Json => serde_json::to_string(&figures).expect("figures are plain data"),
                Format::Table => figures.to_string(),
            };
            if writeln!(out, "{line}").is_err() {
                return ExitCode::SUCCESS; // nobody reads any more
            }
        }
    }
    ExitCode::SUCCESS
}
