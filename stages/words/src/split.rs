//! Word splitting: simple, Unicode-aware, without tables of any language but English contractions.
//!
//! It serves smelt's own rules in every language: marks are words of their own, equal marks in a row are one ("..."),
//! "don't" is "do" and "n't", a dot or comma between digits or letters stays inside ("7.3", "crates.io"). The words of
//! the published rules, with their tables of English special cases, URLs and units, are in `english.rs`.

use crate::chars::{is_combining, is_digit, is_letter, is_space};

/// The words of `text`, in order, as slices of it. White space separates and is no word.
///
/// A word is a run of letters, digits, combining marks and `_`; or one mark, or several equal ones in a row. Between
/// two letters or two digits one of `.`, `,`, `:` (digits only for the last two) and `'` joins.
pub fn words(text: &str) -> Words<'_> {
    Words { rest: text, tail: None }
}

/// Iterator of [`words`].
#[derive(Debug)]
pub struct Words<'a> {
    rest: &'a str,
    tail: Option<&'a str>,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if let Some(tail) = self.tail.take() {
            return Some(tail);
        }
        self.rest = self.rest.trim_start_matches(is_space);
        let first = self.rest.chars().next()?;
        if !is_word(first) {
            let end = self.rest.find(|c| c != first).unwrap_or(self.rest.len());
            return Some(self.cut(end));
        }
        let end = word_end(self.rest);
        let word = self.cut(end);
        if let Some(at) = contraction(word) {
            self.tail = Some(&word[at..]);
            return Some(&word[..at]);
        }
        Some(word)
    }
}

impl<'a> Words<'a> {
    fn cut(&mut self, end: usize) -> &'a str {
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }
}

fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    c.is_alphanumeric() || is_letter(c) || is_digit(c) || is_combining(c)
}

/// Byte where the word at the start of `text` ends; `text` begins with a word character.
fn word_end(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    let mut before = '\0';
    while let Some((at, c)) = chars.next() {
        if is_word(c) {
            before = c;
            continue;
        }
        let after = chars.peek().map_or('\0', |&(_, c)| c);
        let joins = match c {
            '.' => (is_digit(before) && is_digit(after)) || (is_letter(before) && is_letter(after)),
            ',' | ':' => is_digit(before) && is_digit(after),
            '\'' | '\u{2019}' => is_letter(before) && is_letter(after),
            _ => false,
        };
        if !joins {
            return at;
        }
        before = c;
    }
    text.len()
}

/// Byte at which an English contraction begins inside `word`: the "n't" of "don't", the "'s" of "it's".
fn contraction(word: &str) -> Option<usize> {
    let at = word.rfind(['\'', '\u{2019}'])?;
    let mut tail = word[at..].chars();
    tail.next();
    let ending = tail.as_str();
    if ending.eq_ignore_ascii_case("t") {
        let head = &word[..at];
        return (head.len() > 1 && head.ends_with(['n', 'N'])).then(|| at - 1);
    }
    ["s", "m", "d", "re", "ve", "ll"].iter().any(|e| ending.eq_ignore_ascii_case(e)).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        words(text).collect()
    }

    #[test]
    fn marks_are_words_and_equal_marks_are_one() {
        assert_eq!(split("Wait... (really?)"), ["Wait", "...", "(", "really", "?", ")"]);
        assert_eq!(split("std::fs::File -- a"), ["std", "::", "fs", "::", "File", "--", "a"]);
    }

    #[test]
    fn contractions_come_apart() {
        assert_eq!(split("Don't say it's o'clock"), ["Do", "n't", "say", "it", "'s", "o'clock"]);
        assert_eq!(split("we’ll t'"), ["we", "’ll", "t", "'"]);
    }

    #[test]
    fn numbers_and_names_keep_their_dots() {
        assert_eq!(split("v1.2, 12:01 1,000. crates.io."), ["v1.2", ",", "12:01", "1,000", ".", "crates.io", "."]);
    }

    #[test]
    fn any_script_makes_words() {
        assert_eq!(split("नमस्ते мир 漢字。"), ["नमस्ते", "мир", "漢字", "。"]);
    }

    #[test]
    fn words_and_blanks_together_are_the_text() {
        let text = "  a\u{1f}b\u{200b}c «d» e\u{301}…\n\t'x' n't 3'4 _\u{0} ";
        let mut rest = text;
        for word in words(text) {
            let at = rest.find(word).expect("a word is a piece of the text");
            assert!(rest[..at].chars().all(is_space), "only blanks between words, found {:?}", &rest[..at]);
            rest = &rest[at + word.len()..];
        }
        assert!(rest.chars().all(is_space));
    }
}
