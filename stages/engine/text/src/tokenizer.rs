//! The tokenizer of a checkpoint.

use crate::Error;
use crate::encoder::Encoder;
use crate::template::{named_token, read_config};

/// The reserved tokens, in the order of their ids when our own `tokenize` made the vocabulary.
pub const SPECIAL: [&str; 9] = [
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|fim_begin|>",
    "<|fim_hole|>",
    "<|fim_end|>",
];

/// An id and its place in the text, in bytes.
pub(crate) type Placed = (u32, std::ops::Range<usize>);

#[derive(Debug)]
pub struct Tokenizer {
    /// Reads special tokens in text as such.
    template: Encoder,
    /// Reads them as the characters they are.
    plain: Encoder,
    special: Vec<(u32, String)>,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Tokenizer {
    /// From tokenizer.json alone, with the special tokens of our own vocabularies where it has them.
    pub fn from_bytes(json: &[u8]) -> Result<Self, Error> {
        Self::new(json, [SPECIAL[0], SPECIAL[1]].map(|token| Some(token.to_owned())))
    }

    /// From tokenizer.json and tokenizer_config.json, which names the tokens that begin and end a text.
    pub fn from_files(json: &[u8], tokenizer_config: &[u8]) -> Result<Self, Error> {
        let config = read_config(tokenizer_config)?;
        Self::new(json, ["bos_token", "eos_token"].map(|name| named_token(&config, name)))
    }

    fn new(json: &[u8], [bos, eos]: [Option<String>; 2]) -> Result<Self, Error> {
        let (template, plain) = (Encoder::new(json, false)?, Encoder::new(json, true)?);
        let added = template.library().get_added_tokens_decoder();
        let mut special: Vec<(u32, String)> =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();
        special.sort();
        let id = |token: Option<String>| token.and_then(|token| template.library().token_to_id(&token));
        let (bos, eos) = (id(bos), id(eos));
        Ok(Self { template, plain, special, bos, eos })
    }

    /// Ids of plain text: nothing is added, and a spelled special token is its characters.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.plain.encode(text)
    }

    /// Ids of rendered text, in which special tokens stand for themselves.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.template.encode(text)
    }

    /// The same with the place of each id in the text, in bytes.
    pub(crate) fn encode_with_places(&self, text: &str) -> Result<Vec<Placed>, Error> {
        let library = self.template.library();
        let encoding = library.encode(text, false).map_err(|error| Error::Encode { what: error.to_string() })?;
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(&id, &(start, end))| (id, start..end)).collect())
    }

    /// The special token that stands first in `text`, the longest of those that begin there.
    pub(crate) fn first_special(&self, text: &str) -> Option<u32> {
        let found = self.special.iter().filter_map(|(id, token)| Some((text.find(token.as_str())?, token.len(), *id)));
        found.min_by_key(|&(place, length, _)| (place, usize::MAX - length)).map(|(_, _, id)| id)
    }

    /// The text of a special token.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        let place = self.special.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.special[place].1)
    }

    /// Text of `ids`, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.plain.library().decode(ids, true).map_err(|error| Error::Encode { what: error.to_string() })
    }

    /// What names a tokenizer: a digest of what decides over its ids. Special tokens' roles, padding and chat templates
    /// are no part of it, nor is the order of the file's fields.
    pub fn digest(json: &[u8]) -> Result<String, Error> {
        let read = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(json);
        let mut file = read.map_err(|error| Error::Tokenizer { what: error.to_string() })?;
        file.retain(|name, _| ["added_tokens", "normalizer", "pre_tokenizer", "model", "decoder"].contains(&&**name));
        let mut file = serde_json::Value::Object(file);
        file.sort_all_objects();
        let bytes = serde_json::to_vec(&file).map_err(|error| Error::Tokenizer { what: error.to_string() })?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }

    pub fn vocabulary(&self) -> usize {
        self.plain.library().get_vocab_size(true)
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.plain.library().token_to_id(token)
    }

    /// The id of a token that must be there.
    pub fn special(&self, token: &str) -> Result<u32, Error> {
        self.id(token).ok_or_else(|| Error::Special { token: token.into() })
    }

    /// What stands before a document; where no token is made for it (Qwen), the one that ends the document before.
    pub fn bos(&self) -> Result<u32, Error> {
        self.bos.map_or_else(|| self.eos(), Ok)
    }

    /// What ends a document.
    pub fn eos(&self) -> Result<u32, Error> {
        self.eos.ok_or_else(|| Error::Special { token: "eos_token".into() })
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search_by_key(&id, |(id, _)| *id).is_ok()
    }

    pub fn pad(&self) -> Result<u32, Error> {
        self.special(SPECIAL[2])
    }

    /// What stands before, in place of, and behind the parts of a document whose middle comes last.
    pub fn fim(&self) -> Result<[u32; 3], Error> {
        Ok([self.special(SPECIAL[6])?, self.special(SPECIAL[7])?, self.special(SPECIAL[8])?])
    }

    /// A special token that `text` spells.
    pub fn spelled<'a>(&'a self, text: &str) -> Option<&'a str> {
        self.special.iter().map(|(_, token)| token.as_str()).find(|token| text.contains(token))
    }
}
