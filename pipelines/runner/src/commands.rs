//! The verbs of `smelt`, except `artifacts`.

use crate::cli::{PipelineArgs, RunArgs};
use crate::diagnostic::{Diagnostic, Result, nearest};
use crate::doctor::{self, Finding, Verdict};
use crate::executor::{kubernetes, slurm};
use crate::load::{self, Plan, StoreBy};
use crate::plan::{self, State};
use crate::programs::{self, Program};
use crate::resources::Given;
use crate::run::{self, summarise};
use crate::stdin::Spool;
use crate::table::{Format, Listing, Measure, duration, time};
use crate::view::Mode;
use crate::{diff, html, live, lock, query, report, runs, tensorboard, traces};
use serde_json::{Value, json};
use smelt_schemas::{ExitCode, Manifest, QueryFormat, kind};
use smelt_store::{Live, RunState, Store};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A pipeline as the command line names it.
pub(crate) struct Target {
    file: Option<PathBuf>,
    options: load::Options,
    stdin: bool,
    /// Lives as long as this, for the jobs that read it.
    spool: OnceCell<Spool>,
}

impl From<PipelineArgs> for Target {
    fn from(p: PipelineArgs) -> Self {
        let options = load::Options { store: p.store.store, set: p.set, vars: p.vars, environment: true };
        Self { file: p.pipeline, options, stdin: p.stdin, spool: OnceCell::new() }
    }
}

impl Target {
    pub(crate) fn load(&self) -> Result<(Plan, Store)> {
        if self.stdin && self.spool.get().is_none() {
            drop(self.spool.set(Spool::of_stdin()?)); // just seen to be empty
        }
        let plan = load::load(&load::pipeline_file(self.file.as_deref())?, &self.options)?;
        let store = load::open_store(&plan.store, plan.store_by, None)?;
        let store = match plan.cache.clone() {
            Some(cache) => store.with_cache(cache),
            None => store,
        };
        Ok((plan, store))
    }

    /// Loads the named pipeline, or the one that ran last with the settings of that run.
    fn load_last(mut self) -> Result<(Plan, Store)> {
        if self.file.is_none() {
            let store = query::store_of(self.options.store.as_deref(), None)?;
            let last = store.runs()?.into_iter().rev().map(|run| (Path::new(&run.folder).join(&run.file), run.set));
            if let Some((file, set)) = last.into_iter().find(|(file, _)| file.is_file()) {
                let here = std::env::current_dir().unwrap_or_default();
                self.file = Some(file.strip_prefix(here).map(Path::to_path_buf).unwrap_or(file));
                if self.options.set.is_empty() {
                    self.options.set = set;
                }
            }
        }
        self.load()
    }
}

pub(crate) fn check(target: &Target) -> Result<()> {
    let (plan, store) = target.load()?;
    query::check_report(&store, &plan)?;
    println!("{}: {} jobs, no fault found; `smelt plan {}` says what would run", plan.name, plan.jobs.len(), plan.file);
    Ok(())
}

/// `diffs`: also how the config of each job differs from that of what it made last.
pub(crate) fn plan(target: &Target, format: Format, diffs: bool) -> Result<()> {
    let (plan, store) = target.load()?;
    let (mut states, _) = plan::states(&store, &plan)?;
    slurm::look_after(&store, &plan, &mut states)?;
    kubernetes::look_after(&store, &plan, &mut states)?;
    let width = plan.jobs.iter().map(|j| j.name.chars().count()).max().unwrap_or(0);
    let columns = ["job", "stage", "state", "why", "seconds", "diff"].map(|name| (name, Measure::Plain));
    let mut listing = Listing::new(&columns[..if diffs { 6 } else { 5 }]);
    let mut counts = [0usize; 5];
    let mut text = String::new();
    for (job, state) in plan.jobs.iter().zip(&states) {
        let is_settled = matches!(state, State::Cached(_) | State::Skipped(_));
        let before = Some(job).filter(|_| diffs || !is_settled).and_then(|job| plan::last(&store, &plan, job));
        let diff = before.as_ref().filter(|_| diffs).and_then(|Manifest { config, provenance, .. }| {
            diff::of_config(config, &provenance.run, &job.resolved.config)
        });
        let last = before.filter(|_| !is_settled).map(|before| before.provenance.seconds);
        let (word, why) = state.words();
        counts[match state {
            State::New(_) | State::Damaged => 0,
            State::Cached(_) => 1,
            State::After(_) => 2,
            State::Skipped(_) => 3,
            State::Submitted(_) | State::Unknown(_) => 4,
        }] += 1;
        let about = last.filter(|s| *s >= 1.0).map_or_else(String::new, |s| format!(", about {}", duration(s)));
        let line = match state {
            State::Cached(_) => format!("  {:width$}  cached", job.name),
            State::After(_) => format!("  {:width$}  after {why}{about}", job.name),
            _ => format!("  {:width$}  {word:<7}  {why}{about}", job.name),
        };
        text += &(line + "\n");
        text += &diff.as_deref().map_or_else(String::new, diff::indented);
        let mut row = vec![json!(job.name), json!(job.program.description.name), json!(word), json!(why), json!(last)];
        row.extend(diffs.then(|| json!(diff)));
        listing.row(row);
    }
    if format != Format::Table {
        print!("{}", listing.text(format));
        return Ok(());
    }
    print!("{text}");
    let some = |count: usize, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
    let more = some(counts[3], "skipped") + &some(counts[4], "on the cluster");
    println!("  {} new, {} cached, {} after them{more}; nothing was run", counts[0], counts[1], counts[2]);
    Ok(())
}

pub(crate) fn lock(target: &Target) -> Result<()> {
    let (plan, _) = target.load()?;
    lock::write(&plan)
}

/// Which jobs of a pipeline are meant; all if nothing is said.
#[derive(Default)]
pub(crate) struct Chosen {
    pub only: Vec<String>,
    pub from: Vec<String>,
    /// Although they are cached.
    pub force: bool,
    /// The job of `smelt rerun`.
    pub rerun: Option<String>,
}

/// `begun`: when this program started.
pub(crate) fn run(args: RunArgs, chosen: &Chosen, begun: Instant) -> Result<()> {
    run::catch_signals();
    let mode = match (args.quiet, args.format) {
        (true, _) => Mode::Quiet,
        (_, Format::Json) => Mode::Json,
        _ => Mode::Auto,
    };
    let target: Target = args.pipeline.into();
    let (plan, store) = target.load()?;
    let locked = args.locked.then(|| lock::checked(&plan)).transpose()?;
    let (only, from) = (chosen.only.as_slice(), chosen.from.as_slice());
    let again = match (&chosen.rerun, only, from) {
        (Some(job), ..) => plan::named(&plan, std::slice::from_ref(job))?,
        (None, ..) if !chosen.force => Vec::new(),
        (None, [], []) => (0..plan.jobs.len()).collect(),
        (None, only, []) => plan::named(&plan, only)?,
        (None, _, from) => plan::below(&plan, from)?,
    };
    let wanted = match (only, from) {
        ([], []) if chosen.rerun.is_none() => None,
        ([], []) => Some(plan::redone(&store, &plan, &again)?),
        (only, []) => Some(plan::needed(&plan, only)?),
        ([], from) => Some(plan::from(&plan, from)?),
        _ => return Err(Diagnostic::pipeline("`--only` and `--from` exclude each other")),
    };
    let whole = only.is_empty() && from.is_empty();
    let single_writer = plan.single_writer || args.single_writer;
    let budget = Given { cores: args.cores, memory: args.memory, gpus: args.gpus };
    let options = run::Options { wanted, again, retries: args.retries, mode, budget, single_writer, locked, begun };
    let summary = run::run(&plan, &store, &options)?;
    if let (Some(sql), true, Mode::Auto) = (&plan.report, whole && summary.ran > 0, mode) {
        println!();
        match query::ask(&store, &plan.name, &sql.sql, query::Answer::default()) {
            // It may ask for what a skipped job would have made.
            Err(e) if summary.skipped > 0 => println!("no report: {}", e.message),
            done => done?,
        }
        let store = plan.store_flag();
        println!(
            "\nNext: `smelt report{store}`, `smelt status{store}`, `smelt sql{store}`, `smelt artifacts show \
                JOB{store}`"
        );
    }
    Ok(())
}

/// Files that a report is written to, instead of the terminal.
pub(crate) struct Files {
    pub html: Option<PathBuf>,
    /// A folder.
    pub tensorboard: Option<PathBuf>,
    /// The trace of the last run.
    pub otlp: Option<PathBuf>,
}

/// The report of the pipeline, or of each of `jobs`.
pub(crate) fn report(target: Target, jobs: &[String], files: &Files) -> Result<()> {
    let (plan, store) = target.load_last()?;
    if let Some(page) = &files.html {
        html::write(&store, &plan, page)?;
        println!("{}", page.display());
    }
    if let Some(folder) = &files.tensorboard {
        tensorboard::write(&store, &plan.name, folder)?;
    }
    if let Some(file) = &files.otlp {
        let last = store.last_run(|run| run.pipeline == plan.name)?;
        let nothing = || Diagnostic::pipeline(format!("pipeline `{}` has not run in {}", plan.name, store.address()));
        traces::write(&store, &last.ok_or_else(nothing)?, file)?;
    }
    if files.html.is_some() || files.tensorboard.is_some() || files.otlp.is_some() {
        return Ok(());
    }
    for (i, job) in jobs.iter().enumerate() {
        if i > 0 {
            println!();
        }
        report::of_job(&store, &plan.name, job)?;
    }
    if !jobs.is_empty() {
        return Ok(());
    }
    let Some(report) = &plan.report else {
        return Err(Diagnostic::pipeline(format!("{} has no report", plan.file))
            .hint("add `report: select …`, or ask for a job's: `smelt report --job JOB`"));
    };
    query::ask(&store, &plan.name, &report.sql, query::Answer::default())
}

pub(crate) fn status(target: Target, format: Format) -> Result<()> {
    let (plan, store) = target.load_last()?;
    let (mut states, _) = plan::states(&store, &plan)?;
    slurm::look_after(&store, &plan, &mut states)?;
    kubernetes::look_after(&store, &plan, &mut states)?;
    let mut listing = Listing::new(&[
        ("job", Measure::Plain),
        ("stage", Measure::Plain),
        ("state", Measure::Plain),
        ("artifact", Measure::Plain),
        ("made", Measure::Time),
        ("took", Measure::Seconds),
        ("holds", Measure::Plain),
    ]);
    let running = store.live(Some(&plan.name))?;
    for (job, state) in plan.jobs.iter().zip(&states) {
        let stage = json!(job.program.description.name);
        // One that a cluster has and that tells nothing yet may still wait there.
        let is_told = |live: &&Live| !live.told.is_empty() || !matches!(state, State::Submitted(_) | State::Unknown(_));
        if let Some(live) = running.iter().find(|live| live.running.job == job.name).filter(is_told) {
            let (since, seconds) = (json!(live.running.started), json!(live.seconds()));
            listing.row(vec![
                json!(job.name),
                stage,
                json!("running"),
                Value::Null,
                since,
                seconds,
                json!(live::words(&live.told)),
            ]);
            continue;
        }
        listing.row(match state {
            State::Cached(m) => vec![
                json!(job.name),
                stage,
                json!("done"),
                json!(format!("{}/{}", m.fingerprint.short(), m.edition)),
                json!(m.provenance.started),
                json!(m.provenance.seconds),
                json!(summarise(m)),
            ],
            other => {
                let (word, why) = match other.words() {
                    ("after", input) => ("waiting", format!("after {input}")),
                    (word, why) => (word, why.to_owned()),
                };
                vec![json!(job.name), stage, json!(word), Value::Null, Value::Null, Value::Null, json!(why)]
            }
        });
    }
    print!("{}", listing.text(format));
    let runs: Vec<_> = store.runs()?.into_iter().filter(|r| r.pipeline == plan.name).collect();
    // One that goes on says more than a later one that has ended.
    let goes_on = runs.iter().rfind(|r| r.state == RunState::Running);
    if let (Some(run), Format::Table) = (goes_on.or(runs.last()), format) {
        println!("\n{}, last run {}: {}, begun {}", plan.file, run.run, run.state.word(), time(run.started));
        for job in run.jobs.iter().filter(|j| j["state"] == json!("failed")) {
            println!("  {} failed: {}", job["job"].as_str().unwrap_or("?"), job["error"].as_str().unwrap_or("?"));
        }
    }
    Ok(())
}

/// What `logs` prints.
pub(crate) struct Said<'a> {
    pub job: &'a str,
    pub run: Option<&'a str>,
    /// Progress and metrics too.
    pub events: bool,
    /// As the job says more.
    pub follow: bool,
}

pub(crate) fn logs(store: Option<&str>, pipeline: Option<&str>, what: &Said) -> Result<()> {
    let store = query::store_of(store, pipeline)?;
    let of = pipeline.map(|given| query::pipeline_name(&store, Some(given))).transpose()?;
    let runs: Vec<String> = match (what.run, of) {
        (Some(run), _) => vec![run.to_owned()],
        (None, None) => store.list_here("runs")?.1.into_iter().rev().collect(),
        (None, Some(of)) => store.runs()?.into_iter().rev().filter(|r| r.pipeline == of).map(|r| r.run).collect(),
    };
    for run in &runs {
        let said = store.read_logs(run, what.job, "log")?;
        let happened = store.read_logs(run, what.job, "events")?;
        let is_now = what.follow && store.run(run)?.is_some_and(|record| record.state == RunState::Running);
        if said.is_none() && happened.is_none() && !is_now {
            continue;
        }
        eprintln!("run {run}");
        let (said, happened) = (said.unwrap_or_default(), happened.unwrap_or_default());
        if what.events {
            print!("{happened}");
        }
        if said.is_empty() && !what.events && !is_now {
            eprintln!("job `{}` said nothing; `--events` prints its progress and metrics", what.job);
        }
        print!("{said}");
        return match is_now {
            true => follow(&store, run, what, said.len(), happened.len()),
            false => Ok(()),
        };
    }
    Err(Diagnostic::pipeline(format!("no run in {} has a log of job `{}`", store.address(), what.job))
        .hint("a cached job runs, and speaks, only once; `--run` names a run"))
}

/// Prints what comes behind the bytes that were printed, until the run has ended.
fn follow(store: &Store, run: &str, what: &Said, mut said: usize, mut happened: usize) -> Result<()> {
    loop {
        // What was said before the end is in the store when the record says that the run has ended.
        let goes_on = store.run(run)?.is_some_and(|record| record.state == RunState::Running);
        for (kind, printed) in [("events", &mut happened), ("log", &mut said)] {
            if kind == "log" || what.events {
                let text = store.read_logs(run, what.job, kind)?.unwrap_or_default();
                print!("{}", text.get(*printed..).unwrap_or_default());
                *printed = text.len();
            }
        }
        drop(std::io::Write::flush(&mut std::io::stdout())); // a closed pipe ends the program by a signal
        if !goes_on {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}

pub(crate) fn runs(store: Option<&str>, pipeline: Option<&str>, format: Format) -> Result<()> {
    let store = query::store_of(store, pipeline)?;
    let of = pipeline.map(|given| query::pipeline_name(&store, Some(given))).transpose()?;
    runs::list(&store, of.as_deref(), format)
}

pub(crate) fn compare(store: Option<&str>, names: [&str; 2], format: Format) -> Result<()> {
    runs::compare(&query::store_of(store, None)?, names, format)
}

pub(crate) fn sql(store: Option<&str>, pipeline: Option<&str>, sql: Option<&str>, answer: query::Answer) -> Result<()> {
    let store = query::store_of(store, pipeline)?;
    let pipeline = query::pipeline_name(&store, pipeline)?;
    if answer.format == QueryFormat::Parquet && answer.output.is_none() {
        return Err(Diagnostic::pipeline("`--format parquet` needs `--output FILE`"));
    }
    match sql {
        Some(sql) => query::ask(&store, &pipeline, sql, answer),
        None => query::shell(&store, &pipeline, &answer),
    }
}

pub(crate) fn schema(name: Option<&str>) -> Result<()> {
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

pub(crate) fn doctor(store: Option<&str>, namespace: Option<String>, single_writer: bool) -> Result<()> {
    let mut failed = 0;
    let mut line = |ok: bool, name: &str, found: &str, hint: Option<&str>| {
        println!("  {}  {name:<22} {found}", if ok { "ok  " } else { "FAIL" });
        if !ok {
            failed += 1;
            println!("        hint: {}", hint.unwrap_or("see above"));
        }
    };
    // Most stages need the same from the machine: a check that holds is printed once.
    let mut said = BTreeSet::new();
    for stage in programs::known() {
        match Program::load(&stage, Path::new(".")) {
            Ok(program) => {
                line(true, &format!("stage {stage}"), &format!("version {}", program.description.version), None);
                let checks = program.doctor().checks.into_iter();
                for check in checks.filter(|c| !c.ok || said.insert((c.name.clone(), c.found.clone()))) {
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
    let (address, by) = load::store_address(store, None);
    let folder = (!address.contains("://")).then(|| Path::new(&address));
    for Finding { verdict, name, found, hint } in doctor::machine(folder, namespace) {
        match verdict {
            Verdict::Note => println!("  note  {name:<22} {found}\n        hint: {hint}"),
            verdict => line(verdict == Verdict::Good, &name, &found, Some(&hint)),
        }
    }
    if by == StoreBy::Nobody && !Path::new(&address).exists() {
        line(true, "store", &format!("{address}: not there yet, the first run makes it"), None);
    } else {
        match load::open_store(&address, by, None).and_then(|store| Ok(store.probe(single_writer).map(|()| store)?)) {
            Ok(store) => {
                let how = if single_writer { "by one run at a time" } else { "create-only puts hold" };
                line(true, "store", &format!("{}: can be written, {how}", store.address()), None)
            }
            Err(e) => line(false, "store", &e.message, e.hint.as_deref()),
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(Diagnostic::new(ExitCode::Machine, format!("{n} checks failed"))),
    }
}

/// Hands over to `smelt-bench`.
pub(crate) fn bench(args: &[OsString]) -> Result<()> {
    let error = std::process::Command::new(programs::helper("bench")?).args(args).exec();
    Err(Diagnostic::new(ExitCode::Machine, format!("`smelt-bench` cannot be started: {error}")))
}
