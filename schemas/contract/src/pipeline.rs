//! The pipeline file, after variables are filled in and before instances are made.

use crate::device::Device;
use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;

/// A YAML file of jobs. Job names match `[a-z][a-z0-9_]*`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    pub name: String,
    /// Other files, relative to this one: their jobs, views and variables are part of this pipeline. What this file
    /// says of a variable counts before what they say.
    #[serde(default)]
    pub include: Include,
    /// A directory, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`, or a map that says more of
    /// it; `--store` and `SMELT_STORE` override it.
    #[serde(default)]
    pub store: Option<StoreConfig>,
    /// Fills the `seed` of every stage that draws random numbers and is given none.
    #[serde(default)]
    pub seed: u64,
    /// Values for `${name}` anywhere below. Names in capitals, `${HOME}`, are left to the stages.
    #[serde(default)]
    pub vars: IndexMap<String, Value>,
    /// How to run jobs that do not say otherwise themselves.
    #[serde(default)]
    pub run: RunOptions,
    /// What a job that fails does to the jobs that do not hang on it.
    #[serde(default)]
    pub on_failure: OnFailure,
    pub jobs: IndexMap<String, Job>,
    /// Names for SQL queries over the jobs' tables, and over other views: `report` and `smelt sql` read them as tables.
    #[serde(default)]
    pub views: IndexMap<String, String>,
    /// SQL that is run and printed last.
    #[serde(default)]
    pub report: Option<String>,
}

/// Where artifacts are kept, and how. An address alone means the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreConfig {
    /// A directory, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    pub commit: CommitMode,
    /// A folder of this machine that keeps what was read from a bucket. SMELT_CACHE names one for all pipelines.
    pub cache: Option<CacheConfig>,
}

/// How two runs at once are kept from overwriting each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommitMode {
    /// By create-only puts. A server that accepts two of them for one key is refused.
    #[default]
    CreateOnly,
    /// By the user, who starts one run at a time. For servers that know no create-only put.
    SingleWriter,
}

/// A read cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// A folder; `~/` is the user's.
    pub path: String,
    /// What it may hold, such as `50GiB`; 20GiB by default.
    #[serde(default)]
    pub size: Option<String>,
}

impl JsonSchema for StoreConfig {
    fn schema_name() -> Cow<'static, str> {
        "StoreConfig".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let commit = generator.subschema_for::<CommitMode>();
        let cache = generator.subschema_for::<Option<CacheConfig>>();
        json_schema!({ "oneOf": [
            { "type": "string" },
            {
                "type": "object",
                "properties": { "url": { "type": "string" }, "commit": commit, "cache": cache },
                "required": ["url"],
                "additionalProperties": false,
            },
        ] })
    }
}

impl From<&str> for StoreConfig {
    fn from(url: &str) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

impl<'de> Deserialize<'de> for StoreConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Map {
            url: String,
            #[serde(default)]
            commit: CommitMode,
            #[serde(default)]
            cache: Option<CacheConfig>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = StoreConfig;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an address, or `{ url: … }`")
            }
            fn visit_str<E>(self, url: &str) -> Result<StoreConfig, E> {
                Ok(url.into())
            }
            // Not by an untagged enum: its errors do not say which field is wrong.
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StoreConfig, A::Error> {
                let Map { url, commit, cache } = Map::deserialize(MapAccessDeserializer::new(map))?;
                Ok(StoreConfig { url, commit, cache })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// One use of a stage.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// A program: `smelt-<stage>` beside `smelt` or in PATH; with a `/` in it, a file relative to the pipeline file.
    pub stage: String,
    #[serde(default)]
    pub input: Inputs,
    #[serde(default)]
    pub config: Map<String, Value>,
    /// The job runs only if all of this holds of what earlier jobs measured; else it, and what reads from it, is
    /// skipped.
    #[serde(default)]
    pub when: Conditions,
    #[serde(default)]
    pub run: RunOptions,
    /// Axes: the job is made once for each combination, as `job[axis=value]`.
    #[serde(default)]
    pub each: Each,
    /// The job is done so many times, one after another, as `job[1]`, `job[2]`, …: in its inputs `previous` is the
    /// iteration before, and `other[previous]` that of another repeated job. Other jobs mean the last iteration.
    #[serde(default)]
    pub repeat: Option<usize>,
    /// What the first iteration reads in place of the inputs that name a previous one; or a map from ports to that.
    #[serde(default)]
    pub first: Inputs,
}

/// A file, or a list of files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Include(pub Vec<String>);

impl TryFrom<Value> for Include {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        strings(value, |other| format!("`{other}` is no file to include: write its path")).map(Self)
    }
}

impl From<Include> for Value {
    fn from(include: Include) -> Value {
        include.0.into()
    }
}

impl JsonSchema for Include {
    fn schema_name() -> Cow<'static, str> {
        "Include".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// Nothing, a text, or a list of texts.
fn strings(value: Value, bad: impl Fn(Value) -> String) -> Result<Vec<String>, String> {
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        other => Err(bad(other)),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.into_iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}

/// Axis name to values, in order.
pub type Each = IndexMap<String, Vec<Value>>;

/// How to run; never part of an identity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunOptions {
    /// Where the job runs.
    #[serde(default)]
    pub executor: Executor,
    /// Cores this job may use; by default all or one, as its stage declares. `threads` is its name in older files.
    #[serde(default, alias = "threads")]
    pub cores: Option<usize>,
    /// Processes that do this job together, 1 by default; they share its cores. Another machine helps when it runs the
    /// same pipeline on the same store.
    #[serde(default)]
    pub workers: Option<usize>,
    /// Memory that all its processes together may take, such as `512MiB` or `64GiB`: jobs run at the same time only as
    /// far as it lasts, and a stage that sorts works on disk beyond half of it. A job that does not say is given none
    /// of the budget, and sorts in 1GiB.
    #[serde(default)]
    pub memory: Option<String>,
    /// GPUs this job needs, which no other job then has; by default 1 if its `device` is one, else 0.
    #[serde(default)]
    pub gpus: Option<usize>,
    /// What it computes on: `cpu`, `auto` (the first GPU, where there is one) or `cuda:0`. For stages with a model.
    #[serde(default)]
    pub device: Device,
    /// How often the job is tried again after exit code 4; 2 by default.
    #[serde(default)]
    pub retries: Option<u32>,
    /// Such as `90s`, `30m`, `2h`.
    #[serde(default)]
    pub timeout: Option<String>,
    /// Names of environment variables that the stage may see, beside PATH, HOME, LD_LIBRARY_PATH, the AWS_*, SMELT_*,
    /// CARGO_*, CUDA_* and locale ones.
    #[serde(default)]
    pub env: Vec<String>,
    /// How often a training saves its state, and how many saves are kept.
    #[serde(default)]
    pub save: SavePolicy,
    /// Ranks, each on a machine of its own, that do this job together; for stages that say `ranks`. Only on a cluster.
    #[serde(default)]
    pub nodes: Option<usize>,
    /// Slurm's partition; the cluster's default if not said.
    #[serde(default)]
    pub partition: Option<String>,
    /// The time limit of a job on a cluster, such as `30m` or `24h`. Before it ends the job saves its progress, and is
    /// queued again.
    #[serde(default)]
    pub time: Option<String>,
    /// How long before its time limit a job on a cluster is told to save; `2m` by default.
    #[serde(default)]
    pub grace: Option<String>,
    /// A command that runs another one in a container, such as `apptainer exec --nv smelt.sif`: on Slurm the job is
    /// started by it.
    #[serde(default)]
    pub container: Option<String>,
    /// Lines of shell that prepare a node of Slurm, such as `module load cuda`.
    #[serde(default)]
    pub setup: Option<String>,
    /// More options for `sbatch`, such as `--account=lab`.
    #[serde(default)]
    pub sbatch: Vec<String>,
    /// What a job on Kubernetes is made of.
    #[serde(default)]
    pub kubernetes: Option<Kubernetes>,
}

/// What the pods of a job on Kubernetes are made of. Cores, memory, GPUs, `time` and `grace` are those of `run`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// The container image; it holds smelt and its stages, `smelt` in PATH.
    #[serde(default)]
    pub image: Option<String>,
    /// By default the one that the kubeconfig names.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The ServiceAccount of the pods.
    #[serde(default)]
    pub service_account: Option<String>,
    /// Names of Secrets: their entries become environment variables of the job, such as the credentials of the store.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Folders, and the PersistentVolumeClaim that is mounted at each.
    #[serde(default)]
    pub volumes: IndexMap<String, String>,
    /// More of the pod's `spec`, such as `nodeSelector` and `tolerations`: merged into it (JSON Merge Patch, RFC 7396).
    #[serde(default)]
    pub pod: Map<String, Value>,
}

/// Where a job runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Executor {
    /// On the machine where `smelt run` was started.
    #[default]
    Local,
    /// On a Slurm cluster whose nodes see the same store and programs.
    Slurm,
    /// In pods of a Kubernetes cluster that see the same store.
    Kubernetes,
}

/// What a job that fails does to the jobs that do not hang on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Those that run are finished, and no other is started.
    #[default]
    Stop,
    /// They run, too.
    Continue,
}

/// `base.loss < 2.5`, or a list of such conditions: a job, what it measured, a comparison, a number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Conditions(pub Vec<String>);

impl TryFrom<Value> for Conditions {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        strings(value, |other| format!("`{other}` is no condition: write `JOB.METRIC < NUMBER`")).map(Self)
    }
}

impl From<Conditions> for Value {
    fn from(conditions: Conditions) -> Value {
        conditions.0.into()
    }
}

impl JsonSchema for Conditions {
    fn schema_name() -> Cow<'static, str> {
        "Conditions".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// Saves of a running training. They change no byte of its output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SavePolicy {
    /// From the start of one save to the start of the next. A background thread writes them; with 0 the training saves
    /// after every step and waits for it.
    pub seconds: f64,
    /// How many saves are kept, at least 1: if the newest is damaged, the one before it is used.
    pub last: usize,
    /// Also save before every step that is a multiple of this, and keep these saves. 0 makes none.
    pub every: u64,
}

impl SavePolicy {
    /// Whether the save before step `next` is kept for good.
    pub fn stays(&self, next: u64) -> bool {
        self.every > 0 && next.is_multiple_of(self.every)
    }
}

impl Default for SavePolicy {
    fn default() -> Self {
        Self { seconds: 10.0, last: 1, every: 0 }
    }
}

/// `clean`, `clean.drops`, `[a, b]`, `score[*]`, `previous`, `tag:NAME`, `artifact:DIGEST`; or a map from ports to
/// those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Inputs(pub Vec<(Option<String>, Vec<String>)>);

impl TryFrom<Value> for Inputs {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        fn list(value: Value) -> Result<Vec<String>, String> {
            let one = |v: Value| match v {
                Value::String(s) => Ok(s),
                other => {
                    Err(format!("`{other}` is no input: name a job, a job's port, `tag:NAME` or `artifact:DIGEST`"))
                }
            };
            match value {
                Value::Array(items) => items.into_iter().map(one).collect(),
                other => Ok(vec![one(other)?]),
            }
        }
        match value {
            Value::Null => Ok(Self::default()),
            Value::Object(ports) => {
                ports.into_iter().map(|(port, v)| Ok((Some(port), list(v)?))).collect::<Result<_, _>>().map(Self)
            }
            other => Ok(Self(vec![(None, list(other)?)])),
        }
    }
}

impl From<Inputs> for Value {
    fn from(inputs: Inputs) -> Value {
        let list = |v: Vec<String>| if v.len() == 1 { Value::from(v[0].clone()) } else { Value::from(v) };
        match inputs.0.as_slice() {
            [] => Value::Null,
            [(None, refs)] => list(refs.clone()),
            ports => ports.iter().map(|(p, r)| (p.clone().unwrap_or_default(), list(r.clone()))).collect(),
        }
    }
}

impl JsonSchema for Inputs {
    fn schema_name() -> Cow<'static, str> {
        "Inputs".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = json_schema!({ "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] });
        json_schema!({ "oneOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" } },
            { "type": "object", "additionalProperties": one },
        ] })
    }
}

/// `512MiB`, `4GiB`, `1TiB`; `None` if it is no such size.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_store_is_an_address_or_a_map() {
        let read = |value: Value| serde_json::from_value::<StoreConfig>(value).map_err(|e| e.to_string());
        assert_eq!(read(json!("s3://b/p")), Ok("s3://b/p".into()));
        let cache = CacheConfig { path: "~/.cache/smelt".into(), size: Some("50GiB".into()) };
        let full = json!({ "url": "s3://b", "commit": "single_writer", "cache": cache });
        let expected = StoreConfig { url: "s3://b".into(), commit: CommitMode::SingleWriter, cache: Some(cache) };
        assert_eq!(read(full), Ok(expected.clone()));
        assert_eq!(read(json!(expected)), Ok(expected));
        assert_eq!(
            read(json!({ "url": "x", "comit": 1 })).unwrap_err(),
            "unknown field `comit`, expected one of `url`, `commit`, `cache`"
        );
        assert_eq!(read(json!({ "commit": "single_writer" })).unwrap_err(), "missing field `url`");
        assert_eq!(read(json!(7)).unwrap_err(), "invalid type: integer `7`, expected an address, or `{ url: … }`");
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("512MiB", Some(512 << 20)), ("1 GiB", Some(1 << 30)), ("7B", Some(7)), ("3", None)] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
        assert_eq!([parse_bytes("GiB"), parse_bytes("99999999TiB"), parse_bytes("1GB")], [None; 3]);
    }
}
