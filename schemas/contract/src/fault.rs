//! What went wrong, as data: who has to act, what, where, and the one thing to do.
//!
//! Every error type of smelt's libraries is a [`Fault`]; a program turns one into a [`Problem`] and an exit code.
//! Nobody reads a hint or a code back out of prose.

use crate::exit::ExitCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An error whose `Display` says what is wrong, where, and with which values, and nothing about what to do.
pub trait Fault: std::error::Error {
    /// Who has to act.
    fn exit_code(&self) -> ExitCode;
    /// The one thing to do, if there is one.
    fn hint(&self) -> Option<String> {
        None
    }
    /// Where it happened, for programs: `step 12`, `docs/a.jsonl:3`, a tensor's name. The text says it too.
    fn place(&self) -> Option<String> {
        None
    }
}

/// What is wrong, where, and the one thing to do. A stage's `resolve` prints it when it refuses a config, its `run` as
/// part of an event; `smelt-query` prints it for every failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    pub message: String,
    /// JSON pointer into the config, if the trouble lies there: `/rules/min_words`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Where it happened, for programs: `step 12`, `docs/a.jsonl:3`. The message says it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    pub fn of(fault: &(impl Fault + ?Sized)) -> Self {
        Self { message: fault.to_string(), field: None, place: fault.place(), hint: fault.hint() }
    }
}
