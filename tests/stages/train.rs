//! A small trainer: a state that each step changes, saves, curves, a final file.

use smelt_stage::kinds::{Checkpoint, Metrics};
use smelt_stage::{Context, Error, Stage};

#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    steps: u64,
    save_every: u64,
    seed: u64,
    /// Waits this long in each step.
    delay_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 20, save_every: 5, seed: 1, delay_ms: 0 }
    }
}

smelt_stage::inputs! { struct Inputs {} }
smelt_stage::outputs! { struct Outputs { model: Port<Checkpoint>, metrics: Port<Metrics> } }

struct Train;

impl Stage for Train {
    const NAME: &'static str = "train";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Changes a number step by step";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn run(config: Config, _: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let (mut step, mut state) = (0, config.seed);
        if let Some(saved) = cx.saved()? {
            step = saved.cursor;
            state = String::from_utf8_lossy(&saved.files["state"])
                .parse()
                .map_err(|_| Error::data("the saved state is no number"))?;
        }
        while step < config.steps {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            println!("step {step}");
            std::thread::sleep(std::time::Duration::from_millis(config.delay_ms));
            step += 1;
            cx.metrics(step, &[("state", (state >> 40) as f64)]);
            cx.progress("train", step, Some(config.steps), "steps", "");
            if step % config.save_every == 0 {
                cx.save(step, serde_json::Value::Null, &[("state", state.to_string().as_bytes())])?;
            }
        }
        cx.single(|unit| unit.put(&out.model, "state.txt", state.to_string().as_bytes()))
    }
}

fn main() -> std::process::ExitCode {
    smelt_stage::main::<Train>()
}
