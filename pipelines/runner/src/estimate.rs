//! `smelt estimate`: what the jobs of a pipeline cost, before they run: memory, arithmetic, hours and price on a device
//! of a table.

use crate::commands::Target;
use crate::diagnostic::{Diagnostic, Result};
use crate::load::{Input, Instance, Plan};
use crate::table::{Format, Listing, Measure};
use serde::Deserialize;
use serde_json::json;
use smelt_schemas::{Estimate, ExitCode};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What comes with smelt.
const DEVICES: &str = include_str!("../../devices.yaml");

/// One device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    /// Dense peak of its tensor cores in bf16, TFLOP/s.
    bf16_tflops: f64,
    /// 10⁹ bytes.
    memory_gb: f64,
    dollars_per_hour: f64,
    /// Of that peak, what trainings reach.
    share: f64,
}

/// What the command line says.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Device of the table: h100, h200, h800, or one of `--devices`
    #[arg(long, default_value = "h100")]
    pub device: String,
    /// A YAML file with more devices, in the form of pipelines/devices.yaml
    #[arg(long, value_name = "FILE")]
    pub devices: Option<PathBuf>,
    /// How many of them share the work
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Share of the peak that the training reaches, instead of the device's own
    #[arg(long)]
    pub share: Option<f64>,
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
}

fn devices(args: &Args) -> Result<BTreeMap<String, Device>> {
    let mut all: BTreeMap<String, Device> =
        serde_saphyr::from_str(DEVICES).expect("a test reads the devices that come with smelt");
    if let Some(file) = &args.devices {
        let wrong = |e: String| Diagnostic::pipeline(format!("devices `{}` cannot be read: {e}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        let more: BTreeMap<String, Device> = serde_saphyr::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        all.extend(more);
    }
    Ok(all)
}

/// Seconds, and dollars, of so many FLOPs.
fn cost(flops: f64, device: &Device, count: u32) -> (f64, f64) {
    let seconds = flops / (device.bf16_tflops * 1e12 * device.share * f64::from(count));
    (seconds, seconds / 3600.0 * device.dollars_per_hour * f64::from(count))
}

/// Tokens of the tokenizer that a job reads, where another job of the pipeline makes it.
fn vocabulary(plan: &Plan, job: &Instance) -> Option<u64> {
    let Input::Job { job, .. } = job.inputs.get("tokenizer")?.first()? else { return None };
    plan.jobs[*job].resolved.config.get("vocabulary")?.as_u64()
}

pub(crate) fn run(target: &Target, args: &Args) -> Result<()> {
    let all = devices(args)?;
    let known = || all.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut device = all.get(&args.device).cloned().ok_or_else(|| {
        Diagnostic::pipeline(format!("there is no device `{}`", args.device))
            .hint(format!("say one of {}, or add it to a file for `--devices`", known()))
    })?;
    if let Some(share) = args.share {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Diagnostic::new(
                ExitCode::Pipeline,
                format!("a share of {share} of the peak cannot be reached"),
            )
            .hint("say more than 0, at most 1"));
        }
        device.share = share;
    }
    let (plan, _) = target.load()?;
    let columns = [
        ("job", Measure::Plain),
        ("stage", Measure::Plain),
        ("parameters", Measure::Plain),
        ("active", Measure::Plain),
        ("tokens", Measure::Plain),
        ("flops_per_token", Measure::Plain),
        ("memory", Measure::Bytes),
        ("fits", Measure::Plain),
        ("tokens_per_second", Measure::Plain),
        ("seconds", Measure::Seconds),
        ("dollars", Measure::Plain),
    ];
    let (mut listing, mut total, mut unknown) = (Listing::new(&columns), (0.0, 0.0), Vec::new());
    for job in &plan.jobs {
        let estimate: Estimate = job.program.estimate(&job.resolved.config, vocabulary(&plan, job), &job.run.env)?;
        let detail = |name: &str| estimate.details.get(name).copied();
        let Some(flops) = estimate.flops else {
            unknown.push(job.name.as_str());
            continue;
        };
        let memory = detail("gpu_memory_bytes").map(|bytes| bytes as u64).or(estimate.memory_bytes);
        let (seconds, dollars) = cost(flops, &device, args.count);
        total = (total.0 + seconds, total.1 + dollars);
        listing.row(vec![
            json!(job.name),
            json!(job.program.description.name),
            json!(detail("parameters").map(|n| n as u64)),
            json!(detail("active_parameters").map(|n| n as u64)),
            json!(detail("tokens").map(|n| n as u64)),
            json!(detail("flops_per_token").map(|n| n.round() as u64)),
            json!(memory),
            json!(memory.map(|bytes| bytes as f64 <= device.memory_gb * 1e9)),
            json!(detail("flops_per_token").map(|flops| cost(flops, &device, args.count).0.recip().round())),
            json!(seconds),
            json!(dollars),
        ]);
    }
    print!("{}", listing.text(args.format));
    if args.format == Format::Table {
        let (gpu_hours, share) = (total.0 / 3600.0 * f64::from(args.count), 100.0 * device.share);
        println!(
            "  {:.2} hours of {} × {} in all, {gpu_hours:.2} GPU hours, {:.2} dollars, at {share:.0} % of {} TFLOP/s",
            total.0 / 3600.0,
            args.count,
            args.device,
            total.1,
            device.bf16_tflops
        );
        if !unknown.is_empty() {
            println!("  not known before their inputs are there: {}", unknown.join(", "));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DeepSeek-V3's report (arXiv 2412.19437, table 1): 14.8·10¹² tokens took 2.664M H800 hours, 5.328M dollars.
    /// In a context of 4,096 a token takes 2.5·10¹¹ FLOPs (`smelt-model` counts them). That and the share of 0.40
    /// are rounded to two digits: 5 %.
    #[test]
    fn the_devices_are_read_and_price_deepseek_v3() {
        let args = Args { device: "h800".into(), devices: None, count: 2048, share: None, format: Format::Table };
        let all = devices(&args).unwrap();
        let (seconds, dollars) = cost(14.8e12 * 2.5e11, &all["h800"], args.count);
        let gpu_hours = seconds / 3600.0 * f64::from(args.count);
        assert!((gpu_hours / 2.664e6 - 1.0).abs() < 0.05, "{gpu_hours}");
        assert!((dollars / 5.328e6 - 1.0).abs() < 0.05, "{dollars}");
    }
}
