//! What is wrong with a query, as data.

use datafusion::error::DataFusionError;
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
    /// Says what it is about, in front; it has no place in the query then.
    pub(crate) fn about(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), place: None, ..self }
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

pub(crate) fn failed(e: DataFusionError) -> Failure {
    let said = e.strip_backtrace();
    overflow(&said).unwrap_or_else(|| Failure::new(ExitCode::Data, said))
}

/// The query's own fault: its integers do not fit.
pub(crate) fn overflow(said: &str) -> Option<Failure> {
    // Inside a scan the library tells the error as its programmers see it.
    let what = match (said.split_once("Arithmetic overflow: "), said.split_once("ArithmeticOverflow(\"")) {
        (Some((_, what)), _) => what.lines().next(),
        (None, Some((_, what))) => what.split('"').next(),
        (None, None) => return None,
    };
    let what = format!("Arithmetic overflow: {}", what.unwrap_or_default());
    let hint = "compute in a wider type, such as `cast(x as decimal(38, 0))` or `cast(x as double)`";
    Some(Failure::new(ExitCode::Pipeline, what).hint(hint))
}
