//! Learns the merges of a byte-level BPE vocabulary from counted pieces.
//!
//! The most frequent pair of neighbours is joined, of equally frequent ones the pair with the lower ids, until the
//! vocabulary is full (Sennrich et al. 2016). Counts of pairs are kept up to date, and only pieces that hold the joined
//! pair are looked at. The merges are those of Hugging Face's trainer, also where that is peculiar: the count of a
//! pair that was joined stays as it was, and matters again when another merge spells one of both tokens a second time.

use rustc_hash::FxHashMap;
use smelt_text::encoder::character;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A learnt vocabulary.
#[derive(Debug, Default)]
pub(crate) struct Learnt {
    /// Tokens by their ids, one character per byte.
    pub tokens: Vec<String>,
    /// Pairs of ids, in order.
    pub merges: Vec<[u32; 2]>,
}

/// The pieces that hold a pair, by index.
enum Places {
    One(u32),
    Many(Box<[u32]>),
}

impl Places {
    fn new(places: Vec<u32>) -> Self {
        match places[..] {
            [one] => Self::One(one),
            _ => Self::Many(places.into()),
        }
    }

    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// A pair that may be joined next: the most frequent first, then the lowest ids.
struct Candidate {
    count: u64,
    pair: u64,
    places: Places,
}

impl Candidate {
    fn order(&self) -> (u64, Reverse<u64>) {
        (self.count, Reverse(self.pair))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// What joining one pair changes in the count of another.
#[derive(Default)]
struct Change {
    count: i64,
    /// Pieces that hold it now.
    places: Vec<u32>,
}

impl Change {
    fn gain(&mut self, place: u32, count: i64) {
        self.count += count;
        if self.places.last() != Some(&place) {
            self.places.push(place);
        }
    }
}

/// All pieces as ids, one after the other.
struct Words {
    ids: Vec<u32>,
    /// Where each piece begins, and how many tokens it is now.
    spans: Vec<(u32, u32)>,
    counts: Vec<u64>,
}

impl Words {
    /// Joins `left` and `right` to `joined` in piece `place`, from its first token on.
    fn join(&mut self, place: u32, [left, right]: [u32; 2], joined: u32, changes: &mut FxHashMap<u64, Change>) {
        let (start, length) = self.spans[place as usize];
        let ids = &mut self.ids[start as usize..(start + length) as usize];
        let Some(first) = ids.windows(2).position(|two| *two == [left, right]) else { return };
        let count = self.counts[place as usize] as i64;
        let (mut read, mut written) = (first, first);
        while read < ids.len() {
            if ids[read] != left || ids.get(read + 1) != Some(&right) {
                ids[written] = ids[read];
                (read, written) = (read + 1, written + 1);
                continue;
            }
            if written > 0 {
                changes.entry(pair(ids[written - 1], left)).or_default().count -= count;
                changes.entry(pair(ids[written - 1], joined)).or_default().gain(place, count);
            }
            if let Some(&next) = ids.get(read + 2) {
                changes.entry(pair(right, next)).or_default().count -= count;
                changes.entry(pair(joined, next)).or_default().gain(place, count);
            }
            ids[written] = joined;
            (read, written) = (read + 2, written + 1);
        }
        self.spans[place as usize].1 = written as u32;
    }
}

/// Learns up to `vocabulary` tokens: `special`, one per byte, then merges of pairs that occur `min_frequency` times at
/// least. `pieces` have their occurrences beside them and are at most 2^31 bytes together.
pub(crate) fn learn(pieces: Vec<(Box<[u8]>, u64)>, vocabulary: usize, min_frequency: u64, special: &[&str]) -> Learnt {
    let mut tokens = Tokens::default();
    special.iter().for_each(|token| {
        tokens.id((*token).to_owned());
    });
    let mut alphabet: Vec<char> = (0..=255).map(character).collect();
    alphabet.sort_unstable();
    alphabet.iter().for_each(|c| {
        tokens.id(c.to_string());
    });
    let bytes: Vec<u32> = (0..=255).map(|byte| tokens.id(character(byte).to_string())).collect();
    let (mut words, mut queue, mut pair_counts) = start(pieces, &bytes);
    let mut merges: Vec<[u32; 2]> = Vec::new();
    let mut changes: FxHashMap<u64, Change> = FxHashMap::default();
    while tokens.list.len() < vocabulary {
        let Some(mut top) = queue.pop() else { break };
        let count = pair_counts.get(&top.pair).map_or(0, |&count| count.max(0) as u64);
        if top.count != count {
            if count > 0 {
                top.count = count;
                queue.push(top);
            }
            continue;
        }
        if top.count < min_frequency.max(1) {
            break;
        }
        let both = [(top.pair >> 32) as u32, top.pair as u32];
        let joined = tokens.id(both.map(|id| tokens.list[id as usize].as_str()).concat());
        merges.push(both);
        for &place in top.places.as_slice() {
            words.join(place, both, joined, &mut changes);
        }
        for (pair, change) in changes.drain() {
            let known = pair_counts.entry(pair).or_default();
            *known += change.count;
            let count = *known;
            if count == 0 {
                pair_counts.remove(&pair);
            }
            if count > 0 && !change.places.is_empty() {
                queue.push(Candidate { count: count as u64, pair, places: Places::new(change.places) });
            }
        }
    }
    Learnt { tokens: tokens.list, merges: without_repeats(merges) }
}

/// Tokens and their ids; a token that is spelled again keeps its id.
#[derive(Default)]
struct Tokens {
    list: Vec<String>,
    ids: FxHashMap<String, u32>,
}

impl Tokens {
    fn id(&mut self, token: String) -> u32 {
        if let Some(&id) = self.ids.get(&token) {
            return id;
        }
        let id = self.list.len() as u32;
        self.list.push(token.clone());
        self.ids.insert(token, id);
        id
    }
}

/// A pair that was joined twice counts at its second place alone.
fn without_repeats(merges: Vec<[u32; 2]>) -> Vec<[u32; 2]> {
    let last: FxHashMap<[u32; 2], usize> = merges.iter().enumerate().map(|(rank, both)| (*both, rank)).collect();
    merges.into_iter().enumerate().filter(|(rank, both)| last[both] == *rank).map(|(_, both)| both).collect()
}

type Counted = (Words, BinaryHeap<Candidate>, FxHashMap<u64, i64>);

/// The pieces as ids of bytes, and the pairs in them.
fn start(pieces: Vec<(Box<[u8]>, u64)>, bytes: &[u32]) -> Counted {
    let total: usize = pieces.iter().map(|(piece, _)| piece.len()).sum();
    assert!(u32::try_from(total).is_ok(), "learn: {total} bytes of pieces");
    let mut words = Words {
        ids: Vec::with_capacity(total),
        spans: Vec::with_capacity(pieces.len()),
        counts: Vec::with_capacity(pieces.len()),
    };
    let mut found: Vec<Change> = Vec::new();
    found.resize_with(1 << 16, Change::default);
    for (piece, count) in pieces {
        let place = words.spans.len() as u32;
        words.spans.push((words.ids.len() as u32, piece.len() as u32));
        words.counts.push(count);
        words.ids.extend(piece.iter().map(|&byte| bytes[usize::from(byte)]));
        for two in piece.windows(2) {
            found[usize::from(two[0]) << 8 | usize::from(two[1])].gain(place, count as i64);
        }
    }
    let mut pair_counts = FxHashMap::default();
    let mut queue = BinaryHeap::new();
    for (both, change) in found.into_iter().enumerate().filter(|(_, change)| change.count > 0) {
        let pair = pair(bytes[both >> 8], bytes[both & 0xff]);
        pair_counts.insert(pair, change.count);
        queue.push(Candidate { count: change.count as u64, pair, places: Places::new(change.places) });
    }
    (words, queue, pair_counts)
}
