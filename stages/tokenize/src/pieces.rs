//! GPT-2's cut of a text into pieces, which merges never cross; before it, optionally, single digits.
//!
//! The tokenizers library does the same with a back-tracking expression and several allocations a piece, at about 1
//! MB/s. This is the expression
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
//! (Radford et al. 2019) by hand. A test compares the two on every character.

use smelt_words::{is_digit, is_letter, is_number};

/// What a character is to the expression.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        ' ' | '\t'..='\r' => Class::Space,
        c if c.is_ascii() => Class::Other,
        c if is_letter(c) => Class::Letter,
        c if is_number(c) => Class::Number,
        c if c.is_whitespace() => Class::Space,
        _ => Class::Other,
    }
}

/// The pieces of `text`, in order; joined they give the text. With `single_digits` every decimal digit is a piece, and
/// the text between digits is cut separately.
pub fn pieces(text: &str, single_digits: bool) -> Pieces<'_> {
    Pieces { rest: text, single_digits, segment: 0 }
}

/// Iterator of [`pieces`].
#[derive(Debug)]
pub struct Pieces<'a> {
    rest: &'a str,
    single_digits: bool,
    /// Bytes of `rest` up to the next digit that is a separate piece; 0 when not known.
    segment: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.rest.chars().next()?;
        if self.segment == 0 {
            self.segment = if !self.single_digits {
                self.rest.len()
            } else if is_digit(first) {
                first.len_utf8()
            } else {
                self.rest.find(is_digit).unwrap_or(self.rest.len())
            };
        }
        let length = piece(&self.rest[..self.segment], first);
        let (piece, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.segment -= length;
        Some(piece)
    }
}

/// Bytes of the first piece of `text`, which begins with `first`.
fn piece(text: &str, first: char) -> usize {
    if first == '\'' {
        let endings = ["s", "t", "re", "ve", "m", "ll", "d"];
        if let Some(ending) = endings.iter().find(|ending| text[1..].starts_with(**ending)) {
            return 1 + ending.len();
        }
    }
    let run = |from: usize, of: Class| text[from..].find(|c| class(c) != of).map_or(text.len(), |n| from + n);
    if class(first) != Class::Space {
        return run(0, class(first));
    }
    if first == ' '
        && let Some(of) = text[1..].chars().next().map(class).filter(|&of| of != Class::Space)
    {
        return run(1, of);
    }
    let end = run(0, Class::Space);
    if end == text.len() {
        return end;
    }
    // The last blank belongs to what follows, unless it is the only one.
    let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
    if last == end { end } else { end - last }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::pre_tokenizers::sequence::Sequence;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

    /// Both ways to cut, as the library does it.
    fn library(single_digits: bool) -> Sequence {
        let digits = Split::new(SplitPattern::Regex(r"\d".into()), SplitDelimiterBehavior::Isolated, false).unwrap();
        let bytes = ByteLevel::new(false, true, true);
        Sequence::new(if single_digits { vec![digits.into(), bytes.into()] } else { vec![bytes.into()] })
    }

    fn compare(text: &str) {
        for single_digits in [false, true] {
            let mut cut = PreTokenizedString::from(text);
            library(single_digits).pre_tokenize(&mut cut).unwrap();
            let theirs: Vec<(usize, usize)> = cut
                .get_splits(OffsetReferential::Original, OffsetType::Byte)
                .into_iter()
                .map(|(_, at, _)| at)
                .collect();
            let mut at = 0;
            let mut ours = Vec::new();
            for piece in pieces(text, single_digits) {
                ours.push((at, at + piece.len()));
                at += piece.len();
            }
            assert_eq!(ours, theirs, "{text:?}, single digits: {single_digits}");
            assert_eq!(at, text.len());
        }
    }

    #[test]
    fn pieces_of_typical_text_are_the_librarys() {
        for text in [
            "",
            " ",
            "  ",
            "a",
            " a",
            "  a",
            "a  ",
            "a \n b",
            "\n\n  x",
            "it's we'll 'tis d'you 'S",
            "''s '",
            "x = 12 + 345;  // 67%\n\tlet y",
            "a\u{a0}b \u{a0}c\u{3000}d",
            "1 2  3\n4",
            "٣٤ Ⅷ x² ½",
            "漢字 かな 🦀🦀 e\u{301}",
            "can't've 've",
            "a\r\n\r\nb",
            "\u{1c} \u{1f}x",
            "12 34",
        ] {
            compare(text);
        }
    }

    #[test]
    fn every_character_is_of_the_librarys_class() {
        let all: Vec<char> = (0..=0x10_ffff).step_by(1).filter_map(char::from_u32).collect();
        // Beyond the third plane there is nothing but private use and tags: a sample will do.
        let (low, high): (Vec<char>, Vec<char>) = all.into_iter().partition(|&c| (c as u32) < 0x3_2400);
        for chars in low.chunks(512).chain(high.chunks(40_000).map(|part| &part[..8])) {
            compare(&chars.iter().map(|c| format!("a{c} {c}1{c}")).collect::<String>());
        }
    }

    #[test]
    fn random_texts_are_cut_as_the_library_cuts_them() {
        let alphabet: Vec<char> = " \n\t'srevmld.a1٣é漢\u{a0}=+".chars().collect();
        let mut state = 7u64;
        for _ in 0..3000 {
            let text: String = (0..20)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    alphabet[(state >> 33) as usize % alphabet.len()]
                })
                .collect();
            compare(&text);
        }
    }

    #[test]
    fn every_byte_has_the_librarys_character() {
        let ours: std::collections::BTreeSet<char> = (0..=255).map(character).collect();
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        let mut cut = PreTokenizedString::from("\0\u{7f}é\u{ad} ");
        ByteLevel::new(false, true, false).pre_tokenize(&mut cut).unwrap();
        let theirs: String =
            cut.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter().map(|(s, _, _)| s).collect();
        assert_eq!("\0\u{7f}é\u{ad} ".bytes().map(character).collect::<String>(), theirs);
    }
}
