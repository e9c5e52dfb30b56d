//! C4's rules (Raffel et al. 2020, §2.2), as datatrove runs them: they look at lines, and what is left of the lines is
//! the document.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_words::{EnglishWords, Span, count_sentences, is_digit, is_space, line_ranges, trim};

use crate::rules::{Fault, fault};

/// Which lines stay, and which documents. A line that an earlier rule drops decides nothing about its document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct C4 {
    /// Most characters of a word (of what stands between blanks) in a line that stays; null: any.
    pub max_word_length: Option<u64>,
    /// Remove citations such as `[1]`, `[edit]` and `[citation needed]`.
    pub remove_citations: bool,
    /// Drop lines that do not end in . ? ! " or ', or that end in an ellipsis. FineWeb does without.
    pub end_mark: bool,
    /// Fewest words (what stands between blanks) of a line that stays.
    pub min_line_words: u64,
    /// Drop documents with "lorem ipsum" in any case.
    pub lorem_ipsum: bool,
    /// Drop lines with "javascript" in any case.
    pub javascript: bool,
    /// Drop documents with a curly bracket.
    pub curly_bracket: bool,
    /// Drop lines that speak of cookies, terms of use or a privacy policy.
    pub policy: bool,
    /// Fewest sentences of what is left of the document.
    pub min_sentences: u64,
}

/// As published.
impl Default for C4 {
    fn default() -> Self {
        C4 {
            max_word_length: Some(1000),
            remove_citations: true,
            end_mark: true,
            min_line_words: 3,
            lorem_ipsum: true,
            javascript: true,
            curly_bracket: true,
            policy: true,
            min_sentences: 5,
        }
    }
}

/// In any case; the first drops the document, the others the line.
const PHRASES: [&str; 8] = [
    "lorem ipsum",
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
];

static PHRASE: LazyLock<AhoCorasick> = LazyLock::new(|| {
    AhoCorasick::builder().ascii_case_insensitive(true).build(PHRASES).expect("the phrases are fixed")
});

/// Whether a text holds "lorem ipsum" in any case.
pub(crate) fn has_lorem_ipsum(text: &str) -> bool {
    PHRASE.find_overlapping_iter(text).any(|found| found.pattern().as_usize() == 0)
}

/// What is left of a document.
#[derive(Debug, Default)]
pub struct Lines {
    /// The kept lines, joined by line feeds, without white space at the ends.
    pub text: String,
    /// The words in them.
    pub words: usize,
    splitter: EnglishWords,
}

/// What becomes of a line.
enum Fate {
    Kept,
    Dropped,
    /// And its document with it, by this rule.
    DropsDocument(&'static str),
}

impl C4 {
    /// Takes the lines of `text`, whose words are `words`, into `left`.
    pub fn judge(&self, text: &str, words: &[Span], left: &mut Lines) -> Result<(), Fault> {
        left.text.clear();
        left.words = 0;
        // Most documents hold no phrase and no bracket: then no line need be searched.
        let has_phrases = PHRASE.is_match(text) || text.contains(KELVIN);
        let has_citations = self.remove_citations && text.contains('[');
        let has_brackets = self.curly_bracket && text.contains('{');
        let (mut sentences, mut next, mut is_first) = (0, 0, true);
        for range in line_ranges(text) {
            let line = trim(&text[range]);
            let start = line.as_ptr() as usize - text.as_ptr() as usize;
            let end = start + line.len();
            let shortened = if has_citations { without_citations(line) } else { None };
            let now = shortened.as_deref().unwrap_or(line);
            // A citation may have stood inside a phrase.
            let may_hold_phrase = has_phrases || shortened.is_some();
            match self.fate(line, now, may_hold_phrase, has_brackets) {
                Fate::Dropped => continue,
                Fate::DropsDocument(rule) => return Err(fault(rule, 1.0)),
                Fate::Kept => {}
            }
            let (found, count) = match shortened.is_some() {
                true => {
                    let own = left.splitter.split(now);
                    (count_sentences(now, own), own.len())
                }
                false => {
                    next += words[next..].partition_point(|word| (word.start as usize) < start);
                    let count = words[next..].partition_point(|word| (word.start as usize) < end);
                    let own = &words[next..next + count];
                    // Only whether the limit is reached counts: behind it nothing is counted.
                    let is_open = sentences < self.min_sentences;
                    (if is_open { count_sentences(&text[..end], own) } else { 0 }, count)
                }
            };
            sentences += found as u64;
            left.words += count;
            if !is_first {
                left.text.push('\n');
            }
            is_first = false;
            left.text.push_str(now);
        }
        if sentences < self.min_sentences {
            return Err(fault("sentences", sentences as f64));
        }
        left.text.truncate(left.text.trim_end_matches(is_space).len());
        let blank = left.text.len() - left.text.trim_start_matches(is_space).len();
        left.text.drain(..blank);
        Ok(())
    }

    /// `line` is as it was, `now` without citations: words are counted before, the rest after.
    fn fate(&self, line: &str, now: &str, may_hold_phrase: bool, has_brackets: bool) -> Fate {
        if let Some(most) = self.max_word_length
            && line.len() as u64 > most
            && line.split(is_space).any(|word| word.len() as u64 > most && word.chars().count() as u64 > most)
        {
            return Fate::Dropped;
        }
        if self.end_mark && (!now.ends_with(['.', '?', '!', '"', '\'']) || now.ends_with("...")) {
            return Fate::Dropped;
        }
        let words = line.split(is_space).filter(|word| !word.is_empty());
        if (words.take(self.min_line_words as usize).count() as u64) < self.min_line_words {
            return Fate::Dropped;
        }
        let held = if may_hold_phrase { phrases(now) } else { [false; PHRASES.len()] };
        if self.lorem_ipsum && held[0] {
            return Fate::DropsDocument("lorem_ipsum");
        }
        if self.javascript && held[1] {
            return Fate::Dropped;
        }
        if has_brackets && now.contains('{') {
            return Fate::DropsDocument("curly_bracket");
        }
        if self.policy && held[2..].contains(&true) { Fate::Dropped } else { Fate::Kept }
    }
}

/// The only character beyond ASCII whose lower case is an ASCII letter of a phrase: K, the sign of the kelvin.
const KELVIN: char = '\u{212a}';

/// Which phrases a line holds.
fn phrases(line: &str) -> [bool; PHRASES.len()] {
    let folded = line.contains(KELVIN).then(|| line.replace(KELVIN, "k"));
    let mut held = [false; PHRASES.len()];
    for found in PHRASE.find_overlapping_iter(folded.as_deref().unwrap_or(line)) {
        held[found.pattern().as_usize()] = true;
    }
    held
}

/// The line without its citations, if it has any.
fn without_citations(line: &str) -> Option<String> {
    let mut left: Option<String> = None;
    let mut copied = 0;
    for (at, _) in line.match_indices('[') {
        let inside = &line[at + 1..];
        let digits = inside.find(|c| !is_digit(c)).unwrap_or(inside.len());
        let length = if inside[digits..].starts_with(']') {
            digits + 2
        } else if inside.starts_with("edit]") {
            "[edit]".len()
        } else if inside.starts_with("citation needed]") {
            "[citation needed]".len()
        } else {
            continue;
        };
        left.get_or_insert_default().push_str(&line[copied..at]);
        copied = at + length;
    }
    left.as_mut()?.push_str(&line[copied..]);
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(rules: &C4, text: &str) -> Result<String, String> {
        let mut words = EnglishWords::default();
        let mut left = Lines::default();
        rules.judge(text, words.split(text), &mut left).map_err(|fault| fault.rule)?;
        let again = EnglishWords::default().split(&left.text).len();
        assert_eq!(left.words, again, "the words of {:?}", left.text);
        Ok(left.text)
    }

    #[test]
    fn lines_go_and_documents_go_for_the_published_reasons() {
        let five = "One two three. Four! Five?\n Six and more. Seven.\n";
        let with = |line: &str| judge(&C4::default(), &format!("{five}{line}"));
        let kept = "One two three. Four! Five?\nSix and more. Seven.";
        assert_eq!(with(""), Ok(kept.into()));
        for gone in
            ["no end mark here", "too few.", "and so on...", "Get JavaScript to see.", "We Use Cookies, you know."]
        {
            assert_eq!(with(gone), Ok(kept.into()), "{gone}");
        }
        assert_eq!(with(&format!("It has {} in it.", "x".repeat(1001))), Ok(kept.into()));
        assert_eq!(with("A LOREM IPSUM text."), Err("lorem_ipsum".into()));
        assert_eq!(with("A { in a line."), Err("curly_bracket".into()));
        assert_eq!(with("A { but no mark"), Ok(kept.into()));
        assert_eq!(judge(&C4::default(), "One two three."), Err("sentences".into()));
    }

    #[test]
    fn citations_go_before_the_end_mark_is_sought_and_after_words_are_counted() {
        let rules = C4 { min_sentences: 0, ..C4::default() };
        assert_eq!(judge(&rules, "a b c.[12]"), Ok("a b c.".into()));
        assert_eq!(judge(&rules, "a b c. [12]"), Ok(String::new()), "no second strip");
        assert_eq!(judge(&rules, "a [edit] [citation needed].[][1x]."), Ok("a  .[1x].".into()));
        assert_eq!(judge(&rules, "a java[1]script line."), Ok(String::new()));
        assert_eq!(judge(&C4 { end_mark: false, ..rules }, "a b [١]"), Ok("a b".into()));
    }

    #[test]
    fn the_sign_of_the_kelvin_is_a_letter_in_lower_case() {
        let rules = C4 { min_sentences: 0, ..C4::default() };
        assert_eq!(judge(&rules, "we use coo\u{212a}ies here."), Ok(String::new()));
    }
}
