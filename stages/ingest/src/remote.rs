//! Files of buckets and web servers: found by listing or asking, copied while they are read, one at a time per thread.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use smelt_stage::files::Found;
use smelt_store::{LocalFile, Remote, RemoteFile};

use crate::error::IngestError;
use crate::paths::{Matches, alternatives, name_of, root_of};

/// The remote files among those of a job, by the path that they have there: `s3://bucket/key`.
#[derive(Clone, Debug, Default)]
pub struct Remotes(BTreeMap<PathBuf, (Remote, RemoteFile)>);

impl Remotes {
    /// The files that one expanded pattern matches.
    pub(crate) fn matches(&mut self, pattern: &str) -> Result<Matches, IngestError> {
        let mut all = Matches::default();
        for glob in alternatives(pattern)? {
            let (root, glob) = root_of(&glob);
            let failed = |e: &smelt_store::Error| IngestError::remote(pattern, e);
            let (remote, keys) = Remote::open(&glob).map_err(|e| failed(&e))?;
            let is_wild = keys.contains(['*', '?', '[']);
            let found = match (is_wild, remote.lists()) {
                (true, false) => {
                    let what = format!("`{pattern}` has a wildcard, and a web server does not say what files it has");
                    return Err(
                        IngestError::config(pattern, what).with_hint("name each file; `{1,2,3}` stands for several")
                    );
                }
                (true, true) => listed(pattern, &remote, &keys)?,
                (false, _) => remote.find(&keys).map_err(|e| failed(&e))?.into_iter().collect(),
            };
            for file in found {
                let path = PathBuf::from(format!("{}/{}", remote.address(), file.key));
                all.files.push(Found { name: name_of(&path, root), bytes: file.bytes, path: path.clone() });
                self.0.insert(path, (remote.clone(), file));
            }
        }
        all.files.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
        all.files.dedup();
        Ok(all)
    }

    /// What a remote file is: its entity tag.
    pub(crate) fn version(&self, file: &Found) -> Option<&str> {
        self.0.get(&file.path).map(|(_, found)| found.version.as_str())
    }

    /// A copy of a remote file on this machine; `None` if it is not what it was.
    pub(crate) fn fetch(&self, file: &Found, scratch: &Path) -> Result<Option<LocalFile>, smelt_store::Error> {
        let (remote, found) = &self.0[&file.path];
        remote.fetch(found, scratch)
    }
}

fn listed(pattern: &str, remote: &Remote, keys: &str) -> Result<Vec<RemoteFile>, IngestError> {
    let plain = &keys[..keys.find(['*', '?', '[']).unwrap_or(keys.len())];
    let folder = plain.rfind('/').map_or("", |slash| &plain[..slash]);
    let glob = Pattern::new(keys).map_err(|e| {
        IngestError::config(pattern, format!("`{pattern}` is no glob: {} at character {} of `{keys}`", e.msg, e.pos))
    })?;
    let options =
        MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let found = remote.list(folder).map_err(|e| IngestError::remote(pattern, &e))?;
    Ok(found.into_iter().filter(|file| glob.matches_with(&file.key, options)).collect())
}
