//! What a stage's exit code asks for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Exit codes of every stage program and of `smelt`. Only `Again` is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitCode {
    Done = 0,
    /// The pipeline file or the command line is wrong.
    Pipeline = 2,
    /// The data are wrong.
    Data = 3,
    /// A temporary failure: connection, preemption, a lost lease, a signal.
    Again = 4,
    /// A bug of smelt; a panic counts too.
    Bug = 5,
    /// The machine is at fault: full disk, permission, credentials, driver.
    Machine = 6,
}

impl ExitCode {
    /// The meaning of a process's exit status: `None` was killed by a signal, 101 is a Rust panic.
    pub fn of_process(code: Option<i32>) -> Self {
        match code {
            None => Self::Again,
            Some(0) => Self::Done,
            Some(2) => Self::Pipeline,
            Some(3) => Self::Data,
            Some(4) => Self::Again,
            Some(6) => Self::Machine,
            Some(_) => Self::Bug,
        }
    }

    /// Who has to act, in three words.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Pipeline => "fix the pipeline",
            Self::Data => "fix the data",
            Self::Again => "try again",
            Self::Bug => "a bug of smelt",
            Self::Machine => "fix the machine",
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        (code as u8).into()
    }
}
