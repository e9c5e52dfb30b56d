//! The rules that decide whether a document stays, and their limits.
//!
//! The rules are those of Gopher (Rae et al. 2021, §A.1.1), C4 (Raffel et al. 2020, §2.2) and FineWeb (Penedo et al.
//! 2024, §3.6), as datatrove computes them. The default limits are not theirs: they are for technical text and source
//! code, where short lines, marks and repeated closing brackets are normal. The comment of each field gives the
//! published limit; [`Rules::gopher`], [`Rules::c4`] and [`Rules::fineweb`] are the published sets and decide as
//! datatrove does. A limit of null turns its rule off.
//!
//! The published rules know English words only, so a Chinese, Japanese or Thai text is a few words of monstrous length.
//! With `by_script`, the default, its characters stand for parts of words: they are counted as the words that they make
//! on average, say nothing of the mean length, and repetition is sought among them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_words::{
    EnglishWords, Span, is_letter, is_space, is_symbol_word, is_terminal, lines, parts, trim, unspaced, words,
};

use crate::c4::{C4, Lines};
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

/// Limits of all rules; null turns one off. Lengths are Unicode code points. The defaults shown are those without a
/// preset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Whether the characters of scripts without blanks between words (Han, Kana, Thai, Lao, Khmer, Burmese) count as
    /// parts of words: two or four make one. False: the words of the published rules, which are English ones.
    pub by_script: bool,
    /// Whether the count of words is judged first: of a text of five words always a third repeats. In the published
    /// order repetition comes first, then the count with the rest of quality, then C4's rules, then FineWeb's.
    pub length_first: bool,
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
    /// C4's rules, which also drop lines; null for none of them. FineWeb takes them without `end_mark`.
    pub c4: Option<C4>,
    /// Fewest lines of 200 characters and more (mC4: 3).
    pub min_long_lines: Option<f64>,
    /// Smallest share of lines that end in a sentence terminator (FineWeb: 0.12).
    pub min_terminated_lines: Option<f64>,
    /// Largest share of short lines (FineWeb: 0.67).
    pub max_short_lines: Option<f64>,
    /// Most characters of a short line (FineWeb: 30).
    pub short_line: u64,
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
            length_first: true,
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
            length_first: false,
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
            c4: None,
            min_long_lines: None,
            min_terminated_lines: None,
            max_short_lines: None,
            short_line: 30,
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

    /// C4's rules with the published limits.
    pub fn c4() -> Self {
        Rules { c4: Some(C4::default()), ..Rules::none() }
    }

    /// FineWeb's chain of rules with the published limits: Gopher's, C4's but for the end mark, and its own.
    pub fn fineweb() -> Self {
        Rules {
            c4: Some(C4 { end_mark: false, ..C4::default() }),
            min_terminated_lines: Some(0.12),
            max_short_lines: Some(0.67),
            max_repeated_in_lines: Some(0.01),
            max_line_feeds: Some(0.3),
            ..Rules::gopher()
        }
    }

    fn has_repetition(&self) -> bool {
        self.max_repeated_paragraphs.is_some()
            || self.max_repeated_paragraph_characters.is_some()
            || self.max_repeated_lines.is_some()
            || self.max_repeated_line_characters.is_some()
            || self.has_runs()
    }

    fn has_runs(&self) -> bool {
        !self.max_top_runs.is_empty() || !self.max_repeated_runs.is_empty()
    }

    fn has_lines(&self) -> bool {
        self.min_terminated_lines.is_some()
            || self.max_short_lines.is_some()
            || self.max_repeated_in_lines.is_some()
            || self.max_line_feeds.is_some()
    }

    fn judge_parts<V: Verdict>(&self, to: &mut V, text: &str, characters: usize) -> Result<(), Fault> {
        let share = |n: usize| n as f64 / characters as f64;
        let (most, most_characters) = (self.max_repeated_paragraphs, self.max_repeated_paragraph_characters);
        if V::ALL || most.is_some() || most_characters.is_some() {
            let found = repetition::repeats(repetition::split_runs(trim(text), 2));
            to.above("repeated_paragraphs", found.share(), most)?;
            to.above("repeated_paragraph_characters", share(found.characters), most_characters)?;
        }
        let (most, most_characters) = (self.max_repeated_lines, self.max_repeated_line_characters);
        if V::ALL || most.is_some() || most_characters.is_some() {
            let found = repetition::repeats(repetition::split_runs(text, 1));
            to.above("repeated_lines", found.share(), most)?;
            to.above("repeated_line_characters", share(found.characters), most_characters)?;
        }
        Ok(())
    }

    fn judge_runs<V: Verdict>(&self, to: &mut V, runs: &mut Runs, characters: usize) -> Result<(), Fault> {
        let share = |n: usize| n as f64 / characters as f64;
        for &RunLimit { n, share: most } in &self.max_top_runs {
            let found = share(runs.top(n));
            if V::ALL || found > most {
                to.above(&format!("top_run_of_{n}"), found, Some(most))?;
            }
        }
        for &RunLimit { n, share: most } in &self.max_repeated_runs {
            let found = share(runs.repeated(n));
            if V::ALL || found > most {
                to.above(&format!("repeated_runs_of_{n}"), found, Some(most))?;
            }
        }
        Ok(())
    }

    fn judge_length<V: Verdict>(&self, to: &mut V, found: &Counted) -> Result<(), Fault> {
        to.below("too_few_words", found.real, self.min_words)?;
        to.above("too_many_words", found.real, self.max_words)
    }

    fn judge_quality<V: Verdict>(&self, to: &mut V, text: &str, found: &Counted) -> Result<(), Fault> {
        let per_word = |n: usize| n as f64 / found.all;
        let mean_length = found.characters as f64 / found.spaced;
        to.below("words_too_short", mean_length, self.min_word_length)?;
        to.above("words_too_long", mean_length, self.max_word_length)?;
        if V::ALL || self.max_hashes.is_some() {
            to.above("hashes", per_word(text.bytes().filter(|&b| b == b'#').count()), self.max_hashes)?;
        }
        if V::ALL || self.max_ellipses.is_some() {
            let dots = text.matches("...").count() + text.matches('…').count();
            to.above("ellipses", per_word(dots), self.max_ellipses)?;
        }
        if V::ALL || self.max_bullet_lines.is_some() || self.max_ellipsis_lines.is_some() {
            let (mut all, mut bullets, mut ellipses) = (0, 0, 0);
            for line in lines(text) {
                all += 1;
                bullets += usize::from(line.trim_start_matches(is_space).starts_with(['•', '-']));
                let end = line.trim_end_matches(is_space);
                ellipses += usize::from(end.ends_with("...") || end.ends_with('…'));
            }
            let per_line = |n: usize| n as f64 / f64::from(all);
            to.above("bullet_lines", per_line(bullets), self.max_bullet_lines)?;
            to.above("ellipsis_lines", per_line(ellipses), self.max_ellipsis_lines)?;
        }
        let of = if self.letter_words_count_marks { found.all } else { found.real };
        to.below("letter_words", found.lettered / of, self.min_letter_words)?;
        to.below("stop_words", f64::from(found.stops.count_ones()), self.min_stop_words)
    }

    fn judge_long_lines<V: Verdict>(&self, to: &mut V, text: &str) -> Result<(), Fault> {
        if !V::ALL && self.min_long_lines.is_none() {
            return Ok(());
        }
        let is_long = |line: &&str| line.len() >= 200 && line.chars().nth(199).is_some();
        to.below("long_lines", text.split('\n').filter(is_long).count() as f64, self.min_long_lines)
    }

    /// FineWeb's own rules; `words` are all words of the text.
    fn judge_lines<V: Verdict>(&self, to: &mut V, text: &str, words: f64) -> Result<(), Fault> {
        if !V::ALL && !self.has_lines() && !self.length_first {
            return Ok(());
        }
        let filled: Vec<&str> = text.split('\n').filter(|line| !line.chars().all(is_space)).collect();
        if filled.is_empty() && !V::ALL {
            return Err(fault("empty", 0.0));
        }
        let share = |n: usize| n as f64 / filled.len() as f64;
        let ended = filled.iter().filter(|line| line.ends_with(is_terminal)).count();
        to.below("terminated_lines", share(ended), self.min_terminated_lines)?;
        let short = |line: &&&str| line.len() as u64 <= self.short_line || fits(line, self.short_line);
        to.above("short_lines", share(filled.iter().filter(short).count()), self.max_short_lines)?;
        let feeds = text.bytes().filter(|&b| b == b'\n').count();
        if V::ALL || self.max_repeated_in_lines.is_some() {
            let repeats = repetition::repeats(filled.iter().copied());
            let all = text.chars().count() - feeds;
            to.above("repeated_in_lines", repeats.characters as f64 / all as f64, self.max_repeated_in_lines)?;
        }
        to.above("line_feeds", feeds as f64 / words, self.max_line_feeds)
    }
}

/// Whether a line has at most `most` characters.
fn fits(line: &str, most: u64) -> bool {
    line.chars().take((most as usize).saturating_add(1)).count() as u64 <= most
}

/// Judges one document after the other, in the same buffers.
#[derive(Debug, Default)]
pub struct Judge {
    english: EnglishWords,
    /// Words by script.
    spans: Vec<Span>,
    runs: Runs,
    lines: Lines,
}

impl Judge {
    /// What the rules leave of `text`, or the first rule that it breaks.
    pub fn judge<'t>(&mut self, rules: &Rules, text: &'t str) -> Result<Cow<'t, str>, Fault> {
        self.look(&mut Strict, rules, text)
    }

    /// What each rule looks at, whatever its limit: under the names of the rules, and runs as Gopher has them. Beside
    /// them `lorem_ipsum` and `curly_bracket`, 1 if the text holds one, and `sentences` of the lines that C4's rules
    /// leave; what comes after these looks at those lines, if `rules` has C4's, else at the text.
    pub fn values(&mut self, rules: &Rules, text: &str) -> Values {
        let gopher = Rules::gopher();
        let c4 = rules.c4.clone().unwrap_or_default();
        let lines = C4 { lorem_ipsum: false, curly_bracket: false, ..c4 };
        let all = Rules {
            max_top_runs: gopher.max_top_runs,
            max_repeated_runs: gopher.max_repeated_runs,
            c4: rules.c4.is_some().then(|| C4 { min_sentences: 0, ..lines.clone() }),
            // Every word is wanted.
            max_words: None,
            ..rules.clone()
        };
        let mut values = Values::new();
        self.look(&mut values, &all, text).expect("values that are noted end nothing");
        let has = |found: bool| f64::from(u8::from(found));
        values.insert("lorem_ipsum".into(), has(crate::c4::has_lorem_ipsum(text)));
        values.insert("curly_bracket".into(), has(text.contains('{')));
        // With a limit that no text reaches the rule tells how many there are.
        let counted = C4 { min_sentences: u64::MAX, ..lines };
        let sentences =
            counted.judge(text, self.english.split(text), &mut self.lines).map_or_else(|f| f.value, |()| 0.0);
        values.insert("sentences".into(), sentences);
        values
    }

    fn look<'t, V: Verdict>(&mut self, to: &mut V, rules: &Rules, text: &'t str) -> Result<Cow<'t, str>, Fault> {
        let characters = text.chars().count();
        if !V::ALL && characters == 0 && (rules.length_first || rules.has_repetition()) {
            return Err(fault("empty", 0.0));
        }
        // Paragraphs and lines need no words, but the count of words may come first.
        if !rules.length_first {
            rules.judge_parts(to, text, characters)?;
        }
        let mut found = Counted::default();
        let words = if rules.by_script {
            self.spans.clear();
            let has_unspaced = text.chars().any(|c| unspaced(c).is_some());
            let mut add = |word: &str| {
                found.add(word, true);
                // A text that is too long for its rule needs no list of words, which takes more memory than the text.
                if !rules.length_first || rules.max_words.is_none_or(|most| found.real <= most) {
                    let start = (word.as_ptr() as usize - text.as_ptr() as usize) as u32;
                    self.spans.push(Span { start, end: start + word.len() as u32 });
                }
            };
            match has_unspaced {
                true => words(text).flat_map(parts).for_each(&mut add),
                false => words(text).for_each(&mut add),
            }
            &self.spans[..]
        } else {
            let words = self.english.split(text);
            words.iter().for_each(|word| found.add(word.of(text), false));
            words
        };
        if rules.length_first {
            rules.judge_length(to, &found)?;
            rules.judge_parts(to, text, characters)?;
        }
        if V::ALL || rules.has_runs() {
            self.runs.set(text, words);
            rules.judge_runs(to, &mut self.runs, characters)?;
        }
        if !rules.length_first {
            rules.judge_length(to, &found)?;
        }
        rules.judge_quality(to, text, &found)?;
        let Some(c4) = &rules.c4 else {
            rules.judge_long_lines(to, text)?;
            rules.judge_lines(to, text, found.all)?;
            return Ok(Cow::Borrowed(text));
        };
        let words = if rules.by_script { self.english.split(text) } else { words };
        c4.judge(text, words, &mut self.lines)?;
        let left = &self.lines;
        rules.judge_long_lines(to, &left.text)?;
        rules.judge_lines(to, &left.text, left.words as f64)?;
        Ok(if left.text == text { Cow::Borrowed(text) } else { Cow::Owned(left.text.clone()) })
    }
}

/// What the rules want to know of a text's words. A character of an unspaced script is a part of a word.
#[derive(Clone, Copy, Debug, Default)]
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
        let share = if by_script { word.chars().next().and_then(unspaced) } else { None };
        let weight = share.map_or(1.0, |characters| 1.0 / characters);
        self.all += weight;
        let kinds = word.bytes().fold(0, |kinds, byte| kinds | KINDS[usize::from(byte)]);
        let (has_letter, is_symbol, characters) = match kinds & BEYOND_ASCII == 0 {
            // Of ASCII everything but letters and digits is a mark; there is no white space in a word.
            true => (kinds & LETTER != 0, kinds == 0, word.len()),
            false => {
                // A letter is no mark.
                let has_letter = kinds & LETTER != 0 || word.chars().any(is_letter);
                (has_letter, !has_letter && is_symbol_word(word), word.chars().count())
            }
        };
        if has_letter {
            self.lettered += weight;
        }
        if !is_symbol {
            self.real += weight;
            if share.is_none() {
                self.spaced += 1.0;
                self.characters += characters;
            }
        }
        self.stops |= stop_word(word);
    }
}

const LETTER: u8 = 1;
const DIGIT: u8 = 2;
const BEYOND_ASCII: u8 = 4;

static KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut i = 0;
    while i < 256 {
        let byte = i as u8;
        kinds[i] = if byte.is_ascii_alphabetic() {
            LETTER
        } else if byte.is_ascii_digit() {
            DIGIT
        } else if byte.is_ascii() {
            0
        } else {
            BEYOND_ASCII
        };
        i += 1;
    }
    kinds
};

/// The bit of a stop word, 0 for any other word.
fn stop_word(word: &str) -> u8 {
    match word.as_bytes() {
        b"the" => 1,
        b"be" => 2,
        b"to" => 4,
        b"of" => 8,
        b"and" => 16,
        b"that" => 32,
        b"have" => 64,
        b"with" => 128,
        _ => 0,
    }
}

pub(crate) fn fault(rule: &str, value: f64) -> Fault {
    Fault { rule: rule.to_owned(), value }
}

/// What becomes of the values that the rules look at.
trait Verdict {
    /// Whether values are wanted that have no limit.
    const ALL: bool;

    /// NaN, a share of nothing, breaks no rule.
    fn above(&mut self, rule: &str, value: f64, limit: Option<f64>) -> Result<(), Fault>;
    fn below(&mut self, rule: &str, value: f64, limit: Option<f64>) -> Result<(), Fault>;
}

/// The first value beyond its limit ends it.
struct Strict;

impl Verdict for Strict {
    const ALL: bool = false;

    fn above(&mut self, rule: &str, value: f64, limit: Option<f64>) -> Result<(), Fault> {
        if limit.is_some_and(|limit| value > limit) { Err(fault(rule, value)) } else { Ok(()) }
    }

    fn below(&mut self, rule: &str, value: f64, limit: Option<f64>) -> Result<(), Fault> {
        if limit.is_some_and(|limit| value < limit) { Err(fault(rule, value)) } else { Ok(()) }
    }
}

/// All values are noted, by rule; nothing ends it.
impl Verdict for Values {
    const ALL: bool = true;

    fn above(&mut self, rule: &str, value: f64, _limit: Option<f64>) -> Result<(), Fault> {
        self.insert(rule.to_owned(), value);
        Ok(())
    }

    fn below(&mut self, rule: &str, value: f64, _limit: Option<f64>) -> Result<(), Fault> {
        self.insert(rule.to_owned(), value);
        Ok(())
    }
}

/// The value of each rule of a text, by its name.
pub type Values = BTreeMap<String, f64>;

/// The names of all values, sorted: the columns of an annotation.
pub fn value_names() -> Vec<String> {
    let values = Judge::default().values(&Rules::none(), "a");
    values.into_keys().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(rules: &Rules, text: &str) -> Option<Fault> {
        Judge::default().judge(rules, text).err()
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

    /// A rule drops a text exactly when its value is beyond its limit.
    #[test]
    fn values_are_those_by_which_texts_are_dropped() {
        let texts = [
            "",
            " \n",
            "the same words, the same words, the same words, the same words",
            "One line.\nOne line.\nOne line. And { a bracket }\n\nOne line.\n\nOne line.",
            "Lorem ipsum dolor sit amet ... # # # of the end and to be\n- a\n- b\n- c…",
            include_str!("rules.rs"),
            "今天早上港口的管理员在早餐之前数了七条灰色的船。",
        ];
        for rules in [Rules::default(), Rules::gopher(), Rules::fineweb(), Rules::c4()] {
            for text in texts {
                let values = Judge::default().values(&rules, text);
                if let Some(fault) = judge(&rules, text).filter(|fault| fault.rule != "empty") {
                    let value = values[&fault.rule];
                    match fault.rule.as_str() {
                        // Sentences are counted up to the limit only, and of a text that holds it the line may stay.
                        "sentences" | "lorem_ipsum" | "curly_bracket" => assert!(value >= fault.value, "{fault:?}"),
                        _ => assert_eq!(value, fault.value, "{fault:?} in {text:?}"),
                    }
                }
                assert_eq!(values.into_keys().collect::<Vec<_>>(), value_names(), "{text:?}");
            }
        }
        assert_eq!(value_names().len(), 31);
    }

    #[test]
    fn a_text_of_blanks_or_marks_breaks_no_division() {
        for text in [" ", "\n\n", "....", "#", "\u{0}"] {
            let fault = judge(&Rules::default(), text).expect("too little to keep");
            assert!(fault.value.is_finite(), "{text:?}: {fault:?}");
        }
    }
}
