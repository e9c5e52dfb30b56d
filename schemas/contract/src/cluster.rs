//! What `smelt-kubernetes` tells the runner of the Jobs of a run: a line of JSON each time one changes.

use serde::{Deserialize, Serialize};

/// How a Job of Kubernetes is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterJob {
    /// Of the Job, as it was created.
    pub name: String,
    pub state: ClusterState,
    /// Why it waits or has failed, in the cluster's words; empty if there is nothing to say.
    pub why: String,
    /// With which status the container ended that failed.
    pub status: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    /// No container of it runs yet.
    Waits,
    Runs,
    /// All its containers ended well.
    Done,
    Failed,
    /// It was ended because its time was over.
    Late,
    /// The container had more memory than it may.
    OutOfMemory,
    /// Somebody deleted it.
    Gone,
}
