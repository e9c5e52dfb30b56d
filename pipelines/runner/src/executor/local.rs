//! Jobs as processes of this machine: their environment, events, logs, time limit and retries.

use super::Executor;
use super::cgroup::{Cgroups, Group};
use crate::diagnostic::{Diagnostic, Result};
use crate::job::{Logs, SAVE, STOP, Scratch, Work, stopped};
use crate::load::Instance;
use crate::resources::{Budget, Claim, Granted};
use crate::team::Team;
use crate::view::Progress;
use crate::{child, programs};
use smelt_schemas::{ArtifactRef, Event, EventBody, ExitCode, Invocation, Io, Manifest, PROTOCOL, Problem};
use smelt_store::Cache;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Which processes of a job run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    /// The others run elsewhere, and all tell the store who does what.
    Worker(u32),
    Rank(Rank),
}

/// One of the processes that compute together, each on a machine of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rank {
    pub rank: u32,
    pub ranks: u32,
    /// How they find each other: see `exec`.
    pub variables: Vec<(&'static str, String)>,
}

pub(crate) struct Local {
    pub part: Part,
    /// Begins the names of its logs, if processes elsewhere write some too.
    pub writer: String,
    /// Holds jobs to their `memory`, where that is possible. A cluster does it itself.
    pub cgroups: Option<Cgroups>,
}

impl Local {
    /// All of a job.
    pub(crate) fn whole() -> Self {
        let cgroups = Cgroups::here().ok();
        cgroups.iter().for_each(Cgroups::sweep);
        Self { part: Part::All, writer: String::new(), cgroups }
    }
}

impl Executor for Local {
    fn claim(&self, job: &Instance, budget: &Budget) -> Claim {
        budget.claim(job)
    }

    /// All workers of the job, until one has committed and the others have seen it, or one has failed. Temporary
    /// failures are tried again.
    fn run(&self, work: &Work, granted: &Granted) -> Result<Manifest> {
        let logs = Logs::new(work.store, work.run, &work.job.name, &self.writer);
        let workers = work.job.run.workers.unwrap_or(1);
        let (team, here) = match &self.part {
            Part::All => (Team::new(workers), 0..workers as u32),
            Part::Worker(rank) => (Team::new(workers), *rank..*rank + 1),
            Part::Rank(Rank { rank, ranks, .. }) => (Team::new(*ranks as usize), *rank..*rank + 1),
        };
        let limit = self.cgroups.as_ref().zip(work.job.limits.memory);
        // Where it cannot be made, the job runs as it does on a machine without.
        let group = limit.and_then(|(cgroups, bytes)| cgroups.group(work.run, &work.job.name, bytes).ok());
        let group = group.as_ref();
        let (result, flushed) = logs.writing(|| {
            std::thread::scope(|scope| {
                for rank in here {
                    let worker = Worker { work, granted, part: &self.part, rank, team: &team, logs: &logs, group };
                    scope.spawn(move || worker.run());
                }
            });
            team.result()
        });
        let manifest = result?;
        flushed?;
        Ok(manifest)
    }
}

/// One of the processes that do a job together.
struct Worker<'a> {
    work: &'a Work<'a>,
    granted: &'a Granted,
    part: &'a Part,
    rank: u32,
    team: &'a Team,
    logs: &'a Logs,
    /// Of the job, if it is held to its memory.
    group: Option<&'a Group>,
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

/// What a process said of its end.
#[derive(Default)]
struct Said {
    problem: Option<Problem>,
    committed: Option<ArtifactRef>,
}

impl Worker<'_> {
    fn run(&self) {
        match self.try_often() {
            Ok(manifest) => manifest.map_or((), |manifest| self.team.commit(manifest)),
            Err(e) => self.team.fail(e),
        }
    }

    /// Until the manifest is committed: `None` if others have done that, or have failed.
    fn try_often(&self) -> Result<Option<Manifest>> {
        let (work, team) = (self.work, self.team);
        let (name, stage) = (&work.job.name, &work.job.program.description.name);
        for attempt in 0.. {
            let ended = self.once()?;
            if ended.code == ExitCode::Done {
                let artifact = ended.committed.ok_or_else(|| {
                    Diagnostic::new(ExitCode::Bug, format!("job `{name}`: stage `{stage}` ended without a commit"))
                })?;
                return work.manifest(&artifact).map(Some);
            }
            if STOP.load(Ordering::SeqCst) {
                return Err(stopped());
            }
            if SAVE.load(Ordering::SeqCst) {
                let said = ended.problem.map_or(ended.why, |problem| problem.message);
                return Err(Diagnostic::new(ended.code, format!("job `{name}`: {said}")));
            }
            if team.is_over() {
                return Ok(None);
            }
            if ended.code != ExitCode::Again || ended.late || attempt >= work.retries() {
                let problem = ended.problem.unwrap_or(Problem { message: ended.why, ..Problem::default() });
                let more_time = "give it more with `run: { timeout: … }`; saved work is kept";
                let hint = ended.hint.or_else(|| ended.late.then(|| more_time.into()));
                return Err(work.failed(ended.code, &team.named(self.rank), problem, hint));
            }
            let wait = (0.5 * f64::from(1 << attempt.min(6))).min(30.0);
            let why = ended.problem.map_or(ended.why, |p| p.message);
            work.view.again(name, stage, &why, wait);
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

    /// One process, from its start to its end.
    fn once(&self) -> Result<Ended> {
        let (job, team) = (self.work.job, self.team);
        let scratch = Scratch::new(self.work.run, &job.name, self.rank)?;
        let mut child = self.start(&scratch)?;
        let said = Mutex::new(Said::default());
        let group = child.id();
        let (status, why) = child::listen(
            &mut child,
            |line| self.hear(line, &said),
            |line| self.logs.text(&team.tagged(self.rank, line)),
            |child| self.wait(child),
        );
        if child::end_group(group) {
            let stage = &job.program.description.name;
            self.work.view.warning(&job.name, stage, "it left processes behind; they were ended");
        }
        let Said { problem, committed } = said.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let code = status.map_or(ExitCode::Bug, child::code);
        let code = if why.is_some() { ExitCode::Again } else { code };
        let is_killed = why.is_none() && status.is_some_and(|status| status.signal() == Some(libc::SIGKILL));
        if let Some(exceeded) = self.group.filter(|_| is_killed).and_then(Group::exceeded) {
            // It would be again.
            let (code, asked) = (ExitCode::Pipeline, job.run.memory.as_deref().unwrap_or_default());
            let problem = Some(exceeded.problem(asked));
            return Ok(Ended { code, problem, committed: None, why: String::new(), hint: None, late: false });
        }
        let late = why.is_some() && !STOP.load(Ordering::SeqCst) && !team.is_over();
        let hint = status.filter(|_| why.is_none()).and_then(child::hint).map(str::to_owned);
        let why = why.unwrap_or_else(|| status.map_or_else(|| "it could not be waited for".into(), child::how));
        Ok(Ended { code, problem, committed, why, hint, late })
    }

    fn invocation(&self, scratch: &Scratch) -> Invocation {
        let (work, job) = (self.work, self.work.job);
        let processes = job.run.workers.unwrap_or(1).max(1) as u64;
        Invocation {
            protocol: PROTOCOL,
            run: work.run.into(),
            job: job.name.clone(),
            stage: job.program.description.name.clone(),
            version: job.program.description.version,
            fingerprint: work.recipe.fingerprint.clone(),
            config: job.resolved.config.clone(),
            sources: job.resolved.sources.clone(),
            inputs: work.recipe.inputs.clone(),
            store: work.store.address().into(),
            edition: work.edition,
            threads: match self.part {
                Part::All => self.team.share(self.granted.cores, self.rank),
                // What was granted is this process's alone.
                Part::Worker(_) | Part::Rank(_) => self.granted.cores,
            },
            memory: job.limits.memory.map(|bytes| bytes / processes),
            rank: self.rank,
            device: job.run.device,
            save: job.run.save,
            scratch: scratch.0.join("scratch"),
        }
    }

    fn start(&self, scratch: &Scratch) -> Result<Child> {
        let job = self.work.job;
        let file = scratch.0.join("invocation.json");
        let text = serde_json::to_vec_pretty(&self.invocation(scratch)).expect("an invocation is plain data");
        std::fs::write(&file, text)
            .map_err(|e| Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be written: {e}", file.display())))?;
        let mut command = match job.program.description.io {
            Io::Store => Command::new(&job.program.path),
            Io::Files => {
                let mut shim = Command::new(std::env::current_exe().unwrap_or_else(|_| "smelt".into()));
                shim.arg("shim").arg(&job.program.path);
                shim
            }
        };
        command.arg("run").arg(&file);
        if let (Part::Rank(rank), Io::Files) = (self.part, job.program.description.io) {
            command.arg("--ranks").arg(rank.ranks.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        programs::environment(&mut command, &job.run.env);
        if let Some(gpus) = &self.granted.visible {
            command.env("CUDA_VISIBLE_DEVICES", gpus);
        }
        if let Part::Rank(rank) = self.part {
            command.envs(rank.variables.iter().map(|(name, value)| (name, value)));
        }
        command.env("SMELT_RUNNER_PID", std::process::id().to_string());
        command.envs(self.work.store.cache().map(Cache::variables).into_iter().flatten());
        child::end_with_me(&mut command);
        let failed = |e| Diagnostic::new(ExitCode::Machine, format!("job `{}` cannot be started: {e}", job.name));
        self.group.map_or(Ok(()), |group| group.enter(&mut command)).map_err(failed)?;
        // A separate process group: Ctrl-C reaches only the runner, which then ends its jobs in order.
        command.process_group(0);
        command.spawn().map_err(failed)
    }

    /// One line of the job's standard output: an event, or log text.
    fn hear(&self, line: &str, said: &Mutex<Said>) {
        let (view, name, stage) = (self.work.view, &self.work.job.name, &self.work.job.program.description.name);
        let Ok(event) = serde_json::from_str::<Event>(line) else {
            self.logs.text(&self.team.tagged(self.rank, line));
            return;
        };
        self.logs.event(line);
        let said = || said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event.body {
            EventBody::Progress { phase, done, total, unit, note } => {
                if let Some(done) = self.team.progress(&phase, done) {
                    view.progress(name, stage, Progress { phase: &phase, done, total, unit: &unit, note: &note });
                }
            }
            EventBody::Warning { message } if self.team.is_news(self.rank, &message) => {
                view.warning(name, stage, &message);
            }
            EventBody::Error { problem, .. } => said().problem = Some(problem),
            EventBody::Committed { fingerprint, edition, .. } => {
                said().committed = Some(ArtifactRef { stage: stage.clone(), fingerprint, edition });
            }
            EventBody::Started { .. } | EventBody::Metrics { .. } | EventBody::Books(_) | EventBody::Warning { .. } => {
            }
        }
    }

    /// Waits for the process; ends it at its time limit, or when the run is stopped or needs it no more. The second
    /// value says why.
    fn wait(&self, child: &mut Child) -> (Option<ExitStatus>, Option<String>) {
        let started = Instant::now();
        let (mut pause, mut is_told) = (Duration::from_millis(1), false);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return (Some(status), None),
                Err(_) => return (None, None),
                Ok(None) => {}
            }
            let late = self.work.job.limits.timeout.filter(|t| started.elapsed().as_secs_f64() > *t);
            let needless = self.team.ends();
            if late.is_some() || needless.is_some() || STOP.load(Ordering::SeqCst) {
                let why = late.map_or_else(
                    || needless.unwrap_or("it was stopped").into(),
                    |t| format!("it took longer than its timeout of {}", crate::table::duration(t)),
                );
                return (end(child), Some(why));
            }
            if SAVE.load(Ordering::SeqCst) && !is_told {
                if self.work.job.program.description.io == Io::Files {
                    return (end(child), Some("its time on the node is over".into()));
                }
                // SAFETY: a child that has not been waited for, so its number is still its own.
                unsafe { libc::kill(child.id() as i32, libc::SIGUSR1) };
                is_told = true;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// Asks a process group to end, and kills it after two seconds.
fn end(child: &mut Child) -> Option<ExitStatus> {
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
