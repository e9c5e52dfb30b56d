//! `import`: takes a checkpoint that others made, as Hugging Face lays it out: DeepSeek-V3, Qwen2 (2.5), Qwen3 and
//! Llama.
//!
//! Reads a local folder with config.json, weights and tokenizer.json; writes a `checkpoint` and its `tokenizer`, so
//! that `sft`, `align`, `evaluate` and the others can go on from it, and `tokenize` can encode for it. Weights are
//! safetensors or `pytorch_model.bin`, in one file or in shards with their index. Every value is looked at once, a
//! tensor at a time: a tensor that is missing, extra, of another shape or not finite is found here, and not by the job
//! that trains it. Files whose names and types smelt writes itself are copied as they are; others are written anew,
//! with the same values. Export needs no stage: every checkpoint artifact is such a folder.

mod folder;

use folder::{Folder, GENERATION, TEMPLATE, TEXT, VOCABULARY};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_checkpoint::{TextFiles, fault};
use smelt_model::{Config as Sizes, Opened, TokenIds};
use smelt_stage::files::Memory;
use smelt_stage::kinds::{Checkpoint, Tokenizer};
use smelt_stage::{Context, Error, Source, Stage};
use smelt_text::{with_chat_template, with_fields, with_special_tokens_map};
use std::collections::BTreeMap;
use std::io::{self, Write};

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

impl Stage for Import {
    const NAME: &'static str = "import";
    const VERSION: u32 = 2; // generation configs, special tokens maps, F16, pickled weights and names without prefix
    const ABOUT: &'static str = "Takes a checkpoint that others made, as Hugging Face lays it out";
    const ROWS: &'static str = "checkpoints";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if config.path.is_empty() {
            return Err(Error::config("/path", "no folder is given").hint("set `path` to the checkpoint's folder"));
        }
        Ok(Memory::of_user().sources(&folder::files(&config.path)?)?)
    }

    fn run(config: Config, _: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let folder = Folder::open(&config.path, cx.sources())?;
        let opened = Opened::new(folder.get(folder::CONFIG), folder.weights()).map_err(fault)?;
        opened.verify(|| folder.release()).map_err(fault)?;
        for name in opened.drawn() {
            cx.warn(&format!(
                "`{name}` is in no file, for a bare model was saved: its values are drawn at random, as transformers \
                 does; if the model shares it with the embedding, set `tie_word_embeddings` to true in config.json"
            ));
        }
        let sizes = opened.model().config();
        let text = text_files(&folder, sizes)?;
        let tokenizer = text.tokenizer()?;
        if tokenizer.vocabulary() > sizes.vocab_size {
            let what = format!("the tokenizer has {} tokens, the model {}", tokenizer.vocabulary(), sizes.vocab_size);
            return Err(Error::data(what).hint("take the tokenizer.json that belongs to these weights"));
        }
        cx.made_with_tokenizer(&out.tokenizer, &text.tokenizer_digest()?);
        cx.result("parameters", opened.parameters() as f64);
        cx.single(|unit| {
            unit.count_derived(1);
            unit.count_written(1);
            unit.put(&out.model, folder::CONFIG, folder.get(folder::CONFIG))?;
            if opened.is_foreign() {
                let mut file = unit.file(&out.model, "model.safetensors")?;
                let written = opened.write(&mut Releasing { out: &mut file, folder: &folder });
                written.map_err(|e| file.error(e))?;
                file.finish(unit)?;
            } else {
                for (name, bytes) in folder.weights() {
                    let mut file = unit.file(&out.model, name)?;
                    let mut out = Releasing { out: &mut file, folder: &folder };
                    let written = bytes.chunks(PIECE).try_for_each(|piece| out.write_all(piece));
                    written.map_err(|e| file.error(e))?;
                    file.finish(unit)?;
                }
            }
            unit.put(&out.model, VOCABULARY, &text.tokenizer)?;
            unit.put(&out.model, TEXT, &text.config)?;
            if let Some(generation) = &text.generation {
                unit.put(&out.model, GENERATION, generation)?;
            }
            unit.put(&out.tokenizer, VOCABULARY, &text.tokenizer)?;
            unit.put(&out.tokenizer, TEXT, &text.config)
        })
    }
}

/// Bytes of a file that are copied at a time.
const PIECE: usize = 8 << 20;

/// Writes, and gives back the memory of the files that it was read from, so that a checkpoint larger than memory passes
/// through.
struct Releasing<'a, W> {
    out: &'a mut W,
    folder: &'a Folder,
}

impl<W: Write> Write for Releasing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes);
        self.folder.release();
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What is about text: the chat template and the special tokens go into tokenizer_config.json, wherever they lay.
fn text_files(folder: &Folder, sizes: &Sizes) -> Result<TextFiles, Error> {
    let mut config = folder.find(TEXT).unwrap_or(b"{}").to_vec();
    if let Some(template) = folder.find(TEMPLATE) {
        let template =
            std::str::from_utf8(template).map_err(|e| Error::data(format!("{TEMPLATE} is not UTF-8: {e}")))?;
        config = with_chat_template(&config, template).map_err(fault)?;
    }
    if let Some(map) = folder.find(folder::TOKENS) {
        config = with_special_tokens_map(&config, map).map_err(fault)?;
    }
    let generation = folder.find(GENERATION).map(<[u8]>::to_vec);
    let text = TextFiles { tokenizer: folder.get(VOCABULARY).to_vec(), config, generation };
    let tokenizer = text.tokenizer()?;
    // where the tokenizer names no end, the model's config does
    let ends = sizes.eos_token_id.iter().flat_map(TokenIds::as_slice);
    let end = ends.copied().find_map(|id| tokenizer.special_text(id).map(str::to_owned));
    Ok(match end.filter(|_| tokenizer.eos().is_err()) {
        Some(end) => {
            TextFiles { config: with_fields(&text.config, [("eos_token", end.into())]).map_err(fault)?, ..text }
        }
        None => text,
    })
}
