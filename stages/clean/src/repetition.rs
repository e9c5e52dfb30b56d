//! How much of a text is repeated (Gopher; Rae et al. 2021, table A1).

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

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
#[derive(Debug)]
pub struct Runs {
    /// Of the first i words, joined without blanks: hash, bytes, code points.
    joined: Vec<(u64, usize, usize)>,
    /// The same with a blank after every word.
    spaced: Vec<(u64, usize, usize)>,
}

const PRIME: u64 = (1 << 61) - 1;
/// The base of the hash: any number that is not a small power.
const BASE: u64 = 0x1357_9bdf_0246_8acf % PRIME;

fn times(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let folded = (product as u64 & PRIME) + (product >> 61) as u64;
    if folded >= PRIME { folded - PRIME } else { folded }
}

fn power(mut exponent: usize) -> u64 {
    let (mut result, mut square) = (1, BASE);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
        exponent >>= 1;
    }
    result
}

impl Runs {
    pub fn new(words: &[&str]) -> Self {
        let prefixes = |blank: &str| {
            let (mut hash, mut bytes, mut characters) = (0, 0, 0);
            let mut all = Vec::with_capacity(words.len() + 1);
            all.push((hash, bytes, characters));
            for word in words {
                for &byte in word.as_bytes().iter().chain(blank.as_bytes()) {
                    hash = (times(hash, BASE) + u64::from(byte) + 1) % PRIME;
                }
                bytes += word.len() + blank.len();
                characters += word.chars().count() + blank.len();
                all.push((hash, bytes, characters));
            }
            all
        };
        Runs { joined: prefixes(""), spaced: prefixes(" ") }
    }

    /// Hash and code points of every run of `n` words.
    fn of(prefixes: &[(u64, usize, usize)], n: usize) -> impl Iterator<Item = (u64, usize)> {
        // Most runs have one of a few lengths.
        let mut powers: Vec<u64> = Vec::new();
        (0..prefixes.len().saturating_sub(n)).map(move |at| {
            let ((before, from, skipped), (after, to, all)) = (prefixes[at], prefixes[at + n]);
            let length = to - from;
            let factor = if length < 256 {
                while powers.len() <= length {
                    powers.push(power(powers.len()));
                }
                powers[length]
            } else {
                power(length)
            };
            ((after + PRIME - times(before, factor)) % PRIME, all - skipped)
        })
    }

    /// Characters that the most frequent run of `n` words takes: its length, words joined by one blank, times its
    /// count.
    ///
    /// Runs overlap; of several equally frequent ones the first seen counts. 0 for a text of fewer than `n` words.
    pub fn top(&self, n: usize) -> usize {
        // Count, first place and length of each. The map is only searched for a unique maximum: its order never shows.
        let mut counts: Table<(usize, usize, usize)> = Table::default();
        for (at, (hash, characters)) in Self::of(&self.spaced, n).enumerate() {
            counts.entry(hash).or_insert((0, at, characters)).0 += 1;
        }
        let top = counts.into_values().max_by_key(|&(count, at, _)| (count, std::cmp::Reverse(at)));
        top.map_or(0, |(count, _, characters)| (characters - 1) * count)
    }

    /// Characters in repeated runs of `n` words, scanned from left to right, jumping over each repeat.
    ///
    /// Words are joined without blanks, so "ab c" repeats "a bc".
    pub fn repeated(&self, n: usize) -> usize {
        let mut seen: Table<()> = Table::default();
        let (mut next, mut characters) = (0, 0);
        for (at, (hash, length)) in Self::of(&self.joined, n).enumerate() {
            if at >= next && seen.insert(hash, ()).is_some() {
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
        assert_eq!(Runs::new(&words).top(2), 8);
        assert_eq!(Runs::new(&words).top(8), 0);
    }

    #[test]
    fn repeated_runs_are_jumped_over() {
        let words = ["a", "b", "a", "b", "a", "b", "c"];
        // ab, ba, then "ab" at 2 is a repeat, at 4 again, then c alone.
        assert_eq!(Runs::new(&words).repeated(2), 4);
        assert_eq!(Runs::new(&["ab", "c", "a", "bc"]).repeated(2), 3);
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
                assert_eq!(Runs::new(&words).top(n), best.0 * best.1, "{words:?}, {n}");
                let (mut seen, mut at, mut repeated) = (HashSet::new(), 0, 0);
                while at + n <= words.len() {
                    let joined = words[at..at + n].concat();
                    let length = joined.chars().count();
                    let is_new = seen.insert(joined);
                    repeated += if is_new { 0 } else { length };
                    at += if is_new { 1 } else { n };
                }
                assert_eq!(Runs::new(&words).repeated(n), repeated, "{words:?}, {n}");
            }
        }
    }
}
