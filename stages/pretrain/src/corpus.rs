//! A corpus on disk: documents, each behind its `<|bos|>` and closed by `<|eos|>`, packed into sequences that are read
//! when a step needs them.
//!
//! Opening reads every file once, to verify it and to count its tokens. From then on a sequence reads the pages that it
//! lies in, and the pages read last stay in memory: what a training takes does not grow with its corpus.

use smelt_stage::kinds::Tokens;
use smelt_stage::{Artifact, Error, Pages, in_parallel};
use smelt_train::{FillInMiddle, Packed, Packing, Ragged, Recent};
use std::sync::Arc;

/// Memory for pages that were read. A small corpus lies in it as a whole.
const READ_BYTES: usize = 64 << 20;

/// What becomes of the ids of a document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) bos: u32,
    pub(crate) eos: u32,
    pub(crate) fim: Option<FillInMiddle>,
}

impl Frame {
    /// Tokens that it adds to a document, at most.
    const MOST: usize = 2 + FillInMiddle::ADDED as usize;

    /// Tokens of a document with `ids` ids.
    fn tokens(&self, document: u64, ids: usize) -> u32 {
        let is_rearranged = self.fim.is_some_and(|fim| fim.chooses(document));
        ids as u32 + 2 + if is_rearranged { FillInMiddle::ADDED } else { 0 }
    }

    fn push(&self, document: u64, ids: &[u32], to: &mut Ragged) {
        match self.fim.and_then(|fim| fim.apply(document, ids)) {
            Some(rearranged) => to.push(&[&[self.bos], &rearranged, &[self.eos]]),
            None => to.push(&[&[self.bos], ids, &[self.eos]]),
        }
    }
}

/// A page of an input.
#[derive(Clone, Copy, Debug)]
struct Place {
    input: usize,
    page: usize,
    /// Number of its first document, over all inputs.
    document: u64,
}

/// The documents of some inputs. The inputs are in groups, and each group is packed by itself.
#[derive(Debug)]
pub(crate) struct Corpus {
    frame: Frame,
    inputs: Vec<Pages<Tokens>>,
    places: Vec<Place>,
    groups: Vec<Group>,
    documents: u64,
    /// By place.
    read: Recent<Ragged>,
}

#[derive(Debug)]
struct Group {
    first_place: usize,
    packed: Packed,
}

impl Corpus {
    /// `groups`: how many inputs each has, in their order.
    pub(crate) fn open(
        inputs: &[Artifact<Tokens>],
        groups: &[usize],
        frame: Frame,
        (packing, context): (Packing, usize),
        threads: usize,
    ) -> Result<Self, Error> {
        let inputs: Vec<Pages<Tokens>> =
            inputs.iter().map(|input| input.pages("ids", threads)).collect::<Result<_, _>>()?;
        let mut documents = 0;
        let mut places = Vec::new();
        for (input, pages) in inputs.iter().enumerate() {
            for page in 0..pages.len() {
                places.push(Place { input, page, document: documents });
                documents += pages.rows(page) as u64;
            }
        }
        let mut lengths = in_parallel(threads, places.len(), |i| {
            let Place { input, page, document } = places[i];
            let ids = inputs[input].ids(page)?;
            Ok(ids.iter().zip(document..).map(|(ids, document)| frame.tokens(document, ids.len())).collect())
        })?;
        let (mut first_place, mut first_input) = (0, 0);
        let mut grouped = Vec::with_capacity(groups.len());
        for count in groups {
            first_input += count;
            let end = places.partition_point(|place| place.input < first_input);
            let packed = Packed::new(packing, context, lengths.drain(..end - first_place).collect());
            grouped.push(Group { first_place, packed });
            first_place = end;
        }
        Ok(Self { frame, inputs, places, groups: grouped, documents, read: Recent::new(READ_BYTES) })
    }

    pub(crate) fn documents(&self) -> u64 {
        self.documents
    }

    /// Sequences of each group.
    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.groups.iter().map(|group| group.packed.windows()).collect()
    }

    /// The pieces of documents of sequence `i` of a group.
    pub(crate) fn sequence(&self, group: usize, i: u64) -> Result<Ragged, Error> {
        let Group { first_place, packed } = &self.groups[group];
        packed.window(i, |stretch| self.stretch(first_place + stretch))
    }

    /// The documents of a page.
    fn stretch(&self, place: usize) -> Result<Arc<Ragged>, Error> {
        self.read.get_or(place, || {
            let Place { input, page, document } = self.places[place];
            let documents = self.inputs[input].ids(page)?;
            let lists = self.inputs[input].rows(page);
            let mut stretch = Ragged::with_capacity(documents.count() + lists * Frame::MOST, lists);
            for (ids, document) in documents.iter().zip(document..) {
                self.frame.push(document, ids, &mut stretch);
            }
            let bytes = stretch.bytes();
            Ok((stretch, bytes))
        })
    }
}
