//! Loads checkpoint artifacts as models with tokenizer and chat template, and writes them: what every stage with a
//! model does first and last.
//!
//! Floor 5, beside train and generate: it sees the stage contract, the model and the text crate, so that those three
//! need not see each other.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::{Backend, DType};
use smelt_model::{Config, Model, Params, Precision, load, save};
use smelt_schemas::Fault;
use smelt_stage::kinds::{Checkpoint, KindType, Message, Tokenizer};
use smelt_stage::{Artifact, Error, Mapped, Port, Unit};
use std::sync::Arc;

pub mod device;
mod text;
mod tokenizers;

pub use text::TextFiles;
pub use tokenizers::{Use, expect_one_tokenizer};

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

impl Loaded {
    /// Its weights on the device of `backend`.
    #[must_use]
    pub fn on(self, backend: &dyn Backend) -> Self {
        Self { params: self.params.on(backend), ..self }
    }
}

/// An engine's error as a stage's.
pub fn fault(error: impl Fault) -> Error {
    Error::of(&error)
}

fn text_files<K: KindType>(artifact: &Artifact<K>) -> Result<TextFiles, Error> {
    let has_generation = artifact.files().iter().any(|file| file.path == text::GENERATION);
    Ok(TextFiles {
        tokenizer: artifact.bytes_of("tokenizer.json")?,
        config: artifact.bytes_of("tokenizer_config.json")?,
        generation: has_generation.then(|| artifact.bytes_of(text::GENERATION)).transpose()?,
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

    /// Its model computes its products in `precision`.
    pub fn in_precision(self, precision: Precision) -> Result<Self, Error> {
        let model = Model::new(self.model.config().clone()).map_err(fault)?;
        Ok(Self { model: Arc::new(model.in_precision(precision)), ..self })
    }

    /// The tokenizer and the chat template; an error without a template.
    pub fn chat(&self) -> Result<smelt_text::Chat, Error> {
        self.text.chat()
    }

    /// With the token that ends a turn as the model's end, in all three files that say so: a model that is trained on
    /// whole turns stops by itself, here, in transformers and in vLLM.
    pub fn ending_turns(self) -> Result<Self, Error> {
        let (text, ends) = self.text.ending_turns(self.model.config())?;
        let config = Config { eos_token_id: Some(ends), ..self.model.config().clone() };
        let model = Model::new(config).map_err(fault)?.in_precision(self.model.precision());
        Ok(Self { model: Arc::new(model), text, ..self })
    }
}

/// What a checkpoint says of itself, without its weights.
pub fn about(artifact: &Artifact<Checkpoint>) -> Result<(Config, TextFiles), Error> {
    let config = Config::from_json(&artifact.bytes_of("config.json")?).map_err(fault)?;
    Ok((config, text_files(artifact)?))
}

/// Writes a checkpoint to a port, with its tokenizer, as `transformers` loads it. Weights that are not finite are an
/// error: nobody can go on from them.
pub fn write(
    unit: &mut Unit,
    port: &Port<Checkpoint>,
    model: &Model,
    params: &Params,
    text: &TextFiles,
    storage: Storage,
) -> Result<(), Error> {
    params.expect_finite().map_err(fault)?;
    for file in save(model, params, storage.dtype()) {
        let mut out = unit.file(port, &file.name)?;
        let written = file.write(&mut out);
        written.map_err(|e| out.error(e))?;
        out.finish(unit)?;
    }
    unit.put(port, "tokenizer.json", &text.tokenizer)?;
    unit.put(port, "tokenizer_config.json", &text.config)?;
    text.generation.as_ref().map_or(Ok(()), |generation| unit.put(port, text::GENERATION, generation))
}

/// A model with a reward head that starts from `loaded`'s parameters.
pub fn with_reward_head(loaded: &Loaded, init: &smelt_model::Init) -> Result<(Arc<Model>, Params), Error> {
    let model = Model::new(Config { reward_head: true, ..loaded.model.config().clone() }).map_err(fault)?;
    let mut params = model.init(init);
    params.adopt(&loaded.params);
    Ok((Arc::new(model.in_precision(loaded.model.precision())), params))
}

/// The messages of a row as a chat template reads them; `system` is for rows that have no system message of their own.
pub fn with_system(row: &[Message], system: Option<&str>) -> Vec<smelt_text::Message> {
    let system = system.filter(|_| row.iter().all(|message| message.role != "system"));
    let system = system.map(|text| smelt_text::Message::new("system", text));
    system.into_iter().chain(messages(row)).collect()
}

/// The messages of a row as a chat template reads them.
pub fn messages(messages: &[Message]) -> Vec<smelt_text::Message> {
    messages.iter().map(|message| smelt_text::Message::new(&message.role, message.content.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_own_system_message_stays() {
        let own = [Message::new("system", "Be brief."), Message::new("user", "1+2")];
        let texts = |row: &[Message], system| -> Vec<String> {
            with_system(row, system)
                .into_iter()
                .map(|message| format!("{}: {}", message.role, message.content))
                .collect()
        };
        assert_eq!(texts(&own, Some("Think.")), ["system: Be brief.", "user: 1+2"]);
        assert_eq!(texts(&own, None), ["system: Be brief.", "user: 1+2"]);
        assert_eq!(texts(&own[1..], Some("Think.")), ["system: Think.", "user: 1+2"]);
        assert_eq!(texts(&own[1..], None), ["user: 1+2"]);
    }
}
