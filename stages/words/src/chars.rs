//! Classes of characters, as the published filter rules mean them.
//!
//! The rules were first run in Python, whose ideas of white space, letter and line differ from Rust's. Where they
//! differ, Python's is used; otherwise the same rule would decide differently on the same document.

use std::ops::Range;

use unicode_general_category::{GeneralCategory as Category, get_general_category};

/// White space as Python's `str.isspace` and `\s` mean it: Unicode's, and the separators U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// A letter in the narrow sense: general category L. Letter numbers, circled letters and vowel signs are none.
pub fn is_letter(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphabetic();
    }
    use Category::{LowercaseLetter, ModifierLetter, OtherLetter, TitlecaseLetter, UppercaseLetter};
    matches!(
        get_general_category(c),
        LowercaseLetter | ModifierLetter | OtherLetter | TitlecaseLetter | UppercaseLetter
    )
}

/// A decimal digit of any script: general category Nd.
pub fn is_digit(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    get_general_category(c) == Category::DecimalNumber
}

/// A number of any kind, letter numbers and fractions too: general category N.
pub fn is_number(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    use Category::{DecimalNumber, LetterNumber, OtherNumber};
    matches!(get_general_category(c), DecimalNumber | LetterNumber | OtherNumber)
}

/// A mark that takes no space: general category Mn.
pub(crate) fn is_nonspacing(c: char) -> bool {
    !c.is_ascii() && get_general_category(c) == Category::NonspacingMark
}

/// A combining mark of any kind: general category M.
pub(crate) fn is_combining(c: char) -> bool {
    use Category::{EnclosingMark, NonspacingMark, SpacingMark};
    !c.is_ascii() && matches!(get_general_category(c), EnclosingMark | NonspacingMark | SpacingMark)
}

/// Punctuation, control characters and the quotes of datatrove's rules; U+FF11 is in its list, U+2018 is not.
#[rustfmt::skip]
const MARKS: &[(u32, u32)] = &[
    (0x0, 0x8), (0xb, 0x1f), (0x21, 0x2f), (0x3a, 0x40), (0x5b, 0x60), (0x7b, 0x9f), (0xab, 0xab), (0xb4, 0xb4),
    (0xbb, 0xbb), (0x2013, 0x2014), (0x2019, 0x2019), (0x201c, 0x201e), (0x2026, 0x2026), (0x2236, 0x2236),
    (0x2501, 0x2501), (0x25ba, 0x25ba), (0x3001, 0x3002), (0x3008, 0x300d), (0x3010, 0x3011), (0xff01, 0xff01),
    (0xff05, 0xff05), (0xff08, 0xff09), (0xff0c, 0xff0c), (0xff0e, 0xff0e), (0xff11, 0xff11), (0xff1a, 0xff1b),
    (0xff1f, 0xff1f), (0xff5e, 0xff5e),
];

/// Unicode's sentence terminators.
#[rustfmt::skip]
const TERMINALS: &[(u32, u32)] = &[
    (0x21, 0x21), (0x2e, 0x2e), (0x3f, 0x3f), (0x589, 0x589), (0x61d, 0x61f), (0x6d4, 0x6d4), (0x700, 0x702),
    (0x7f9, 0x7f9), (0x837, 0x837), (0x839, 0x839), (0x83d, 0x83e), (0x964, 0x965), (0x104a, 0x104b),
    (0x1362, 0x1362), (0x1367, 0x1368), (0x166e, 0x166e), (0x1735, 0x1736), (0x17d4, 0x17d6), (0x17d9, 0x17da),
    (0x1803, 0x1803), (0x1809, 0x1809), (0x1944, 0x1945), (0x1aa8, 0x1aab), (0x1b5a, 0x1b5b), (0x1b5e, 0x1b5f),
    (0x1b7d, 0x1b7e), (0x1c3b, 0x1c3c), (0x1c7e, 0x1c7f), (0x203c, 0x203d), (0x2047, 0x2049), (0x2e2e, 0x2e2e),
    (0x2e3c, 0x2e3c), (0x2e53, 0x2e54), (0x3002, 0x3002), (0xa4ff, 0xa4ff), (0xa60e, 0xa60f), (0xa6f3, 0xa6f3),
    (0xa6f7, 0xa6f7), (0xa876, 0xa877), (0xa8ce, 0xa8cf), (0xa92f, 0xa92f), (0xa9c8, 0xa9c9), (0xaa5d, 0xaa5f),
    (0xaaf0, 0xaaf1), (0xabeb, 0xabeb), (0xfe52, 0xfe52), (0xfe56, 0xfe57), (0xff01, 0xff01), (0xff0e, 0xff0e),
    (0xff1f, 0xff1f), (0xff61, 0xff61), (0x10a56, 0x10a57), (0x10f55, 0x10f59), (0x10f86, 0x10f89),
    (0x11047, 0x11048), (0x110be, 0x110c1), (0x11141, 0x11143), (0x111c5, 0x111c6), (0x111cd, 0x111cd),
    (0x111de, 0x111df), (0x11238, 0x11239), (0x1123b, 0x1123c), (0x112a9, 0x112a9), (0x1144b, 0x1144c),
    (0x115c2, 0x115c3), (0x115c9, 0x115d7), (0x11641, 0x11642), (0x1173c, 0x1173e), (0x11944, 0x11944),
    (0x11946, 0x11946), (0x11a42, 0x11a43), (0x11a9b, 0x11a9c), (0x11c41, 0x11c42), (0x11ef7, 0x11ef8),
    (0x11f43, 0x11f44), (0x16a6e, 0x16a6f), (0x16af5, 0x16af5), (0x16b37, 0x16b38), (0x16b44, 0x16b44),
    (0x16e98, 0x16e98), (0x1bc9f, 0x1bc9f), (0x1da88, 0x1da88),
];

fn within(table: &[(u32, u32)], c: char) -> bool {
    let c = c as u32;
    let after = table.partition_point(|&(first, _)| first <= c);
    after > 0 && c <= table[after - 1].1
}

/// A punctuation mark or control character of the filter rules.
pub fn is_mark(c: char) -> bool {
    within(MARKS, c)
}

/// A character that can end a sentence, in any script.
pub fn is_terminal(c: char) -> bool {
    within(TERMINALS, c)
}

/// A word made only of marks and sentence terminators; it does not count towards a document's length.
pub fn is_symbol_word(word: &str) -> bool {
    word.chars().all(|c| is_mark(c) || is_terminal(c))
}

/// Cuts white space, as [`is_space`] means it, off both ends.
pub fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Lines as Python's `splitlines` gives them, without their ends; no empty line after a final line end.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    line_ranges(text).map(|range| &text[range])
}

/// Where the [`lines`] of `text` stand, in bytes.
pub fn line_ranges(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut next = 0;
    std::iter::from_fn(move || {
        if next == bytes.len() {
            return None;
        }
        let start = next;
        while next < bytes.len() {
            let end = line_end(&bytes[next..]);
            if end > 0 {
                let line = start..next;
                next += end;
                return Some(line);
            }
            next += 1;
        }
        Some(start..next)
    })
}

/// Bytes of the line end that `bytes` begin with, 0 for none; `bytes` may also begin inside a character.
fn line_end(bytes: &[u8]) -> usize {
    match *bytes {
        [b' '..=0xc1 | 0..=9 | 0xe3.., ..] => 0,
        [b'\r', b'\n', ..] | [0xc2, 0x85, ..] => 2,
        [b'\n' | b'\r' | 0xb | 0xc | 0x1c..=0x1e, ..] => 1,
        [0xe2, 0x80, 0xa8 | 0xa9, ..] => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_do_not_overlap() {
        for table in [MARKS, TERMINALS] {
            assert!(table.iter().all(|&(a, b)| a <= b));
            assert!(table.windows(2).all(|w| w[0].1 < w[1].0));
        }
    }

    #[test]
    fn separators_of_ascii_are_white_space_but_the_zero_width_space_is_none() {
        assert!(['\u{1c}', '\u{1f}', '\u{85}', '\u{a0}', '\u{3000}'].into_iter().all(is_space));
        assert!(!is_space('\u{200b}') && !is_space('\u{feff}'));
    }

    #[test]
    fn letters_are_of_category_l_only() {
        assert!("aÄжǅʰ漢".chars().all(is_letter));
        assert!(!"Ⅷⓐा0_".chars().any(is_letter));
    }

    #[test]
    fn lines_break_where_python_breaks_them() {
        let text = "a\r\nb\rc\u{b}d\u{85}e\u{2028}f\u{1f}g\n\n";
        assert_eq!(lines(text).collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "f\u{1f}g", ""]);
        assert_eq!(lines("").count(), 0);
    }

    #[test]
    fn a_word_of_marks_only_is_a_symbol() {
        assert!(is_symbol_word("...") && is_symbol_word("--") && is_symbol_word("。"));
        assert!(!is_symbol_word("a.") && !is_symbol_word("7"));
    }
}
