//! What is wrong with a query, as data.

use smelt_schemas::{ExitCode, Fault};
use std::fmt;

/// What is wrong with a query, where in it, and the one thing to do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: ExitCode,
    pub(crate) message: String,
    /// `line:column` in the query, from 1.
    pub(crate) place: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), place: None, hint: None }
    }
    pub(crate) fn of(fault: &impl Fault) -> Self {
        Self { code: fault.exit_code(), message: fault.to_string(), place: fault.place(), hint: fault.hint() }
    }
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Fault for Failure {
    fn exit_code(&self) -> ExitCode {
        self.code
    }
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
    fn place(&self) -> Option<String> {
        self.place.clone()
    }
}
