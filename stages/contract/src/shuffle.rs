//! Token rows in a random order across all files of a corpus, in bounded memory.
//!
//! The place of a row is a hash of the seed and of its document's id. So the order is the same for any number of
//! workers and however the corpus is cut into files, and a corpus with one document more keeps the order of the others.
//!
//! A unit that reads rows sorts them by their places in scratch, and writes them as a file for later phases, a part for
//! each stretch of places; a unit of the next phase merges one stretch of all files.

use crate::context::Context;
use crate::error::Error;
use crate::kinds::{Table, TokenRow, Tokens};
use crate::port::Port;
use crate::sort::{Item, Sorted, Sorter, read_or_end};
use crate::unit::Unit;
use smelt_store::UnitRecord;
use std::cmp::Ordering;
use std::io::{self, BufRead, Write};

/// Bytes of the input files for one file of the output, about.
const STRETCH: u64 = 128 << 20;
/// Files of the output at most.
const MOST: u64 = 1 << 14;
/// Names the files for the next phase.
const FILE: &str = "shuffled";

/// How rows are shuffled.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    seed: u64,
    stretches: u64,
}

/// Rows of one unit on their way.
#[derive(Debug)]
pub struct Shuffling {
    shuffle: Shuffle,
    rows: Sorter<Placed>,
}

impl Shuffle {
    /// `bytes`: of the files that are read, which decide how many are written.
    pub fn new(seed: u64, bytes: u64) -> Self {
        Self { seed, stretches: bytes.div_ceil(STRETCH).clamp(1, MOST) }
    }

    /// For the rows that one unit reads.
    pub fn of_unit(self, cx: &Context) -> Shuffling {
        let memory = cx.memory() / 2 / cx.threads();
        Shuffling { shuffle: self, rows: Sorter::new(memory, cx.scratch()) }
    }

    fn place(&self, id: &str, copy: u64) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"shuffle\0").update(&self.seed.to_le_bytes()).update(&copy.to_le_bytes()).update(id.as_bytes());
        let mut place = [0; 8];
        place.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(place)
    }

    fn stretch(&self, place: u64) -> u64 {
        ((u128::from(place) * u128::from(self.stretches)) >> 64) as u64
    }

    /// The phase that writes what units of an earlier phase took. The books do not count these rows: that phase has
    /// read them and counted what is written.
    pub fn write(self, cx: &Context, taken: &[UnitRecord], port: &Port<Tokens>) -> Result<Vec<UnitRecord>, Error> {
        cx.units("shuffle", self.stretches as usize, |i, unit| {
            let parts = taken.iter().map(|record| move || cx.work(record, FILE)?.part(i));
            for placed in Sorted::<Placed>::merge(parts, cx.scratch())? {
                unit.write(port, placed?.row)?;
            }
            Ok(())
        })
    }
}

impl Shuffling {
    /// Takes a row; `copy` is 0, 1, … for a row that is written more than once.
    pub fn push(&mut self, row: TokenRow, copy: u64) -> Result<(), Error> {
        let place = self.shuffle.place(&row.document, copy);
        self.rows.push(Placed { place, copy, row })
    }

    /// Gives the rows to the next phase.
    pub fn finish(self, unit: &mut Unit) -> Result<(), Error> {
        let mut file = unit.work_file(FILE)?;
        let mut at = 0;
        for placed in self.rows.sorted()? {
            let placed = placed?;
            while at < self.shuffle.stretch(placed.place) {
                file.end_part()?;
                at += 1;
            }
            placed.write(&mut file).map_err(|e| file.error(e))?;
        }
        (at..self.shuffle.stretches).try_for_each(|_| file.end_part())?;
        file.finish(unit)
    }
}

/// A row and its place. Rows of one document in two inputs have one place; their contents decide then.
#[derive(Clone, Debug, PartialEq)]
struct Placed {
    place: u64,
    copy: u64,
    row: TokenRow,
}

impl Placed {
    fn key(&self) -> (u64, &str, u64, &str, &[u32]) {
        (self.place, &self.row.document, self.copy, &self.row.source, &self.row.ids)
    }
}

impl Eq for Placed {}

impl Ord for Placed {
    fn cmp(&self, other: &Self) -> Ordering {
        let last = |placed: &Self| (placed.row.bytes, placed.row.language.clone());
        self.key().cmp(&other.key()).then_with(|| last(self).cmp(&last(other)))
    }
}

impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Item for Placed {
    fn weight(&self) -> usize {
        let TokenRow { document, source, language, .. } = &self.row;
        let strings = document.len() + source.len() + language.as_ref().map_or(0, String::len);
        size_of::<Self>() + strings + Tokens::weight(&self.row)
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let TokenRow { document, source, language, bytes, ids } = &self.row;
        let texts = [document.as_str(), source, language.as_deref().unwrap_or_default()];
        let lengths = texts.map(|text| text.len() as u64);
        let has_language = u64::from(language.is_some());
        for number in [self.place, self.copy, *bytes, has_language, ids.len() as u64].into_iter().chain(lengths) {
            to.write_all(&number.to_le_bytes())?;
        }
        texts.iter().try_for_each(|text| to.write_all(text.as_bytes()))?;
        ids.iter().try_for_each(|id| to.write_all(&id.to_le_bytes()))
    }

    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut numbers = [0; 8 * 8];
        if !read_or_end(from, &mut numbers)? {
            return Ok(None);
        }
        let mut of = [0; 8];
        for (of, bytes) in of.iter_mut().zip(numbers.as_chunks::<8>().0) {
            *of = u64::from_le_bytes(*bytes);
        }
        let [place, copy, bytes, has_language, count, document, source, language] = of;
        let mut text = |length: u64| {
            let mut bytes = vec![0; length as usize];
            from.read_exact(&mut bytes)?;
            String::from_utf8(bytes).map_err(io::Error::other)
        };
        let (document, source, language) = (text(document)?, text(source)?, text(language)?);
        let mut ids = vec![0; 4 * count as usize];
        from.read_exact(&mut ids)?;
        let ids = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let language = (has_language > 0).then_some(language);
        Ok(Some(Self { place, copy, row: TokenRow { document, source, language, bytes, ids } }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(i: u32) -> TokenRow {
        TokenRow {
            document: format!("document {i}"),
            source: "ß".into(),
            language: i.is_multiple_of(2).then(|| "de".into()),
            bytes: 7,
            ids: (0..i).collect(),
        }
    }

    #[test]
    fn rows_come_back_from_scratch() {
        for i in 0..5 {
            let placed = Placed { place: u64::MAX - 3, copy: 1, row: row(i) };
            let mut bytes = Vec::new();
            placed.write(&mut bytes).unwrap();
            assert_eq!(Placed::read(&mut &bytes[..]).unwrap(), Some(placed));
        }
        assert_eq!(Placed::read(&mut &[][..]).unwrap(), None);
    }

    #[test]
    fn places_depend_on_seed_id_and_copy_and_fill_all_stretches_alike() {
        let shuffle = Shuffle::new(3, 4 * STRETCH - 1);
        assert_eq!(shuffle.stretches, 4);
        let places: Vec<u64> = (0..4000).map(|i| shuffle.place(&format!("document {i}"), 0)).collect();
        for stretch in 0..4 {
            let count = places.iter().filter(|&&place| shuffle.stretch(place) == stretch).count();
            assert!((880..1120).contains(&count), "{count}"); // standard deviation 27
        }
        let place = |seed, id, copy| Shuffle::new(seed, 0).place(id, copy);
        assert_eq!(place(3, "a", 0), place(3, "a", 0));
        assert!(place(3, "a", 0) != place(4, "a", 0) && place(3, "a", 0) != place(3, "a", 1));
        let stretches = |bytes| Shuffle::new(0, bytes).stretches;
        assert_eq!((stretches(0), stretches(STRETCH + 1), stretches(u64::MAX)), (1, 2, MOST));
    }
}
