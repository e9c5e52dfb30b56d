//! Text to tokens and back, and chats to what a model learns from.
//!
//! A chat becomes text by the checkpoint's own template (Jinja, as transformers renders it) and then ids. What is
//! trained is what the template marks by `{% generation %}`, or else is found by rendering prefixes: an assistant's
//! span is what its message adds behind the prompt that generation would start from, so training and generation cannot
//! drift apart. An answer that the template writes otherwise in a longer chat (Qwen3 leaves out old thoughts) is not
//! trained.

mod chat;
pub mod encoder;
mod error;
mod python;
mod template;
mod tokenizer;

pub use chat::{Chat, Trained};
pub use error::Error;
pub use template::{
    CHAT_TEMPLATE, ChatTemplate, Message, Rendered, has_chat_template, with_chat_template, with_fields,
    with_special_tokens_map,
};
pub use tokenizer::{SPECIAL, Tokenizer};
