//! Files that a unit writes for the units of later phases: sketches, counts, sorted runs. They lie in `work/` of the
//! attempt, belong to no port, and are deleted when the attempt is committed.

use crate::attempt::{Attempt, WORK};
use crate::error::{Result, of_io};
use crate::store::Store;
use crate::unique::unique;
use crate::upload::Upload;
use serde::{Deserialize, Serialize};
use smelt_schemas::FileRecord;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

/// Bytes of an object that are asked for at once.
const PIECE: u64 = 8 << 20;

/// A file that a unit wrote for the units of later phases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkRecord {
    /// `path` names it within its unit; it lies at `at` in the folder of such files.
    #[serde(flatten)]
    pub file: FileRecord,
    /// How many stretches of it can be read apart.
    pub parts: u64,
}

impl Attempt {
    /// Opens a file for later phases. `at`: where it will lie in the folder of such files.
    pub fn upload_work(&self, at: &str) -> Result<Upload> {
        self.upload_at(&format!("{WORK}/{at}"))
    }

    /// The key of such a file.
    pub fn work_key(&self, record: &WorkRecord) -> String {
        self.key(&format!("{WORK}/{}", record.file.place()))
    }
}

impl Store {
    /// Some bytes of the file at `key`, as a file on this machine and the place in it where they begin: the store's own
    /// file if it is a directory, else a copy in `scratch` that has no name and vanishes when it is closed. Nothing is
    /// verified.
    pub fn fetch_range(&self, key: &str, range: Range<u64>, scratch: &Path) -> Result<(File, u64)> {
        match self.backing.local(key) {
            Some(path) => match File::open(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Err(self.missing(key)),
                Err(e) => Err(of_io(self.address(), format!("reading `{key}`"), e)),
                Ok(file) => Ok((file, range.start)),
            },
            None => {
                let local = |e| of_io(&scratch.display().to_string(), format!("copying `{key}` to it"), e);
                let mut copy = nameless(scratch).map_err(local)?;
                let mut at = range.start;
                while at < range.end {
                    let end = range.end.min(at + PIECE);
                    copy.write_all(&self.get_range(key, at..end)?).map_err(local)?;
                    at = end;
                }
                Ok((copy, 0))
            }
        }
    }
}

/// A new file in `folder` that nobody else can open, and that vanishes when it is closed or its process is killed.
pub fn nameless(folder: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("{}{}", unique(), crate::directory::TEMPORARY));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
