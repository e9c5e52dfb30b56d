//! What can go wrong between a glob and a document.

use smelt_stage::files::FileError;
use std::io;

/// Grouped by who can help: the pipeline's author, the data's owner, the machine's.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A path in the config cannot be understood.
    #[error("{0}")]
    Config(String),
    /// The files are not what they should be.
    #[error("{0}")]
    Data(String),
    /// The machine does not give what is there.
    #[error("cannot read `{name}`")]
    Read { name: String, source: io::Error },
}

impl From<FileError> for IngestError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Config(text) => IngestError::Config(text),
            FileError::Read { name, source } => IngestError::Read { name, source },
        }
    }
}

impl IngestError {
    /// An I/O failure on a file's bytes: what says "damaged" is the data's fault, everything else the machine's.
    pub(crate) fn io(name: &str, source: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        match source.kind() {
            UnexpectedEof => IngestError::Data(format!(
                "`{name}` ends in the middle: it is truncated\nhint: fetch the file again, or leave it out of `paths`"
            )),
            InvalidData | InvalidInput | Other => IngestError::Data(format!("`{name}` is damaged: {source}")),
            _ => IngestError::Read { name: name.to_owned(), source },
        }
    }
}
