//! Text to tokens and back, and chats to what a model learns from.
//!
//! A chat becomes text by the checkpoint's own template (Jinja, as transformers renders it) and then ids. What is
//! trained is found by rendering prefixes: an assistant's span is what its message adds behind the prompt that
//! generation would start from, so training and generation cannot drift apart.

mod chat;
mod error;
mod template;
mod tokenizer;

pub use chat::{Chat, Trained};
pub use error::Error;
pub use template::{CHAT_TEMPLATE, ChatTemplate, Message, with_chat_template};
pub use tokenizer::{SPECIAL, Tokenizer};
