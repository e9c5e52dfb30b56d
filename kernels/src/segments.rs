//! Rows sorted by expert: segment e ends at `ends[e]`.
//!
//! The design lets segments begin at multiples of 128 rows, so that no FP8 tile spans two experts. Here segments are
//! dense, and FP8 tiles are cut at their ends instead: padding would turn a decode step of 16 rows into 128 rows per
//! expert.

use std::ops::Range;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    ends: Vec<usize>,
}

impl Segments {
    pub fn of_counts(counts: &[usize]) -> Self {
        let mut end = 0;
        let add = |&count: &usize| {
            end += count;
            end
        };
        Self { ends: counts.iter().map(add).collect() }
    }

    pub fn ends(&self) -> &[usize] {
        &self.ends
    }

    pub fn rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.ends.len()).map(|e| (if e == 0 { 0 } else { self.ends[e - 1] })..self.ends[e])
    }
}
