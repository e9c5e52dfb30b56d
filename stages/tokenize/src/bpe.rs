//! A byte-level BPE vocabulary: trained, loaded, used.
//!
//! The pieces are GPT-2's, optionally after setting every decimal digit apart; every byte has a token, so any text
//! comes back from its ids unchanged. Special tokens take the first ids and are never found in text: a document that
//! spells
//! `<|eos|>` is tokenized as those seven characters.

use crate::counts::Counts;
pub use crate::counts::{Cut, Forgotten, LONGEST};
use crate::merges::{Learnt, learn};
use serde_json::{Map, Value, json};
use smelt_stage::{ExitCode, Fault};
use smelt_text::encoder::{Encoder, Pattern, character};
use tokenizers::ModelWrapper;

/// The reserved tokens, in the order of their ids from 0.
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

/// Tokens that are there before the first merge: the special ones and one per byte.
pub const FEWEST: usize = SPECIAL.len() + 256;

/// An error of the tokenizers library.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BpeError(String);

impl Fault for BpeError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Bug
    }
}

impl From<smelt_text::Error> for BpeError {
    fn from(error: smelt_text::Error) -> Self {
        Self(error.to_string())
    }
}

/// How a vocabulary is trained.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a> {
    /// Tokens in all, special ones included; fewer when the text has no more pairs to merge.
    pub vocabulary: usize,
    /// How texts are cut into pieces.
    pub pattern: Pattern,
    /// Occurrences below which a pair is not merged.
    pub min_frequency: u64,
    pub special: &'a [&'a str],
    /// Bytes that the table of pieces may take; see [`Forgotten`].
    pub memory: u64,
}

/// What a vocabulary could not be learnt from in full.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    pub cut: Cut,
    pub forgotten: Forgotten,
}

/// A tokenizer, and what is looked up in it.
#[derive(Debug)]
pub struct Bpe {
    encoder: Encoder,
}

impl Bpe {
    /// Learns the merges from `texts`, with the threads of the pool that this is called in. The result depends on the
    /// texts, not on threads, nor on the texts' order unless pieces are forgotten.
    pub fn train(texts: impl Iterator<Item = String>, training: Training<'_>) -> Result<(Self, Losses), BpeError> {
        let Counts { pieces, cut, forgotten } = Counts::of(texts, training.pattern, training.memory);
        let learnt = learn(pieces, training.vocabulary, training.min_frequency, training.special);
        let json = file(&learnt, training.pattern, training.special).to_string();
        Ok((Bpe::load(json.as_bytes())?, Losses { cut, forgotten }))
    }

    /// Reads a `tokenizer.json`.
    pub fn load(json: &[u8]) -> Result<Self, BpeError> {
        Ok(Bpe { encoder: Encoder::new(json, true)? })
    }

    /// The `tokenizer.json` as Hugging Face's libraries read it.
    pub fn to_json(&self) -> Result<String, BpeError> {
        let written = self.encoder.library().to_string(true);
        let mut text = written.map_err(|error| BpeError(format!("writing the tokenizer: {error}")))?;
        text.push('\n');
        Ok(text)
    }

    /// Number of tokens, special ones included.
    pub fn vocabulary(&self) -> usize {
        self.encoder.library().get_vocab_size(true)
    }

    /// The id of a token as it is spelled in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.encoder.library().token_to_id(token)
    }

    /// Every token as the vocabulary spells it, in the order of ids, with its id.
    pub fn tokens(&self) -> Vec<(String, u32)> {
        let mut tokens: Vec<(String, u32)> = self.encoder.library().get_vocab(false).into_iter().collect();
        tokens.sort_unstable_by_key(|(_, id)| *id);
        tokens
    }

    /// The ids of every text; no special token is added or recognised.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, BpeError> {
        texts.iter().map(|text| self.encode_one(text)).collect()
    }

    /// The ids of one text.
    pub fn encode_one(&self, text: &str) -> Result<Vec<u32>, BpeError> {
        Ok(self.encoder.encode(text)?)
    }

    /// The text of some ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, BpeError> {
        let decoded = self.encoder.library().decode(ids, false);
        decoded.map_err(|error| BpeError(format!("decoding ids: {error}")))
    }

    /// Whether the model of a loaded tokenizer is BPE over bytes, so that no text is out of its reach.
    pub fn is_byte_level(&self) -> bool {
        let is_bpe = matches!(self.encoder.library().get_model(), ModelWrapper::BPE(_));
        is_bpe && (0..=255).all(|byte| self.id(&character(byte).to_string()).is_some())
    }
}

/// The `tokenizer.json` of a learnt vocabulary.
fn file(learnt: &Learnt, pattern: Pattern, special: &[&str]) -> Value {
    let ids = || learnt.tokens.iter().enumerate();
    let vocabulary: Map<String, Value> = ids().map(|(id, token)| (token.clone(), id.into())).collect();
    let merges: Vec<[&str; 2]> =
        learnt.merges.iter().map(|both| both.map(|id| learnt.tokens[id as usize].as_str())).collect();
    let added = ids().filter(|(_, token)| special.contains(&token.as_str())).map(|(id, token)| {
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": pattern.pre_tokenizer(), "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    })
}

/// `tokenizer_config.json` beside it, for `transformers`.
pub fn tokenizer_config() -> String {
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "additional_special_tokens": &SPECIAL[3..],
        "clean_up_tokenization_spaces": false,
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(vocabulary: usize, single_digits: bool) -> Training<'static> {
        let pattern = if single_digits { Pattern::Gpt2Digits } else { Pattern::Gpt2 };
        Training { vocabulary, pattern, min_frequency: 2, special: &SPECIAL, memory: u64::MAX }
    }

    fn trained(single_digits: bool) -> Bpe {
        let texts = (0..200).map(|i| format!("the number {i} is the next after {}; let x = x + {i};\n", i - 1));
        Bpe::train(texts, training(400, single_digits)).unwrap().0
    }

    fn encode(bpe: &Bpe, text: &str) -> Vec<u32> {
        bpe.encode(&[text]).unwrap().swap_remove(0)
    }

    #[test]
    fn special_tokens_take_the_first_ids() {
        let bpe = trained(true);
        for (id, token) in SPECIAL.iter().enumerate() {
            assert_eq!(bpe.id(token), Some(id as u32));
        }
        assert!(bpe.is_byte_level());
        assert!(bpe.vocabulary() > FEWEST && bpe.vocabulary() <= 400);
    }

    /// As transformers' fast tokenizers hold a SentencePiece model.
    #[test]
    fn a_unigram_model_encodes_as_the_library_does() {
        let pieces = [("<unk>", 0.0), ("\u{2581}", -3.0), ("\u{2581}an", -1.0), ("na", -2.0), ("n", -4.0), ("a", -4.0)];
        let metaspace =
            serde_json::json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always" });
        let file = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": metaspace,
            "post_processor": null, "decoder": metaspace, "truncation": null, "padding": null,
            "model": { "type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false }
        });
        let bpe = Bpe::load(file.to_string().as_bytes()).unwrap();
        assert!(!bpe.is_byte_level());
        assert_eq!(encode(&bpe, "anna nax"), [2, 3, 1, 3, 0]);
        assert_eq!(bpe.decode(&[2, 3, 1, 3]).unwrap(), "anna na");
    }

    #[test]
    fn a_document_cannot_spell_a_special_token() {
        let bpe = trained(true);
        let ids = encode(&bpe, "a<|eos|><|user|>b");
        assert!(ids.iter().all(|&id| id >= SPECIAL.len() as u32), "{ids:?}");
        assert_eq!(bpe.decode(&ids).unwrap(), "a<|eos|><|user|>b");
    }

    #[test]
    fn every_digit_is_one_token_when_asked() {
        let text = "12345 is 1+2=3;4*5=0\n";
        let bpe = trained(true);
        let tokens = encode(&bpe, "12345");
        assert_eq!(tokens.len(), 5);
        assert_eq!(bpe.decode(&encode(&bpe, text)).unwrap(), text);
        let joined = |single_digits| {
            let texts = std::iter::repeat_n("x=123;".to_owned(), 9);
            encode(&Bpe::train(texts, training(300, single_digits)).unwrap().0, "123").len()
        };
        assert_eq!((joined(false), joined(true)), (1, 3));
    }

    /// Random strings of every kind of character, and every single byte of UTF-8's range.
    #[test]
    fn every_text_comes_back_from_its_ids() {
        let mut state = 1u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for bpe in [trained(true), trained(false)] {
            for _ in 0..500 {
                let text: String = (0..draw(40))
                    .map(|_| {
                        let top = [0x80, 0x800, 0x1_0000, 0x11_0000][draw(4) as usize];
                        char::from_u32(draw(top) as u32).unwrap_or('\u{fffd}')
                    })
                    .collect();
                assert_eq!(bpe.decode(&encode(&bpe, &text)).unwrap(), text, "{text:?}");
            }
            let all: String = (0..0x500).filter_map(char::from_u32).chain(['漢', '🦀', '\u{10ffff}']).collect();
            assert_eq!(bpe.decode(&encode(&bpe, &all)).unwrap(), all);
        }
    }

    /// Quadratic, a megabyte took minutes; cut, it takes a second.
    #[test]
    fn letters_without_blanks_are_learnt_from_in_parts() {
        let mut state = 1u64;
        let mut base = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ['a', 'c', 'g', 't'][(state >> 62) as usize]
        };
        let dna: String = (0..1_000_000).map(|_| base()).collect();
        let texts = [dna.clone(), "a few words".into()];
        let (bpe, losses) = Bpe::train(texts.into_iter(), training(400, true)).unwrap();
        assert_eq!(losses, Losses { cut: Cut { pieces: 1, longest: 1_000_000 }, forgotten: Forgotten::default() });
        assert_eq!(bpe.vocabulary(), 400);
        assert_eq!(bpe.decode(&encode(&bpe, &dna[..5000])).unwrap(), dna[..5000]);
    }

    #[test]
    fn the_order_of_texts_does_not_matter() {
        let texts: Vec<String> = (0..300).map(|i| format!("fn f{i}(a: &str) -> usize {{ a.len() + {i} }}")).collect();
        let training = training(350, true);
        let forward = Bpe::train(texts.iter().cloned(), training).unwrap().0.to_json().unwrap();
        let backward = Bpe::train(texts.iter().rev().cloned(), training).unwrap().0.to_json().unwrap();
        assert_eq!(forward, backward);
    }

    #[test]
    fn a_broken_tokenizer_is_refused() {
        let error = Bpe::load(b"{\"model\": 7}").err().unwrap().to_string();
        assert!(error.starts_with("tokenizer.json cannot be read: "), "{error}");
    }
}
