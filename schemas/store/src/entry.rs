//! What a store says about a key: its size, and which bytes it holds.

use smelt_schemas::Digest;

/// What `list` says about one object. `modified`: seconds since 1970, UTC.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub bytes: u64,
    pub modified: f64,
}

/// Which bytes of a key were read: what `swap` expects to find again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub(crate) etag: Option<String>,
    pub(crate) version: Option<String>,
}

impl Version {
    /// Of a backing that names what it holds by tags.
    pub fn of_tag(tag: impl Into<String>) -> Self {
        Self { etag: Some(tag.into()), version: None }
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self { etag: Some(Digest::of(bytes).into()), version: None }
    }
}
