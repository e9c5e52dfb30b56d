//! A file on its way into a store, hashed while it is written.

use crate::backing::Sink;
use crate::error::{Error, Result, of_io};
use crate::kill::before_write;
use crate::store::Store;
use smelt_schemas::{Digest, FileRecord};
use std::fmt;
use std::io::{self, Write};

/// Says whether the writer still may write: an error if not.
pub(crate) type Permit = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// Visible only after `finish`; dropped before, it leaves nothing behind.
pub struct Upload {
    store: Store,
    /// Asked right before the file becomes visible.
    permit: Option<Permit>,
    key: String,
    hasher: blake3::Hasher,
    bytes: u64,
    sink: Box<dyn Sink>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Upload({}, {} bytes)", self.key, self.bytes)
    }
}

impl Store {
    /// A stream into `key`, hashed while it is written. Nothing is visible before `finish`.
    pub fn upload(&self, key: &str) -> Result<Upload> {
        Upload::start(self.clone(), key)
    }
}

impl Upload {
    fn start(store: Store, key: &str) -> Result<Self> {
        let sink = store.backing.upload(key).map_err(store.failed(format!("writing `{key}`")))?;
        Ok(Self { store, permit: None, key: key.into(), hasher: blake3::Hasher::new(), bytes: 0, sink })
    }

    /// The same, and nothing becomes visible unless `permit` allows it at the end.
    pub(crate) fn only_if(mut self, permit: Permit) -> Self {
        self.permit = Some(permit);
        self
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn what(&self) -> String {
        format!("writing `{}`", self.key)
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write(bytes).map_err(self.store.failed(self.what()))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the file visible and returns its record, under the name `path`.
    pub fn finish(mut self, path: &str) -> Result<FileRecord> {
        // Whatever takes long comes before the permit is asked; an error lets `drop` remove what was written.
        self.sink.settle().map_err(self.store.failed(self.what()))?;
        if let Some(permit) = &self.permit {
            permit()?;
        }
        before_write();
        if let Err(e) = self.sink.publish() {
            // Another process may have taken over and deleted the folder since the permit was asked.
            self.permit.as_ref().map_or(Ok(()), |permit| permit())?;
            return Err(self.store.failed(self.what())(e));
        }
        let blake3 = Digest::from(self.hasher.finalize());
        Ok(FileRecord { path: path.into(), bytes: self.bytes, blake3, rows: None, at: None })
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The store's error inside an `io::Error` that `Upload::write` gave.
impl Error {
    pub fn from_write(error: io::Error, store: &Store, key: &str) -> Self {
        let kind = error.kind();
        match error.into_inner().map(|inner| inner.downcast::<Self>()) {
            Some(Ok(ours)) => *ours,
            Some(Err(other)) => of_io(store.address(), format!("writing `{key}`"), io::Error::new(kind, other)),
            None => of_io(store.address(), format!("writing `{key}`"), kind.into()),
        }
    }
}
