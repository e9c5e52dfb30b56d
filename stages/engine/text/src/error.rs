//! What can be wrong with a tokenizer, a template or a chat.

use smelt_schemas::{ExitCode, Fault};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("tokenizer.json cannot be read: {what}")]
    Tokenizer { what: String },
    #[error("the tokenizer has no token `{token}`")]
    Special { token: String },
    #[error("the text cannot be encoded: {what}")]
    Encode { what: String },
    #[error("tokenizer_config.json cannot be read: {source}")]
    Config { source: serde_json::Error },
    #[error("the checkpoint has no chat template")]
    NoTemplate,
    /// `what` begins with the line, where there is one.
    #[error("the chat template fails{what}")]
    Template { what: String },
    /// A message spells a special token: it would become one.
    #[error("message {message} spells the special token `{token}`")]
    Spelled { message: usize, token: String },
    #[error("nothing in the conversation is trained: it has no assistant's answer")]
    Nothing,
    /// What the model would be asked with is not what stands before its answer in training.
    #[error("no answer can be trained: the chat template writes message {message} otherwise than a model would")]
    Rewritten { message: usize },
}

impl Fault for Error {
    /// A tokenizer, a template and what is said with them are data.
    fn exit_code(&self) -> ExitCode {
        ExitCode::Data
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Tokenizer { .. } => "it must be what Hugging Face's `tokenizers` writes",
            Self::Special { .. } => "`tokenize` reserves it; take a tokenizer that was made by it",
            Self::NoTemplate => "`sft` writes one; use a fine-tuned checkpoint",
            Self::Template { .. } => {
                "mend `chat_template` in tokenizer_config.json, or give `sft` another one by its field `chat_template`"
            }
            Self::Spelled { .. } => "remove it from the text, or leave the conversation out",
            Self::Nothing => "end it with one, or leave it out",
            Self::Rewritten { .. } => {
                "a template must begin an answer with its generation prompt, and end it as it stands in a longer chat"
            }
            Self::Encode { .. } | Self::Config { .. } => return None,
        };
        Some(hint.into())
    }

    fn place(&self) -> Option<String> {
        match self {
            Self::Tokenizer { .. } => Some("tokenizer.json".into()),
            Self::Config { .. } | Self::NoTemplate | Self::Template { .. } => Some("tokenizer_config.json".into()),
            Self::Spelled { message, .. } => Some(format!("message {message}")),
            _ => None,
        }
    }
}
