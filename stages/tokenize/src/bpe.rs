//! A byte-level BPE vocabulary: trained, loaded, used.
//!
//! The pieces are GPT-2's, optionally after setting every decimal digit apart; every byte has a token, so any text
//! comes back from its ids unchanged. Special tokens take the first ids and are never found in text: a document that
//! spells
//! `<|eos|>` is tokenized as those seven characters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use smelt_stage::{ExitCode, Fault};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, SplitDelimiterBehavior,
    Tokenizer, TokenizerImpl, Trainer,
};

use crate::pieces::{character, pieces};

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
#[error("{doing}: {source}")]
pub struct BpeError {
    doing: &'static str,
    source: tokenizers::Error,
}

impl Fault for BpeError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Bug
    }
}

/// Adds to an error what was being done.
fn at(doing: &'static str) -> impl FnOnce(tokenizers::Error) -> BpeError {
    move |source| BpeError { doing, source }
}

/// How a vocabulary is trained.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a> {
    /// Tokens in all, special ones included; fewer when the text has no more pairs to merge.
    pub vocabulary: usize,
    /// Every decimal digit is a piece of its own.
    pub single_digits: bool,
    /// Occurrences below which a pair is not merged.
    pub min_frequency: u64,
    pub special: &'a [&'a str],
}

/// Bytes of a piece that a vocabulary is learnt from; longer ones are cut there. The library joins pairs within a piece
/// in time that grows with the square of its length, and letters without blanks (DNA, base64, minified code) are one
/// piece. Text between blanks never comes near it, and a vocabulary learnt from such text stays the library's own.
pub const LONGEST: usize = 1024;

/// The pieces that were too long to learn from as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cut {
    pub pieces: u64,
    /// Bytes of the longest.
    pub longest: u64,
}

/// A tokenizer, and what is looked up in it.
#[derive(Debug)]
pub struct Bpe {
    tokenizer: Tokenizer,
    /// Whether digits are set apart, if the pieces are those of [`pieces`]; `None` if only the library can cut the
    /// text.
    known: Option<bool>,
    /// Ids of the single bytes.
    bytes: [Option<u32>; 256],
}

impl Bpe {
    /// Learns the merges from `texts`. The result depends on the texts, not on their order or on threads.
    pub fn train(texts: impl Iterator<Item = String> + Send, training: Training<'_>) -> Result<(Self, Cut), BpeError> {
        type Trained = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(training.vocabulary)
            .min_frequency(training.min_frequency)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(training.special.iter().map(|token| AddedToken::from(*token, true)).collect())
            .build();
        let characters: Vec<char> = (0..=255).map(character).collect();
        let spell = |piece: &str| piece.bytes().map(|byte| characters[usize::from(byte)]).collect();
        let (long, longest) = (AtomicU64::new(0), AtomicU64::new(0));
        let count = |piece: &&str| {
            if piece.len() > LONGEST {
                long.fetch_add(1, Ordering::Relaxed);
                longest.fetch_max(piece.len() as u64, Ordering::Relaxed);
            }
        };
        let cut =
            |text: &str| Ok(pieces(text, training.single_digits).inspect(count).flat_map(chunks).map(spell).collect());
        trainer.feed(texts, cut).map_err(at("counting pieces"))?;
        let cut = Cut { pieces: long.into_inner(), longest: longest.into_inner() };
        let mut model = BPE::default();
        let special = trainer.train(&mut model).map_err(at("training the vocabulary"))?;
        let mut tokenizer = Trained::new(model);
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer(training.single_digits)?));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        tokenizer.add_special_tokens(special).map_err(at("adding the special tokens"))?;
        let json = tokenizer.to_string(false).map_err(at("writing the tokenizer"))?;
        Ok((Bpe::load(json.as_bytes())?, cut))
    }

    /// Reads a `tokenizer.json`.
    pub fn load(json: &[u8]) -> Result<Self, BpeError> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(at("reading tokenizer.json"))?;
        tokenizer.set_encode_special_tokens(true);
        let known = if tokenizer.get_normalizer().is_none() { known_pieces(&tokenizer) } else { None };
        let bytes = std::array::from_fn(|byte| tokenizer.token_to_id(&character(byte as u8).to_string()));
        Ok(Bpe { tokenizer, known, bytes })
    }

    /// The `tokenizer.json` as Hugging Face's libraries read it.
    pub fn to_json(&self) -> Result<String, BpeError> {
        let mut text = self.tokenizer.to_string(true).map_err(at("writing the tokenizer"))?;
        text.push('\n');
        Ok(text)
    }

    /// Number of tokens, special ones included.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token as it is spelled in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The ids of every text; no special token is added or recognised.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, BpeError> {
        let mut encoder = self.encoder();
        texts.iter().map(|text| encoder.encode(text)).collect()
    }

    /// An encoder that remembers the pieces it has seen; one per thread.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder { bpe: self, seen: HashMap::new() }
    }

    /// The text of some ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, BpeError> {
        self.tokenizer.decode(ids, false).map_err(at("decoding ids"))
    }

    /// Whether the model of a loaded tokenizer is BPE over bytes, so that no text is out of its reach.
    pub fn is_byte_level(&self) -> bool {
        let is_bpe = matches!(self.tokenizer.get_model(), ModelWrapper::BPE(_));
        is_bpe && ByteLevel::alphabet().iter().all(|c| self.id(&c.to_string()).is_some())
    }
}

/// A piece in parts of at most [`LONGEST`] bytes, cut between characters.
fn chunks(piece: &str) -> impl Iterator<Item = &str> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        let (part, after) = rest.split_at(rest.floor_char_boundary(LONGEST));
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// Encodes texts one after the other.
#[derive(Debug)]
pub struct Encoder<'a> {
    bpe: &'a Bpe,
    /// Ids of pieces. Never iterated, so its order has no effect.
    seen: HashMap<Box<str>, Box<[u32]>>,
}

/// Pieces that an encoder remembers; beyond that it forgets all and starts over.
const REMEMBERED: usize = 1 << 18;

impl Encoder<'_> {
    /// The ids of one text.
    pub fn encode(&mut self, text: &str) -> Result<Vec<u32>, BpeError> {
        let Some(single_digits) = self.bpe.known else {
            let encoding = self.bpe.tokenizer.encode_fast(text, false).map_err(at("encoding a text"))?;
            return Ok(encoding.get_ids().to_vec());
        };
        let mut ids = Vec::with_capacity(text.len() / 3);
        for piece in pieces(text, single_digits) {
            if let [byte] = piece.as_bytes()
                && let Some(id) = self.bpe.bytes[usize::from(*byte)]
            {
                ids.push(id);
            } else if let Some(known) = self.seen.get(piece) {
                ids.extend_from_slice(known);
            } else {
                let spelled: String = piece.bytes().map(character).collect();
                let tokens = self.bpe.tokenizer.get_model().tokenize(&spelled).map_err(at("encoding a piece"))?;
                let found: Box<[u32]> = tokens.iter().map(|token| token.id).collect();
                ids.extend_from_slice(&found);
                if self.seen.len() == REMEMBERED {
                    self.seen.clear();
                }
                self.seen.insert(piece.into(), found);
            }
        }
        Ok(ids)
    }
}

/// GPT-2's pieces as bytes, as the library writes them; digits set apart before them if asked.
fn pre_tokenizer(single_digits: bool) -> Result<PreTokenizerWrapper, BpeError> {
    let bytes = ByteLevel::new(false, true, true);
    if !single_digits {
        return Ok(bytes.into());
    }
    let digits = Split::new(SplitPattern::Regex(DIGIT.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map_err(at("building the digit pattern"))?;
    Ok(Sequence::new(vec![digits.into(), bytes.into()]).into())
}

const DIGIT: &str = r"\d";

/// Whether a tokenizer cuts as [`pieces`] does, and how it treats digits.
fn known_pieces(tokenizer: &Tokenizer) -> Option<bool> {
    let is_gpt2 = |p: &PreTokenizerWrapper| {
        matches!(p, PreTokenizerWrapper::ByteLevel(ByteLevel { add_prefix_space: false, use_regex: true, .. }))
    };
    let is_digits = |p: &PreTokenizerWrapper| {
        matches!(p, PreTokenizerWrapper::Split(Split { pattern: SplitPattern::Regex(pattern),
            behavior: SplitDelimiterBehavior::Isolated, invert: false, .. }) if pattern == DIGIT)
    };
    match tokenizer.get_pre_tokenizer()? {
        gpt2 if is_gpt2(gpt2) => Some(false),
        PreTokenizerWrapper::Sequence(sequence) => match sequence.as_ref() {
            [digits, gpt2] if is_digits(digits) && is_gpt2(gpt2) => Some(true),
            _ => None,
        },
        _ => None,
    }
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

    fn trained(single_digits: bool) -> Bpe {
        let texts = (0..200).map(|i| format!("the number {i} is the next after {}; let x = x + {i};\n", i - 1));
        Bpe::train(texts, Training { vocabulary: 400, single_digits, min_frequency: 2, special: &SPECIAL }).unwrap().0
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
            let training = Training { vocabulary: 300, single_digits, min_frequency: 2, special: &SPECIAL };
            encode(&Bpe::train(std::iter::repeat_n("x=123;".to_owned(), 9), training).unwrap().0, "123").len()
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

    /// Ours goes piece by piece; the library's own way is the reference.
    #[test]
    fn ids_are_the_librarys() {
        for single_digits in [true, false] {
            let bpe = trained(single_digits);
            assert_eq!(bpe.known, Some(single_digits));
            let slow = Bpe { known: None, tokenizer: bpe.tokenizer.clone(), bytes: bpe.bytes };
            for i in 0..200 {
                let text = format!("it's number {i}{i} of the {}next\n\n  x = 漢字{i}; é", " ".repeat(i % 5));
                assert_eq!(encode(&bpe, &text), encode(&slow, &text), "{text:?}");
            }
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
        let training = Training { vocabulary: 400, single_digits: true, min_frequency: 2, special: &SPECIAL };
        let texts = [dna.clone(), "a few words".into()];
        let (bpe, cut) = Bpe::train(texts.into_iter(), training).unwrap();
        assert_eq!(cut, Cut { pieces: 1, longest: 1_000_000 });
        assert_eq!(bpe.vocabulary(), 400);
        assert_eq!(bpe.decode(&encode(&bpe, &dna[..5000])).unwrap(), dna[..5000]);
    }

    #[test]
    fn a_piece_is_cut_between_characters_and_nothing_is_lost() {
        for piece in ["", "a", &"漢".repeat(1000), &"x".repeat(LONGEST), &"🦀".repeat(LONGEST / 4 + 1)] {
            assert_eq!(chunks(piece).collect::<String>(), piece);
            assert!(chunks(piece).all(|part| part.len() <= LONGEST));
        }
        assert_eq!(chunks(&"x".repeat(LONGEST)).count(), 1);
    }

    #[test]
    fn the_order_of_texts_does_not_matter() {
        let texts: Vec<String> = (0..300).map(|i| format!("fn f{i}(a: &str) -> usize {{ a.len() + {i} }}")).collect();
        let training = Training { vocabulary: 350, single_digits: true, min_frequency: 2, special: &SPECIAL };
        let forward = Bpe::train(texts.iter().cloned(), training).unwrap().0.to_json().unwrap();
        let backward = Bpe::train(texts.iter().rev().cloned(), training).unwrap().0.to_json().unwrap();
        assert_eq!(forward, backward);
    }

    #[test]
    fn a_broken_tokenizer_is_refused() {
        let error = Bpe::load(b"{\"model\": 7}").err().unwrap().to_string();
        assert!(error.starts_with("reading tokenizer.json: "), "{error}");
    }
}
