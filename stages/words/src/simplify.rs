//! The form in which two texts count as the same: no case, no marks, no accents, no numbers.
//!
//! The steps and their order follow datatrove's `simplify_text` (the one behind FineWeb's MinHash), so that signatures
//! made from it can be compared with theirs.

use unicode_normalization::UnicodeNormalization;

use crate::chars::{is_digit, is_mark, is_nonspacing, is_space, trim};

/// Lower case, every number `0`, every mark a blank, white space folded to one blank, NFD without non-spacing marks.
///
/// "1.2.3" becomes "0 0": a number takes one decimal part, and the dot left over is a mark.
pub fn simplify(text: &str) -> String {
    simplified(text, true)
}

/// [`simplify`], but with every digit as it is.
pub fn simplify_keeping_numbers(text: &str) -> String {
    simplified(text, false)
}

fn simplified(text: &str, fold_numbers: bool) -> String {
    let lower = text.to_lowercase();
    let mut folded = String::with_capacity(lower.len());
    let mut chars = lower.chars().peekable();
    while let Some(c) = chars.next() {
        if fold_numbers && is_digit(c) {
            while chars.next_if(|&c| is_digit(c)).is_some() {}
            let mut ahead = chars.clone();
            if ahead.next().is_some_and(is_decimal_separator) && ahead.next().is_some_and(is_digit) {
                chars = ahead;
                while chars.next_if(|&c| is_digit(c)).is_some() {}
            }
            folded.push('0');
        } else if is_space(c) || is_mark(c) {
            if !folded.is_empty() && !folded.ends_with(' ') {
                folded.push(' ');
            }
        } else {
            folded.push(c);
        }
    }
    let simple: String = if folded.is_ascii() { folded } else { folded.nfd().filter(|&c| !is_nonspacing(c)).collect() };
    let ends = trim(&simple);
    if ends.len() == simple.len() { simple } else { ends.to_owned() }
}

fn is_decimal_separator(c: char) -> bool {
    matches!(c, '.' | ',' | '\u{60c}' | '\u{66b}' | '\u{2396}' | '\u{2397}' | '\u{2398}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_numbers_marks_and_accents_go() {
        assert_eq!(simplify("  Ça coûte 1.234,5 €,\n\tNON? "), "ca coute 0 0 € non");
        assert_eq!(simplify("v1.2.3 ΟΔΟΣ"), "v0 0 οδος");
        assert_eq!(simplify("...\u{301}"), "");
    }

    #[test]
    fn numbers_stay_apart_when_asked() {
        assert_eq!(simplify_keeping_numbers("A 1.234,5, b12"), "a 1 234 5 b12");
    }

    #[test]
    fn simplifying_twice_changes_nothing_in_plain_text() {
        let once = simplify("The `HashMap<K, V>` of 2024-05-01: 17 entries — «très» rapide.");
        assert_eq!(simplify(&once), once);
    }
}
