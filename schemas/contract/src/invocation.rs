//! What the runner hands to a stage.

use crate::device::Device;
use crate::digest::Digest;
use crate::kind::Kind;
use crate::pipeline::SavePolicy;
use crate::stage::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Names one edition of one recipe: `artifacts/<stage>/<fingerprint>/<edition>.json`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactRef {
    pub stage: String,
    pub fingerprint: Digest,
    pub edition: u32,
}

/// One artifact's port, as an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputRef {
    #[serde(flatten)]
    pub artifact: ArtifactRef,
    pub port: String,
    pub kind: Kind,
    pub digest: Digest,
}

/// What `resolve` reads: the config as the pipeline wrote it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResolveRequest {
    pub config: Value,
    /// How many artifacts each connected input port has.
    #[serde(default)]
    pub inputs: BTreeMap<String, usize>,
    /// The store's address: no source may lie in it, because every run would find what the run before left.
    #[serde(default)]
    pub store: Option<String>,
    /// Tokens of the tokenizer that a job of the pipeline will make, for `estimate` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<u64>,
}

/// What `run` reads. Holds no secret: credentials come from the environment.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Invocation {
    pub protocol: u32,
    pub run: String,
    pub job: String,
    pub stage: String,
    pub version: u32,
    pub fingerprint: Digest,
    /// The effective config, as `resolve` printed it.
    pub config: Value,
    #[serde(default)]
    pub sources: Vec<Source>,
    #[serde(default)]
    pub inputs: BTreeMap<String, Vec<InputRef>>,
    /// The store's address: a directory, `s3://bucket/prefix` or `memory:`.
    pub store: String,
    /// The edition to commit: 0, or more when a rerun was asked for.
    #[serde(default)]
    pub edition: u32,
    /// Threads this job may use; changes no byte of its output.
    pub threads: usize,
    /// Bytes that this process may hold of a corpus: what is larger is sorted in `scratch`. Changes no byte of its
    /// output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Which of the workers of its job this is, from 0: only events tell it.
    #[serde(default)]
    pub rank: u32,
    /// What it computes on. Sums have another order on a GPU, so its bytes are not those of a CPU.
    #[serde(default)]
    pub device: Device,
    #[serde(default)]
    pub save: SavePolicy,
    /// A local folder that may vanish at any time; emptied by whoever made it.
    pub scratch: PathBuf,
}

/// What `run` reads in a program with `io: files`: local paths only. Files it leaves in a port's folder are committed
/// when it ends with 0.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FilesInvocation {
    pub config: Value,
    /// Port to artifacts, each a list of files.
    pub inputs: BTreeMap<String, Vec<Vec<PathBuf>>>,
    /// Port to an empty folder.
    pub outputs: BTreeMap<String, PathBuf>,
    pub threads: usize,
}
