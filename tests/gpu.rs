//! Pipelines on a GPU, simulated: the real programs with the simulated driver in place of NVIDIA's.

use crate::simulator;
use crate::support::{Bench, Said, digests};
use std::process::Command;

const PIPELINE: &str = "
name: gpu
seed: 0
jobs:
  practice: { stage: problems, config: { stream: 1, characters: 20000 } }
  tokens: { stage: tokenize, input: practice.documents, config: { vocabulary: 300, validation: 0.2 } }
  base:
    stage: pretrain
    input: { tokens: tokens, tokenizer: tokens.tokenizer }
    run: { device: DEVICE }
    config:
      steps: 3
      sequences: 2
      context: 32
      warmup: 1
      precision: fp8
      micro_batch_tokens: auto
      model: { width: 32, layers: 2, dense_width: 64, experts: 4, expert_width: 16, heads: 2, nope: 8, rope: 8,
        value: 8, latent: 16, mtp_layers: 1 }
";

/// Everything behind the pretraining.
const REST: &str = "
  chats: { stage: problems, config: { stream: 2, conversations: 24, answers: short, sizes: [2, 3] } }
  prompts: { stage: problems, config: { stream: 4, prompts: 28, sizes: [2, 3] } }
  tuned:
    { stage: sft, input: { model: base, conversations: chats }, run: { device: DEVICE },
      config: { epochs: 1, batch: 12, warmup: 1, precision: bf16, micro_batch_tokens: auto } }
  chains:
    { stage: distill, input: { model: tuned, prompts: prompts }, run: { device: DEVICE },
      config: { samples: 1, max_tokens: 6, precision: fp8 } }
  judge:
    { stage: reward, input: { model: tuned, prompts: prompts }, run: { device: DEVICE },
      config: { pairs: 16, held_out: 4, steps: 2, batch: 4, warmup: 1, precision: bf16, micro_batch_tokens: auto } }
  aligned:
    { stage: align, input: { model: tuned, prompts: prompts, reward: judge }, run: { device: DEVICE },
      config: { steps: 1, prompts: 2, group: 2, max_tokens: 6, max_truncated: 1.0, warmup: 1, reward_weight: 10000,
        precision: bf16, micro_batch_tokens: auto } }
  score:
    { stage: evaluate, input: { models: [tuned, aligned], prompts: prompts }, run: { device: DEVICE },
      config: { names: [tuned, aligned], max_tokens: 6, precision: bf16 } }
";

/// `smelt run` of a pipeline whose jobs compute on `device`. With a simulated driver, unless `driver` is false.
fn run(bench: &Bench, text: &str, device: &str, driver: bool, settings: &[(&str, &str)]) -> Said {
    bench.pipeline("p.yaml", &text.replace("DEVICE", &format!("{device:?}")));
    let mut command: Command = bench.command(&["run", "p.yaml"]);
    command.env_remove("LD_LIBRARY_PATH").env("SMELT_SAVE_SECONDS", "0").envs(settings.iter().copied());
    if driver {
        let (out, code) = simulator::build();
        command.env("LD_LIBRARY_PATH", out).env("SMELT_KERNELS", code);
    }
    command.output().expect("smelt starts").into()
}

/// The loss of the last step of the pretraining.
fn loss(bench: &Bench) -> f64 {
    let query = "select value from smelt.metrics where job = 'base' and name = 'loss' order by step desc limit 1";
    let said = bench.smelt(&["sql", query, "--format", "csv"]).ok().out;
    said.lines().last().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no loss: {said}"))
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn every_stage_with_a_model_runs_on_a_gpu() {
    let (gpu, cpu) = (Bench::new(), Bench::new());
    let all = format!("{PIPELINE}{}", REST.trim_start_matches('\n'));
    run(&gpu, &all, "cuda:0", true, &[]).ok();
    run(&cpu, &all, "cpu", false, &[]).ok();
    let shown = gpu.smelt(&["artifacts", "show", "base"]).ok().out;
    assert!(shown.contains("computed on cuda:0, simulated sm_90, compute capability 9.0, 8.0 GiB"), "{shown}");
    // what runs where is no part of what a job is
    let again = run(&gpu, &all, "cpu", false, &[]).ok();
    assert!(again.err.contains("nothing to do") || again.out.contains("nothing to do"), "{again:?}");
    let [on_gpu, on_cpu] = [&gpu, &cpu].map(loss);
    assert!((on_gpu - on_cpu).abs() < 1e-3 * on_cpu, "{on_gpu}, {on_cpu}");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_device_that_is_lost_costs_time_and_no_byte() {
    let (whole, lost) = (Bench::new(), Bench::new());
    run(&whole, PIPELINE, "cuda:0", true, &[]).ok();
    let said = run(&lost, PIPELINE, "cuda:0", true, &[("SMELT_SIM_LOST", "1500")]).ok();
    let told = said.out + &said.err;
    assert!(told.contains("CUDA_ERROR_DEVICE_UNAVAILABLE; trying again"), "{told}");
    assert_eq!(digests(&whole.store(), "gpu"), digests(&lost.store(), "gpu"));
}

/// The end of a run that fails: its error, place and hint.
fn failure(device: &str, driver: bool, settings: &[(&str, &str)], code: i32) -> String {
    let said = run(&Bench::new(), PIPELINE, device, driver, settings).fails(code);
    let from = said.err.find("error: ").unwrap_or_else(|| panic!("no error: {said:?}"));
    said.err[from..].trim_end().lines().filter(|line| !line.contains("-->")).collect::<Vec<_>>().join("\n")
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn a_device_that_cannot_be_used_says_why() {
    assert_eq!(
        failure("cuda:0", false, &[], 6),
        "error: job `base` failed: this machine has no NVIDIA driver: libcuda.so.1 is not found\n\
         hint: install the driver, or use `device: cpu`"
    );
    assert_eq!(
        failure("cuda:0", true, &[("SMELT_SIM_DEVICES", "0")], 6),
        "error: job `base` failed: the NVIDIA driver finds no GPU: CUDA_ERROR_NO_DEVICE\n\
         hint: see what `nvidia-smi` says, or use `device: cpu`"
    );
    assert_eq!(
        failure("cuda:3", true, &[], 6),
        "error: job `base` failed: there is no GPU cuda:3: this machine has 1\n\
         hint: use cuda:0, or `device: auto`"
    );
    assert_eq!(
        failure("cuda:0", true, &[("SMELT_SIM_DRIVER", "12000")], 6),
        "error: job `base` failed: the NVIDIA driver speaks CUDA 12.0; smelt needs 12.3\n\
         hint: update the driver to 545 or newer, or use `device: cpu`"
    );
    assert_eq!(
        failure("cuda:0", true, &[("SMELT_SIM_CAPABILITY", "70")], 6),
        "error: job `base` failed: cuda:0, simulated sm_70, compute capability 7.0, 8.0 GiB, driver for CUDA 13.0 is \
         too old: the kernels need compute capability 8.0\nhint: use `device: cpu`"
    );
    let no_code = failure("cuda:0", true, &[("SMELT_SIM_CAPABILITY", "120")], 6);
    assert!(
        no_code.starts_with("error: job `base` failed: the kernels `")
            && no_code.contains(".sm_120a.cubin: No such file")
            && no_code.ends_with("hint: unset SMELT_KERNELS to use what is embedded or to compile them"),
        "{no_code}"
    );
    let out_of_memory = failure("cuda:0", true, &[("SMELT_SIM_MEMORY", "600000")], 6);
    assert!(
        // what was asked for, by which operation, and what there is
        out_of_memory.starts_with("error: job `base` failed: the GPU has no 0.")
            && out_of_memory.contains(" MiB for F32 [")
            && out_of_memory
                .contains(" MiB of 0.57 MiB are free\nhint: nothing would fit: by its shapes a step takes "),
        "{out_of_memory}"
    );
    assert_eq!(
        failure("cuda:0", true, &[("SMELT_SIM_FAIL", "adamw:2")], 4),
        "error: job `base` failed: the GPU failed to compute: CUDA_ERROR_LAUNCH_FAILED\n\
         hint: see the kernel log (`dmesg`) for the cause; another try goes on from the last save"
    );
}

/// A GPU that has no memory for a whole step at once.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn what_is_computed_at_once_follows_the_memory() {
    let (small, large) = (Bench::new(), Bench::new());
    let text = PIPELINE.replace("sequences: 2", "sequences: 16").replace("steps: 3", "steps: 1");
    let memory = ("SMELT_SIM_MEMORY", "2500000");
    let whole = text.replace("micro_batch_tokens: auto", "micro_batch_tokens: 512");
    let said = run(&Bench::new(), &whole, "cuda:0", true, &[memory]).fails(6).err;
    // the hint is a setting that works
    let (_, hint) = said.split_once("hint: `").unwrap_or_else(|| panic!("no hint: {said}"));
    let (setting, rest) = hint.split_once('`').expect("it ends");
    assert_eq!(rest.trim_end(), " would fit, by the shapes of a step; `auto` finds it", "{said}");
    let fitting = whole.replace("micro_batch_tokens: 512", setting);
    assert!(fitting.contains(setting), "{said}");
    run(&Bench::new(), &fitting, "cuda:0", true, &[memory]).ok();
    run(&small, &text, "cuda:0", true, &[memory]).ok();
    run(&large, &text, "cuda:0", true, &[]).ok();
    let at_once = |bench: &Bench| -> usize {
        let shown = bench.smelt(&["artifacts", "show", "base"]).ok().out;
        let value = shown.lines().find_map(|line| line.trim().strip_prefix("metric   tokens_at_once = "));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no tokens at once: {shown}"))
    };
    // equal parts of sequences of 32 tokens
    assert!([32, 64, 128, 256].contains(&at_once(&small)), "{}", at_once(&small));
    assert_eq!(at_once(&large), 512);
}

#[test]
fn auto_is_the_cpu_where_there_is_no_gpu() {
    let bench = Bench::new();
    let said = run(&bench, PIPELINE, "auto", false, &[]).ok();
    let told = said.out + &said.err;
    assert!(told.contains("this job computes on the CPU: this machine has no NVIDIA driver"), "{told}");
    assert!(bench.smelt(&["artifacts", "show", "base"]).ok().out.contains("computed on cpu"));
}

#[test]
fn a_stage_without_a_model_has_no_device() {
    let bench = Bench::new();
    let text = PIPELINE.replace("characters: 20000 } }", "characters: 20000 }, run: { device: auto } }");
    let said = run(&bench, &text, "cpu", false, &[]).fails(2);
    assert!(said.err.contains("job `practice`: `problems` has nothing to do on auto"), "{}", said.err);
    let said = run(&bench, PIPELINE, "gpu", false, &[]).fails(2);
    assert!(said.err.contains("gpu"), "{}", said.err);
}

/// Two jobs that could run side by side, but for the memory of the one GPU.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn one_job_at_a_time_computes_on_a_gpu() {
    let (_, base) = PIPELINE.split_once("  base:\n").expect("it has the job");
    let base = base.replace("run: { device: DEVICE }", "run: { device: DEVICE, threads: 1 }");
    let text = format!("{}  base:\n{base}  other:\n{base}      seed: 5\n", PIPELINE.split("  base:\n").next().unwrap());
    let said = run(&Bench::new(), &text, "cuda:0", true, &[]).ok().out;
    let line =
        |start: &str| said.lines().position(|line| line.trim_start().starts_with(start)).expect("the line is there");
    let first_ends = line("done     base").min(line("done     other"));
    assert!(first_ends < line("start    base").max(line("start    other")), "{said}");
}

/// One command checks and times everything where a GPU is; a kernel that fails costs its own part.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn the_gpu_bench_goes_on_after_a_kernel_that_fails() {
    let bench = Bench::new();
    let (out, code) = simulator::build();
    let mut command = bench.command(&["bench", "gpu", "--small", "--seconds", "300"]);
    command.env("LD_LIBRARY_PATH", out).env("SMELT_KERNELS", code).env("SMELT_SIM_FAIL", "adamw:1");
    let said: Said = command.output().expect("smelt starts").into();
    assert_eq!(said.code, Some(1), "{said:?}");
    let results = std::fs::read(bench.path("results.json")).expect("results are written");
    let results: serde_json::Value = serde_json::from_slice(&results).unwrap();
    let rows = |part: &str| results[part]["rows"].as_array().unwrap_or_else(|| panic!("{part}: {results}")).clone();
    for part in ["products_right", "attention_right"] {
        assert!(rows(part).iter().all(|row| row["is_right"] == true), "{part}: {results}");
    }
    // an operation that fails costs its own line: another process goes on behind it
    let operations = rows("operations_right");
    let wrong: Vec<_> = operations.iter().filter(|row| row["is_right"] != true).map(|row| &row["what"]).collect();
    assert!(operations.len() > 50 && wrong == ["adamw", "adamw in bf16"], "{wrong:?}: {results}");
    let error = results["rows_right"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("the GPU failed to compute: CUDA_ERROR_LAUNCH_FAILED"), "{results}");
    assert!(!rows("products_speed").is_empty() && !rows("generation").is_empty(), "{results}");
}

#[test]
fn an_estimate_names_hours_and_price_and_what_is_not_known() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", &PIPELINE.replace("DEVICE", "cpu"));
    std::fs::write(
        bench.path("more.yaml"),
        "own: { bf16_tflops: 100, memory_gb: 0.001, dollars_per_hour: 3600, share: 0.5 }",
    )
    .unwrap();
    let listed = |more: &[&str]| -> serde_json::Value {
        let said = bench.smelt(&[&["estimate", "p.yaml", "--format", "json"], more].concat()).ok().out;
        serde_json::from_str::<serde_json::Value>(&said).expect("it is JSON")[0].clone()
    };
    let own = listed(&["--devices", "more.yaml", "--device", "own", "--count", "2"]);
    // three steps of two sequences of 32 tokens; each device reaches 50 TFLOP/s and costs a dollar a second
    let (tokens, flops) = (own["tokens"].as_f64().unwrap(), own["flops_per_token"].as_f64().unwrap());
    assert_eq!((own["job"].as_str(), tokens), (Some("base"), 192.0));
    let seconds = own["seconds"].as_f64().unwrap();
    assert!((seconds / (tokens * flops / 100e12) - 1.0).abs() < 1e-3, "{own}");
    assert!((own["dollars"].as_f64().unwrap() / (2.0 * seconds) - 1.0).abs() < 1e-6, "{own}");
    assert_eq!((own["fits"].as_bool(), listed(&[])["fits"].as_bool()), (Some(false), Some(true)));
    // the vocabulary is that of the job that makes the tokenizer: a row of the embedding and of the head for each token
    let parameters = |more: &[&str]| listed(more)["parameters"].as_u64().unwrap();
    let wider = parameters(&["--set", "tokens.config.vocabulary=1300"]);
    assert_eq!(wider - parameters(&[]), 1000 * 2 * 32);

    let said = bench.smelt(&["estimate", "p.yaml", "--device", "h200"]).ok().out;
    assert!(said.contains("at 40 % of 989.4 TFLOP/s"), "{said}");
    assert!(said.contains("not known before their inputs are there: practice, tokens"), "{said}");
    let said = bench.smelt(&["estimate", "p.yaml", "--device", "h999"]).fails(2);
    assert_eq!(
        said.err.trim_end(),
        "error: there is no device `h999`\nhint: say one of h100, h200, h800, or add it to a file for `--devices`"
    );
    let said = bench.smelt(&["estimate", "p.yaml", "--share", "1.5"]).fails(2);
    assert_eq!(
        said.err.trim_end(),
        "error: a share of 1.5 of the peak cannot be reached\nhint: say more than 0, at most 1"
    );
    let said = bench.smelt(&["estimate", "p.yaml", "--devices", "none.yaml"]).fails(2);
    assert!(said.err.starts_with("error: devices `none.yaml` cannot be read: No such file"), "{}", said.err);
}
