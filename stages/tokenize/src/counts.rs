//! How often each piece of a text occurs, counted by all threads in bounded memory.

use rustc_hash::FxHashMap;
use smelt_text::encoder::Pattern;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of a piece that a vocabulary is learnt from; longer ones are cut there. A merge goes over the whole of every
/// piece that holds its pair, and letters without blanks (DNA, base64) are one piece: 100 MB of them in one would take
/// hours. Text with words, and minified code, do not come near it.
pub const LONGEST: usize = 1 << 16;

/// Bytes of text that are counted before the table is looked at. They are counted from the texts' order alone, so that
/// what is forgotten does not depend on threads.
const BLOCK: usize = 32 << 20;

/// Bytes that an entry of the table takes beside those of its piece: slot, allocation and count.
const ENTRY: usize = 48;

/// Occurrences by which rare pieces are told apart when the table is too large.
const RARE: usize = 1 << 12;

/// The pieces that were too long to learn from as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cut {
    pub pieces: u64,
    /// Bytes of the longest.
    pub longest: u64,
}

/// What was forgotten because the table of pieces was full.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forgotten {
    /// Times that the table was full.
    pub times: u64,
    /// Occurrences that are missing in the counts.
    pub occurrences: u64,
    /// The most occurrences of a piece that was forgotten at once.
    pub most: u64,
}

/// Pieces with their occurrences, in the order of their bytes.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub pieces: Vec<(Box<[u8]>, u64)>,
    pub cut: Cut,
    pub forgotten: Forgotten,
}

impl Counts {
    /// Counts the pieces of all `texts` in a table of about `limit` bytes. Whenever the table is larger after a block
    /// of text, the rarest pieces are forgotten until half of it is free (lossy counting; Manku and Motwani 2002). The
    /// threads are those of the pool that this is called in.
    pub(crate) fn of(texts: impl Iterator<Item = String>, pattern: Pattern, limit: u64) -> Self {
        let mut texts = texts.fuse();
        let (mut all, mut bytes) = (FxHashMap::<Box<[u8]>, u64>::default(), 0);
        let (mut cut, mut forgotten) = (Cut::default(), Forgotten::default());
        let mut workers: Vec<Mutex<Worker>> = Vec::new();
        workers.resize_with(rayon::current_num_threads(), Mutex::default);
        loop {
            let (mut block, mut size) = (Vec::new(), 0);
            while size < BLOCK
                && let Some(text) = texts.next()
            {
                size += text.len();
                block.push(text);
            }
            if block.is_empty() {
                break;
            }
            let next = AtomicUsize::new(0);
            let work = |worker: &Mutex<Worker>| {
                let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
                while let Some(text) = block.get(next.fetch_add(1, Ordering::Relaxed)) {
                    pattern.for_each(text, |piece| worker.count(piece));
                }
                worker.flush();
            };
            rayon::scope(|scope| workers.iter().for_each(|worker| scope.spawn(|_| work(worker))));
            drop(block);
            for worker in &mut workers {
                let worker = worker.get_mut().unwrap_or_else(PoisonError::into_inner);
                for (piece, count) in worker.table.drain() {
                    let length = piece.len();
                    *all.entry(piece).or_insert_with(|| {
                        bytes += (length + ENTRY) as u64;
                        0
                    }) += count;
                }
                cut.pieces += worker.cut.pieces;
                cut.longest = cut.longest.max(worker.cut.longest);
                worker.cut = Cut::default();
            }
            if bytes > limit {
                bytes = forget(&mut all, bytes, limit / 2, &mut forgotten);
            }
        }
        drop(workers);
        let mut pieces: Vec<_> = all.into_iter().collect();
        rayon::slice::ParallelSliceMut::par_sort_unstable(&mut pieces[..]);
        Self { pieces, cut, forgotten }
    }
}

/// Forgets the pieces with the fewest occurrences until the others take at most `room` bytes; returns what they take.
fn forget(all: &mut FxHashMap<Box<[u8]>, u64>, mut bytes: u64, room: u64, forgotten: &mut Forgotten) -> u64 {
    let mut taken = vec![0; RARE];
    for (piece, &count) in &*all {
        taken[(count as usize).min(RARE - 1)] += (piece.len() + ENTRY) as u64;
    }
    let mut most = 0;
    while bytes > room && most + 1 < RARE {
        most += 1;
        bytes -= taken[most];
    }
    all.retain(|_, count| {
        let is_kept = *count > most as u64;
        forgotten.occurrences += if is_kept { 0 } else { *count };
        is_kept
    });
    all.shrink_to_fit();
    forgotten.times += 1;
    forgotten.most = forgotten.most.max(most as u64);
    all.keys().map(|piece| (piece.len() + ENTRY) as u64).sum()
}

/// Short pieces that were met last, by a hash of them; most of a text's pieces are among these.
const RECENT: usize = 1 << 14;

struct Worker {
    /// The piece, its length in the last byte, and occurrences that `table` does not have yet.
    recent: Box<[([u8; 16], u64)]>,
    table: FxHashMap<Box<[u8]>, u64>,
    cut: Cut,
}

impl Default for Worker {
    fn default() -> Self {
        Self { recent: vec![([0; 16], 0); RECENT].into(), table: FxHashMap::default(), cut: Cut::default() }
    }
}

impl Worker {
    fn count(&mut self, piece: &str) {
        if piece.len() > 15 {
            if piece.len() > LONGEST {
                self.cut.pieces += 1;
                self.cut.longest = self.cut.longest.max(piece.len() as u64);
            }
            return chunks(piece).for_each(|part| add(&mut self.table, part.as_bytes(), 1));
        }
        let mut key = [0; 16];
        key[..piece.len()].copy_from_slice(piece.as_bytes());
        key[15] = piece.len() as u8;
        let [low, high] = [0, 8].map(|at| u64::from_le_bytes(key[at..at + 8].try_into().expect("8 bytes")));
        let folded = (low ^ high.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let slot = &mut self.recent[(folded >> (64 - RECENT.trailing_zeros())) as usize];
        if slot.0 == key {
            slot.1 += 1;
            return;
        }
        let (before, count) = std::mem::replace(slot, (key, 1));
        if count > 0 {
            add(&mut self.table, &before[..usize::from(before[15])], count);
        }
    }

    fn flush(&mut self) {
        for (piece, count) in &mut self.recent {
            if *count > 0 {
                add(&mut self.table, &piece[..usize::from(piece[15])], std::mem::take(count));
            }
        }
    }
}

fn add(table: &mut FxHashMap<Box<[u8]>, u64>, piece: &[u8], count: u64) {
    match table.get_mut(piece) {
        Some(known) => *known += count,
        None => {
            table.insert(piece.into(), count);
        }
    }
}

/// A piece in parts of at most [`LONGEST`] bytes, cut between characters.
fn chunks(piece: &str) -> impl Iterator<Item = &str> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        let (part, after) = rest.split_at(rest.floor_char_boundary(LONGEST));
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_cut_between_characters_and_nothing_is_lost() {
        for piece in ["", "a", &"漢".repeat(100_000), &"x".repeat(LONGEST), &"🦀".repeat(LONGEST / 4 + 1)] {
            assert_eq!(chunks(piece).collect::<String>(), piece);
            assert!(chunks(piece).all(|part| part.len() <= LONGEST));
        }
        assert_eq!(chunks(&"x".repeat(LONGEST)).count(), 1);
    }

    fn counted(texts: &[String], threads: usize, limit: u64) -> Counts {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Counts::of(texts.iter().cloned(), Pattern::Gpt2, limit))
    }

    #[test]
    fn every_piece_is_counted_by_any_number_of_threads() {
        let texts: Vec<String> = (0..3000)
            .map(|i| format!("the word{} and {} {}", i % 700, i, "thelongestwordofall".repeat(i % 3)))
            .collect();
        let mut expected = std::collections::BTreeMap::<Vec<u8>, u64>::new();
        for text in &texts {
            for piece in Pattern::Gpt2.pieces(text) {
                *expected.entry(piece.into()).or_default() += 1;
            }
        }
        for threads in [1, 3] {
            let counts = counted(&texts, threads, u64::MAX);
            assert!(counts.pieces.iter().map(|(piece, count)| (piece.to_vec(), *count)).eq(expected.clone()));
            assert_eq!(counts.forgotten, Forgotten::default());
        }
    }

    /// Three blocks of text in which half of all words come once.
    #[test]
    fn rare_pieces_are_forgotten_when_the_table_is_full() {
        let word = |i: usize| format!(" common rare{}", blake3::hash(&i.to_le_bytes()).to_hex());
        let texts: Vec<String> = (0..900).map(|part| (0..1000).map(|i| word(part * 1000 + i)).collect()).collect();
        let limit = 16 << 20;
        let counts = counted(&texts, 1, limit);
        let occurrences = 900_000;
        let of = |piece: &[u8]| counts.pieces.iter().find(|(found, _)| **found == *piece).map(|(_, count)| *count);
        assert_eq!(of(b" common"), Some(occurrences));
        let kept: u64 = counts.pieces.iter().map(|(_, count)| count).sum();
        let all: u64 = texts.iter().map(|text| Pattern::Gpt2.pieces(text).len() as u64).sum();
        assert_eq!(kept + counts.forgotten.occurrences, all);
        assert!(counts.forgotten.times > 1 && counts.forgotten.most >= 1, "{:?}", counts.forgotten);
        let other = counted(&texts, 3, limit);
        assert_eq!((other.pieces, other.forgotten), (counts.pieces, counts.forgotten));
    }
}
