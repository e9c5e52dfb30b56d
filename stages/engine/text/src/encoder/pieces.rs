//! Cuts a text into pieces, which merges never cross, as the known tokenizers do.
//!
//! The tokenizers library runs a back-tracking expression and allocates several times a piece, at about 2 MB/s; here
//! each expression is written out by hand. `pattern.rs` says which expressions these are, and tests compare both ways.

use super::classes::{BREAK, CJK, Classes, DIGIT, LETTER, MARK, NUMBER, SIGN, SPACE};

/// A pre-tokenizer that is written out here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2 (Radford et al. 2019).
    Gpt2,
    /// Every decimal digit apart, then GPT-2.
    Gpt2Digits,
    /// OpenAI's cl100k in the form of Llama 3: numbers by three digits.
    Cl100k,
    /// The same with numbers by single digits.
    Qwen2,
    /// Numbers by three digits, runs of Chinese and Japanese, then signs with the line breaks that follow them
    /// (DeepSeek-V3, §4.1 and its published tokenizer).
    DeepseekV3,
}

impl Pattern {
    /// Gives `take` the pieces of `text` in order, as ranges of bytes; joined they are the text.
    #[inline(always)]
    pub(super) fn cut(self, text: &str, take: impl FnMut(usize, usize)) {
        let view = View { text, classes: Classes::get() };
        match self {
            Self::Gpt2 => view.each(|view, at| view.gpt2(at, 0), take),
            Self::Gpt2Digits => view.each(|view, at| view.gpt2(at, DIGIT), take),
            Self::Cl100k => view.each(|view, at| view.cl100k(at, 3), take),
            Self::Qwen2 => view.each(|view, at| view.cl100k(at, 1), take),
            Self::DeepseekV3 => view.each(View::deepseek_v3, take),
        }
    }

    /// The pieces of `text`.
    pub fn pieces(self, text: &str) -> Vec<&str> {
        let mut pieces = Vec::new();
        self.cut(text, |start, end| pieces.push(&text[start..end]));
        pieces
    }

    /// Calls `take` for every piece of `text`, in order.
    pub fn for_each<'a>(self, text: &'a str, mut take: impl FnMut(&'a str)) {
        self.cut(text, |start, end| take(&text[start..end]));
    }
}

#[derive(Clone, Copy)]
struct View<'a> {
    text: &'a str,
    classes: &'static Classes,
}

impl View<'_> {
    #[inline(always)]
    fn each(self, piece: impl Fn(&Self, usize) -> usize, mut take: impl FnMut(usize, usize)) {
        let mut at = 0;
        while at < self.text.len() {
            let end = piece(&self, at);
            take(at, end);
            at = end;
        }
    }

    /// Flags and length of the character at `at`; no flags and no length at the end.
    #[inline(always)]
    fn at(&self, at: usize) -> (u8, usize) {
        if at < self.text.len() { self.classes.at(self.text, at) } else { (0, 0) }
    }

    /// End of the run of characters from `at` whose flags `is` accepts.
    #[inline(always)]
    fn run(&self, mut at: usize, is: impl Fn(u8) -> bool) -> usize {
        while at < self.text.len() {
            let (flags, length) = self.classes.at(self.text, at);
            if !is(flags) {
                break;
            }
            at += length;
        }
        at
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d` at `at`, where `'` stands; in either case, the long s too, if so asked.
    #[inline(always)]
    fn contraction(&self, at: usize, any_case: bool) -> Option<usize> {
        let case = if any_case { 0x20 } else { 0 };
        let byte = |i: usize| self.text.as_bytes().get(at + i).map_or(0, |byte| byte | case);
        match (byte(1), byte(2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
            _ if any_case && self.text[at + 1..].starts_with('ſ') => Some(at + 3),
            _ => None,
        }
    }

    /// `\s+(?!\S)|\s+` for the white space from `at` to `end`: the last blank belongs to what follows, unless it is the
    /// only one or nothing follows.
    #[inline(always)]
    fn blanks(&self, at: usize, end: usize, nothing_follows: bool) -> usize {
        if nothing_follows {
            return end;
        }
        let last = self.text[at..end].chars().next_back().map_or(0, char::len_utf8);
        if end - at == last { end } else { end - last }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, where characters with the flag
    /// `apart` are pieces of their own.
    #[inline(always)]
    fn gpt2(&self, at: usize, apart: u8) -> usize {
        const KINDS: u8 = SPACE | LETTER | NUMBER;
        let first = self.text.as_bytes()[at];
        let (flags, length) = self.at(at);
        if flags & apart != 0 {
            return at + length;
        }
        if first == b'\''
            && let Some(end) = self.contraction(at, false)
        {
            return end;
        }
        let (next, next_length) = if first == b' ' { self.at(at + 1) } else { (flags, length) };
        if next & SPACE == 0 && next & apart == 0 && next_length > 0 {
            let kind = next & KINDS;
            let from = if first == b' ' { at + 1 + next_length } else { at + length };
            return self.run(from, |flags| flags & (KINDS | apart) == kind);
        }
        let end = self.run(at, |flags| flags & SPACE != 0);
        self.blanks(at, end, end == self.text.len() || self.at(end).0 & apart != 0)
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
    /// \s+(?!\S)|\s+`
    #[inline(always)]
    fn cl100k(&self, at: usize, digits: usize) -> usize {
        const KINDS: u8 = SPACE | LETTER | NUMBER;
        let first = self.text.as_bytes()[at];
        let (flags, length) = self.at(at);
        let is_letter = |flags: u8| flags & LETTER != 0;
        if is_letter(flags) {
            return self.run(at + length, is_letter);
        }
        if flags & NUMBER != 0 {
            let mut end = at + length;
            for _ in 1..digits {
                let (flags, length) = self.at(end);
                if flags & NUMBER == 0 {
                    break;
                }
                end += length;
            }
            return end;
        }
        if first == b'\''
            && let Some(end) = self.contraction(at, true)
        {
            return end;
        }
        let (next, next_length) = self.at(at + length);
        if flags & BREAK == 0 && is_letter(next) {
            return self.run(at + length + next_length, is_letter);
        }
        let signs_from = if flags & SPACE == 0 {
            Some(at + length)
        } else if first == b' ' && next_length > 0 && next & KINDS == 0 {
            Some(at + 1 + next_length)
        } else {
            None
        };
        if let Some(from) = signs_from {
            let end = self.run(from, |flags| flags & KINDS == 0);
            return self.run(end, |flags| flags & BREAK != 0);
        }
        let end = self.run(at, |flags| flags & SPACE != 0);
        self.last_break(at, end).unwrap_or_else(|| self.blanks(at, end, end == self.text.len()))
    }

    /// `\s*[\r\n]+` in the white space from `at` to `end`: up to its last line break.
    #[inline(always)]
    fn last_break(&self, at: usize, end: usize) -> Option<usize> {
        let last = self.text.as_bytes()[at..end].iter().rposition(|byte| matches!(byte, b'\r' | b'\n'));
        last.map(|place| at + place + 1)
    }

    /// Three expressions, each applied to the parts that the one before left or made: `\p{N}{1,3}`, runs of Chinese and
    /// Japanese, and the one of [`View::deepseek_v3_match`]. What the last leaves between its matches is a piece.
    #[inline(always)]
    fn deepseek_v3(&self, at: usize) -> usize {
        let (flags, length) = self.at(at);
        if flags & NUMBER != 0 {
            let mut end = at + length;
            for _ in 1..3 {
                let (flags, length) = self.at(end);
                if flags & NUMBER == 0 {
                    break;
                }
                end += length;
            }
            return end;
        }
        let part = flags & CJK;
        if let Some(end) = self.deepseek_v3_match(at, part) {
            return end;
        }
        let mut end = at + length;
        while self.at(end).1 > 0
            && self.at(end).0 & (NUMBER | CJK) == part
            && self.deepseek_v3_match(end, part).is_none()
        {
            end += self.at(end).1;
        }
        end
    }

    /// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|
    /// \s*[\r\n]+|\s+(?!\S)|\s+`` at `at`, within the part of the text whose characters are no numbers and of which all
    /// or none have the flag `CJK`, as `part` says.
    #[inline(always)]
    fn deepseek_v3_match(&self, at: usize, part: u8) -> Option<usize> {
        let is_in = move |flags: u8| flags & (NUMBER | CJK) == part;
        let is_letter = move |flags: u8| flags & (LETTER | MARK) != 0 && is_in(flags);
        let first = self.text.as_bytes()[at];
        let (flags, length) = self.at(at);
        if flags & (LETTER | MARK) != 0 {
            return Some(self.run(at + length, is_letter));
        }
        let (next, next_length) = self.at(at + length);
        if flags & SIGN != 0 {
            let letters = |end: usize| self.text.as_bytes().get(end).is_some_and(u8::is_ascii_alphabetic);
            if first < 0x80 && letters(at + 1) {
                let mut end = at + 2;
                while letters(end) {
                    end += 1;
                }
                return Some(end);
            }
        } else if flags & BREAK == 0 && is_letter(next) {
            return Some(self.run(at + length + next_length, is_letter));
        }
        let signs_from = if flags & SIGN != 0 {
            Some(at + length)
        } else if first == b' ' && next & SIGN != 0 && is_in(next) {
            Some(at + 1 + next_length)
        } else {
            None
        };
        if let Some(from) = signs_from {
            let end = self.run(from, |flags| flags & SIGN != 0 && is_in(flags));
            return Some(self.run(end, |flags| flags & BREAK != 0 && is_in(flags)));
        }
        if flags & SPACE == 0 {
            return None;
        }
        let end = self.run(at, |flags| flags & SPACE != 0);
        let nothing_follows = end == self.text.len() || !is_in(self.at(end).0);
        Some(self.last_break(at, end).unwrap_or_else(|| self.blanks(at, end, nothing_follows)))
    }
}
