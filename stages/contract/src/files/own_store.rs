//! The store of the pipeline is no source: a glob over it would find other files after each run.

use crate::files::error::FileError;
use crate::lock::lock;
use glob::{MatchOptions, Pattern};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The store of the request that is being resolved, if it is a directory.
static OWN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Says what the store is, before a config is resolved.
pub(crate) fn set(address: Option<&str>) {
    let store = address.and_then(|address| smelt_store::Store::open(address).ok());
    *lock(&OWN) = store.and_then(|store| store.directory().map(|folder| real(&folder)));
}

/// Refuses the glob `expanded`, written as `pattern`, if it would find files of the store.
pub(super) fn refuse(pattern: &str, expanded: &str) -> Result<(), FileError> {
    match lock(&OWN).as_deref() {
        Some(store) if covers(expanded, store) => {
            Err(FileError::OwnStore { pattern: pattern.into(), store: store.display().to_string() })
        }
        _ => Ok(()),
    }
}

/// The folder without links, as far as it is there.
fn real(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let mut existing = folder.as_path();
    loop {
        if let Ok(real) = existing.canonicalize() {
            return real.join(folder.strip_prefix(existing).unwrap_or(Path::new("")));
        }
        let Some(above) = existing.parent() else { return folder };
        existing = above;
    }
}

/// Whether a glob finds files of a store, which need not be there yet.
fn covers(glob: &str, store: &Path) -> bool {
    const NAMES: [&str; 8] = [
        "pipelines/p/raw.json",
        "runs/20261123-221405.000-0a1b/run.json",
        "runs/20261123-221405.000-0a1b/jobs/raw/log-00000.txt",
        "artifacts/ingest/0a1b/0.json",
        "artifacts/ingest/0a1b/attempts/0a1b/lease.json",
        "artifacts/ingest/0a1b/attempts/0a1b/units/read/000000.json",
        "artifacts/ingest/0a1b/attempts/0a1b/files/documents/00000.parquet",
        "artifacts/pretrain/0a1b/attempts/0a1b/files/model/model.safetensors",
    ];
    let options =
        MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    alternatives(&glob.replace("/./", "/")).iter().any(|glob| {
        let Some(wildcard) = glob.find(['*', '?', '[']) else { return false };
        // Only the part before the first wildcard can have links and `..`.
        let (folder, rest) = glob.split_at(glob[..wildcard].rfind('/').map_or(0, |slash| slash + 1));
        let folder = real(Path::new(if folder.is_empty() { "." } else { folder }));
        let Ok(below) = store.strip_prefix(&folder) else {
            // A glob inside the store.
            return folder.starts_with(store);
        };
        let Ok(pattern) = Pattern::new(rest) else { return false };
        NAMES.iter().any(|name| pattern.matches_path_with(&below.join(name), options))
    })
}

/// What `{a,b}` stands for; a glob with wrong braces is refused by whoever reads it.
fn alternatives(glob: &str) -> Vec<String> {
    let braces = glob.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    let Some((before, (inside, after))) = braces else { return vec![glob.to_owned()] };
    let after = alternatives(after);
    inside.split(',').flat_map(|one| after.iter().map(move |after| format!("{before}{one}{after}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_over_the_store_is_known_before_the_store_is_there() {
        let store = Path::new("/data/work/artifacts");
        for glob in [
            "/data/**/*",
            "/data/**/*.parquet",
            "/data/work/*/runs/**/*.txt",
            "/data/./{docs,work}/**/*.json",
            "/data/work/artifacts/artifacts/ingest/*/attempts/*/files/documents/*.parquet",
            "/data/wor[jk]/**/log-*",
        ] {
            assert!(covers(glob, store), "{glob}");
        }
        for glob in [
            "/data/**/*.md",
            "/data/docs/**/*",
            "/data/work/*.json",
            "/data/work/artifacts/artifacts/ingest/0a1b/0.json",
            "/data/work/artifacts-of-others/**/*",
        ] {
            assert!(!covers(glob, store), "{glob}");
        }
        assert!(!covers("/data/**/*", Path::new("/data/.hidden/artifacts")), "no glob enters a hidden folder");
    }

    #[test]
    fn a_relative_glob_and_a_link_are_seen_through() {
        let folder = std::env::temp_dir().join(format!("smelt-own-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("real")).unwrap();
        std::os::unix::fs::symlink(folder.join("real"), folder.join("link")).unwrap();
        let store = real(&folder.join("link/artifacts"));
        assert!(store.ends_with("real/artifacts"));
        assert!(covers(&format!("{}/real/**/*", folder.display()), &store));
        assert!(covers(&format!("{}/link/../real/**/*", folder.display()), &store));
        assert!(covers("**/*", &real(Path::new("artifacts"))));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
