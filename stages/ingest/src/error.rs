//! What can go wrong between a glob and a document.

use smelt_stage::files::FileError;
use smelt_stage::{ExitCode, Fault};
use std::io;

/// By who has to act: the pipeline's author, the owner of the data, the machine's.
///
/// `place` is a pattern of the config, or a file with its line or row: `docs/a.jsonl:3`.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A path in the config is wrong.
    #[error("{what}")]
    Config { what: String, place: String, hint: Option<String> },
    /// The files are not what they should be.
    #[error("{what}")]
    Data { what: String, place: String, hint: Option<String> },
    /// A bucket or a web server does not let its files be found.
    #[error("{what}")]
    Remote { what: String, place: String, hint: Option<String>, code: ExitCode },
    /// The machine does not let a file be read.
    #[error("cannot read `{name}`: {source}")]
    Read { name: String, source: io::Error },
}

impl Fault for IngestError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config { .. } => ExitCode::Pipeline,
            Self::Data { .. } => ExitCode::Data,
            Self::Remote { code, .. } => *code,
            Self::Read { .. } => ExitCode::Machine,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Config { hint, .. } | Self::Data { hint, .. } | Self::Remote { hint, .. } => hint.clone(),
            Self::Read { .. } => None,
        }
    }
    fn place(&self) -> Option<String> {
        let (Self::Config { place, .. }
        | Self::Data { place, .. }
        | Self::Remote { place, .. }
        | Self::Read { name: place, .. }) = self;
        Some(place.clone())
    }
}

impl From<FileError> for IngestError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Read { name, source } => Self::Read { name, source },
            _ => Self::Config { what: error.to_string(), place: error.place().unwrap_or_default(), hint: error.hint() },
        }
    }
}

impl From<IngestError> for smelt_stage::Error {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Config { .. } => Self::of(&error).field("/paths"),
            _ => Self::of(&error),
        }
    }
}

impl IngestError {
    pub(crate) fn config(place: &str, what: impl Into<String>) -> Self {
        Self::Config { what: what.into(), place: place.into(), hint: None }
    }

    pub(crate) fn data(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Data { what: what.into(), place: place.into(), hint: None }
    }

    pub(crate) fn remote(place: &str, error: &smelt_store::Error) -> Self {
        use smelt_store::Error::Address;
        // A store's errors call the place of these files a store.
        let (what, hint) = match error {
            Address { address, why } => (format!("`{address}` cannot be read from: {why}"), None),
            _ => (error.to_string().replacen("store ", "", 1), error.hint()),
        };
        // The pattern is shown, and may hold a password.
        let place = match place.split_once("://") {
            Some((scheme, rest)) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
                format!("{scheme}://{}", rest.split_once('@').map_or("", |(_, rest)| rest))
            }
            _ => place.to_owned(),
        };
        Self::Remote { what, place, hint, code: error.exit_code() }
    }

    pub(crate) fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Config { hint, .. } | Self::Data { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// A failed read of a file's bytes: what says "damaged" is the data's fault, everything else the machine's.
    pub(crate) fn io(name: &str, source: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        match source.kind() {
            UnexpectedEof => Self::data(name, format!("`{name}` ends in the middle: it is truncated"))
                .with_hint("fetch the file again, or leave it out of `paths`"),
            InvalidData | InvalidInput | Other => Self::data(name, format!("`{name}` is damaged: {source}")),
            _ => Self::Read { name: name.to_owned(), source },
        }
    }
}
