//! What can be wrong with a tokenizer, a template or a chat.

use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("tokenizer.json cannot be read: {what}\nhint: it must be what Hugging Face's `tokenizers` writes")]
    Tokenizer { what: String },
    #[error("the tokenizer has no token `{token}`\nhint: `tokenize` reserves it; take a tokenizer that was made by it")]
    Special { token: String },
    #[error("the text cannot be encoded: {what}")]
    Encode { what: String },
    #[error("tokenizer_config.json cannot be read: {source}")]
    Config { source: serde_json::Error },
    #[error("the checkpoint has no chat template\nhint: `sft` writes one; use a fine-tuned checkpoint")]
    NoTemplate,
    #[error("the chat template fails: {source}\nhint: it is `chat_template` in tokenizer_config.json")]
    Template { source: minijinja::Error },
    /// A message spells a special token: it would become one.
    #[error(
        "message {message} spells the special token `{token}`\nhint: remove it from the text, or leave the conversation out"
    )]
    Spelled { message: usize, token: String },
    #[error(
        "nothing in the conversation is trained: it has no assistant's answer\nhint: end it with one, or leave it out"
    )]
    Nothing,
    #[error(
        "the chat template does not build on its own prompts: what it makes of {messages} messages does not begin with the prompt \
         before the last\nhint: a template must render a longer chat as a continuation of the shorter one"
    )]
    Prefix { messages: usize },
}
