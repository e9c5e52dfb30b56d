//! The tables of the schema `smelt`: records of the store as rows.
//!
//! Each is built from the records that it needs, and only if a query names it.

use crate::failure::{Failure, failed};
use crate::ports::{Job, base};
use datafusion::arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::datasource::MemTable;
use serde_json::{Value, json};
use smelt_schemas::{EventBody, Manifest};
use smelt_store::{Live, RunRecord, Store};
use std::sync::Arc;

#[derive(Clone, Copy)]
enum Type {
    Text,
    Integer,
    Number,
    /// Seconds since 1970 in the rows, a timestamp in SQL.
    Time,
}
use Type::{Integer, Number, Text, Time};

type Columns = &'static [(&'static str, Type)];

/// One table: its columns, and its rows.
pub(crate) struct System {
    pub name: &'static str,
    columns: Columns,
    rows: Vec<Vec<Value>>,
}

/// The names of all tables that are made of records.
pub(crate) const NAMES: [&str; 5] = ["jobs", "results", "runs", "artifacts", "lineage"];

const JOBS: Columns = &[
    ("pipeline", Text),
    ("job", Text),
    ("base", Text),
    ("axes", Text),
    ("state", Text),
    ("stage", Text),
    ("fingerprint", Text),
    ("edition", Integer),
    ("run", Text),
    ("started", Time),
    ("seconds", Number),
    ("progress", Number),
    ("peak_memory_bytes", Integer),
    ("threads", Integer),
    ("device", Text),
    ("read", Integer),
    ("derived", Integer),
    ("written", Integer),
    ("dropped", Integer),
    ("bytes", Integer),
];
const RESULTS: Columns = &[("pipeline", Text), ("job", Text), ("stage", Text), ("name", Text), ("value", Number)];
const RUNS: Columns =
    &[("run", Text), ("pipeline", Text), ("state", Text), ("started", Time), ("ended", Time), ("jobs", Integer)];
const ARTIFACTS: Columns = &[
    ("stage", Text),
    ("fingerprint", Text),
    ("edition", Integer),
    ("port", Text),
    ("kind", Text),
    ("digest", Text),
    ("rows", Integer),
    ("bytes", Integer),
    ("started", Time),
];
const LINEAGE: Columns = &[
    ("stage", Text),
    ("fingerprint", Text),
    ("edition", Integer),
    ("input", Text),
    ("from_stage", Text),
    ("from_fingerprint", Text),
    ("from_edition", Integer),
    ("from_port", Text),
    ("digest", Text),
];

/// A table of records without rows.
pub(crate) fn empty(name: &'static str) -> System {
    let columns = match name {
        "jobs" => JOBS,
        "results" => RESULTS,
        "runs" => RUNS,
        "artifacts" => ARTIFACTS,
        _ => LINEAGE,
    };
    System { name, columns, rows: Vec::new() }
}

/// The jobs of all pipelines that have an artifact, and those of `live` beside them.
pub(crate) fn jobs(all: &[Job], live: &[Live]) -> System {
    let text = |axes: &serde_json::Map<String, Value>| match axes.is_empty() {
        true => Value::Null,
        false => json!(Value::Object(axes.clone()).to_string()),
    };
    let done = all.iter().map(|job| {
        let (m, p) = (&job.manifest, &job.manifest.provenance);
        vec![
            json!(job.pipeline),
            json!(job.name),
            json!(base(&job.name)),
            text(&job.pointer.axes),
            json!("done"),
            json!(m.stage),
            json!(m.fingerprint),
            json!(m.edition),
            json!(job.pointer.run),
            json!(p.started),
            json!(p.seconds),
            json!(1.0),
            json!(p.peak_memory_bytes),
            json!(p.threads),
            json!(p.device),
            json!(m.books.read),
            json!(m.books.derived),
            json!(m.books.written),
            json!(m.books.dropped_total()),
            json!(m.bytes()),
        ]
    });
    let running = live.iter().map(|live| {
        let running = &live.running;
        let share = live.told.iter().rev().find_map(|event| match &event.body {
            EventBody::Progress { done, total: Some(total), .. } => Some(*done as f64 / (*total).max(1) as f64),
            _ => None,
        });
        let mut row = vec![
            json!(live.pipeline),
            json!(running.job),
            json!(base(&running.job)),
            text(&running.axes),
            json!("running"),
            json!(running.stage),
            json!(running.fingerprint),
            Value::Null,
            json!(live.run),
            json!(running.started),
            json!(smelt_store::now() - running.started),
            json!(share),
        ];
        row.resize(JOBS.len(), Value::Null);
        row
    });
    System { name: "jobs", columns: JOBS, rows: done.chain(running).collect() }
}

/// What jobs noted as results, one row a value; curves are in `metrics`.
pub(crate) fn results(all: &[Job]) -> System {
    let rows = all.iter().flat_map(|job| {
        let values = job.manifest.metrics.iter();
        values.map(|(name, value)| {
            vec![json!(job.pipeline), json!(job.name), json!(job.manifest.stage), json!(name), json!(value)]
        })
    });
    System { name: "results", columns: RESULTS, rows: rows.collect() }
}

pub(crate) fn runs(store: &Store) -> Result<System, Failure> {
    let row = |r: RunRecord| {
        let (state, jobs) = (r.state.word(), r.jobs.iter().filter(|job| job["state"] != "cached").count());
        vec![json!(r.run), json!(r.pipeline), json!(state), json!(r.started), json!(r.ended), json!(jobs)]
    };
    let runs = store.runs().map_err(|e| Failure::of(&e))?;
    Ok(System { name: "runs", columns: RUNS, rows: runs.into_iter().map(row).collect() })
}

/// Every port of every committed artifact.
pub(crate) fn artifacts(manifests: &[Manifest]) -> System {
    let rows = manifests.iter().flat_map(|m| {
        m.ports.iter().map(|(port, p)| {
            vec![
                json!(m.stage),
                json!(m.fingerprint),
                json!(m.edition),
                json!(port),
                json!(p.kind),
                json!(p.digest),
                json!(p.rows()),
                json!(p.bytes()),
                json!(m.provenance.started),
            ]
        })
    });
    System { name: "artifacts", columns: ARTIFACTS, rows: rows.collect() }
}

/// What every committed artifact was made of: one row an input.
pub(crate) fn lineage(manifests: &[Manifest]) -> System {
    let rows = manifests.iter().flat_map(|m| {
        m.inputs.iter().flat_map(|(port, inputs)| inputs.iter().map(move |input| (port, input))).map(|(port, input)| {
            vec![
                json!(m.stage),
                json!(m.fingerprint),
                json!(m.edition),
                json!(port),
                json!(input.artifact.stage),
                json!(input.artifact.fingerprint),
                json!(input.artifact.edition),
                json!(input.port),
                json!(input.digest),
            ]
        })
    });
    System { name: "lineage", columns: LINEAGE, rows: rows.collect() }
}

impl System {
    pub(crate) fn table(&self) -> Result<Arc<MemTable>, Failure> {
        let (mut fields, mut columns) = (Vec::new(), Vec::<ArrayRef>::new());
        for (i, (name, of)) in self.columns.iter().enumerate() {
            let cells = self.rows.iter().map(|row| &row[i]);
            let column: ArrayRef = match of {
                Text => Arc::new(cells.map(Value::as_str).collect::<StringArray>()),
                Integer => Arc::new(cells.map(Value::as_i64).collect::<Int64Array>()),
                Number => Arc::new(cells.map(Value::as_f64).collect::<Float64Array>()),
                Time => {
                    let micros = cells.map(|value| value.as_f64().map(|seconds| (seconds * 1e6) as i64));
                    Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
                }
            };
            let data_type = match of {
                Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
                _ => column.data_type().clone(),
            };
            fields.push(Field::new(*name, data_type, true));
            columns.push(column);
        }
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|e| failed(e.into()))?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]]).map_err(failed)?))
    }
}
