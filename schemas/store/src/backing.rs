//! What lies below a store: any keeper of bytes that can do these things stands under the artifacts' logic.
//!
//! [`crate::conformance`] says in tests what each of them promises; a new backing passes it, and is done.

use crate::entry::{Entry, Version};
use bytes::Bytes;
use object_store::ObjectStore;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a backing could not do what was asked. The store adds address and key, and says who has to act.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Objects(#[from] object_store::Error),
}

pub(crate) type Result<T> = std::result::Result<T, BackingError>;

/// Keys to bytes. Keys are relative paths with `/` between their parts. What one call wrote, every later call of any
/// process sees, whole. Something missing is `None` or an empty list, never an error.
pub trait Backing: fmt::Debug + Send + Sync {
    /// The bytes of `key`, and what `swap` expects to find again.
    fn get(&self, key: &str) -> Result<Option<(Bytes, Version)>>;

    /// Exactly these bytes; an error if there are fewer.
    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>>;

    /// Calls `take` with each piece of `key` as it arrives. An error of `take` ends it. False if `key` does not exist.
    fn read(&self, key: &str, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<bool>;

    /// Writes `key`, replacing what was there in one step.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<()>;

    /// Writes `key` if it does not exist; false if it does and holds other bytes. Of several that create it with
    /// different bytes exactly one is told true, also if a reply is lost on the way.
    fn create(&self, key: &str, bytes: &[u8]) -> Result<bool>;

    /// Replaces `key` if it still is what was read as `expected`; false if it is not there, or holds other bytes. Where
    /// an answer was lost, these may be the bytes of another writer who has replaced this call's own since.
    fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> Result<bool>;

    /// Bytes of `key`.
    fn size(&self, key: &str) -> Result<Option<u64>>;

    /// Everything below the folder `prefix`, at any depth, sorted by key.
    fn list(&self, prefix: &str) -> Result<Vec<Entry>>;

    /// The same, with the files that are being written, or were when a process was killed.
    fn list_with_temporary(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.list(prefix)
    }

    /// Names of the files and of the folders right below `prefix`, each sorted.
    fn list_here(&self, prefix: &str) -> Result<(Vec<String>, Vec<String>)>;

    /// Removes `key`, if it is there.
    fn delete(&self, key: &str) -> Result<()>;

    /// Removes everything below the folder `prefix`.
    fn delete_all(&self, prefix: &str) -> Result<()>;

    /// A stream into `key`.
    fn upload(&self, key: &str) -> Result<Box<dyn Sink>>;

    /// Where `key` lies on this machine, if it does: such a file is read in place.
    fn local(&self, _key: &str) -> Option<PathBuf> {
        None
    }

    /// Whether a server that has never answered is given up soon.
    fn set_hasty(&self, _is_hasty: bool) {}

    /// The client and the prefix of all keys, if there is one: for readers with their own runtime.
    fn objects(&self) -> Option<(Arc<dyn ObjectStore>, &str)> {
        None
    }
}

/// A file on its way. Nothing is visible before `publish`; dropped before, it leaves nothing behind.
pub trait Sink: Send {
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Does all that takes long, and needs to be done before the file can be seen.
    fn settle(&mut self) -> Result<()>;

    /// Makes the file visible, replacing what was there.
    fn publish(&mut self) -> Result<()>;
}
