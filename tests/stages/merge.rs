//! Two outputs and a list input: keeps documents with an even number.

use smelt_stage::kinds::{Documents, Drops};
use smelt_stage::{Artifact, Context, Error, Stage};

#[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Forgets a row in its books, as a stage with a bug would.
    lose_one: bool,
}

smelt_stage::inputs! { struct Inputs { documents: Vec<Artifact<Documents>> } }
smelt_stage::outputs! { struct Outputs { documents: Port<Documents>, drops: Port<Drops> } }

struct Merge;

impl Stage for Merge {
    const NAME: &'static str = "merge";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Keeps even documents of all inputs";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn run(config: Config, inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let files: Vec<_> = inputs.documents.iter().flat_map(|a| (0..a.files().len()).map(move |i| (a, i))).collect();
        cx.units("merge", files.len(), |i, unit| {
            let (artifact, file) = files[i];
            for document in artifact.read(file)? {
                let document = document?;
                unit.count_read(1);
                let number: u64 =
                    document.id.parse().map_err(|_| Error::data(format!("`{}` is no number", document.id)))?;
                if number.is_multiple_of(2) {
                    unit.keep(&out.documents, document)?;
                } else if !(config.lose_one && number == 1) {
                    unit.drop_row(&out.drops, &document.id, "odd", Some(number as f64), None)?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn main() -> std::process::ExitCode {
    smelt_stage::main::<Merge>()
}
