//! The shingles of the documents that may be near-duplicates, looked up by the document's number.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use smelt_stage::{Context, Error, Unit, UnitRecord, WorkFile, WorkPart};

use crate::minhash::jaccard;
use crate::sketch::read_bytes;

/// A set of documents: one bit for each.
pub(crate) struct Wanted(Vec<u64>);

impl Wanted {
    pub(crate) fn new(documents: u64) -> Self {
        Self(vec![0; documents.div_ceil(64) as usize])
    }

    pub(crate) fn insert(&mut self, document: u64) {
        self.0[(document / 64) as usize] |= 1 << (document % 64);
    }

    pub(crate) fn contains(&self, document: u64) -> bool {
        self.0[(document / 64) as usize] >> (document % 64) & 1 == 1
    }
}

/// The shingles of an input file while they are written: hashes in one part, and in the next one of each document its
/// number and where its hashes end.
pub(crate) struct ShingleFile {
    file: WorkFile,
    ends: Vec<(u64, u64)>,
    hashes: u64,
}

impl ShingleFile {
    pub(crate) fn new(unit: &Unit) -> Result<Self, Error> {
        Ok(Self { file: unit.work_file("shingles")?, ends: Vec::new(), hashes: 0 })
    }

    pub(crate) fn write(&mut self, document: u64, hashes: &[u64]) -> Result<(), Error> {
        let mut write = |hash: &u64| self.file.write_all(&hash.to_le_bytes());
        hashes.iter().try_for_each(&mut write).map_err(|e| self.file.error(e))?;
        self.hashes += hashes.len() as u64;
        self.ends.push((document, self.hashes));
        Ok(())
    }

    pub(crate) fn finish(mut self, unit: &mut Unit) -> Result<(), Error> {
        self.file.end_part()?;
        for (document, end) in self.ends {
            let written = self.file.write_all(&document.to_le_bytes());
            let written = written.and_then(|()| self.file.write_all(&end.to_le_bytes()));
            written.map_err(|e| self.file.error(e))?;
        }
        self.file.end_part()?;
        self.file.finish(unit)
    }
}

/// The shingles of all input files. Takes 24 bytes of memory for each document that has some, besides a cache.
pub(crate) struct Shingles {
    files: Vec<WorkPart>,
    /// In the order of their documents.
    places: Vec<Place>,
    cache: HashMap<u64, Arc<[u64]>>,
    /// Hashes in the cache, and at most.
    cached: usize,
    room: usize,
}

/// Where the shingles of a document lie.
struct Place {
    document: u64,
    file: u32,
    count: u32,
    /// Number of the first hash.
    start: u64,
}

impl Shingles {
    /// `memory`: bytes for the cache.
    pub(crate) fn open(cx: &Context, records: &[UnitRecord], memory: usize) -> Result<Self, Error> {
        let (mut files, mut places) = (Vec::new(), Vec::new());
        for (record, file) in records.iter().zip(0..) {
            let work = cx.work(record, "shingles")?;
            let mut index = work.part(1)?;
            let mut start = 0;
            for _ in 0..index.size() / 16 {
                let mut next = || read_bytes(&mut index).map(u64::from_le_bytes).map_err(Error::of_read);
                let (document, end) = (next()?, next()?);
                places.push(Place { document, file, count: (end - start) as u32, start });
                start = end;
            }
            files.push(work.part(0)?);
        }
        places.sort_unstable_by_key(|place| place.document);
        Ok(Self { files, places, cache: HashMap::new(), cached: 0, room: memory / 8 })
    }

    /// The Jaccard similarity of two documents; `None` if one of them has no shingles.
    pub(crate) fn similarity(&mut self, a: u64, b: u64) -> Result<Option<f64>, Error> {
        Ok(match (self.of(a)?, self.of(b)?) {
            (Some(a), Some(b)) if !a.is_empty() && !b.is_empty() => Some(jaccard(&a, &b)),
            _ => None,
        })
    }

    fn of(&mut self, document: u64) -> Result<Option<Arc<[u64]>>, Error> {
        if let Some(known) = self.cache.get(&document) {
            return Ok(Some(known.clone()));
        }
        let Ok(at) = self.places.binary_search_by_key(&document, |place| place.document) else { return Ok(None) };
        let &Place { file, count, start, .. } = &self.places[at];
        let hashes = &mut self.files[file as usize];
        let mut bytes = vec![0; 8 * count as usize];
        hashes.seek(8 * start).and_then(|()| hashes.read_exact(&mut bytes)).map_err(Error::of_read)?;
        let found: Arc<[u64]> = bytes.as_chunks().0.iter().map(|&hash| u64::from_le_bytes(hash)).collect();
        if self.cached + found.len() > self.room {
            self.cache.clear();
            self.cached = 0;
        }
        self.cached += found.len();
        self.cache.insert(document, found.clone());
        Ok(Some(found))
    }
}
