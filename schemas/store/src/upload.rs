//! A file on its way into a store, hashed while it is written.

use crate::directory::remove_quietly;
use crate::error::{Error, Result, of_io, of_objects};
use crate::kill::before_write;
use crate::objects::runtime;
use crate::store::{Backing, Store};
use object_store::{ObjectStoreExt, WriteMultipart};
use smelt_schemas::{Digest, FileRecord};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

/// Parts of an upload to S3; a smaller file is one put.
const PART: usize = 8 << 20;
/// Parts in flight at once.
const PARALLEL: usize = 4;

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
    sink: Sink,
}

enum Sink {
    File { file: BufWriter<File>, temporary: PathBuf },
    Small(Vec<u8>),
    Parts(WriteMultipart),
    Done,
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
        let sink = match &*store.backing {
            Backing::Directory(d) => {
                let opened = d.temporary(key);
                let (file, temporary) = opened.map_err(|e| of_io(store.address(), format!("writing `{key}`"), e))?;
                Sink::File { file: BufWriter::with_capacity(1 << 18, file), temporary }
            }
            Backing::Objects(_) => Sink::Small(Vec::new()),
        };
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

    fn start_parts(&mut self) -> Result<()> {
        let Backing::Objects(objects) = &*self.store.backing else { return Ok(()) };
        let started = runtime().block_on(objects.objects.put_multipart(&objects.path(&self.key)));
        let upload = started.map_err(|e| of_objects(self.store.address(), self.what(), e))?;
        let _guard = runtime().enter();
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
        if let Sink::Small(head) = std::mem::replace(&mut self.sink, Sink::Done) {
            parts.write(&head);
        }
        self.sink = Sink::Parts(parts);
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let (address, what) = (self.store.address().to_owned(), format!("writing `{}`", self.key));
        match &mut self.sink {
            Sink::File { file, .. } => file.write_all(bytes).map_err(|e| of_io(&address, what, e))?,
            Sink::Small(head) if head.len() + bytes.len() <= PART => head.extend_from_slice(bytes),
            Sink::Small(_) => {
                self.start_parts()?;
                return self.push(bytes);
            }
            Sink::Parts(parts) => {
                runtime()
                    .block_on(async {
                        parts.wait_for_capacity(PARALLEL).await?;
                        parts.write(bytes);
                        Ok(())
                    })
                    .map_err(|e| of_objects(&address, what, e))?;
            }
            Sink::Done => {}
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the file visible and returns its record, under the name `path`.
    pub fn finish(mut self, path: &str) -> Result<FileRecord> {
        // Whatever takes long comes before the permit is asked; an error lets `drop` remove what was written.
        if let Sink::File { file, .. } = &mut self.sink {
            let synced = file.flush().and_then(|()| file.get_ref().sync_all());
            synced.map_err(|e| of_io(self.store.address(), self.what(), e))?;
        }
        if let Some(permit) = &self.permit {
            permit()?;
        }
        before_write();
        match std::mem::replace(&mut self.sink, Sink::Done) {
            Sink::File { temporary, .. } => {
                let Backing::Directory(d) = &*self.store.backing else {
                    unreachable!("a file is written to a directory")
                };
                if let Err(e) = d.publish(&temporary, &self.key) {
                    remove_quietly(&temporary);
                    // Another process may have taken over and deleted the folder since the permit was asked.
                    self.permit.as_ref().map_or(Ok(()), |permit| permit())?;
                    return Err(of_io(self.store.address(), self.what(), e));
                }
            }
            Sink::Small(bytes) => {
                let Backing::Objects(o) = &*self.store.backing else { unreachable!("a buffer is put to objects") };
                o.put(&self.key, &bytes).map_err(|e| of_objects(self.store.address(), self.what(), e))?;
            }
            Sink::Parts(parts) => {
                runtime().block_on(parts.finish()).map_err(|e| of_objects(self.store.address(), self.what(), e))?;
            }
            Sink::Done => {}
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

impl Drop for Upload {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.sink, Sink::Done) {
            Sink::File { temporary, .. } => remove_quietly(&temporary),
            Sink::Parts(parts) => {
                // The server forgets an unfinished upload by its own rules if this does not reach it.
                drop(runtime().block_on(parts.abort()));
            }
            Sink::Small(_) | Sink::Done => {}
        }
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
