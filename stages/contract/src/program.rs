//! The five verbs, and a job from its invocation to its manifest.

use crate::checks::free_space;
use crate::config;
use crate::context::{Context, emit};
use crate::ending;
use crate::error::Error;
use crate::files::set_own_store;
use crate::help;
use crate::input::{Connections, Inputs};
use crate::kinds::{KindType, Metrics};
use crate::lock::lock;
use crate::machine;
use crate::port::Outputs;
use crate::shard::Shard;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smelt_schemas::{
    ArtifactRef, Books, Cores, Description, Doctor, Estimate, EventBody, ExitCode, FileRecord, Invocation, Io,
    Manifest, PROTOCOL, PortRecord, Problem, Provenance, ResolveAnswer, ResolveRequest, Resolved, Source,
};
use smelt_store::{Attempt, Begun, CACHE_BYTES, Cache, Commit, Store};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode as ProcessExit;
use std::sync::atomic::{AtomicU32, Ordering};

/// Of this process among the workers of its job, for its last words.
static RANK: AtomicU32 = AtomicU32::new(0);

/// A program that turns artifacts into artifacts.
pub trait Stage {
    const NAME: &'static str;
    /// Bumped when the same config and inputs would give other bytes.
    const VERSION: u32;
    /// One sentence.
    const ABOUT: &'static str;
    /// What the rows of its main output are called in summaries.
    const ROWS: &'static str = "documents";
    const CORES: Cores = Cores::One;
    /// Whether its jobs can compute on a GPU: see [`Context::device`].
    const DEVICES: bool = false;
    /// Whether many processes may do a job together: all that it writes is written by units, and what `run` does beside
    /// them is the same in every process. No stage that saves, or draws curves, can be spread.
    const SPREADS: bool = false;

    /// Every field is written, also one that has its default, so that `--help`, the schema and `resolve` show what a
    /// run uses; a field that is added later therefore comes with a new version. A field `seed: u64` is filled from the
    /// pipeline's.
    type Config: Serialize + DeserializeOwned + JsonSchema;
    type Inputs: Inputs;
    type Outputs: Outputs;

    /// Checks what a schema cannot say, and lists what is read from outside the store. May change the config into
    /// its one form. Runs before anything else does, so it should be fast.
    fn resolve(_config: &mut Self::Config, _inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        Ok(Vec::new())
    }

    /// Reads the inputs, writes the outputs. Called again after a kill; `Context::units` and `Context::saved` know
    /// what was done.
    fn run(config: Self::Config, inputs: Self::Inputs, out: Self::Outputs, cx: &Context) -> Result<(), Error>;

    /// What a job of this config costs, as far as the config tells: see [`estimates`](crate::estimates).
    fn estimate(_config: &Self::Config) -> Estimate {
        crate::estimates::by_the_input()
    }

    /// The same where the pipeline also tells how many tokens its tokenizer will have.
    fn estimate_with(config: &Self::Config, _vocabulary: Option<usize>) -> Estimate {
        Self::estimate(config)
    }

    /// What it needs from the machine: cores, memory for the default config, scratch space.
    fn doctor() -> Doctor {
        needs_of::<Self>()
    }
}

/// What every stage needs from the machine: see [`Stage::doctor`].
pub fn needs_of<S: Stage + ?Sized>() -> Doctor {
    let defaults = serde_json::from_value::<S::Config>(serde_json::json!({})).ok();
    crate::checks::machine(defaults.and_then(|config| S::estimate(&config).memory_bytes))
}

pub(crate) fn describe<S: Stage>() -> Description {
    Description {
        protocol: PROTOCOL,
        name: S::NAME.into(),
        version: S::VERSION,
        about: S::ABOUT.into(),
        io: Io::Store,
        cores: S::CORES,
        devices: S::DEVICES,
        spreads: S::SPREADS,
        ranks: false,
        resolves_lists: true,
        inputs: S::Inputs::specs(),
        outputs: S::Outputs::specs(),
        config: schema::<S>(),
    }
}

fn schema<S: Stage>() -> serde_json::Value {
    config::with_own_defaults(&schemars::schema_for!(S::Config).to_value())
}

/// What a stage says of its configs: made once for all that are read.
struct Shape {
    schema: serde_json::Value,
    defaults: serde_json::Value,
}

impl Shape {
    fn of<S: Stage>() -> Self {
        let defaults = serde_json::from_value::<S::Config>(serde_json::json!({})).ok();
        let defaults = defaults.and_then(|config| serde_json::to_value(config).ok()).unwrap_or_default();
        Self { schema: schema::<S>(), defaults }
    }

    /// Reads a config as the stage's type, and checks the bounds that its schema states; the error names the field.
    /// What a nested object leaves out has the stage's defaults.
    fn read<S: Stage>(&self, given: &serde_json::Value) -> Result<S::Config, Error> {
        let given = config::over(&self.defaults, given);
        config::check_bounds(&self.schema, &given)?;
        serde_path_to_error::deserialize(&given).map_err(|e| {
            let field: String = e
                .path()
                .iter()
                .filter_map(|s| match s {
                    serde_path_to_error::Segment::Map { key } => Some(format!("/{key}")),
                    serde_path_to_error::Segment::Seq { index } => Some(format!("/{index}")),
                    _ => None,
                })
                .collect();
            Error::config(&field, e.inner().to_string())
        })
    }
}

fn resolve<S: Stage>(shape: &Shape, request: &ResolveRequest) -> Result<Resolved, Error> {
    set_own_store(request.store.as_deref());
    let mut config = shape.read::<S>(&request.config)?;
    let sources = S::resolve(&mut config, &request.inputs)?;
    let config = serde_json::to_value(&config).map_err(|e| Error::bug(format!("the config cannot be written: {e}")))?;
    Ok(Resolved { config, outputs: S::Outputs::specs(), sources })
}

/// Answers one request, or each of a list.
fn resolve_verb<S: Stage>(path: Option<&str>) -> Result<(), Error> {
    let unlike = |e: serde_json::Error| Error::config("", format!("this is not what `resolve` reads: {e}"));
    let request: serde_json::Value = read_json(path)?;
    let shape = Shape::of::<S>();
    if !request.is_array() {
        return resolve::<S>(&shape, &serde_json::from_value(request).map_err(unlike)?)
            .map(|resolved| print(&resolved));
    }
    let answer = |request: &ResolveRequest| match resolve::<S>(&shape, request) {
        Ok(resolved) => ResolveAnswer::Resolved(resolved),
        Err(e) => ResolveAnswer::Refused { code: e.exit_code(), problem: e.problem().clone() },
    };
    let requests: Vec<ResolveRequest> = serde_json::from_value(request).map_err(unlike)?;
    print(&requests.iter().map(answer).collect::<Vec<_>>());
    Ok(())
}

fn read_json<T: DeserializeOwned>(path: Option<&str>) -> Result<T, Error> {
    let path = path.ok_or_else(|| Error::config("", "a file is expected after the verb, or `-` for standard input"))?;
    let mut text = Vec::new();
    let read = match path {
        "-" => std::io::stdin().lock().read_to_end(&mut text).map(drop),
        path => std::fs::read(path).map(|bytes| text = bytes),
    };
    read.map_err(|e| Error::config("", format!("`{path}` cannot be read: {e}")))?;
    serde_json::from_slice(&text).map_err(|e| Error::config("", format!("`{path}` is not what this verb reads: {e}")))
}

fn print(value: &impl Serialize) {
    println!("{}", serde_json::to_string(value).expect("answers are plain data"));
}

/// The whole of a stage's `main`.
pub fn main<S: Stage>() -> ProcessExit {
    die_with_parent();
    allow_many_files();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let file = args.get(1).map(String::as_str);
    let done = match args.first().map(String::as_str) {
        Some("describe") => {
            print(&describe::<S>());
            Ok(())
        }
        Some("resolve") => resolve_verb::<S>(file).inspect_err(|e| print(e.problem())),
        Some("estimate") => read_json::<ResolveRequest>(file)
            .and_then(|r| Ok((Shape::of::<S>().read::<S>(&r.config)?, r.vocabulary.map(|tokens| tokens as usize))))
            .map(|(config, vocabulary)| print(&S::estimate_with(&config, vocabulary))),
        Some("doctor") => {
            print(&S::doctor());
            Ok(())
        }
        Some("run") => {
            ending::listen();
            read_json(file).and_then(|invocation| run_invocation::<S>(&invocation)).inspect_err(|e| {
                let (code, problem) = (e.exit_code(), e.problem().clone());
                emit(u64::MAX, RANK.load(Ordering::Relaxed), EventBody::Error { code, problem });
            })
        }
        Some("--version" | "-V") => {
            println!("{} {} (smelt {})", S::NAME, S::VERSION, env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Some("--help" | "-h" | "help") | None => {
            print!("{}", help::text(&describe::<S>()));
            Ok(())
        }
        Some(verb) => {
            Err(Error::config("", format!("`{verb}` is no verb: describe, resolve, run, estimate, doctor or --help")))
        }
    };
    match done {
        Ok(()) => ExitCode::Done.into(),
        Err(e) => {
            complain(e.problem());
            e.exit_code().into()
        }
    }
}

fn complain(problem: &Problem) {
    let bold =
        |s: &'static str| if std::io::stderr().is_terminal() { format!("\x1b[1;31m{s}\x1b[0m") } else { s.into() };
    let field = problem
        .field
        .as_deref()
        .filter(|f| !f.is_empty())
        .map(|f| format!("`{}`: ", f.trim_start_matches('/').replace('/', ".")));
    eprintln!("{}: {}{}", bold("error"), field.unwrap_or_default(), problem.message);
    if let Some(hint) = &problem.hint {
        eprintln!("hint: {hint}");
    }
}

/// A stage must not outlive the runner that started it.
fn die_with_parent() {
    if let Some(parent) = std::env::var("SMELT_RUNNER_PID").ok().and_then(|p| p.parse::<i32>().ok()) {
        // SAFETY: plain system calls on this process; the second look closes the gap before the first.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != parent {
                libc::kill(libc::getpid(), libc::SIGKILL);
            }
        }
    }
}

/// A job that maps its inputs holds each of their files open; many systems allow 1,024 until one asks for more.
fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on this process, with a struct of its own. If the limit stays, opening tells.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Does a job, from the start of its attempt to the commit of its manifest. Tests call it inside their own process.
pub fn run_invocation<S: Stage>(invocation: &Invocation) -> Result<(), Error> {
    if invocation.protocol != PROTOCOL {
        return Err(Error::config(
            "",
            format!("the invocation speaks protocol {}, this stage {PROTOCOL}", invocation.protocol),
        ));
    }
    if (invocation.stage.as_str(), invocation.version) != (S::NAME, S::VERSION) {
        let (stage, version) = (&invocation.stage, invocation.version);
        return Err(Error::config(
            "",
            format!("the invocation is for `{stage}` version {version}, this is `{}` version {}", S::NAME, S::VERSION),
        ));
    }
    RANK.store(invocation.rank, Ordering::Relaxed);
    let started = smelt_store::now();
    let config = Shape::of::<S>().read::<S>(&invocation.config)?;
    let store = Store::open(&invocation.store)?;
    let (mut events, rank) = (0, invocation.rank);
    let begun = match S::SPREADS {
        true => Attempt::join(&store, S::NAME, &invocation.fingerprint, invocation.edition)?,
        false => Attempt::begin(&store, S::NAME, &invocation.fingerprint, invocation.edition, |owner| {
            let who = format!("process {} on {}", owner.pid, owner.host);
            let message = format!("{who} does the same work: waiting for what it commits");
            emit(events, rank, EventBody::Warning { message });
            events += 1;
        })?,
    };
    let attempt = match begun {
        Begun::Held(attempt) => *attempt,
        Begun::Committed(manifest) => {
            emit(events, rank, committed::<S>(&manifest, true));
            return Ok(());
        }
    };
    let cx = Context::new(attempt, invocation, events);
    match work::<S>(config, invocation, &store, &cx, started) {
        Ok((manifest, adopted)) => cx.emit(committed::<S>(&manifest, adopted)),
        Err(e) => {
            // Another worker may have done the rest meanwhile, and tidied up: then nothing is amiss.
            let artifact = ArtifactRef {
                stage: S::NAME.into(),
                fingerprint: invocation.fingerprint.clone(),
                edition: invocation.edition,
            };
            let found = if S::SPREADS { store.manifest(&artifact)? } else { None };
            let Some(manifest) = found else {
                cx.release();
                return Err(e);
            };
            if e.exit_code() != ExitCode::Again {
                cx.warn(&format!("another worker did the job, in which this one failed: {e}"));
            }
            cx.emit(committed::<S>(&manifest, true));
        }
    }
    cx.release();
    Ok(())
}

/// From the inputs to the manifest; the second value says whether another process had committed it.
fn work<S: Stage>(
    config: S::Config,
    invocation: &Invocation,
    store: &Store,
    cx: &Context,
    started: f64,
) -> Result<(Manifest, bool), Error> {
    let connections = Connections {
        store: keeping_copies(store, &invocation.scratch),
        scratch: invocation.scratch.clone(),
        inputs: invocation.inputs.clone(),
    };
    let inputs = S::Inputs::connect(&connections)?;
    let resumed_at = cx.attempt.progress()?.map(|p| p.cursor);
    cx.emit(EventBody::Started { attempt: cx.attempt.id().into(), resumed: cx.attempt.resumed(), resumed_at });
    let done = cx.guarded(|| S::run(config, inputs, S::Outputs::bind(), cx));
    let saved = cx.saves.wait();
    done.and(saved)?;
    write_curve::<S>(cx)?;
    let manifest = manifest::<S>(invocation, cx, started)?;
    // Whoever took the attempt over commits it, or another worker of it.
    Ok(match cx.attempt.commit(&manifest)? {
        Commit::Won => (manifest, false),
        Commit::Adopted(theirs) => (*theirs, true),
    })
}

/// The store, its files read through a cache that goes with the job's scratch folder, unless the machine has one:
/// phases of a job read the same inputs, which are fetched from a bucket once.
fn keeping_copies(store: &Store, scratch: &Path) -> Store {
    let is_bucket = store.objects().is_some() && !store.address().starts_with("memory:");
    if !is_bucket || store.cache().is_some() {
        return store.clone();
    }
    // The rest is left to the job's own files. Without a cache, each phase fetches for itself.
    let bytes = free_space(scratch).unwrap_or_default() / 4;
    match Cache::new(&scratch.join("inputs"), bytes.min(CACHE_BYTES)) {
        Ok(cache) => store.clone().with_cache(cache),
        Err(_) => store.clone(),
    }
}

fn committed<S: Stage>(manifest: &Manifest, adopted: bool) -> EventBody {
    EventBody::Committed {
        fingerprint: manifest.fingerprint.clone(),
        edition: manifest.edition,
        adopted,
        summary: manifest.books.summary(S::ROWS),
    }
}

/// The curves of `Context::metrics`, as a file of the port `metrics`.
fn write_curve<S: Stage>(cx: &Context) -> Result<(), Error> {
    let rows = std::mem::take(&mut *lock(&cx.curve));
    let wanted = S::Outputs::specs().iter().any(|p| p.name == "metrics" && p.kind == Metrics::kind());
    if !wanted || rows.is_empty() {
        return Ok(());
    }
    if S::SPREADS {
        let what = format!("stage `{}` draws curves and says that it can be spread over workers", S::NAME);
        return Err(Error::bug(what).hint("this is a bug of the stage: nothing was committed"));
    }
    let path = "curve.parquet";
    let mut shard = Shard::<Metrics>::new(cx.attempt.upload("metrics", path)?, path.into());
    for row in rows {
        shard.write(row)?;
    }
    let mut record = smelt_store::UnitRecord::default();
    record.files.insert("metrics".into(), vec![shard.finish()?]);
    lock(&cx.records).push(record);
    Ok(())
}

fn manifest<S: Stage>(invocation: &Invocation, cx: &Context, started: f64) -> Result<Manifest, Error> {
    let mut files: BTreeMap<String, Vec<FileRecord>> = BTreeMap::new();
    let (mut books, mut metrics) = (Books::default(), lock(&cx.results).clone());
    for record in lock(&cx.records).iter() {
        books.add(&record.books);
        metrics.extend(record.metrics.clone());
        for (port, written) in &record.files {
            files.entry(port.clone()).or_default().extend(written.iter().cloned());
        }
    }
    books.check().map_err(|e| {
        Error::bug(format!("stage `{}`: {e}", S::NAME)).hint("this is a bug of the stage: nothing was committed")
    })?;
    let mut ports: IndexMap<String, PortRecord> = IndexMap::new();
    for spec in S::Outputs::specs() {
        let mut record = PortRecord::new(spec.kind, files.remove(&spec.name).unwrap_or_default());
        record.tokenizer = lock(&cx.tokenizers).get(spec.name.as_str()).cloned();
        // Sorted by path. The second file has replaced the first, so one of the two records is false.
        if let Some(pair) = record.files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            let path = &pair[0].path;
            return Err(Error::bug(format!("stage `{}` wrote `{path}` of port `{}` twice", S::NAME, spec.name))
                .hint("this is a bug of the stage: nothing was committed"));
        }
        ports.insert(spec.name, record);
    }
    if let Some(drops) = ports.get("drops").filter(|p| p.kind == smelt_schemas::kind::drops()) {
        let (rows, counted) = (drops.rows().unwrap_or(0), books.dropped_total());
        if rows > counted {
            return Err(Error::bug(format!("stage `{}` wrote {rows} drops but counted {counted}", S::NAME)));
        }
    }
    Ok(Manifest {
        protocol: PROTOCOL,
        stage: S::NAME.into(),
        version: S::VERSION,
        fingerprint: invocation.fingerprint.clone(),
        edition: invocation.edition,
        attempt: cx.attempt.id().into(),
        config: invocation.config.clone(),
        inputs: invocation.inputs.clone(),
        sources: invocation.sources.clone(),
        ports,
        books,
        metrics,
        provenance: Provenance {
            run: invocation.run.clone(),
            job: invocation.job.clone(),
            smelt: env!("CARGO_PKG_VERSION").into(),
            binary: machine::own_digest(),
            host: machine::host(),
            started,
            seconds: cx.attempt.seconds(),
            peak_memory_bytes: machine::peak_memory(),
            threads: cx.threads,
            cpu: machine::cpu_level().into(),
            device: lock(&cx.computes_on).clone(),
            resumed: cx.attempt.resumed(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_schemas::{Device, Digest, SavePolicy};

    #[derive(Default, Serialize, serde::Deserialize, JsonSchema)]
    struct Config {}

    crate::inputs! { struct Nothing {} }
    crate::outputs! { struct Model { model: Port<crate::kinds::Checkpoint> } }

    struct Twice;

    impl Stage for Twice {
        const NAME: &'static str = "twice";
        const VERSION: u32 = 1;
        const ABOUT: &'static str = "Writes one file in two units";
        type Config = Config;
        type Inputs = Nothing;
        type Outputs = Model;

        fn run(_: Config, _: Nothing, out: Model, cx: &Context) -> Result<(), Error> {
            cx.units("parts", 2, |i, unit| unit.put(&out.model, "part.bin", &[i as u8]))?;
            Ok(())
        }
    }

    #[test]
    fn a_file_that_is_written_twice_is_a_bug_of_the_stage_and_commits_nothing() {
        let invocation = Invocation {
            protocol: PROTOCOL,
            run: "r".into(),
            job: "j".into(),
            stage: "twice".into(),
            version: 1,
            fingerprint: Digest::of(b"recipe"),
            config: serde_json::json!({}),
            sources: Vec::new(),
            inputs: BTreeMap::new(),
            store: "memory:twice".into(),
            edition: 0,
            threads: 1,
            memory: None,
            rank: 0,
            device: Device::Cpu,
            save: SavePolicy::default(),
            scratch: std::env::temp_dir(),
        };
        let error = run_invocation::<Twice>(&invocation).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Bug);
        assert_eq!(error.to_string(), "stage `twice` wrote `part.bin` of port `model` twice");
        assert_eq!(error.problem().hint.as_deref(), Some("this is a bug of the stage: nothing was committed"));
        assert_eq!(Store::open("memory:twice").unwrap().artifacts().unwrap(), []);
    }
}
