//! What `smelt` asks of `smelt-query`.
//!
//! A request goes to its standard input, the answer to its standard output. What fails is told by the exit code and by
//! a [`Problem`](crate::fault::Problem) as JSON in one line on standard error; a fault of the SQL has the place
//! `line:column` in the query, if the parser knows it. Other lines of standard error are words for people.

use crate::kind::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One SQL query over the files that manifests name; never over a listing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QueryRequest {
    /// The store's address.
    pub store: String,
    /// Whose jobs are tables.
    pub pipeline: String,
    pub sql: String,
    #[serde(default)]
    pub format: QueryFormat,
    /// Where Parquet goes; the other formats go to standard output.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Names for queries, which others may read as tables.
    #[serde(default)]
    pub views: BTreeMap<String, String>,
    /// Plan the query, and the views, against the ports that jobs will have; answer nothing.
    #[serde(default)]
    pub planned: Option<Vec<PlannedPort>>,
    /// `HOST:PORT` of the scheduler of a Ballista cluster that answers instead of this machine.
    #[serde(default)]
    pub ballista: Option<String>,
}

/// A port of a job that may not have run yet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PlannedPort {
    /// Without the axes of an instance: `train`.
    pub job: String,
    pub port: String,
    pub kind: Kind,
    /// Columns of an instance's tables, and their values.
    #[serde(default)]
    pub axes: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueryFormat {
    #[default]
    Table,
    Json,
    Csv,
    Parquet,
}

/// The question of `smelt-query inspect`, on its standard input: what do these local Parquet files hold? Programs with
/// `io: files` wrote them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InspectRequest {
    /// Its columns must be there, of its types.
    pub kind: Kind,
    pub files: Vec<PathBuf>,
}

/// The answer: rows of each file, in their order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InspectAnswer {
    pub rows: Vec<u64>,
}
