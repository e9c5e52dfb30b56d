//! Clusters of equal and nearly equal documents, and which document of each stays.
//!
//! Documents have numbers in input order. Whatever the order in which pairs are found, a cluster's leader is its first
//! document: a union always puts the later root under the earlier one. So the result depends on the documents alone.

use crate::minhash::similarity;

/// What is known of a document: the digest of its folded text, and its signature if it has one.
///
/// Of each hash the low 32 bits are kept: two different hashes look equal once in 4 billion, and memory halves.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    digest: [u8; 32],
    signature: Option<Box<[u32]>>,
}

impl Sketch {
    pub fn new(digest: [u8; 32], signature: Option<&[u64]>) -> Self {
        Sketch { digest, signature: signature.map(|s| s.iter().map(|&hash| hash as u32).collect()) }
    }

    /// As text: 64 hex digits of the digest, then 8 of each hash.
    pub fn to_hex(&self) -> String {
        let digest = self.digest.iter().map(|byte| format!("{byte:02x}"));
        digest.chain(self.signature.iter().flatten().map(|hash| format!("{hash:08x}"))).collect()
    }

    /// Reads what [`Sketch::to_hex`] wrote.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let (digest, signature) = hex.split_at_checked(64)?;
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digest.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        if signature.len() % 8 != 0 {
            return None;
        }
        let hash = |i: usize| u32::from_str_radix(signature.get(8 * i..8 * i + 8)?, 16).ok();
        let hashes: Option<Box<[u32]>> = (0..signature.len() / 8).map(hash).collect();
        Some(Sketch { digest: bytes, signature: hashes.filter(|hashes| !hashes.is_empty()) })
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
}

/// How pairs are found.
#[derive(Debug, Clone, Copy)]
pub struct Joining {
    /// Join documents of equal digests.
    pub exact: bool,
    /// Bands of a signature; documents that agree in one whole band are candidates.
    pub bands: usize,
    /// Estimated similarity from which candidates are joined.
    pub jaccard: f64,
}

/// Why a document is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Duplicate {
    /// The document of the cluster that stays.
    pub leader: usize,
    /// Whether an earlier document has the same normalised text.
    pub exact: bool,
    /// Estimated Jaccard similarity to the leader.
    pub similarity: f64,
}

/// For every document `None` if it stays, else why it is dropped.
pub fn duplicates(sketches: &Sketches, joining: Joining) -> Vec<Option<Duplicate>> {
    let sketches = &sketches.all;
    let n = sketches.len();
    let mut clusters = Clusters::new(n);
    let mut is_repeat = vec![false; n];
    if joining.exact {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_unstable_by_key(|&i| (sketches[i].digest, i));
        for run in order.chunk_by(|&a, &b| sketches[a].digest == sketches[b].digest) {
            for &i in &run[1..] {
                is_repeat[i] = true;
                clusters.join(run[0], i);
            }
        }
    }
    join_candidates(sketches, joining, &mut clusters);
    let outcome = |i: usize, leader: usize| Duplicate {
        leader,
        exact: is_repeat[i],
        similarity: match (&sketches[leader].signature, &sketches[i].signature) {
            _ if sketches[leader].digest == sketches[i].digest => 1.0,
            (Some(a), Some(b)) => similarity(a, b),
            _ => 0.0,
        },
    };
    (0..n).map(|i| Some(clusters.root(i)).filter(|&leader| leader != i).map(|leader| outcome(i, leader))).collect()
}

/// Joins documents that agree in a whole band and whose signatures agree enough (locality-sensitive hashing).
fn join_candidates(sketches: &[Sketch], joining: Joining, clusters: &mut Clusters) {
    let signed: Vec<(usize, &[u32])> =
        sketches.iter().enumerate().filter_map(|(i, s)| Some((i, s.signature.as_deref()?))).collect();
    let Some(&(_, first)) = signed.first() else { return };
    let width = first.len() / joining.bands;
    for band in 0..joining.bands {
        let of = |at: usize| &signed[at].1[band * width..(band + 1) * width];
        let mut order: Vec<usize> = (0..signed.len()).collect();
        order.sort_unstable_by(|&a, &b| of(a).cmp(of(b)).then(a.cmp(&b)));
        for run in order.chunk_by(|&a, &b| of(a) == of(b)).filter(|run| run.len() > 1) {
            // Documents of the run that are near none of the earlier ones; usually one.
            let mut fronts: Vec<(usize, &[u32])> = Vec::new();
            for &at in run {
                let (i, signature) = signed[at];
                let mut near = |front: usize, other: &[u32]| {
                    clusters.root(front) == clusters.root(i) || similarity(other, signature) >= joining.jaccard
                };
                match fronts.iter().find(|&&(front, other)| near(front, other)) {
                    Some(&(front, _)) => clusters.join(front, i),
                    None => fronts.push((i, signature)),
                }
            }
        }
    }
}

/// Union-find in which a cluster's root is its smallest number.
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

    const JOINING: Joining = Joining { exact: true, bands: 2, jaccard: 0.0 };

    fn sketches(documents: &[(u8, Option<[u64; 4]>)]) -> Sketches {
        let mut sketches = Sketches::default();
        for &(digest, signature) in documents {
            sketches.push(Sketch::new([digest; 32], signature.as_ref().map(|s| &s[..])));
        }
        sketches
    }

    fn leaders(sketches: &Sketches, joining: Joining) -> Vec<Option<usize>> {
        duplicates(sketches, joining).into_iter().map(|d| d.map(|d| d.leader)).collect()
    }

    #[test]
    fn a_sketch_is_read_as_it_is_written() {
        let with = Sketch::new([7; 32], Some(&[1, u64::MAX, 0x1_2345_6789]));
        let without = Sketch::new([0xab; 32], None);
        for sketch in [with, without] {
            assert_eq!(Sketch::from_hex(&sketch.to_hex()), Some(sketch));
        }
        for broken in ["", "ab", &"0".repeat(65), &"x".repeat(64), &format!("{}é", "0".repeat(63))] {
            assert_eq!(Sketch::from_hex(broken), None, "{broken:?}");
        }
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
        let last = duplicates(&found, JOINING)[3].unwrap();
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
        let all = duplicates(&found, JOINING);
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
