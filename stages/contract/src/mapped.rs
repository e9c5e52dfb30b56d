//! A verified file as bytes that are read when they are used.

use crate::error::Error;
use memmap2::{Mmap, UncheckedAdvice};
use smelt_store::LocalFile;
use std::ops::Deref;
use std::path::Path;

/// The bytes of a file of an artifact or a save: mapped, so that one larger than memory can be read tensor by tensor.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
    /// A copy of an object goes when nobody reads it any more.
    _file: LocalFile,
}

impl Mapped {
    pub(crate) fn open(file: LocalFile) -> Result<Self, Error> {
        let path = file.path();
        let open = std::fs::File::open(path);
        // SAFETY: files of artifacts and saves are written once and never changed; a store that is edited by hand while
        // a job reads it is outside what any reader of it can guard against.
        let map = open.and_then(|open| unsafe { Mmap::map(&open) });
        let map = map.map_err(|e| Error::machine(format!("reading {}: {e}", path.display())))?;
        Ok(Self { map, _file: file })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// A file from outside the store, mapped. Its owner must leave it as it is while a job reads it: a file that is cut
/// short meanwhile ends the job by a signal.
#[derive(Debug)]
pub struct MappedFile(Option<Mmap>);

impl MappedFile {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mapped = std::fs::File::open(path).and_then(|file| {
            let is_empty = file.metadata()?.len() == 0; // nothing to map
            // SAFETY: what the documentation of the type asks of the file's owner.
            if is_empty { Ok(None) } else { unsafe { Mmap::map(&file) }.map(Some) }
        });
        mapped.map(Self).map_err(|e| Error::machine(format!("cannot read `{}`: {e}", path.display())))
    }

    /// Gives back the memory of what was read: it is read from the file again when it is used again.
    pub fn release(&self) {
        if let Some(map) = &self.0 {
            // SAFETY: the map is of a file and is never written, so the pages hold what the file holds.
            drop(unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) }); // only a hint
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
