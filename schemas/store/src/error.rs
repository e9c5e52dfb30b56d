//! What can go wrong between us and a store, by who has to act.

use smelt_schemas::ExitCode;
use std::io;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{address}` is no store: {why}")]
    Address { address: String, why: String },
    #[error("`{key}` is not in store {store}")]
    NotFound { store: String, key: String },
    #[error("store {store} refuses {what}: {source}")]
    Denied { store: String, what: String, source: BoxError },
    #[error("store {store} is full: {what} failed")]
    Full { store: String, what: String, source: BoxError },
    #[error("store {store} does not answer: {what}: {source}")]
    Unreachable { store: String, what: String, source: BoxError },
    #[error("store {store} failed: {what}: {source}")]
    Failed { store: String, what: String, source: BoxError },
    #[error("`{key}` in store {store} {what}")]
    Corrupt { store: String, key: String, what: String },
    #[error("store {store} accepts the same create-only put twice, so two runs could overwrite each other")]
    Overwrites { store: String },
    #[error("attempt {attempt} lost its lease to {holder}")]
    LeaseLost { attempt: String, holder: String },
}

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Address { .. } => ExitCode::Pipeline,
            Self::NotFound { .. } | Self::Corrupt { .. } => ExitCode::Data,
            Self::Denied { .. } | Self::Full { .. } | Self::Overwrites { .. } => ExitCode::Machine,
            Self::Unreachable { .. } | Self::LeaseLost { .. } => ExitCode::Again,
            Self::Failed { .. } => ExitCode::Machine,
        }
    }

    /// The one thing to do, if there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Address { .. } => "name a directory, or `s3://bucket/prefix`".into(),
            Self::Denied { store, .. } if store.starts_with("s3:") => {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what the bucket allows them".into()
            }
            Self::Denied { store, .. } => {
                format!("make {store} writable for this user, or choose another with `--store`")
            }
            Self::Full { .. } => {
                "free some space, perhaps with `smelt artifacts gc`, and run again: finished work is kept".into()
            }
            Self::Unreachable { store, .. } if store.starts_with("s3:") => {
                "check AWS_ENDPOINT_URL and the network".into()
            }
            Self::Corrupt { .. } => {
                "`smelt artifacts verify` lists what is damaged; `smelt rerun` makes it anew".into()
            }
            Self::Overwrites { .. } => {
                "use a server that honours If-None-Match, or set SMELT_SINGLE_WRITER=1 and start one run at a time"
                    .into()
            }
            _ => return None,
        })
    }
}

/// Sorts a failure of the file system by who has to act.
pub fn of_io(store: &str, what: String, error: io::Error) -> Error {
    let (store, kind) = (store.to_owned(), error.kind());
    let source = Box::new(error);
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::Full { store, what, source }
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::Denied { store, what, source },
        _ => Error::Failed { store, what, source },
    }
}

/// Sorts a failure of an object store by who has to act. Addresses inside the cause may carry a signed query, so only
/// the innermost cause is kept.
pub fn of_objects(store: &str, what: String, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let text = innermost(&error);
    let store = store.to_owned();
    let source: BoxError = text.clone().into();
    match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Error::Denied { store, what, source },
        E::NotFound { path, .. } => Error::NotFound { store, key: path },
        E::Generic { .. } if text.contains("NoSuchBucket") => {
            Error::Address { address: store, why: "the bucket does not exist".into() }
        }
        E::Generic { .. }
            if text.contains("AccessDenied")
                || text.contains("SignatureDoesNotMatch")
                || text.contains("InvalidAccessKeyId") =>
        {
            Error::Denied { store, what, source }
        }
        E::Generic { .. } | E::JoinError { .. } => Error::Unreachable { store, what, source },
        _ => Error::Failed { store, what, source },
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    let text = last.to_string();
    match text.split_once('?') {
        Some((before, _)) => before.to_owned(),
        None => text,
    }
}
