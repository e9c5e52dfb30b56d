//! A job on its way from the file to the plan.

use crate::diagnostic::Place;
use crate::yaml::Tree;
use indexmap::IndexMap;
use serde_json::Value;
use smelt_schemas::{InputRef, Job};

/// An instance before its stage and inputs are known.
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) base: String,
    pub(super) axes: IndexMap<String, Value>,
    /// Of a job that is repeated, from 1.
    pub(super) iteration: Option<usize>,
    pub(super) text: Job,
    pub(super) inputs: Vec<Reading>,
    /// Conditions of its gate, each with its place in the list.
    pub(super) when: Vec<(usize, String)>,
    /// What `--set` changed in this instance alone: pointers in the job, and who said so.
    pub(super) set: Vec<(String, String)>,
}

/// What one port of a draft reads.
pub(super) struct Reading {
    /// The first one of the stage if not said.
    pub(super) port: Option<String>,
    pub(super) references: Vec<String>,
    /// Where that stands in the job.
    pub(super) pointer: String,
}

impl Draft {
    /// Where the value at `pointer` inside this job stands, or what is around it.
    pub(super) fn place(&self, tree: &Tree, pointer: &str) -> Option<Place> {
        self.given(pointer).or_else(|| tree.place(&format!("/jobs/{}{pointer}", self.base)))
    }
    /// Where the key of the entry at `pointer` inside this job stands.
    pub(super) fn key_place(&self, tree: &Tree, pointer: &str) -> Option<Place> {
        self.given(pointer).or_else(|| tree.key_place(&format!("/jobs/{}{pointer}", self.base)))
    }
    fn given(&self, pointer: &str) -> Option<Place> {
        let around = |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        let found =
            self.set.iter().rfind(|(at, _)| around(pointer, at) || (!pointer.is_empty() && around(at, pointer)));
        found.map(|(_, said)| Place::named(said))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// A port of another job, by its place in `Plan::jobs`.
    Job { job: usize, port: String },
    /// A committed artifact: `tag:NAME`, `artifact:DIGEST`.
    Fixed(InputRef),
}
