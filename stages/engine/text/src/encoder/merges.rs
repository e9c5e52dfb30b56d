//! The merges of a byte-level BPE model, applied to one piece.

use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Bytes of a piece up to which the next merge is looked for by going over all pairs, which is quadratic but quick;
/// longer pieces keep them in a heap.
const SCANNED: usize = 128;

/// No pair, no token.
const NONE: u32 = u32::MAX;

/// What becomes of a pair of tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    /// Place in the list of merges: lower ones come first.
    pub rank: u32,
    pub id: u32,
}

#[derive(Debug)]
pub(super) struct Merges {
    /// Ids of the single bytes.
    bytes: [u32; 256],
    /// Merges of two bytes, by both; the rank is [`NONE`] where there is none.
    first: Box<[Merge]>,
    /// All merges.
    pairs: Pairs,
    /// Tokens that a whole piece becomes whatever the merges say, for models that ask for it.
    whole: FxHashMap<Box<[u8]>, u32>,
}

/// Reused from piece to piece.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    ids: Vec<u32>,
    merges: Vec<Merge>,
    places: Vec<[u32; 2]>,
    heap: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
}

impl Merges {
    /// `merges` are pairs and what they become, in order; of an equal pair the last counts.
    pub(super) fn new(bytes: [u32; 256], merges: &[([u32; 2], u32)], whole: FxHashMap<Box<[u8]>, u32>) -> Self {
        let mut pairs = Pairs::with_capacity(merges.len());
        for (rank, &([left, right], id)) in merges.iter().enumerate() {
            pairs.insert(left, right, Merge { rank: rank as u32, id });
        }
        let first = (0..1 << 16).map(|both| pairs.get(bytes[both >> 8], bytes[both & 0xff])).collect();
        Self { bytes, first, pairs, whole }
    }

    pub(super) fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    /// Adds the ids of `piece` to `ids`: of all neighbours the pair of lowest rank is joined, the first of equal ones,
    /// until there is none (Sennrich et al. 2016).
    pub(super) fn apply(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(piece) {
            ids.push(id);
        } else if piece.len() <= SCANNED {
            self.scan(piece, scratch, ids);
        } else {
            self.by_heap(piece, scratch, ids);
        }
    }

    fn scan(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { ids, merges, .. } = scratch;
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.byte(byte)));
        merges.clear();
        merges.extend(piece.windows(2).map(|two| self.first[usize::from(two[0]) << 8 | usize::from(two[1])]));
        loop {
            let (mut rank, mut at) = (NONE, 0);
            for (i, merge) in merges.iter().enumerate() {
                if merge.rank < rank {
                    (rank, at) = (merge.rank, i);
                }
            }
            if rank == NONE {
                break;
            }
            ids[at] = merges[at].id;
            ids.remove(at + 1);
            merges.remove(at);
            if at > 0 {
                merges[at - 1] = self.pairs.get(ids[at - 1], ids[at]);
            }
            if at < merges.len() {
                merges[at] = self.pairs.get(ids[at], ids[at + 1]);
            }
        }
        out.extend_from_slice(ids);
    }

    fn by_heap(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { ids, places, heap, .. } = scratch;
        let n = piece.len();
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.byte(byte)));
        // where the neighbours of a token begin; a token that was joined to the one before it has the id NONE
        places.clear();
        places.extend((0..n as u32).map(|i| [i.wrapping_sub(1), i + 1]));
        heap.clear();
        let offer = |heap: &mut BinaryHeap<_>, left: u32, right: u32, place: u32| {
            let merge = self.pairs.get(left, right);
            if merge.rank != NONE {
                heap.push(Reverse((merge.rank, place, left, right)));
            }
        };
        for i in 1..n {
            offer(heap, ids[i - 1], ids[i], i as u32 - 1);
        }
        while let Some(Reverse((_, place, left, right))) = heap.pop() {
            let at = place as usize;
            let next = places[at][1] as usize;
            if ids[at] != left || next >= n || ids[next] != right {
                continue;
            }
            ids[at] = self.pairs.get(left, right).id;
            ids[next] = NONE;
            let after = places[next][1];
            places[at][1] = after;
            if (after as usize) < n {
                places[after as usize][0] = place;
                offer(heap, ids[at], ids[after as usize], place);
            }
            let before = places[at][0];
            if before != NONE {
                offer(heap, ids[before as usize], ids[at], before);
            }
        }
        out.extend(ids.iter().filter(|&&id| id != NONE));
    }
}

/// A hash table with linear probing, at most half full.
#[derive(Debug)]
struct Pairs {
    slots: Box<[(u64, Merge)]>,
    shift: u32,
}

const EMPTY: u64 = u64::MAX;
const NO_MERGE: Merge = Merge { rank: NONE, id: NONE };

impl Pairs {
    fn with_capacity(pairs: usize) -> Self {
        let slots = (2 * pairs).next_power_of_two().max(2);
        Self { slots: vec![(EMPTY, NO_MERGE); slots].into(), shift: 64 - slots.trailing_zeros() }
    }

    /// Index of the slot that holds the key, or of the free one where it would be put.
    #[inline(always)]
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.slots[at].0 != key && self.slots[at].0 != EMPTY {
            at = (at + 1) & mask;
        }
        at
    }

    fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let key = u64::from(left) << 32 | u64::from(right);
        let at = self.slot(key);
        self.slots[at] = (key, merge);
    }

    #[inline(always)]
    fn get(&self, left: u32, right: u32) -> Merge {
        self.slots[self.slot(u64::from(left) << 32 | u64::from(right))].1
    }
}
