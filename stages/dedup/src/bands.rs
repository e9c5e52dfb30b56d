//! Who agrees with whom in a band: entries of all documents, sorted, and the links between neighbours that are alike.

use smelt_stage::Error;
use smelt_stage::sort::{Item, read_or_end};
use std::io::{self, BufRead, Write};
use xxhash_rust::xxh64::xxh64;

/// Bits of the number of a document.
pub(crate) const NUMBER: u32 = 40;
/// Bits of the number of a band.
const BAND: u32 = 16;

/// A document in a band.
pub(crate) trait Entry: Item + Send + 'static {
    /// `hashes`: those of the band, of the document's signature.
    fn new(hashes: &[u64], document: u64) -> Self;
    fn document(&self) -> u64;
    /// Whether two documents agree in the band.
    fn agrees(&self, other: &Self) -> bool;
    /// In which of `count` ranges of entries it lies.
    fn range(&self, count: u64) -> u64;
}

/// 88 bits that the hashes decide, before the number of the document. Two of 25 billion documents that do not agree
/// look so with a probability of one in a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Narrow(u128);

impl Narrow {
    /// `key`: any number of bytes of which the first 11 are random.
    pub(crate) fn of_digest(key: &[u8; 16], document: u64) -> Self {
        Self(u128::from_be_bytes(*key) >> NUMBER << NUMBER | u128::from(document))
    }
}

impl Item for Narrow {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        self.0.write(to)
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        Ok(u128::read(from)?.map(Self))
    }
}

impl Entry for Narrow {
    fn new(hashes: &[u64], document: u64) -> Self {
        // The low halves of the hashes, as the sketch keeps them.
        let mut bytes = [0; 4 * 32];
        let mut key = [0, 1];
        for part in hashes.chunks(32) {
            for (bytes, hash) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(part) {
                *bytes = (*hash as u32).to_le_bytes();
            }
            key = key.map(|seed| xxh64(&bytes[..4 * part.len()], seed));
        }
        Self(u128::from(key[0]) << 64 | u128::from(key[1]) >> NUMBER << NUMBER | u128::from(document))
    }
    fn document(&self) -> u64 {
        self.0 as u64 & ((1 << NUMBER) - 1)
    }
    fn agrees(&self, other: &Self) -> bool {
        self.0 >> NUMBER == other.0 >> NUMBER
    }
    fn range(&self, count: u64) -> u64 {
        (((self.0 >> 64) * u128::from(count)) >> 64) as u64
    }
}

/// The hashes themselves, in whose order the published clusters are made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wide {
    hashes: Box<[u64]>,
    document: u64,
}

impl Item for Wide {
    fn weight(&self) -> usize {
        size_of::<Self>() + 8 * self.hashes.len() + 16 // what an allocation takes beside
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.document.to_le_bytes())?;
        to.write_all(&(self.hashes.len() as u64).to_le_bytes())?;
        self.hashes.iter().try_for_each(|hash| to.write_all(&hash.to_le_bytes()))
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut word = [0; 8];
        if !read_or_end(from, &mut word)? {
            return Ok(None);
        }
        let document = u64::from_le_bytes(word);
        let mut next = || from.read_exact(&mut word).map(|()| u64::from_le_bytes(word));
        let count = next()?;
        let hashes = (0..count).map(|_| next()).collect::<io::Result<_>>()?;
        Ok(Some(Self { hashes, document }))
    }
}

impl Entry for Wide {
    fn new(hashes: &[u64], document: u64) -> Self {
        Self { hashes: hashes.into(), document }
    }
    fn document(&self) -> u64 {
        self.document
    }
    fn agrees(&self, other: &Self) -> bool {
        self.hashes == other.hashes
    }
    fn range(&self, _count: u64) -> u64 {
        0
    }
}

/// A document, a band in which it agrees with a later one, and the next such document. Also, on its way to a later
/// document: that document, the band in which it agrees with a leader, and the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub document: u64,
    pub band: u16,
    pub other: u64,
}

impl Link {
    /// In one number, whose order is that of the fields.
    pub(crate) fn pack(self) -> u128 {
        u128::from(self.document) << (BAND + NUMBER) | u128::from(self.band) << NUMBER | u128::from(self.other)
    }

    pub(crate) fn unpack(packed: u128) -> Self {
        let number = |bits: u128| bits as u64 & ((1 << NUMBER) - 1);
        Self { document: number(packed >> (BAND + NUMBER)), band: (packed >> NUMBER) as u16, other: number(packed) }
    }
}

/// Calls `take` with the link of each document of a band to the next one that agrees with it. `entries`: in order.
pub(crate) fn links<E: Entry>(
    band: u16,
    entries: impl Iterator<Item = Result<E, Error>>,
    mut take: impl FnMut(Link) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut before: Option<E> = None;
    for entry in entries {
        let entry = entry?;
        if let Some(before) = before.filter(|before| before.agrees(&entry)) {
            take(Link { document: before.document(), band, other: entry.document() })?;
        }
        before = Some(entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back<E: Entry>(entry: &E) -> E {
        let mut bytes = Vec::new();
        entry.write(&mut bytes).unwrap();
        E::read(&mut &bytes[..]).unwrap().expect("an item")
    }

    #[test]
    fn entries_agree_as_the_low_halves_of_their_hashes_do() {
        let number = (1 << NUMBER) - 2;
        for n in [1, 8, 31, 32, 33, 100] {
            let hashes: Vec<u64> = (0..n).map(|i| ((i * i) << 30) | i).collect();
            let entry = Narrow::new(&hashes, number);
            assert_eq!((entry.document(), back(&entry)), (number, entry));
            let high: Vec<u64> = hashes.iter().map(|hash| hash ^ 1 << 40).collect();
            assert!(entry.agrees(&Narrow::new(&high, 3)));
            for i in 0..hashes.len() {
                let mut other = hashes.clone();
                other[i] ^= 1;
                assert!(!entry.agrees(&Narrow::new(&other, 3)), "hash {i} of {n}");
            }
            let wide = Wide::new(&hashes, 7);
            assert_eq!((wide.document(), back(&wide)), (7, wide.clone()));
            assert!(wide.agrees(&Wide::new(&hashes, 8)) && !wide.agrees(&Wide::new(&high, 7)));
        }
    }

    #[test]
    fn ranges_are_in_the_order_of_entries_and_about_equal() {
        let mut entries: Vec<Narrow> = (0..3000).map(|i| Narrow::new(&[i], i)).collect();
        entries.sort_unstable();
        let ranges: Vec<u64> = entries.iter().map(|entry| entry.range(3)).collect();
        assert!(ranges.is_sorted());
        for range in 0..3 {
            let count = ranges.iter().filter(|&&r| r == range).count();
            assert!((900..1100).contains(&count), "{count}"); // standard deviation 26
        }
    }

    #[test]
    fn a_link_is_one_number_in_the_same_order() {
        let numbers = [0, 1, (1 << NUMBER) - 1];
        let mut links = Vec::new();
        for document in numbers {
            for band in [0, 1, u16::MAX] {
                links.extend(numbers.map(|other| Link { document, band, other }));
            }
        }
        assert!(links.is_sorted() && links.iter().map(|link| link.pack()).is_sorted());
        assert!(links.iter().all(|link| Link::unpack(link.pack()) == *link));
    }
}
