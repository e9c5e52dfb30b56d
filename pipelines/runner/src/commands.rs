//! The verbs of `smelt` but for `artifacts`.

use crate::diagnostic::{Diagnostic, Result, nearest};
use crate::load::{self, Plan};
use crate::plan::{self, State};
use crate::programs::{self, Program};
use crate::run::{self, summarise};
use crate::table::{Format, Listing, duration, time};
use crate::view::Mode;
use crate::{PipelineArgs, RunArgs, job, query};
use serde_json::{Value, json};
use smelt_schemas::{ExitCode, QueryFormat, kind};
use smelt_store::Store;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// A pipeline as the command line names it.
pub struct Target {
    file: Option<PathBuf>,
    options: load::Options,
}

impl From<PipelineArgs> for Target {
    fn from(p: PipelineArgs) -> Self {
        Self { file: p.pipeline, options: load::Options { store: p.store.store, set: p.set } }
    }
}

impl Target {
    fn load(&self) -> Result<(Plan, Store)> {
        let plan = load::load(&load::pipeline_file(self.file.as_deref())?, &self.options)?;
        let store = Store::open(&plan.store)?;
        Ok((plan, store))
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum SqlFormat {
    Table,
    Json,
    Csv,
    Parquet,
}

pub fn check(target: &Target) -> Result<()> {
    let (plan, _) = target.load()?;
    println!("{}: {} jobs, no fault found; `smelt plan {}` says what would run", plan.name, plan.jobs.len(), plan.file);
    Ok(())
}

pub fn plan(target: &Target, format: Format) -> Result<()> {
    let (plan, store) = target.load()?;
    let (states, _) = plan::states(&store, &plan)?;
    let width = plan.jobs.iter().map(|j| j.name.chars().count()).max().unwrap_or(0);
    let mut listing = Listing::new(&["job", "stage", "state", "why", "seconds"]);
    let mut counts = [0usize; 3];
    let mut text = String::new();
    for (job, state) in plan.jobs.iter().zip(&states) {
        let last = match state {
            State::Cached(_) => None,
            _ => plan::last_seconds(&store, &plan, job),
        };
        let (i, word, why) = match state {
            State::New(why) => (0, "new", why.clone()),
            State::Cached(_) => (1, "cached", String::new()),
            State::After(input) => (2, "after", input.clone()),
        };
        counts[i] += 1;
        let about = last.filter(|s| *s >= 1.0).map_or_else(String::new, |s| format!(", about {}", duration(s)));
        let line = match state {
            State::New(_) => format!("  {:width$}  new      {why}{about}", job.name),
            State::Cached(_) => format!("  {:width$}  cached", job.name),
            State::After(_) => format!("  {:width$}  after {why}{about}", job.name),
        };
        text += &(line + "\n");
        listing.row(vec![json!(job.name), json!(job.program.description.name), json!(word), json!(why), json!(last)]);
    }
    if format != Format::Table {
        print!("{}", listing.text(format));
        return Ok(());
    }
    print!("{text}");
    println!("  {} new, {} cached, {} after them; nothing was run", counts[0], counts[1], counts[2]);
    Ok(())
}

pub fn run(args: RunArgs, only: &[String], from: &[String], again: Option<String>) -> Result<()> {
    run::catch_signals();
    let mode = match (args.quiet, args.format) {
        (true, _) => Mode::Quiet,
        (_, Format::Json) => Mode::Json,
        _ => Mode::Auto,
    };
    let target: Target = args.pipeline.into();
    let (plan, store) = target.load()?;
    let wanted = match (only, from) {
        ([], []) => None,
        (only, []) => Some(plan::needed(&plan, only)?),
        ([], from) => Some(plan::from(&plan, from)?),
        _ => return Err(Diagnostic::pipeline("`--only` and `--from` exclude each other")),
    };
    let whole = wanted.is_none();
    let again = again.map(|job| plan::named(&plan, &[job])).transpose()?.unwrap_or_default();
    let options = run::Options { wanted, again, retries: args.retries, mode, cores: args.cores };
    let summary = run::run(&plan, &store, &options)?;
    if let (Some(sql), true, Mode::Auto) = (&plan.report, whole && summary.ran > 0, mode) {
        println!();
        query::ask(&store, &plan.name, sql, QueryFormat::Table, None)?;
        println!("\nNext: `smelt report {0}`, `smelt status {0}`, `smelt sql`, `smelt artifacts show JOB`", plan.file);
    }
    Ok(())
}

pub fn report(target: &Target) -> Result<()> {
    let (plan, store) = target.load()?;
    let Some(sql) = &plan.report else {
        return Err(Diagnostic::pipeline(format!("{} has no report", plan.file)).hint("add `report: select …`"));
    };
    query::ask(&store, &plan.name, sql, QueryFormat::Table, None)
}

pub fn status(target: &Target, format: Format) -> Result<()> {
    let (plan, store) = target.load()?;
    let (states, _) = plan::states(&store, &plan)?;
    let mut listing = Listing::new(&["job", "stage", "state", "artifact", "made", "took", "holds"]);
    for (job, state) in plan.jobs.iter().zip(&states) {
        let stage = json!(job.program.description.name);
        listing.row(match state {
            State::Cached(m) => vec![
                json!(job.name),
                stage,
                json!("done"),
                json!(format!("{}/{}", m.fingerprint.short(), m.edition)),
                json!(time(m.provenance.started)),
                json!(duration(m.provenance.seconds)),
                json!(summarise(m)),
            ],
            State::New(why) => {
                vec![json!(job.name), stage, json!("new"), Value::Null, Value::Null, Value::Null, json!(why)]
            }
            State::After(input) => vec![
                json!(job.name),
                stage,
                json!("waiting"),
                Value::Null,
                Value::Null,
                Value::Null,
                json!(format!("after {input}")),
            ],
        });
    }
    print!("{}", listing.text(format));
    let last = query::runs(&store)?.into_iter().rfind(|r| r["pipeline"] == json!(plan.name));
    if let (Some(run), Format::Table) = (last, format) {
        let text = |name: &str| run[name].as_str().unwrap_or("?").to_owned();
        println!(
            "\nlast run {}: {}, begun {}",
            text("run"),
            text("state"),
            time(run["started"].as_f64().unwrap_or(0.0))
        );
        for job in run["jobs"].as_array().into_iter().flatten().filter(|j| j["state"] == json!("failed")) {
            println!("  {} failed: {}", job["job"].as_str().unwrap_or("?"), job["error"].as_str().unwrap_or("?"));
        }
    }
    Ok(())
}

pub fn logs(store: Option<&str>, name: &str, run: Option<&str>, events: bool) -> Result<()> {
    let store = query::store_of(store, None)?;
    let runs = match run {
        Some(run) => vec![run.to_owned()],
        None => store.list_here("runs")?.1.into_iter().rev().collect(),
    };
    for run in &runs {
        let said = job::read_logs(&store, run, name, "log")?;
        let happened = job::read_logs(&store, run, name, "events")?;
        if said.is_none() && happened.is_none() {
            continue;
        }
        eprintln!("run {run}");
        if events {
            print!("{}", happened.unwrap_or_default());
        }
        let said = said.unwrap_or_default();
        if said.is_empty() && !events {
            eprintln!("job `{name}` said nothing; `--events` prints its progress and metrics");
        }
        print!("{said}");
        return Ok(());
    }
    Err(Diagnostic::pipeline(format!("no run in {} has a log of job `{name}`", store.address()))
        .hint("a cached job runs, and speaks, only once; `--run` names a run"))
}

pub fn sql(
    store: Option<&str>,
    pipeline: Option<&str>,
    sql: Option<&str>,
    format: SqlFormat,
    output: Option<PathBuf>,
) -> Result<()> {
    let store = query::store_of(store, pipeline)?;
    let pipeline = query::pipeline_name(&store, pipeline)?;
    let format = match format {
        SqlFormat::Table => QueryFormat::Table,
        SqlFormat::Json => QueryFormat::Json,
        SqlFormat::Csv => QueryFormat::Csv,
        SqlFormat::Parquet => QueryFormat::Parquet,
    };
    if format == QueryFormat::Parquet && output.is_none() {
        return Err(Diagnostic::pipeline("`--format parquet` needs `--output FILE`"));
    }
    match sql {
        Some(sql) => query::ask(&store, &pipeline, sql, format, output),
        None => query::shell(&store, &pipeline),
    }
}

pub fn schema(name: Option<&str>) -> Result<()> {
    let published = smelt_schemas::published_json_schemas();
    let short = |file: &str| file.trim_end_matches(".schema.json").to_owned();
    let tables = kind::tables();
    let Some(name) = name else {
        let files: Vec<String> = published.iter().map(|(f, _)| short(f)).collect();
        let kinds: Vec<&str> = tables.iter().map(|(k, _)| k.name.as_str()).collect();
        println!("types   {}\nkinds   {}", files.join(", "), kinds.join(", "));
        println!("stages  {}", programs::known().into_iter().collect::<Vec<_>>().join(", "));
        return Ok(());
    };
    let json = |v: &Value| serde_json::to_string_pretty(v).expect("a schema is plain data");
    if let Some((_, schema)) = published.iter().find(|(f, _)| short(f) == name) {
        println!("{}", json(schema.as_value()));
    } else if let Some((_, schema)) = tables.iter().find(|(k, _)| k.name == name) {
        print!("{}", kind::schema_text(schema));
    } else if programs::known().contains(name) {
        println!("{}", json(&Program::load(name, Path::new("."))?.description.config));
    } else {
        let stages = programs::known();
        let known: Vec<String> = published
            .iter()
            .map(|(f, _)| short(f))
            .chain(tables.iter().map(|(k, _)| k.name.clone()))
            .chain(stages)
            .collect();
        let error = Diagnostic::pipeline(format!("there is no schema `{name}`"));
        return Err(match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("is `{near}` meant?")),
            None => error.hint("`smelt schema` lists them"),
        });
    }
    Ok(())
}

pub fn doctor(store: Option<&str>) -> Result<()> {
    let mut failed = 0;
    let mut line = |ok: bool, name: &str, found: &str, hint: Option<&str>| {
        println!("  {}  {name:<22} {found}", if ok { "ok  " } else { "FAIL" });
        if !ok {
            failed += 1;
            println!("        hint: {}", hint.unwrap_or("see above"));
        }
    };
    let cores = std::thread::available_parallelism().map_or(0, Into::into);
    line(cores > 0, "cores", &cores.to_string(), None);
    for stage in programs::known() {
        match Program::load(&stage, Path::new(".")) {
            Ok(program) => {
                line(true, &format!("stage {stage}"), &format!("version {}", program.description.version), None);
                for check in program.doctor().checks {
                    line(check.ok, &format!("  {}", check.name), &check.found, check.hint.as_deref());
                }
            }
            Err(e) => line(false, &format!("stage {stage}"), &e.message, e.hint.as_deref()),
        }
    }
    let query = programs::helper("query");
    line(
        query.is_ok(),
        "smelt-query",
        query.as_ref().map_or("missing".into(), |p| p.display().to_string()).as_str(),
        Some("build all programs: `cargo build --release`"),
    );
    let store = query::store_of(store, None)?;
    match store.probe() {
        Ok(()) => line(true, "store", &format!("{}: can be written, create-only puts hold", store.address()), None),
        Err(e) => line(false, "store", &e.to_string(), e.hint().as_deref()),
    }
    match failed {
        0 => Ok(()),
        n => Err(Diagnostic::new(ExitCode::Machine, format!("{n} checks failed"))),
    }
}

/// Hands over to `smelt-bench`.
pub fn bench(args: &[OsString]) -> Result<()> {
    let error = std::process::Command::new(programs::helper("bench")?).args(args).exec();
    Err(Diagnostic::new(ExitCode::Machine, format!("`smelt-bench` cannot be started: {error}")))
}
