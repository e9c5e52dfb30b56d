//! The form in which two texts count as the same: no case, no marks, no accents, no numbers.
//!
//! The steps and their order follow datatrove's `simplify_text` (the one behind FineWeb's MinHash), so that signatures
//! made from it can be compared with theirs.

use std::borrow::Cow;

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
    // Of all characters only the sigma has a lower case that depends on its neighbours.
    let text = if text.contains('Σ') { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) };
    let mut folded = String::with_capacity(text.len());
    let mut rest = &*text;
    while let Some(c) = rest.chars().next() {
        if c.is_ascii_alphabetic() {
            let end = rest.bytes().position(|b| !b.is_ascii_alphabetic()).unwrap_or(rest.len());
            let start = folded.len();
            folded.push_str(&rest[..end]);
            folded[start..].make_ascii_lowercase();
            rest = &rest[end..];
            continue;
        }
        if fold_numbers && is_digit(c) {
            rest = rest.trim_start_matches(is_digit);
            let mut ahead = rest.chars();
            if ahead.next().is_some_and(is_decimal_separator) && ahead.next().is_some_and(is_digit) {
                rest = ahead.as_str().trim_start_matches(is_digit);
            }
            folded.push('0');
            continue;
        }
        rest = &rest[c.len_utf8()..];
        for c in lower(c) {
            if !(is_space(c) || is_mark(c)) {
                folded.push(c);
            } else if !folded.is_empty() && !folded.ends_with(' ') {
                folded.push(' ');
            }
        }
    }
    let simple = if folded.is_ascii() { folded } else { decomposed(&folded) };
    let ends = trim(&simple);
    if ends.len() == simple.len() { simple } else { ends.to_owned() }
}

fn lower(c: char) -> impl Iterator<Item = char> {
    // What has no case is spared the tables: all of ASCII but its letters, and the characters of East Asia.
    let has_case = !c.is_ascii() && !('\u{2e80}'..='\u{a63f}').contains(&c) && !('\u{ac00}'..='\u{d7ff}').contains(&c);
    let lowered = has_case.then(|| c.to_lowercase());
    lowered.is_none().then_some(c).into_iter().chain(lowered.into_iter().flatten())
}

/// NFD without non-spacing marks. ASCII characters decompose into nothing and are no marks, so what is between them is
/// decomposed by itself.
fn decomposed(text: &str) -> String {
    let mut simple = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.bytes().position(|b| !b.is_ascii()).unwrap_or(rest.len());
        simple.push_str(&rest[..end]);
        rest = &rest[end..];
        let end = rest.bytes().position(|b| b.is_ascii()).unwrap_or(rest.len());
        simple.extend(rest[..end].nfd().filter(|&c| !is_nonspacing(c)));
        rest = &rest[end..];
    }
    simple
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

    #[test]
    fn characters_without_case_have_themselves_as_lower_case() {
        for c in (0..=0x10ffff).filter_map(char::from_u32).filter(|c| !c.is_ascii_alphabetic()) {
            assert!(lower(c).eq(c.to_lowercase()), "{c:?}");
        }
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let text = "ΑΣ İX e\u{323}\u{301}\u{301}a\u{301}\u{323}가각 ﬁÅ２．５x ½ K Ǆ\u{345}Ω";
        let whole: String = text.to_lowercase();
        let spaced: String = whole.nfd().filter(|&c| !is_nonspacing(c)).collect();
        let ours = simplify_keeping_numbers(text);
        // Only the wide full stop is a mark of these.
        assert_eq!(ours, spaced.replace('．', " "));
    }
}
