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

/// The shingles of all input files. Takes 16 bytes of memory for each document that has some, besides a cache.
pub(crate) struct Shingles {
    files: Vec<File>,
    /// Number of the first document of each file, and of all documents.
    starts: Vec<u64>,
    cache: HashMap<u64, Arc<[u64]>>,
    /// Hashes in the cache, and at most.
    cached: usize,
    room: usize,
}

struct File {
    hashes: WorkPart,
    ends: Vec<(u64, u64)>,
}

impl Shingles {
    /// `memory`: bytes for the cache.
    pub(crate) fn open(cx: &Context, files: &[UnitRecord], starts: &[u64], memory: usize) -> Result<Self, Error> {
        let open = |record: &UnitRecord| {
            let work = cx.work(record, "shingles")?;
            let mut index = work.part(1)?;
            let mut ends = Vec::with_capacity((index.size() / 16) as usize);
            for _ in 0..ends.capacity() {
                let mut next = || read_bytes(&mut index).map(u64::from_le_bytes).map_err(Error::of_read);
                ends.push((next()?, next()?));
            }
            Ok(File { hashes: work.part(0)?, ends })
        };
        let files = files.iter().map(open).collect::<Result<_, Error>>()?;
        Ok(Self { files, starts: starts.into(), cache: HashMap::new(), cached: 0, room: memory / 8 })
    }

    /// The Jaccard similarity of two documents. Those without shingles are compared only if their texts are equal.
    pub(crate) fn similarity(&mut self, a: u64, b: u64) -> Result<f64, Error> {
        Ok(match (self.of(a)?, self.of(b)?) {
            (Some(a), Some(b)) => jaccard(&a, &b),
            _ => 1.0,
        })
    }

    fn of(&mut self, document: u64) -> Result<Option<Arc<[u64]>>, Error> {
        if let Some(known) = self.cache.get(&document) {
            return Ok(Some(known.clone()));
        }
        let file = self.starts.partition_point(|&start| start <= document) - 1;
        let Some(File { hashes, ends }) = self.files.get_mut(file) else { return Ok(None) };
        let Ok(at) = ends.binary_search_by_key(&document, |&(number, _)| number) else { return Ok(None) };
        let start = at.checked_sub(1).map_or(0, |before| ends[before].1);
        let mut bytes = vec![0; 8 * (ends[at].1 - start) as usize];
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
