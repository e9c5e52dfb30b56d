//! Copies of artifacts between stores: files first, the manifest last, so an artifact that is only partly copied does
//! not exist. What is there already is not copied again, so a copy that was broken off goes on.

use crate::artifacts::Commit;
use crate::error::{Error, Result};
use crate::store::Store;
use smelt_schemas::{ArtifactRef, FileRecord, Manifest};
use std::collections::BTreeSet;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Files that are copied at once.
const PARALLEL: usize = 4;

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Artifacts that are new there.
    pub artifacts: usize,
    /// Artifacts that were there.
    pub there: usize,
    /// Files that were sent, and their bytes.
    pub files: usize,
    pub bytes: u64,
    /// Files of new artifacts that an earlier copy had sent.
    pub resumed: usize,
}

impl AddAssign for Copied {
    fn add_assign(&mut self, more: Self) {
        self.artifacts += more.artifacts;
        self.there += more.there;
        self.files += more.files;
        self.bytes += more.bytes;
        self.resumed += more.resumed;
    }
}

impl Store {
    /// Everything that an artifact was made from, as far as it is here, each after its own inputs; the artifact last.
    pub fn ancestry(&self, manifest: &Manifest) -> Result<Vec<Manifest>> {
        let mut order = Vec::new();
        self.descend(manifest, &mut BTreeSet::new(), &mut order)?;
        Ok(order)
    }

    fn descend(&self, of: &Manifest, seen: &mut BTreeSet<ArtifactRef>, order: &mut Vec<Manifest>) -> Result<()> {
        // An explicit stack: a chain of inputs may be long.
        let mut open = vec![(of.clone(), false)];
        while let Some((manifest, are_inputs_done)) = open.pop() {
            if are_inputs_done {
                order.push(manifest);
                continue;
            }
            if !seen.insert(manifest.artifact()) {
                continue;
            }
            let inputs: Vec<ArtifactRef> = manifest.inputs.values().flatten().map(|i| i.artifact.clone()).collect();
            open.push((manifest, true));
            for input in inputs.iter().filter(|input| !seen.contains(*input)) {
                // What `gc` has deleted is no obstacle.
                open.extend(self.manifest(input)?.map(|manifest| (manifest, false)));
            }
        }
        Ok(())
    }

    /// Copies an artifact to another store, and compares every byte with its digest on the way. Where the other store
    /// has the same edition with other bytes, that is an error, and nothing is changed there.
    pub fn copy_to(&self, to: &Store, manifest: &Manifest) -> Result<Copied> {
        let there = Copied { there: 1, ..Copied::default() };
        if let Some(found) = to.manifest(&manifest.artifact())? {
            return same(to, manifest, &found).map(|()| there);
        }
        let files: Vec<(&str, &FileRecord)> =
            manifest.ports.iter().flat_map(|(port, of)| of.files.iter().map(move |f| (port.as_str(), f))).collect();
        let (next, copied) = (AtomicUsize::new(0), Mutex::new(Ok(Copied { artifacts: 1, ..Copied::default() })));
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(files.len()) {
                scope.spawn(|| {
                    while let Some((port, file)) = files.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let sent = self.copy_file(to, &self.file_key(manifest, port, file), file);
                        let mut copied = copied.lock().unwrap_or_else(PoisonError::into_inner);
                        match (&mut *copied, sent) {
                            (Ok(copied), Ok(more)) => *copied += more,
                            (Ok(_), Err(error)) => *copied = Err(error),
                            (Err(_), _) => {}
                        }
                        if copied.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let copied = copied.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        match to.commit(manifest)? {
            Commit::Won => Ok(copied),
            Commit::Adopted(found) => same(to, manifest, &found).map(|()| there),
        }
    }

    /// A file is visible only once it is whole, and its key holds the name of an attempt: one of the same length is it.
    fn copy_file(&self, to: &Store, key: &str, file: &FileRecord) -> Result<Copied> {
        if to.size(key)? == Some(file.bytes) {
            return Ok(Copied { resumed: 1, ..Copied::default() });
        }
        let mut upload = to.upload(key)?;
        self.read_verified(key, file, |piece| upload.push(piece))?;
        let sent = upload.finish(&file.path)?;
        Ok(Copied { files: 1, bytes: sent.bytes, ..Copied::default() })
    }
}

/// An error if what lies there is not what was to be copied.
fn same(to: &Store, manifest: &Manifest, found: &Manifest) -> Result<()> {
    match found.reproduces(manifest) {
        true => Ok(()),
        false => {
            let artifact = manifest.artifact();
            let name = format!("{} {}/{}", artifact.stage, artifact.fingerprint.short(), artifact.edition);
            Err(Error::Differs { store: to.address().into(), artifact: name })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unique;
    use smelt_schemas::{Digest, InputRef, PortRecord, kind};
    use std::io::Write;

    /// An artifact with three files.
    fn made(store: &Store, stage: &str, inputs: &[&Manifest]) -> Manifest {
        let mut manifest = crate::artifacts::tests::manifest(stage, &Digest::of(stage.as_bytes()), &unique());
        let port = |of: &Manifest| InputRef {
            artifact: of.artifact(),
            port: "documents".into(),
            kind: kind::documents(),
            digest: of.ports["documents"].digest.clone(),
        };
        manifest.inputs.insert("input".into(), inputs.iter().map(|of| port(of)).collect());
        let record = |i: u8| {
            let (name, at) = (format!("{i}.bin"), format!("turn1/{i}.bin"));
            let mut file = FileRecord { path: name.clone(), bytes: 0, blake3: Digest::of(b""), rows: None, at: None };
            file.at = (i == 1).then_some(at);
            let mut upload = store.upload(&store.file_key(&manifest, "documents", &file)).unwrap();
            upload.write_all(&vec![i; 1000]).unwrap();
            FileRecord { at: file.at, ..upload.finish(&name).unwrap() }
        };
        let files = (0..3).map(record).collect();
        manifest.ports.insert("documents".into(), PortRecord::new(kind::documents(), files));
        assert!(matches!(store.commit(&manifest).unwrap(), Commit::Won));
        manifest
    }

    fn memory() -> Store {
        Store::open(&format!("memory:{}", unique())).unwrap()
    }

    #[test]
    fn an_artifact_is_copied_once_with_what_it_was_made_from() {
        let (from, to) = (memory(), memory());
        let raw = made(&from, "raw", &[]);
        let clean = made(&from, "clean", &[&raw]);
        let both = made(&from, "both", &[&raw, &clean]);
        let order: Vec<String> = from.ancestry(&both).unwrap().into_iter().map(|m| m.stage).collect();
        assert_eq!(order, ["raw", "clean", "both"]);
        let copied = from.copy_to(&to, &clean).unwrap();
        assert_eq!(copied, Copied { artifacts: 1, there: 0, files: 3, bytes: 3000, resumed: 0 });
        assert_eq!(to.verify(&clean, &std::env::temp_dir()).unwrap(), Vec::<String>::new());
        let again = from.copy_to(&to, &clean).unwrap();
        assert_eq!(again, Copied { there: 1, ..Copied::default() });
        // The store that it came from is the same as before.
        assert_eq!(from.copy_to(&from, &clean).unwrap(), again);
    }

    #[test]
    fn a_copy_that_was_broken_off_goes_on_and_is_not_seen_before_it_is_whole() {
        let (from, to) = (memory(), memory());
        let raw = made(&from, "raw", &[]);
        let key = |i: usize| from.file_key(&raw, "documents", &raw.ports["documents"].files[i]);
        let good = from.get(&key(2)).unwrap();
        from.put(&key(2), b"damaged").unwrap();
        let error = from.copy_to(&to, &raw).unwrap_err().to_string();
        assert!(error.contains("has 7 bytes, its manifest says 1000"), "{error}");
        assert_eq!(to.manifest(&raw.artifact()).unwrap(), None);
        from.put(&key(2), &good).unwrap();
        let copied = from.copy_to(&to, &raw).unwrap();
        assert_eq!((copied.artifacts, copied.files + copied.resumed), (1, 3));
        assert!(copied.files >= 1, "{copied:?}");
        assert_eq!(to.verify(&raw, &std::env::temp_dir()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn other_bytes_of_the_same_edition_are_refused() {
        let (from, to) = (memory(), memory());
        let raw = made(&from, "raw", &[]);
        let mut other = raw.clone();
        other.attempt = "other".into();
        other.ports["documents"].digest = Digest::of(b"other");
        to.commit(&other).unwrap();
        let error = from.copy_to(&to, &raw).unwrap_err().to_string();
        let name = format!("raw {}/0", raw.fingerprint.short());
        assert_eq!(error, format!("{name} has other bytes in store {}", to.address()));
        // The same bytes by another attempt are welcome.
        let to = memory();
        to.commit(&Manifest { attempt: "other".into(), ..raw.clone() }).unwrap();
        assert_eq!(from.copy_to(&to, &raw).unwrap(), Copied { there: 1, ..Copied::default() });
    }
}
