//! The files of a checkpoint that are about text: tokenizer, chat template, and what ends an answer.

use crate::fault;
use serde_json::{Map, Value, json};
use smelt_model::{Config, TokenIds};
use smelt_stage::Error;
use smelt_text::{CHAT_TEMPLATE, Chat, Tokenizer, has_chat_template, with_chat_template, with_fields};

pub(crate) const GENERATION: &str = "generation_config.json";

/// The files of a checkpoint that are about text.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    /// tokenizer.json
    pub tokenizer: Vec<u8>,
    /// tokenizer_config.json, with the chat template once there is one.
    pub config: Vec<u8>,
    /// generation_config.json, when there is one.
    pub generation: Option<Vec<u8>>,
}

impl TextFiles {
    /// With the chat template for fine-tuning: `template`, or if that is empty the checkpoint's own, or ours if it has
    /// none. A template that cannot be read is an error, and never replaced.
    pub fn speaking(self, template: &str) -> Result<Self, Error> {
        let template = match template {
            "" if has_chat_template(&self.config).map_err(fault)? => None,
            "" => Some(CHAT_TEMPLATE),
            given => Some(given),
        };
        let text = match template {
            Some(template) => Self { config: with_chat_template(&self.config, template).map_err(fault)?, ..self },
            None => self,
        };
        text.chat()?;
        Ok(text)
    }

    /// The tokenizer, with the checkpoint's own tokens that begin and end a text.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_files(&self.tokenizer, &self.config).map_err(fault)
    }

    /// What names the tokenizer: see [`Tokenizer::digest`].
    pub fn tokenizer_digest(&self) -> Result<String, Error> {
        Tokenizer::digest(&self.tokenizer).map_err(fault)
    }

    pub fn chat(&self) -> Result<Chat, Error> {
        Chat::from_files(&self.tokenizer, &self.config).map_err(fault)
    }

    /// The tokens that end what the model writes: those of its config, of its generation config, and of its tokenizer.
    pub fn ends(&self, config: &Config) -> Result<Vec<u32>, Error> {
        let mut ends: Vec<u32> = self.tokenizer()?.eos().ok().into_iter().collect();
        ends.extend(config.eos_token_id.iter().flat_map(TokenIds::as_slice));
        ends.extend(token_ids(self.generation()?.get("eos_token_id")));
        let mut known = Vec::new();
        ends.retain(|id| !known.contains(id) && (*id as usize) < config.vocab_size && (known.push(*id), true).1);
        Ok(ends)
    }

    fn generation(&self) -> Result<Map<String, Value>, Error> {
        let Some(bytes) = &self.generation else { return Ok(Map::new()) };
        serde_json::from_slice(bytes).map_err(|error| Error::data(format!("{GENERATION} cannot be read: {error}")))
    }

    /// With the token that ends a turn as the tokenizer's end and the first end of the generation config, and with the
    /// ends for config.json. Everything else of a generation config stays.
    pub(crate) fn ending_turns(self, config: &Config) -> Result<(Self, TokenIds), Error> {
        let chat = self.chat()?;
        let stop = chat.stop().map_err(fault)?;
        let mut ends = self.ends(config)?;
        ends.retain(|&id| id != stop);
        ends.insert(0, stop);
        let several = |ids: &[u32]| if let [one] = ids { json!(one) } else { json!(ids) };
        let mut generation = self.generation()?;
        for (name, id) in [("bos_token_id", config.bos_token_id), ("pad_token_id", config.pad_token_id)] {
            if let Some(id) = id.filter(|_| self.generation.is_none()) {
                generation.insert(name.into(), id.into());
            }
        }
        generation.insert("eos_token_id".into(), several(&ends));
        let mut generation =
            serde_json::to_vec_pretty(&generation).map_err(|e| Error::bug(format!("{GENERATION} is no JSON: {e}")))?;
        generation.push(b'\n');
        let name = chat.tokenizer.special_text(stop).map(str::to_owned);
        let is_named = chat.tokenizer.eos().is_ok_and(|eos| eos == stop);
        let config_file = match name.filter(|_| !is_named) {
            Some(name) => with_fields(&self.config, [("eos_token", name.into())]).map_err(fault)?,
            None => self.config,
        };
        // a list stays a list: Llama 3 ends with any of three tokens
        let ids = match &config.eos_token_id {
            Some(TokenIds::Several(_)) => TokenIds::Several(ends),
            _ => TokenIds::One(stop),
        };
        Ok((Self { config: config_file, generation: Some(generation), ..self }, ids))
    }
}

/// One id, a list of them, or nothing.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let ids = match value {
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}
