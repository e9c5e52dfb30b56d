//! A source: numbered documents, one unit a shard.

use smelt_stage::kinds::{Document, Documents};
use smelt_stage::{Context, Error, Stage};

#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Documents in all, at most a thousand.
    rows: u64,
    /// Shards.
    units: u64,
    seed: u64,
    /// Letters that each text has besides, which no packing makes much shorter.
    letters: u64,
    /// Waits this long in each unit.
    delay_ms: u64,
    /// A unit of this number fails, with this exit code.
    fail: Option<(u64, u8)>,
}

impl Default for Config {
    fn default() -> Self {
        Self { rows: 10, units: 3, seed: 0, letters: 0, delay_ms: 0, fail: None }
    }
}

smelt_stage::inputs! { struct Inputs {} }
smelt_stage::outputs! { struct Outputs { documents: Port<Documents> } }

fn letters(row: u64, count: u64) -> String {
    let mut random = vec![0; count as usize];
    blake3::Hasher::new().update(&row.to_le_bytes()).finalize_xof().fill(&mut random);
    random.into_iter().map(|byte| char::from(b'0' + byte % 64)).collect()
}

struct Count;

impl Stage for Count {
    const NAME: &'static str = "count";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Numbers documents";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(
        config: &mut Config,
        _: &std::collections::BTreeMap<String, usize>,
    ) -> Result<Vec<smelt_stage::Source>, Error> {
        match config.rows {
            0..=1000 => Ok(Vec::new()),
            n => Err(Error::config("/rows", format!("{n} rows are too many")).hint("ask for 1000 at most")),
        }
    }

    fn run(config: Config, _: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        cx.units("count", config.units as usize, |i, unit| {
            std::thread::sleep(std::time::Duration::from_millis(config.delay_ms));
            if let Some((n, code)) = config.fail
                && n == i as u64
            {
                println!("about to fail with {code}");
                return Err(match code {
                    3 => Error::data("the data are bad"),
                    4 => Error::again("the moment is bad"),
                    _ => Error::machine("the machine is bad"),
                });
            }
            for row in (0..config.rows).filter(|r| r % config.units == i as u64) {
                unit.count_derived(1);
                let text = format!("text {row} of {}{}", config.seed, letters(row, config.letters));
                unit.keep(&out.documents, Document::new(format!("{row:04}"), text, "count"))?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn main() -> std::process::ExitCode {
    smelt_stage::main::<Count>()
}
