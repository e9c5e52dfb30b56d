//! What can be wrong with a checkpoint, a config or a token.

use smelt_schemas::{ExitCode, Fault};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("config.json cannot be read: {source}")]
    Json {
        #[from]
        source: serde_json::Error,
    },
    /// Two fields that cannot both hold.
    #[error("the model's config contradicts itself: {what}")]
    Config { what: String, hint: &'static str },
    /// A model that this engine does not compute.
    #[error("this model is not supported: {what}")]
    Unsupported { what: String, hint: String },
    /// Weights that should be the same tensor.
    #[error("`{name}` differs from `{of}`, although {why}")]
    Tied { name: String, of: String, why: &'static str },
    /// A file that is something else than its name says.
    #[error("`{file}` {what}")]
    Foreign { file: String, what: String, hint: &'static str },
    #[error("`{file}` is no safetensors file: {source}")]
    File { file: String, source: safetensors::SafeTensorError },
    #[error("`{name}` is missing: the model expects {expected}")]
    Missing { name: String, expected: String },
    #[error("`{name}` is in the checkpoint but not in the model")]
    Extra { name: String },
    #[error("`{name}` has shape {found} in the checkpoint, {expected} in the model")]
    Shape { name: String, expected: String, found: String },
    #[error("`{name}` is stored as {found}; F32, F16, BF16 and block-wise FP8 can be read")]
    DType { name: String, found: String },
    #[error("`{name}` holds {value} at element {place}: every weight must be finite")]
    NotFinite { name: String, place: usize, value: f32 },
    #[error("`{name}` is stored in FP8, but its scale `{name}_scale_inv` {what}")]
    Scale { name: String, what: String, rows: usize, cols: usize },
    #[error("`{index}` names the shard `{shard}`, which is missing")]
    Shard { index: String, shard: String },
    #[error("token id {id} at place {place} is outside the vocabulary of {vocabulary}")]
    TokenId { id: u32, place: usize, vocabulary: usize },
    #[error("a sequence has {found} tokens; the model knows {limit} positions")]
    Position { found: usize, limit: usize },
}

impl Fault for Error {
    /// A checkpoint and the tokens that meet it are data.
    fn exit_code(&self) -> ExitCode {
        ExitCode::Data
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Json { .. } => "it must be the config of a model as Hugging Face writes it".into(),
            Self::Config { hint, .. } | Self::Foreign { hint, .. } => (*hint).into(),
            Self::Unsupported { hint, .. } => hint.clone(),
            Self::Tied { name, .. } => {
                format!("set `tie_word_embeddings` to false if the model uses `{name}`, or remove that tensor")
            }
            Self::File { .. } => "write the checkpoint again; the file may be cut short".into(),
            Self::Missing { .. } => {
                "the config asks for it; take the config.json that was written with these files".into()
            }
            Self::Extra { .. } => {
                "the config asks for fewer tensors; take the config.json that was written with these files".into()
            }
            Self::Shape { .. } => "config.json and the safetensors files belong to different models".into(),
            Self::DType { .. } => "convert the checkpoint to one of them first".into(),
            Self::Scale { rows, cols, .. } => {
                format!("an FP8 checkpoint holds one scale per block of {rows} × {cols}; convert it again")
            }
            Self::NotFinite { .. } => {
                "the training that wrote it diverged, or the file is damaged: go back to an earlier checkpoint, and \
                 lower the learning rate"
                    .into()
            }
            Self::Shard { .. } => "the download or copy stopped early; fetch the shard".into(),
            Self::TokenId { .. } => "data and model use different tokenizers".into(),
            Self::Position { .. } => "shorten it, or raise `max_position_embeddings`".into(),
        })
    }

    fn place(&self) -> Option<String> {
        match self {
            Self::Json { .. } | Self::Config { .. } | Self::Unsupported { .. } => Some("config.json".into()),
            Self::File { file, .. } | Self::Foreign { file, .. } => Some(file.clone()),
            Self::Tied { name, .. }
            | Self::Missing { name, .. }
            | Self::Extra { name }
            | Self::Shape { name, .. }
            | Self::DType { name, .. }
            | Self::NotFinite { name, .. }
            | Self::Scale { name, .. } => Some(name.clone()),
            Self::Shard { index, .. } => Some(index.clone()),
            Self::TokenId { .. } | Self::Position { .. } => None,
        }
    }
}
