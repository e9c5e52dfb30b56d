//! The n-grams of a text as it is read: windows of folded words with rolling hashes.
//!
//! A window is the shortest run of words that ends with the last word and counts at least its length. Characters of
//! scripts without blanks count as parts of words, so such windows hold more of them; what a window holds depends on
//! its own words alone, and is the same in a problem and in its copy.

use std::hash::Hasher;
use std::ops::Range;

use rustc_hash::FxHasher;
use smelt_words::{Folder, WORD_QUARTERS};

/// The base of the rolling hash: any odd number whose bits are mixed.
const BASE: u64 = 0x9fb2_1c65_1e98_df25;
/// Words that may lie before the windows before they are forgotten.
const FORGET: usize = 1 << 12;

/// How long the windows are, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Of an n-gram.
    pub n: usize,
    /// Of the end of a problem by which shorter ones are found; none if there are no shorter ones.
    pub ends: Option<usize>,
    pub folds_numbers: bool,
}

/// A word that was read.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    /// Where its form begins in the folded text.
    pub start: usize,
    /// Bytes of the text that was read.
    pub source: Range<usize>,
    hash: u64,
    quarters: u32,
}

/// A sum of the hashes of a run of words, in their order.
#[derive(Clone, Debug)]
struct Window {
    /// Quarters of a word.
    length: u32,
    held: u32,
    /// The first word in it.
    first: usize,
    sum: u64,
    /// `BASE` to the power of 0, 1, ….
    powers: Vec<u64>,
}

impl Window {
    fn new(words: usize) -> Self {
        let length = words as u32 * WORD_QUARTERS;
        let powers = std::iter::successors(Some(1u64), |power| Some(power.wrapping_mul(BASE)));
        Self { length, held: 0, first: 0, sum: 0, powers: powers.take(length as usize + 1).collect() }
    }

    fn clear(&mut self) {
        (self.held, self.first, self.sum) = (0, 0, 0);
    }

    /// Takes in the last word; the hash of the window, once it is long enough.
    fn push(&mut self, words: &[Word]) -> Option<u64> {
        let last = words.len() - 1;
        self.sum = self.sum.wrapping_mul(BASE).wrapping_add(words[last].hash);
        self.held += words[last].quarters;
        while self.held - words[self.first].quarters >= self.length {
            let gone = &words[self.first];
            self.sum = self.sum.wrapping_sub(gone.hash.wrapping_mul(self.powers[last - self.first]));
            self.held -= gone.quarters;
            self.first += 1;
        }
        // The lowest bits of the sum do not know the order of the words.
        let mixed = self.sum.wrapping_mul(BASE);
        (self.held >= self.length).then_some(mixed ^ (mixed >> 32))
    }
}

/// The folded words of one text after the other, as far as the windows reach.
#[derive(Clone, Debug)]
pub struct Windows {
    n: Window,
    ends: Option<Window>,
    folds_numbers: bool,
    /// The forms of the words, each with a blank behind it.
    pub(crate) text: String,
    pub(crate) words: Vec<Word>,
}

/// The hashes of the windows that end with a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashes {
    pub n: Option<u64>,
    pub ends: Option<u64>,
}

impl Windows {
    pub(crate) fn new(lengths: Lengths) -> Self {
        let (n, ends) = (Window::new(lengths.n), lengths.ends.map(Window::new));
        Self { n, ends, folds_numbers: lengths.folds_numbers, text: String::new(), words: Vec::new() }
    }

    /// Forgets the text before, and gives what reads this one.
    pub(crate) fn begin<'t>(&mut self, text: &'t str) -> Folder<'t> {
        self.text.clear();
        self.words.clear();
        self.n.clear();
        self.ends.iter_mut().for_each(Window::clear);
        Folder::new(text, self.folds_numbers)
    }

    /// Reads a word; `None` when there is none.
    pub(crate) fn next_word(&mut self, folder: &mut Folder) -> Option<Hashes> {
        let start = self.text.len();
        let word = folder.next_word(&mut self.text)?;
        let mut hasher = FxHasher::default();
        hasher.write(&self.text.as_bytes()[start..]);
        let hash = hasher.finish();
        self.text.push(' ');
        self.words.push(Word { start, source: word.source, hash, quarters: word.quarters });
        let n = self.n.push(&self.words);
        Some(Hashes { n, ends: self.ends.as_mut().and_then(|ends| ends.push(&self.words)) })
    }

    pub(crate) fn folds_numbers(&self) -> bool {
        self.folds_numbers
    }

    /// What all words read so far count, in quarters of a word.
    pub(crate) fn quarters(&self) -> u32 {
        self.words.iter().map(|word| word.quarters).sum()
    }

    /// The words of the n-gram that ends with the last word, by their numbers.
    pub(crate) fn ngram(&self) -> Range<usize> {
        self.n.first..self.words.len()
    }

    /// Whether the text read so far ends with `words`, each with a blank behind it; gives where they stand in the
    /// source.
    pub(crate) fn ends_with(&self, words: &str) -> Option<Range<usize>> {
        let before = self.text.strip_suffix(words)?;
        let first = self.words.binary_search_by_key(&before.len(), |word| word.start).ok()?;
        Some(self.words[first].source.start..self.words.last()?.source.end)
    }

    /// Keeps memory bounded however long a text is. Not for those who use the numbers of words.
    pub(crate) fn forget(&mut self) {
        // The shorter window lies within the longer one once that is full, and both begin at 0 until then.
        let gone = self.n.first;
        if gone < FORGET {
            return;
        }
        let bytes = self.words[gone].start;
        self.text.drain(..bytes);
        self.words.drain(..gone);
        self.words.iter_mut().for_each(|word| word.start -= bytes);
        self.n.first = 0;
        self.ends.iter_mut().for_each(|ends| ends.first -= gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ngrams(lengths: Lengths, text: &str, forget: bool) -> Vec<(String, u64)> {
        let mut windows = Windows::new(lengths);
        let mut folder = windows.begin(text);
        let mut found = Vec::new();
        while let Some(hashes) = windows.next_word(&mut folder) {
            if let Some(hash) = hashes.n {
                found.push((windows.text[windows.words[windows.ngram().start].start..].to_owned(), hash));
            }
            if forget {
                windows.forget();
            }
        }
        found
    }

    const LENGTHS: Lengths = Lengths { n: 3, ends: Some(2), folds_numbers: false };

    #[test]
    fn windows_hold_words_or_more_characters_of_scripts_without_blanks() {
        let texts = |text| ngrams(LENGTHS, text, false).into_iter().map(|(text, _)| text).collect::<Vec<_>>();
        assert_eq!(texts("a b, c D"), ["a b c ", "b c d "]);
        assert_eq!(texts("a b"), Vec::<String>::new());
        assert_eq!(texts("今天早上港口的"), ["今 天 早 上 港 口 ", "天 早 上 港 口 的 "]);
        assert_eq!(texts("a 今b天c"), ["a 今 b 天 ", "今 b 天 c "], "the shortest run that counts 3 words");
    }

    #[test]
    fn a_rolled_hash_is_that_of_the_words_alone_and_knows_their_order() {
        let long: String = (0..20_000).map(|i| format!("w{} ", i * 7919 % 10_007)).collect();
        let (all, forgetful) = (ngrams(LENGTHS, &long, false), ngrams(LENGTHS, &long, true));
        assert_eq!(all, forgetful);
        for (text, hash) in all.iter().step_by(997) {
            assert_eq!(ngrams(LENGTHS, text, false), [(text.clone(), *hash)]);
        }
        assert_ne!(ngrams(LENGTHS, "a b c", false)[0].1, ngrams(LENGTHS, "b a c", false)[0].1);
    }

    #[test]
    fn what_is_forgotten_is_before_every_window() {
        let long: String = (0..3 * FORGET).map(|i| format!("w{i} ")).collect();
        let mut windows = Windows::new(LENGTHS);
        let mut folder = windows.begin(&long);
        while windows.next_word(&mut folder).is_some() {
            windows.forget();
            assert!(windows.words.len() <= FORGET + 3);
        }
        let last = format!("w{} w{} ", 3 * FORGET - 2, 3 * FORGET - 1);
        let place = windows.ends_with(&last).unwrap();
        assert_eq!(long[place].to_owned() + " ", last);
        assert_eq!(windows.ends_with(&last[1..]), None, "a part of a word is no word");
    }
}
