//! The rules that decide whether a document stays, and their limits.
//!
//! Rules and order are those of Gopher (Rae et al. 2021, §A.1.1) and FineWeb (Penedo et al. 2024, §3.6), as datatrove
//! computes them. The default limits are not theirs: they are for technical text and source code, where short lines,
//! marks and repeated closing brackets are normal. The comment of each field gives the published limit;
//! [`Rules::gopher`] and [`Rules::fineweb`] are the published sets. A limit of null turns its rule off.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_words::{is_letter, is_space, is_symbol_word, is_terminal, lines, trim};

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
    pub fn judge(&self, text: &str, words: &[&str]) -> Option<Fault> {
        let characters = text.chars().count();
        if characters == 0 {
            return fault("empty", 0.0);
        }
        let real: Vec<&str> = words.iter().copied().filter(|word| !is_symbol_word(word)).collect();
        // Length comes first: in a text of five words something always is a third of it.
        below("too_few_words", real.len() as f64, self.min_words)
            .or_else(|| above("too_many_words", real.len() as f64, self.max_words))
            .or_else(|| self.judge_repetition(text, words, characters))
            .or_else(|| self.judge_quality(text, words, &real))
            .or_else(|| self.judge_lines(text, words))
    }

    fn judge_repetition(&self, text: &str, words: &[&str], characters: usize) -> Option<Fault> {
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
            .or_else(|| self.judge_runs(&Runs::new(words), share))
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

    fn judge_quality(&self, text: &str, words: &[&str], real: &[&str]) -> Option<Fault> {
        let count = real.len() as f64;
        let letters: usize = real.iter().map(|word| word.chars().count()).sum();
        let per_word = |n: usize| n as f64 / words.len() as f64;
        let mut all_lines = 0;
        let (mut bullets, mut ellipses) = (0, 0);
        for line in lines(text) {
            all_lines += 1;
            bullets += usize::from(line.trim_start_matches(is_space).starts_with(['•', '-']));
            let end = line.trim_end_matches(is_space);
            ellipses += usize::from(end.ends_with("...") || end.ends_with('…'));
        }
        let per_line = |n: usize| n as f64 / f64::from(all_lines);
        below("words_too_short", letters as f64 / count, self.min_word_length)
            .or_else(|| above("words_too_long", letters as f64 / count, self.max_word_length))
            .or_else(|| above("hashes", per_word(text.matches('#').count()), self.max_hashes))
            .or_else(|| {
                let found = text.matches("...").count() + text.matches('…').count();
                above("ellipses", per_word(found), self.max_ellipses)
            })
            .or_else(|| above("bullet_lines", per_line(bullets), self.max_bullet_lines))
            .or_else(|| above("ellipsis_lines", per_line(ellipses), self.max_ellipsis_lines))
            .or_else(|| {
                let of = if self.letter_words_count_marks { words.len() } else { real.len() };
                let lettered = words.iter().filter(|word| word.chars().any(is_letter)).count();
                below("letter_words", lettered as f64 / of as f64, self.min_letter_words)
            })
            .or_else(|| {
                let found = STOP_WORDS.iter().filter(|stop| words.contains(stop)).count();
                below("stop_words", found as f64, self.min_stop_words)
            })
    }

    fn judge_lines(&self, text: &str, words: &[&str]) -> Option<Fault> {
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
                let found = repetition::repeats(filled.iter().copied());
                above("repeated_in_lines", found.characters as f64 / all as f64, self.max_repeated_in_lines)
            })
            .or_else(|| {
                let feeds = text.matches('\n').count();
                above("line_feeds", feeds as f64 / words.len() as f64, self.max_line_feeds)
            })
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
        let words: Vec<&str> = smelt_words::words(text).collect();
        rules.judge(text, &words)
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
