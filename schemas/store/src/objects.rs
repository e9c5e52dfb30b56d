//! A backing behind `object_store`: buckets of S3, Google Cloud Storage and Azure, and memory for tests.

use crate::backing::{Backing, Result as Backed, Sink};
use crate::entry::{Entry, Version};
use crate::error::is_missing_bucket;
use crate::retry::{Client, Persistent};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Error, MultipartId, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, Result, UpdateVersion,
};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Parts of an upload; a smaller file is one put.
pub(crate) const PART: usize = 8 << 20;
/// Parts in flight at once.
const PARALLEL: usize = 4;

pub(crate) struct Objects {
    client: Persistent,
    prefix: String,
}

/// The one runtime that waits for networks. It is never dropped, and may be used from anywhere except its own threads.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("smelt-store")
            .enable_all()
            .build()
            .expect("a runtime of two threads starts")
    })
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} at `{}`", self.client, self.prefix)
    }
}

/// `None` where there is no such object; a bucket that is not there is an error.
fn found<T>(result: Result<T>) -> Backed<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e @ Error::NotFound { .. }) if !is_missing_bucket(&e) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Objects {
    /// `prefix`: of all keys, without a slash at its ends.
    pub(crate) fn new(client: Arc<dyn Client>, prefix: &str) -> Self {
        Self { client: Persistent::new(client), prefix: prefix.into() }
    }

    /// The same with another wait before a request is tried again.
    #[cfg(test)]
    pub(crate) fn waiting(self, wait: std::time::Duration) -> Self {
        Self { client: self.client.waiting(wait), ..self }
    }

    fn path(&self, key: &str) -> Path {
        let full = if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        Path::parse(&full).unwrap_or_else(|_| Path::from(full))
    }

    fn key(&self, path: &Path) -> String {
        let full = path.as_ref();
        full.strip_prefix(&self.prefix).map_or(full, |k| k.trim_start_matches('/')).to_owned()
    }

    fn put_with(&self, key: &str, bytes: &[u8], mode: PutMode) -> Result<()> {
        let payload = PutPayload::from(bytes.to_vec());
        runtime().block_on(self.client.put_opts(&self.path(key), payload, PutOptions::from(mode))).map(drop)
    }
}

impl Backing for Objects {
    fn get(&self, key: &str) -> Backed<Option<(Bytes, Version)>> {
        let read = async || {
            let found = self.client.get(&self.path(key)).await?;
            let version = Version { etag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            Ok((found.bytes().await?, version))
        };
        loop {
            match runtime().block_on(read()) {
                // It was replaced while it was read, and the read had to go on where it broke.
                Err(Error::Precondition { .. }) => {}
                done => return found(done),
            }
        }
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Backed<Option<Bytes>> {
        let wanted = range.end.saturating_sub(range.start);
        let read = found(runtime().block_on(self.client.get_range(&self.path(key), range)))?;
        match read {
            // A range that begins inside the object and ends behind it is cut.
            Some(bytes) if bytes.len() as u64 != wanted => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            other => Ok(other),
        }
    }

    fn read(&self, key: &str, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Backed<bool> {
        runtime().block_on(async {
            let Some(found) = found(self.client.get(&self.path(key)).await)? else { return Ok(false) };
            let mut pieces = found.into_stream();
            while let Some(piece) = pieces.next().await {
                take(&piece?)?;
            }
            Ok(true)
        })
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Backed<()> {
        Ok(self.put_with(key, bytes, PutMode::Overwrite)?)
    }

    fn create(&self, key: &str, bytes: &[u8]) -> Backed<bool> {
        match self.put_with(key, bytes, PutMode::Create) {
            Ok(()) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> Backed<bool> {
        let update = UpdateVersion { e_tag: expected.etag.clone(), version: expected.version.clone() };
        match self.put_with(key, bytes, PutMode::Update(update)) {
            Ok(()) => Ok(true),
            Err(Error::Precondition { .. } | Error::NotFound { .. } | Error::AlreadyExists { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn size(&self, key: &str) -> Backed<Option<u64>> {
        Ok(found(runtime().block_on(self.client.head(&self.path(key))))?.map(|meta| meta.size))
    }

    fn list(&self, prefix: &str) -> Backed<Vec<Entry>> {
        let found = runtime().block_on(self.client.list(Some(&self.path(prefix))).try_collect::<Vec<_>>())?;
        let mut entries: Vec<_> = found
            .into_iter()
            .map(|m| Entry {
                key: self.key(&m.location),
                bytes: m.size,
                modified: m.last_modified.timestamp_millis() as f64 / 1e3,
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    fn list_here(&self, prefix: &str) -> Backed<(Vec<String>, Vec<String>)> {
        let found = runtime().block_on(self.client.list_with_delimiter(Some(&self.path(prefix))))?;
        let name = |p: &Path| p.filename().unwrap_or_default().to_owned();
        let mut files: Vec<_> = found.objects.iter().map(|m| name(&m.location)).collect();
        let mut folders: Vec<_> = found.common_prefixes.iter().map(name).collect();
        files.sort();
        folders.sort();
        Ok((files, folders))
    }

    fn delete(&self, key: &str) -> Backed<()> {
        found(runtime().block_on(self.client.delete(&self.path(key)))).map(drop)
    }

    fn delete_all(&self, prefix: &str) -> Backed<()> {
        Ok(runtime().block_on(async {
            let paths = self.client.list(Some(&self.path(prefix))).map_ok(|m| m.location).boxed();
            self.client.delete_stream(paths).try_for_each(|_| async { Ok(()) }).await
        })?)
    }

    fn upload(&self, key: &str) -> Backed<Box<dyn Sink>> {
        Ok(Box::new(Outgoing {
            client: self.client.clone(),
            path: self.path(key),
            buffer: Vec::new(),
            id: None,
            sent: Vec::new(),
            in_flight: VecDeque::new(),
        }))
    }

    fn set_hasty(&self, is_hasty: bool) {
        self.client.set_hasty(is_hasty);
    }

    fn objects(&self) -> Option<(Arc<dyn ObjectStore>, &str)> {
        Some((Arc::new(self.client.clone()), &self.prefix))
    }
}

/// A file on its way to a bucket: one put if it is small, else parts, of which some are in flight.
struct Outgoing {
    client: Persistent,
    path: Path,
    buffer: Vec<u8>,
    /// Of an upload in parts, once it has begun.
    id: Option<MultipartId>,
    sent: Vec<PartId>,
    in_flight: VecDeque<JoinHandle<Result<PartId>>>,
}

impl Outgoing {
    /// Sends what is in the buffer as the next part.
    fn send(&mut self) -> Result<()> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.id.insert(runtime().block_on(self.client.create_multipart(&self.path))?).clone(),
        };
        self.wait(PARALLEL - 1)?;
        let (client, path, index) = (self.client.clone(), self.path.clone(), self.sent.len() + self.in_flight.len());
        let part = PutPayload::from(std::mem::take(&mut self.buffer));
        let sending = async move { client.put_part(&path, &id, index, part).await };
        self.in_flight.push_back(runtime().spawn(sending));
        Ok(())
    }

    /// Waits until at most `n` parts are in flight.
    fn wait(&mut self, n: usize) -> Result<()> {
        while self.in_flight.len() > n {
            let Some(part) = self.in_flight.pop_front() else { break };
            self.sent.push(runtime().block_on(part)??);
        }
        Ok(())
    }
}

impl Sink for Outgoing {
    fn write(&mut self, mut bytes: &[u8]) -> Backed<()> {
        while self.buffer.len() + bytes.len() > PART {
            let (fits, rest) = bytes.split_at(PART - self.buffer.len());
            self.buffer.extend_from_slice(fits);
            self.send()?;
            bytes = rest;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn settle(&mut self) -> Backed<()> {
        if self.id.is_some() && !self.buffer.is_empty() {
            self.send()?;
        }
        Ok(self.wait(0)?)
    }

    fn publish(&mut self) -> Backed<()> {
        match &self.id {
            None => {
                let whole = PutPayload::from(std::mem::take(&mut self.buffer));
                runtime().block_on(self.client.put(&self.path, whole))?;
            }
            Some(id) => {
                let parts = std::mem::take(&mut self.sent);
                runtime().block_on(self.client.complete_multipart(&self.path, id, parts))?;
                self.id = None;
            }
        }
        Ok(())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.in_flight.iter().for_each(JoinHandle::abort);
        if let Some(id) = self.id.take() {
            // The server forgets an unfinished upload by its own rules if this does not reach it.
            drop(runtime().block_on(self.client.abort_multipart(&self.path, &id)));
        }
    }
}
