//! A store that is a directory.
//!
//! `object_store` also offers a local file system, but it syncs nothing and cannot compare and swap. A commit must
//! survive a power cut, so a file is written here in four steps: to a temporary name, sync, link or rename, sync of the
//! folder.

use crate::backing::{Backing, Result, Sink};
use crate::entry::{Entry, Version};
use crate::unique::unique;
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub root: PathBuf,
}

/// For how long a write begins anew because its folder was deleted, or a deletion because something was written.
const PATIENCE: Duration = Duration::from_secs(5);

/// The ending of files that are still being written. No listing shows them.
pub(crate) const TEMPORARY: &str = ".smelt-tmp";

impl Directory {
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// A new file beside `key`, under a name that no listing shows.
    pub(crate) fn temporary(&self, key: &str) -> io::Result<(File, PathBuf)> {
        let target = self.path(key);
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = target.with_file_name(format!(".{name}.{}{TEMPORARY}", unique()));
        anew(io::ErrorKind::NotFound, || {
            fs::create_dir_all(folder(&target))?;
            Ok((OpenOptions::new().write(true).create_new(true).open(&path)?, path.clone()))
        })
    }

    /// Makes a finished and synced temporary file visible as `key`, replacing what was there.
    pub(crate) fn publish(&self, temporary: &Path, key: &str) -> io::Result<()> {
        let target = self.path(key);
        fs::rename(temporary, &target)?;
        sync_folder(&target)
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        anew(io::ErrorKind::NotFound, || {
            let (mut file, temporary) = self.temporary(key)?;
            let written = file.write_all(bytes).and_then(|()| file.sync_all());
            let done = written.and_then(|()| self.publish(&temporary, key));
            if done.is_err() {
                remove_quietly(&temporary);
            }
            done
        })
    }

    /// False if `key` exists.
    pub(crate) fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        let target = self.path(key);
        let done = anew(io::ErrorKind::NotFound, || {
            let (mut file, temporary) = self.temporary(key)?;
            let written = file.write_all(bytes).and_then(|()| file.sync_all());
            let done = written.and_then(|()| fs::hard_link(&temporary, &target));
            remove_quietly(&temporary);
            done.and_then(|()| sync_folder(&target))
        });
        match done {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Replaces `key` if it still is `expected`. A lock on the folder makes it one step among processes of one host.
    pub(crate) fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> io::Result<bool> {
        let lock = match File::open(folder(&self.path(key))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        // SAFETY: the descriptor is open for as long as `lock` lives; the lock ends with it.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return Err(io::Error::last_os_error());
        }
        match fs::read(self.path(key)) {
            Ok(found) if Version::of_bytes(&found) == *expected => self.put(key, bytes).map(|()| true),
            Ok(_) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Files below `prefix`, at any depth; sorted.
    pub(crate) fn list(&self, prefix: &str) -> io::Result<Vec<Entry>> {
        let mut found = self.list_with_temporary(prefix)?;
        found.retain(|entry| !is_temporary(&entry.key));
        Ok(found)
    }

    /// The same, with the files that are being written, or were when a process was killed.
    pub(crate) fn list_with_temporary(&self, prefix: &str) -> io::Result<Vec<Entry>> {
        fn walk(folder: &Path, key: &str, out: &mut Vec<Entry>) -> io::Result<()> {
            let items = match fs::read_dir(folder) {
                Ok(items) => items,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            };
            for item in items {
                let item = item?;
                let name = item.file_name().to_string_lossy().into_owned();
                let key = if key.is_empty() { name.clone() } else { format!("{key}/{name}") };
                // A file may vanish between the listing and this call.
                let Ok(meta) = item.metadata() else { continue };
                if meta.is_dir() {
                    walk(&item.path(), &key, out)?;
                } else {
                    let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
                    out.push(Entry { key, bytes: meta.len(), modified: modified.map_or(0.0, |d| d.as_secs_f64()) });
                }
            }
            Ok(())
        }
        let mut out = Vec::new();
        walk(&self.path(prefix), prefix, &mut out)?;
        out.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(out)
    }

    /// Names of the files and of the folders right below `prefix`; sorted.
    pub(crate) fn list_here(&self, prefix: &str) -> io::Result<(Vec<String>, Vec<String>)> {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        match fs::read_dir(self.path(prefix)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(items) => {
                for item in items {
                    let item = item?;
                    let name = item.file_name().to_string_lossy().into_owned();
                    match item.file_type()?.is_dir() {
                        true => folders.push(name),
                        false if !name.ends_with(TEMPORARY) => files.push(name),
                        false => {}
                    }
                }
            }
        }
        files.sort();
        folders.sort();
        Ok((files, folders))
    }

    /// Removes everything below `prefix`, temporary files too.
    pub(crate) fn delete_all(&self, prefix: &str) -> io::Result<()> {
        let deleted = anew(io::ErrorKind::DirectoryNotEmpty, || fs::remove_dir_all(self.path(prefix)));
        match deleted {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(crate) fn delete(&self, key: &str) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// `None` where there is no such file.
fn found<T>(result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Backing for Directory {
    fn get(&self, key: &str) -> Result<Option<(Bytes, Version)>> {
        let Some(bytes) = found(fs::read(self.path(key)))? else { return Ok(None) };
        let version = Version::of_bytes(&bytes);
        Ok(Some((bytes.into(), version)))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        let Some(file) = found(File::open(self.path(key)))? else { return Ok(None) };
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(Some(bytes.into()))
    }

    fn read(&self, key: &str, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<bool> {
        let Some(mut file) = found(File::open(self.path(key)))? else { return Ok(false) };
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => take(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        Ok(self.put(key, bytes)?)
    }

    fn create(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        Ok(self.create(key, bytes)?)
    }

    fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> Result<bool> {
        Ok(self.swap(key, expected, bytes)?)
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        Ok(found(fs::metadata(self.path(key)))?.filter(fs::Metadata::is_file).map(|meta| meta.len()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        Ok(self.list(prefix)?)
    }

    fn list_with_temporary(&self, prefix: &str) -> Result<Vec<Entry>> {
        Ok(self.list_with_temporary(prefix)?)
    }

    fn list_here(&self, prefix: &str) -> Result<(Vec<String>, Vec<String>)> {
        Ok(self.list_here(prefix)?)
    }

    fn delete(&self, key: &str) -> Result<()> {
        Ok(self.delete(key)?)
    }

    fn delete_all(&self, prefix: &str) -> Result<()> {
        Ok(self.delete_all(prefix)?)
    }

    fn upload(&self, key: &str) -> Result<Box<dyn Sink>> {
        let (file, temporary) = self.temporary(key)?;
        let file = BufWriter::with_capacity(1 << 18, file);
        Ok(Box::new(Incoming { directory: self.clone(), key: key.into(), file, temporary }))
    }

    fn local(&self, key: &str) -> Option<PathBuf> {
        Some(self.path(key))
    }
}

/// A file under a name that no listing shows.
struct Incoming {
    directory: Directory,
    key: String,
    file: BufWriter<File>,
    /// Empty once it is published.
    temporary: PathBuf,
}

impl Sink for Incoming {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all(bytes)?)
    }

    fn settle(&mut self) -> Result<()> {
        self.file.flush()?;
        Ok(self.file.get_ref().sync_all()?)
    }

    fn publish(&mut self) -> Result<()> {
        self.directory.publish(&self.temporary, &self.key)?;
        self.temporary = PathBuf::new();
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            remove_quietly(&self.temporary);
        }
    }
}

/// Does it again while it fails in this way: one process may delete a folder, after a commit for example, while
/// another one writes into it.
fn anew<T>(failure: io::ErrorKind, mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let since = Instant::now();
    loop {
        match step() {
            Err(e) if e.kind() == failure && since.elapsed() < PATIENCE => {}
            done => return done,
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn sync_folder(target: &Path) -> io::Result<()> {
    File::open(folder(target))?.sync_all()
}

/// Whether a file is still being written, or was when its process was killed.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY)
}

/// For files that nobody can see: one that stays behind only costs space, until `gc` deletes its folder.
pub(crate) fn remove_quietly(path: &Path) {
    drop(fs::remove_file(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_while_another_process_deletes_their_folder() {
        let root = std::env::temp_dir().join(format!("smelt-deleted-{}", unique()));
        let directory = Directory { root: root.clone() };
        let writer = std::thread::spawn({
            let directory = Directory { root: root.clone() };
            move || {
                for i in 0..50 {
                    assert!(directory.create(&format!("a/b/c/{i}"), b"x").unwrap());
                    directory.put("a/b/d/e", b"x").unwrap();
                    directory.swap("a/b/d/e", &Version::of_bytes(b"x"), b"y").unwrap();
                }
            }
        });
        while !writer.is_finished() {
            directory.delete_all("a").unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        writer.join().unwrap();
        fs::remove_dir_all(root).unwrap();
    }
}
