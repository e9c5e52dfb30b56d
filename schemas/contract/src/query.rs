//! What `smelt` asks of `smelt-query`.
//!
//! A request goes to its standard input, the answer to its standard output. What fails is told by the exit code and by
//! a [`Problem`](crate::fault::Problem) as JSON in one line on standard error; a fault of the SQL has the place
//! `line:column` in the query, if the parser knows it. Other lines of standard error are words for people.

use crate::digest::Digest;
use crate::kind::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One SQL query over the files that manifests name; never over a listing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QueryRequest {
    /// The store's address.
    pub store: String,
    pub sql: String,
    #[serde(default)]
    pub format: QueryFormat,
    /// Where Parquet goes; the other formats go to standard output.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Only plan the query, against tables that may not exist yet; answer nothing.
    #[serde(default)]
    pub check: bool,
    pub tables: Vec<QueryTable>,
    pub records: Vec<RecordTable>,
    /// Jobs whose tables would be short.
    #[serde(default)]
    pub lost: Vec<LostJob>,
}

/// A job whose manifest is gone or damaged: nobody knows what its tables hold.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LostJob {
    /// `train[seed=1]`; its tables are `train` and `train.*`.
    pub job: String,
    pub why: String,
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

/// A port as a table: `clean`, or `clean.drops`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QueryTable {
    #[serde(default)]
    pub schema: Option<String>,
    pub name: String,
    pub kind: Kind,
    pub parts: Vec<QueryPart>,
}

/// Rows of one job, with columns that are the same in all of them: `job`, or the axes of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct QueryPart {
    /// What `smelt rerun` makes again when a file is damaged.
    #[serde(default)]
    pub job: String,
    pub files: Vec<QueryFile>,
    /// Rows that are in no file yet, such as the curve of a running job: an object for each, with the kind's columns.
    #[serde(default)]
    pub rows: Vec<Value>,
    /// Column to text, number or boolean.
    #[serde(default)]
    pub constants: BTreeMap<String, Value>,
}

/// A file of a committed port, as its manifest has it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QueryFile {
    /// In the store.
    pub key: String,
    pub bytes: u64,
    pub blake3: Digest,
}

/// A small table of the store's own records.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RecordTable {
    pub schema: String,
    pub name: String,
    pub columns: Vec<(String, RecordType)>,
    pub rows: Vec<Vec<Value>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordType {
    Text,
    Integer,
    Number,
    /// Seconds since 1970 in the rows, a timestamp in SQL.
    Time,
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
