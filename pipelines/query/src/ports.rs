//! The tables of a pipeline's jobs: their ports, as the manifests say that the pointers name.
//!
//! Only the manifests of jobs that a query names are read.

use crate::failure::Failure;
use serde_json::{Map, Value, json};
use smelt_schemas::{Digest, FileRecord, Kind, Manifest, PlannedPort, kind};
use smelt_store::{Error, Live, Pointer, Store};

/// A port of a job, or of several instances, as a table: `clean`, or `clean.drops`.
#[derive(Debug)]
pub(crate) struct Table {
    pub schema: Option<String>,
    pub name: String,
    pub kind: Kind,
    pub parts: Vec<Part>,
}

/// Rows of one job, with columns that are the same in all of them: `job`, or the axes of an instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    /// What `smelt rerun` makes again when a file is damaged.
    pub job: String,
    pub files: Vec<File>,
    /// Rows that are in no file yet, such as the curve of a running job: an object for each, with the kind's columns.
    pub rows: Vec<Value>,
    pub constants: Map<String, Value>,
}

/// A file of a committed port, as its manifest has it.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// In the store.
    pub key: String,
    pub bytes: u64,
    pub blake3: Digest,
}

/// A job whose manifest is gone or damaged: nobody knows what its tables hold.
#[derive(Debug)]
pub(crate) struct Lost {
    pub pipeline: String,
    /// `train[seed=1]`; its tables are `train` and `train.*`.
    pub job: String,
    pub why: String,
}

impl Lost {
    pub(crate) fn warn(&self) {
        eprintln!("warning: job `{}` has no table: {}", self.job, self.why);
    }
}

/// A job and the artifact that it points at.
#[derive(Debug)]
pub(crate) struct Job {
    pub pipeline: String,
    pub name: String,
    pub pointer: Pointer,
    pub manifest: Manifest,
}

/// `train` of `train[seed=1]`.
pub(crate) fn base(job: &str) -> &str {
    job.split('[').next().unwrap_or(job)
}

/// What pointers of a pipeline name, and those of them whose manifest cannot be had.
pub(crate) fn jobs(store: &Store, pointers: Vec<(String, String, Pointer)>) -> Result<(Vec<Job>, Vec<Lost>), Failure> {
    let found = crate::at_once(pointers, |(pipeline, name, pointer)| {
        let manifest = store.manifest(&pointer.artifact);
        (pipeline, name, pointer, manifest)
    });
    let (mut jobs, mut lost) = (Vec::new(), Vec::new());
    for (pipeline, name, pointer, manifest) in found {
        let why = match manifest {
            Ok(Some(manifest)) => {
                jobs.push(Job { pipeline, name, pointer, manifest });
                continue;
            }
            Ok(None) => {
                let a = &pointer.artifact;
                format!("its artifact {} {}/{} is gone", a.stage, a.fingerprint.short(), a.edition)
            }
            Err(e @ Error::Corrupt { .. }) => e.to_string(),
            Err(e) => return Err(Failure::of(&e)),
        };
        lost.push(Lost { pipeline, job: name, why });
    }
    Ok((jobs, lost))
}

/// Tables while they are collected.
#[derive(Debug, Default)]
pub(crate) struct Tables(pub Vec<Table>);

impl Tables {
    fn add(&mut self, schema: Option<&str>, name: &str, kind: &Kind, part: Part) {
        match self.0.iter_mut().find(|t| t.schema.as_deref() == schema && t.name == name && t.kind == *kind) {
            Some(table) => table.parts.push(part),
            None => self.0.push(Table {
                schema: schema.map(str::to_owned),
                name: name.into(),
                kind: kind.clone(),
                parts: vec![part],
            }),
        }
    }

    /// The ports of a job. `is_live`: it is running, and its curve comes from there.
    pub(crate) fn add_job(&mut self, store: &Store, job: &Job, is_live: bool) {
        let (base, ports) = (base(&job.name), &job.manifest.ports);
        let mut first = true;
        // The name of a job means the first of its ports that has rows, but never `drops` and its like.
        let mut names: Vec<(&String, bool)> = ports.iter().map(|(n, p)| (n, p.kind.is_beside())).collect();
        names.sort_by_key(|(name, is_beside)| (*is_beside, ports[*name].files.is_empty()));
        for (port, is_beside) in names {
            let record = &ports[port];
            let of = &record.kind;
            if of.schema().is_none() || *of == kind::metrics() && is_live {
                continue;
            }
            let file = |f: &FileRecord| File {
                key: store.file_key(&job.manifest, port, f),
                bytes: f.bytes,
                blake3: f.blake3.clone(),
            };
            let files: Vec<File> = record.files.iter().map(file).collect();
            let part = Part { job: job.name.clone(), files, rows: Vec::new(), constants: job.pointer.axes.clone() };
            if std::mem::take(&mut first) && !is_beside {
                self.add(None, base, of, part.clone());
            }
            self.add(Some(base), port, of, part.clone());
            let constants = Map::from_iter([("job".to_owned(), json!(job.name))]);
            if *of == kind::drops() {
                self.add(Some("smelt"), "drops", of, Part { constants, ..part });
            } else if *of == kind::metrics() {
                self.add(Some("smelt"), "metrics", of, Part { constants, ..part });
            }
        }
    }

    /// The curve that a running job has so far.
    pub(crate) fn add_live(&mut self, store: &Store, live: &Live) -> Result<(), Failure> {
        let job = &live.running.job;
        let rows = live.curve(store).map_err(|e| Failure::of(&e))?;
        let rows = rows.into_iter().map(|p| json!({"step": p.step, "name": p.name, "value": p.value})).collect();
        let part = Part { job: job.clone(), rows, ..Part::default() };
        let constants = Map::from_iter([("job".to_owned(), json!(job))]);
        self.add(Some("smelt"), "metrics", &kind::metrics(), Part { constants, ..part.clone() });
        let axes = live.running.axes.clone();
        self.add(Some(base(job)), "metrics", &kind::metrics(), Part { constants: axes, ..part });
        Ok(())
    }

    /// The ports that a job will have, without rows.
    pub(crate) fn add_planned(&mut self, port: &PlannedPort) {
        let part = Part { job: port.job.clone(), constants: port.axes.clone(), ..Part::default() };
        if !port.kind.is_beside() {
            self.add(None, &port.job, &port.kind, part.clone());
        }
        self.add(Some(&port.job), &port.port, &port.kind, part);
    }

    /// `smelt.drops` and `smelt.metrics` are there without a job that has any.
    pub(crate) fn add_empty(&mut self) {
        for (name, kind) in [("drops", kind::drops()), ("metrics", kind::metrics())] {
            if !self.0.iter().any(|t| t.schema.as_deref() == Some("smelt") && t.name == name) {
                let constants = Map::from_iter([("job".to_owned(), json!(""))]);
                self.add(Some("smelt"), name, &kind, Part { constants, ..Part::default() });
            }
        }
    }
}
