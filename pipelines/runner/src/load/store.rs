//! Where artifacts are kept, and who said so.

use super::values::from_environment;
use crate::diagnostic::{Diagnostic, Place, Result};
use smelt_schemas::{StoreConfig, parse_bytes};
use smelt_store::{CACHE_BYTES, Cache, Store};
use std::path::{Path, PathBuf};

/// Where artifacts are kept unless somebody says otherwise.
pub(crate) const DEFAULT_STORE: &str = "artifacts";

/// Who said where artifacts are kept; the first of these that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreBy {
    CommandLine,
    Environment,
    File,
    Nobody,
}

/// Where artifacts are kept, and who said so. `in_file`: the pipeline's own `store:`.
pub(crate) fn store_address(given: Option<&str>, in_file: Option<&str>) -> (String, StoreBy) {
    let environment = std::env::var("SMELT_STORE").ok().filter(|s| !s.is_empty());
    match (given, environment, in_file) {
        (Some(given), _, _) => (given.into(), StoreBy::CommandLine),
        (None, Some(set), _) => (set, StoreBy::Environment),
        (None, None, Some(own)) => (own.into(), StoreBy::File),
        (None, None, None) => (DEFAULT_STORE.into(), StoreBy::Nobody),
    }
}

/// Opens a store. The error of a bad address names where the address came from. `place`: of the pipeline's `store:`.
pub(crate) fn open_store(address: &str, by: StoreBy, place: Option<Place>) -> Result<Store> {
    // Whoever typed the command waits for its first answer.
    let opened = from_environment(address).and_then(|address| Ok(Store::open(&address)?.hasty(true)));
    opened.map_err(|error| {
        error.at(match by {
            StoreBy::CommandLine => Some(Place::named("--store")),
            StoreBy::Environment => Some(Place::named("SMELT_STORE")),
            StoreBy::File => place,
            StoreBy::Nobody => None,
        })
    })
}

/// The cache of a pipeline's store. SMELT_CACHE overrides it.
pub(super) fn cache(store: &StoreConfig) -> Result<Option<Cache>> {
    let Some(config) = store.cache.as_ref().filter(|_| std::env::var_os("SMELT_CACHE").is_none()) else {
        return Ok(None);
    };
    let bytes = match &config.size {
        None => CACHE_BYTES,
        Some(size) => parse_bytes(size).ok_or_else(|| {
            Diagnostic::pipeline(format!("`{size}` is no size of a cache")).hint("write `500MiB` or `50GiB`")
        })?,
    };
    let path = from_environment(&config.path)?;
    let folder = match path.strip_prefix("~/") {
        Some(rest) => Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(rest),
        None => PathBuf::from(path),
    };
    // A stage may run in another folder.
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    Ok(Some(Cache::new(&folder, bytes)?))
}
