//! Packing: documents end to end, cut into windows of one length; attention and loss stay inside a document.
//!
//! A corpus may be larger than memory, so it is given in *stretches*, some whole documents each, that are loaded when a
//! window needs them. Only how many tokens each stretch has is known all the time.

use crate::best_fit::BestFit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How documents become sequences of one length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// End to end: no sequence but the last has room left, and most documents are cut where one ends.
    #[default]
    Concatenate,
    /// Only documents longer than a sequence are cut, and what a sequence has room for is looked for among many (Ding
    /// et al. 2024, "Fewer Truncations Improve Language Modeling").
    BestFit,
}

/// A corpus that was packed.
#[derive(Debug)]
pub enum Packed {
    Concatenated(Concatenated),
    BestFit(BestFit),
}

impl Packed {
    /// `lengths`: tokens of every document, by stretch.
    pub fn new(packing: Packing, context: usize, lengths: Vec<Vec<u32>>) -> Self {
        match packing {
            Packing::Concatenate => {
                let tokens = |stretch: Vec<u32>| stretch.into_iter().map(u64::from).sum();
                Self::Concatenated(Concatenated::new(context, lengths.into_iter().map(tokens)))
            }
            Packing::BestFit => Self::BestFit(BestFit::new(context, lengths)),
        }
    }

    pub fn windows(&self) -> u64 {
        match self {
            Self::Concatenated(packed) => packed.windows(),
            Self::BestFit(packed) => packed.windows(),
        }
    }

    /// The pieces of documents in window `i`. `load` gives a stretch.
    pub fn window<E>(&self, i: u64, load: impl FnMut(usize) -> Result<Arc<Ragged>, E>) -> Result<Ragged, E> {
        match self {
            Self::Concatenated(packed) => packed.window(i, load),
            Self::BestFit(packed) => packed.window(i, load),
        }
    }
}

/// Lists of tokens of different lengths, end to end: documents of a stretch, or pieces of documents in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ragged {
    tokens: Vec<u32>,
    ends: Vec<usize>,
}

impl Ragged {
    /// With room for so many.
    pub fn with_capacity(tokens: usize, lists: usize) -> Self {
        Self { tokens: Vec::with_capacity(tokens), ends: Vec::with_capacity(lists) }
    }

    /// One more list, the concatenation of `parts`.
    pub fn push(&mut self, parts: &[&[u32]]) {
        parts.iter().for_each(|part| self.tokens.extend_from_slice(part));
        self.ends.push(self.tokens.len());
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn lists(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.tokens[start..end])
    }

    /// List `i`.
    pub fn list(&self, i: usize) -> &[u32] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.tokens[start..self.ends[i]]
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        4 * self.tokens.capacity() + 8 * self.ends.capacity()
    }

    /// Appends the pieces that its lists have in `start..end`; one that goes on has one token more.
    fn pieces(&self, mut start: usize, end: usize, to: &mut Ragged) {
        let mut list = self.ends.partition_point(|&e| e <= start);
        while start < end {
            let list_end = self.ends[list];
            let stop = if list_end > end { end + 1 } else { list_end };
            if stop - start > 1 {
                to.push(&[&self.tokens[start..stop]]);
            }
            start = list_end;
            list += 1;
        }
    }
}

/// Where the stretches of a corpus lie when all its documents stand end to end.
#[derive(Clone, Debug)]
pub struct Concatenated {
    context: u64,
    /// First token of every stretch, and the end of the last.
    starts: Vec<u64>,
}

impl Concatenated {
    /// Windows of `context` tokens over stretches of so many tokens.
    pub fn new(context: usize, tokens: impl IntoIterator<Item = u64>) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        starts.extend(tokens.into_iter().map(|tokens| {
            end += tokens;
            end
        }));
        Self { context: context as u64, starts }
    }

    /// The last may be shorter than the others.
    pub fn windows(&self) -> u64 {
        self.starts.last().map_or(0, |end| end.div_ceil(self.context))
    }

    /// The pieces of documents in window `i`. A piece that goes on in the next window ends with that window's first
    /// token, which is its last target: every pair of neighbours within a document is in exactly one window. `load`
    /// gives a stretch.
    pub fn window<E>(&self, i: u64, mut load: impl FnMut(usize) -> Result<Arc<Ragged>, E>) -> Result<Ragged, E> {
        let corpus_end = self.starts.last().copied().unwrap_or_default();
        let (mut start, end) = (i * self.context, ((i + 1) * self.context).min(corpus_end));
        let mut pieces = Ragged::default();
        let mut stretch = self.starts.partition_point(|&first| first <= start) - 1;
        while start < end {
            let (first, next) = (self.starts[stretch], self.starts[stretch + 1]);
            let stop = end.min(next);
            load(stretch)?.pieces((start - first) as usize, (stop - first) as usize, &mut pieces);
            start = stop;
            stretch += 1;
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_kernels::random;
    use std::convert::Infallible;

    #[test]
    fn every_pair_of_neighbours_is_packed_exactly_once() {
        for case in 0..20 {
            let (mut stretches, mut expected, mut next) = (vec![Ragged::default()], Vec::new(), 0);
            for document in 0..1 + case * 3 {
                if random::below(case, 2, document, 4) == 0 {
                    stretches.push(Ragged::default()); // now and then an empty one
                }
                let length = random::below(case, 1, document, 40) as u32;
                let ids: Vec<u32> = (next..next + length).collect();
                expected.extend(ids.windows(2).map(|pair| (pair[0], pair[1])));
                let (front, back) = ids.split_at(ids.len() / 2);
                stretches.last_mut().unwrap().push(&[front, back]);
                next += length;
            }
            let stretches: Vec<Arc<Ragged>> = stretches.into_iter().map(Arc::new).collect();
            for context in [1, 7, 16, 1000] {
                let packed = Concatenated::new(context, stretches.iter().map(|s| s.tokens().len() as u64));
                let mut found = Vec::new();
                for i in 0..packed.windows() {
                    let window = packed.window(i, |stretch| Ok::<_, Infallible>(stretches[stretch].clone())).unwrap();
                    let rows: usize = window.lists().map(|piece| piece.len() - 1).sum();
                    assert!(rows <= context, "case {case}, context {context}: {rows} rows");
                    found.extend(window.lists().flat_map(|piece| piece.windows(2).map(|pair| (pair[0], pair[1]))));
                }
                assert_eq!(found, expected, "case {case}, context {context}");
            }
        }
    }

    #[test]
    fn a_window_loads_only_the_stretches_that_it_lies_in() {
        let mut stretch = Ragged::default();
        stretch.push(&[&[1, 2, 3, 4]]);
        let stretch = Arc::new(stretch);
        let packed = Concatenated::new(4, [4; 100]);
        let mut loaded = Vec::new();
        let window = packed.window(57, |i| {
            loaded.push(i);
            Ok::<_, Infallible>(stretch.clone())
        });
        assert_eq!((window.unwrap(), loaded), (stretch.as_ref().clone(), vec![57]));
    }
}
