//! Scripts that write no blanks between words: Han, Kana, Thai, Lao, Khmer, Burmese.
//!
//! Splitting such text into words needs a dictionary of each language. Until there is one, a character stands for a
//! part of a word: runs of characters compare as well as runs of words, and a count of characters estimates words.

use crate::chars::is_combining;

/// How many characters a word of an unspaced script has on average, marks not counted; `None` for other characters.
///
/// Two for Chinese and Japanese, four for the scripts of South-East Asia: round numbers near what segmenters give.
pub fn unspaced(c: char) -> Option<f64> {
    match c {
        '\0'..='\u{dff}' => None,
        '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{19e0}'..='\u{19ff}' => {
            Some(4.0)
        }
        '\u{a9e0}'..='\u{a9ff}' | '\u{aa60}'..='\u{aa7f}' => Some(4.0),
        '\u{3005}' | '\u{3007}' | '\u{3040}'..='\u{30ff}' | '\u{3105}'..='\u{312f}' | '\u{31f0}'..='\u{31ff}' => {
            Some(2.0)
        }
        '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' => Some(2.0),
        '\u{ff66}'..='\u{ff9f}' | '\u{20000}'..='\u{3ffff}' => Some(2.0),
        _ => None,
    }
}

/// The parts of a word: each character of an unspaced script, with its marks, by itself; what is between them whole.
pub fn parts(word: &str) -> Parts<'_> {
    Parts { rest: word }
}

/// Iterator of [`parts`].
#[derive(Debug)]
pub struct Parts<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.rest.chars().next()?;
        let end = match unspaced(first) {
            _ if self.rest.is_ascii() => self.rest.len(),
            None => self.rest.find(|c| unspaced(c).is_some()).unwrap_or(self.rest.len()),
            Some(_) => {
                let after = first.len_utf8();
                self.rest[after..].find(|c| !is_combining(c)).map_or(self.rest.len(), |n| after + n)
            }
        };
        let (part, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_without_blanks_stand_alone_and_words_stay_whole() {
        let split = |word| parts(word).collect::<Vec<_>>();
        assert_eq!(split("word"), ["word"]);
        assert_eq!(split("naïve"), ["naïve"]);
        assert_eq!(split("漢字kana7かな"), ["漢", "字", "kana7", "か", "な"]);
        assert_eq!(split("ที่นี่"), ["ที่", "นี่"]);
        assert_eq!(split("한국어"), ["한국어"]);
        assert_eq!(split(""), Vec::<&str>::new());
    }
}
