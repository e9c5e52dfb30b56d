//! The rules that decide whether a document stays, and their limits.
//!
//! Rules and order are those of Gopher (Rae et al. 2021, §A.1.1) and FineWeb (Penedo et al. 2024, §3.6), as datatrove
//! computes them. The default limits are not theirs: they are for technical text and source code, where short lines,
//! marks and repeated closing brackets are normal. The comment of each field gives the published limit;
//! [`Rules::gopher`] and [`Rules::fineweb`] are the published sets. A limit of null turns its rule off.
//!
//! The published rules split words at blanks, so a Chinese, Japanese or Thai text is a few words of monstrous length.
//! With `by_script`, the default, its characters stand for parts of words: they are counted as the words that they make
//! on average, say nothing of the mean length, and repetition is sought among them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_words::{is_letter, is_space, is_symbol_word, is_terminal, lines, parts, trim, unspaced};

use crate::repetition::{self, Runs};

/// Why a document is dropped: the rule, and the value that broke it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub rule: String,
    pub value: f64,
}

/// A limit for runs of `n` words, as a share of the text's characters in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunLimit {
    /// Words in a run, at least 1.
    pub n: usize,
    /// Share of the text's characters above which the document is dropped.
    pub share: f64,
}

/// Limits of all rules; null turns one off. Lengths are Unicode code points, words those of smelt-words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Whether the characters of scripts without blanks between words (Han, Kana, Thai, Lao, Khmer, Burmese) count as
    /// parts of words: two or four make one (the published rules: false).
    pub by_script: bool,
    /// Fewest words that are not mere marks (Gopher: 50).
    pub min_words: Option<f64>,
    /// Most words that are not mere marks (Gopher: 100000).
    pub max_words: Option<f64>,
    /// Smallest mean length of such words (Gopher: 3).
    pub min_word_length: Option<f64>,
    /// Largest mean length of such words (Gopher: 10).
    pub max_word_length: Option<f64>,
    /// Most `#` per word, marks counted as words (Gopher: 0.1).
    pub max_hashes: Option<f64>,
    /// Most `...` and `…` per word, marks counted as words (Gopher: 0.1).
    pub max_ellipses: Option<f64>,
    /// Largest share of lines that begin with • or - (Gopher: 0.9).
    pub max_bullet_lines: Option<f64>,
    /// Largest share of lines that end in ... or … (Gopher: 0.3).
    pub max_ellipsis_lines: Option<f64>,
    /// Smallest share of words with a letter (Gopher: 0.8).
    pub min_letter_words: Option<f64>,
    /// Whether marks count as words without a letter (Gopher as datatrove runs it: true, which alone drops half of
    /// technical text).
    pub letter_words_count_marks: bool,
    /// Fewest of the English words the, be, to, of, and, that, have, with that occur (Gopher: 2).
    pub min_stop_words: Option<f64>,
    /// Largest share of repeated paragraphs (Gopher: 0.3).
    pub max_repeated_paragraphs: Option<f64>,
    /// Largest share of characters in repeated paragraphs (Gopher: 0.2).
    pub max_repeated_paragraph_characters: Option<f64>,
    /// Largest share of repeated lines (Gopher: 0.3).
    pub max_repeated_lines: Option<f64>,
    /// Largest share of characters in repeated lines (Gopher: 0.2).
    pub max_repeated_line_characters: Option<f64>,
    /// Largest share of the most frequent run of n words (Gopher: 0.2 for 2, 0.18 for 3, 0.16 for 4).
    pub max_top_runs: Vec<RunLimit>,
    /// Largest share of repeated runs of n words (Gopher: 0.15 for 5, then 0.01 less for each word up to 0.10 for 10).
    pub max_repeated_runs: Vec<RunLimit>,
    /// Smallest share of lines that end in a sentence terminator (FineWeb: 0.12).
    pub min_terminated_lines: Option<f64>,
    /// Largest share of lines of at most 30 characters (FineWeb: 0.67).
    pub max_short_lines: Option<f64>,
    /// Largest share of characters in repeated lines, of the characters that are no line feed (FineWeb: 0.01).
    pub max_repeated_in_lines: Option<f64>,
    /// Most line feeds per word, marks counted as words (FineWeb: 0.3).
    pub max_line_feeds: Option<f64>,
}

fn runs(limits: &[(usize, f64)]) -> Vec<RunLimit> {
    limits.iter().map(|&(n, share)| RunLimit { n, share }).collect()
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            by_script: true,
            min_words: Some(20.0),
            max_words: Some(100_000.0),
            min_word_length: Some(2.0),
            max_word_length: Some(15.0),
            max_hashes: Some(0.2),
            max_ellipses: Some(0.1),
            max_bullet_lines: Some(0.9),
            max_ellipsis_lines: Some(0.3),
            min_letter_words: Some(0.6),
            max_repeated_paragraphs: Some(0.5),
            max_repeated_paragraph_characters: Some(0.4),
            max_repeated_lines: None,
            max_repeated_line_characters: Some(0.4),
            max_top_runs: runs(&[(2, 0.2), (3, 0.2), (4, 0.2)]),
            max_repeated_runs: runs(&[(5, 0.7), (10, 0.5)]),
            ..Rules::none()
        }
    }
}

impl Rules {
    /// No rule at all.
    pub fn none() -> Self {
        Rules {
            by_script: false,
            min_words: None,
            max_words: None,
            min_word_length: None,
            max_word_length: None,
            max_hashes: None,
            max_ellipses: None,
            max_bullet_lines: None,
            max_ellipsis_lines: None,
            min_letter_words: None,
            letter_words_count_marks: false,
            min_stop_words: None,
            max_repeated_paragraphs: None,
            max_repeated_paragraph_characters: None,
            max_repeated_lines: None,
            max_repeated_line_characters: None,
            max_top_runs: Vec::new(),
            max_repeated_runs: Vec::new(),
            min_terminated_lines: None,
            max_short_lines: None,
            max_repeated_in_lines: None,
            max_line_feeds: None,
        }
    }

    /// Gopher's quality and repetition rules with the published limits.
    pub fn gopher() -> Self {
        Rules {
            min_words: Some(50.0),
            max_words: Some(100_000.0),
            min_word_length: Some(3.0),
            max_word_length: Some(10.0),
            max_hashes: Some(0.1),
            max_ellipses: Some(0.1),
            max_bullet_lines: Some(0.9),
            max_ellipsis_lines: Some(0.3),
            min_letter_words: Some(0.8),
            letter_words_count_marks: true,
            min_stop_words: Some(2.0),
            max_repeated_paragraphs: Some(0.3),
            max_repeated_paragraph_characters: Some(0.2),
            max_repeated_lines: Some(0.3),
            max_repeated_line_characters: Some(0.2),
            max_top_runs: runs(&[(2, 0.2), (3, 0.18), (4, 0.16)]),
            max_repeated_runs: runs(&[(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)]),
            ..Rules::none()
        }
    }

    /// FineWeb's own quality rules with the published limits.
    pub fn fineweb() -> Self {
        Rules {
            min_terminated_lines: Some(0.12),
            max_short_lines: Some(0.67),
            max_repeated_in_lines: Some(0.01),
            max_line_feeds: Some(0.3),
            ..Rules::none()
        }
    }

    /// The first rule that `text` breaks, in the order length, repetition, quality, lines; `None` if it breaks none.
    pub fn judge(&self, text: &str) -> Option<Fault> {
        let characters = text.chars().count();
        if characters == 0 {
            return fault("empty", 0.0);
        }
        let mut found = Counted::default();
        let mut runs = Runs::default();
        // A text that is too long for its rule needs no list of words, which takes more memory than the text.
        let needs_runs = !self.max_top_runs.is_empty() || !self.max_repeated_runs.is_empty();
        for word in self.words(text) {
            found.add(word, self.by_script);
            if needs_runs && self.max_words.is_none_or(|most| found.real <= most) {
                runs.push(word);
            }
        }
        // Length comes first: in a text of five words something always is a third of it.
        below("too_few_words", found.real, self.min_words)
            .or_else(|| above("too_many_words", found.real, self.max_words))
            .or_else(|| self.judge_repetition(text, &runs, characters))
            .or_else(|| self.judge_quality(text, &found))
            .or_else(|| self.judge_lines(text, &found))
    }

    fn words<'t>(&self, text: &'t str) -> Box<dyn Iterator<Item = &'t str> + 't> {
        match self.by_script && text.chars().any(|c| unspaced(c).is_some()) {
            true => Box::new(smelt_words::words(text).flat_map(parts)),
            false => Box::new(smelt_words::words(text)),
        }
    }

    fn judge_repetition(&self, text: &str, runs: &Runs, characters: usize) -> Option<Fault> {
        let share = |n: usize| n as f64 / characters as f64;
        let paragraphs = repetition::repeats(repetition::split_runs(trim(text), 2));
        let by_line = repetition::repeats(repetition::split_runs(text, 1));
        above("repeated_paragraphs", paragraphs.share(), self.max_repeated_paragraphs)
            .or_else(|| {
                let limit = self.max_repeated_paragraph_characters;
                above("repeated_paragraph_characters", share(paragraphs.characters), limit)
            })
            .or_else(|| above("repeated_lines", by_line.share(), self.max_repeated_lines))
            .or_else(|| above("repeated_line_characters", share(by_line.characters), self.max_repeated_line_characters))
            .or_else(|| self.judge_runs(runs, share))
    }

    fn judge_runs(&self, runs: &Runs, share: impl Fn(usize) -> f64) -> Option<Fault> {
        let top = self
            .max_top_runs
            .iter()
            .find_map(|limit| above(&format!("top_run_of_{}", limit.n), share(runs.top(limit.n)), Some(limit.share)));
        top.or_else(|| {
            self.max_repeated_runs.iter().find_map(|limit| {
                above(&format!("repeated_runs_of_{}", limit.n), share(runs.repeated(limit.n)), Some(limit.share))
            })
        })
    }

    fn judge_quality(&self, text: &str, found: &Counted) -> Option<Fault> {
        let per_word = |n: usize| n as f64 / found.all;
        let mean_length = found.characters as f64 / found.spaced;
        let mut all_lines = 0;
        let (mut bullets, mut ellipses) = (0, 0);
        for line in lines(text) {
            all_lines += 1;
            bullets += usize::from(line.trim_start_matches(is_space).starts_with(['•', '-']));
            let end = line.trim_end_matches(is_space);
            ellipses += usize::from(end.ends_with("...") || end.ends_with('…'));
        }
        let per_line = |n: usize| n as f64 / f64::from(all_lines);
        below("words_too_short", mean_length, self.min_word_length)
            .or_else(|| above("words_too_long", mean_length, self.max_word_length))
            .or_else(|| above("hashes", per_word(text.matches('#').count()), self.max_hashes))
            .or_else(|| {
                let dots = text.matches("...").count() + text.matches('…').count();
                above("ellipses", per_word(dots), self.max_ellipses)
            })
            .or_else(|| above("bullet_lines", per_line(bullets), self.max_bullet_lines))
            .or_else(|| above("ellipsis_lines", per_line(ellipses), self.max_ellipsis_lines))
            .or_else(|| {
                let of = if self.letter_words_count_marks { found.all } else { found.real };
                below("letter_words", found.lettered / of, self.min_letter_words)
            })
            .or_else(|| below("stop_words", f64::from(found.stops.count_ones()), self.min_stop_words))
    }

    fn judge_lines(&self, text: &str, found: &Counted) -> Option<Fault> {
        let filled: Vec<&str> = text.split('\n').filter(|line| !line.chars().all(is_space)).collect();
        if filled.is_empty() {
            return fault("empty", 0.0);
        }
        let share = |n: usize| n as f64 / filled.len() as f64;
        let ended = filled.iter().filter(|line| line.ends_with(is_terminal)).count();
        below("terminated_lines", share(ended), self.min_terminated_lines)
            .or_else(|| {
                let short = filled.iter().filter(|line| line.chars().nth(30).is_none()).count();
                above("short_lines", share(short), self.max_short_lines)
            })
            .or_else(|| {
                let all = text.chars().filter(|&c| c != '\n').count();
                let repeats = repetition::repeats(filled.iter().copied());
                above("repeated_in_lines", repeats.characters as f64 / all as f64, self.max_repeated_in_lines)
            })
            .or_else(|| {
                let feeds = text.matches('\n').count();
                above("line_feeds", feeds as f64 / found.all, self.max_line_feeds)
            })
    }
}

/// What the rules want to know of a text's words. A character of an unspaced script is a part of a word.
#[derive(Debug, Default)]
struct Counted {
    /// Words, marks among them.
    all: f64,
    /// Words that are not mere marks.
    real: f64,
    /// Words with a letter.
    lettered: f64,
    /// Words between blanks that are not mere marks, and their characters.
    spaced: f64,
    characters: usize,
    /// A bit for each stop word that occurs.
    stops: u8,
}

impl Counted {
    fn add(&mut self, word: &str, by_script: bool) {
        let share = word.chars().next().and_then(unspaced).filter(|_| by_script);
        let weight = share.map_or(1.0, |characters| 1.0 / characters);
        self.all += weight;
        if word.chars().any(is_letter) {
            self.lettered += weight;
        }
        if !is_symbol_word(word) {
            self.real += weight;
            if share.is_none() {
                self.spaced += 1.0;
                self.characters += word.chars().count();
            }
        }
        if let Some(stop) = STOP_WORDS.iter().position(|stop| *stop == word) {
            self.stops |= 1 << stop;
        }
    }
}

const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];

fn fault(rule: &str, value: f64) -> Option<Fault> {
    Some(Fault { rule: rule.to_owned(), value })
}

/// A fault if `value` is above the limit. NaN, a share of nothing, breaks no rule.
fn above(rule: &str, value: f64, limit: Option<f64>) -> Option<Fault> {
    if limit.is_some_and(|limit| value > limit) { fault(rule, value) } else { None }
}

fn below(rule: &str, value: f64, limit: Option<f64>) -> Option<Fault> {
    if limit.is_some_and(|limit| value < limit) { fault(rule, value) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(rules: &Rules, text: &str) -> Option<Fault> {
        rules.judge(text)
    }

    fn only(set: impl FnOnce(&mut Rules)) -> Rules {
        let mut rules = Rules::none();
        set(&mut rules);
        rules
    }

    #[test]
    fn every_limit_drops_above_or_below_and_not_at_it() {
        #[rustfmt::skip]
        let cases: [(Rules, &str, &str, &str, f64); 14] = [
            (only(|r| r.min_words = Some(3.0)), "a b c .", "a b . . .", "too_few_words", 2.0),
            (only(|r| r.max_words = Some(2.0)), "a b .", "a b c .", "too_many_words", 3.0),
            (only(|r| r.min_word_length = Some(2.0)), "ab ab", "ab a", "words_too_short", 1.5),
            (only(|r| r.max_word_length = Some(2.0)), "ab ab", "ab abc", "words_too_long", 2.5),
            (only(|r| r.max_hashes = Some(0.5)), "# a", "# a #", "hashes", 2.0 / 3.0),
            (only(|r| r.max_ellipses = Some(0.5)), "... a", "… ... a", "ellipses", 2.0 / 3.0),
            (only(|r| r.max_bullet_lines = Some(0.5)), "- a\nb", "- a\n • b\nc", "bullet_lines", 2.0 / 3.0),
            (only(|r| r.max_ellipsis_lines = Some(0.5)), "a...\nb", "a... \nb…\nc", "ellipsis_lines", 2.0 / 3.0),
            (only(|r| r.min_letter_words = Some(0.5)), "a 1 . .", "a 1 2 .", "letter_words", 1.0 / 3.0),
            (only(|r| r.min_stop_words = Some(2.0)), "the end of", "the The end", "stop_words", 1.0),
            (only(|r| r.min_terminated_lines = Some(0.5)), "a.\nb", "a.\nb\nc", "terminated_lines", 1.0 / 3.0),
            (only(|r| r.max_short_lines = Some(0.5)), "a\n0123456789012345678901234567890",
             "a\n012345678901234567890123456789", "short_lines", 1.0),
            (only(|r| r.max_repeated_in_lines = Some(0.5)), "a\na", "a\na\na", "repeated_in_lines", 2.0 / 3.0),
            (only(|r| r.max_line_feeds = Some(0.5)), "a b\n", "a\nb\n", "line_feeds", 1.0),
        ];
        for (rules, kept, dropped, rule, value) in cases {
            assert_eq!(judge(&rules, kept), None, "{rule} at its limit");
            assert_eq!(judge(&rules, dropped), Some(Fault { rule: rule.into(), value }));
        }
    }

    #[test]
    fn text_without_blanks_is_judged_by_its_characters() {
        let prose = "今天早上港口的管理员在早餐之前数了七条灰色的船，\
                     并把它们的名字写进一本蓝色的账本里。";
        assert_eq!(judge(&Rules::default(), prose), None);
        assert_eq!(judge(&Rules::default(), "今天早上港口。").unwrap().rule, "too_few_words");
        assert_eq!(judge(&Rules { by_script: false, ..Rules::default() }, prose).unwrap().rule, "too_few_words");
        assert!(judge(&Rules::default(), &"今天早上港口的管理员".repeat(20)).is_some(), "it repeats itself");
        // A word and three characters of which two make one; a mark is none.
        let count = judge(&only(|r| (r.by_script, r.min_words) = (true, Some(1e6))), "港口，bread 船").unwrap();
        assert_eq!(count.value, 1.0 + 3.0 / 2.0);
    }

    #[test]
    fn repetition_is_named_by_what_repeats() {
        let rules = Rules { min_words: None, ..Rules::gopher() };
        let rule = |text: &str| judge(&rules, text).map(|f| f.rule);
        assert_eq!(rule("").as_deref(), Some("empty"));
        assert_eq!(rule(&"same paragraph\n\n".repeat(3)).as_deref(), Some("repeated_paragraphs"));
        assert_eq!(rule("a line\na line\na line\nanother").as_deref(), Some("repeated_lines"));
        assert_eq!(rule("spam ham spam ham spam ham spam ham").as_deref(), Some("top_run_of_2"));
    }

    #[test]
    fn code_stays_and_tables_go_by_default() {
        let code = include_str!("rules.rs");
        assert_eq!(judge(&Rules::default(), code), None);
        assert!(judge(&Rules::gopher(), code).is_some());
        let table: String = (0..300).map(|i| format!("    ({}, {}), ({}, {}),\n", i, i + 1, i * 7, i * 9)).collect();
        assert_eq!(judge(&Rules::default(), &table).unwrap().rule, "top_run_of_2");
    }

    #[test]
    fn a_text_of_blanks_or_marks_breaks_no_division() {
        for text in [" ", "\n\n", "....", "#", "\u{0}"] {
            let fault = judge(&Rules::default(), text).expect("too little to keep");
            assert!(fault.value.is_finite(), "{text:?}: {fault:?}");
        }
    }
}
