//! What `data/` holds: classes of characters, and special cases with the tree of those that the rules would tear.

use std::sync::LazyLock;

use rustc_hash::{FxHashMap, FxHashSet};

use super::EnglishWords;

pub(super) const LETTER: u8 = 1;
pub(super) const DIGIT: u8 = 2;
pub(super) const MARK: u8 = 4;
pub(super) const BLANK: u8 = 8;
pub(super) const HIGH: u8 = 16;

/// The kind of each byte; of a character beyond ASCII all bytes are `HIGH`.
pub(super) static KINDS: [u8; 256] = {
    let mut kinds = [MARK; 256];
    let mut i = 0;
    while i < 256 {
        let byte = i as u8;
        if byte.is_ascii_alphabetic() {
            kinds[i] = LETTER;
        } else if byte.is_ascii_digit() {
            kinds[i] = DIGIT;
        } else if matches!(byte, 9..=13 | 28..=32) {
            kinds[i] = BLANK;
        } else if byte >= 128 {
            kinds[i] = HIGH;
        }
        i += 1;
    }
    kinds
};

/// Bytes of the white space beyond ASCII that `bytes` begin with; `bytes` may also begin inside a character.
pub(super) fn wide_space(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0xc2, 0x85 | 0xa0, ..] => Some(2),
        [0xe1, 0x9a, 0x80, ..] | [0xe2, 0x80, 0x80..=0x8a | 0xa8 | 0xa9 | 0xaf, ..] => Some(3),
        [0xe2, 0x81, 0x9f, ..] | [0xe3, 0x80, 0x80, ..] => Some(3),
        _ => None,
    }
}

// Classes of characters, the bits of `data/english_classes.txt`.
pub(super) const PREFIX: u16 = 0x1;
pub(super) const SUFFIX: u16 = 0x2;
pub(super) const INFIX: u16 = 0x4;
pub(super) const ALPHABETIC: u16 = 0x8;
pub(super) const UPPER: u16 = 0x10;
pub(super) const BEFORE_LAST_DOT: u16 = 0x20;
pub(super) const BEFORE_DOT: u16 = 0x40;
pub(super) const AFTER_DOT: u16 = 0x80;
pub(super) const TOP_DOMAIN: u16 = 0x100;
pub(super) const PUNCTUATION: u16 = 0x200;
pub(super) const SENTENCE_END: u16 = 0x400;

#[inline]
pub(super) fn class(c: char) -> u16 {
    let c = c as usize;
    let classes = &*CLASSES;
    if let Some(&class) = classes.low.get(c) {
        return class;
    }
    let after = classes.high.partition_point(|&(first, _, _)| first as usize <= c);
    classes.high[..after].last().filter(|&&(_, last, _)| c <= last as usize).map_or(0, |&(_, _, class)| class)
}

/// Classes of the basic plane by code point, of the others by range.
struct Classes {
    low: Box<[u16]>,
    high: Vec<(u32, u32, u16)>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    let mut classes = Classes { low: vec![0; 0x10000].into_boxed_slice(), high: Vec::new() };
    let lines = include_str!("../../data/english_classes.txt").lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let mut numbers = line.split(' ').map(|x| u32::from_str_radix(x, 16).expect("the table holds numbers"));
        let mut next = || numbers.next().expect("three numbers a line");
        let (first, last, class) = (next(), next(), next() as u16);
        match last < 0x10000 {
            true => classes.low[first as usize..=last as usize].fill(class),
            false => classes.high.push((first, last, class)),
        }
    }
    classes
});

/// A special case: the lengths of its pieces in bytes.
#[derive(Debug)]
pub(super) struct Special {
    pub lengths: [u8; 3],
}

pub(super) struct Tables {
    special: FxHashMap<&'static [u8], &'static Special>,
    /// Of the special cases the last bytes that occur with a first byte and a length: most words are in no table.
    special_ends: Box<[u64]>,
    pub after_digits: FxHashSet<&'static str>,
    /// Pieces of torn special cases, numbered from 1.
    pieces: FxHashMap<&'static [u8], u16>,
    piece_ends: Box<[u64]>,
    /// From a node of the tree of torn special cases by a piece to the next node; 0 is the root.
    pub torn: FxHashMap<(u16, u16), u16>,
    /// The special case that ends at a node.
    pub whole: Vec<Option<&'static Special>>,
}

/// Longest special case in bytes, and one more.
const LENGTHS: usize = 32;

fn mark_end(ends: &mut [u64], word: &str) {
    if let (Some(first), Some(last)) = (word.as_bytes().first(), word.as_bytes().last()) {
        ends[usize::from(*first) * LENGTHS + word.len()] |= 1 << (last & 63);
    }
}

#[inline]
fn may_hold(ends: &[u64], word: &[u8]) -> bool {
    match (word.first(), word.last()) {
        (Some(first), Some(last)) if word.len() < LENGTHS => {
            ends[usize::from(*first) * LENGTHS + word.len()] >> (last & 63) & 1 == 1
        }
        _ => false,
    }
}

pub(super) static TABLES: LazyLock<Tables> = LazyLock::new(Tables::read);

impl Tables {
    fn read() -> Self {
        let mut lines = include_str!("../../data/english_special.txt").lines().skip(2);
        let mut tables = Tables {
            special: FxHashMap::default(),
            special_ends: vec![0; 256 * LENGTHS].into_boxed_slice(),
            after_digits: lines.next().unwrap_or_default().split(' ').collect(),
            pieces: FxHashMap::default(),
            piece_ends: vec![0; 256 * LENGTHS].into_boxed_slice(),
            torn: FxHashMap::default(),
            whole: vec![None],
        };
        let mut all = Vec::new();
        for line in lines {
            let mut special = Special { lengths: [0; 3] };
            line.split(' ').enumerate().for_each(|(i, piece)| special.lengths[i] = piece.len() as u8);
            // Read once and never given back: the tables live as long as the program.
            let (key, special): (&'static str, &'static Special) =
                (Box::leak(line.replace(' ', "").into_boxed_str()), Box::leak(Box::new(special)));
            tables.special.insert(key.as_bytes(), special);
            mark_end(&mut tables.special_ends, key);
            all.push((key, special));
        }
        for (key, special) in all {
            tables.add_torn(key, special);
        }
        tables
    }

    /// Enters a special case into the tree if the rules, left alone, would tear it.
    fn add_torn(&mut self, key: &'static str, special: &'static Special) {
        let kinds = key.bytes().fold(0, |kinds, byte| kinds | KINDS[usize::from(byte)]);
        let mut words = EnglishWords::default();
        words.cut_run(self, key, 0, key.len(), kinds, false);
        if words.spans.len() < 2 {
            return;
        }
        let mut node = 0;
        for span in &words.spans {
            let piece = span.of(key);
            let next_piece = self.pieces.len() as u16 + 1;
            let number = *self.pieces.entry(piece.as_bytes()).or_insert(next_piece);
            mark_end(&mut self.piece_ends, piece);
            let next_node = self.whole.len() as u16;
            node = *self.torn.entry((node, number)).or_insert(next_node);
            if node == next_node {
                self.whole.push(None);
            }
        }
        self.whole[usize::from(node)] = Some(special);
    }

    #[inline]
    pub(super) fn special(&self, word: &[u8]) -> Option<&'static Special> {
        if may_hold(&self.special_ends, word) { self.special.get(word).copied() } else { None }
    }

    #[inline]
    pub(super) fn piece(&self, word: &[u8]) -> u16 {
        if may_hold(&self.piece_ends, word) { self.pieces.get(word).copied().unwrap_or(0) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::english::affixes::{infix, prefix, suffix};

    #[test]
    fn a_special_case_in_one_piece_changes_nothing() {
        // So the second pass need not look for the cases that no rule tears.
        for (key, special) in &TABLES.special {
            let key = std::str::from_utf8(key).unwrap();
            let kinds = key.bytes().fold(0, |kinds, byte| kinds | KINDS[usize::from(byte)]);
            let mut words = EnglishWords::default();
            words.cut_run(&TABLES, key, 0, key.len(), kinds, false);
            let is_affected = prefix(key) > 0 || suffix(&TABLES, key, true) > 0 || infix(key, 0).is_some();
            assert!(words.spans.len() > 1 || special.lengths[1] == 0 || !is_affected, "{key}");
        }
    }
}
