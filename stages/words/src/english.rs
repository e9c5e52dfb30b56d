//! Words as the published filters and signatures count them: the tokens of spaCy's blank English pipeline.
//!
//! Gopher's, C4's and FineWeb's rules and FineWeb's MinHash were run over these words, so whoever wants the same
//! decisions and the same signatures needs the same words. A text is cut at white space; marks and units come off both
//! ends of each run, the rest is cut at infixes unless it is a URL, and a table of special cases ("don't", "e.g.",
//! ":-)") goes before all. A second pass puts special cases together again that were torn apart.
//!
//! spaCy says this in regular expressions of 30 KB, which are slow in any engine. Here the code says what they do, and
//! `data/` holds what they know: classes of characters and special cases (MIT licence, Explosion). The script that made
//! the tables asserts what the code takes for granted.

mod affixes;
mod tables;
mod url;

use affixes::{infix, prefix, suffix};
use tables::{
    BLANK, DIGIT, HIGH, KINDS, LETTER, MARK, PUNCTUATION, SENTENCE_END, Special, TABLES, Tables, class, wide_space,
};
use url::is_url;

/// Where a word stands in its text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// The word in the bytes of its text.
    #[inline]
    pub fn of_bytes(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }

    /// The word itself.
    #[inline]
    pub fn of(self, text: &str) -> &str {
        &text[self.start as usize..self.end as usize]
    }
}

/// Cuts one text after the other, in the same buffers.
#[derive(Debug, Default)]
pub struct EnglishWords {
    spans: Vec<Span>,
    suffixes: Vec<Span>,
    second: Second,
}

/// Buffers of the second pass.
#[derive(Debug, Default)]
struct Second {
    /// Places that look like a torn special case: how many words, the first of them, the node that knows the case.
    found: Vec<(u32, u32, u16)>,
    blocked: Vec<bool>,
    spans: Vec<Span>,
}

impl EnglishWords {
    /// The words of `text`, in order. White space separates and is no word.
    ///
    /// Panics at a text of 4 GiB or more.
    pub fn split(&mut self, text: &str) -> &[Span] {
        assert!(u32::try_from(text.len()).is_ok(), "split: a text of {} bytes, expected less than 2³²", text.len());
        self.spans.clear();
        let tables = &*TABLES;
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let kind = KINDS[bytes[at] as usize];
            if kind == BLANK {
                at += 1;
                continue;
            }
            if kind == HIGH
                && let Some(width) = wide_space(&bytes[at..])
            {
                at += width;
                continue;
            }
            let (start, mut kinds) = (at, 0);
            while at < bytes.len() {
                let kind = KINDS[bytes[at] as usize];
                if kind == BLANK || (kind == HIGH && wide_space(&bytes[at..]).is_some()) {
                    break;
                }
                kinds |= kind;
                at += 1;
            }
            let is_plain =
                kinds == LETTER || kinds == DIGIT || (kinds == LETTER | DIGIT && bytes[at - 1].is_ascii_digit());
            if is_plain && tables.special(&bytes[start..at]).is_none() {
                self.push(start, at);
            } else {
                self.cut_run(tables, text, start, at, kinds, true);
            }
        }
        self.join_again(tables, text);
        &self.spans
    }

    fn push(&mut self, start: usize, end: usize) {
        self.spans.push(Span { start: start as u32, end: end as u32 });
    }

    /// Cuts a run without white space; `kinds` are those of its bytes.
    fn cut_run(&mut self, tables: &Tables, text: &str, start: usize, end: usize, kinds: u8, with_special: bool) {
        let special = |x: &str| if with_special { tables.special(x.as_bytes()) } else { None };
        let has_digits = kinds & DIGIT != 0;
        let (mut from, mut to) = (start, end);
        let mut last = usize::MAX;
        self.suffixes.clear();
        while from < to && to - from != last {
            let x = &text[from..to];
            if special(x).is_some() {
                break;
            }
            last = x.len();
            let p = prefix(x);
            if p > 0 && special(&x[p..]).is_some() {
                self.push(from, from + p);
                from += p;
                break;
            }
            let q = suffix(tables, &x[p..], has_digits);
            if q > 0 && special(&x[..x.len() - q]).is_some() {
                self.suffixes.push(Span { start: (to - q) as u32, end: to as u32 });
                to -= q;
                break;
            }
            if p > 0 {
                self.push(from, from + p);
                from += p;
            }
            if q > 0 {
                self.suffixes.push(Span { start: (to - q) as u32, end: to as u32 });
                to -= q;
            }
        }
        if from < to {
            self.cut_middle(text, from, to, kinds, special(&text[from..to]));
        }
        while let Some(span) = self.suffixes.pop() {
            self.push(span.start as usize, span.end as usize);
        }
    }

    /// Cuts what is left between prefixes and suffixes.
    fn cut_middle(&mut self, text: &str, from: usize, to: usize, kinds: u8, special: Option<&'static Special>) {
        if let Some(special) = special {
            let mut at = from;
            for &length in special.lengths.iter().take_while(|&&length| length > 0) {
                self.push(at, at + usize::from(length));
                at += usize::from(length);
            }
            return;
        }
        let x = &text[from..to];
        if kinds & (MARK | HIGH) == 0 || is_url(x) {
            return self.push(from, to);
        }
        let mut at = 0;
        let mut next = 0;
        while let Some((start, end)) = infix(x, next) {
            next = end;
            if start == 0 {
                continue; // an infix at the front cuts nothing
            }
            if start > at {
                self.push(from + at, from + start);
            }
            self.push(from + start, from + end);
            at = end;
        }
        if at < x.len() {
            self.push(from + at, to);
        }
    }

    /// The second pass: puts torn special cases together again, the longest first, then the leftmost.
    ///
    /// A place that is refused, because a blank stands in it or a better one overlaps, still blocks its words.
    fn join_again(&mut self, tables: &Tables, text: &str) {
        let Second { found, blocked, spans: joined } = &mut self.second;
        found.clear();
        let piece = |at: usize| tables.piece(self.spans[at].of_bytes(text.as_bytes()));
        let mut before = 0;
        for second in 0..self.spans.len() {
            let (first_piece, second_piece) = (before, piece(second));
            before = second_piece;
            if first_piece == 0 || second_piece == 0 {
                continue;
            }
            let first = second - 1;
            let Some(&(mut node)) = tables.torn.get(&(0, first_piece)) else { continue };
            for at in second..self.spans.len() {
                if !is_near(text, self.spans[at - 1], self.spans[at]) {
                    break;
                }
                let Some(&next) = tables.torn.get(&(node, piece(at))) else { break };
                node = next;
                if tables.whole[usize::from(node)].is_some() {
                    found.push(((at + 1 - first) as u32, first as u32, node));
                }
            }
        }
        if found.is_empty() {
            return;
        }
        found.sort_unstable_by_key(|&(n, at, _)| (u32::MAX - n, at));
        blocked.clear();
        blocked.resize(self.spans.len(), false);
        found.retain(|&(n, at, _)| {
            let range = at as usize..(at + n) as usize;
            let is_free = !blocked[range.start] && !blocked[range.end - 1];
            blocked[range.clone()].fill(true);
            is_free && self.spans[range].windows(2).all(|pair| pair[0].end == pair[1].start)
        });
        found.sort_unstable_by_key(|&(_, at, _)| at);
        joined.clear();
        let mut copied = 0;
        for &(n, at, node) in found.iter() {
            joined.extend_from_slice(&self.spans[copied..at as usize]);
            let special = tables.whole[usize::from(node)].expect("only whole cases are found");
            let mut start = self.spans[at as usize].start;
            for &length in special.lengths.iter().take_while(|&&length| length > 0) {
                joined.push(Span { start, end: start + u32::from(length) });
                start += u32::from(length);
            }
            copied = (at + n) as usize;
        }
        joined.extend_from_slice(&self.spans[copied..]);
        std::mem::swap(&mut self.spans, joined);
    }
}

/// The words of `text`, as [`EnglishWords`] cuts them.
pub fn english_words(text: &str) -> Vec<&str> {
    let mut words = EnglishWords::default();
    words.split(text).iter().map(|span| span.of(text)).collect()
}

/// How many sentences `words` of `text` make, as spaCy's sentencizer counts them.
///
/// A word that is one sentence end closes a sentence; marks behind it stay in it. White space other than one blank
/// between two words is a token of its own there, so "end.  " counts two; an empty text counts one.
pub fn count_sentences(text: &str, words: &[Span]) -> usize {
    let mut count = 1;
    let mut is_ended = false;
    let mut before = None;
    for &word in words {
        if is_ended && before.is_some_and(|before| !is_near(text, before, word)) {
            count += 1;
            is_ended = false;
        }
        before = Some(word);
        let word = word.of(text);
        let mut chars = word.chars();
        let first = chars.next().map_or(0, class);
        if first & SENTENCE_END != 0 && chars.as_str().is_empty() {
            is_ended = true;
        } else if is_ended && !word.chars().all(|c| class(c) & PUNCTUATION != 0) {
            count += 1;
            is_ended = false;
        }
    }
    let rest = before.map_or("", |word| &text[word.end as usize..]);
    count + usize::from(is_ended && !matches!(rest, "" | " "))
}

/// Whether nothing or one blank stands between two words.
fn is_near(text: &str, a: Span, b: Span) -> bool {
    a.end == b.start || (a.end + 1 == b.start && text.as_bytes()[a.end as usize] == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> usize {
        count_sentences(text, EnglishWords::default().split(text))
    }

    #[test]
    fn marks_units_and_contractions_come_off() {
        assert_eq!(
            english_words("I don't (really) pay $5.99 for 10km."),
            ["I", "do", "n't", "(", "really", ")", "pay", "$", "5.99", "for", "10", "km", "."]
        );
        assert_eq!(
            english_words("well-known a--b U.K. e.g. 1,000 a,b x=y"),
            ["well", "-", "known", "a", "--", "b", "U.K.", "e.g.", "1,000", "a", ",", "b", "x", "=", "y"]
        );
        assert_eq!(
            english_words("wait...what…? 5:30pm \u{200b}\u{1f}°C."),
            ["wait", "...", "what", "…", "?", "5:30pm", "\u{200b}", "°", "C", "."]
        );
    }

    #[test]
    fn a_long_run_takes_no_longer_for_its_length() {
        // Half a megabyte each; a search from every mark to the end would take minutes.
        for piece in ["a@", "a.b@", "((", ":)", "''", "...a", "a:1/", "x.y:80@"] {
            let text = piece.repeat(500_000 / piece.len());
            let words = english_words(&text);
            assert_eq!(words.concat(), text);
        }
    }

    #[test]
    fn torn_special_cases_are_joined_again_and_a_blank_forbids_it() {
        assert_eq!(english_words("(and/or) a:) b: ) [:"), ["(", "and/or", ")", "a", ":)", "b", ":", ")", "[:"]);
    }

    #[test]
    fn sentences_end_at_marks_and_at_white_space_behind_them() {
        assert_eq!(sentences(""), 1);
        assert_eq!(sentences("One. Two! (Three?) four"), 4);
        assert_eq!(sentences("One.\" two"), 2);
        assert_eq!((sentences("end."), sentences("end. "), sentences("end.  "), sentences("end.\n")), (1, 1, 2, 2));
        assert_eq!(sentences("Wait... what"), 1);
    }

    #[test]
    fn words_and_blanks_together_are_the_text() {
        let text = "  a\u{1f}b\u{200b}c «d» e\u{301}…\n\t'x' n't 3'4 _\u{0} :-)))) 10km/h. \
            http://x.yz/… ''''' 漢。\u{a0}x";
        let mut end = 0;
        for span in EnglishWords::default().split(text) {
            assert!(text[end..span.start as usize].chars().all(crate::is_space), "only blanks between words");
            assert!(span.start < span.end);
            end = span.end as usize;
        }
        assert!(text[end..].chars().all(crate::is_space));
    }
}
