//! Hashes of local files, remembered between runs: a large corpus is not read again for every plan.
//!
//! A file whose device, inode, size and both times are unchanged counts as the same file. Files that changed in the
//! last seconds are not remembered, because a second change within one tick of the clock would not show. The job that
//! reads a file hashes what it reads, so a wrong memory stops a job and never enters a dataset. Small files are hashed
//! each time.

use crate::files::error::FileError;
use crate::lock::lock;
use smelt_schemas::Source;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file and what it is called in the dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Relative name with `/` between its components.
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
}

/// Files below this are hashed each time.
const WORTH_BYTES: u64 = 256 << 10;
/// A file must be unchanged for this long.
const AT_REST: Duration = Duration::from_secs(5);

/// The hashes of earlier runs, and where they are kept.
#[derive(Debug)]
pub struct Memory {
    file: Option<PathBuf>,
    known: HashMap<String, String>,
}

impl Memory {
    /// The memory of this user: `smelt/hashes` in the cache folder. Without one, or when it cannot be read, nothing is
    /// known.
    pub fn of_user() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        Self::at(cache.map(|cache| cache.join("smelt/hashes")))
    }

    /// Where it is kept.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.file.as_ref()?.parent()
    }

    fn at(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let known = text.lines().filter_map(|line| line.split_once(' '));
        // The last line about a file counts; a torn line has no whole hash.
        let known = known.filter(|(_, hash)| hash.len() == 64).map(|(key, hash)| (key.to_owned(), hash.to_owned()));
        Memory { known: known.collect(), file }
    }

    /// What every file is, in order; each hashed once, by several threads.
    pub fn sources(&self, files: &[Found]) -> Result<Vec<Source>, FileError> {
        let found: Mutex<Vec<Option<Result<Source, FileError>>>> = Mutex::new(files.iter().map(|_| None).collect());
        let (next, fresh) = (AtomicUsize::new(0), Mutex::new(String::new()));
        let worker = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = files.get(i) else { return };
                let source = self.source(file, &fresh);
                lock(&found)[i] = Some(source);
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
            for _ in 1..threads.min(files.len()) {
                scope.spawn(worker);
            }
            worker();
        });
        self.keep(&lock(&fresh));
        let found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        found.into_iter().map(|source| source.expect("every file was looked at")).collect()
    }

    fn source(&self, file: &Found, fresh: &Mutex<String>) -> Result<Source, FileError> {
        if file.bytes < WORTH_BYTES || self.file.is_none() {
            return hash(file);
        }
        let cannot = |source| FileError::Read { name: file.path.display().to_string(), source };
        let before = key(&std::fs::metadata(&file.path).map_err(cannot)?);
        if let Some(version) = self.known.get(&before) {
            return Ok(Source { name: file.name.clone(), bytes: file.bytes, version: version.clone() });
        }
        let source = hash(file)?;
        let after = std::fs::metadata(&file.path).map_err(cannot)?;
        if key(&after) == before && is_at_rest(&after) {
            lock(fresh).push_str(&format!("{before} {}\n", source.version));
        }
        Ok(source)
    }

    /// Appends new hashes, in one write. If that fails, the next plan only takes longer.
    fn keep(&self, lines: &str) {
        let Some(file) = self.file.as_ref().filter(|_| !lines.is_empty()) else { return };
        let append = || -> io::Result<()> {
            std::fs::create_dir_all(file.parent().unwrap_or(file))?;
            File::options().create(true).append(true).open(file)?.write_all(lines.as_bytes())
        };
        append().unwrap_or_default();
    }
}

fn key(meta: &Metadata) -> String {
    let (m, c) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    format!("{}:{}:{}:{}.{:09}:{}.{:09}", meta.dev(), meta.ino(), meta.size(), m.0, m.1, c.0, c.1)
}

fn is_at_rest(meta: &Metadata) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let newest = u64::try_from(meta.mtime().max(meta.ctime())).unwrap_or(u64::MAX);
    newest.saturating_add(AT_REST.as_secs()) < now
}

/// What a file holds, under its name in the dataset.
pub fn hash(file: &Found) -> Result<Source, FileError> {
    let cannot = |source| FileError::Read { name: file.path.display().to_string(), source };
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut File::open(&file.path).map_err(cannot)?, &mut hasher).map_err(cannot)?;
    Ok(Source { name: file.name.clone(), bytes, version: hasher.finalize().to_hex().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, name: &str, bytes: &[u8]) -> Found {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        Found { name: name.into(), bytes: bytes.len() as u64, path }
    }

    #[test]
    fn what_is_remembered_is_not_read_again_and_what_changed_is() {
        let folder = std::env::temp_dir().join(format!("smelt-hashes-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let memory_file = folder.join("deeper/hashes");
        let large = file(&folder, "large", &vec![7; WORTH_BYTES as usize]);
        let small = file(&folder, "small", b"small");
        let files = [large.clone(), small];

        // A file that was just written is not at rest.
        let first = Memory::at(Some(memory_file.clone())).sources(&files).unwrap();
        assert!(!memory_file.exists());
        assert_eq!(first[0].version, blake3::hash(&vec![7; WORTH_BYTES as usize]).to_hex().to_string());

        // A remembered hash is believed, even a wrong one: only the job that reads the file can tell.
        let line = format!("torn\n{} {}\n", key(&std::fs::metadata(&large.path).unwrap()), "0".repeat(64));
        Memory::at(Some(memory_file.clone())).keep(&line);
        let second = Memory::at(Some(memory_file.clone())).sources(&files).unwrap();
        assert_eq!(second[0].version, "0".repeat(64));
        assert_eq!(second[1], first[1]);

        // Another size, because the clock may not have ticked since.
        let changed = [file(&folder, "large", &vec![8; WORTH_BYTES as usize + 1])];
        let third = Memory::at(Some(memory_file)).sources(&changed).unwrap();
        assert_eq!(third[0].version, blake3::hash(&vec![8; WORTH_BYTES as usize + 1]).to_hex().to_string());
        assert_eq!(Memory::at(None).sources(&files[1..]).unwrap(), first[1..]);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_at_rest_is_remembered() {
        // The test program was not written in the last seconds; the hash of a small file would not be kept.
        let manifest = std::env::current_exe().unwrap();
        let bytes = std::fs::metadata(&manifest).unwrap().len();
        let program = Found { name: "program".into(), path: manifest.clone(), bytes };
        let memory = Memory::at(Some("unused".into()));
        let fresh = Mutex::new(String::new());
        let source = memory.source(&program, &fresh).unwrap();
        let is_kept = !lock(&fresh).is_empty();
        assert_eq!(is_kept, bytes >= WORTH_BYTES && is_at_rest(&std::fs::metadata(&manifest).unwrap()));
        assert_eq!(source, hash(&program).unwrap());
    }
}
