//! How many tokens a text takes, by language: what a vocabulary costs those who write in it.
//!
//! Fertility is tokens per word (Rust et al. 2021, "How Good is Your Tokenizer?", §3.2). In scripts without blanks
//! words are estimated from characters: there figures compare vocabularies, not languages.

use serde_json::{Value, json};
use smelt_stage::Error;
use smelt_words::{parts, unspaced, words};
use std::collections::BTreeMap;

/// Documents whose language nobody has named.
const UNKNOWN: &str = "unknown";

/// By language.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fertility(BTreeMap<String, Counts>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    tokens: u64,
    /// Quarters of words.
    quarters: u64,
    bytes: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.tokens += other.tokens;
        self.quarters += other.quarters;
        self.bytes += other.bytes;
    }
}

impl Fertility {
    pub(crate) fn add(&mut self, language: Option<&str>, text: &str, tokens: usize) {
        let language = language.unwrap_or(UNKNOWN);
        if !self.0.contains_key(language) {
            self.0.insert(language.to_owned(), Counts::default());
        }
        let counts = Counts { tokens: tokens as u64, quarters: quarters(text), bytes: text.len() as u64 };
        if let Some(found) = self.0.get_mut(language) {
            found.add(counts);
        }
    }

    pub(crate) fn join(&mut self, other: Fertility) {
        for (language, counts) in other.0 {
            self.0.entry(language).or_default().add(counts);
        }
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.0.values().map(|counts| counts.tokens).sum()
    }

    /// In the record of a unit.
    pub(crate) fn to_json(&self) -> Value {
        self.0.iter().map(|(language, c)| (language.clone(), json!([c.tokens, c.quarters, c.bytes]))).collect()
    }

    pub(crate) fn of_json(record: &Value) -> Result<Self, Error> {
        let read = || {
            let mut by_language = BTreeMap::new();
            for (language, counts) in record.as_object()? {
                let [tokens, quarters, bytes] = [0, 1, 2].map(|i| counts.get(i).and_then(Value::as_u64));
                by_language.insert(language.clone(), Counts { tokens: tokens?, quarters: quarters?, bytes: bytes? });
            }
            Some(Self(by_language))
        };
        read().ok_or_else(|| Error::bug("a committed unit holds no counts"))
    }

    /// Names and values: `tokens`, `tokens_per_word` and `bytes_per_token`, and these of each language where more than
    /// one is named.
    pub(crate) fn metrics(&self) -> Vec<(String, f64)> {
        let mut all = Counts::default();
        self.0.values().for_each(|counts| all.add(*counts));
        let mut metrics = Vec::new();
        let mut put = |end: &str, Counts { tokens, quarters, bytes }| {
            metrics.push((format!("tokens{end}"), tokens as f64));
            if tokens > 0 {
                metrics.push((format!("tokens_per_word{end}"), 4.0 * tokens as f64 / quarters.max(1) as f64));
                metrics.push((format!("bytes_per_token{end}"), bytes as f64 / tokens as f64));
            }
        };
        put("", all);
        if self.0.len() > 1 {
            self.0.iter().for_each(|(language, counts)| put(&format!(".{language}"), *counts));
        }
        metrics
    }
}

/// Quarters of a word: marks are words, and a character of a script without blanks is a part of one.
fn quarters(text: &str) -> u64 {
    let of_part = |part: &str| part.chars().next().and_then(unspaced).map_or(4, |characters| (4.0 / characters) as u64);
    words(text).map(|word| if word.is_ascii() { 4 } else { parts(word).map(of_part).sum() }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_by_script() {
        assert_eq!(quarters("Don't stop, Jürgen: 3.14 x2"), 4 * 8); // do n't stop , Jürgen : 3.14 x2
        assert_eq!(quarters("人工智能"), 4 * 2);
        assert_eq!(quarters("สวัสดี"), 4); // four letters, two of them with a mark above
        assert_eq!(quarters(""), 0);
    }

    #[test]
    fn counts_come_back_from_records_and_become_metrics() {
        let (mut a, mut b) = (Fertility::default(), Fertility::default());
        a.add(Some("en"), "two words", 3);
        b.add(Some("en"), "one", 1);
        let mut both = Fertility::of_json(&a.to_json()).unwrap();
        both.join(Fertility::of_json(&b.to_json()).unwrap());
        let alone = [("tokens", 4.0), ("tokens_per_word", 4.0 / 3.0), ("bytes_per_token", 3.0)];
        assert_eq!(both.metrics(), alone.map(|(name, value)| (name.to_owned(), value)));
        both.add(None, "", 0);
        let metrics = both.metrics();
        let names: Vec<&str> = metrics.iter().map(|(name, _)| name.as_str()).collect();
        let by_language = ["tokens.en", "tokens_per_word.en", "bytes_per_token.en", "tokens.unknown"];
        assert_eq!(
            names,
            ["tokens", "tokens_per_word", "bytes_per_token"].into_iter().chain(by_language).collect::<Vec<_>>()
        );
        assert!(Fertility::of_json(&json!({ "en": [1, 2] })).is_err());
    }
}
