//! Where the documents of a packed batch begin and end: attention does not cross these bounds.

use crate::segments::Segments;
use std::ops::Range;

/// The rows of a document are neighbours; a row's position counts from the start of its document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentBounds {
    segments: Segments,
    positions: Vec<u32>,
}

impl DocumentBounds {
    pub fn of_lengths(lengths: &[usize]) -> Self {
        let positions = lengths.iter().flat_map(|&length| 0..length as u32).collect();
        Self { segments: Segments::of_counts(lengths), positions }
    }

    /// `[N]`
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    pub fn count(&self) -> usize {
        self.segments.count()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.segments.iter()
    }

    /// Rows of the longest document.
    pub fn longest(&self) -> usize {
        self.iter().map(|rows| rows.len()).max().unwrap_or(0)
    }
}
