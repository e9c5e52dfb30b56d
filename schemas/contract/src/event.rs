//! Events of a running stage: JSON lines on its standard output.

use crate::digest::Digest;
use crate::exit::ExitCode;
use crate::fault::Problem;
use crate::manifest::Books;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the five verbs, of invocations and of events.
pub const PROTOCOL: u32 = 1;

/// One line. Any other line of standard output is log text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    #[serde(default)]
    pub v: u32,
    /// Seconds since 1970, UTC.
    #[serde(default)]
    pub time: f64,
    /// Counts the events of one process, from 0.
    #[serde(default)]
    pub seq: u64,
    /// Of the worker that sent it.
    #[serde(default)]
    pub rank: u32,
    #[serde(flatten)]
    pub body: EventBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventBody {
    /// Work begins, or continues where an earlier process stopped.
    Started {
        attempt: String,
        /// How many earlier processes worked on this attempt.
        #[serde(default)]
        resumed: u32,
        /// Where the saved progress continues, such as a training step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resumed_at: Option<u64>,
    },
    Progress {
        #[serde(default)]
        phase: String,
        done: u64,
        /// Unknown totals are left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
        /// What is counted: documents, bytes, tokens, steps.
        unit: String,
        /// Shown to people beside the numbers: `loss 2.913`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        note: String,
    },
    Metrics {
        step: u64,
        values: BTreeMap<String, f64>,
    },
    Warning {
        message: String,
    },
    /// Where every row went. Only programs with `io: files` send it: the runner cannot count their rows itself.
    Books(Books),
    Error {
        code: ExitCode,
        #[serde(flatten)]
        problem: Problem,
    },
    /// The manifest is written. `adopted`: another attempt had won the race, and this is its edition.
    Committed {
        fingerprint: Digest,
        edition: u32,
        #[serde(default)]
        adopted: bool,
        /// One line for people: `548 kept, 64 dropped: 33 too_short, 31 language`.
        #[serde(default)]
        summary: String,
    },
}
