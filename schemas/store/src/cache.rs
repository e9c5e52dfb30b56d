//! A folder on this machine that keeps files of remote stores, by their blake3: the same bytes are fetched once.
//!
//! Any number of processes may share it. A file appears whole, under its digest, is hashed again by each process that
//! takes it, and is locked while somebody reads it. When there is too much, what was not taken for longest goes first.

use crate::directory::{TEMPORARY, is_temporary, remove_quietly};
use crate::error::{Error, Result};
use crate::unique::unique;
use crate::verified::{Stamp, Verified};
use smelt_schemas::{Digest, FileRecord};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What a cache may hold if nobody says: 20 GiB.
pub const CACHE_BYTES: u64 = 20 << 30;
/// A file that is begun is locked at once; one that is not after this long was left by a killed process.
const BEGUN: Duration = Duration::from_secs(60);
/// A file says when it was taken to this precision: other processes hash it again when its time was changed.
const TAKEN: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    bytes: u64,
}

/// A file on its way into the cache. It vanishes with this value unless it is kept.
pub(crate) struct Begun(PathBuf);

impl Drop for Begun {
    fn drop(&mut self) {
        remove_quietly(&self.0);
    }
}

impl Cache {
    /// `bytes`: what it may hold.
    pub fn new(folder: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(folder)
            .map_err(|e| Error::Cache { what: folder.display().to_string(), why: format!("it cannot be made: {e}") })?;
        Ok(Self { folder: folder.to_owned(), bytes })
    }

    /// The one that SMELT_CACHE names, if it does; SMELT_CACHE_SIZE says what it may hold, such as `50GiB`.
    pub fn of_environment() -> Result<Option<Self>> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(folder) = set("SMELT_CACHE") else { return Ok(None) };
        let bytes = match set("SMELT_CACHE_SIZE") {
            None => CACHE_BYTES,
            Some(text) => smelt_schemas::parse_bytes(&text).ok_or_else(|| Error::Cache {
                what: folder.clone(),
                why: format!("SMELT_CACHE_SIZE is `{text}`, expected a size such as `50GiB`"),
            })?,
        };
        Self::new(Path::new(&folder), bytes).map(Some)
    }

    /// The variables by which another process finds it.
    pub fn variables(&self) -> [(&'static str, OsString); 2] {
        [("SMELT_CACHE", self.folder.clone().into()), ("SMELT_CACHE_SIZE", format!("{}B", self.bytes).into())]
    }

    /// The file that a record describes, whole, and locked until the second value is dropped.
    pub(crate) fn find(&self, record: &FileRecord, verified: &Verified) -> Option<(PathBuf, File)> {
        let path = self.folder.join(record.blake3.to_string());
        let file = File::open(&path).ok()?;
        lock(&file, libc::LOCK_SH)?;
        let meta = file.metadata().ok()?;
        if meta.nlink() == 0 {
            return None; // evicted between the two lines above
        }
        let before = Stamp::of(&path);
        if !verified.has(&path, before.as_ref(), record) {
            let mut hasher = blake3::Hasher::new();
            let is_whole = meta.len() == record.bytes
                && hasher.update_reader(&file).is_ok()
                && Digest::from(hasher.finalize()) == record.blake3;
            if !is_whole {
                remove_unread(&path, &file);
                return None;
            }
            verified.note(&path, before, record);
        }
        // Shows that it was taken. Where the file belongs to another user it keeps its time.
        let is_old = meta.modified().is_ok_and(|taken| taken.elapsed().is_ok_and(|age| age > TAKEN));
        if is_old && file.set_modified(SystemTime::now()).is_ok() {
            verified.renew(&path, record);
        }
        Some((path, file))
    }

    /// A new file for what a record describes, after room was made for it; `None` if the cache cannot hold it.
    pub(crate) fn begin(&self, record: &FileRecord) -> Option<(File, Begun)> {
        self.evict(self.bytes.checked_sub(record.bytes)?).ok()?;
        let path = self.folder.join(format!("{}{TEMPORARY}", unique()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).ok()?;
        let begun = Begun(path);
        lock(&file, libc::LOCK_SH)?;
        Some((file, begun))
    }

    /// Keeps a file whose bytes were verified while they were written.
    pub(crate) fn keep(
        &self,
        file: File,
        begun: Begun,
        record: &FileRecord,
        verified: &Verified,
    ) -> Option<(PathBuf, File)> {
        let path = self.folder.join(record.blake3.to_string());
        // A link replaces nothing: whoever removes a file must be sure which one the name means.
        if fs::hard_link(&begun.0, &path).is_err() {
            return self.find(record, verified); // another process was first
        }
        drop(begun);
        // What several processes have begun at once is counted only now. The next one tries again if this fails.
        drop(self.evict(self.bytes));
        Some((path, file))
    }

    /// Removes files that nobody reads, the longest unused first, until all are at most `bytes`.
    fn evict(&self, bytes: u64) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // A file may vanish between the listing and this call.
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            // Nothing else is the cache's.
            if meta.is_file() && (is_temporary(&name) || Digest::try_from(name).is_ok()) {
                files.push((meta.modified()?, path, meta.len()));
            }
        }
        files.sort();
        let mut held: u64 = files.iter().map(|(_, _, bytes)| bytes).sum();
        for (used, path, length) in files {
            let is_left = is_temporary(&path.to_string_lossy()) && used.elapsed().is_ok_and(|age| age > BEGUN);
            if held <= bytes && !is_left {
                continue;
            }
            // Whoever reads it has locked it.
            if File::open(&path).is_ok_and(|file| remove_unread(&path, &file)) {
                held -= length;
            }
        }
        Ok(())
    }
}

/// Removes a file of the cache unless somebody reads it. One that still has its name once it is locked is what the name
/// means: a name is never given to another file before it is removed, and nobody else removes it now.
fn remove_unread(path: &Path, file: &File) -> bool {
    lock(file, libc::LOCK_EX | libc::LOCK_NB).is_some()
        && file.metadata().is_ok_and(|meta| meta.nlink() > 0)
        && fs::remove_file(path).is_ok()
}

/// Locks a file until it is closed; `None` if that cannot be done.
fn lock(file: &File, how: libc::c_int) -> Option<()> {
    // SAFETY: the descriptor is open for as long as `file` lives.
    (unsafe { libc::flock(file.as_raw_fd(), how) } == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use std::io::Write;

    fn record(store: &Store, key: &str, bytes: &[u8]) -> FileRecord {
        let mut upload = store.upload(key).unwrap();
        upload.write_all(bytes).unwrap();
        upload.finish(key).unwrap()
    }

    /// A store, its cache of so many bytes, and a scratch folder, for one test.
    fn cached(name: &str, bytes: u64) -> (Store, PathBuf, PathBuf) {
        let folder = std::env::temp_dir().join(format!("smelt-cache-{name}-{}", unique()));
        let cache = Cache::new(&folder.join("cache"), bytes).unwrap();
        let store = Store::open(&format!("memory:cache-{name}")).unwrap().with_cache(cache);
        (store, folder.join("cache"), folder)
    }

    fn held(cache: &Path) -> usize {
        fs::read_dir(cache).unwrap().count()
    }

    #[test]
    fn a_file_is_fetched_once_and_verified_each_time() {
        let (store, cache, folder) = cached("once", 1000);
        let of = record(&store, "a", b"hello");
        let first = store.fetch("a", &of, &folder).unwrap();
        assert_eq!(first.path(), cache.join(of.blake3.to_string()));
        // The store is not asked again.
        store.delete("a").unwrap();
        assert_eq!(fs::read(store.fetch("a", &of, &folder).unwrap().path()).unwrap(), b"hello");
        // What was damaged on this machine is fetched again.
        store.put("a", b"hello").unwrap();
        fs::write(first.path(), b"hellO").unwrap();
        drop(first);
        let again = store.fetch("a", &of, &folder).unwrap();
        assert_eq!(fs::read(again.path()).unwrap(), b"hello");
        // A file that is not what its record says never gets in.
        store.put("b", b"other").unwrap();
        let lie = FileRecord { blake3: Digest::of(b"b"), ..of };
        assert!(store.fetch("b", &lie, &folder).unwrap_err().to_string().contains("has digest"));
        assert_eq!(held(&cache), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_was_not_taken_for_longest_goes_first_and_never_while_it_is_read() {
        let (store, cache, folder) = cached("full", 25);
        let of = |name: &str| record(&store, name, format!("{name}123456789").as_bytes());
        let (a, b, c, d) = (of("a"), of("b"), of("c"), of("d"));
        let old = |record: &FileRecord, seconds: u64| {
            let file = File::open(cache.join(record.blake3.to_string())).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        let kept = |record: &FileRecord| cache.join(record.blake3.to_string()).exists();
        drop(store.fetch("a", &a, &folder).unwrap());
        drop(store.fetch("b", &b, &folder).unwrap());
        old(&a, 200);
        old(&b, 100);
        drop(store.fetch("a", &a, &folder).unwrap());
        drop(store.fetch("c", &c, &folder).unwrap());
        assert_eq!([&a, &b, &c].map(kept), [true, false, true], "a was taken after b");
        old(&a, 100);
        let reading = store.fetch("a", &a, &folder).unwrap();
        old(&a, 100);
        drop(store.fetch("d", &d, &folder).unwrap());
        assert_eq!([&a, &c, &d].map(kept), [true, false, true], "a is read");
        drop(reading);
        // What is larger than all of it is passed by.
        let large = record(&store, "large", &[7; 30]);
        let copy = store.fetch("large", &large, &folder).unwrap();
        assert!(!copy.path().starts_with(&cache) && held(&cache) == 2);
        drop(copy);
        // What a killed process left goes, what another one has just begun stays.
        for (name, age) in [("left", 1000), ("begun", 0)] {
            let file = File::create(cache.join(format!("{name}{TEMPORARY}"))).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        drop(store.fetch("b", &b, &folder).unwrap());
        let temporary = |name: &str| cache.join(format!("{name}{TEMPORARY}")).exists();
        assert_eq!(["left", "begun"].map(temporary), [false, true]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn many_readers_at_once_share_a_cache_that_is_too_small() {
        let (store, cache, folder) = cached("many", 3000);
        let records: Vec<_> = (0..8u8).map(|i| record(&store, &i.to_string(), &vec![i; 1000])).collect();
        std::thread::scope(|scope| {
            for reader in 0..4usize {
                let (store, records, folder) = (&store, &records, &folder);
                scope.spawn(move || {
                    for round in 0..40 {
                        let i = (round * 3 + reader) % 8;
                        let file = store.fetch(&i.to_string(), &records[i], folder).unwrap();
                        assert_eq!(fs::read(file.path()).unwrap(), vec![i as u8; 1000]);
                    }
                });
            }
        });
        let bytes: u64 = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 3000, "{bytes}");
        fs::remove_dir_all(folder).unwrap();
    }
}
