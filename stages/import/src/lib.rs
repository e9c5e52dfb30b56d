//! `import`: takes a checkpoint that others made, as Hugging Face lays it out: DeepSeek-V3, Qwen2 (2.5), Qwen3 and
//! Llama.
//!
//! Reads a local folder with config.json, safetensors (one file, or shards with their index) and tokenizer.json; writes
//! a `checkpoint` and its `tokenizer`, so that `sft`, `align`, `evaluate` and the others can go on from it, and
//! `tokenize` can encode for it. The whole model is loaded once: a tensor that is missing, extra or of another shape is
//! found here, and not by the job that trains it. Export needs no stage: every checkpoint artifact is such a folder.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::fault;
use smelt_model::load;
use smelt_stage::files::{Found, Memory, expand, hash};
use smelt_stage::kinds::{Checkpoint, Tokenizer};
use smelt_stage::{Context, Error, Source, Stage};
use smelt_text::with_chat_template;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder; `~`, `${NAME}` and `${NAME:-default}` are filled in.
    pub path: String,
}

smelt_stage::inputs! { pub struct Inputs {} }
smelt_stage::outputs! { pub struct Outputs { model: Port<Checkpoint>, tokenizer: Port<Tokenizer> } }

#[derive(Debug)]
pub struct Import;

const CONFIG: &str = "config.json";
const VOCABULARY: &str = "tokenizer.json";
const ABOUT_TEXT: &str = "tokenizer_config.json";
/// Where newer versions of transformers keep the template that older ones keep in [`ABOUT_TEXT`].
const TEMPLATE: &str = "chat_template.jinja";

fn is_weight(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

/// The files of the folder that count, by name.
fn files(config: &Config) -> Result<Vec<Found>, Error> {
    let folder = expand(&config.path, |name| std::env::var(name).ok()).map_err(|e| Error::in_config("/path", &e))?;
    let cannot = |error: std::io::Error| {
        Error::config("/path", format!("the folder `{folder}` cannot be read: {error}"))
            .hint("name a folder with config.json, safetensors files and tokenizer.json")
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new(&folder)).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let path = entry.path();
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if [CONFIG, VOCABULARY, ABOUT_TEXT, TEMPLATE].contains(&name.as_str()) || is_weight(&name) {
            let meta = std::fs::metadata(&path).map_err(cannot)?;
            if meta.is_file() {
                found.push(Found { name, bytes: meta.len(), path });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let missing = [CONFIG, VOCABULARY].into_iter().find(|wanted| found.iter().all(|file| file.name != *wanted));
    let missing = missing.or((!found.iter().any(|file| is_weight(&file.name))).then_some("a .safetensors file"));
    match missing {
        None => Ok(found),
        Some(missing) => Err(Error::config("/path", format!("the folder `{folder}` has no {missing}"))
            .hint("download the whole repository; pickled weights (.bin) must be converted to safetensors first")),
    }
}

impl Stage for Import {
    const NAME: &'static str = "import";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Takes a checkpoint that others made, as Hugging Face lays it out";
    const ROWS: &'static str = "checkpoints";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if config.path.is_empty() {
            return Err(Error::config("/path", "no folder is given").hint("set `path` to the checkpoint's folder"));
        }
        Ok(Memory::of_user().sources(&files(config)?)?)
    }

    fn run(config: Config, _: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let mut contents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (file, source) in files(&config)?.iter().zip(cx.sources()) {
            let bytes = std::fs::read(&file.path)
                .map_err(|e| Error::machine(format!("cannot read `{}`: {e}", file.path.display())))?;
            // the fingerprint stands for the bytes that were planned, so others are refused
            if hash(file)? != *source {
                return Err(Error::again(format!("`{}` has changed since the job was planned", file.name)));
            }
            contents.insert(file.name.clone(), bytes);
        }
        let text = about_text(&contents)?;
        let vocabulary = smelt_text::Tokenizer::from_files(&contents[VOCABULARY], &text).map_err(fault)?.vocabulary();
        let weights = contents.iter().filter(|(name, _)| is_weight(name));
        let (model, params) =
            load(&contents[CONFIG], weights.map(|(name, bytes)| (name.as_str(), bytes.as_slice()))).map_err(fault)?;
        let sizes = model.config();
        if vocabulary > sizes.vocab_size {
            let what = format!("the tokenizer has {vocabulary} tokens, the model {}", sizes.vocab_size);
            return Err(Error::data(what).hint("take the tokenizer.json that belongs to these weights"));
        }
        cx.result("parameters", params.count() as f64);
        drop(params);
        cx.single(|unit| {
            unit.count_derived(1);
            unit.count_written(1);
            for (name, bytes) in contents.iter().filter(|(name, _)| *name == CONFIG || is_weight(name)) {
                unit.put(&out.model, name, bytes)?;
            }
            unit.put(&out.model, VOCABULARY, &contents[VOCABULARY])?;
            unit.put(&out.model, ABOUT_TEXT, &text)?;
            unit.put(&out.tokenizer, VOCABULARY, &contents[VOCABULARY])?;
            unit.put(&out.tokenizer, ABOUT_TEXT, &text)
        })
    }
}

/// tokenizer_config.json, with the chat template in it wherever that lay.
fn about_text(contents: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, Error> {
    let text = contents.get(ABOUT_TEXT).map_or(&b"{}"[..], Vec::as_slice);
    match contents.get(TEMPLATE) {
        None => Ok(text.to_vec()),
        Some(template) => with_chat_template(text, &String::from_utf8_lossy(template)).map_err(fault),
    }
}
