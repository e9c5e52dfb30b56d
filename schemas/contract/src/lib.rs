//! Every type that crosses a process boundary: pipeline files, what a stage reads and prints, the records it leaves in
//! the store. No I/O, so that anything may depend on it; the published JSON Schemas and Arrow schemas in
//! `schemas/generated/` are printed from here.

mod cluster;
mod device;
mod digest;
mod event;
mod exit;
mod fault;
mod fingerprint;
mod invocation;
pub mod kind;
mod manifest;
mod pipeline;
mod query;
mod stage;

pub use cluster::{ClusterJob, ClusterState};
pub use device::Device;
pub use digest::{Digest, NotADigest};
pub use event::{Event, EventBody, PROTOCOL};
pub use exit::ExitCode;
pub use fault::{Fault, Problem};
pub use fingerprint::{canonical_json, fingerprint};
pub use invocation::{ArtifactRef, FilesInvocation, InputRef, Invocation, ResolveRequest};
pub use kind::Kind;
pub use manifest::{Books, FileRecord, Manifest, PortRecord, Provenance, UnbalancedBooks, port_digest};
pub use pipeline::{
    CacheConfig, CommitMode, Conditions, Each, Executor, Include, Inputs, Job, Kubernetes, OnFailure, Pipeline,
    RunOptions, SavePolicy, StoreConfig, parse_bytes,
};
pub use query::{InspectAnswer, InspectRequest, PlannedPort, QueryFormat, QueryRequest};
pub use stage::{
    Arity, Check, Cores, Description, Doctor, Estimate, InputPort, Io, OutputPort, ResolveAnswer, Resolved, Source,
};

/// Every type of this crate that is published as a JSON Schema, with the file it is published in.
pub fn published_json_schemas() -> Vec<(&'static str, schemars::Schema)> {
    vec![
        ("pipeline.schema.json", schemars::schema_for!(Pipeline)),
        ("manifest.schema.json", schemars::schema_for!(Manifest)),
        ("invocation.schema.json", schemars::schema_for!(Invocation)),
        ("files_invocation.schema.json", schemars::schema_for!(FilesInvocation)),
        ("event.schema.json", schemars::schema_for!(Event)),
        ("description.schema.json", schemars::schema_for!(Description)),
        ("resolve_request.schema.json", schemars::schema_for!(ResolveRequest)),
        ("resolved.schema.json", schemars::schema_for!(Resolved)),
        ("resolve_answer.schema.json", schemars::schema_for!(ResolveAnswer)),
        ("problem.schema.json", schemars::schema_for!(Problem)),
    ]
}
