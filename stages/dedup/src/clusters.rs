//! Which documents go because an earlier one is equal or nearly equal, and which document that is.
//!
//! Documents have numbers in input order, or ranks by another rule (`ranks.rs`), and the first of a group stays. By
//! default a document goes only if it is similar to one that stays. Groups can also be transitive, as FineWeb's are:
//! then a chain of small steps joins documents that are nothing alike.
//!
//! Documents are taken in order, and nothing is known of them but the links between those that agree in a band. What a
//! document must know of earlier ones comes to it as messages along these links, through a queue that lies in scratch
//! where it is larger than memory (time-forward processing; Chiang et al. 1995). Transitive groups take 4 bytes of
//! memory for each document as well, or 8 beyond four billion.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use smelt_stage::Error;
use smelt_stage::sort::Queue;

use crate::bands::Link;

/// How pairs are found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joining {
    /// The band in which all agree whose texts are equal. The next one is that of equal URLs.
    pub exact: u16,
    /// Similarity from which candidates are joined.
    pub jaccard: f64,
    /// Whether what is similar to a document that goes, goes with it.
    pub transitive: bool,
    /// Documents before this one stay, whatever they are like.
    pub seen: u64,
}

/// A document that goes, and the one that stays for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pair {
    pub document: u64,
    pub leader: u64,
    /// Jaccard similarity of their shingles, where it was asked for and both have some.
    pub similarity: Option<f64>,
}

/// Tells the similarity of two documents.
pub(crate) type Similarity<'a> = &'a mut dyn FnMut(u64, u64) -> Result<Option<f64>, Error>;

/// Calls `take` with each document that goes, in order. `links`: packed, in order; `documents`: how many there are;
/// `memory`: bytes for messages on their way; `similarity` is asked if `jaccard` is above 0.
pub(crate) fn duplicates(
    links: impl Iterator<Item = Result<u128, Error>>,
    documents: u64,
    joining: Joining,
    similarity: Similarity,
    (memory, scratch): (usize, &Path),
    mut take: impl FnMut(Pair) -> Result<(), Error>,
) -> Result<(), Error> {
    let asks = joining.jaccard > 0.0;
    if !joining.transitive {
        return each(links, (memory, scratch), |document, met| {
            let leader = match met.equal(joining.exact) {
                _ if document < joining.seen => None,
                Some(leader) => Some(leader),
                None if asks => met.first_similar(joining, similarity)?,
                None => met.messages.iter().map(|message| message.other).min(),
            };
            // Of documents that were seen many may be alike, and all of them stay. One of them speaks for the others
            // where no similarity is asked for, and for its copies.
            let is_copy = document < joining.seen && met.equal(joining.exact).is_some();
            met.pass_on(joining.exact, leader.unwrap_or(document), |band, is_first| {
                leader.is_none() && if asks && band < joining.exact { !is_copy } else { is_first }
            });
            let Some(leader) = leader else { return Ok(()) };
            let similarity = if asks { similarity(leader, document)? } else { None };
            take(Pair { document, leader, similarity })
        });
    }
    let is_enough = |similarity: Option<f64>| similarity.is_some_and(|similarity| similarity >= joining.jaccard);
    let mut clusters = Clusters::new(documents);
    if asks {
        each(links, (memory, scratch), |document, met| {
            if let Some(leader) = met.equal(joining.exact) {
                clusters.join(leader, document);
            }
            // Of each band the first of its documents that are near none before them; usually there is one.
            let mut fronts = BTreeSet::new();
            for band in met.bands().filter(|&band| band != joining.exact) {
                let mut front = None;
                for message in met.messages.iter().filter(|message| message.band == band) {
                    if band > joining.exact || is_enough(similarity(message.other, document)?) {
                        front = Some(message.other);
                        break;
                    }
                }
                match front {
                    Some(front) => clusters.join(front, document),
                    None => drop(fronts.insert(band)),
                }
            }
            met.pass_on(joining.exact, document, |band, _| fronts.contains(&band));
            Ok(())
        })?;
    } else {
        for link in links {
            let link = Link::unpack(link?);
            clusters.join(link.document, link.other);
        }
    }
    for document in joining.seen..documents {
        let leader = clusters.root(document);
        if leader != document {
            let similarity = if asks { similarity(leader, document)? } else { None };
            take(Pair { document, leader, similarity })?;
        }
    }
    Ok(())
}

/// What a document meets: links to later documents, and messages from earlier ones.
#[derive(Debug, Default)]
struct Met {
    links: Vec<Link>,
    /// In order: by band, then by leader.
    messages: Vec<Link>,
    document: u64,
    sent: Vec<Link>,
}

impl Met {
    /// The document that stays for an earlier one of the same text.
    fn equal(&self, exact: u16) -> Option<u64> {
        self.messages.iter().find(|message| message.band == exact).map(|message| message.other)
    }

    /// The first leader that has the same URL or is similar enough.
    fn first_similar(&self, joining: Joining, similarity: Similarity) -> Result<Option<u64>, Error> {
        // Of each leader the highest band.
        let leaders: BTreeMap<u64, u16> = self.messages.iter().map(|message| (message.other, message.band)).collect();
        for (leader, band) in leaders {
            let is_same_page = band > joining.exact;
            if is_same_page || similarity(leader, self.document)?.is_some_and(|s| s >= joining.jaccard) {
                return Ok(Some(leader));
            }
        }
        Ok(None)
    }

    /// The bands in which it agrees with any document.
    fn bands(&self) -> impl Iterator<Item = u16> {
        let bands: BTreeSet<u16> = self.links.iter().chain(&self.messages).map(|link| link.band).collect();
        bands.into_iter()
    }

    /// Sends what is known of each band to its next document: the leaders that have come, and this document if it
    /// `leads` there, which is asked with the band and whether no leader has come. The first of equal texts tells the
    /// others who `stays`.
    fn pass_on(&mut self, exact: u16, stays: u64, leads: impl Fn(u16, bool) -> bool) {
        for link in &self.links {
            let mut send = |other| self.sent.push(Link { document: link.other, band: link.band, other });
            let mut known = self.messages.iter().filter(|message| message.band == link.band).peekable();
            let is_first = known.peek().is_none();
            known.for_each(|message| send(message.other));
            match link.band == exact {
                true if is_first => send(stays),
                false if leads(link.band, is_first) => send(self.document),
                _ => {}
            }
        }
    }
}

/// Calls `take` with each document that has links or messages, in order; what it passes on comes to later ones.
fn each(
    links: impl Iterator<Item = Result<u128, Error>>,
    (memory, scratch): (usize, &Path),
    mut take: impl FnMut(u64, &mut Met) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut links = links.map(|link| link.map(Link::unpack)).peekable();
    let mut queue: Queue<u128> = Queue::new(memory, scratch);
    let mut met = Met::default();
    loop {
        let linked = match links.peek() {
            Some(Ok(link)) => Some(link.document),
            Some(Err(_)) => return links.next().expect("it was seen").map(drop),
            None => None,
        };
        let told = queue.peek().map(|&message| Link::unpack(message).document);
        let Some(document) = linked.into_iter().chain(told).min() else { return Ok(()) };
        (met.document, met.links, met.messages) =
            (document, std::mem::take(&mut met.links), std::mem::take(&mut met.messages));
        met.links.clear();
        met.messages.clear();
        while let Some(Ok(link)) = links.next_if(|link| link.as_ref().is_ok_and(|link| link.document == document)) {
            met.links.push(link);
        }
        while queue.peek().is_some_and(|&message| Link::unpack(message).document == document) {
            met.messages.extend(queue.pop()?.map(Link::unpack));
        }
        take(document, &mut met)?;
        met.sent.drain(..).try_for_each(|message| queue.push(message.pack()))?;
    }
}

/// The clusters as they are published: of all candidates, with the root of a union by size as the one that stays.
#[derive(Debug)]
pub(crate) struct Published {
    clusters: Clusters,
    sizes: Vec<u32>,
}

impl Published {
    pub(crate) fn new(documents: u64) -> Self {
        Self { clusters: Clusters::new(documents), sizes: vec![1; documents as usize] }
    }

    /// Links come by band, and in a band in the order of hashes.
    pub(crate) fn join(&mut self, link: Link) {
        let (a, b) = (self.clusters.root(link.document), self.clusters.root(link.other));
        if a != b {
            let (root, other) = if self.sizes[a as usize] < self.sizes[b as usize] { (b, a) } else { (a, b) };
            self.clusters.set(other, root);
            self.sizes[root as usize] += self.sizes[other as usize];
        }
    }

    /// Calls `take` with each document that goes, in order.
    pub(crate) fn duplicates(mut self, mut take: impl FnMut(Pair) -> Result<(), Error>) -> Result<(), Error> {
        for document in 0..self.sizes.len() as u64 {
            let leader = self.clusters.root(document);
            if leader != document {
                take(Pair { document, leader, similarity: None })?;
            }
        }
        Ok(())
    }
}

/// Union-find; [`Clusters::join`] makes a cluster's smallest number its root.
#[derive(Debug)]
enum Clusters {
    Few(Vec<u32>),
    Many(Vec<u64>),
}

impl Clusters {
    fn new(documents: u64) -> Self {
        match u32::try_from(documents) {
            Ok(documents) => Self::Few((0..documents).collect()),
            Err(_) => Self::Many((0..documents).collect()),
        }
    }

    fn parent(&self, i: u64) -> u64 {
        match self {
            Self::Few(parents) => u64::from(parents[i as usize]),
            Self::Many(parents) => parents[i as usize],
        }
    }

    fn set(&mut self, i: u64, parent: u64) {
        match self {
            Self::Few(parents) => parents[i as usize] = parent as u32,
            Self::Many(parents) => parents[i as usize] = parent,
        }
    }

    fn root(&mut self, mut i: u64) -> u64 {
        loop {
            let parent = self.parent(i);
            if parent == i {
                return i;
            }
            let grandparent = self.parent(parent);
            self.set(i, grandparent); // halves the path for the next time
            i = grandparent;
        }
    }

    fn join(&mut self, a: u64, b: u64) {
        let (a, b) = (self.root(a), self.root(b));
        self.set(a.max(b), a.min(b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bands::{Entry, Narrow, links};

    const EXACT: u16 = 2;
    const JOINING: Joining = Joining { exact: EXACT, jaccard: 0.0, transitive: true, seen: 0 };

    /// A text by its digest, and its signature of two bands of two hashes.
    type Text = (u8, Option<[u64; 4]>);

    /// The links of some documents, in order.
    fn linked(texts: &[Text], urls: &[Option<u8>], exact: bool) -> Vec<u128> {
        let mut found = Vec::new();
        let mut add = |band: u16, entries: Vec<Option<Narrow>>| {
            let mut entries: Vec<Narrow> = entries.into_iter().flatten().collect();
            entries.sort_unstable();
            let take = |link: Link| {
                found.push(link.pack());
                Ok(())
            };
            links(band, entries.into_iter().map(Ok), take).unwrap();
        };
        let numbered = || texts.iter().zip(0..);
        for (band, start) in [(0, 0), (1, 2)] {
            let entry = |(text, i): (&Text, u64)| text.1.map(|hashes| Narrow::new(&hashes[start..start + 2], i));
            add(band, numbered().map(entry).collect());
        }
        if exact {
            add(EXACT, numbered().map(|(text, i)| Some(Narrow::of_digest(&[text.0; 16], i))).collect());
        }
        let of_url = |(url, i): (&Option<u8>, u64)| url.map(|url| Narrow::of_digest(&[url; 16], i));
        add(EXACT + 1, urls.iter().zip(0..).map(of_url).collect());
        found.sort_unstable();
        found
    }

    fn estimate(texts: &[Text], a: u64, b: u64) -> f64 {
        let (a, b) = (texts[a as usize], texts[b as usize]);
        if a.0 == b.0 {
            return 1.0;
        }
        let (Some(a), Some(b)) = (a.1, b.1) else { return 0.0 };
        crate::minhash::similarity(&a, &b)
    }

    /// Of each document the one that stays for it; the same with messages in memory and in scratch.
    fn leaders(texts: &[Text], joining: Joining, exact: bool) -> Vec<Option<u64>> {
        leaders_with(texts, &[], joining, exact)
    }

    fn leaders_with(texts: &[Text], urls: &[Option<u8>], joining: Joining, exact: bool) -> Vec<Option<u64>> {
        let mut all = [1 << 20, 0].map(|memory| {
            let mut found = vec![None; texts.len()];
            let links = linked(texts, urls, exact);
            let scratch = std::env::temp_dir();
            duplicates(
                links.into_iter().map(Ok),
                texts.len() as u64,
                joining,
                &mut |a, b| Ok(Some(estimate(texts, a, b))),
                (memory, &scratch),
                |gone| {
                    let similarity = (joining.jaccard > 0.0).then(|| estimate(texts, gone.leader, gone.document));
                    assert_eq!(gone.similarity, similarity);
                    found[gone.document as usize] = Some(gone.leader);
                    Ok(())
                },
            )
            .unwrap();
            found
        });
        assert_eq!(all[0], all[1]);
        std::mem::take(&mut all[0])
    }

    #[test]
    fn a_document_goes_only_for_one_that_stays_unless_groups_are_transitive() {
        // 1 is like 0, 2 like 1, and 2 is nothing like 0.
        let texts = [(0, Some([1, 1, 1, 1])), (1, Some([1, 1, 5, 5])), (2, Some([7, 7, 5, 5]))];
        let joining = Joining { transitive: false, ..JOINING };
        assert_eq!(leaders(&texts, joining, true), [None, Some(0), None]);
        assert_eq!(leaders(&texts, JOINING, true), [None, Some(0), Some(0)]);
        for transitive in [false, true] {
            let joining = Joining { transitive, jaccard: 0.5, ..JOINING };
            assert_eq!(leaders(&texts, joining, true)[1], Some(0));
            assert_eq!(leaders(&texts, Joining { jaccard: 0.51, ..joining }, true)[1], None);
        }
    }

    #[test]
    fn a_copy_of_what_went_goes_with_it() {
        let texts = [(0, Some([1, 1, 1, 1])), (1, Some([1, 1, 5, 5])), (1, Some([1, 1, 5, 5]))];
        let joining = Joining { transitive: false, ..JOINING };
        assert_eq!(leaders(&texts, joining, true), [None, Some(0), Some(0)]);
    }

    #[test]
    fn the_first_document_of_a_group_stays() {
        // 3 is like 2 in its first band, 1 is like 2 in its second: one cluster of three, led by 1.
        let texts =
            [(0, Some([1, 1, 1, 1])), (1, Some([9, 9, 5, 5])), (2, Some([7, 7, 5, 5])), (3, Some([7, 7, 3, 3]))];
        assert_eq!(leaders(&texts, JOINING, true), [None, None, Some(1), Some(1)]);
    }

    #[test]
    fn candidates_below_the_threshold_stay() {
        let texts = [(0, Some([1, 2, 3, 4])), (1, Some([1, 2, 3, 5])), (2, Some([1, 2, 8, 9]))];
        for transitive in [false, true] {
            let joining = Joining { transitive, ..JOINING };
            assert_eq!(leaders(&texts, Joining { jaccard: 0.7, ..joining }, true), [None, Some(0), None]);
            assert_eq!(leaders(&texts, joining, true), [None, Some(0), Some(0)]);
        }
    }

    #[test]
    fn what_was_seen_stays_and_takes_what_is_like_it() {
        // 1 is like 0 and 2, which are not alike; 4 has the URL of 3.
        let texts = [(0, Some([1, 1, 1, 1])), (1, Some([1, 1, 5, 5])), (2, Some([7, 7, 5, 5])), (3, None), (4, None)];
        let urls = [None, None, None, Some(7), Some(7)];
        for transitive in [false, true] {
            let found = |seen| leaders_with(&texts, &urls, Joining { transitive, seen, ..JOINING }, true);
            assert_eq!(found(0)[1..], [Some(0), transitive.then_some(0), None, Some(3)]);
            assert_eq!(found(2), [None, None, Some(u64::from(!transitive)), None, Some(3)]);
            assert_eq!(found(5), [None; 5]);
        }
    }

    /// With a message for each pair of them this would take 3 GB.
    #[test]
    fn many_copies_that_were_seen_send_few_messages() {
        let mut texts: Vec<Text> = vec![(1, Some([1, 2, 3, 4])); 20_000];
        texts.push((2, Some([1, 2, 3, 5])));
        for jaccard in [0.0, 0.5] {
            let joining = Joining { transitive: false, jaccard, seen: 20_000, ..JOINING };
            let mut expected = vec![None; 20_000];
            expected.push(Some(0));
            assert_eq!(leaders(&texts, joining, true), expected);
        }
    }

    #[test]
    fn equal_texts_are_duplicates_even_without_a_signature() {
        let texts = [(5, None), (6, None), (5, None)];
        for transitive in [false, true] {
            let joining = Joining { transitive, ..JOINING };
            assert_eq!(leaders(&texts, joining, true), [None, None, Some(0)]);
            assert_eq!(leaders(&texts, joining, false), [None, None, None]);
        }
    }

    fn drawn(state: &mut u64, n: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 33) % n
    }

    fn agree(a: Text, b: Text) -> bool {
        let (Some(a), Some(b)) = (a.1, b.1) else { return false };
        a[..2] == b[..2] || a[2..] == b[2..]
    }

    #[test]
    fn groups_are_those_of_the_obvious_search() {
        let mut state = 1;
        for _ in 0..50 {
            let mut draw = |n| drawn(&mut state, n);
            let texts: Vec<Text> =
                (0..40).map(|_| (draw(60) as u8, Some([draw(6), draw(6), draw(6), draw(6)]))).collect();
            // Transitive closure, by lowering labels until nothing changes.
            let mut label: Vec<u64> = (0..40).collect();
            loop {
                let before = label.clone();
                for a in 0..40 {
                    for b in 0..40 {
                        if texts[a].0 == texts[b].0 || agree(texts[a], texts[b]) {
                            label[b] = label[a].min(label[b]);
                        }
                    }
                }
                if label == before {
                    break;
                }
            }
            let expected: Vec<Option<u64>> =
                label.into_iter().enumerate().map(|(i, l)| (i as u64 != l).then_some(l)).collect();
            assert_eq!(leaders(&texts, JOINING, true), expected);
        }
    }

    /// Document by document, each against all that stay before it.
    #[test]
    fn leaders_are_those_of_the_obvious_search() {
        let mut state = 1;
        for round in 0..200 {
            let mut draw = |n| drawn(&mut state, n);
            let text = |draw: &mut dyn FnMut(u64) -> u64| -> Text {
                // the same text has the same signature; some have none
                let digest = draw(30);
                let mut own = 1 + digest;
                let signature = [(); 4].map(|()| drawn(&mut own, 4));
                (digest as u8, (!digest.is_multiple_of(7)).then_some(signature))
            };
            let texts: Vec<Text> = (0..60).map(|_| text(&mut draw)).collect();
            let jaccard = [0.0, 0.5, 0.75][round % 3];
            let seen = [0, 0, 20][round / 3 % 3];
            let urls: Vec<Option<u8>> =
                (0..60).map(|_| draw(40) as u8).map(|url| (round % 2 == 0 && url > 4).then_some(url)).collect();
            for exact in [true, false] {
                let mut expected: Vec<Option<u64>> = Vec::new();
                for i in 0..texts.len() {
                    let equal = (0..i).find(|&j| exact && texts[j].0 == texts[i].0);
                    let near = |&j: &usize| {
                        let similar = || agree(texts[j], texts[i]) && estimate(&texts, j as u64, i as u64) >= jaccard;
                        expected[j].is_none() && (urls[i].is_some() && urls[j] == urls[i] || similar())
                    };
                    let leader = match equal {
                        _ if (i as u64) < seen => None,
                        Some(first) => Some(expected[first].unwrap_or(first as u64)),
                        None => (0..i).find(near).map(|j| j as u64),
                    };
                    expected.push(leader);
                }
                let joining = Joining { transitive: false, jaccard, seen, ..JOINING };
                assert_eq!(leaders_with(&texts, &urls, joining, exact), expected, "round {round}");
            }
        }
    }
}
