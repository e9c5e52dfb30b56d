//! What keeps a local file from being used.

use crate::error::Error;
use smelt_schemas::{ExitCode, Fault};
use std::io;

/// What keeps a local file from being used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("`{pattern}` opens `${{` and does not close it")]
    Unclosed { pattern: String },
    #[error("`{pattern}` needs the variable `{name}`, which a stage does not see")]
    Unset { pattern: String, name: String },
    #[error("`{pattern}` begins with `~`, and the variable `HOME` is not set")]
    NoHome { pattern: String },
    #[error("`{pattern}` covers the store of this pipeline, {store}: every run would read what the run before left")]
    OwnStore { pattern: String, store: String },
    /// The name is right, but the machine does not let the file be read.
    #[error("cannot read `{name}`: {source}")]
    Read { name: String, source: io::Error },
}

impl Fault for FileError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unclosed { .. } | Self::Unset { .. } | Self::NoHome { .. } | Self::OwnStore { .. } => {
                ExitCode::Pipeline
            }
            Self::Read { .. } => ExitCode::Machine,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unset { name, .. } => Some(format!(
                "set it and name it in the job, `run: {{ env: [{name}] }}`, or write `${{{name}:-DEFAULT}}`"
            )),
            Self::OwnStore { .. } => {
                Some("name the folder of the sources, `data/**/*.md`, or keep the store elsewhere with `store:`".into())
            }
            _ => None,
        }
    }
    fn place(&self) -> Option<String> {
        let (Self::Unclosed { pattern: place }
        | Self::Unset { pattern: place, .. }
        | Self::NoHome { pattern: place }
        | Self::OwnStore { pattern: place, .. }
        | Self::Read { name: place, .. }) = self;
        Some(place.clone())
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        Self::of(&error)
    }
}
