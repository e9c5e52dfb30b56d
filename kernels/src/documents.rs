//! Which rows of a packed batch belong together: attention looks back within a document and no further.

use crate::segments::Segments;
use std::ops::Range;

/// Rows lie document by document; a row's position counts from the start of its document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    segments: Segments,
    positions: Vec<u32>,
}

impl Documents {
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
