//! SQL: the tables of a pipeline, for `smelt-query` to answer. The shell and `report:` come here too.

use crate::diagnostic::{Diagnostic, Place, Result};
use crate::load::{self, Plan};
use crate::{child, live};
use serde::Serialize;
use serde_json::{Map, Value, json};
use smelt_schemas::{
    ExitCode, FileRecord, InspectAnswer, InspectRequest, Kind, LostJob, Manifest, Problem, QueryFile, QueryFormat,
    QueryPart, QueryRequest, QueryTable, RecordTable, RecordType, kind,
};
use smelt_store::{Error, Pointer, RunRecord, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A job of a pipeline and the artifact that it points at.
struct JobRecord {
    pipeline: String,
    job: String,
    pointer: Pointer,
    manifest: Manifest,
}

/// The pipeline that a query is about: as named, by its file or its name, else the one that ran last in this store.
pub(crate) fn pipeline_name(store: &Store, given: Option<&str>) -> Result<String> {
    let pointers = store.pointers()?;
    let known: BTreeSet<&str> = pointers.iter().map(|(p, _, _)| p.as_str()).collect();
    if let Some(given) = given {
        if known.contains(given) {
            return Ok(given.into());
        }
        if Path::new(given).is_file() {
            return Ok(load::head(Path::new(given))?.name);
        }
        let error = Diagnostic::pipeline(format!("pipeline `{given}` has not run in {}", store.address()));
        return Err(match known.is_empty() {
            true => error.hint("`smelt run PIPELINE.yaml` fills the store"),
            false => error.hint(format!("pipelines there: {}", known.into_iter().collect::<Vec<_>>().join(", "))),
        });
    }
    let last = pointers.iter().max_by(|a, b| a.2.time.total_cmp(&b.2.time));
    last.map(|(p, _, _)| p.clone()).ok_or_else(|| {
        Diagnostic::pipeline(format!("no pipeline has run in {}", store.address()))
            .hint("`smelt run PIPELINE.yaml` fills the store; `--store` names another")
    })
}

/// The jobs of all pipelines; of `pipeline` also those whose manifest cannot be had.
fn records(store: &Store, pipeline: &str) -> Result<(Vec<JobRecord>, Vec<LostJob>)> {
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    for (of, job, pointer) in store.pointers()? {
        let why = match store.manifest(&pointer.artifact) {
            Ok(Some(manifest)) => {
                found.push(JobRecord { pipeline: of, job, pointer, manifest });
                continue;
            }
            Ok(None) => {
                let a = &pointer.artifact;
                format!("its artifact {} {}/{} is gone", a.stage, a.fingerprint.short(), a.edition)
            }
            Err(e @ Error::Corrupt { .. }) => e.to_string(),
            Err(e) => return Err(e.into()),
        };
        if of == pipeline {
            eprintln!("warning: job `{job}` has no table: {why}");
            lost.push(LostJob { job, why });
        }
    }
    Ok((found, lost))
}

/// `train[seed=1]` as (`train`, {seed: 1}). `axes`: as they were written, if that is known; the name tells a number
/// from a text only by its looks.
pub(crate) fn split_instance(job: &str, axes: &Map<String, Value>) -> (String, BTreeMap<String, Value>) {
    let Some((base, pairs)) = job.split_once('[') else { return (job.into(), BTreeMap::new()) };
    if !axes.is_empty() {
        return (base.into(), axes.iter().map(|(name, value)| (name.clone(), value.clone())).collect());
    }
    let looks = |text: &str| serde_json::from_str::<serde_json::Number>(text).map_or_else(|_| json!(text), Value::from);
    let pairs = pairs.trim_end_matches(']').split(',').filter_map(|p| p.split_once('='));
    (base.into(), pairs.map(|(name, value)| (name.to_owned(), looks(value))).collect())
}

/// The tables of a request while they are collected.
#[derive(Default)]
struct Tables(Vec<QueryTable>);

impl Tables {
    fn add(&mut self, schema: Option<&str>, name: &str, kind: &Kind, part: QueryPart) {
        match self.0.iter_mut().find(|t| t.schema.as_deref() == schema && t.name == name && t.kind == *kind) {
            Some(table) => table.parts.push(part),
            None => self.0.push(QueryTable {
                schema: schema.map(str::to_owned),
                name: name.into(),
                kind: kind.clone(),
                parts: vec![part],
            }),
        }
    }
}

fn request(store: &Store, pipeline: &str, sql: &str) -> Result<QueryRequest> {
    let (all, lost) = records(store, pipeline)?;
    let mut tables = Tables::default();
    // The events of a long training are long: they are read only for a query that may be about curves.
    let live = if sql.contains("metrics") { live::jobs(store, pipeline)? } else { Vec::new() };
    let is_live = |job: &str| live.iter().any(|live| live.running.job == job);
    for record in all.iter().filter(|r| r.pipeline == pipeline) {
        let (base, axes) = split_instance(&record.job, &record.pointer.axes);
        let mut first = true;
        // The name of a job means the first of its ports that has rows, but never `drops` and its like.
        let mut ports: Vec<(&String, bool)> =
            record.manifest.ports.iter().map(|(n, p)| (n, p.kind.is_beside())).collect();
        ports.sort_by_key(|(n, side)| (*side, record.manifest.ports[*n].files.is_empty()));
        for (port, side) in ports {
            let port_record = &record.manifest.ports[port];
            let of = &port_record.kind;
            if of.schema().is_none() || *of == kind::metrics() && is_live(&record.job) {
                continue;
            }
            let file = |f: &FileRecord| QueryFile {
                key: store.file_key(&record.manifest, port, f),
                bytes: f.bytes,
                blake3: f.blake3.clone(),
            };
            let part = |constants: BTreeMap<String, Value>| QueryPart {
                job: record.job.clone(),
                files: port_record.files.iter().map(file).collect(),
                rows: Vec::new(),
                constants,
            };
            if std::mem::take(&mut first) && !side {
                tables.add(None, &base, of, part(axes.clone()));
            }
            tables.add(Some(&base), port, of, part(axes.clone()));
            let job = BTreeMap::from([("job".to_owned(), json!(record.job))]);
            if *of == kind::drops() {
                tables.add(Some("smelt"), "drops", of, part(job));
            } else if *of == kind::metrics() {
                tables.add(Some("smelt"), "metrics", of, part(job));
            }
        }
    }
    for live in &live {
        let job = &live.running.job;
        let known = all.iter().find(|r| r.pipeline == pipeline && r.job == *job);
        let (base, axes) = split_instance(job, &known.map_or_else(Map::new, |r| r.pointer.axes.clone()));
        let part = QueryPart { job: job.clone(), rows: live.curve(store)?, ..QueryPart::default() };
        let constants = BTreeMap::from([("job".to_owned(), json!(job))]);
        tables.add(Some("smelt"), "metrics", &kind::metrics(), QueryPart { constants, ..part.clone() });
        tables.add(Some(&base), "metrics", &kind::metrics(), QueryPart { constants: axes, ..part });
    }
    let mut tables = tables.0;
    for (name, kind) in [("drops", kind::drops()), ("metrics", kind::metrics())] {
        if !tables.iter().any(|t| t.schema.as_deref() == Some("smelt") && t.name == name) {
            let constants = BTreeMap::from([("job".into(), json!(""))]);
            let empty = QueryPart { constants, ..QueryPart::default() };
            tables.push(QueryTable { schema: Some("smelt".into()), name: name.into(), kind, parts: vec![empty] });
        }
    }
    let records = vec![jobs_table(&all), results_table(&all), runs_table(store)?, artifacts_table(store)?];
    Ok(QueryRequest {
        store: store.address().into(),
        sql: sql.into(),
        format: QueryFormat::Table,
        output: None,
        check: false,
        tables,
        records,
        lost,
    })
}

/// The tables that a pipeline will have, without rows.
fn tables_to_be(plan: &Plan) -> Vec<QueryTable> {
    let mut tables = Vec::new();
    let mut add = |schema: Option<&str>, name: &str, kind: &Kind, constants: &Map<String, Value>| {
        let constants = constants.iter().map(|(axis, value)| (axis.clone(), value.clone())).collect();
        let parts = vec![QueryPart { constants, ..QueryPart::default() }];
        tables.push(QueryTable { schema: schema.map(str::to_owned), name: name.into(), kind: kind.clone(), parts });
    };
    for (name, kind) in [("drops", kind::drops()), ("metrics", kind::metrics())] {
        add(Some("smelt"), name, &kind, &Map::from_iter([("job".to_owned(), json!(""))]));
    }
    for job in &plan.jobs {
        for port in job.resolved.outputs.iter().filter(|port| port.kind.schema().is_some()) {
            add(Some(&job.base), &port.name, &port.kind, &job.axes);
            if !port.kind.is_beside() {
                add(None, &job.base, &port.kind, &job.axes);
            }
        }
    }
    tables
}

/// Checks the report of a pipeline before its jobs run.
pub(crate) fn check_report(store: &Store, plan: &Plan) -> Result<()> {
    let Some(report) = &plan.report else { return Ok(()) };
    let mut request = request(store, &plan.name, &report.sql)?;
    (request.check, request.tables) = (true, tables_to_be(plan));
    let Err((code, problem)) = send(Command::new(crate::programs::helper("query")?), &request)? else {
        return Ok(());
    };
    let in_query = || {
        let (line, column) = problem.place.as_deref()?.split_once(':')?;
        Some((line.parse().ok()?, column.parse().ok()?))
    };
    let (line, column) = in_query().unwrap_or((0, 0));
    let problem = Problem { message: format!("`report`: {}", problem.message), ..problem };
    Err(Diagnostic::of(code, problem).at(report.place(line, column)))
}

/// Rows of each of `files`, which must hold `kind`.
pub(crate) fn inspect(kind: Kind, files: Vec<PathBuf>) -> Result<Vec<u64>> {
    let mut command = Command::new(crate::programs::helper("query")?);
    command.arg("inspect").stdout(Stdio::piped());
    let answer = send(command, &InspectRequest { kind, files })?.map_err(|(code, p)| Diagnostic::of(code, p))?;
    let read = serde_json::from_slice::<InspectAnswer>(&answer);
    read.map(|answer| answer.rows)
        .map_err(|e| Diagnostic::new(ExitCode::Bug, format!("`smelt-query inspect` gave no answer: {e}")))
}

/// Starts the query program with a request, and waits until it has ended. Gives its standard output, if that was
/// piped, or what it says went wrong.
fn send(mut command: Command, request: &impl Serialize) -> Result<std::result::Result<Vec<u8>, (ExitCode, Problem)>> {
    let lost = |what: &str, e: std::io::Error| Diagnostic::new(ExitCode::Machine, format!("`smelt-query` {what}: {e}"));
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| lost("cannot be started", e))?;
    let text = serde_json::to_vec(request).expect("a request is plain data");
    if let Some(mut pipe) = child.stdin.take() {
        // If the query program ended early, its exit status and its problem say why.
        drop(std::io::Write::write_all(&mut pipe, &text));
    }
    let answer = child.wait_with_output().map_err(|e| lost("was lost", e))?;
    let mut problem = None;
    for line in String::from_utf8_lossy(&answer.stderr).lines() {
        match serde_json::from_str::<Problem>(line) {
            Ok(told) => problem = Some(told),
            Err(_) => eprintln!("{line}"), // words for people
        }
    }
    Ok(match child::code(answer.status) {
        ExitCode::Done => Ok(answer.stdout),
        // The reader has read enough: `smelt sql … | head`.
        _ if answer.status.signal() == Some(libc::SIGPIPE) => Ok(answer.stdout),
        code => Err((
            code,
            problem.unwrap_or_else(|| Problem {
                message: format!("`smelt-query` did not say why {}", child::how(answer.status)),
                hint: child::hint(answer.status).map(str::to_owned),
                ..Problem::default()
            }),
        )),
    })
}

fn record_table(name: &str, columns: &[(&str, RecordType)], rows: Vec<Vec<Value>>) -> RecordTable {
    let columns = columns.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect();
    RecordTable { schema: "smelt".into(), name: name.into(), columns, rows }
}

fn jobs_table(all: &[JobRecord]) -> RecordTable {
    use RecordType::{Integer, Number, Text, Time};
    const COLUMNS: [(&str, RecordType); 16] = [
        ("pipeline", Text),
        ("job", Text),
        ("stage", Text),
        ("fingerprint", Text),
        ("edition", Integer),
        ("run", Text),
        ("started", Time),
        ("seconds", Number),
        ("peak_memory_bytes", Integer),
        ("threads", Integer),
        ("device", Text),
        ("read", Integer),
        ("derived", Integer),
        ("written", Integer),
        ("dropped", Integer),
        ("bytes", Integer),
    ];
    let row = |r: &JobRecord| {
        let (m, p) = (&r.manifest, &r.manifest.provenance);
        vec![
            json!(r.pipeline),
            json!(r.job),
            json!(m.stage),
            json!(m.fingerprint),
            json!(m.edition),
            json!(r.pointer.run),
            json!(p.started),
            json!(p.seconds),
            json!(p.peak_memory_bytes),
            json!(p.threads),
            json!(p.device),
            json!(m.books.read),
            json!(m.books.derived),
            json!(m.books.written),
            json!(m.books.dropped_total()),
            json!(m.bytes()),
        ]
    };
    record_table("jobs", &COLUMNS, all.iter().map(row).collect())
}

/// What jobs noted as results, one row a value; curves are in `metrics`.
fn results_table(all: &[JobRecord]) -> RecordTable {
    use RecordType::{Number, Text};
    let columns = [("pipeline", Text), ("job", Text), ("stage", Text), ("name", Text), ("value", Number)];
    let rows = all.iter().flat_map(|r| {
        let values = r.manifest.metrics.iter();
        values.map(|(name, v)| vec![json!(r.pipeline), json!(r.job), json!(r.manifest.stage), json!(name), json!(v)])
    });
    record_table("results", &columns, rows.collect())
}

fn runs_table(store: &Store) -> Result<RecordTable> {
    use RecordType::{Integer, Text, Time};
    let row = |r: &RunRecord| {
        vec![
            json!(r.run),
            json!(r.pipeline),
            json!(r.state.word()),
            json!(r.started),
            json!(r.ended),
            json!(r.jobs.len()),
        ]
    };
    let columns =
        [("run", Text), ("pipeline", Text), ("state", Text), ("started", Time), ("ended", Time), ("jobs", Integer)];
    Ok(record_table("runs", &columns, store.runs()?.iter().map(row).collect()))
}

fn artifacts_table(store: &Store) -> Result<RecordTable> {
    use RecordType::{Integer, Text, Time};
    let columns = [
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
    let mut rows = Vec::new();
    for m in store.manifests()?.0 {
        for (port, p) in &m.ports {
            rows.push(vec![
                json!(m.stage),
                json!(m.fingerprint),
                json!(m.edition),
                json!(port),
                json!(p.kind),
                json!(p.digest),
                json!(p.rows()),
                json!(p.bytes()),
                json!(m.provenance.started),
            ]);
        }
    }
    Ok(record_table("artifacts", &columns, rows))
}

/// Asks one query; its answer goes to standard output, or Parquet to `output`.
pub(crate) fn ask(
    store: &Store,
    pipeline: &str,
    sql: &str,
    format: QueryFormat,
    output: Option<PathBuf>,
) -> Result<()> {
    let mut request = request(store, pipeline, sql)?;
    request.format = format;
    request.output = output;
    let answer = send(Command::new(crate::programs::helper("query")?), &request)?;
    answer.map(drop).map_err(|(code, problem)| Diagnostic::of(code, problem))
}

/// A prompt that answers queries, with a history.
pub(crate) fn shell(store: &Store, pipeline: &str) -> Result<()> {
    let failed = |e: rustyline::error::ReadlineError| {
        Diagnostic::new(ExitCode::Machine, format!("the terminal cannot be read: {e}"))
    };
    let mut editor = rustyline::DefaultEditor::new().map_err(failed)?;
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let history = cache.map(|cache| cache.join("smelt/sql_history"));
    if let Some(file) = &history {
        drop(std::fs::create_dir_all(file.parent().unwrap_or(Path::new("."))));
        drop(editor.load_history(file)); // the first time there is none
    }
    println!(
        "Pipeline `{pipeline}` in {}. End a query with `;`. `\\d` lists tables, `\\q` or Ctrl-D leaves.",
        store.address()
    );
    let mut text = String::new();
    loop {
        match editor.readline(if text.is_empty() { "smelt> " } else { "    -> " }) {
            Ok(line) => {
                let command = line.trim();
                match command {
                    "\\q" | "exit" | "quit" if text.is_empty() => break,
                    "\\d" if text.is_empty() => {
                        text = "select table_schema, table_name from \
                        information_schema.tables where table_schema <> 'information_schema' order by 1, 2;"
                            .into()
                    }
                    "" => continue,
                    _ => {
                        text += &line;
                        text.push('\n');
                    }
                }
                if let Some(sql) = text.trim_end().strip_suffix(';') {
                    drop(editor.add_history_entry(text.trim_end()));
                    // The shell prints what is wrong with a query and continues.
                    if let Err(e) = ask(store, pipeline, sql, QueryFormat::Table, None)
                        && !e.message.is_empty()
                    {
                        e.print();
                    }
                    text.clear();
                }
            }
            Err(rustyline::error::ReadlineError::Interrupted) => text.clear(),
            Err(rustyline::error::ReadlineError::Eof) => break,
            Err(e) => return Err(failed(e)),
        }
    }
    if let Some(file) = &history {
        drop(editor.save_history(file));
    }
    Ok(())
}

/// Opens the store that the command line, the environment or the pipeline file names.
pub(crate) fn store_of(given: Option<&str>, pipeline: Option<&str>) -> Result<Store> {
    let file = pipeline.map(Path::new).filter(|file| file.is_file());
    let in_file = file.map(load::head).transpose()?.and_then(|head| head.store);
    let (address, by) = load::store_address(given, in_file.as_deref());
    load::open_store(&address, by, file.map(|file| Place::named(file.display().to_string())))
}
