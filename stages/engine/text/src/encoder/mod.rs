//! Text to ids for byte-level BPE tokenizers, several times as fast as the tokenizers library and with the same ids.
//!
//! Most tokenizers of today are of one form: the text is cut into pieces by one of a few expressions, and merges join
//! the bytes of each piece. That form is written out here, with a cache of pieces. What a `tokenizer.json` may hold
//! beyond it (another model or normalizer, other expressions, options of added tokens) is left to the library, whole:
//! [`Encoder::new`] reads the file and decides.

mod cache;
mod classes;
mod merges;
mod pattern;
mod pieces;
#[cfg(test)]
mod tests;

pub use pieces::Pattern;

use crate::Error;
use aho_corasick::{AhoCorasick, MatchKind};
use cache::{Cache, SHORT};
use merges::{Merges, Scratch};
use rustc_hash::FxHashMap;
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};
use tokenizers::ModelWrapper;

/// Encodes as the tokenizers library does.
#[derive(Debug)]
pub struct Encoder {
    /// The library's, for texts and tokenizers that are not written out here.
    library: tokenizers::Tokenizer,
    fast: Option<Fast>,
    /// Caches that no thread uses now.
    idle: Mutex<Vec<State>>,
}

/// What a byte-level BPE tokenizer is made of.
#[derive(Debug)]
struct Fast {
    pattern: Pattern,
    merges: Merges,
    /// Texts must be in Unicode's form NFC; others go to the library.
    is_nfc: bool,
    /// Tokens that are found in the text as it stands, then those found between them.
    added: [Option<Added>; 2],
}

/// Added tokens, found in a text before it is cut.
#[derive(Debug)]
struct Added {
    search: AhoCorasick,
    /// Id of each pattern; none for tokens that are text here.
    ids: Vec<Option<u32>>,
}

/// What an encoding thread reuses.
#[derive(Debug, Default)]
struct State {
    cache: Cache,
    scratch: Scratch,
}

impl Encoder {
    /// From `tokenizer.json`. With `spell_special` a special token in a text is the characters that it is spelled with.
    pub fn new(json: &[u8], spell_special: bool) -> Result<Self, Error> {
        let mut library =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| Error::Tokenizer { what: error.to_string() })?;
        library.set_encode_special_tokens(spell_special);
        let fast = Fast::of(&library, json, spell_special);
        Ok(Self { library, fast, idle: Mutex::default() })
    }

    /// The library's tokenizer, which knows all else about it.
    pub fn library(&self) -> &tokenizers::Tokenizer {
        &self.library
    }

    /// How texts are cut into pieces, if that and the rest of the tokenizer are written out here.
    pub fn pattern(&self) -> Option<Pattern> {
        self.fast.as_ref().map(|fast| fast.pattern)
    }

    /// The ids of one text; nothing is added to them.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        match &self.fast {
            Some(fast) if !fast.is_nfc || is_nfc(text) => {
                let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                let mut state = idle().pop().unwrap_or_default();
                let mut ids = Vec::with_capacity(text.len() / 4 + 8);
                fast.encode(text, 0, &mut state, &mut ids);
                idle().push(state);
                Ok(ids)
            }
            _ => self.encode_by_library(text),
        }
    }

    fn encode_by_library(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding =
            self.library.encode_fast(text, false).map_err(|error| Error::Encode { what: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// Whether normalizing to NFC would certainly change nothing.
fn is_nfc(text: &str) -> bool {
    text.is_ascii() || unicode_normalization::is_nfc_quick(text.chars()) == unicode_normalization::IsNormalized::Yes
}

impl Fast {
    /// `None` where the tokenizer has anything that is not written out here.
    fn of(library: &tokenizers::Tokenizer, json: &[u8], spell_special: bool) -> Option<Self> {
        let ModelWrapper::BPE(model) = library.get_model() else { return None };
        let is_plain = library.get_truncation().is_none()
            && library.get_padding().is_none()
            && model.dropout.is_none_or(|dropout| dropout == 0.0)
            && model.continuing_subword_prefix.as_ref().is_none_or(String::is_empty)
            && model.end_of_word_suffix.as_ref().is_none_or(String::is_empty);
        if !is_plain {
            return None;
        }
        let is_nfc = normalizes_to_nfc(&serde_json::to_value(library.get_normalizer()).ok()?)?;
        let pattern = Pattern::of(&serde_json::to_value(library.get_pre_tokenizer()?).ok()?)?;
        let vocabulary = library.get_vocab(false);
        let mut bytes = [0; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            *id = *vocabulary.get(character(byte as u8).encode_utf8(&mut [0; 4]))?;
        }
        let File { model: FileModel { merges: list } } = serde_json::from_slice(json).ok()?;
        let id = |token: &str| vocabulary.get(token).copied();
        let pairs = list.pairs();
        let merged = |&(left, right): &(&str, &str)| Some(([id(left)?, id(right)?], id(&[left, right].concat())?));
        let pairs: Vec<([u32; 2], u32)> = pairs.iter().map(merged).collect::<Option<_>>()?;
        let mut whole = FxHashMap::default();
        if model.ignore_merges {
            let byte_of: FxHashMap<char, u8> = (0..=255).map(|byte| (character(byte), byte)).collect();
            let spelled = |token: &str| token.chars().map(|c| byte_of.get(&c).copied()).collect::<Option<Box<[u8]>>>();
            whole.extend(vocabulary.iter().filter_map(|(token, &id)| Some((spelled(token)?, id))));
        }
        let merges = Merges::new(bytes, &pairs, whole);
        let mut tokens: Vec<_> = library.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        if tokens.iter().any(|(_, token)| token.single_word || token.lstrip || token.rstrip || token.content.is_empty())
            // how a normalized token is spelled is the library's business
            || is_nfc && tokens.iter().any(|(_, token)| token.normalized && !token.content.is_ascii())
        {
            return None;
        }
        let mut added = [None, None];
        for (place, normalized) in added.iter_mut().zip([false, true]) {
            let of_pass = || tokens.iter().filter(|(_, token)| token.normalized == normalized);
            let ids: Vec<Option<u32>> =
                of_pass().map(|(id, token)| (!(spell_special && token.special)).then_some(*id)).collect();
            if ids.iter().all(Option::is_none) {
                continue;
            }
            let contents = of_pass().map(|(_, token)| token.content.as_str());
            let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents).ok()?;
            *place = Some(Added { search, ids });
        }
        Some(Self { pattern, merges, is_nfc, added })
    }

    /// Finds added tokens from pass `pass` on, and encodes what is between them.
    fn encode(&self, text: &str, pass: usize, state: &mut State, ids: &mut Vec<u32>) {
        let Some(added) = self.added.get(pass) else { return self.encode_plain(text, state, ids) };
        let Some(Added { search, ids: tokens }) = added else { return self.encode(text, pass + 1, state, ids) };
        let mut start = 0;
        for found in search.find_iter(text) {
            if let Some(id) = tokens[found.pattern().as_usize()] {
                self.encode(&text[start..found.start()], pass + 1, state, ids);
                ids.push(id);
                start = found.end();
            }
        }
        self.encode(&text[start..], pass + 1, state, ids);
    }

    fn encode_plain(&self, text: &str, state: &mut State, ids: &mut Vec<u32>) {
        let State { cache, scratch } = state;
        let bytes = text.as_bytes();
        self.pattern.cut(text, |start, end| {
            if end - start <= SHORT {
                let key = cache::key(bytes, start, end);
                if !cache.short(key, ids) {
                    let from = ids.len();
                    self.merges.apply(&bytes[start..end], scratch, ids);
                    cache.keep_short(key, &ids[from..]);
                }
                return;
            }
            let piece = &bytes[start..end];
            if !cache.long(piece, ids) {
                let from = ids.len();
                self.merges.apply(piece, scratch, ids);
                cache.keep_long(piece, &ids[from..]);
            }
        });
    }
}

/// Whether the normalizer is NFC (true) or changes nothing (false); `None` for all others.
fn normalizes_to_nfc(normalizer: &serde_json::Value) -> Option<bool> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(false),
        Some("NFC") => Some(true),
        Some("Sequence") => {
            let parts = normalizer["normalizers"].as_array()?.iter().map(normalizes_to_nfc);
            Some(parts.collect::<Option<Vec<bool>>>()?.contains(&true))
        }
        _ => None,
    }
}

/// The character that stands for a byte in a byte-level vocabulary: itself if it can be printed, else one from U+0100
/// on.
pub fn character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + before).expect("at most 68 bytes cannot be printed")
}

/// What the library does not tell of a `tokenizer.json`.
#[derive(Deserialize)]
struct File {
    model: FileModel,
}

#[derive(Deserialize)]
struct FileModel {
    merges: List,
}

/// Merges in order, as pairs or, in older files, with a blank between both tokens.
#[derive(Deserialize)]
#[serde(untagged)]
enum List {
    Pairs(Vec<(String, String)>),
    Lines(Vec<String>),
}

impl List {
    fn pairs(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Pairs(pairs) => pairs.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect(),
            Self::Lines(lines) => lines
                .iter()
                .filter(|line| !line.starts_with("#version"))
                .filter_map(|line| line.split_once(' '))
                .collect(),
        }
    }
}
