//! Chat templates, as transformers renders them.

use crate::Error;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// `<|bos|>[<|system|>Think step by step.]<|user|>3+4*2-1<|assistant|>...<|eos|>`
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + \
message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// From tokenizer_config.json.
    pub fn from_config(tokenizer_config: &[u8]) -> Result<Self, Error> {
        let config = read_config(tokenizer_config)?;
        let template = config.get("chat_template").and_then(Value::as_str).ok_or(Error::NoTemplate)?;
        let token = |name: &str| named_token(&config, name).unwrap_or_default();
        Self::new(template, &token("bos_token"), &token("eos_token"))
    }

    pub fn new(template: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|source| Error::Template { source })?);
        environment.add_function("raise_exception", |what: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, what))
        });
        let added = environment.add_template_owned("chat", template.to_owned());
        added.map_err(|source| Error::Template { source })?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into() })
    }

    /// The text of a chat; with `add_generation_prompt` up to where the assistant would begin.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let context = context! {
            messages => Serde(messages), add_generation_prompt, bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str()
        };
        let template = self.environment.get_template("chat");
        template.and_then(|template| template.render(context)).map_err(|source| Error::Template { source })
    }
}

/// tokenizer_config.json with `template` as its chat template.
pub fn with_chat_template(tokenizer_config: &[u8], template: &str) -> Result<Vec<u8>, Error> {
    let mut config = read_config(tokenizer_config)?;
    config.insert("chat_template".into(), template.into());
    let mut bytes = serde_json::to_vec_pretty(&config).map_err(|source| Error::Config { source })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A token stands in tokenizer_config.json as text, or as an object with its text in it.
pub(crate) fn named_token(config: &Map<String, Value>, name: &str) -> Option<String> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

pub(crate) fn read_config(tokenizer_config: &[u8]) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice(tokenizer_config).map_err(|source| Error::Config { source })
}
