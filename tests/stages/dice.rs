//! A stage that is not deterministic; with `faces: 1` it is.

use smelt_stage::kinds::{Document, Documents};
use smelt_stage::{Artifact, Context, Error, Stage};

#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    faces: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { faces: 1 << 60 }
    }
}

smelt_stage::inputs! { struct Inputs { documents: Option<Artifact<Documents>> } }
smelt_stage::outputs! { struct Outputs { documents: Port<Documents> } }

struct Dice;

impl Stage for Dice {
    const NAME: &'static str = "dice";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Throws a die";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn run(config: Config, _: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        cx.single(|unit| {
            let nanos =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
            let thrown = nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15) % config.faces;
            unit.count_derived(1);
            unit.keep(&out.documents, Document::new("0000", thrown.to_string(), "dice"))
        })
    }
}

fn main() -> std::process::ExitCode {
    smelt_stage::main::<Dice>()
}
