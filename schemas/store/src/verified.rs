//! Which files on this machine were found to be what their records say, so that a process hashes each of them once.

use smelt_schemas::{Digest, FileRecord};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A file that was changed less than this long ago may be changed again with no sign of it: its times are those of a
/// clock that moves every few milliseconds.
const SETTLED: Duration = Duration::from_secs(1);

/// What changes with the bytes of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    is_settled: bool,
}

impl Stamp {
    /// `None` if the file cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        let seconds = u64::try_from(meta.ctime()).ok()?;
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(meta.ctime_nsec()).ok()?);
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            is_settled: changed.elapsed().is_ok_and(|age| age > SETTLED),
        })
    }
}

/// Files with the digest that was found, and what they were like just before.
#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<HashMap<PathBuf, (Stamp, Digest)>>);

impl Verified {
    /// Whether the file is unchanged since it was found to be what `record` says.
    pub(crate) fn has(&self, path: &Path, now: Option<&Stamp>, record: &FileRecord) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |stamp: &Stamp, now: &Stamp| Stamp { is_settled: now.is_settled, ..stamp.clone() } == *now;
        known.get(path).zip(now).is_some_and(|((stamp, digest), now)| same(stamp, now) && *digest == record.blake3)
    }

    /// Keeps that a file, like `before` when its hashing began, is what `record` says.
    pub(crate) fn note(&self, path: &Path, before: Option<Stamp>, record: &FileRecord) {
        if let Some(stamp) = before.filter(|stamp| stamp.is_settled) {
            self.set(path, stamp, record);
        }
    }

    /// Keeps the same of a file whose times alone were changed, by this process.
    pub(crate) fn renew(&self, path: &Path, record: &FileRecord) {
        if let Some(stamp) = Stamp::of(path) {
            self.set(path, stamp, record);
        }
    }

    fn set(&self, path: &Path, stamp: Stamp, record: &FileRecord) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(path.to_owned(), (stamp, record.blake3.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use crate::unique::unique;
    use std::fs::File;
    use std::io::Write;

    /// Ages a file, as if it had been written long ago; its time of change cannot be set, so the test waits.
    fn settle() {
        std::thread::sleep(SETTLED + Duration::from_millis(100));
    }

    #[test]
    fn a_file_is_hashed_again_once_it_may_have_changed() {
        let folder = std::env::temp_dir().join(format!("smelt-verified-{}", unique()));
        let store = Store::open(&folder.display().to_string()).unwrap();
        let mut upload = store.upload("a").unwrap();
        upload.write_all(b"hello").unwrap();
        let record = upload.finish("a").unwrap();
        let path = folder.join("a");
        let known = |now: Option<&Stamp>| store.verified().has(&path, now, &record);
        store.fetch("a", &record, &folder).unwrap();
        assert!(!known(Stamp::of(&path).as_ref()), "it was just written");
        settle();
        assert!(!known(Stamp::of(&path).as_ref()));
        store.fetch("a", &record, &folder).unwrap();
        assert!(known(Stamp::of(&path).as_ref()));
        store.fetch("a", &record, &folder).unwrap();
        // Same length, same time of modification: the time of change tells.
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, b"hellO").unwrap();
        File::open(&path).unwrap().set_modified(modified).unwrap();
        let error = store.fetch("a", &record, &folder).unwrap_err().to_string();
        assert!(error.contains("has digest"), "{error}");
        // Another record of the same file is another question.
        std::fs::write(&path, b"hello").unwrap();
        settle();
        store.fetch("a", &record, &folder).unwrap();
        let lie = FileRecord { blake3: Digest::of(b"b"), ..record.clone() };
        assert!(store.fetch("a", &lie, &folder).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
