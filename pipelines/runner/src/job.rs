//! One job as a process: its environment, events, logs, time limit and retries.

use crate::diagnostic::{Diagnostic, Result};
use crate::load::Instance;
use crate::plan::Recipe;
use crate::team::Team;
use crate::view::{Progress, View};
use crate::{child, programs};
use smelt_schemas::{ArtifactRef, Event, EventBody, ExitCode, Invocation, Io, Manifest, PROTOCOL, Problem};
use smelt_store::{Cache, Owner, Store, safe_name};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

/// Set by Ctrl-C or SIGTERM: no job is started any more, and running jobs are ended.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

pub(crate) struct Work<'a> {
    pub job: &'a Instance,
    pub recipe: &'a Recipe,
    pub store: &'a Store,
    pub run: &'a str,
    pub edition: u32,
    pub threads: usize,
    pub retries: Option<u32>,
    /// `--store …` for commands that are suggested to the user, or nothing.
    pub store_flag: &'a str,
    pub view: &'a View,
}

/// How a process ended.
struct Ended {
    code: ExitCode,
    problem: Option<Problem>,
    committed: Option<ArtifactRef>,
    why: String,
    /// What to do about it, if nobody says better.
    hint: Option<String>,
    /// It was ended at its time limit, so another try would not help.
    late: bool,
}

const DEFAULT_RETRIES: u32 = 2;

impl Work<'_> {
    /// Runs the job until its manifest is committed; temporary failures are tried again.
    pub(crate) fn run(&self) -> Result<Manifest> {
        let logs = Logs::new(self.store, self.run, &self.job.name);
        let result = std::thread::scope(|scope| {
            // Log lines reach the store soon, even if no other line follows.
            let (ended, wait) = mpsc::channel::<()>();
            let logs = &logs;
            scope.spawn(move || {
                while wait.recv_timeout(Logs::EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // A log that cannot be written now is kept and tried again; the last flush reports.
                    drop(logs.flush());
                }
            });
            let result = self.all_workers(logs);
            drop(ended);
            result
        });
        let flushed = logs.flush();
        match result {
            Err(e) => Err(e),
            Ok(manifest) => flushed.map(|()| manifest).map_err(Into::into),
        }
    }

    /// All workers of the job, until one has committed and the others have seen it, or one has failed.
    fn all_workers(&self, logs: &Logs) -> Result<Manifest> {
        let workers = self.job.run.workers.unwrap_or(1);
        let team = Team::new(workers);
        std::thread::scope(|scope| {
            for rank in 0..workers as u32 {
                let team = &team;
                scope.spawn(move || match self.try_often(rank, team, logs) {
                    Ok(manifest) => manifest.map_or((), |manifest| team.commit(manifest)),
                    Err(e) => team.fail(e),
                });
            }
        });
        team.result()
    }

    /// One worker, until the manifest is committed: `None` if others have done that, or have failed.
    fn try_often(&self, rank: u32, team: &Team, logs: &Logs) -> Result<Option<Manifest>> {
        let (name, stage) = (&self.job.name, &self.job.program.description.name);
        let retries = self.retries.or(self.job.run.retries).unwrap_or(DEFAULT_RETRIES);
        for attempt in 0.. {
            let ended = self.once(rank, team, logs)?;
            if ended.code == ExitCode::Done {
                let artifact = ended.committed.ok_or_else(|| {
                    Diagnostic::new(ExitCode::Bug, format!("job `{name}`: stage `{stage}` ended without a commit"))
                })?;
                let manifest = self.store.manifest(&artifact)?;
                let missing = || format!("job `{name}`: its manifest is not in the store");
                return manifest.map(Some).ok_or_else(|| Diagnostic::new(ExitCode::Bug, missing()));
            }
            if STOP.load(Ordering::SeqCst) {
                return Err(stopped());
            }
            if team.is_over() {
                return Ok(None);
            }
            if ended.code != ExitCode::Again || ended.late || attempt >= retries {
                let (message, hint) = ended.problem.map_or((ended.why.clone(), None), |p| {
                    let field = p.field.filter(|f| !f.is_empty()).map(|f| format!("`config{}`: ", f.replace('/', ".")));
                    (format!("{}{}", field.unwrap_or_default(), p.message), p.hint)
                });
                let remedy = match (ended.code, self.job.program.description.io) {
                    (ExitCode::Bug, Io::Files) => "a bug of the stage",
                    (code, _) => code.remedy(),
                };
                self.view.failed(name, stage, remedy);
                let message = format!("job `{name}` failed{}: {message}", team.named(rank));
                let mut error = Diagnostic::new(ended.code, message).at(self.job.place.clone());
                error.hint = hint.or(ended.hint).or_else(|| match ended.late {
                    true => Some("give it more with `run: { timeout: … }`; saved work is kept".into()),
                    false => Some(format!("`smelt logs {name}{}` shows what it said", self.store_flag)),
                });
                return Err(error);
            }
            let wait = (0.5 * f64::from(1 << attempt.min(6))).min(30.0);
            let why = ended.problem.map_or(ended.why, |p| p.message);
            self.view.again(name, stage, &why, wait);
            let until = Instant::now() + Duration::from_secs_f64(wait);
            while Instant::now() < until && !STOP.load(Ordering::SeqCst) && !team.is_over() {
                std::thread::sleep(Duration::from_millis(20));
            }
            if team.is_over() {
                return Ok(None);
            }
        }
        unreachable!("the loop returns")
    }

    fn once(&self, rank: u32, team: &Team, logs: &Logs) -> Result<Ended> {
        let scratch = Scratch::new(self.run, &self.job.name, rank)?;
        let invocation = Invocation {
            protocol: PROTOCOL,
            run: self.run.into(),
            job: self.job.name.clone(),
            stage: self.job.program.description.name.clone(),
            version: self.job.program.description.version,
            fingerprint: self.recipe.fingerprint.clone(),
            config: self.job.resolved.config.clone(),
            sources: self.job.resolved.sources.clone(),
            inputs: self.recipe.inputs.clone(),
            store: self.store.address().into(),
            edition: self.edition,
            threads: team.share(self.threads, rank),
            memory: self.job.memory.map(|bytes| bytes / self.job.run.workers.unwrap_or(1).max(1) as u64),
            rank,
            device: self.job.run.device,
            save: self.job.run.save,
            scratch: scratch.0.join("scratch"),
        };
        let file = scratch.0.join("invocation.json");
        let text = serde_json::to_vec_pretty(&invocation).expect("an invocation is plain data");
        std::fs::write(&file, text)
            .map_err(|e| Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be written: {e}", file.display())))?;
        let mut command = match self.job.program.description.io {
            Io::Store => Command::new(&self.job.program.path),
            Io::Files => {
                let mut shim = Command::new(std::env::current_exe().unwrap_or_else(|_| "smelt".into()));
                shim.arg("shim").arg(&self.job.program.path);
                shim
            }
        };
        command.arg("run").arg(&file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        programs::environment(&mut command, &self.job.run.env);
        command.env("SMELT_RUNNER_PID", std::process::id().to_string());
        command.envs(self.store.cache().map(Cache::variables).into_iter().flatten());
        child::end_with_me(&mut command);
        // A separate process group: Ctrl-C reaches only the runner, which then ends its jobs in order.
        command.process_group(0);
        let start_failed =
            |e| Diagnostic::new(ExitCode::Machine, format!("job `{}` cannot be started: {e}", self.job.name));
        let mut child = command.spawn().map_err(start_failed)?;
        let said = Mutex::new((None, None));
        let group = child.id();
        let (status, why) = child::listen(
            &mut child,
            |line| self.hear(line, rank, team, logs, &said),
            |line| logs.text(&team.tagged(rank, line)),
            |child| self.wait(child, team),
        );
        if child::end_group(group) {
            let stage = &self.job.program.description.name;
            self.view.warning(&self.job.name, stage, "it left processes behind; they were ended");
        }
        let (problem, committed) = said.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let code = status.map_or(ExitCode::Bug, child::code);
        let code = if why.is_some() { ExitCode::Again } else { code };
        let late = why.is_some() && !STOP.load(Ordering::SeqCst) && !team.is_over();
        let hint = status.filter(|_| why.is_none()).and_then(child::hint).map(str::to_owned);
        let why = why.unwrap_or_else(|| status.map_or_else(|| "it could not be waited for".into(), child::how));
        Ok(Ended { code, problem, committed, why, hint, late })
    }

    /// One line of the job's standard output: an event, or log text.
    fn hear(
        &self,
        line: &str,
        rank: u32,
        team: &Team,
        logs: &Logs,
        said: &Mutex<(Option<Problem>, Option<ArtifactRef>)>,
    ) {
        let (name, stage) = (&self.job.name, &self.job.program.description.name);
        let Ok(event) = serde_json::from_str::<Event>(line) else {
            logs.text(&team.tagged(rank, line));
            return;
        };
        logs.event(line);
        let said = || said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event.body {
            EventBody::Progress { phase, done, total, unit, note } => {
                if let Some(done) = team.progress(&phase, done) {
                    let progress = Progress { phase: &phase, done, total, unit: &unit, note: &note };
                    self.view.progress(name, stage, progress);
                }
            }
            EventBody::Warning { message } if team.is_news(rank, &message) => {
                self.view.warning(name, stage, &message);
            }
            EventBody::Error { problem, .. } => said().0 = Some(problem),
            EventBody::Committed { fingerprint, edition, .. } => {
                said().1 = Some(ArtifactRef { stage: stage.clone(), fingerprint, edition });
            }
            EventBody::Started { .. } | EventBody::Metrics { .. } | EventBody::Books(_) | EventBody::Warning { .. } => {
            }
        }
    }

    /// Waits for the process; ends it at its time limit, or when the run is stopped or needs it no more. The second
    /// value says why.
    fn wait(&self, child: &mut Child, team: &Team) -> (Option<std::process::ExitStatus>, Option<String>) {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return (Some(status), None),
                Err(_) => return (None, None),
                Ok(None) => {}
            }
            let late = self.job.timeout.filter(|t| started.elapsed().as_secs_f64() > *t);
            let needless = team.ends();
            if late.is_some() || needless.is_some() || STOP.load(Ordering::SeqCst) {
                let why = late.map_or_else(
                    || needless.unwrap_or("it was stopped").into(),
                    |t| format!("it took longer than its timeout of {}", crate::table::duration(t)),
                );
                return (end(child), Some(why));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

pub(crate) fn stopped() -> Diagnostic {
    Diagnostic::new(ExitCode::Again, "stopped").hint("what is finished is kept; the same command goes on from there")
}

/// Asks a process group to end, and kills it after two seconds.
fn end(child: &mut Child) -> Option<std::process::ExitStatus> {
    let process_group = -(child.id() as i32);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        // SAFETY: signals the group of a child that has not been waited for, so its number is still its own.
        unsafe { libc::kill(process_group, signal) };
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    child.wait().ok()
}

/// A local folder that is deleted with this value; if the process is killed, `sweep` of a later run deletes it.
pub(crate) struct Scratch(pub PathBuf);

impl Scratch {
    const PREFIX: &str = "smelt-";
    const OWNER: &str = "owner.json";

    pub(crate) fn new(run: &str, job: &str, rank: u32) -> Result<Self> {
        let name = format!("{}{run}-{}-{rank}-{}", Self::PREFIX, safe_name(job), std::process::id());
        let folder = std::env::temp_dir().join(name);
        let owner = serde_json::to_vec(&Owner::this_process()).expect("an owner is plain data");
        let made = std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join(Self::OWNER), owner))
            .and_then(|()| std::fs::create_dir_all(folder.join("scratch")));
        made.map_err(|e| {
            Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be made: {e}", folder.display()))
                .hint("set TMPDIR to a folder with space")
        })?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Removes the scratch folders of runners that were killed.
pub(crate) fn sweep() {
    let me = Owner::this_process();
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(Scratch::PREFIX) {
            continue;
        }
        let owner = std::fs::read(entry.path().join(Scratch::OWNER)).ok();
        if owner.and_then(|text| serde_json::from_slice::<Owner>(&text).ok()).is_some_and(|o| o.is_gone(&me)) {
            drop(std::fs::remove_dir_all(entry.path())); // somebody else's folder stays theirs
        }
    }
}

/// A job's log and events on their way into the store. S3 cannot append, so they are stored in parts; the last part is
/// rewritten as it grows, and a new one begins when it is large.
pub(crate) struct Logs {
    store: Store,
    folder: String,
    buffers: Mutex<Buffers>,
    /// Held while a part is written; new lines go into the buffers meanwhile and need not wait.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Buffers {
    text: Vec<u8>,
    events: Vec<u8>,
    part: u32,
    /// Bytes of `text` and `events` that are in the store.
    written: (usize, usize),
}

impl Logs {
    const BYTES: usize = 256 << 10;
    const EVERY: Duration = Duration::from_secs(1);

    fn new(store: &Store, run: &str, job: &str) -> Self {
        let folder = format!("runs/{run}/jobs/{}", safe_name(job));
        Self { store: store.clone(), folder, buffers: Mutex::default(), writing: Mutex::default() }
    }

    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn text(&self, line: &str) {
        self.push(|b| &mut b.text, line);
    }

    fn event(&self, line: &str) {
        self.push(|b| &mut b.events, line);
    }

    fn push(&self, which: impl Fn(&mut Buffers) -> &mut Vec<u8>, line: &str) {
        let mut buffers = self.buffers();
        let buffer = which(&mut buffers);
        buffer.extend_from_slice(line.as_bytes());
        buffer.push(b'\n');
        if buffers.text.len() + buffers.events.len() > Self::BYTES {
            drop(buffers);
            drop(self.flush()); // the thread of `Work::run` tries again
        }
    }

    fn flush(&self) -> smelt_store::Result<()> {
        let _held = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (part, text, events) = {
            let b = self.buffers();
            let fresh = |bytes: &Vec<u8>, written: usize| (bytes.len() > written).then(|| bytes.clone());
            (b.part, fresh(&b.text, b.written.0), fresh(&b.events, b.written.1))
        };
        for (kind, bytes) in [("log", &text), ("events", &events)] {
            if let Some(bytes) = bytes {
                self.store.put(&format!("{}/{kind}-{part:05}.txt", self.folder), bytes)?;
            }
        }
        let mut b = self.buffers();
        b.written = (text.map_or(b.written.0, |t| t.len()), events.map_or(b.written.1, |e| e.len()));
        if b.written.0 + b.written.1 > Self::BYTES {
            let (text, events) = b.written;
            b.text.drain(..text);
            b.events.drain(..events);
            (b.written, b.part) = ((0, 0), part + 1);
        }
        Ok(())
    }
}
