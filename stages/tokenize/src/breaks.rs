//! Splits some tokens that join punctuation and line breaks.
//!
//! With a token for `.` and a line break together, a prompt that ends in `.` alone is met by the model in a way that it
//! never saw in training. DeepSeek-V3 (§4.1) therefore splits a share of such tokens at random in the training data.

use crate::bpe::{Bpe, BpeError};
use smelt_text::encoder::character;
use std::collections::HashMap;

/// What each of the joined tokens is split into.
#[derive(Debug)]
pub(crate) struct Breaks {
    share: f64,
    parts: HashMap<u32, Vec<u32>>,
}

impl Breaks {
    /// To split `share` of the tokens of `bpe`, a byte-level BPE, that are punctuation or symbols and then line breaks.
    pub(crate) fn new(bpe: &Bpe, share: f64) -> Result<Self, BpeError> {
        let mut parts = HashMap::new();
        if share > 0.0 {
            let bytes: HashMap<char, u8> = (0..=255).map(|byte| (character(byte), byte)).collect();
            for (token, id) in bpe.tokens() {
                let text = token.chars().map(|c| bytes.get(&c).copied()).collect::<Option<Vec<u8>>>();
                let Some(text) = text.and_then(|bytes| String::from_utf8(bytes).ok()) else { continue };
                let signs = text.trim_end_matches(['\r', '\n']);
                let is_sign = |c: char| !c.is_alphanumeric() && !c.is_whitespace();
                if signs.len() < text.len() && signs.ends_with(is_sign) {
                    let both = bpe.encode(&[signs, &text[signs.len()..]])?;
                    parts.insert(id, both.concat());
                }
            }
        }
        Ok(Self { share, parts })
    }

    /// The ids of a document after the splits, which its id alone decides.
    pub(crate) fn split(&self, document: &str, ids: Vec<u32>) -> Vec<u32> {
        if self.parts.is_empty() || !ids.iter().any(|id| self.parts.contains_key(id)) {
            return ids;
        }
        let mut hasher = blake3::Hasher::new();
        let mut bits = hasher.update(b"breaks\0").update(document.as_bytes()).finalize_xof();
        let mut draw = || {
            let mut eight = [0; 8];
            bits.fill(&mut eight);
            (u64::from_le_bytes(eight) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut out = Vec::with_capacity(ids.len() + ids.len() / 16);
        for id in ids {
            match self.parts.get(&id) {
                Some(parts) if draw() < self.share => out.extend_from_slice(parts),
                _ => out.push(id),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::{SPECIAL, Training};
    use smelt_text::encoder::Pattern;

    #[test]
    fn a_share_of_the_joined_tokens_is_split_and_the_text_stays() {
        let texts = (0..300).map(|i| format!("f({i});\nif x {{\n  y.\n\n}}\nno"));
        let training = Training {
            vocabulary: 340,
            pattern: Pattern::DeepseekV3,
            min_frequency: 2,
            special: &SPECIAL,
            memory: u64::MAX,
        };
        let bpe = Bpe::train(texts, training).unwrap().0;
        let joined = bpe.id(");\u{10a}").expect("`);` and a line break became one token");
        let text = "f(1);\n".repeat(4000);
        let whole = bpe.encode_one(&text).unwrap();
        let count = |ids: &[u32]| ids.iter().filter(|&&id| id == joined).count();
        assert_eq!(count(&whole), 4000);
        let breaks = Breaks::new(&bpe, 0.25).unwrap();
        let split = breaks.split("a", whole.clone());
        assert_eq!(bpe.decode(&split).unwrap(), text);
        // Standard deviation 27: four of them.
        assert!((890..1110).contains(&(4000 - count(&split))), "{}", count(&split));
        assert_eq!(split, breaks.split("a", whole.clone()));
        assert_ne!(split, breaks.split("b", whole.clone()));
        assert_eq!(Breaks::new(&bpe, 0.0).unwrap().split("a", whole.clone()), whole);
        let all = Breaks::new(&bpe, 1.0).unwrap().split("a", whole.clone());
        assert_eq!(all, bpe.encode(&["f(1);", "\n"]).unwrap().concat().repeat(4000));
        assert!(!breaks.parts.contains_key(&bpe.id("\u{10a}").unwrap()), "a break alone is not split");
    }
}
