//! Rows sorted by expert: segment e ends at `ends[e]`.
//!
//! The ends are on the device, where the router counts them; the host knows how many segments and how many rows there
//! are, which is all that it needs to launch an operation.
//!
//! The design lets segments begin at multiples of 128 rows, so that no FP8 tile spans two experts. Here segments are
//! dense, and FP8 tiles are cut at their ends instead: padding would turn a decode step of 16 rows into 128 rows per
//! expert.

use crate::backend::Backend;
use crate::tensor::Tensor;
use std::ops::Range;

#[derive(Clone, Debug)]
pub struct Segments {
    ends: Tensor, // U32, [E]
    rows: usize,
}

impl Segments {
    /// Of so many rows each, on the host.
    pub fn of_counts(counts: &[usize]) -> Self {
        let mut end = 0;
        let add = |&count: &usize| {
            end += count as u32;
            end
        };
        let ends: Vec<u32> = counts.iter().map(add).collect();
        Self { ends: Tensor::new([counts.len()], &ends), rows: end as usize }
    }

    /// A copy on the device of `backend`.
    pub fn on(&self, backend: &dyn Backend) -> Self {
        Self { ends: backend.upload(&self.ends), rows: self.rows }
    }

    /// Of so many rows together, with U32 ends `[E]`.
    pub(crate) fn on_device(ends: Tensor, rows: usize) -> Self {
        Self { ends, rows }
    }

    /// U32, `[E]`
    pub fn ends(&self) -> &Tensor {
        &self.ends
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn host_ends(&self) -> Vec<usize> {
        self.ends.read::<u32>().iter().map(|&end| end as usize).collect()
    }

    /// The rows of each segment: for devices whose memory is the host's.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let ends = self.ends.read::<u32>();
        (0..ends.len()).map(|e| (if e == 0 { 0 } else { ends[e - 1] as usize })..ends[e] as usize)
    }
}
