//! One store: keys to bytes, with create-only puts, compare and swap, and digests on the way in and out.

use crate::directory::Directory;
use crate::entry::{Entry, Version};
use crate::error::{Error, Result, is_missing_bucket, of_io, of_objects, without_secrets};
use crate::kill::before_write;
use crate::objects::{self, Objects};
use crate::profile::Profile;
use crate::unique::unique;
use bytes::Bytes;
use object_store::ObjectStore;
use smelt_schemas::{Digest, FileRecord};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

/// A handle; clones talk to the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) backing: Arc<Backing>,
    address: Arc<str>,
}

/// Where the bytes are.
pub(crate) enum Backing {
    Directory(Directory),
    Objects(Objects),
}

/// A verified file on this machine: the store's own, or a copy that vanishes with this value.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    copy: bool,
}

impl LocalFile {
    pub(crate) fn copy(path: PathBuf) -> Self {
        Self { path, copy: true }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if self.copy {
            crate::directory::remove_quietly(&self.path);
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Store({})", self.address)
    }
}

impl Store {
    /// Opens a directory (`~/` is the user's), `s3://bucket/prefix`, or `memory:NAME`, which lives as long as the
    /// process. Connects to nothing yet. Credentials come from the AWS_* variables or the user's AWS profile, never
    /// from the address.
    pub fn open(address: &str) -> Result<Self> {
        let bad = |why: &str| Error::Address { address: redact(address), why: why.into() };
        if let Some(rest) = address.strip_prefix("s3://") {
            if rest.contains(['@', '?']) {
                return Err(bad("it holds a user or a query; credentials come from the AWS_* variables"));
            }
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(bad("it names no bucket"));
            }
            if !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
                return Err(bad("the name of a bucket has letters, digits, `-` and `.` only"));
            }
            let prefix = prefix.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
            let variable = |name: &str| std::env::var(name).ok();
            let profile = Profile::of_user(variable);
            if let Some(missing) = objects::missing_credentials(variable, &profile) {
                return Err(Error::NoCredentials { store: redact(address), missing });
            }
            let endpoint = objects::endpoint(variable, &profile);
            if let Some((named_by, endpoint)) = &endpoint
                && let Some(why) = objects::wrong_endpoint(endpoint)
            {
                let (address, named_by) = (without_secrets(endpoint), named_by.clone());
                return Err(Error::Endpoint { address, named_by, why: why.into() });
            }
            let objects = objects::s3(bucket, endpoint.map(|(_, address)| address), &profile)
                .map_err(|e| of_objects(&redact(address), "opening it".into(), e))?;
            let shown = format!("s3://{bucket}/{prefix}");
            return Ok(Self::of_objects(objects, &prefix, shown.trim_end_matches('/')));
        }
        if let Some(name) = address.strip_prefix("memory:") {
            static STORES: LazyLock<Mutex<HashMap<String, Arc<dyn ObjectStore>>>> = LazyLock::new(Default::default);
            let mut stores = STORES.lock().expect("no thread panics while it holds this lock");
            let fresh = || Arc::new(object_store::memory::InMemory::new()) as Arc<dyn ObjectStore>;
            let objects = stores.entry(name.into()).or_insert_with(fresh).clone();
            return Ok(Self::of_objects(objects, "", address));
        }
        let path = address.strip_prefix("file://").unwrap_or(address);
        if path.is_empty() {
            return Err(bad("it is empty"));
        }
        if path.contains("://") {
            return Err(bad("only directories and s3:// are known"));
        }
        let path = match path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            Some(rest) => {
                let home = std::env::var("HOME").ok().filter(|home| !home.is_empty());
                home.ok_or_else(|| bad("it begins with `~`, and the variable HOME is not set"))? + rest
            }
            None => path.to_owned(),
        };
        // Without the slash that a shell appends when it completes the name of a folder.
        let path = match path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        let root = std::path::absolute(path).map_err(|e| of_io(address, "finding it".into(), e))?;
        if root.exists() && !root.is_dir() {
            return Err(bad("it is a file, not a directory"));
        }
        Ok(Self { backing: Arc::new(Backing::Directory(Directory { root })), address: path.into() })
    }

    fn of_objects(objects: Arc<dyn ObjectStore>, prefix: &str, address: &str) -> Self {
        let backing = Backing::Objects(Objects { objects, prefix: prefix.into() });
        Self { backing: Arc::new(backing), address: address.into() }
    }

    /// As given, less user and query.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The directory, if the store is one.
    pub fn directory(&self) -> Option<&Path> {
        match &*self.backing {
            Backing::Directory(d) => Some(&d.root),
            Backing::Objects(_) => None,
        }
    }

    /// The client and the prefix of all keys, if the store is not a directory: for readers with their own runtime.
    pub fn objects(&self) -> Option<(Arc<dyn ObjectStore>, &str)> {
        match &*self.backing {
            Backing::Directory(_) => None,
            Backing::Objects(o) => Some((o.objects.clone(), &o.prefix)),
        }
    }

    fn io(&self, what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> Error {
        move |e| of_io(&self.address, what(), e)
    }

    fn remote(&self, what: impl FnOnce() -> String) -> impl FnOnce(object_store::Error) -> Error {
        move |e| of_objects(&self.address, what(), e)
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::NotFound { store: self.address.to_string(), key: key.into() }
    }

    pub(crate) fn corrupt(&self, key: &str, what: impl Into<String>) -> Error {
        Error::Corrupt { store: self.address.to_string(), key: key.into(), what: what.into() }
    }

    pub fn get(&self, key: &str) -> Result<Bytes> {
        self.get_versioned(key)?.map(|(bytes, _)| bytes).ok_or_else(|| self.missing(key))
    }

    /// `None` if `key` does not exist.
    pub fn get_opt(&self, key: &str) -> Result<Option<Bytes>> {
        Ok(self.get_versioned(key)?.map(|(bytes, _)| bytes))
    }

    pub fn get_versioned(&self, key: &str) -> Result<Option<(Bytes, Version)>> {
        let what = || format!("reading `{key}`");
        match &*self.backing {
            Backing::Directory(d) => match std::fs::read(d.path(key)) {
                Ok(bytes) => {
                    let version = Version::of_bytes(&bytes);
                    Ok(Some((bytes.into(), version)))
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(self.io(what)(e)),
            },
            Backing::Objects(o) => match o.get(key) {
                Ok(found) => Ok(Some(found)),
                Err(e @ object_store::Error::NotFound { .. }) if !is_missing_bucket(&e) => Ok(None),
                Err(e) => Err(self.remote(what)(e)),
            },
        }
    }

    pub fn get_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let what = || format!("reading bytes {} to {} of `{key}`", range.start, range.end);
        match &*self.backing {
            Backing::Directory(d) => {
                let read = || {
                    use std::os::unix::fs::FileExt;
                    let file = std::fs::File::open(d.path(key))?;
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    file.read_exact_at(&mut bytes, range.start)?;
                    Ok(bytes.into())
                };
                match read() {
                    Err(e) if io::Error::kind(&e) == io::ErrorKind::NotFound => Err(self.missing(key)),
                    other => other.map_err(self.io(what)),
                }
            }
            Backing::Objects(o) => o.get_range(key, range.clone()).map_err(self.remote(what)),
        }
    }

    /// Writes `key`, replacing what was there in one step.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        before_write();
        let what = || format!("writing `{key}`");
        match &*self.backing {
            Backing::Directory(d) => d.put(key, bytes).map_err(self.io(what)),
            Backing::Objects(o) => o.put(key, bytes).map_err(self.remote(what)),
        }
    }

    /// Writes `key` if it does not exist; false if it does. After an error the key may exist all the same, for a
    /// reply can be lost: read it, and look whose it is.
    pub fn create(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        before_write();
        let what = || format!("creating `{key}`");
        match &*self.backing {
            Backing::Directory(d) => d.create(key, bytes).map_err(self.io(what)),
            Backing::Objects(o) => o.create(key, bytes).map_err(self.remote(what)),
        }
    }

    /// Replaces `key` if it still is what was read as `expected`; false if not.
    pub fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> Result<bool> {
        before_write();
        let what = || format!("replacing `{key}`");
        match &*self.backing {
            Backing::Directory(d) => d.swap(key, expected, bytes).map_err(self.io(what)),
            Backing::Objects(o) => o.swap(key, expected, bytes).map_err(self.remote(what)),
        }
    }

    /// Bytes of `key`; `None` if it does not exist.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        let what = || format!("looking at `{key}`");
        match &*self.backing {
            Backing::Directory(d) => match std::fs::metadata(d.path(key)) {
                Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
                Ok(_) => Ok(None),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(self.io(what)(e)),
            },
            Backing::Objects(o) => match o.size(key) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e @ object_store::Error::NotFound { .. }) if !is_missing_bucket(&e) => Ok(None),
                Err(e) => Err(self.remote(what)(e)),
            },
        }
    }

    /// Everything below `prefix`, at any depth, sorted by key.
    pub fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let what = || format!("listing `{prefix}`");
        match &*self.backing {
            Backing::Directory(d) => d.list(prefix).map_err(self.io(what)),
            Backing::Objects(o) => o.list(prefix).map_err(self.remote(what)),
        }
    }

    /// The same, with the files that are being written, or were when a process was killed: only a directory has those.
    pub(crate) fn list_with_temporary(&self, prefix: &str) -> Result<Vec<Entry>> {
        match &*self.backing {
            Backing::Directory(d) => d.list_with_temporary(prefix).map_err(self.io(|| format!("listing `{prefix}`"))),
            Backing::Objects(_) => self.list(prefix),
        }
    }

    /// Names of the files and of the folders right below `prefix`, each sorted.
    pub fn list_here(&self, prefix: &str) -> Result<(Vec<String>, Vec<String>)> {
        let what = || format!("listing `{prefix}`");
        match &*self.backing {
            Backing::Directory(d) => d.list_here(prefix).map_err(self.io(what)),
            Backing::Objects(o) => o.list_here(prefix).map_err(self.remote(what)),
        }
    }

    pub fn delete(&self, key: &str) -> Result<()> {
        before_write();
        let what = || format!("deleting `{key}`");
        match &*self.backing {
            Backing::Directory(d) => d.delete(key).map_err(self.io(what)),
            Backing::Objects(o) => o.delete(key).map_err(self.remote(what)),
        }
    }

    /// Removes everything below `prefix`.
    pub fn delete_all(&self, prefix: &str) -> Result<()> {
        before_write();
        let what = || format!("deleting `{prefix}`");
        match &*self.backing {
            Backing::Directory(d) => d.delete_all(prefix).map_err(self.io(what)),
            Backing::Objects(o) => o.delete_all(prefix).map_err(self.remote(what)),
        }
    }

    /// The file at `key` on this machine, its length and blake3 compared with the record: in place if the store is a
    /// directory, else a copy in `scratch` that vanishes with the result.
    pub fn fetch(&self, key: &str, record: &FileRecord, scratch: &Path) -> Result<LocalFile> {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0u64;
        let file = match &*self.backing {
            Backing::Directory(d) => {
                let path = d.path(key);
                let mut source = match std::fs::File::open(&path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(self.missing(key)),
                    other => other.map_err(self.io(|| format!("reading `{key}`")))?,
                };
                let mut buffer = vec![0; 1 << 18];
                loop {
                    match source.read(&mut buffer).map_err(self.io(|| format!("reading `{key}`")))? {
                        0 => break,
                        n => {
                            hasher.update(&buffer[..n]);
                            bytes += n as u64;
                        }
                    }
                }
                LocalFile { path, copy: false }
            }
            Backing::Objects(o) => {
                let local = |e| of_io(&scratch.display().to_string(), format!("copying `{key}` to it"), e);
                std::fs::create_dir_all(scratch).map_err(local)?;
                let path = scratch.join(format!("{}{}", unique(), crate::directory::TEMPORARY));
                let mut copy = std::fs::File::create_new(&path).map_err(local)?;
                let file = LocalFile { path, copy: true };
                let mut trouble = None;
                let streamed = o.stream(key, |piece| {
                    hasher.update(piece);
                    bytes += piece.len() as u64;
                    copy.write_all(piece).map_err(|e| {
                        let kind = e.kind();
                        trouble = Some(e);
                        kind.into()
                    })
                });
                if let Some(e) = trouble {
                    return Err(local(e));
                }
                streamed.map_err(self.remote(|| format!("reading `{key}`")))?;
                file
            }
        };
        if bytes != record.bytes {
            return Err(self.corrupt(key, format!("has {bytes} bytes, its manifest says {}", record.bytes)));
        }
        let found = Digest::from(hasher.finalize());
        if found != record.blake3 {
            let what = format!("has digest {}, its manifest says {}", found.short(), record.blake3.short());
            return Err(self.corrupt(key, what));
        }
        Ok(file)
    }

    /// Refuses a store that would let two writers overwrite each other: a probe key is created twice, and the second
    /// put must fail. `SMELT_SINGLE_WRITER=1` accepts such a store.
    pub fn probe(&self) -> Result<()> {
        const PROBE: &str = "probe.json";
        if self.directory().is_none() && self.get_opt(PROBE)?.is_some() {
            return Ok(()); // an earlier run has seen the second put refused: the key is written last
        }
        if let Backing::Directory(d) = &*self.backing {
            // A directory's own create-new needs no probe; that it can be written does.
            let probe = d.temporary("probe").and_then(|(file, path)| {
                drop(file);
                std::fs::remove_file(path)
            });
            return probe.map_err(self.io(|| "writing to it".into()));
        }
        let key = format!("probes/{}.json", unique());
        let (first, second) = (self.create(&key, b"1")?, self.create(&key, b"2")?);
        self.delete(&key)?;
        let single_writer = std::env::var("SMELT_SINGLE_WRITER").is_ok_and(|v| v == "1");
        match (first, second) {
            (true, false) => self.put(PROBE, b"{\"create_only\":true}\n"),
            _ if single_writer => Ok(()),
            _ => Err(Error::Overwrites { store: self.address.to_string() }),
        }
    }
}

/// An address without user and query. A directory has neither, whatever characters its name holds.
fn redact(address: &str) -> String {
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
            let host_end = rest.find('/').unwrap_or(rest.len());
            let host_start = rest[..host_end].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[host_start..])
        }
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_never_shows_user_or_query() {
        let error = Store::open("s3://key:secret@bucket/prefix?token=secret").err().unwrap().to_string();
        assert_eq!(
            error,
            "`s3://bucket/prefix` is no store: it holds a user or a query; credentials come from the AWS_* variables"
        );
    }

    #[test]
    fn an_address_may_end_with_a_slash_and_begin_with_the_users_folder() {
        let folder = std::env::temp_dir().join(format!("smelt-slash-{}", unique()));
        let address = folder.to_str().unwrap();
        for written in [format!("{address}/"), format!("{address}//"), format!("file://{address}/")] {
            let store = Store::open(&written).unwrap();
            assert_eq!((store.address(), store.directory()), (address, Some(folder.as_path())), "{written}");
        }
        let home = std::env::var("HOME").unwrap();
        assert_eq!(Store::open("~/st/").unwrap().directory(), Some(Path::new(&home).join("st").as_path()));
        assert_eq!(Store::open("~").unwrap().address(), home.trim_end_matches('/'));
        assert!(Store::open("~st").unwrap().directory().unwrap().ends_with("~st"));
        let error = Store::open("s3://my bucket/x").err().unwrap().to_string();
        let why = "the name of a bucket has letters, digits, `-` and `.` only";
        assert_eq!(error, format!("`s3://my bucket/x` is no store: {why}"));
    }

    #[test]
    fn a_second_create_and_a_stale_swap_change_nothing() {
        let folder = std::env::temp_dir().join(format!("smelt-store-{}", unique()));
        for address in [folder.to_str().unwrap(), "memory:second-create"] {
            let store = Store::open(address).unwrap();
            assert!(store.create("a/b.json", b"1").unwrap());
            assert!(!store.create("a/b.json", b"2").unwrap());
            let (bytes, version) = store.get_versioned("a/b.json").unwrap().unwrap();
            assert_eq!(&bytes[..], b"1");
            assert!(store.swap("a/b.json", &version, b"3").unwrap());
            assert!(!store.swap("a/b.json", &version, b"4").unwrap());
            assert_eq!(&store.get("a/b.json").unwrap()[..], b"3");
            assert_eq!((store.size("a/b.json").unwrap(), store.size("a/c.json").unwrap()), (Some(1), None));
            assert_eq!(store.get_opt("a/c.json").unwrap(), None);
            assert_eq!(&store.get_range("a/b.json", 0..1).unwrap()[..], b"3");
            store.put("a/d/e", b"5").unwrap();
            assert_eq!(
                store.list("a").unwrap().iter().map(|e| e.key.as_str()).collect::<Vec<_>>(),
                ["a/b.json", "a/d/e"]
            );
            assert_eq!(store.list_here("a").unwrap(), (vec!["b.json".to_owned()], vec!["d".to_owned()]));
            store.probe().unwrap();
            store.delete_all("a").unwrap();
            assert_eq!(store.list("a").unwrap(), []);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_is_not_what_its_record_says_is_refused() {
        for address in [std::env::temp_dir().join(format!("smelt-{}", unique())).to_str().unwrap(), "memory:lies"] {
            let store = Store::open(address).unwrap();
            let scratch = std::env::temp_dir();
            let mut upload = store.upload("x.bin").unwrap();
            upload.write_all(b"hello").unwrap();
            let mut record = upload.finish("x.bin").unwrap();
            assert_eq!((record.bytes, &record.blake3), (5, &Digest::of(b"hello")));
            let file = store.fetch("x.bin", &record, &scratch).unwrap();
            assert_eq!(std::fs::read(file.path()).unwrap(), b"hello");
            store.put("x.bin", b"hellO").unwrap();
            let error = store.fetch("x.bin", &record, &scratch).unwrap_err().to_string();
            assert!(error.contains("has digest") && error.contains("its manifest says"), "{error}");
            record.bytes = 6;
            let error = store.fetch("x.bin", &record, &scratch).unwrap_err().to_string();
            assert!(error.contains("has 5 bytes, its manifest says 6"), "{error}");
            store.delete_all("").unwrap_or_default();
        }
    }
}
