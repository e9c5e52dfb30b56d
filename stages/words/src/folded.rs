//! Words as they are compared with the words of a copy that was wrapped anew, set in other case or marked otherwise.
//!
//! [`simplify`](crate::simplify) has a like purpose, and is bound to datatrove's list of marks. Here every character
//! that is no letter and no digit only separates, and a word knows where in its text it stands.

use std::ops::Range;
use std::sync::LazyLock;

use unicode_general_category::{GeneralCategory as Category, get_general_category};
use unicode_normalization::char::decompose_compatible;

use crate::scripts::unspaced;

/// What a whole word of a script with blanks counts in [`FoldedWord::quarters`].
pub const WORD_QUARTERS: u32 = 4;

/// A word, or a character of a script without blanks, as a part of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldedWord {
    /// Bytes of the text, from its first letter to its last.
    pub source: Range<usize>,
    /// Quarters of a word: 4, and for a character of a script without blanks as many as [`unspaced`] says.
    pub quarters: u32,
}

/// Reads the folded words of a text one by one.
///
/// Folded are case (`ß` is `ss`), accents and other marks above and below letters, and compatibility forms (NFKD:
/// `ﬁ`, full-width letters). Apostrophes and invisible characters vanish, so `don't` is one word; so does the comma
/// of `1,234`. Every other character that is no letter and no digit separates words.
#[derive(Debug)]
pub struct Folder<'t> {
    text: &'t str,
    /// Bytes that were read.
    at: usize,
    folds_numbers: bool,
    /// What is left of the form of the character that was read last, and where that stands.
    pending: Vec<(char, Class)>,
    place: Range<usize>,
    is_in_number: bool,
}

impl<'t> Folder<'t> {
    /// `folds_numbers`: every number, decimals and separated thousands included, is `0`.
    pub fn new(text: &'t str, folds_numbers: bool) -> Self {
        Self { text, at: 0, folds_numbers, pending: Vec::new(), place: 0..0, is_in_number: false }
    }

    /// Appends the form of the next word to `out`; `None` after the last one.
    pub fn next_word(&mut self, out: &mut String) -> Option<FoldedWord> {
        // Where the letters read so far stand.
        let mut open = None;
        self.is_in_number = false;
        loop {
            if let Some(&(c, class)) = self.pending.last() {
                if let Some(word) = self.take(c, class, &mut open, out) {
                    return Some(word);
                }
                continue;
            }
            self.read_ascii(&mut open, out);
            let Some(c) = self.text[self.at..].chars().next() else { return open.map(whole) };
            self.place = self.at..self.at + c.len_utf8();
            self.at = self.place.end;
            if c.is_ascii() {
                if open.is_some() {
                    return open.map(whole);
                }
                continue;
            }
            match Entry::of(c) {
                Entry::Many => fold_into(&mut self.pending, c),
                Entry::One(c, class) => self.pending.push((c, class)),
                Entry::Nothing => {}
            }
        }
    }

    /// Reads ASCII letters and digits and what stands inside words, up to what separates or is not ASCII.
    fn read_ascii(&mut self, open: &mut Option<Range<usize>>, out: &mut String) {
        let bytes = self.text.as_bytes();
        loop {
            let start = self.at;
            let rest = &bytes[start..];
            let run = rest.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(rest.len());
            if run > 0 {
                self.at += run;
                extend(open, start..self.at);
                if self.folds_numbers {
                    (start..self.at).for_each(|i| self.push(char::from(bytes[i]).to_ascii_lowercase(), out));
                } else {
                    let begin = out.len();
                    out.push_str(&self.text[start..self.at]);
                    out[begin..].make_ascii_lowercase();
                }
            }
            match bytes.get(self.at) {
                Some(b'\'' | b'`') => self.at += 1,
                Some(b',' | b'.') if self.joins_digits() => self.at += 1,
                _ => return,
            }
        }
    }

    /// Whether the comma or point that comes next is inside a number: that of `1,234`, or of any if numbers are folded.
    fn joins_digits(&self) -> bool {
        let (before, after) = self.text.as_bytes().split_at(self.at);
        if !before.last().is_some_and(u8::is_ascii_digit) {
            return false;
        }
        let digits = after[1..].iter().take_while(|b| b.is_ascii_digit()).take(4).count();
        if self.folds_numbers { digits > 0 } else { after[0] == b',' && digits == 3 }
    }

    fn push(&mut self, c: char, out: &mut String) {
        let is_digit = self.folds_numbers && c.is_numeric();
        if !is_digit {
            out.push(c);
        } else if !self.is_in_number {
            out.push('0');
        }
        self.is_in_number = is_digit;
    }

    /// Takes the pending character `c`, and gives the word that ends with it or before it.
    fn take(&mut self, c: char, class: Class, open: &mut Option<Range<usize>>, out: &mut String) -> Option<FoldedWord> {
        match class {
            // The word before it first: the character is still there when the next word is asked for.
            Class::Unspaced(_) if open.is_some() => return open.clone().map(whole),
            Class::Unspaced(quarters) => {
                self.pending.pop();
                out.push(c);
                return Some(FoldedWord { source: self.place.clone(), quarters });
            }
            Class::Letter => {
                extend(open, self.place.clone());
                self.push(c, out);
            }
            Class::Separator | Class::Nothing => {}
        }
        self.pending.pop();
        if class == Class::Separator { open.clone().map(whole) } else { None }
    }
}

fn whole(source: Range<usize>) -> FoldedWord {
    FoldedWord { source, quarters: WORD_QUARTERS }
}

fn extend(open: &mut Option<Range<usize>>, place: Range<usize>) {
    *open = Some(open.as_ref().map_or(place.start, |open| open.start)..place.end);
}

/// What a folded character is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    /// Stands for this many quarters of a word.
    Unspaced(u32),
    Separator,
    /// Neither ends a word nor belongs to it.
    Nothing,
}

fn class(c: char) -> Class {
    let nothing = [Category::NonspacingMark, Category::EnclosingMark, Category::Format];
    if c.is_ascii() {
        return if c.is_ascii_alphanumeric() { Class::Letter } else { Class::Separator };
    }
    let category = get_general_category(c);
    if nothing.contains(&category) || is_apostrophe(c) {
        return Class::Nothing;
    }
    if !c.is_alphanumeric() && category != Category::SpacingMark {
        return Class::Separator;
    }
    unspaced(c).map_or(Class::Letter, |characters| Class::Unspaced((f64::from(WORD_QUARTERS) / characters) as u32))
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '`' | '´' | '\u{2bb}' | '\u{2bc}' | '‘' | '’' | '\u{201b}' | '′' | '\u{ff07}')
}

/// Adds the folded form of `c`, last character first.
fn fold_into(form: &mut Vec<(char, Class)>, c: char) {
    if is_apostrophe(c) {
        return;
    }
    let begin = form.len();
    let mut add = |c: char| form.push((c, class(c)));
    decompose_compatible(c, |c| cases(c).for_each(&mut add));
    form.retain(|(_, class)| *class != Class::Nothing);
    form[begin..].reverse();
}

/// One form of all cases: `ẞ`, `ß` and `SS` are `ss`.
fn cases(c: char) -> impl Iterator<Item = char> {
    c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

/// The folded form of a character.
#[derive(Clone, Copy)]
enum Entry {
    One(char, Class),
    Nothing,
    /// Several characters, or one that the table does not have.
    Many,
}

impl Entry {
    fn of(c: char) -> Self {
        // Han ideographs have neither case nor another form.
        if matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}') {
            return Self::One(c, Class::Unspaced(2));
        }
        TABLE.get(c as usize).copied().unwrap_or(Self::Many)
    }
}

/// Characters of the scripts below U+3100: the tables of Unicode take ten times as long.
static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let entry = |code: u32| {
        let mut form = Vec::new();
        fold_into(&mut form, char::from_u32(code)?);
        Some(match form[..] {
            [] => Entry::Nothing,
            [(c, class)] => Entry::One(c, class),
            _ => Entry::Many,
        })
    };
    (0..0x3100).map(|code| entry(code).unwrap_or(Entry::Many)).collect()
});

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_normalization::UnicodeNormalization;

    fn words(text: &str, folds_numbers: bool) -> Vec<String> {
        let mut folder = Folder::new(text, folds_numbers);
        let one = || {
            let mut word = String::new();
            folder.next_word(&mut word).map(|_| word)
        };
        std::iter::from_fn(one).collect()
    }

    fn joined(text: &str) -> String {
        words(text, false).join(" ")
    }

    #[test]
    fn wrapping_case_marks_and_accents_make_no_difference() {
        let plain = "The cafe in Zurich's well known old town, and \"the dogs' bowl\" don't mix (really): 1,234 fish";
        let changed = "THE CAFÉ\u{a0}in   Zürich’s **well-known**\r\n> old-town — and “the dogs’ bowl” don’t mix; \
                       really. 1234 fish";
        assert_eq!(joined(plain), joined(changed));
        assert_eq!(
            joined(plain),
            "the cafe in zurichs well known old town and the dogs bowl dont mix really 1234 fish"
        );
        assert_eq!(joined("ﬁsh Ｆｉｓｈ fi\u{ad}sh f\u{200b}ish _fish_"), "fish fish fish fish fish");
    }

    #[test]
    fn a_character_of_a_script_without_blanks_is_a_word_of_its_own() {
        assert_eq!(joined("今天，abc早\n上。カ゛"), "今 天 abc 早 上 カ");
        assert_eq!(words("㍿の", false), ["株", "式", "会", "社", "の"]);
        let mut folder = Folder::new("x今\u{e44}", false);
        let mut out = String::new();
        let found: Vec<FoldedWord> = std::iter::from_fn(|| folder.next_word(&mut out)).collect();
        let word = |source, quarters| FoldedWord { source, quarters };
        assert_eq!((found, out.as_str()), (vec![word(0..1, 4), word(1..4, 2), word(4..7, 1)], "x今\u{e44}"));
    }

    #[test]
    fn numbers_are_kept_or_folded() {
        assert_eq!(
            words("1,234.5 of v2 at 3.14, 1,23 and 12,3456", false).join("|"),
            "1234|5|of|v2|at|3|14|1|23|and|12|3456"
        );
        assert_eq!(words("1,234.5 of v2 at 3.14, 1,23 ٣٤", true).join("|"), "0|of|v0|at|0|0|0");
    }

    #[test]
    fn a_word_knows_where_it_stands() {
        let text = "  «Él» don't—STOP ﬁn";
        let mut folder = Folder::new(text, false);
        let mut out = String::new();
        let mut found = Vec::new();
        while let Some(word) = folder.next_word(&mut out) {
            found.push(&text[word.source]);
            out.push(' ');
        }
        assert_eq!((found, out.as_str()), (vec!["Él", "don't", "STOP", "ﬁn"], "el dont stop fin "));
    }

    /// No character has a form that its upper case, its lower case or its decomposition has not.
    #[test]
    fn the_form_of_every_character_is_that_of_its_other_cases() {
        let one = |text: &str| words(text, false).concat();
        let mut other = Vec::new();
        for c in (0..=0x10ffff).filter_map(char::from_u32) {
            let form = one(&c.to_string());
            let cases = [c.to_uppercase().collect::<String>(), c.to_lowercase().collect(), c.nfd().collect()];
            if cases.iter().any(|case| one(case) != form) {
                other.push(c);
            }
            assert_eq!(one(&form), form, "the form of {c:?} is its own");
        }
        assert!(other.is_empty(), "{other:?}");
    }
}
