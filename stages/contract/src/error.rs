//! Why a stage stopped, by who has to act.

use smelt_schemas::{ExitCode, Fault, Problem};
use std::fmt;

/// What, where, with which values; and the one thing to do.
#[derive(Debug)]
pub struct Error {
    code: ExitCode,
    problem: Problem,
}

impl Error {
    fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, problem: Problem { message: message.into(), ..Problem::default() } }
    }
    /// The config is wrong. `field`: JSON pointer into it, such as `/rules/min_words`.
    pub fn config(field: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(ExitCode::Pipeline, message);
        error.problem.field = Some(field.into());
        error
    }
    /// The data are wrong.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Data, message)
    }
    /// A passing trouble: trying again may help.
    pub fn again(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Again, message)
    }
    /// The machine is wrong.
    pub fn machine(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Machine, message)
    }
    /// A bug of ours.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Bug, message)
    }
    /// A library's error as a stage's: its text, place, hint and exit code.
    pub fn of(fault: &(impl Fault + ?Sized)) -> Self {
        Self { code: fault.exit_code(), problem: Problem::of(fault) }
    }
    /// A library's error about what the config says in `field`.
    pub fn in_config(field: &str, fault: &(impl Fault + ?Sized)) -> Self {
        Self { code: ExitCode::Pipeline, problem: Problem::of(fault) }.field(field)
    }
    /// Names the field of the config that is wrong, as a JSON pointer.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.problem.field = Some(field.into());
        self
    }
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }
    pub fn exit_code(&self) -> ExitCode {
        self.code
    }
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Error {}

impl From<smelt_store::Error> for Error {
    fn from(error: smelt_store::Error) -> Self {
        Self::of(&error)
    }
}

/// A store's error may lie deep inside what Parquet's writer reports; it says who has to act, Parquet does not.
fn from_table(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(store) = e.downcast_ref::<smelt_store::Error>() {
            return Error::of(store);
        }
        if let Some(io) = e.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
        {
            cause = Some(inner);
            continue;
        }
        cause = e.source();
    }
    Error::data(error.to_string())
}

impl From<parquet::errors::ParquetError> for Error {
    fn from(error: parquet::errors::ParquetError) -> Self {
        from_table(&error)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        from_table(&error)
    }
}
