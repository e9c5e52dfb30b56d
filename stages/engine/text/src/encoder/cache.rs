//! The ids of pieces that were seen before. Bounded: newer pieces take the places of older ones.

use rustc_hash::FxHashMap;

/// Bytes of a piece that is its own key.
pub(super) const SHORT: usize = 15;

/// Bytes of a piece beyond which it is not remembered: such pieces rarely come twice.
const LONGEST: usize = 256;

/// Pairs of entries; 4 MB in all.
const SETS: usize = 1 << 16;

/// Ids of an entry that stand in it.
const INLINE: usize = 3;

/// Ids beside the entries, and bytes of pieces longer than [`SHORT`], at which all is forgotten.
const MOST: usize = 1 << 20;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
struct Entry {
    /// Bytes of the piece, its length above them; 0 for none.
    key: u128,
    /// The ids; if there are more than [`INLINE`], the first says where they stand in `beside`.
    ids: [u32; INLINE],
    count: u32,
}

#[derive(Debug)]
pub(super) struct Cache {
    entries: Box<[[Entry; 2]]>,
    beside: Vec<u32>,
    long: FxHashMap<Box<[u8]>, Box<[u32]>>,
    long_bytes: usize,
}

impl Default for Cache {
    fn default() -> Self {
        let entries = vec![[Entry::default(); 2]; SETS].into();
        Self { entries, beside: Vec::new(), long: FxHashMap::default(), long_bytes: 0 }
    }
}

/// The key of the piece from `start` to `end`, of at most [`SHORT`] bytes.
#[inline(always)]
pub(super) fn key(text: &[u8], start: usize, end: usize) -> u128 {
    let length = end - start;
    let bytes = match text.get(start..start + 16) {
        Some(sixteen) => u128::from_le_bytes(sixteen.try_into().expect("16 bytes")) & ((1u128 << (8 * length)) - 1),
        None => {
            let mut sixteen = [0; 16];
            sixteen[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(sixteen)
        }
    };
    bytes | (length as u128) << 120
}

#[inline(always)]
fn set_of(key: u128) -> usize {
    let folded = (key as u64) ^ ((key >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (folded.wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - SETS.trailing_zeros())) as usize
}

impl Cache {
    /// Adds the ids of a short piece to `ids`, if they are known.
    #[inline(always)]
    pub(super) fn short(&self, key: u128, ids: &mut Vec<u32>) -> bool {
        let set = &self.entries[set_of(key)];
        let Some(entry) = set.iter().find(|entry| entry.key == key) else { return false };
        match entry.count as usize {
            1 => ids.push(entry.ids[0]),
            count @ 2..=INLINE => ids.extend_from_slice(&entry.ids[..count]),
            count => ids.extend_from_slice(&self.beside[entry.ids[0] as usize..][..count]),
        }
        true
    }

    pub(super) fn keep_short(&mut self, key: u128, found: &[u32]) {
        let mut ids = [0; INLINE];
        if found.len() <= INLINE {
            ids[..found.len()].copy_from_slice(found);
        } else {
            if self.beside.len() + found.len() > MOST {
                self.entries.fill([Entry::default(); 2]);
                self.beside.clear();
            }
            ids[0] = self.beside.len() as u32;
            self.beside.extend_from_slice(found);
        }
        let [newer, older] = &mut self.entries[set_of(key)];
        *older = *newer;
        *newer = Entry { key, ids, count: found.len() as u32 };
    }

    /// The same for a piece of any length.
    pub(super) fn long(&self, piece: &[u8], ids: &mut Vec<u32>) -> bool {
        let found = if piece.len() <= LONGEST { self.long.get(piece) } else { None };
        found.map(|found| ids.extend_from_slice(found)).is_some()
    }

    pub(super) fn keep_long(&mut self, piece: &[u8], found: &[u32]) {
        if piece.len() > LONGEST {
            return;
        }
        if self.long_bytes + piece.len() > MOST {
            self.long.clear();
            self.long_bytes = 0;
        }
        self.long_bytes += piece.len();
        self.long.insert(piece.into(), found.into());
    }
}
