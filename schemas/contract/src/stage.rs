//! What a stage tells about itself: the answers of `describe`, `resolve`, `estimate` and `doctor`.

use crate::exit::ExitCode;
use crate::fault::Problem;
use crate::kind::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The answer of `describe`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Description {
    pub protocol: u32,
    pub name: String,
    /// Raised when the same config and inputs would give different bytes.
    pub version: u32,
    /// One sentence.
    pub about: String,
    #[serde(default)]
    pub io: Io,
    #[serde(default)]
    pub cores: Cores,
    /// Whether its jobs can compute on a GPU.
    #[serde(default)]
    pub devices: bool,
    /// Whether many processes may do a job together.
    #[serde(default)]
    pub spreads: bool,
    /// Whether a job can be done by several ranks that compute together and find each other by `MASTER_ADDR`,
    /// `MASTER_PORT`, `RANK` and `WORLD_SIZE`. What rank 0 leaves is committed. For programs with `io: files`.
    #[serde(default)]
    pub ranks: bool,
    /// `resolve` also takes a list of requests, and then prints a list of [`ResolveAnswer`]s.
    #[serde(default)]
    pub resolves_lists: bool,
    #[serde(default)]
    pub inputs: Vec<InputPort>,
    pub outputs: Vec<OutputPort>,
    /// JSON Schema of the config.
    #[serde(default)]
    pub config: Value,
}

impl Description {
    pub fn input(&self, name: &str) -> Option<&InputPort> {
        self.inputs.iter().find(|p| p.name == name)
    }
    pub fn output(&self, name: &str) -> Option<&OutputPort> {
        self.outputs.iter().find(|p| p.name == name)
    }
    /// Whether the stage draws random numbers: its config has a `seed`, which the pipeline fills.
    pub fn takes_seed(&self) -> bool {
        self.config.pointer("/properties/seed").is_some()
    }
}

/// Who moves the bytes: the stage itself, or the runner through local folders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    #[default]
    Store,
    Files,
}

/// How many cores a job of this stage keeps busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cores {
    #[default]
    One,
    All,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arity {
    #[default]
    One,
    Optional,
    /// One or more; their order counts.
    List,
    /// None or more; their order counts.
    OptionalList,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputPort {
    pub name: String,
    pub kind: Kind,
    #[serde(default)]
    pub arity: Arity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputPort {
    pub name: String,
    pub kind: Kind,
}

/// Something read from outside the store, identified by its content, never by its path on this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// Relative name, the same on every machine.
    pub name: String,
    pub bytes: u64,
    /// blake3 of the bytes, or the ETag of a remote object.
    pub version: String,
}

/// The answer of `resolve`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Resolved {
    /// Typed, defaults filled in; a field added after version 1 is left out while it has its default.
    pub config: Value,
    /// Output ports that this config produces, with their kinds.
    pub outputs: Vec<OutputPort>,
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// The answer of `resolve` to one request of a list.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResolveAnswer {
    Resolved(Resolved),
    Refused {
        code: ExitCode,
        #[serde(flatten)]
        problem: Problem,
    },
}

/// The answer of `estimate`. What the config alone does not determine is left out, and `notes` say why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops: Option<f64>,
    /// On this machine, with all its cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The parts of these figures; their names hold the units.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, f64>,
    /// What was assumed, and what is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The answer of `doctor`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Doctor {
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub found: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
