//! Where the documents of a packed batch begin and end: attention does not cross these bounds.

use crate::backend::Backend;
use crate::tensor::Tensor;
use std::ops::{Deref, Range};

/// The rows of a document are neighbours; a row's position counts from the start of its document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentBounds {
    ends: Vec<usize>,
    rows: usize,
}

impl DocumentBounds {
    pub fn of_lengths(lengths: &[usize]) -> Self {
        let mut rows = 0;
        let add = |&length: &usize| {
            rows += length;
            rows
        };
        Self { ends: lengths.iter().map(add).collect(), rows }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.ends.len()).map(|d| (if d == 0 { 0 } else { self.ends[d - 1] })..self.ends[d])
    }

    /// Rows of the longest document.
    pub fn longest(&self) -> usize {
        self.iter().map(|rows| rows.len()).max().unwrap_or(0)
    }
}

/// The bounds as operations read them: on the host, which launches by them, and on the device.
#[derive(Clone, Debug)]
pub struct Documents {
    bounds: DocumentBounds,
    ends: Tensor,      // U32, one per document
    positions: Tensor, // U32, [N]
}

impl Documents {
    pub fn new(backend: &dyn Backend, bounds: DocumentBounds) -> Self {
        let ends: Vec<u32> = bounds.iter().map(|rows| rows.end as u32).collect();
        let positions: Vec<u32> = bounds.iter().flat_map(|rows| 0..rows.len() as u32).collect();
        let [ends, positions] = [ends, positions].map(|x| backend.upload(&Tensor::new([x.len()], &x)));
        Self { bounds, ends, positions }
    }

    /// U32, one per document.
    pub fn ends(&self) -> &Tensor {
        &self.ends
    }

    /// U32, `[N]`
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }
}

impl Deref for Documents {
    type Target = DocumentBounds;

    fn deref(&self) -> &DocumentBounds {
        &self.bounds
    }
}
