//! Passages of so many tokens that stand in the corpus twice, found without a suffix array.
//!
//! Lee et al. (2022) sort all suffixes of the corpus and cut every substring of at least 50 tokens that two suffixes
//! share. What they cut is the union of all runs of exactly 50 tokens that stand twice; so it is enough to sort runs of
//! 50, by hashes, and these sort on disk in bounded memory, spread over workers.
//!
//! A run for every token of a corpus would take some ten times the room of the text. Most runs stand once, and
//! *anchors* tell these first: of the runs of half the length inside a passage, the one with the smallest hash
//! (winnowing; Schleimer et al. 2003). Equal passages have equal anchors at equal places inside them, and neighbours
//! share one: about every thirteenth token begins an anchor. Only passages whose anchor stands twice are sorted. Which
//! anchors are chosen decides the cost and nothing else.
//!
//! Tokens are words and marks as `smelt-words` splits them, characters in scripts without blanks; case and marks
//! count, white space does not. Lee et al. take BPE tokens.

use std::collections::VecDeque;
use std::ops::Range;

use smelt_stage::Error;
use smelt_words::{parts, words};
use xxhash_rust::xxh64::xxh64;

use crate::pieces::key;

/// The tokens of a document.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// Tokens of a passage, and of an anchor.
    passage: usize,
    anchor: usize,
    /// Where each token stands in the text, in bytes.
    spans: Vec<(u32, u32)>,
    /// All tokens, each with a blank behind it.
    joined: Vec<u8>,
    /// Where each token begins in `joined`, and where a next one would.
    starts: Vec<usize>,
}

impl Tokens {
    pub(crate) fn new(passage: usize) -> Self {
        let anchor = passage.div_ceil(2);
        Self { passage, anchor, spans: Vec::new(), joined: Vec::new(), starts: Vec::new() }
    }

    pub(crate) fn split(&mut self, text: &str) {
        self.spans.clear();
        self.joined.clear();
        self.starts.clear();
        for token in words(text).flat_map(parts) {
            let start = token.as_ptr() as usize - text.as_ptr() as usize;
            self.spans.push((start as u32, (start + token.len()) as u32));
            self.starts.push(self.joined.len());
            self.joined.extend_from_slice(token.as_bytes());
            self.joined.push(b' ');
        }
        self.starts.push(self.joined.len());
    }

    /// The bytes of `count` tokens from number `first`.
    fn run(&self, first: usize, count: usize) -> &[u8] {
        &self.joined[self.starts[first]..self.starts[first + count] - 1]
    }

    /// Where `count` tokens from number `first` stand in the text.
    fn range(&self, first: usize, count: usize) -> Range<usize> {
        self.spans[first].0 as usize..self.spans[first + count - 1].1 as usize
    }

    /// Calls `take` with the first token of each passage and of its anchor, in order, and the hash of the anchor.
    fn anchored(&self, mut take: impl FnMut(usize, usize, u64) -> Result<(), Error>) -> Result<(), Error> {
        let inside = self.passage - self.anchor + 1;
        // Anchors that are smaller than all behind them, in order: the first is the smallest.
        let mut smallest: VecDeque<(u64, usize)> = VecDeque::new();
        for at in 0..(self.spans.len() + 1).saturating_sub(self.anchor) {
            let hash = xxh64(self.run(at, self.anchor), 0);
            while smallest.pop_back_if(|&mut (other, _)| other > hash).is_some() {}
            smallest.push_back((hash, at));
            if let Some(passage) = (at + 1).checked_sub(inside) {
                while smallest.pop_front_if(|&mut (_, at)| at < passage).is_some() {}
                let &(hash, anchor) = smallest.front().expect("the newest is there");
                take(passage, anchor, hash)?;
            }
        }
        Ok(())
    }

    /// Calls `take` with the key and the place of each anchor.
    pub(crate) fn anchors(&self, take: &mut dyn FnMut(u128, Range<usize>) -> Result<(), Error>) -> Result<(), Error> {
        let mut before = None;
        self.anchored(|_, anchor, hash| match before.replace(anchor) == Some(anchor) {
            true => Ok(()),
            // The smallest hashes are all small: hashed again, keys are even.
            false => take(key(&hash.to_le_bytes()), self.range(anchor, self.anchor)),
        })
    }

    /// Calls `take` with the key and the place of each passage whose anchor begins at one of the bytes `anchors`, which
    /// are in order.
    pub(crate) fn passages(
        &self,
        anchors: &[u32],
        take: &mut dyn FnMut(u128, Range<usize>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.anchored(|passage, anchor, _| match anchors.binary_search(&self.spans[anchor].0) {
            Ok(_) => take(key(self.run(passage, self.passage)), self.range(passage, self.passage)),
            Err(_) => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(state: &mut u64, n: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 33) % n
    }

    #[test]
    fn the_anchor_of_a_passage_is_its_smallest_run() {
        let mut state = 3;
        for passage in [2, 3, 6, 9] {
            let mut tokens = Tokens::new(passage);
            for _ in 0..50 {
                // Few words, so that runs repeat inside a passage.
                let length = draw(&mut state, 30);
                let text: Vec<String> = (0..length).map(|_| format!("w{}", draw(&mut state, 2))).collect();
                tokens.split(&text.join(" "));
                let mut found = Vec::new();
                tokens
                    .anchored(|passage, anchor, hash| {
                        found.push((passage, anchor, hash));
                        Ok(())
                    })
                    .unwrap();
                let hash = |at: usize| xxh64(tokens.run(at, tokens.anchor), 0);
                let expected: Vec<(usize, usize, u64)> = (0..(text.len() + 1).saturating_sub(passage))
                    .map(|first| {
                        let runs = first..first + passage - tokens.anchor + 1;
                        let anchor = runs.min_by_key(|&at| hash(at)).unwrap();
                        (first, anchor, hash(anchor))
                    })
                    .collect();
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn white_space_is_no_part_of_a_passage() {
        let keys = |text: &str| {
            let (mut tokens, mut found) = (Tokens::new(4), Vec::new());
            tokens.split(text);
            let anchors: Vec<u32> = tokens.spans.iter().map(|span| span.0).collect();
            tokens
                .passages(&anchors, &mut |key, range| {
                    found.push((key, text[range].to_owned()));
                    Ok(())
                })
                .unwrap();
            found
        };
        let (one, other) = (keys("a b, c"), keys(" a\nb ,  c. "));
        assert_eq!(one[0].0, other[0].0);
        assert_eq!((one[0].1.as_str(), other[0].1.as_str()), ("a b, c", "a\nb ,  c"));
        assert_eq!((one.len(), other.len()), (1, 2));
        assert_ne!(one[0].0, keys("a B, c")[0].0);
        assert_eq!(keys("今天早上")[0].1, "今天早上");
    }
}
