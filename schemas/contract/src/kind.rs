//! Kinds of artifacts and the columns that each promises.
//!
//! A kind has required columns and may have others: readers ignore them, map-like stages pass them on. A new optional
//! column is a minor version, anything else a major one. The tables are plain Parquet and safetensors, so pandas,
//! DuckDB, `datasets` and `transformers` read them without our code.

use arrow_schema::{DataType, Field, Schema, TimeUnit};
use schemars::{JsonSchema, Schema as JsonSchemaValue, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `documents@1.0`: name, major and minor version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Kind {
    pub name: String,
    pub major: u32,
    pub minor: u32,
}

impl Kind {
    fn v1(name: &str, minor: u32) -> Self {
        Self { name: name.into(), major: 1, minor }
    }
    /// Whether a port of this kind can be read where `wanted` is expected: same name, same major version.
    pub fn fits(&self, wanted: &Kind) -> bool {
        self.name == wanted.name && self.major == wanted.major
    }
    /// Curves of a training record how a job went; they are not part of its output.
    pub fn counts_as_output(&self) -> bool {
        self.name != "metrics"
    }
    /// Whether a table tells about a job's work and is not what the job is for: the name of a job never means it.
    pub fn is_beside(&self) -> bool {
        ["drops", "clusters", "hits", "metrics"].contains(&self.name.as_str())
    }
    /// The columns that this build knows, if this kind is a table; those that came with a later minor version are
    /// optional.
    pub fn schema(&self) -> Option<Schema> {
        tables().into_iter().find(|(k, _)| k.fits(self)).map(|(_, s)| s)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}@{}.{}", self.name, self.major, self.minor)
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (name, version) = text.split_once('@')?;
            let (major, minor) = version.split_once('.')?;
            let named = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            named.then_some(())?;
            Some(Self { name: name.into(), major: major.parse().ok()?, minor: minor.parse().ok()? })
        };
        read().ok_or_else(|| format!("`{text}` is no kind: expected a name and a version, such as `documents@1.0`"))
    }
}

impl TryFrom<String> for Kind {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> String {
        kind.to_string()
    }
}

impl JsonSchema for Kind {
    fn schema_name() -> Cow<'static, str> {
        "Kind".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> JsonSchemaValue {
        json_schema!({ "type": "string", "pattern": "^[a-z][a-z0-9_]*@[0-9]+\\.[0-9]+$" })
    }
}

/// Every kind of this build that is a table, with its required columns.
pub fn tables() -> Vec<(Kind, Schema)> {
    let kinds =
        [documents, drops, clusters, tokens, conversations, prompts, samples, preferences, scores, hits, metrics];
    let schemas = [
        documents_schema,
        drops_schema,
        clusters_schema,
        tokens_schema,
        conversations_schema,
        prompts_schema,
        samples_schema,
        preferences_schema,
        scores_schema,
        hits_schema,
        metrics_schema,
    ];
    kinds.iter().zip(schemas).map(|(kind, schema)| (kind(), schema())).collect()
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $(= $minor:literal)?),* $(,)?) => { $(
        $(#[$doc])*
        pub fn $name() -> Kind {
            Kind::v1(stringify!($name), 0 $(+ $minor)?)
        }
    )* };
}

kinds! {
    /// Texts with where they come from.
    documents,
    /// What a filter left out, and by which rule and value.
    drops,
    /// Documents that are equal or nearly equal, and which of them stayed.
    clusters,
    /// Documents as token ids.
    tokens = 1,
    /// Chats to learn from.
    conversations,
    /// Questions with what their verifier accepts.
    prompts,
    /// Answers that a model gave.
    samples,
    /// Pairs of answers, the better one named.
    preferences,
    /// Results of an evaluation.
    scores,
    /// What of a benchmark's problems was found in which document.
    hits,
    /// Curves of a training; outside every digest.
    metrics,
    /// `tokenizer.json` as Hugging Face reads it, with `tokenizer_config.json`.
    tokenizer,
    /// `classifier.json` and `weights.f32`: what tells good documents from bad ones.
    classifier,
    /// `config.json`, safetensors, tokenizer and chat template, as `transformers` loads them.
    checkpoint,
    /// A trainer's optimizer state, to continue it to the bit; prunable.
    state,
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}
fn optional(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}
fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, false)))
}
/// `[{role, content}]`
fn messages() -> DataType {
    list(DataType::Struct(vec![field("role", DataType::Utf8), field("content", DataType::Utf8)].into()))
}

fn documents_schema() -> Schema {
    Schema::new(vec![
        field("id", DataType::Utf8),
        field("text", DataType::Utf8),
        field("source", DataType::Utf8),
        optional("url", DataType::Utf8),
        optional("language", DataType::Utf8),
        optional("time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        optional("metadata", DataType::Utf8), // a JSON object
    ])
}

fn drops_schema() -> Schema {
    Schema::new(vec![
        field("id", DataType::Utf8),
        field("rule", DataType::Utf8),
        optional("value", DataType::Float64),
        optional("detail", DataType::Utf8),
    ])
}

/// One row for each document of a cluster of more than one.
fn clusters_schema() -> Schema {
    Schema::new(vec![
        field("cluster", DataType::UInt64), // place of the document that stays among all that were read, from 0
        field("document", DataType::Utf8),
        field("stays", DataType::Boolean),
        optional("leader", DataType::Utf8), // the document that stays, for which this one goes
        optional("rule", DataType::Utf8),   // as in `drops`
        optional("similarity", DataType::Float64), // to the leader; null where the texts are equal
        field("size", DataType::UInt64),
    ])
}

/// One row a document; `bytes` is the length of its text, so that bits per byte need no second look at the text.
fn tokens_schema() -> Schema {
    Schema::new(vec![
        field("document", DataType::Utf8),
        field("source", DataType::Utf8),
        optional("language", DataType::Utf8), // since 1.1
        field("bytes", DataType::UInt64),
        field("ids", list(DataType::UInt32)),
    ])
}

fn conversations_schema() -> Schema {
    Schema::new(vec![
        field("id", DataType::Utf8),
        field("messages", messages()),
        field("source", DataType::Utf8),
        optional("checkpoint", DataType::Utf8), // digest of the model that wrote the answer
    ])
}

/// `verifier`: JSON, `{"family": "chain", …}`, as `smelt-verify` reads it.
fn prompts_schema() -> Schema {
    Schema::new(vec![
        field("id", DataType::Utf8),
        field("messages", messages()),
        field("answer", DataType::Utf8),
        field("verifier", DataType::Utf8),
    ])
}

fn samples_schema() -> Schema {
    Schema::new(vec![
        field("prompt", DataType::Utf8),
        field("sample", DataType::UInt32),
        field("completion", DataType::Utf8),
        field("ids", list(DataType::UInt32)),
        field("logp", list(DataType::Float32)), // of each id, by the model that drew it
        optional("reward", DataType::Float64),
        field("finish", DataType::Utf8), // stop | length
    ])
}

fn preferences_schema() -> Schema {
    Schema::new(vec![
        field("id", DataType::Utf8),
        field("messages", messages()),
        field("chosen", DataType::Utf8),
        field("rejected", DataType::Utf8),
        optional("margin", DataType::Float64),
        optional("fault", DataType::Utf8), // what is wrong with `rejected`
    ])
}

fn scores_schema() -> Schema {
    Schema::new(vec![
        field("model", DataType::Utf8),
        field("benchmark", DataType::Utf8),
        field("metric", DataType::Utf8),
        field("value", DataType::Float64),
        optional("standard_error", DataType::Float64),
        field("n", DataType::UInt64),
    ])
}

/// One row for each field of a problem that a document shares n-grams with.
fn hits_schema() -> Schema {
    Schema::new(vec![
        field("document", DataType::Utf8),
        field("benchmark", DataType::Utf8),
        field("problem", DataType::Utf8),
        field("field", DataType::Utf8),    // question | answer | chosen | rejected | text
        field("ngram", DataType::Utf8),    // the first one of the problem that was found, folded
        field("ngrams", DataType::UInt64), // of the problem, that were found
        field("covered", DataType::Float64), // share of the problem's words that they cover
    ])
}

fn metrics_schema() -> Schema {
    Schema::new(vec![field("step", DataType::UInt64), field("name", DataType::Utf8), field("value", DataType::Float64)])
}

/// The columns of a kind as text, one a line: `id: Utf8 not null`. What `schemas/generated/` holds.
pub fn schema_text(schema: &Schema) -> String {
    let mut text = String::new();
    for f in schema.fields() {
        let null = if f.is_nullable() { "" } else { " not null" };
        text += &format!("{}: {}{null}\n", f.name(), f.data_type());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_as_it_is_written() {
        let kind: Kind = "documents@1.0".parse().unwrap();
        assert_eq!(kind, documents());
        assert_eq!(kind.to_string(), "documents@1.0");
        for bad in ["documents", "documents@1", "Documents@1.0", "@1.0", "documents@a.b"] {
            assert!(bad.parse::<Kind>().unwrap_err().contains("is no kind"), "{bad}");
        }
    }

    #[test]
    fn a_minor_version_fits_and_a_major_one_does_not() {
        let newer = Kind { minor: 3, ..documents() };
        assert!(newer.fits(&documents()));
        assert!(!Kind { major: 2, ..documents() }.fits(&documents()));
        assert!(!drops().fits(&documents()));
    }

    #[test]
    fn every_table_kind_has_its_schema() {
        assert_eq!(tables().len(), 11);
        assert!(tables().iter().all(|(kind, schema)| kind.schema().as_ref() == Some(schema)));
        assert!(checkpoint().schema().is_none());
        let of_another_build = |version: &str| format!("tokens@{version}").parse::<Kind>().unwrap().schema();
        assert!(of_another_build("1.0").is_some() && of_another_build("1.7").is_some());
        assert!(of_another_build("2.0").is_none());
    }
}
