//! One store: keys to bytes, with create-only puts, compare and swap, and digests on the way in and out.

use crate::backing::{Backing, BackingError};
use crate::cache::Cache;
use crate::clouds;
use crate::directory::Directory;
use crate::entry::{Entry, Version};
use crate::error::{Error, Result, of_backing, of_io};
use crate::kill::before_write;
use crate::memory::Memory;
use crate::objects::Objects;
use crate::retry::Client;
use crate::unique::unique;
use crate::verified::{Stamp, Verified};
use bytes::Bytes;
use object_store::ObjectStore;
use smelt_schemas::{Digest, FileRecord};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

/// A handle; clones talk to the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) backing: Arc<dyn Backing>,
    address: Arc<str>,
    cache: Option<Arc<Cache>>,
    verified: Arc<Verified>,
}

/// A verified file on this machine: the store's own, or a copy that vanishes with this value.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    copy: bool,
    /// Of a file in the cache, which is not evicted meanwhile.
    _lock: Option<std::fs::File>,
}

impl LocalFile {
    pub(crate) fn copy(path: PathBuf) -> Self {
        Self { path, copy: true, _lock: None }
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
    /// Opens a directory (`~/` is the user's), `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or
    /// `memory:NAME`, which lives as long as the process. Connects to nothing yet. Credentials come from the variables
    /// and files of each cloud's own tools, never from the address. A bucket's files are read through the cache that
    /// SMELT_CACHE names.
    pub fn open(address: &str) -> Result<Self> {
        let bad = |why: &str| Error::Address { address: redact(address), why: why.into() };
        if clouds::is_bucket(address) {
            let (client, prefix) = clouds::open(address, &redact(address))?;
            let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
            let bucket = rest.split('/').next().unwrap_or_default();
            let shown = format!("{scheme}://{bucket}/{prefix}");
            let store = Self::over_objects(client, &prefix, shown.trim_end_matches('/'));
            return Ok(Self { cache: Cache::of_environment()?.map(Arc::new), ..store });
        }
        if let Some(name) = address.strip_prefix("memory:") {
            static STORES: LazyLock<Mutex<HashMap<String, Memory>>> = LazyLock::new(Default::default);
            let mut stores = STORES.lock().expect("no thread panics while it holds this lock");
            let objects = stores.entry(name.into()).or_default().clone();
            return Ok(Self::over_objects(Arc::new(objects), "", address));
        }
        let path = address.strip_prefix("file://").unwrap_or(address);
        if path.is_empty() {
            return Err(bad("it is empty"));
        }
        if path.contains("://") {
            return Err(bad("only directories, s3://, gs:// and az:// are known"));
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
        Ok(Self::over(Arc::new(Directory { root }), path))
    }

    /// A store over any backing. `address` names it in messages, and holds no secret.
    pub fn over(backing: Arc<dyn Backing>, address: &str) -> Self {
        Self { backing, address: address.into(), cache: None, verified: Arc::default() }
    }

    /// A store over a client of an object store, whose requests are tried again. `prefix`: of all keys.
    pub fn over_objects(client: Arc<dyn Client>, prefix: &str, address: &str) -> Self {
        Self::over(Arc::new(Objects::new(client, prefix)), address)
    }

    /// Whether somebody waits for the first answer: then a server that has never answered is given up after two
    /// seconds, not after ten. One that has is waited for as long as any.
    pub fn hasty(self, is_hasty: bool) -> Self {
        self.backing.set_hasty(is_hasty);
        self
    }

    /// The same store, its files read through a cache.
    pub fn with_cache(mut self, cache: Cache) -> Self {
        self.cache = self.backing.local("").is_none().then(|| Arc::new(cache));
        self
    }

    /// What its files are read through.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_deref()
    }

    /// As given, less user and query.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The directory, if the store is one.
    pub fn directory(&self) -> Option<PathBuf> {
        self.backing.local("").map(|root| root.components().collect())
    }

    /// The client and the prefix of all keys, if the store is not a directory: for readers with their own runtime.
    pub fn objects(&self) -> Option<(Arc<dyn ObjectStore>, &str)> {
        self.backing.objects()
    }

    pub(crate) fn failed(&self, what: String) -> impl FnOnce(BackingError) -> Error {
        move |e| of_backing(&self.address, what, e)
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
        self.backing.get(key).map_err(self.failed(format!("reading `{key}`")))
    }

    pub fn get_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let what = format!("reading bytes {} to {} of `{key}`", range.start, range.end);
        self.backing.get_range(key, range).map_err(self.failed(what))?.ok_or_else(|| self.missing(key))
    }

    /// Writes `key`, replacing what was there in one step.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        before_write();
        self.backing.put(key, bytes).map_err(self.failed(format!("writing `{key}`")))
    }

    /// Writes `key` if it does not exist; false if it does and holds other bytes. After an error the key may exist all
    /// the same, for a reply can be lost: read it, and look whose it is.
    pub fn create(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        before_write();
        self.backing.create(key, bytes).map_err(self.failed(format!("creating `{key}`")))
    }

    /// Replaces `key` if it still is what was read as `expected`; false if not.
    pub fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> Result<bool> {
        before_write();
        self.backing.swap(key, expected, bytes).map_err(self.failed(format!("replacing `{key}`")))
    }

    /// Bytes of `key`; `None` if it does not exist.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        self.backing.size(key).map_err(self.failed(format!("looking at `{key}`")))
    }

    /// Everything below `prefix`, at any depth, sorted by key.
    pub fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.backing.list(prefix).map_err(self.failed(format!("listing `{prefix}`")))
    }

    /// The same, with the files that are being written, or were when a process was killed: only a directory has those.
    pub(crate) fn list_with_temporary(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.backing.list_with_temporary(prefix).map_err(self.failed(format!("listing `{prefix}`")))
    }

    /// Names of the files and of the folders right below `prefix`, each sorted.
    pub fn list_here(&self, prefix: &str) -> Result<(Vec<String>, Vec<String>)> {
        self.backing.list_here(prefix).map_err(self.failed(format!("listing `{prefix}`")))
    }

    pub fn delete(&self, key: &str) -> Result<()> {
        before_write();
        self.backing.delete(key).map_err(self.failed(format!("deleting `{key}`")))
    }

    /// Removes everything below `prefix`.
    pub fn delete_all(&self, prefix: &str) -> Result<()> {
        before_write();
        self.backing.delete_all(prefix).map_err(self.failed(format!("deleting `{prefix}`")))
    }

    #[cfg(test)]
    pub(crate) fn verified(&self) -> &Verified {
        &self.verified
    }

    /// The file at `key` on this machine, its length and blake3 compared with the record: in place if the store is a
    /// directory, else from the cache, or a copy in `scratch` that vanishes with the result. A file that this process
    /// has compared is not hashed again while it is unchanged.
    pub fn fetch(&self, key: &str, record: &FileRecord, scratch: &Path) -> Result<LocalFile> {
        if let Some(path) = self.backing.local(key) {
            let before = Stamp::of(&path);
            if !self.verified.has(&path, before.as_ref(), record) {
                self.read_verified(key, record, |_| Ok(()))?;
                self.verified.note(&path, before, record);
            }
            return Ok(LocalFile { path, copy: false, _lock: None });
        }
        if let Some(cache) = &self.cache {
            if let Some((path, lock)) = cache.find(record, &self.verified) {
                return Ok(LocalFile { path, copy: false, _lock: Some(lock) });
            }
            // A cache that cannot be written is passed by, and a file that is larger than it.
            if let Some((mut file, incoming)) = cache.begin(record) {
                let mut written = Ok(());
                self.read_verified(key, record, |piece| {
                    if written.is_ok() {
                        written = file.write_all(piece);
                    }
                    Ok(())
                })?;
                let kept = written.ok().and_then(|()| cache.keep(file, incoming, record, &self.verified));
                if let Some((path, lock)) = kept {
                    return Ok(LocalFile { path, copy: false, _lock: Some(lock) });
                }
            }
        }
        let local = |e| of_io(&scratch.display().to_string(), format!("copying `{key}` to it"), e);
        std::fs::create_dir_all(scratch).map_err(local)?;
        let path = scratch.join(format!("{}{}", unique(), crate::directory::TEMPORARY));
        let mut copy = std::fs::File::create_new(&path).map_err(local)?;
        let file = LocalFile::copy(path);
        self.read_verified(key, record, |piece| copy.write_all(piece).map_err(local))?;
        Ok(file)
    }

    /// Reads a file from its first byte to its last, and fails at the end if it is not what its record says.
    pub(crate) fn read_verified(
        &self,
        key: &str,
        record: &FileRecord,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut hasher, mut bytes, mut trouble) = (blake3::Hasher::new(), 0u64, None);
        let read = self.backing.read(key, &mut |piece| {
            hasher.update(piece);
            bytes += piece.len() as u64;
            take(piece).map_err(|e| {
                trouble = Some(e);
                io::Error::other("what was read could not be used")
            })
        });
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        if !read.map_err(self.failed(format!("reading `{key}`")))? {
            return Err(self.missing(key));
        }
        if bytes != record.bytes {
            return Err(self.corrupt(key, format!("has {bytes} bytes, its manifest says {}", record.bytes)));
        }
        let found = Digest::from(hasher.finalize());
        if found != record.blake3 {
            let what = format!("has digest {}, its manifest says {}", found.short(), record.blake3.short());
            return Err(self.corrupt(key, what));
        }
        Ok(())
    }

    /// Refuses a store that cannot be written, or that would let two writers overwrite each other: a probe key is
    /// created twice, and the second put must fail. `single_writer`: the user promises to start one run at a time.
    pub fn probe(&self, single_writer: bool) -> Result<()> {
        const PROBE: &str = "probe.json";
        if self.backing.local("").is_some() {
            // A directory's own create-new needs no probe; that it can be written does.
            return self.backing.upload("probe").map(drop).map_err(self.failed("writing to it".into()));
        }
        if self.get_opt(PROBE)?.is_some() {
            return Ok(()); // an earlier run has seen the second put refused: the key is written last
        }
        let key = format!("probes/{}.json", unique());
        let (first, second) = (self.create(&key, b"1")?, self.create(&key, b"2")?);
        self.delete(&key)?;
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
            assert_eq!((store.address(), store.directory()), (address, Some(folder.clone())), "{written}");
        }
        let home = std::env::var("HOME").unwrap();
        assert_eq!(Store::open("~/st/").unwrap().directory(), Some(Path::new(&home).join("st")));
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
            store.probe(false).unwrap();
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
