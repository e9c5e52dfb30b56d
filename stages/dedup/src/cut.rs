//! Documents without the pieces that stand elsewhere too.

use std::io::{self, BufRead, Write};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use smelt_stage::sort::{Item, read_or_end};

use crate::sketch::read_bytes;

/// What a cut takes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Piece {
    Line,
    Paragraph,
    Passage,
}

/// Bytes of a document's text that go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cut {
    pub document: u64,
    pub start: u32,
    pub end: u32,
    pub piece: Piece,
}

impl Item for Cut {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.document.to_le_bytes())?;
        to.write_all(&self.start.to_le_bytes())?;
        to.write_all(&self.end.to_le_bytes())?;
        to.write_all(&[self.piece as u8])
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut document = [0; 8];
        if !read_or_end(from, &mut document)? {
            return Ok(None);
        }
        let [start, end] = [read_bytes(from)?, read_bytes(from)?].map(u32::from_le_bytes);
        let [piece] = read_bytes(from)?;
        let piece = [Piece::Line, Piece::Paragraph, Piece::Passage][usize::from(piece)];
        Ok(Some(Self { document: u64::from_le_bytes(document), start, end, piece }))
    }
}

/// How much was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub lines: u64,
    pub paragraphs: u64,
    /// Passages that overlap or touch are one.
    pub passages: u64,
    pub characters: u64,
}

impl Removed {
    pub(crate) fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.paragraphs += other.paragraphs;
        self.passages += other.passages;
        self.characters += other.characters;
    }
}

/// What is left of `text`, and how much is not. `cuts`: of this text, in order, at least one.
pub(crate) fn without(text: &str, cuts: &[Cut]) -> (String, Removed) {
    let mut removed = Removed::default();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut passages: Vec<Range<usize>> = Vec::new();
    for cut in cuts {
        let range = cut.start as usize..cut.end as usize;
        match cut.piece {
            Piece::Line => removed.lines += 1,
            Piece::Paragraph => removed.paragraphs += 1,
            Piece::Passage => {
                // Passages that begin with neighbouring tokens overlap.
                match passages.last_mut().filter(|last| text[last.end.min(range.start)..range.start].trim().is_empty())
                {
                    Some(last) => last.end = last.end.max(range.end),
                    None => passages.push(range),
                }
                continue;
            }
        }
        ranges.push(range);
    }
    removed.passages = passages.len() as u64;
    ranges.extend(passages.into_iter().map(|passage| with_blanks(text, passage)));
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let (mut left, mut at) = (String::with_capacity(text.len()), 0);
    for range in ranges {
        left += &text[at..range.start.max(at)];
        at = at.max(range.end);
    }
    left += &text[at..];
    // What was between pieces at the end.
    left.truncate(left.trim_end().len());
    removed.characters = (text.chars().count() - left.chars().count()) as u64;
    (left, removed)
}

/// The passage with the blanks behind it and, if it stands at the start of a line, with a line's end behind it; at the
/// end of a line with the blanks before it.
fn with_blanks(text: &str, passage: Range<usize>) -> Range<usize> {
    let is_blank = |c: char| c == ' ' || c == '\t';
    let (before, behind) = (&text[..passage.start], &text[passage.end..]);
    let rest = behind.trim_start_matches(is_blank);
    let end = text.len() - rest.len();
    let lead = before.trim_end_matches(is_blank);
    if !rest.is_empty() && !rest.starts_with(['\n', '\r']) {
        return passage.start..end;
    }
    if !lead.is_empty() && !lead.ends_with('\n') {
        return lead.len()..end;
    }
    let rest = rest.strip_prefix('\r').unwrap_or(rest);
    lead.len()..text.len() - rest.strip_prefix('\n').unwrap_or(rest).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, pieces: &[(&str, Piece)]) -> (String, Removed) {
        let mut cuts: Vec<Cut> = pieces
            .iter()
            .map(|&(what, piece)| {
                let start = text.find(what).unwrap();
                Cut { document: 0, start: start as u32, end: (start + what.len()) as u32, piece }
            })
            .collect();
        cuts.sort_unstable();
        without(text, &cuts)
    }

    #[test]
    fn what_is_cut_leaves_no_hole() {
        let passage = |text: &str, what: &str| cut(text, &[(what, Piece::Passage)]).0;
        assert_eq!(passage("a b c d", "b c"), "a d");
        assert_eq!(passage("a b\nc", "b"), "a\nc");
        assert_eq!(passage("a\nb c\nd", "b c"), "a\nd");
        assert_eq!(passage("a\r\n b \r\nc", "b"), "a\r\nc");
        assert_eq!(passage("a b", "a b"), "");
        assert_eq!(passage("漢字漢", "字"), "漢漢");
        assert_eq!(cut("a\nb\nc", &[("b\n", Piece::Line)]).0, "a\nc");
        assert_eq!(cut("a\nb\nc", &[("c", Piece::Line)]).0, "a\nb");
    }

    #[test]
    fn pieces_that_overlap_are_cut_once_and_all_counted() {
        let pieces =
            [("b c", Piece::Passage), ("c d", Piece::Passage), ("g", Piece::Passage), ("c d e\n", Piece::Line)];
        let (left, removed) = cut("a b c d e\nf g", &pieces);
        assert_eq!(left, "a f");
        assert_eq!(removed, Removed { lines: 1, paragraphs: 0, passages: 2, characters: 10 });
    }

    #[test]
    fn a_cut_is_read_as_it_is_written() {
        let cuts = [Piece::Line, Piece::Paragraph, Piece::Passage].map(|piece| Cut {
            document: 1 << 39,
            start: 1,
            end: u32::MAX,
            piece,
        });
        let mut bytes = Vec::new();
        cuts.iter().for_each(|cut| cut.write(&mut bytes).unwrap());
        let mut from = &bytes[..];
        assert_eq!(std::iter::from_fn(|| Cut::read(&mut from).unwrap()).collect::<Vec<_>>(), cuts);
    }
}
