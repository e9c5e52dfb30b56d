//! A port's files in a plain folder, for programs that know nothing of stores.

use crate::directory::TEMPORARY;
use crate::error::{Error, Result, of_io};
use crate::store::Store;
use crate::unique::unique;
use smelt_schemas::{FileRecord, Manifest};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A folder beside the one to be made. It is locked by whoever fills it, and vanishes with this value unless it was
/// renamed.
struct Draft {
    path: PathBuf,
    _lock: File,
}

impl Drop for Draft {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}

impl Store {
    /// Writes the files of a port into a new folder, each compared with its digest. The folder appears whole, or not
    /// at all. Returns the bytes.
    pub fn export(&self, manifest: &Manifest, port: &str, folder: &Path) -> Result<u64> {
        let local = |e| of_io(&folder.display().to_string(), "exporting to it".into(), e);
        let files = manifest.ports.get(port).map(|record| record.files.as_slice()).unwrap_or_default();
        let is_free = match fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(_) => false,
        };
        if !is_free {
            return Err(Error::Occupied { folder: folder.display().to_string() });
        }
        let draft = begin(folder).map_err(local)?;
        for file in files {
            self.export_file(manifest, port, file, &draft.path).map_err(|e| match e {
                ExportError::Store(e) => e,
                ExportError::Local(e) => local(e),
            })?;
        }
        fs::rename(&draft.path, folder).and_then(|()| File::open(parent(folder))?.sync_all()).map_err(local)?;
        Ok(files.iter().map(|file| file.bytes).sum())
    }

    fn export_file(
        &self,
        manifest: &Manifest,
        port: &str,
        file: &FileRecord,
        draft: &Path,
    ) -> std::result::Result<(), ExportError> {
        let path = draft.join(&file.path);
        fs::create_dir_all(parent(&path))?;
        let (mut copy, mut trouble) = (File::create_new(&path)?, None);
        let read = self.read_verified(&self.file_key(manifest, port, file), file, |piece| {
            copy.write_all(piece).map_err(|e| {
                let kind = e.kind();
                trouble = Some(e);
                of_io(&draft.display().to_string(), "exporting to it".into(), kind.into())
            })
        });
        if let Some(trouble) = trouble {
            return Err(trouble.into());
        }
        read.map_err(ExportError::Store)?;
        Ok(copy.sync_all()?)
    }
}

enum ExportError {
    Store(Error),
    Local(io::Error),
}

impl From<io::Error> for ExportError {
    fn from(e: io::Error) -> Self {
        Self::Local(e)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a draft beside `folder`, and removes those that killed processes left there.
fn begin(folder: &Path) -> io::Result<Draft> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = parent(folder);
    fs::create_dir_all(beside)?;
    let mark = format!(".{name}.");
    for entry in fs::read_dir(beside)?.flatten() {
        let of = entry.file_name().to_string_lossy().into_owned();
        // One that is being filled is locked.
        if of.starts_with(&mark) && of.ends_with(TEMPORARY) && lock(&entry.path()).is_ok() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let path = beside.join(format!("{mark}{}{TEMPORARY}", unique()));
    fs::create_dir(&path)?;
    Ok(Draft { _lock: lock(&path)?, path })
}

fn lock(folder: &Path) -> io::Result<File> {
    let file = File::open(folder)?;
    // SAFETY: the descriptor is open for as long as `file` lives.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_schemas::{Digest, PortRecord, kind};

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let store = Store::open("memory:export").unwrap();
        let mut manifest = crate::artifacts::tests::manifest("train", &Digest::of(b"recipe"), "a");
        let of = |path: &str| FileRecord { path: path.into(), bytes: 0, blake3: Digest::of(b""), rows: None, at: None };
        let record = |path: &str| {
            let mut upload = store.upload(&store.file_key(&manifest, "model", &of(path))).unwrap();
            upload.write_all(path.as_bytes()).unwrap();
            upload.finish(path).unwrap()
        };
        let files = vec![record("config.json"), record("parts/model.safetensors")];
        manifest.ports.insert("model".into(), PortRecord::new(kind::documents(), files.clone()));
        let base = std::env::temp_dir().join(format!("smelt-export-{}", unique()));
        let folder = base.join("deep/model");
        assert_eq!(store.export(&manifest, "model", &folder).unwrap(), 34);
        assert_eq!(fs::read_to_string(folder.join("parts/model.safetensors")).unwrap(), "parts/model.safetensors");
        let occupied = store.export(&manifest, "model", &folder).unwrap_err().to_string();
        assert_eq!(occupied, format!("`{}` is there already, and holds files", folder.display()));
        // A file that is damaged in the store leaves no folder; nor does a killed process, after the next call.
        let other = base.join("deep/other");
        let left = base.join(format!("deep/.other.x{TEMPORARY}"));
        fs::create_dir(&left).unwrap();
        store.put(&store.file_key(&manifest, "model", &files[1]), b"damaged").unwrap();
        assert!(store.export(&manifest, "model", &other).unwrap_err().to_string().contains("its manifest says"));
        let names: Vec<_> = fs::read_dir(base.join("deep")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["model"]);
        fs::remove_dir_all(base).unwrap();
    }
}
