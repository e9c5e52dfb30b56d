//! What the phases hand over of each document that goes.

use smelt_stage::sort::{Item, read_or_end};
use std::cmp::Ordering;
use std::io::{self, BufRead, Write};

use crate::clusters::Pair;
use crate::sketch::{Sketch, read_bytes, read_text, write_text};

/// A document that goes, sought by the one that stays for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Going {
    pub pair: Pair,
    /// Of the document that goes.
    pub sketch: Sketch,
}

/// Why a document goes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub document: u64,
    /// Id of the document that stays.
    pub leader: String,
    pub alike: Alike,
    /// Whether the one that stays is of the input `seen`.
    pub seen: bool,
    /// Jaccard similarity of the two: from their shingles where `jaccard` asked for one, else estimated. `None` where
    /// one of them has no shingles.
    pub similarity: Option<f64>,
}

/// In what two documents are alike, the strongest that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alike {
    /// Texts are equal when white space is folded.
    Text,
    Url,
    /// They agree in a band of their signatures, or a chain of such documents leads from one to the other.
    Near,
}

impl Verdict {
    /// The rule by which it goes, as `drops` and `clusters` name it.
    pub(crate) fn rule(&self) -> &'static str {
        match (self.alike, self.seen) {
            (Alike::Text, false) => "exact_duplicate",
            (Alike::Url, false) => "same_url",
            (Alike::Near, false) => "near_duplicate",
            (Alike::Text, true) => "seen_exact_duplicate",
            (Alike::Url, true) => "seen_same_url",
            (Alike::Near, true) => "seen_near_duplicate",
        }
    }
}

/// By one key, of which no two items of a sort have the same.
macro_rules! in_order {
    ($type:ty, $key:expr) => {
        impl Eq for $type {}
        impl Ord for $type {
            fn cmp(&self, other: &Self) -> Ordering {
                let key: fn(&Self) -> _ = $key;
                key(self).cmp(&key(other))
            }
        }
        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
    };
}

in_order!(Pair, |pair| (pair.document, pair.leader));
in_order!(Going, |going| (going.pair.leader, going.pair.document));
in_order!(Verdict, |verdict| verdict.document);

impl Item for Pair {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.document.to_le_bytes())?;
        to.write_all(&self.leader.to_le_bytes())?;
        to.write_all(&self.similarity.unwrap_or(f64::NAN).to_le_bytes())
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut document = [0; 8];
        if !read_or_end(from, &mut document)? {
            return Ok(None);
        }
        let leader = u64::from_le_bytes(read_bytes(from)?);
        let similarity = read_similarity(from)?;
        Ok(Some(Self { document: u64::from_le_bytes(document), leader, similarity }))
    }
}

impl Item for Going {
    fn weight(&self) -> usize {
        // 32 for what two allocations take beside
        size_of::<Self>() + self.sketch.id.len() + self.sketch.traits.signature.len() + 32
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        self.pair.write(to)?;
        self.sketch.write(to)
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let Some(pair) = Pair::read(from)? else { return Ok(None) };
        let mut sketch = Sketch::default();
        sketch.read(from)?;
        Ok(Some(Self { pair, sketch }))
    }
}

impl Item for Verdict {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.leader.len() + 16
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.document.to_le_bytes())?;
        to.write_all(&self.similarity.unwrap_or(f64::NAN).to_le_bytes())?;
        to.write_all(&[self.alike as u8, u8::from(self.seen)])?;
        write_text(&self.leader, to)
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut document = [0; 8];
        if !read_or_end(from, &mut document)? {
            return Ok(None);
        }
        let similarity = read_similarity(from)?;
        let [alike, seen] = read_bytes(from)?;
        let alike = [Alike::Text, Alike::Url, Alike::Near][usize::from(alike)];
        let leader = read_text(from)?;
        Ok(Some(Self { document: u64::from_le_bytes(document), leader, alike, seen: seen == 1, similarity }))
    }
}

/// A similarity, or NaN for none.
fn read_similarity(from: &mut dyn BufRead) -> io::Result<Option<f64>> {
    let similarity = f64::from_le_bytes(read_bytes(from)?);
    Ok((!similarity.is_nan()).then_some(similarity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::Traits;

    #[test]
    fn items_are_read_as_they_are_written() {
        let pair = |document, similarity| Pair { document, leader: 3, similarity };
        let traits = Traits { digest: [7; 16], address: [8; 16], simple: [1, 2], signature: vec![1, 2, 3, 4] };
        let sketch = Sketch { id: "Öl".into(), traits };
        let going = [
            Going { pair: pair(9, None), sketch: Sketch::default() },
            Going { pair: pair(u64::MAX, Some(0.5)), sketch },
        ];
        let verdict = |document, leader: &str, alike, seen, similarity| Verdict {
            document,
            leader: leader.into(),
            alike,
            seen,
            similarity,
        };
        let verdicts = [
            verdict(1, "", Alike::Text, true, Some(1.0)),
            verdict(2, "Öl", Alike::Url, false, None),
            verdict(3, "b", Alike::Near, true, Some(0.75)),
        ];
        let mut bytes = Vec::new();
        going.iter().for_each(|item| item.write(&mut bytes).unwrap());
        let mut from = &bytes[..];
        let mut read: Vec<Going> = std::iter::from_fn(|| Going::read(&mut from).unwrap()).collect();
        assert_eq!(read, going);
        read.sort_unstable();
        assert_eq!(read, going, "they were in order");
        bytes.clear();
        verdicts.iter().for_each(|item| item.write(&mut bytes).unwrap());
        let mut from = &bytes[..];
        assert_eq!(std::iter::from_fn(|| Verdict::read(&mut from).unwrap()).collect::<Vec<_>>(), verdicts);
    }
}
