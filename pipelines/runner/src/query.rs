//! SQL: the tables of a pipeline, for `smelt-query` to answer. The shell and `report:` come here too.

use crate::child;
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::load::{self, Plan, StoreBy};
use serde::Serialize;
use serde_json::Value;
use smelt_schemas::{ExitCode, InspectAnswer, InspectRequest, Kind, PlannedPort, Problem, QueryFormat, QueryRequest};
use smelt_store::Store;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The pipeline that a query is about: as named, by its file or its name, else the one that ran last in this store.
pub(crate) fn pipeline_name(store: &Store, given: Option<&str>) -> Result<String> {
    let known = store.pipelines()?;
    if let Some(given) = given {
        if known.iter().any(|known| known == given) {
            return Ok(given.into());
        }
        if Path::new(given).is_file() {
            return Ok(load::head(Path::new(given))?.name);
        }
        let error = Diagnostic::pipeline(format!("pipeline `{given}` has not run in {}", store.address()));
        return Err(match known.is_empty() {
            true => error.hint("`smelt run PIPELINE.yaml` fills the store"),
            false => error.hint(format!("pipelines there: {}", known.join(", "))),
        });
    }
    // Of one that has made nothing yet there is nothing to ask.
    let last = store.last_run(|run| known.contains(&run.pipeline))?.map(|run| run.pipeline);
    last.or_else(|| known.first().cloned()).ok_or_else(|| {
        Diagnostic::pipeline(format!("no pipeline has run in {}", store.address()))
            .hint("`smelt run PIPELINE.yaml` fills the store; `--store` names another")
    })
}

fn request(store: &Store, pipeline: &str, sql: &str) -> QueryRequest {
    QueryRequest {
        store: store.address().into(),
        pipeline: pipeline.into(),
        sql: sql.into(),
        format: QueryFormat::Table,
        output: None,
        views: BTreeMap::new(),
        planned: None,
        ballista: None,
    }
}

/// How the answer is given, and who gives it.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) format: QueryFormat,
    /// Where Parquet goes.
    pub(crate) output: Option<PathBuf>,
    /// The scheduler of a Ballista cluster, `HOST:PORT`.
    pub(crate) ballista: Option<String>,
}

/// Checks the views and the report of a pipeline before its jobs run.
pub(crate) fn check_report(store: &Store, plan: &Plan) -> Result<()> {
    if plan.report.is_none() && plan.views.sql.is_empty() {
        return Ok(());
    }
    let sql = plan.report.as_ref().map_or("select 1", |report| report.sql.as_str());
    let ports = plan.jobs.iter().flat_map(|job| {
        let tables = job.resolved.outputs.iter().filter(|port| port.kind.schema().is_some());
        tables.map(|port| PlannedPort {
            job: job.base.clone(),
            port: port.name.clone(),
            kind: port.kind.clone(),
            axes: job.axes.clone(),
        })
    });
    let planned = Some(ports.collect());
    let request = QueryRequest { planned, views: plan.views.sql.clone(), ..request(store, &plan.name, sql) };
    let Err((code, problem)) = send(Command::new(crate::programs::helper("query")?), &request)? else {
        return Ok(());
    };
    let in_query = || {
        let (line, column) = problem.place.as_deref()?.split_once(':')?;
        Some((line.parse().ok()?, column.parse().ok()?))
    };
    let report = match &plan.report {
        Some(report) if !problem.message.starts_with("view ") => report,
        _ => {
            let place = plan.views.place(&problem.message);
            return Err(Diagnostic::of(code, problem).at(place));
        }
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
    if let Some(pipe) = child.stdin.take() {
        // If the query program ended early, its exit status and its problem say why.
        drop(child::give(pipe, &text));
    }
    // Words for people are told as they come: a query may wait for a cluster.
    let told = child.stderr.take().map(|pipe| {
        std::thread::spawn(move || {
            let mut problem = None;
            for line in BufReader::new(pipe).split(b'\n').map_while(std::result::Result::ok) {
                match serde_json::from_slice::<Problem>(&line) {
                    Ok(told) => problem = Some(told),
                    Err(_) => eprintln!("{}", String::from_utf8_lossy(&line)),
                }
            }
            problem
        })
    });
    let answer = child.wait_with_output().map_err(|e| lost("was lost", e))?;
    let problem = told.and_then(|told| told.join().ok()).flatten();
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

/// Asks one query; its answer goes to standard output, or Parquet to a file.
pub(crate) fn ask(store: &Store, pipeline: &str, sql: &str, answer: Answer) -> Result<()> {
    let Answer { format, output, ballista } = answer;
    let request = QueryRequest { format, output, ballista, ..request(store, pipeline, sql) };
    let answer = send(Command::new(crate::programs::helper("query")?), &request)?;
    answer.map(drop).map_err(|(code, problem)| Diagnostic::of(code, problem))
}

/// The rows that answer a query, an object each.
pub(crate) fn rows(store: &Store, pipeline: &str, sql: &str) -> Result<Vec<Value>> {
    let mut command = Command::new(crate::programs::helper("query")?);
    command.stdout(Stdio::piped());
    let request = QueryRequest { format: QueryFormat::Json, ..request(store, pipeline, sql) };
    let answer = send(command, &request)?.map_err(|(code, problem)| Diagnostic::of(code, problem))?;
    serde_json::from_slice(&answer)
        .map_err(|e| Diagnostic::new(ExitCode::Bug, format!("`smelt-query` gave no rows: {e}")))
}

/// A name as SQL writes it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A prompt that answers queries, with a history.
pub(crate) fn shell(store: &Store, pipeline: &str, answer: &Answer) -> Result<()> {
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
    let table = Answer { ballista: answer.ballista.clone(), ..Answer::default() };
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
                    if let Err(e) = ask(store, pipeline, sql, table.clone())
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
    Ok(store_and_commit(given, pipeline)?.0)
}

/// The same, and whether the pipeline file says of this store that one run at a time writes to it.
pub(crate) fn store_and_commit(given: Option<&str>, pipeline: Option<&str>) -> Result<(Store, bool)> {
    let file = pipeline.map(Path::new).filter(|file| file.is_file());
    let head = file.map(load::head).transpose()?;
    let (address, by) = load::store_address(given, head.as_ref().and_then(|head| head.store.as_deref()));
    let store = load::open_store(&address, by, file.map(|file| Place::named(file.display().to_string())))?;
    Ok((store, by == StoreBy::File && head.is_some_and(|head| head.single_writer)))
}
