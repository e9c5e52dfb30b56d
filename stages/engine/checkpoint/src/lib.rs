//! Loads checkpoint artifacts as models with tokenizer and chat template, and writes them: what every stage with a
//! model does first and last.
//!
//! Floor 5, beside train and generate: it sees the stage contract, the model and the text crate, so that those three
//! need not see each other.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::DType;
use smelt_model::{Config, Model, Params, load, save};
use smelt_schemas::Fault;
use smelt_stage::kinds::{Checkpoint, KindType, Message, Tokenizer};
use smelt_stage::{Artifact, Error, Mapped, Port, Unit};
use smelt_text::{CHAT_TEMPLATE, Chat, with_chat_template};
use std::sync::Arc;

/// The files of a checkpoint that are about text.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    /// tokenizer.json
    pub tokenizer: Vec<u8>,
    /// tokenizer_config.json, with the chat template once there is one.
    pub config: Vec<u8>,
}

/// How the weights of a checkpoint are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    #[default]
    Fp32,
    Bf16,
    /// E4M3 in blocks of 128 × 128 with their scales, as DeepSeek-V3 was released; tensors whose dims are no
    /// multiples, embeddings, heads, norms and routers stay in bf16.
    Fp8,
}

impl Storage {
    pub fn dtype(self) -> DType {
        match self {
            Storage::Fp32 => DType::F32,
            Storage::Bf16 => DType::Bf16,
            Storage::Fp8 => DType::E4m3,
        }
    }
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Loaded {
    pub model: Arc<Model>,
    pub params: Params,
    pub text: TextFiles,
    /// Of the artifact.
    pub digest: String,
}

/// An engine's error as a stage's.
pub fn fault(error: impl Fault) -> Error {
    Error::of(&error)
}

fn text_files<K: KindType>(artifact: &Artifact<K>) -> Result<TextFiles, Error> {
    Ok(TextFiles {
        tokenizer: artifact.bytes_of("tokenizer.json")?,
        config: artifact.bytes_of("tokenizer_config.json")?,
    })
}

/// The files of a `tokenizer` artifact.
pub fn tokenizer(artifact: &Artifact<Tokenizer>) -> Result<TextFiles, Error> {
    text_files(artifact)
}

impl Loaded {
    pub fn open(artifact: &Artifact<Checkpoint>) -> Result<Self, Error> {
        let config = artifact.bytes_of("config.json")?;
        let is_weight = |path: &str| path.ends_with(".safetensors") || path.ends_with(".safetensors.index.json");
        let weights = artifact.files().iter().filter(|file| is_weight(&file.path));
        let weights: Vec<(&str, Mapped)> =
            weights.map(|file| Ok((file.path.as_str(), artifact.map(&file.path)?))).collect::<Result<_, Error>>()?;
        let files = weights.iter().map(|(name, file)| (*name, &**file));
        let (model, params) = load(&config, files).map_err(fault)?;
        let digest = artifact.digest().as_str().to_owned();
        Ok(Self { model: Arc::new(model), params, text: text_files(artifact)?, digest })
    }

    /// The tokenizer and the chat template; an error without a template.
    pub fn chat(&self) -> Result<Chat, Error> {
        self.text.chat()
    }
}

impl TextFiles {
    /// With the chat template for fine-tuning: `template`, or if that is empty the checkpoint's own, or ours if it has
    /// none.
    pub fn speaking(self, template: &str) -> Result<Self, Error> {
        if template.is_empty() && self.chat().is_ok() {
            return Ok(self);
        }
        let template = if template.is_empty() { CHAT_TEMPLATE } else { template };
        Ok(Self { config: with_chat_template(&self.config, template).map_err(fault)?, ..self })
    }

    /// The tokenizer, with the checkpoint's own tokens that begin and end a text.
    pub fn tokenizer(&self) -> Result<smelt_text::Tokenizer, Error> {
        smelt_text::Tokenizer::from_files(&self.tokenizer, &self.config).map_err(fault)
    }

    pub fn chat(&self) -> Result<Chat, Error> {
        Chat::from_files(&self.tokenizer, &self.config).map_err(fault)
    }
}

/// Writes a checkpoint to a port, with its tokenizer, as `transformers` loads it.
pub fn write(
    unit: &mut Unit,
    port: &Port<Checkpoint>,
    model: &Model,
    params: &Params,
    text: &TextFiles,
    storage: Storage,
) -> Result<(), Error> {
    for file in save(model, params, storage.dtype()) {
        let mut out = unit.file(port, &file.name)?;
        let written = file.write(&mut out);
        written.map_err(|e| out.error(e))?;
        out.finish(unit)?;
    }
    unit.put(port, "tokenizer.json", &text.tokenizer)?;
    unit.put(port, "tokenizer_config.json", &text.config)
}

/// A model with a reward head that starts from `loaded`'s parameters.
pub fn with_reward_head(loaded: &Loaded, init: &smelt_model::Init) -> Result<(Arc<Model>, Params), Error> {
    let model = Model::new(Config { reward_head: true, ..loaded.model.config().clone() }).map_err(fault)?;
    let mut params = model.init(init);
    params.adopt(&loaded.params);
    Ok((Arc::new(model), params))
}

/// The messages of a row as a chat template reads them; `system` replaces what the row says: None leaves no system
/// prompt.
pub fn with_system(messages: &[Message], system: Option<&str>) -> Vec<smelt_text::Message> {
    let rest = messages.iter().filter(|message| message.role != "system");
    let rest = rest.map(|message| smelt_text::Message::new(&message.role, message.content.as_str()));
    system.map(|text| smelt_text::Message::new("system", text)).into_iter().chain(rest).collect()
}

/// The messages of a row as a chat template reads them.
pub fn messages(messages: &[Message]) -> Vec<smelt_text::Message> {
    messages.iter().map(|message| smelt_text::Message::new(&message.role, message.content.as_str())).collect()
}
