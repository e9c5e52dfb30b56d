//! The errors of a store, sorted by who has to act.

use crate::backing::BackingError;
use crate::clouds;
use smelt_schemas::{ExitCode, Fault};
use std::io;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{address}` is no store: {why}")]
    Address { address: String, why: String },
    #[error("`{address}`, which {named_by} says, is no address of an S3 server: {why}")]
    Endpoint { address: String, named_by: String, why: String },
    #[error("store {store} needs credentials: {missing}")]
    NoCredentials { store: String, missing: String },
    #[error("store {store}: there is no bucket `{bucket}`")]
    NoBucket { store: String, bucket: String },
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
    #[error("`{what}` is no cache: {why}")]
    Cache { what: String, why: String },
    #[error("store {store} accepts the same create-only put twice, so two runs could overwrite each other")]
    Overwrites { store: String },
    #[error("{artifact} has other bytes in store {store}")]
    Differs { store: String, artifact: String },
    #[error("`{folder}` is there already, and holds files")]
    Occupied { folder: String },
    #[error("attempt {attempt} lost its lease to {holder}")]
    LeaseLost { attempt: String, holder: String },
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Fault for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Address { .. } | Self::NoBucket { .. } | Self::Occupied { .. } => ExitCode::Pipeline,
            Self::NotFound { .. } | Self::Corrupt { .. } | Self::Differs { .. } => ExitCode::Data,
            Self::Endpoint { .. }
            | Self::Cache { .. }
            | Self::NoCredentials { .. }
            | Self::Denied { .. }
            | Self::Full { .. }
            | Self::Overwrites { .. } => ExitCode::Machine,
            Self::Unreachable { .. } | Self::LeaseLost { .. } => ExitCode::Again,
            Self::Failed { .. } => ExitCode::Machine,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Address { .. } => {
                "name a directory, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`".into()
            }
            Self::NoCredentials { store, .. } if store.starts_with("gs:") => {
                "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or call `gcloud auth \
                 application-default login`; GOOGLE_SKIP_SIGNATURE=true reads a public bucket, \
                 GCE_METADATA_HOST=metadata.google.internal asks the machine's own account"
                    .into()
            }
            Self::NoCredentials { store, .. } if store.starts_with("az:") => {
                "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_USE_AZURE_CLI=true after `az \
                 login`; AZURE_SKIP_SIGNATURE=true reads a public container"
                    .into()
            }
            Self::NoCredentials { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile with keys in \
                 ~/.aws/credentials (`aws configure export-credentials --format env` prints those of a login or a \
                 role); AWS_SKIP_SIGNATURE=true reads a public bucket, AWS_METADATA_ENDPOINT=http://169.254.169.254 \
                 asks the machine's own role"
                    .into()
            }
            Self::Endpoint { .. } => "write it as http://minio:9000 or https://s3.example.org".into(),
            Self::NoBucket { .. } => {
                "create it, or check the name, AWS_REGION and AWS_ENDPOINT_URL; `--store` names another".into()
            }
            Self::Denied { store, .. } if store.starts_with("s3:") => {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what the bucket allows them; finished work is kept"
                    .into()
            }
            Self::Denied { store, .. } if store.contains("://") => {
                "check the credentials and what the bucket allows them; finished work is kept".into()
            }
            Self::Denied { store, .. } => {
                format!("make {store} writable for this user, or choose another with `--store`")
            }
            Self::Full { .. } => {
                "free some space, perhaps with `smelt artifacts gc --delete`, and run again: finished work is kept"
                    .into()
            }
            Self::Unreachable { store, .. } if store.starts_with("s3:") => match clouds::named_endpoint() {
                Some((by, address)) => format!("does a server listen at {address}, which {by} says?"),
                None => "check the network; AWS_ENDPOINT_URL names another server than Amazon's".into(),
            },
            Self::Corrupt { .. } => {
                "`smelt artifacts verify` lists what is damaged; `smelt rerun` recomputes it".into()
            }
            Self::Overwrites { .. } => {
                "use a server that honours If-None-Match, or say `store: { url: …, commit: single_writer }` (or \
                 `--single-writer`) and start one run at a time"
                    .into()
            }
            Self::Differs { .. } => {
                "the same recipe gave other bytes there, as it may on another kind of machine: take it from there, or \
                 `smelt rerun` the job here, which makes another edition"
                    .into()
            }
            Self::Occupied { .. } => "name a new folder".into(),
            Self::Cache { .. } => "SMELT_CACHE names a folder, SMELT_CACHE_SIZE what it may hold, such as 50GiB".into(),
            _ => return None,
        })
    }
}

/// Turns an error of the file system into ours, by who has to act.
pub(crate) fn of_io(store: &str, what: String, error: io::Error) -> Error {
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

/// Turns an error of a backing into ours.
pub(crate) fn of_backing(store: &str, what: String, error: BackingError) -> Error {
    match error {
        BackingError::Io(e) => of_io(store, what, e),
        BackingError::Objects(e) => of_objects(store, what, e),
    }
}

/// Turns an error of an object store into ours, by who has to act. Addresses inside the cause may carry a signed query,
/// so only the innermost cause is kept, and its addresses lose user and query.
pub(crate) fn of_objects(store: &str, what: String, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let text = innermost(&error);
    let store = store.to_owned();
    let source: BoxError = said(&text).into();
    // The code inside the answer says more than its status: 404 is a missing object as well as a missing bucket.
    match (code(&text), error) {
        (Some("NoSuchBucket"), _) => {
            let bucket = store.strip_prefix("s3://").unwrap_or(&store).split('/').next().unwrap_or_default().to_owned();
            Error::NoBucket { store, bucket }
        }
        (
            Some("AccessDenied" | "SignatureDoesNotMatch" | "InvalidAccessKeyId" | "ExpiredToken" | "InvalidToken"),
            _,
        )
        | (_, E::PermissionDenied { .. } | E::Unauthenticated { .. }) => Error::Denied { store, what, source },
        (_, E::NotFound { path, .. }) => Error::NotFound { store, key: path },
        (_, E::Generic { .. } | E::JoinError { .. }) => Error::Unreachable { store, what, source },
        _ => Error::Failed { store, what, source },
    }
}

/// Whether a "not found" is the bucket's, not the object's.
pub(crate) fn is_missing_bucket(error: &object_store::Error) -> bool {
    code(&innermost(error)) == Some("NoSuchBucket")
}

pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    without_secrets(&last.to_string())
}

/// `text`, its addresses without user and query.
pub fn without_secrets(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out += before;
        let end = after.find(|c: char| c.is_whitespace() || "\"'`<>()".contains(c)).unwrap_or(after.len());
        let address = after[..end].split(['?', '#']).next().unwrap_or_default();
        let host = address.find('/').unwrap_or(address.len());
        out += &address[address[..host].rfind('@').map_or(0, |user| user + 1)..];
        rest = &after[end..];
    }
    out + rest
}

/// The text inside the tag `name` of the XML that S3 answers with.
fn inside<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

pub(crate) fn code(text: &str) -> Option<&str> {
    inside(text, "Code")
}

/// The status of a server's answer, if this is the text of one.
pub(crate) fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("non-2xx status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// What the server said, in words: `AccessDenied: Access Denied`, not the XML around it.
fn said(text: &str) -> String {
    match (code(text), inside(text, "Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(body: &str) -> Error {
        let source = format!("Server returned non-2xx status code: 400 Bad Request: <?xml version=\"1.0\"?>{body}");
        let error = object_store::Error::Generic { store: "S3", source: source.into() };
        of_objects("s3://things/p", "writing `k`".into(), error)
    }

    #[test]
    fn the_code_inside_an_answer_says_who_has_to_act() {
        let missing = answered("<Error><Code>NoSuchBucket</Code></Error>");
        assert_eq!(missing.to_string(), "store s3://things/p: there is no bucket `things`");
        assert_eq!(missing.exit_code(), ExitCode::Pipeline);
        let denied = answered("<Error><Code>SignatureDoesNotMatch</Code><Message>It differs</Message></Error>");
        assert_eq!(denied.to_string(), "store s3://things/p refuses writing `k`: SignatureDoesNotMatch: It differs");
        assert_eq!(denied.exit_code(), ExitCode::Machine);
        assert_eq!(answered("<Error><Code>SlowDown</Code></Error>").exit_code(), ExitCode::Again);
    }

    #[test]
    fn addresses_lose_user_and_query_and_nothing_else_is_cut() {
        let text = "is it (https://key:secret@host/a?X-Amz-Signature=s) or <?xml?> of http://host:9000/b?c=d, or what?";
        assert_eq!(without_secrets(text), "is it (https://host/a) or <?xml?> of http://host:9000/b or what?");
    }
}
