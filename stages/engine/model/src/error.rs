//! What can be wrong with a checkpoint, a config or a token.

use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("config.json cannot be read: {source}\nhint: it must be the config of a model as Hugging Face writes it")]
    Json {
        #[from]
        source: serde_json::Error,
    },
    /// Two fields that cannot both hold.
    #[error("the model's config contradicts itself: {what}\nhint: {hint}")]
    Config { what: String, hint: &'static str },
    #[error("`{file}` is no safetensors file: {source}\nhint: write the checkpoint again; the file may be cut short")]
    File { file: String, source: safetensors::SafeTensorError },
    #[error(
        "`{name}` is missing: the model expects {expected}\nhint: the config asks for it; take the config.json that was \
         written with these files"
    )]
    Missing { name: String, expected: String },
    #[error(
        "`{name}` is in the checkpoint but not in the model\nhint: the config asks for fewer tensors; take the config.json \
         that was written with these files"
    )]
    Extra { name: String },
    #[error(
        "`{name}` has shape {found} in the checkpoint, {expected} in the model\nhint: config.json and the safetensors files \
         belong to different models"
    )]
    Shape { name: String, expected: String, found: String },
    #[error(
        "`{name}` is stored as {found}; F32, BF16 and block-wise FP8 can be read\nhint: convert the checkpoint to one of them first"
    )]
    DType { name: String, found: String },
    #[error(
        "`{name}` is stored in FP8, but its scale `{name}_scale_inv` {what}\nhint: an FP8 checkpoint holds one scale per block of \
         {rows} × {cols}; convert it again"
    )]
    Scale { name: String, what: String, rows: usize, cols: usize },
    #[error(
        "`{index}` names the shard `{shard}`, which is missing\nhint: the download or copy stopped early; fetch the shard"
    )]
    Shard { index: String, shard: String },
    #[error(
        "token id {id} at place {place} is outside the vocabulary of {vocabulary}\nhint: data and model use different tokenizers"
    )]
    TokenId { id: u32, place: usize, vocabulary: usize },
    #[error(
        "a sequence has {found} tokens; the model knows {limit} positions\nhint: shorten it, or raise `max_position_embeddings`"
    )]
    Position { found: usize, limit: usize },
}
