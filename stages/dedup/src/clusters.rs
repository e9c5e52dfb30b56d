//! Which documents go because an earlier one is equal or nearly equal, and which document that is.
//!
//! Documents have numbers in input order, and the first of a group stays. By default a document goes only if it is
//! similar to one that stays. Groups can also be transitive, as FineWeb's are: then a chain of small steps joins
//! documents that are nothing alike.

use std::collections::{BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::minhash::{jaccard, similarity};

/// What is known of a document.
///
/// Of each hash the low 32 bits are kept: two different hashes look equal once in 4 billion, and memory halves. Only
/// the published order of clusters needs whole hashes; then the high half stands before the low one.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    /// Of the text with white space folded.
    digest: [u8; 32],
    /// Of the simplified text, numbers folded and as they are: equal and different where numbers alone differ.
    simple: [u64; 2],
    signature: Option<Box<[u32]>>,
}

impl Sketch {
    pub fn new(digest: [u8; 32], simple: [u64; 2], signature: Option<&[u64]>, keeps: Keeps) -> Self {
        let halves = |hash: u64| [(hash >> 32) as u32, hash as u32].into_iter().skip(2 - keeps.halves());
        Sketch { digest, simple, signature: signature.map(|s| s.iter().flat_map(|&hash| halves(hash)).collect()) }
    }

    /// As text: 64 hex digits of the digest, 32 of the simplified forms, then 8 of each half of a hash that is kept.
    pub fn to_hex(&self) -> String {
        let digest = self.digest.iter().map(|byte| format!("{byte:02x}"));
        let simple = self.simple.iter().map(|hash| format!("{hash:016x}"));
        let hashes = self.signature.iter().flatten().map(|hash| format!("{hash:08x}"));
        digest.chain(simple).chain(hashes).collect()
    }

    /// Reads what [`Sketch::to_hex`] wrote.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let (digest, rest) = hex.split_at_checked(64)?;
        let (simple, signature) = rest.split_at_checked(32)?;
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digest.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        let form = |range| u64::from_str_radix(simple.get(range)?, 16).ok();
        let simple = [form(0..16)?, form(16..32)?];
        if signature.len() % 8 != 0 {
            return None;
        }
        let hash = |i: usize| u32::from_str_radix(signature.get(8 * i..8 * i + 8)?, 16).ok();
        let hashes: Option<Box<[u32]>> = (0..signature.len() / 8).map(hash).collect();
        Some(Sketch { digest: bytes, simple, signature: hashes.filter(|hashes| !hashes.is_empty()) })
    }
}

/// The sketches of all documents, in input order.
#[derive(Debug, Default)]
pub struct Sketches {
    all: Vec<Sketch>,
}

impl Sketches {
    pub fn push(&mut self, sketch: Sketch) {
        self.all.push(sketch);
    }

    /// Whether two documents differ in their numbers and in nothing else but case, marks and accents.
    pub fn differ_in_numbers(&self, a: usize, b: usize) -> bool {
        let ([a, a_numbers], [b, b_numbers]) = (self.all[a].simple, self.all[b].simple);
        a == b && a_numbers != b_numbers
    }
}

/// Which document of a cluster stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keeps {
    /// The first.
    #[default]
    First,
    /// The one that datatrove keeps: the root of a union by size, over the bands in order and in each over the pairs of
    /// equal neighbours in the order of their hashes.
    Published,
}

impl Keeps {
    /// 32-bit halves of a hash that a sketch needs.
    fn halves(self) -> usize {
        match self {
            Keeps::First => 1,
            Keeps::Published => 2,
        }
    }
}

/// How pairs are found.
#[derive(Debug, Clone, Copy)]
pub struct Joining {
    /// Join documents of equal digests.
    pub exact: bool,
    /// Bands of a signature; documents that agree in one whole band are candidates.
    pub bands: usize,
    /// Similarity from which candidates are joined.
    pub jaccard: f64,
    /// Whether what is similar to a document that goes, goes with it.
    pub transitive: bool,
    /// Which document of a cluster stays; `Published` joins every candidate and nothing else.
    pub keeps: Keeps,
}

/// Why a document is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Duplicate {
    /// The document that stays.
    pub leader: usize,
    /// Whether the two texts are equal when white space is folded.
    pub exact: bool,
    /// Jaccard similarity to the leader: from their shingles where these are known, else estimated.
    pub similarity: f64,
}

/// The hashes of the shingles of some documents, sorted, by the document's number.
pub type ShingleSets = HashMap<usize, Vec<u64>>;

/// The documents that agree with another one in a whole band: the only ones whose shingles matter.
pub fn candidates(sketches: &Sketches, bands: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    each_run(&sketches.all, bands, |_, run| found.extend(run));
    found
}

/// For every document `None` if it stays, else why it is dropped.
pub fn duplicates(sketches: &Sketches, shingles: &ShingleSets, joining: Joining) -> Vec<Option<Duplicate>> {
    let pairs = Pairs { sketches: &sketches.all, shingles, halves: joining.keeps.halves() };
    match (joining.keeps, joining.transitive) {
        (Keeps::Published, _) => published(&pairs, joining.bands),
        (Keeps::First, true) => transitive(&pairs, joining),
        (Keeps::First, false) => similar_to_a_leader(&pairs, joining),
    }
}

/// What can be asked of two documents.
struct Pairs<'a> {
    sketches: &'a [Sketch],
    shingles: &'a ShingleSets,
    halves: usize,
}

impl Pairs<'_> {
    fn similarity(&self, a: usize, b: usize) -> f64 {
        if self.sketches[a].digest == self.sketches[b].digest {
            return 1.0;
        }
        if let (Some(a), Some(b)) = (self.shingles.get(&a), self.shingles.get(&b)) {
            return jaccard(a, b);
        }
        match (&self.sketches[a].signature, &self.sketches[b].signature) {
            (Some(a), Some(b)) => {
                let (a, b): (Vec<_>, Vec<_>) = (a.chunks(self.halves).collect(), b.chunks(self.halves).collect());
                similarity(&a, &b)
            }
            _ => 0.0,
        }
    }

    fn duplicate(&self, i: usize, leader: usize) -> Duplicate {
        let exact = self.sketches[leader].digest == self.sketches[i].digest;
        Duplicate { leader, exact, similarity: self.similarity(leader, i) }
    }
}

/// Calls `take` with each band and the documents, in order, of each run of equal ones in it that has more than one.
fn each_run(sketches: &[Sketch], bands: usize, mut take: impl FnMut(usize, &[usize])) {
    let signed: Vec<(usize, &[u32])> =
        sketches.iter().enumerate().filter_map(|(i, s)| Some((i, s.signature.as_deref()?))).collect();
    let Some(&(_, first)) = signed.first() else { return };
    let width = first.len() / bands;
    for band in 0..bands {
        let of = |at: usize| &signed[at].1[band * width..(band + 1) * width];
        let mut order: Vec<usize> = (0..signed.len()).collect();
        order.sort_unstable_by(|&a, &b| of(a).cmp(of(b)).then(a.cmp(&b)));
        for run in order.chunk_by(|&a, &b| of(a) == of(b)).filter(|run| run.len() > 1) {
            let documents: Vec<usize> = run.iter().map(|&at| signed[at].0).collect();
            take(band, &documents);
        }
    }
}

/// A document goes if an earlier one that stays has the same digest, or agrees in a band and is similar enough.
fn similar_to_a_leader(pairs: &Pairs<'_>, joining: Joining) -> Vec<Option<Duplicate>> {
    let n = pairs.sketches.len();
    // Of each document the runs that it is in, over all bands.
    let mut runs_of: Vec<Vec<u32>> = vec![Vec::new(); n];
    let mut runs = 0u32;
    each_run(pairs.sketches, joining.bands, |_, run| {
        run.iter().for_each(|&i| runs_of[i].push(runs));
        runs += 1;
    });
    // Of each run the documents that stay.
    let mut leaders: Vec<Vec<usize>> = vec![Vec::new(); runs as usize];
    let mut by_digest: HashMap<&[u8; 32], usize> = HashMap::new();
    let mut outcome: Vec<Option<Duplicate>> = vec![None; n];
    for i in 0..n {
        let equal = by_digest.get(&pairs.sketches[i].digest).copied();
        // An equal text that went had its reason, which is this one's as well.
        let mut leader = equal.map(|first| outcome[first].map_or(first, |gone: Duplicate| gone.leader));
        if leader.is_none() {
            let near: BTreeSet<usize> =
                runs_of[i].iter().flat_map(|&run| leaders[run as usize].iter().copied()).collect();
            leader = near.into_iter().find(|&other| pairs.similarity(other, i) >= joining.jaccard);
        }
        match leader {
            Some(leader) => outcome[i] = Some(pairs.duplicate(i, leader)),
            None => runs_of[i].iter().for_each(|&run| leaders[run as usize].push(i)),
        }
        if joining.exact {
            by_digest.entry(&pairs.sketches[i].digest).or_insert(i);
        }
    }
    outcome
}

/// Whole groups go but for their first documents. The result does not depend on the order in which pairs are found: a
/// union always puts the later root under the earlier one.
fn transitive(pairs: &Pairs<'_>, joining: Joining) -> Vec<Option<Duplicate>> {
    let n = pairs.sketches.len();
    let mut clusters = Clusters::new(n);
    if joining.exact {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_unstable_by_key(|&i| (pairs.sketches[i].digest, i));
        for run in order.chunk_by(|&a, &b| pairs.sketches[a].digest == pairs.sketches[b].digest) {
            run[1..].iter().for_each(|&i| clusters.join(run[0], i));
        }
    }
    each_run(pairs.sketches, joining.bands, |_, run| {
        // Documents of the run that are near none of the earlier ones; usually one.
        let mut fronts: Vec<usize> = Vec::new();
        for &i in run {
            let mut near = |&front: &usize| {
                clusters.root(front) == clusters.root(i) || pairs.similarity(front, i) >= joining.jaccard
            };
            match fronts.iter().copied().find(|front| near(front)) {
                Some(front) => clusters.join(front, i),
                None => fronts.push(i),
            }
        }
    });
    let leaders: Vec<usize> = (0..n).map(|i| clusters.root(i)).collect();
    leaders.into_iter().enumerate().map(|(i, leader)| (leader != i).then(|| pairs.duplicate(i, leader))).collect()
}

/// Whole groups but for the document that datatrove keeps of each.
fn published(pairs: &Pairs<'_>, bands: usize) -> Vec<Option<Duplicate>> {
    let n = pairs.sketches.len();
    let mut clusters = Clusters::new(n);
    let mut sizes = vec![1u32; n];
    each_run(pairs.sketches, bands, |_, run| {
        for pair in run.windows(2) {
            let (a, b) = (clusters.root(pair[0]), clusters.root(pair[1]));
            if a != b {
                let (root, other) = if sizes[a] < sizes[b] { (b, a) } else { (a, b) };
                clusters.parent[other] = root;
                sizes[root] += sizes[other];
            }
        }
    });
    let leaders: Vec<usize> = (0..n).map(|i| clusters.root(i)).collect();
    leaders.into_iter().enumerate().map(|(i, leader)| (leader != i).then(|| pairs.duplicate(i, leader))).collect()
}

/// Union-find; [`Clusters::join`] makes a cluster's smallest number its root.
struct Clusters {
    parent: Vec<usize>,
}

impl Clusters {
    fn new(n: usize) -> Self {
        Clusters { parent: (0..n).collect() }
    }

    fn root(&mut self, mut i: usize) -> usize {
        while self.parent[i] != i {
            self.parent[i] = self.parent[self.parent[i]]; // halves the path for the next time
            i = self.parent[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOINING: Joining = Joining { exact: true, bands: 2, jaccard: 0.0, transitive: true, keeps: Keeps::First };

    fn sketches(documents: &[(u8, Option<[u64; 4]>)]) -> Sketches {
        let mut sketches = Sketches::default();
        for &(digest, signature) in documents {
            sketches.push(Sketch::new([digest; 32], [0, 0], signature.as_ref().map(|s| &s[..]), Keeps::First));
        }
        sketches
    }

    fn leaders(sketches: &Sketches, joining: Joining) -> Vec<Option<usize>> {
        duplicates(sketches, &ShingleSets::new(), joining).into_iter().map(|d| d.map(|d| d.leader)).collect()
    }

    #[test]
    fn a_sketch_is_read_as_it_is_written() {
        let with = Sketch::new([7; 32], [1, u64::MAX], Some(&[1, u64::MAX, 0x1_2345_6789]), Keeps::First);
        let without = Sketch::new([0xab; 32], [0, 7], None, Keeps::Published);
        let whole = Sketch::new([9; 32], [1, 2], Some(&[1 << 32, 7]), Keeps::Published);
        for sketch in [with, without, whole] {
            assert_eq!(Sketch::from_hex(&sketch.to_hex()), Some(sketch));
        }
        for broken in ["", "ab", &"0".repeat(97), &"x".repeat(96), &format!("{}é", "0".repeat(95))] {
            assert_eq!(Sketch::from_hex(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_document_goes_only_for_one_that_stays_unless_groups_are_transitive() {
        // 1 is like 0, 2 like 1, and 2 is nothing like 0.
        let found = sketches(&[(0, Some([1, 1, 1, 1])), (1, Some([1, 1, 5, 5])), (2, Some([7, 7, 5, 5]))]);
        let joining = Joining { transitive: false, ..JOINING };
        assert_eq!(leaders(&found, joining), [None, Some(0), None]);
        assert_eq!(leaders(&found, JOINING), [None, Some(0), Some(0)]);
        assert_eq!(candidates(&found, 2), BTreeSet::from([0, 1, 2]));
        // Known shingles decide, not the estimate.
        let shingles = ShingleSets::from([(0, vec![1, 2, 3]), (1, vec![2, 3, 4])]);
        let strict = Joining { jaccard: 0.51, ..joining };
        assert_eq!(duplicates(&found, &shingles, strict)[1], None);
        let half = duplicates(&found, &shingles, Joining { jaccard: 0.5, ..joining })[1].unwrap();
        assert_eq!(half.similarity, 0.5);
    }

    #[test]
    fn a_copy_of_what_went_goes_with_it() {
        let found = sketches(&[(0, Some([1, 1, 1, 1])), (1, Some([1, 1, 5, 5])), (1, Some([1, 1, 5, 5]))]);
        let joining = Joining { transitive: false, ..JOINING };
        let all = duplicates(&found, &ShingleSets::new(), joining);
        assert_eq!(all[2], all[1]);
        assert_eq!(all[2].map(|d| (d.leader, d.exact, d.similarity)), Some((0, false, 0.5)));
    }

    #[test]
    fn the_first_document_of_a_group_stays() {
        // 3 is like 2 in its first band, 1 is like 2 in its second: one cluster of three, led by 1.
        let found = sketches(&[
            (0, Some([1, 1, 1, 1])),
            (1, Some([9, 9, 5, 5])),
            (2, Some([7, 7, 5, 5])),
            (3, Some([7, 7, 3, 3])),
        ]);
        assert_eq!(leaders(&found, JOINING), [None, None, Some(1), Some(1)]);
        let last = duplicates(&found, &ShingleSets::new(), JOINING)[3].unwrap();
        assert_eq!(last, Duplicate { leader: 1, exact: false, similarity: 0.0 });
    }

    #[test]
    fn candidates_below_the_threshold_stay() {
        let found = sketches(&[(0, Some([1, 2, 3, 4])), (1, Some([1, 2, 3, 5])), (2, Some([1, 2, 8, 9]))]);
        assert_eq!(leaders(&found, Joining { jaccard: 0.7, ..JOINING }), [None, Some(0), None]);
        assert_eq!(leaders(&found, JOINING), [None, Some(0), Some(0)]);
    }

    #[test]
    fn equal_texts_are_duplicates_even_without_a_signature() {
        let found = sketches(&[(5, None), (6, None), (5, None)]);
        let all = duplicates(&found, &ShingleSets::new(), JOINING);
        assert_eq!(all[2], Some(Duplicate { leader: 0, exact: true, similarity: 1.0 }));
        assert_eq!(leaders(&found, Joining { exact: false, ..JOINING }), [None, None, None]);
    }

    #[test]
    fn groups_are_those_of_the_obvious_search() {
        let mut state = 1u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for _ in 0..50 {
            let documents: Vec<(u8, Option<[u64; 4]>)> =
                (0..40).map(|_| (draw(60) as u8, Some([draw(6), draw(6), draw(6), draw(6)]))).collect();
            let found = sketches(&documents);
            // Transitive closure, by lowering labels until nothing changes.
            let mut label: Vec<usize> = (0..40).collect();
            let linked = |a: usize, b: usize| {
                let (x, y) = (documents[a].1.unwrap(), documents[b].1.unwrap());
                documents[a].0 == documents[b].0 || x[..2] == y[..2] || x[2..] == y[2..]
            };
            loop {
                let before = label.clone();
                for a in 0..40 {
                    for b in 0..40 {
                        if linked(a, b) {
                            label[b] = label[a].min(label[b]);
                        }
                    }
                }
                if label == before {
                    break;
                }
            }
            let expected: Vec<Option<usize>> =
                label.into_iter().enumerate().map(|(i, l)| (i != l).then_some(l)).collect();
            assert_eq!(leaders(&found, JOINING), expected);
        }
    }
}
