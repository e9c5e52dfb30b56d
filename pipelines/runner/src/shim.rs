//! Runs a stage with `io: files`: brings its inputs as local files, takes its outputs from local folders, commits.

use crate::diagnostic::{Diagnostic, Result};
use crate::{child, query};
use indexmap::IndexMap;
use smelt_schemas::{
    ArtifactRef, Books, Description, Event, EventBody, ExitCode, FileRecord, FilesInvocation, Invocation, Manifest,
    PROTOCOL, PortRecord, Problem, Provenance,
};
use smelt_store::{Attempt, Begun, Commit, LocalFile, Store};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `smelt shim PROGRAM run INVOCATION.json`: what the runner starts in place of the program. Of several `ranks` that
/// compute together the first one commits.
pub(crate) fn run(program: &Path, invocation: &Path, ranks: u32) -> Result<()> {
    let unreadable =
        |e: String| Diagnostic::new(ExitCode::Bug, format!("`{}` cannot be read: {e}", invocation.display()));
    let text = std::fs::read(invocation).map_err(|e| unreadable(e.to_string()))?;
    let invocation: Invocation = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
    let (mut seq, rank) = (0, invocation.rank);
    let mut emit = |body| {
        let event = Event { v: PROTOCOL, time: smelt_store::now(), seq, rank, body };
        seq += 1;
        println!("{}", serde_json::to_string(&event).expect("events are plain data"));
    };
    let unable = |e: String| Diagnostic::new(ExitCode::Bug, format!("`{} describe` failed: {e}", program.display()));
    let answer = child::ask(Command::new(program).arg("describe"), b"");
    let answer = answer.map_err(|e| unable(e.to_string()))?;
    let description: Description = serde_json::from_slice(&answer.stdout).map_err(|e| unable(e.to_string()))?;
    let started = smelt_store::now();
    let store = Store::open(&invocation.store)?;
    if ranks > 1 && rank > 0 {
        return beside(program, &invocation, &description, &store, emit);
    }
    let begun = Attempt::begin(&store, &invocation.stage, &invocation.fingerprint, invocation.edition, |owner| {
        let who = format!("process {} on {}", owner.pid, owner.host);
        emit(EventBody::Warning { message: format!("{who} does the same work: waiting for what it commits") });
    })?;
    let attempt = match begun {
        Begun::Held(attempt) => *attempt,
        Begun::Committed(manifest) => {
            emit(committed(&manifest, true));
            return Ok(());
        }
    };
    emit(EventBody::Started { attempt: attempt.id().into(), resumed: attempt.resumed(), resumed_at: None });
    let result = work(program, &invocation, &description, &store, &attempt);
    let checked = result.and_then(|(files, books)| match books.check() {
        Ok(()) => Ok((files, books)),
        Err(e) => Err(Diagnostic::new(ExitCode::Bug, format!("stage `{}`: {e}", invocation.stage))),
    });
    let (mut files, books) = match checked {
        Ok(done) => done,
        Err(e) => {
            attempt.release();
            let problem = Problem { message: e.message, hint: e.hint, ..Problem::default() };
            emit(EventBody::Error { code: e.code, problem });
            // The event says it all; the runner reads it there.
            return Err(Diagnostic::new(e.code, String::new()));
        }
    };
    let ports: IndexMap<String, PortRecord> = description
        .outputs
        .iter()
        .map(|p| (p.name.clone(), PortRecord::new(p.kind.clone(), files.remove(&p.name).unwrap_or_default())))
        .collect();
    let manifest = Manifest {
        protocol: PROTOCOL,
        stage: invocation.stage.clone(),
        version: invocation.version,
        fingerprint: invocation.fingerprint.clone(),
        edition: invocation.edition,
        attempt: attempt.id().into(),
        config: invocation.config.clone(),
        inputs: invocation.inputs.clone(),
        sources: invocation.sources.clone(),
        ports,
        books,
        metrics: BTreeMap::new(),
        provenance: Provenance {
            run: invocation.run.clone(),
            job: invocation.job.clone(),
            smelt: env!("CARGO_PKG_VERSION").into(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().into(),
            started,
            seconds: attempt.seconds(),
            threads: invocation.threads,
            resumed: attempt.resumed(),
            ..Provenance::default()
        },
    };
    // Whoever took the attempt over commits it.
    match attempt.commit(&manifest)? {
        Commit::Won => emit(committed(&manifest, false)),
        Commit::Adopted(theirs) => emit(committed(&theirs, true)),
    }
    attempt.release();
    Ok(())
}

fn committed(manifest: &Manifest, adopted: bool) -> EventBody {
    EventBody::Committed {
        fingerprint: manifest.fingerprint.clone(),
        edition: manifest.edition,
        adopted,
        summary: manifest.books.summary("rows"),
    }
}

/// A rank that is not the first: runs the program, leaves what it wrote, and waits for the first one's commit.
fn beside(
    program: &Path,
    invocation: &Invocation,
    description: &Description,
    store: &Store,
    mut emit: impl FnMut(EventBody),
) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(600);
    let tell = |e: Diagnostic, emit: &mut dyn FnMut(EventBody)| {
        emit(EventBody::Error {
            code: e.code,
            problem: Problem { message: e.message, hint: e.hint, ..Problem::default() },
        });
        Diagnostic::new(e.code, String::new())
    };
    let inputs = Inputs::fetch(invocation, store).map_err(|e| tell(e, &mut emit))?;
    start(program, invocation, description, &inputs).map_err(|e| tell(e, &mut emit))?;
    let artifact = ArtifactRef {
        stage: invocation.stage.clone(),
        fingerprint: invocation.fingerprint.clone(),
        edition: invocation.edition,
    };
    let since = Instant::now();
    loop {
        if let Some(manifest) = store.manifest(&artifact)? {
            emit(committed(&manifest, true));
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            let late = Diagnostic::new(ExitCode::Again, "rank 0 has not committed ten minutes after this rank ended");
            return Err(tell(late, &mut emit));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Inputs as local files; copies live as long as this value.
struct Inputs {
    _kept: Vec<LocalFile>,
    ports: BTreeMap<String, Vec<Vec<PathBuf>>>,
}

fn machine(what: &str, e: &std::io::Error) -> Diagnostic {
    Diagnostic::new(ExitCode::Machine, format!("{what}: {e}"))
}

impl Inputs {
    fn fetch(invocation: &Invocation, store: &Store) -> Result<Self> {
        let (mut kept, mut ports) = (Vec::new(), BTreeMap::<String, Vec<Vec<PathBuf>>>::new());
        for (port, list) in &invocation.inputs {
            for input in list {
                let missing =
                    || Diagnostic::new(ExitCode::Data, format!("input `{port}` is not in {}", store.address()));
                let manifest = store.manifest(&input.artifact)?.ok_or_else(missing)?;
                let mut paths = Vec::new();
                for file in &manifest.ports.get(&input.port).ok_or_else(missing)?.files {
                    let local =
                        store.fetch(&store.file_key(&manifest, &input.port, file), file, &invocation.scratch)?;
                    paths.push(local.path().to_path_buf());
                    kept.push(local);
                }
                ports.entry(port.clone()).or_default().push(paths);
            }
        }
        Ok(Self { _kept: kept, ports })
    }
}

/// Runs the program to its end. Gives its books, and the folder of each port.
fn start(
    program: &Path,
    invocation: &Invocation,
    description: &Description,
    inputs: &Inputs,
) -> Result<(Books, BTreeMap<String, PathBuf>)> {
    let mut outputs = BTreeMap::new();
    for port in &description.outputs {
        let folder = invocation.scratch.join("out").join(&port.name);
        std::fs::create_dir_all(&folder).map_err(|e| machine("making an output folder", &e))?;
        outputs.insert(port.name.clone(), folder);
    }
    let files = FilesInvocation {
        config: invocation.config.clone(),
        inputs: inputs.ports.clone(),
        outputs: outputs.clone(),
        threads: invocation.threads,
    };
    let path = invocation.scratch.join("files.json");
    let text = serde_json::to_vec_pretty(&files).expect("an invocation is plain data");
    std::fs::write(&path, text).map_err(|e| machine("writing the invocation", &e))?;
    let mut command = Command::new(program);
    command.arg("run").arg(&path).stdin(Stdio::null()).stdout(Stdio::piped());
    child::end_with_me(&mut command);
    let mut child = command.spawn().map_err(|e| machine("starting the program", &e))?;
    let mut books = Books::default();
    let mut told = None;
    let hear = |line: &str| match serde_json::from_str::<EventBody>(line) {
        // Its books and its error are for us, everything else is for the runner.
        Ok(EventBody::Books(b)) => books.add(&b),
        Ok(EventBody::Error { code, problem }) => told = Some((code, problem)),
        _ => println!("{line}"),
    };
    let status = child::listen(&mut child, hear, |_| {}, |child| child.wait());
    let status = status.map_err(|e| machine("waiting for the program", &e))?;
    if !status.success() {
        let code = match status.code() {
            Some(1) => ExitCode::Bug, // what an interpreter says of an exception
            _ => child::code(status),
        };
        let Some((code, problem)) = told else {
            let error = Diagnostic::new(code, child::how(status));
            return Err(match child::hint(status) {
                Some(hint) => error.hint(hint),
                None => error,
            });
        };
        return Err(Diagnostic::of(code, problem));
    }
    Ok((books, outputs))
}

fn work(
    program: &Path,
    invocation: &Invocation,
    description: &Description,
    store: &Store,
    attempt: &Attempt,
) -> Result<(BTreeMap<String, Vec<FileRecord>>, Books)> {
    let inputs = Inputs::fetch(invocation, store)?;
    let (books, outputs) = start(program, invocation, description, &inputs)?;
    let mut written: BTreeMap<String, Vec<FileRecord>> = BTreeMap::new();
    for port in &description.outputs {
        let mut found = Vec::new();
        collect(&outputs[&port.name], String::new(), &mut found)
            .map_err(|e| machine("reading an output folder", &e))?;
        found.sort();
        let paths = || found.iter().map(|(_, path)| path.clone()).collect();
        let rows = match port.kind.schema().is_some() && !found.is_empty() {
            true => query::inspect(port.kind.clone(), paths()).map_err(|e| Diagnostic {
                message: format!("stage `{}` left in port `{}` {}", invocation.stage, port.name, e.message),
                ..e
            })?,
            false => Vec::new(),
        };
        for (i, (name, path)) in found.into_iter().enumerate() {
            let mut source = std::fs::File::open(&path).map_err(|e| machine("reading an output", &e))?;
            let mut upload = attempt.upload(&port.name, &name)?;
            let mut buffer = vec![0; 1 << 18];
            loop {
                let n = source.read(&mut buffer).map_err(|e| machine("reading an output", &e))?;
                if n == 0 {
                    break;
                }
                upload.write_all(&buffer[..n]).map_err(|e| smelt_store::Error::from_write(e, store, &name))?;
            }
            let record = FileRecord { rows: rows.get(i).copied(), ..upload.finish(&name)? };
            written.entry(port.name.clone()).or_default().push(record);
        }
    }
    Ok((written, books))
}

fn collect(folder: &Path, prefix: String, found: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), format!("{name}/"), found)?,
            false => found.push((name, entry.path())),
        }
    }
    Ok(())
}
