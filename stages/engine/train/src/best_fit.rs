//! Best-fit packing: documents are cut only where they are longer than a sequence.
//!
//! Documents end to end cut almost every document in two where sequences are short, and its second half is learnt
//! without its beginning. Here a document longer than the context is cut into pieces of that length, and then each
//! piece, the longest first, goes into the fullest sequence that has room for it (Ding et al. 2024, "Fewer Truncations
//! Improve Language Modeling", §3; best-fit-decreasing bin packing). What stays empty is some tenths of a percent.
//!
//! Packing looks at some stretches of the corpus at a time, a *bundle*, so that neither its memory nor the places that
//! a sequence is read from grow with the corpus.

use crate::packing::Ragged;
use crate::recent::Recent;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Tokens of a bundle, at least; and sequences.
const BUNDLE: u64 = 1 << 20;
const SEQUENCES: u64 = 64;
/// Memory for the plans of bundles that were asked for last.
const PLANS: usize = 16 << 20;

/// Which pieces of documents are in which sequence.
#[derive(Debug)]
pub struct BestFit {
    context: usize,
    /// Tokens of every document, by stretch.
    lengths: Vec<Vec<u32>>,
    /// The last one is empty: the end.
    bundles: Vec<Bundle>,
    plans: Recent<Plan>,
}

#[derive(Clone, Debug)]
struct Bundle {
    stretches: Range<usize>,
    first_window: u64,
}

/// A piece of a document: rows that predict, one fewer than its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    stretch: u32,
    document: u32,
    start: u32,
    rows: u32,
}

/// The pieces of each sequence of a bundle.
type Plan = Vec<Vec<Piece>>;

impl BestFit {
    /// Sequences of at most `context` rows. `lengths`: tokens of every document, by stretch. A document of one token
    /// has nothing to predict, and is in no sequence.
    pub fn new(context: usize, lengths: Vec<Vec<u32>>) -> Self {
        let enough = BUNDLE.max(SEQUENCES * context as u64);
        let (mut ranges, mut start, mut tokens) = (Vec::new(), 0, 0);
        for (i, stretch) in lengths.iter().enumerate() {
            tokens += stretch.iter().map(|&length| u64::from(length)).sum::<u64>();
            if tokens >= enough || i + 1 == lengths.len() {
                ranges.push(start..i + 1);
                (start, tokens) = (i + 1, 0);
            }
        }
        let mut first_window = 0;
        let bundle = |stretches: Range<usize>| {
            let bundle = Bundle { stretches: stretches.clone(), first_window };
            first_window += plan(context, stretches, &lengths).len() as u64;
            bundle
        };
        let mut bundles: Vec<Bundle> = ranges.into_iter().map(bundle).collect();
        bundles.push(Bundle { stretches: lengths.len()..lengths.len(), first_window });
        Self { context, lengths, bundles, plans: Recent::new(PLANS) }
    }

    pub fn windows(&self) -> u64 {
        self.bundles.last().map_or(0, |end| end.first_window)
    }

    /// The pieces of documents in window `i`; one that goes on in another window has one token more, its last target.
    /// `load` gives a stretch.
    pub fn window<E>(&self, i: u64, mut load: impl FnMut(usize) -> Result<Arc<Ragged>, E>) -> Result<Ragged, E> {
        let bundle = self.bundles.partition_point(|bundle| bundle.first_window <= i) - 1;
        let Bundle { stretches, first_window } = &self.bundles[bundle];
        let plan = self.plans.get_or(bundle, || {
            let plan = plan(self.context, stretches.clone(), &self.lengths);
            let bytes = plan.iter().map(|window| size_of_val(&window[..]) + size_of_val(window)).sum();
            Ok((plan, bytes))
        })?;
        let mut pieces = Ragged::default();
        for &Piece { stretch, document, start, rows } in &plan[(i - first_window) as usize] {
            let stretch = load(stretch as usize)?;
            pieces.push(&[&stretch.list(document as usize)[start as usize..=(start + rows) as usize]]);
        }
        Ok(pieces)
    }
}

/// Packs the documents of some stretches.
fn plan(context: usize, stretches: Range<usize>, lengths: &[Vec<u32>]) -> Plan {
    let context = u32::try_from(context).unwrap_or(u32::MAX);
    let mut pieces = Vec::new();
    for stretch in stretches {
        for (document, length) in lengths[stretch].iter().enumerate() {
            let (mut start, mut left) = (0, length.saturating_sub(1));
            while left > 0 {
                let rows = left.min(context);
                pieces.push(Piece { stretch: stretch as u32, document: document as u32, start, rows });
                (start, left) = (start + rows, left - rows);
            }
        }
    }
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.rows)); // stable: equal ones keep the order of the corpus
    let mut windows: Plan = Vec::new();
    let mut open: BTreeSet<(u32, usize)> = BTreeSet::new(); // room, and which window
    for piece in pieces {
        let found = open.range((piece.rows, 0)..).next().copied();
        let (room, window) = match found {
            Some(found) => {
                open.remove(&found);
                found
            }
            None => {
                windows.push(Vec::new());
                (context, windows.len() - 1)
            }
        };
        windows[window].push(piece);
        if room > piece.rows {
            open.insert((room - piece.rows, window));
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_kernels::random;
    use std::convert::Infallible;

    /// Stretches of documents whose tokens are all different.
    fn corpus(case: u64, documents: u64, longest: u64) -> (Vec<Arc<Ragged>>, Vec<Vec<u32>>) {
        let (mut stretches, mut lengths, mut next) = (vec![Ragged::default()], vec![Vec::new()], 0);
        for document in 0..documents {
            if random::below(case, 2, document, 6) == 0 {
                stretches.push(Ragged::default());
                lengths.push(Vec::new());
            }
            let length = random::below(case, 1, document, longest) as u32;
            let ids: Vec<u32> = (next..next + length).collect();
            stretches.last_mut().unwrap().push(&[&ids]);
            lengths.last_mut().unwrap().push(length);
            next += length;
        }
        (stretches.into_iter().map(Arc::new).collect(), lengths)
    }

    fn windows(packed: &BestFit, stretches: &[Arc<Ragged>]) -> Vec<Ragged> {
        let load = |i: usize| Ok::<_, Infallible>(stretches[i].clone());
        (0..packed.windows()).map(|i| packed.window(i, load).unwrap()).collect()
    }

    #[test]
    fn every_pair_of_neighbours_is_packed_exactly_once_and_only_long_documents_are_cut() {
        for case in 0..20 {
            let (stretches, lengths) = corpus(case, 1 + case * 5, 40);
            for context in [1, 7, 16, 1000] {
                let packed = BestFit::new(context, lengths.clone());
                let windows = windows(&packed, &stretches);
                let mut found: Vec<(u32, u32)> = Vec::new();
                for window in &windows {
                    let rows: usize = window.lists().map(|piece| piece.len() - 1).sum();
                    assert!((1..=context).contains(&rows), "case {case}, context {context}: {rows} rows");
                    found.extend(window.lists().flat_map(|piece| piece.windows(2).map(|pair| (pair[0], pair[1]))));
                }
                found.sort_unstable();
                let documents = || stretches.iter().flat_map(|stretch| stretch.lists());
                let expected: Vec<(u32, u32)> =
                    documents().flat_map(|ids| ids.windows(2).map(|pair| (pair[0], pair[1]))).collect();
                assert_eq!(found, expected, "case {case}, context {context}");
                let cut = documents().map(|ids| ids.len().saturating_sub(1).div_ceil(context)).sum::<usize>();
                assert_eq!(windows.iter().map(|window| window.lists().count()).sum::<usize>(), cut);
            }
        }
    }

    #[test]
    fn little_of_the_sequences_stays_empty() {
        let (_, lengths) = corpus(7, 30_000, 300); // two bundles
        let rows: u64 = lengths.iter().flatten().map(|&length| u64::from(length).saturating_sub(1)).sum();
        let packed = BestFit::new(1024, lengths);
        assert!(packed.bundles.len() > 3, "{:?}", packed.bundles);
        let fill = rows as f64 / (1024 * packed.windows()) as f64;
        assert!(fill > 0.998, "{fill}");
    }

    #[test]
    fn pieces_go_where_the_least_room_is_left() {
        // rows 9, 7, 6, 3, 2, 1 into windows of 10: 9+1, 7+3, 6+2
        let packed = BestFit::new(10, vec![vec![4, 10, 3, 8, 2, 7]]);
        let plan = plan(10, 0..1, &packed.lengths);
        let rows: Vec<Vec<u32>> = plan.iter().map(|window| window.iter().map(|piece| piece.rows).collect()).collect();
        assert_eq!(rows, [vec![9, 1], vec![7, 3], vec![6, 2]]);
    }
}
