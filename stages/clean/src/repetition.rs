//! How much of a text is repeated (Gopher; Rae et al. 2021, table A1).

use memchr::memchr;
use rustc_hash::{FxBuildHasher, FxHashSet, FxHasher};
use smelt_words::Span;
use std::hash::Hasher;

/// What repeats among the parts of a text: every occurrence after the first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repeats {
    parts: usize,
    repeated: usize,
    /// Code points of the repeated parts.
    pub characters: usize,
}

impl Repeats {
    /// Repeated parts per part.
    pub fn share(self) -> f64 {
        self.repeated as f64 / self.parts as f64
    }
}

/// Counts the repeated ones of `parts`.
pub fn repeats<'t>(parts: impl Iterator<Item = &'t str>) -> Repeats {
    let mut seen = FxHashSet::with_capacity_and_hasher(parts.size_hint().0, FxBuildHasher);
    let mut found = Repeats::default();
    for part in parts {
        found.parts += 1;
        if !seen.insert(part) {
            found.repeated += 1;
            found.characters += part.chars().count();
        }
    }
    found
}

/// `text` split at runs of `feeds` or more line feeds; an empty part before a leading run and after a trailing one.
pub fn split_runs(text: &str, feeds: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let now = rest?;
        let mut from = 0;
        while let Some(at) = memchr(b'\n', &now.as_bytes()[from..]).map(|at| from + at) {
            let run = now.as_bytes()[at..].iter().take_while(|&&b| b == b'\n').count();
            if run >= feeds {
                rest = Some(&now[at + run..]);
                return Some(&now[..at]);
            }
            from = at + run;
        }
        rest = None;
        Some(now)
    })
}

/// How runs of the words of one text repeat. Buffers are kept from text to text.
///
/// Nothing is decided by a hash alone: what looks equal is compared. About 50 bytes a word at most.
#[derive(Debug, Default)]
pub struct Runs {
    /// The words without what is between them, and `PREFIX` zeros.
    joined: Vec<u8>,
    /// Byte of `joined` at which each word starts, and where the last one ends.
    starts: Vec<u32>,
    /// For the runs of as many words as `length` says: of each the first run that is equal.
    first: Vec<u32>,
    next_first: Vec<u32>,
    /// How often a run stands; only true at the first of equal ones.
    count: Vec<u32>,
    next_count: Vec<u32>,
    length: usize,
    /// Words at which the next `PREFIX` bytes stand at another word too.
    is_shared: Vec<bool>,
    has_shared: bool,
    /// The places of runs of `open_length` words and more that may be repeats.
    open: Vec<u32>,
    open_length: usize,
    table: Table,
}

/// Bytes by which runs are told apart before they are compared as a whole.
const PREFIX: usize = 16;

impl Runs {
    /// Prepares the words of a text.
    pub fn set(&mut self, text: &str, words: &[Span]) {
        let text = text.as_bytes();
        self.starts.clear();
        self.length = 0;
        self.has_shared = false;
        if self.joined.len() < text.len() + 2 * PREFIX {
            self.joined.resize(text.len() + 2 * PREFIX, 0);
        }
        let mut at = 0;
        for word in words {
            self.starts.push(at as u32);
            let (start, length) = (word.start as usize, (word.end - word.start) as usize);
            match text[start..].first_chunk::<PREFIX>() {
                // One move of a fixed length; what is too much is overwritten by the next word.
                Some(chunk) if length <= PREFIX => self.joined[at..at + PREFIX].copy_from_slice(chunk),
                _ => self.joined[at..at + length].copy_from_slice(word.of_bytes(text)),
            }
            at += length;
        }
        self.starts.push(at as u32);
        self.joined[at..at + PREFIX].fill(0);
    }

    fn words(&self) -> usize {
        self.starts.len() - 1
    }

    #[inline]
    fn run(&self, at: usize, n: usize) -> &[u8] {
        &self.joined[self.starts[at] as usize..self.starts[at + n] as usize]
    }

    /// Characters that the most frequent run of `n` words takes: its length, words joined by one blank, times its
    /// count.
    ///
    /// Runs overlap; of several equally frequent ones the first seen counts. 0 for a text of fewer than `n` words.
    pub fn top(&mut self, n: usize) -> usize {
        if self.words() < n {
            return 0;
        }
        if self.length > n {
            self.length = 0;
        }
        while self.length < n {
            if self.length == 0 { self.count_words() } else { self.count_longer() }
        }
        let (mut top, mut most) = (0, 1);
        for (at, &first) in self.first.iter().enumerate() {
            let count = self.count[first as usize];
            if count > most {
                (top, most) = (at, count);
            }
        }
        (characters(self.run(top, n)) + n - 1) * most as usize
    }

    /// Finds equal words.
    fn count_words(&mut self) {
        let words = self.words();
        let mut table = std::mem::take(&mut self.table);
        table.clear(words);
        self.first.clear();
        self.count.clear();
        self.count.resize(words, 1);
        for at in 0..words {
            let word = self.run(at, 1);
            let equal = table.find_or_insert(hash(word), at, |other| self.run(other, 1) == word);
            if let Some(other) = equal {
                self.count[other] += 1;
            }
            self.first.push(equal.unwrap_or(at) as u32);
        }
        self.table = table;
        self.length = 1;
    }

    /// From equal runs of n words to those of n + 1: two are equal if their first n and their last n words are. A run
    /// whose part stands once stands once itself.
    fn count_longer(&mut self) {
        let runs = self.first.len().saturating_sub(1);
        let stands_once = |run: u32| self.count[run as usize] == 1;
        let several = self.first.iter().filter(|&&run| !stands_once(run)).count();
        self.table.clear(several);
        self.next_count.clear();
        self.next_count.resize(runs, 1);
        self.next_first.clear();
        for (at, pair) in self.first.windows(2).enumerate() {
            let (head, tail) = (pair[0], pair[1]);
            let mut first = at as u32;
            if !stands_once(head) && !stands_once(tail) {
                let key = u64::from(head) << 32 | u64::from(tail);
                let is_equal = |other: usize| self.first[other] == head && self.first[other + 1] == tail;
                if let Some(other) = self.table.find_or_insert(key, at, is_equal) {
                    self.next_count[other] += 1;
                    first = other as u32;
                }
            }
            self.next_first.push(first);
        }
        std::mem::swap(&mut self.first, &mut self.next_first);
        std::mem::swap(&mut self.count, &mut self.next_count);
        self.length += 1;
    }

    /// Characters in repeated runs of `n` words, scanned from left to right, jumping over each repeat.
    ///
    /// Words are joined without blanks, so "ab c" repeats "a bc".
    pub fn repeated(&mut self, n: usize) -> usize {
        if self.words() < n {
            return 0;
        }
        self.share();
        if self.open_length > n {
            self.find_open(n);
        }
        let mut table = std::mem::take(&mut self.table);
        table.clear(self.open.len());
        let (mut next, mut found) = (0, 0);
        for at in self.open.iter().map(|&at| at as usize) {
            if at + n > self.words() {
                break;
            }
            if at < next || self.is_alone(at, n) {
                continue;
            }
            let run = self.run(at, n);
            if table.find_or_insert(hash(run), at, |other| self.run(other, n) == run).is_some() {
                found += characters(run);
                next = at + n;
            }
        }
        self.table = table;
        found
    }

    /// Whether a run is no repeat and has none: it is long and begins as no other place does. Most are.
    #[inline]
    fn is_alone(&self, at: usize, n: usize) -> bool {
        !self.is_shared[at] && (self.starts[at + n] - self.starts[at]) as usize >= PREFIX
    }

    /// Finds the runs of `n` words that are not alone; longer ones that are not are among them.
    fn find_open(&mut self, n: usize) {
        let mut open = std::mem::take(&mut self.open);
        open.clear();
        open.extend((0..self.words() + 1 - n).filter(|&at| !self.is_alone(at, n)).map(|at| at as u32));
        self.open = open;
        self.open_length = n;
    }

    /// Finds the words from which `PREFIX` bytes are equal to those from another word.
    fn share(&mut self) {
        if std::mem::replace(&mut self.has_shared, true) {
            return;
        }
        self.open_length = usize::MAX;
        let words = self.words();
        let from = |at: usize| &self.joined[self.starts[at] as usize..self.starts[at] as usize + PREFIX];
        self.is_shared.clear();
        self.is_shared.resize(words, false);
        self.table.clear(words);
        for at in 0..words {
            let prefix = from(at);
            if let Some(other) = self.table.find_or_insert(hash(prefix), at, |other| from(other) == prefix) {
                self.is_shared[other] = true;
                self.is_shared[at] = true;
            }
        }
    }
}

/// Code points of whole words.
fn characters(words: &[u8]) -> usize {
    words.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

#[inline]
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

/// A hash table of places, emptied at little cost. Of equal things it knows the first.
#[derive(Debug, Default)]
struct Table {
    /// The high half of a hash, and the place; a power of two of them.
    slots: Vec<(u32, u32)>,
}

const EMPTY: u32 = u32::MAX;

impl Table {
    /// Empties it, for at most `most` things.
    fn clear(&mut self, most: usize) {
        self.slots.clear();
        self.slots.resize((2 * most).next_power_of_two().max(2), (0, EMPTY));
    }

    /// The place of an equal thing that came before; else this one is remembered.
    #[inline]
    fn find_or_insert(&mut self, hash: u64, at: usize, is_equal: impl Fn(usize) -> bool) -> Option<usize> {
        let hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let tag = (hash >> 32) as u32;
        let last = self.slots.len() - 1;
        let mut slot = (hash >> 24) as usize & last;
        loop {
            let (other_tag, other) = self.slots[slot];
            if other == EMPTY {
                self.slots[slot] = (tag, at as u32);
                return None;
            }
            if other_tag == tag && is_equal(other as usize) {
                return Some(other as usize);
            }
            slot = (slot + 1) & last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn runs(words: &[&str]) -> Runs {
        let mut spans = Vec::new();
        let mut text = String::new();
        for word in words {
            let start = text.len() as u32;
            text.push_str(word);
            spans.push(Span { start, end: text.len() as u32 });
            text.push(' ');
        }
        let mut runs = Runs::default();
        runs.set(&text, &spans);
        runs
    }

    #[test]
    fn repeats_are_all_after_the_first() {
        let found = repeats("a bb a bb bb".split(' '));
        assert_eq!(found, Repeats { parts: 5, repeated: 3, characters: 5 });
        assert_eq!(found.share(), 0.6);
    }

    #[test]
    fn texts_split_at_runs_of_line_feeds() {
        let split = |text, feeds| split_runs(text, feeds).collect::<Vec<_>>();
        assert_eq!(split("a\nb\n\n\nc\n\n", 2), ["a\nb", "c", ""]);
        assert_eq!(split("\na\n\nb\n", 1), ["", "a", "b", ""]);
        assert_eq!(split("", 1), [""]);
        assert_eq!(split("a\r\n\r\nb", 2), ["a\r\n\r\nb"]);
    }

    #[test]
    fn the_top_run_is_the_most_frequent_and_of_equals_the_first() {
        let words = ["x", "yy", "x", "yy", "zzz", "zzz", "zzz"];
        // "x yy" and "zzz zzz" both stand twice: the first seen counts, 4 characters twice.
        assert_eq!(runs(&words).top(2), 8);
        assert_eq!(runs(&words).top(8), 0);
    }

    #[test]
    fn repeated_runs_are_jumped_over() {
        let words = ["a", "b", "a", "b", "a", "b", "c"];
        // ab, ba, then "ab" at 2 is a repeat, at 4 again, then c alone.
        assert_eq!(runs(&words).repeated(2), 4);
        assert_eq!(runs(&["ab", "c", "a", "bc"]).repeated(2), 3);
    }

    #[test]
    fn runs_are_counted_as_a_plain_search_counts_them() {
        let mut state = 3u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        let alphabet = ["a", "b", "ab", "é", "\0", "a word that is long"];
        for _ in 0..300 {
            let words: Vec<&str> = (0..draw(60)).map(|_| alphabet[draw(6) as usize]).collect();
            for n in 1..6 {
                let mut best = (0, 0);
                for at in 0..(words.len() + 1).saturating_sub(n) {
                    let count = words.windows(n).filter(|run| *run == &words[at..at + n]).count();
                    if count > best.0 {
                        best = (count, words[at..at + n].join(" ").chars().count());
                    }
                }
                assert_eq!(runs(&words).top(n), best.0 * best.1, "{words:?}, {n}");
                let (mut seen, mut at, mut repeated) = (HashSet::new(), 0, 0);
                while at + n <= words.len() {
                    let joined = words[at..at + n].concat();
                    let length = joined.chars().count();
                    let is_new = seen.insert(joined);
                    repeated += if is_new { 0 } else { length };
                    at += if is_new { 1 } else { n };
                }
                assert_eq!(runs(&words).repeated(n), repeated, "{words:?}, {n}");
            }
        }
    }
}
