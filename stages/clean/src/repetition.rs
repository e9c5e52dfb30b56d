//! How much of a text is repeated (Gopher; Rae et al. 2021, table A1).

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;

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
    let mut seen = HashSet::new();
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
        while let Some(at) = now[from..].find('\n').map(|at| from + at) {
            let run = now[at..].bytes().take_while(|&b| b == b'\n').count();
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

/// The words of a text, prepared to compare runs of them: a run's hash comes from two prefixes (Karp & Rabin 1987),
/// modulo 2⁶¹ − 1. Of 100,000 runs two different ones look equal with a chance of 2 in a billion.
///
/// Sixteen bytes a word, and eight more while one length of runs is looked at: a text of 400 MB is 66 million words.
#[derive(Debug, Default)]
pub struct Runs {
    words: Vec<Word>,
}

/// The hash of a word alone, and its length in bytes and code points.
#[derive(Clone, Copy, Debug)]
struct Word {
    hash: u64,
    bytes: u32,
    characters: u32,
}

/// A text up to some word: its hash, its bytes and its code points.
type Prefix = (u64, usize, usize);

const PRIME: u64 = (1 << 61) - 1;
/// The base of the hash: any number that is not a small power.
const BASE: u64 = 0x1357_9bdf_0246_8acf % PRIME;

fn times(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let folded = (product as u64 & PRIME) + (product >> 61) as u64;
    if folded >= PRIME { folded - PRIME } else { folded }
}

/// The base to a power; most runs have one of a few lengths.
fn power(exponent: usize) -> u64 {
    static SMALL: LazyLock<[u64; 256]> = LazyLock::new(|| {
        let mut powers = [1; 256];
        (1..256).for_each(|i| powers[i] = times(powers[i - 1], BASE));
        powers
    });
    if let Some(&small) = SMALL.get(exponent) {
        return small;
    }
    let (mut result, mut square, mut exponent) = (1, BASE, exponent);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
        exponent >>= 1;
    }
    result
}

fn append(hash: u64, byte: u8) -> u64 {
    (times(hash, BASE) + u64::from(byte) + 1) % PRIME
}

impl Runs {
    /// Adds the next word.
    pub fn push(&mut self, word: &str) {
        let hash = word.bytes().fold(0, append);
        self.words.push(Word { hash, bytes: word.len() as u32, characters: word.chars().count() as u32 });
    }

    /// Hash and code points of every run of `n` words, joined without blanks or with one after each word.
    fn of(&self, n: usize, is_spaced: bool) -> impl Iterator<Item = (u64, usize)> {
        let after = move |(hash, bytes, characters): Prefix, word: &Word| -> Prefix {
            let hash = (times(hash, power(word.bytes as usize)) + word.hash) % PRIME;
            let (bytes, characters) = (bytes + word.bytes as usize, characters + word.characters as usize);
            if is_spaced { (append(hash, b' '), bytes + 1, characters + 1) } else { (hash, bytes, characters) }
        };
        let ahead = self.words.iter().take(n.saturating_sub(1)).fold((0, 0, 0), after);
        let ends = self.words.iter().skip(n.saturating_sub(1));
        ends.zip(&self.words).scan((ahead, (0, 0, 0)), move |(head, tail), (end, start)| {
            *head = after(*head, end);
            let length = head.1 - tail.1;
            let run = ((head.0 + PRIME - times(tail.0, power(length))) % PRIME, head.2 - tail.2);
            *tail = after(*tail, start);
            Some(run)
        })
    }

    /// The hashes of all runs of `n` words, sorted.
    fn sorted(&self, n: usize, is_spaced: bool) -> Vec<u64> {
        let mut hashes = Vec::with_capacity((self.words.len() + 1).saturating_sub(n));
        hashes.extend(self.of(n, is_spaced).map(|(hash, _)| hash));
        hashes.sort_unstable();
        hashes
    }

    /// Characters that the most frequent run of `n` words takes: its length, words joined by one blank, times its
    /// count.
    ///
    /// Runs overlap; of several equally frequent ones the first seen counts. 0 for a text of fewer than `n` words.
    pub fn top(&self, n: usize) -> usize {
        let hashes = self.sorted(n, true);
        let Some(most) = hashes.chunk_by(u64::eq).map(<[u64]>::len).max() else { return 0 };
        let tops: Table<()> =
            hashes.chunk_by(u64::eq).filter(|same| most > 1 && same.len() == most).map(|same| (same[0], ())).collect();
        let first = self.of(n, true).find(|(hash, _)| most == 1 || tops.contains_key(hash));
        first.map_or(0, |(_, characters)| (characters - 1) * most)
    }

    /// Characters in repeated runs of `n` words, scanned from left to right, jumping over each repeat.
    ///
    /// Words are joined without blanks, so "ab c" repeats "a bc".
    pub fn repeated(&self, n: usize) -> usize {
        // What stands once can be no repeat: only the others are remembered.
        let hashes = self.sorted(n, false);
        let several = hashes.chunk_by(u64::eq).filter(|same| same.len() > 1);
        let mut seen: Table<bool> = several.map(|same| (same[0], false)).collect();
        drop(hashes);
        if seen.is_empty() {
            return 0;
        }
        let (mut next, mut characters) = (0, 0);
        for (at, (hash, length)) in self.of(n, false).enumerate() {
            if at < next {
                continue;
            }
            if let Some(was_seen) = seen.get_mut(&hash)
                && std::mem::replace(was_seen, true)
            {
                characters += length;
                next = at + n;
            }
        }
        characters
    }
}

/// A table of hashes, which need no second hashing but a multiplication to fill the high bits.
type Table<V> = HashMap<u64, V, BuildHasherDefault<Spread>>;

#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(words: &[&str]) -> Runs {
        let mut runs = Runs::default();
        words.iter().for_each(|word| runs.push(word));
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
        let alphabet = ["a", "b", "ab", "é", "\0", "long word"];
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
