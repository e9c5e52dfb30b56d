//! A file that a unit writes for the units of later phases, and how they read it.
//!
//! Such a file is made of *parts*, and a part of blocks that carry their own digests. So a unit that needs one part of
//! each file, such as one band of all sketches, fetches and verifies that much and no more, and holds one block of it
//! in memory. The digest of the whole file, as those of ports have, would ask for all of it.
//!
//! ```text
//! part 0: block, digest, block, digest, …   part 1: …   end of part 0, end of part 1, …: 8 bytes each
//! ```

use crate::error::Error;
use crate::unit::Unit;
use smelt_store::{Attempt, Store, Upload, WorkRecord};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a block; the last one of a part is shorter.
const BLOCK: usize = 1 << 16;
const DIGEST: usize = blake3::OUT_LEN;
/// Bytes that a whole block takes.
const STRIDE: u64 = (BLOCK + DIGEST) as u64;
/// Bytes of an entry of the table of parts.
const END: u64 = 8;

/// Of the bytes of a block and of its place, so that no block can stand for another one, and no part end early.
fn digest(data: &[u8], at: u64, is_last: bool) -> blake3::Hash {
    let place = at << 1 | u64::from(is_last);
    blake3::Hasher::new().update(&place.to_le_bytes()).update(data).finalize()
}

/// A file for later phases while it is written. It is there for them when the unit is committed.
pub struct WorkFile {
    upload: Upload,
    name: String,
    at: String,
    store: Store,
    block: Vec<u8>,
    /// Bytes before the block.
    offset: u64,
    ends: Vec<u64>,
}

impl fmt::Debug for WorkFile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "WorkFile({}, {} bytes, {} parts)", self.at, self.offset, self.ends.len())
    }
}

impl WorkFile {
    pub(crate) fn open(attempt: &Attempt, name: &str, at: String) -> Result<Self, Error> {
        let (upload, store) = (attempt.upload_work(&at)?, attempt.store().clone());
        Ok(Self { upload, name: name.into(), at, store, block: Vec::new(), offset: 0, ends: Vec::new() })
    }

    fn write_block(&mut self, is_last: bool) -> io::Result<()> {
        let digest = digest(&self.block, self.offset, is_last);
        self.upload.write_all(&self.block)?;
        self.upload.write_all(digest.as_bytes())?;
        self.offset += (self.block.len() + DIGEST) as u64;
        self.block.clear();
        Ok(())
    }

    /// What is written from here on belongs to the next part. A part may be empty.
    pub fn end_part(&mut self) -> Result<(), Error> {
        self.write_block(true).map_err(|e| self.error(e))?;
        self.ends.push(self.offset);
        Ok(())
    }

    /// Turns the error of a write into a stage error, with its exit code.
    pub fn error(&self, error: io::Error) -> Error {
        smelt_store::Error::from_write(error, &self.store, &self.at).into()
    }

    /// Ends the last part, if that was not done, and gives the file to the unit.
    pub fn finish(mut self, unit: &mut Unit) -> Result<(), Error> {
        if !self.block.is_empty() || self.ends.is_empty() {
            self.end_part()?;
        }
        let table: Vec<u8> = self.ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        self.upload.write_all(&table).map_err(|e| self.error(e))?;
        let mut file = self.upload.finish(&self.name)?;
        file.at = Some(self.at);
        unit.add_work(WorkRecord { file, parts: self.ends.len() as u64 });
        Ok(())
    }
}

impl Write for WorkFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full block is written when another byte follows: only then it is not the last one.
        if self.block.len() == BLOCK && !bytes.is_empty() {
            self.write_block(false)?;
        }
        let n = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that a unit of an earlier phase wrote.
pub struct Work {
    attempt: Arc<Attempt>,
    record: WorkRecord,
    scratch: PathBuf,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Work({}, {} parts)", self.record.file.place(), self.record.parts)
    }
}

impl Work {
    pub(crate) fn new(attempt: Arc<Attempt>, record: WorkRecord, scratch: &Path) -> Self {
        Self { attempt, record, scratch: scratch.into() }
    }

    /// How many parts it has.
    pub fn parts(&self) -> usize {
        self.record.parts as usize
    }

    /// The bytes of part `i`, each block verified before it is given out: from the store's own file if the store is a
    /// directory, else from a copy of the part in scratch.
    pub fn part(&self, i: usize) -> Result<WorkPart, Error> {
        assert!(i < self.parts(), "part {i} of {}", self.parts());
        let (i, bytes) = (i as u64, self.record.file.bytes);
        let table =
            bytes.checked_sub(END * self.record.parts).ok_or_else(|| self.damaged("is shorter than its table"))?;
        // The end of the part, and of the one before it.
        let before = i.min(1);
        let ends = self.range(table + END * (i - before), table + END * (i + 1))?;
        let end = |at: u64| {
            let mut entry = [0; END as usize];
            ends.0.read_exact_at(&mut entry, ends.1 + END * at).map_err(|e| self.unreadable(&e))?;
            Ok::<_, Error>(u64::from_le_bytes(entry))
        };
        let (start, end) = (if i == 0 { 0 } else { end(0)? }, end(before)?);
        let length = end.checked_sub(start).filter(|_| end <= table).unwrap_or_default();
        let rest = length % STRIDE;
        if length == 0 || rest > 0 && rest < DIGEST as u64 {
            return Err(self.damaged(&format!("has a part from byte {start} to {end}")));
        }
        let (file, from) = self.range(start, end)?;
        let blocks = length.div_ceil(STRIDE);
        let what = self.what();
        Ok(WorkPart { file, from, start, length, blocks, what, block: Vec::new(), next: 0, at: 0 })
    }

    /// Parts in order, one behind the other.
    pub fn whole(&self) -> impl Iterator<Item = Result<WorkPart, Error>> + '_ {
        (0..self.parts()).map(|i| self.part(i))
    }

    fn range(&self, start: u64, end: u64) -> Result<(File, u64), Error> {
        let found = self.attempt.store().fetch_range(&self.attempt.work_key(&self.record), start..end, &self.scratch);
        // Another worker has committed the artifact, and tidied up: that is the error then.
        found.or_else(|e| self.attempt.check().map_err(Error::from).and(Err(e.into())))
    }

    fn what(&self) -> String {
        format!("`{}` in store {}", self.attempt.work_key(&self.record), self.attempt.store().address())
    }

    fn damaged(&self, how: &str) -> Error {
        damaged(&self.what(), how)
    }

    fn unreadable(&self, error: &io::Error) -> Error {
        unreadable(&self.what(), error)
    }
}

fn damaged(what: &str, how: &str) -> Error {
    Error::data(format!("{what} is damaged: it {how}"))
        .hint("`smelt rerun` computes the job anew, without what is kept of this attempt")
}

fn unreadable(what: &str, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(what, "ends too early"),
        _ => Error::machine(format!("reading {what}: {error}")),
    }
}

/// One part of a file for later phases, read block by block.
pub struct WorkPart {
    file: File,
    /// Where the part begins in `file`, and in the file of which it is a part.
    from: u64,
    start: u64,
    /// With the digests.
    length: u64,
    blocks: u64,
    what: String,
    block: Vec<u8>,
    /// The block after the one in memory.
    next: u64,
    /// Bytes of the block in memory that were read.
    at: usize,
}

impl fmt::Debug for WorkPart {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "WorkPart({}, {} bytes)", self.what, self.size())
    }
}

impl WorkPart {
    /// Bytes of data.
    pub fn size(&self) -> u64 {
        self.length - self.blocks * DIGEST as u64
    }

    /// The next byte that is read is number `offset`, at most [`WorkPart::size`].
    pub fn seek(&mut self, offset: u64) -> io::Result<()> {
        assert!(offset <= self.size(), "byte {offset} of {}", self.size());
        let block = (offset / BLOCK as u64).min(self.blocks - 1);
        if block + 1 != self.next {
            self.load(block)?;
        }
        self.at = (offset - block * BLOCK as u64) as usize;
        Ok(())
    }

    fn load(&mut self, block: u64) -> io::Result<()> {
        let offset = block * STRIDE;
        let length = STRIDE.min(self.length - offset) as usize;
        self.block.resize(length, 0);
        let read = self.file.read_exact_at(&mut self.block, self.from + offset);
        read.map_err(|e| io::Error::other(unreadable(&self.what, &e)))?;
        let (data, found) = self.block.split_at(length - DIGEST);
        let place = self.start + offset;
        if digest(data, place, block + 1 == self.blocks) != *<&[u8; DIGEST]>::try_from(found).expect("32 bytes") {
            let how = format!("has other bytes than were written, between {place} and {}", place + length as u64);
            return Err(io::Error::other(damaged(&self.what, &how)));
        }
        self.block.truncate(length - DIGEST);
        (self.next, self.at) = (block + 1, 0);
        Ok(())
    }
}

impl BufRead for WorkPart {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.block.len() && self.next < self.blocks {
            self.load(self.next)?;
        }
        Ok(&self.block[self.at..])
    }
    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Read for WorkPart {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl Error {
    /// The error of reading what an earlier phase wrote, or what this one has in scratch, with its exit code.
    pub fn of_read(error: io::Error) -> Self {
        let (kind, text) = (error.kind(), error.to_string());
        match error.into_inner().map(|inner| inner.downcast::<Self>()) {
            Some(Ok(ours)) => *ours,
            // Every block was verified, so its writer is to blame.
            _ if kind == io::ErrorKind::UnexpectedEof => Self::bug("an earlier phase wrote less than this one reads"),
            _ => Self::machine(format!("reading what an earlier phase wrote: {text}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_schemas::Digest;
    use smelt_store::{UnitRecord, unique};

    /// Bytes that differ from block to block.
    fn bytes(seed: usize, n: usize) -> Vec<u8> {
        (0..n).map(|i| ((i * 31 + i / 251 + i / BLOCK + seed) % 256) as u8).collect()
    }

    fn write(attempt: &Attempt, parts: &[Vec<u8>]) -> UnitRecord {
        let mut unit = Unit::new(attempt, "sketch", "00003".into(), 3, 1);
        let mut file = unit.work_file("bands").unwrap();
        for part in parts {
            // in pieces that end anywhere
            part.chunks(1000).for_each(|piece| file.write_all(piece).unwrap());
            file.end_part().unwrap();
        }
        file.finish(&mut unit).unwrap();
        unit.finish().unwrap()
    }

    /// A directory and an object store.
    fn both(name: &str, test: impl Fn(Arc<Attempt>)) {
        let folder = std::env::temp_dir().join(format!("smelt-{name}-{}", unique()));
        for address in [folder.to_str().unwrap(), &format!("memory:{name}")] {
            let store = Store::open(address).unwrap();
            test(Arc::new(Attempt::begin_beside(&store, "dedup", &Digest::of(b"recipe"), 0).unwrap()));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn open(attempt: &Arc<Attempt>, record: &UnitRecord) -> Work {
        Work::new(attempt.clone(), record.work[0].clone(), &std::env::temp_dir())
    }

    fn read(mut part: WorkPart) -> Result<Vec<u8>, Error> {
        let mut found = Vec::new();
        part.read_to_end(&mut found).map_err(Error::of_read)?;
        Ok(found)
    }

    #[test]
    fn parts_are_read_as_they_were_written_and_from_any_place() {
        let lengths = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 0, 3 * BLOCK, 5];
        let parts: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(seed, &n)| bytes(seed, n)).collect();
        both("work-parts", |attempt| {
            let record = write(&attempt, &parts);
            assert_eq!(record.work[0].file.at.as_deref(), Some("sketch/turn1/000003/bands"));
            let work = open(&attempt, &record);
            assert_eq!(work.parts(), lengths.len());
            for (i, expected) in parts.iter().enumerate() {
                let mut part = work.part(i).unwrap();
                assert_eq!(part.size(), expected.len() as u64);
                for offset in [0, 1, BLOCK / 2, BLOCK - 1, BLOCK, 2 * BLOCK + 7, 5] {
                    let offset = offset.min(expected.len());
                    part.seek(offset as u64).unwrap();
                    let mut found = vec![0; 3.min(expected.len() - offset)];
                    part.read_exact(&mut found).unwrap();
                    assert_eq!(found, expected[offset..offset + found.len()], "part {i} from {offset}");
                }
                assert!(read(work.part(i).unwrap()).unwrap() == *expected, "part {i}");
            }
            let nothing = open(&attempt, &write(&attempt, &[]));
            assert_eq!((nothing.parts(), read(nothing.part(0).unwrap()).unwrap()), (1, vec![]));
        });
    }

    #[test]
    fn whatever_is_damaged_is_named_before_it_is_used() {
        let parts = [bytes(0, 2 * BLOCK + 9), bytes(1, 100), Vec::new(), bytes(2, BLOCK)];
        both("work-damage", |attempt| {
            let record = write(&attempt, &parts);
            let (store, key) = (attempt.store(), attempt.work_key(&record.work[0]));
            let whole = store.get(&key).unwrap().to_vec();
            let all = |bytes: &[u8]| -> Result<Vec<Vec<u8>>, Error> {
                store.put(&key, bytes).unwrap();
                open(&attempt, &record).whole().map(|part| read(part?)).collect()
            };
            assert_eq!(all(&whole).unwrap(), parts);
            let mut damaged: Vec<Vec<u8>> = Vec::new();
            for at in [0, BLOCK, 2 * BLOCK, 2 * BLOCK + 100, whole.len() - 1, whole.len() - 32] {
                damaged.push(whole.clone());
                damaged.last_mut().unwrap()[at] ^= 1;
            }
            // Two blocks in each other's place; a part that ends with its first block, another one that takes it all.
            let stride = STRIDE as usize;
            let (first, second, rest) = (&whole[..stride], &whole[stride..2 * stride], &whole[2 * stride..]);
            damaged.push([second, first, rest].concat());
            let table = whole.len() - 4 * 8;
            for end in [STRIDE, 0, table as u64, u64::MAX] {
                damaged.push([&whole[..table], &end.to_le_bytes(), &whole[table + 8..]].concat());
            }
            for (i, bytes) in damaged.iter().enumerate() {
                let error = all(bytes).unwrap_err();
                assert_eq!(error.exit_code(), smelt_schemas::ExitCode::Data, "{i}: {error}");
                let text = error.to_string();
                assert!(text.starts_with(&format!("`{key}` in store {} is damaged: it ", store.address())), "{text}");
                assert!(error.problem().hint.as_deref().is_some_and(|hint| hint.contains("`smelt rerun`")), "{i}");
            }
            let error = all(&damaged[0]).unwrap_err().to_string();
            assert!(error.ends_with("has other bytes than were written, between 0 and 65568"), "{error}");
            store.delete(&key).unwrap();
            let error = open(&attempt, &record).part(0).unwrap_err().to_string();
            assert_eq!(error, format!("`{key}` is not in store {}", store.address()));
        });
    }
}
