//! Lines, paragraphs and passages that stand in the corpus more than once.
//!
//! | phase | unit | reads | writes |
//! |---|---|---|---|
//! | `lines` | input file | its documents that stay | places of lines, sorted by their keys |
//! | `repeated-lines` | range of keys | its places of all files, merged | what to cut, sorted by document |
//! | the same with `paragraphs` | | | |
//! | `anchors` | input file | its documents that stay | places of anchors: see `passages.rs` |
//! | `repeated-anchors` | range of keys | its places of all files, merged | anchors that stand twice, by document |
//! | `passages` | input file | its documents, and anchors that stand twice | places of passages that may repeat |
//! | `repeated-passages` | range of keys | its places of all files, merged | what to cut, sorted by document |
//!
//! A place is 32 bytes on disk and pieces are known by 128 bits of hashes: among 10¹³ of them two that differ look
//! equal with a probability of 10⁻¹².

use std::io::{self, BufRead, Write};
use std::ops::Range;

use smelt_stage::kinds::Document;
use smelt_stage::sort::{Item, Sorted, Sorter, read_or_end};
use smelt_stage::{Error, UnitRecord, WorkFile};
use xxhash_rust::xxh64::xxh64;

use crate::cut::{Cut, Piece};
use crate::job::Job;
use crate::passages::Tokens;
use crate::sketch::read_bytes;

/// Bytes of input files for each range of keys, about.
const RANGE: u64 = 1 << 26;

/// Where a piece stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Equal for equal pieces.
    pub key: u128,
    pub document: u64,
    /// In bytes of its text.
    pub start: u32,
    pub end: u32,
}

impl Item for Place {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.key.to_le_bytes())?;
        to.write_all(&self.document.to_le_bytes())?;
        to.write_all(&self.start.to_le_bytes())?;
        to.write_all(&self.end.to_le_bytes())
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut key = [0; 16];
        if !read_or_end(from, &mut key)? {
            return Ok(None);
        }
        let (key, document) = (u128::from_le_bytes(key), u64::from_le_bytes(read_bytes(from)?));
        let [start, end] = [read_bytes(from)?, read_bytes(from)?].map(u32::from_le_bytes);
        Ok(Some(Self { key, document, start, end }))
    }
}

/// The key of a piece.
pub(crate) fn key(piece: &[u8]) -> u128 {
    u128::from(xxh64(piece, 0)) << 64 | u128::from(xxh64(piece, 1))
}

/// Takes the key of a piece and where it stands.
type Take<'a> = &'a mut dyn FnMut(u128, Range<usize>) -> Result<(), Error>;

/// Which of several equal pieces are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    /// Of documents that were not seen before, all but the first of all, and what overlaps the first.
    Later,
    /// All of documents that were not seen before.
    All,
    /// All of all documents.
    AllOfAll,
}

impl Job<'_> {
    /// Records whose files `cuts` have a part for each input file. `compared`: which documents go as a whole.
    pub(crate) fn cuts(&self, compared: &[UnitRecord]) -> Result<Vec<UnitRecord>, Error> {
        let mut found = Vec::new();
        for (asked, piece, phases) in [
            (&self.config.lines, Piece::Line, ["lines", "repeated-lines"]),
            (&self.config.paragraphs, Piece::Paragraph, ["paragraphs", "repeated-paragraphs"]),
        ] {
            let Some(asked) = asked else { continue };
            let placed = self.place(
                phases[0],
                compared,
                |_| Ok(()),
                |(), _, document, take| {
                    for range in pieces(&document.text, piece) {
                        let simple = self.minhash.simple(&document.text[range.clone()]);
                        if simple.chars().count() >= asked.min_chars {
                            take(key(simple.as_bytes()), range)?;
                        }
                    }
                    Ok(())
                },
            )?;
            found.extend(self.repeated(phases[1], &placed, piece, Goes::Later)?);
        }
        if let Some(asked) = &self.config.passages {
            let tokens = || Ok(Tokens::new(asked.words));
            let placed = self.place(
                "anchors",
                compared,
                |_| tokens(),
                |tokens, _, document, take| {
                    tokens.split(&document.text);
                    tokens.anchors(take)
                },
            )?;
            let twice = self.repeated("repeated-anchors", &placed, Piece::Passage, Goes::AllOfAll)?;
            let begin = |file| {
                let parts = twice.iter().map(|record| move || self.cx.work(record, "cuts")?.part(file));
                Ok((tokens()?, Sorted::<Cut>::merge(parts, self.cx.scratch())?.peekable()))
            };
            let placed = self.place("passages", compared, begin, |(tokens, twice), number, document, take| {
                let mut anchors = Vec::new();
                while let Some(cut) = twice.next_if(|cut| cut.as_ref().map_or(true, |cut| cut.document <= number)) {
                    let cut = cut?;
                    if cut.document == number {
                        anchors.push(cut.start);
                    }
                }
                if anchors.is_empty() {
                    return Ok(());
                }
                tokens.split(&document.text);
                tokens.passages(&anchors, take)
            })?;
            let goes = if asked.keep_first { Goes::Later } else { Goes::All };
            found.extend(self.repeated("repeated-passages", &placed, Piece::Passage, goes)?);
        }
        Ok(found)
    }

    /// Records whose files `places` have a part for each range of keys. `begin` makes what `each` needs for the
    /// documents of an input file.
    fn place<S>(
        &self,
        phase: &str,
        compared: &[UnitRecord],
        begin: impl Fn(usize) -> Result<S, Error> + Sync,
        each: impl Fn(&mut S, u64, &Document, Take) -> Result<(), Error> + Sync,
    ) -> Result<Vec<UnitRecord>, Error> {
        self.cx.units(phase, self.files.len(), |i, unit| {
            let mut state = begin(i)?;
            let mut sorter: Sorter<Place> = Sorter::new(self.memory, self.cx.scratch());
            for judged in self.judged(i, compared)? {
                let (number, document, verdict) = judged?;
                if verdict.is_none() {
                    let mut take = |key, range: Range<usize>| {
                        let (start, end) = (range.start as u32, range.end as u32);
                        sorter.push(Place { key, document: number, start, end })
                    };
                    each(&mut state, number, &document, &mut take)?;
                }
            }
            let mut file = unit.work_file("places")?;
            self.write_in_ranges(sorter, &mut file)?;
            file.finish(unit)
        })
    }

    fn key_ranges(&self) -> u64 {
        let bytes: u64 = self.files.iter().map(|&(artifact, file)| self.inputs[artifact].files()[file].bytes).sum();
        (bytes / RANGE).clamp(4, 4096)
    }

    fn write_in_ranges(&self, sorter: Sorter<Place>, file: &mut WorkFile) -> Result<(), Error> {
        let (mut at, count) = (0, u128::from(self.key_ranges()));
        for place in sorter.sorted()? {
            let place = place?;
            while at < ((place.key >> 64) * count) >> 64 {
                file.end_part()?;
                at += 1;
            }
            place.write(file).map_err(|e| file.error(e))?;
        }
        (at..count).try_for_each(|_| file.end_part())
    }

    /// Records whose files `cuts` have a part for each input file.
    fn repeated(&self, phase: &str, placed: &[UnitRecord], piece: Piece, goes: Goes) -> Result<Vec<UnitRecord>, Error> {
        let least = if goes == Goes::AllOfAll { 0 } else { self.seen() };
        self.cx.units(phase, self.key_ranges() as usize, |range, unit| {
            let parts = placed.iter().map(|record| move || self.cx.work(record, "places")?.part(range));
            let mut sorter: Sorter<Cut> = Sorter::new(self.memory, self.cx.scratch());
            let mut cut = |place: Place| match place.document < least {
                true => Ok(()),
                false => {
                    let Place { document, start, end, .. } = place;
                    sorter.push(Cut { document, start, end, piece })
                }
            };
            // The first of equal pieces, and whether it was cut.
            let mut first: Option<(Place, bool)> = None;
            for place in Sorted::<Place>::merge(parts, self.cx.scratch())? {
                let place = place?;
                match &mut first {
                    Some((first, is_cut)) if first.key == place.key => {
                        if goes == Goes::Later {
                            let overlaps = place.document == first.document && place.start < first.end;
                            if !overlaps {
                                cut(place)?;
                            }
                            continue;
                        }
                        if !std::mem::replace(is_cut, true) {
                            cut(*first)?;
                        }
                        cut(place)?;
                    }
                    _ => first = Some((place, false)),
                }
            }
            let mut file = self.by_file(unit.work_file("cuts")?);
            for cut in sorter.sorted()? {
                let cut = cut?;
                file.write(cut.document, &cut)?;
            }
            file.finish(unit)
        })
    }
}

/// Where the lines of a text stand, with their ends, or its paragraphs, with the blank lines behind them.
fn pieces(text: &str, piece: Piece) -> Vec<Range<usize>> {
    let (mut found, mut at): (Vec<Range<usize>>, usize) = (Vec::new(), 0);
    let mut after_blank = true;
    for line in text.split_inclusive('\n') {
        let range = at..at + line.len();
        at = range.end;
        let is_blank = line.trim().is_empty();
        match found.last_mut() {
            Some(paragraph) if piece == Piece::Paragraph && (is_blank || !after_blank) => paragraph.end = at,
            _ if is_blank => {}
            _ => found.push(range),
        }
        after_blank = is_blank;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_paragraphs_are_found_with_what_ends_them() {
        let text = "\n a\nb\r\n \n\nc\nd";
        let found = |piece| pieces(text, piece).into_iter().map(|range| &text[range]).collect::<Vec<_>>();
        assert_eq!(found(Piece::Line), [" a\n", "b\r\n", "c\n", "d"]);
        assert_eq!(found(Piece::Paragraph), [" a\nb\r\n \n\n", "c\nd"]);
        assert!(pieces("", Piece::Line).is_empty() && pieces(" \n\n", Piece::Paragraph).is_empty());
    }

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let place = Place { key: u128::MAX - 7, document: 1 << 39, start: 5, end: u32::MAX };
        let mut bytes = Vec::new();
        place.write(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 32);
        assert_eq!(Place::read(&mut &bytes[..]).unwrap(), Some(place));
        assert_eq!(Place::read(&mut &[][..]).unwrap(), None);
    }
}
