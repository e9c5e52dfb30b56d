//! A store that is a directory.
//!
//! `object_store` also offers a local file system, but it syncs nothing and cannot compare and swap. A commit must
//! survive a power cut, so a file is written here in four steps: to a temporary name, sync, link or rename, sync of the
//! folder.

use crate::entry::{Entry, Version};
use crate::unique::unique;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

pub(crate) struct Directory {
    pub root: PathBuf,
}

/// The ending of files that are still being written. No listing shows them.
pub(crate) const TEMPORARY: &str = ".smelt-tmp";

impl Directory {
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// A new file beside `key`, under a name that no listing shows.
    pub(crate) fn temporary(&self, key: &str) -> io::Result<(File, PathBuf)> {
        let target = self.path(key);
        fs::create_dir_all(folder(&target))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = target.with_file_name(format!(".{name}.{}{TEMPORARY}", unique()));
        Ok((OpenOptions::new().write(true).create_new(true).open(&path)?, path))
    }

    /// Makes a finished and synced temporary file visible as `key`, replacing what was there.
    pub(crate) fn publish(&self, temporary: &Path, key: &str) -> io::Result<()> {
        let target = self.path(key);
        fs::rename(temporary, &target)?;
        sync_folder(&target)
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut file, temporary) = self.temporary(key)?;
        let done = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| self.publish(&temporary, key));
        if done.is_err() {
            remove_quietly(&temporary);
        }
        done
    }

    /// False if `key` exists.
    pub(crate) fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        let (mut file, temporary) = self.temporary(key)?;
        let target = self.path(key);
        let done =
            file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&temporary, &target));
        remove_quietly(&temporary);
        match done {
            Ok(()) => sync_folder(&target).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Replaces `key` if it still is `expected`. A lock on the folder makes it one step among processes of one host.
    pub(crate) fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> io::Result<bool> {
        let lock = File::open(folder(&self.path(key)))?;
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
        match fs::remove_dir_all(self.path(prefix)) {
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
