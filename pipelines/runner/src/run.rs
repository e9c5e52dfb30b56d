//! Runs what must run: ready jobs in parallel within the machine's cores, until all are done or one fails.

use crate::diagnostic::Result;
use crate::job::{self, STOP, Work};
use crate::load::{Input, Instance, Plan};
use crate::plan::{self, Done, State};
use crate::query;
use crate::table::duration;
use crate::view::{Mode, View};
use serde_json::{Value, json};
use smelt_schemas::{ArtifactRef, Cores, Device, Manifest};
use smelt_store::{Error, Owner, Pointer, RENEW, RunRecord, RunState, Running, Store};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Instant;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Which jobs may run; all when empty.
    pub wanted: Option<Vec<bool>>,
    /// Jobs to run again although they are cached: each commits its next edition.
    pub again: Vec<usize>,
    pub retries: Option<u32>,
    pub mode: Mode,
    pub cores: Option<usize>,
    /// The store has no create-only puts, and the user starts one run at a time.
    pub single_writer: bool,
    /// When this program started: what a user waits for begins there.
    pub begun: Instant,
}

/// What a run did.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub ran: usize,
    pub cached: usize,
    pub reproduced: Vec<String>,
}

/// Ctrl-C and SIGTERM end the jobs and keep their work; a second Ctrl-C ends the runner at once.
pub(crate) fn catch_signals() {
    extern "C" fn stop(signal: libc::c_int) {
        if STOP.swap(true, Ordering::SeqCst) {
            // SAFETY: `_exit` may be called from a signal handler.
            unsafe { libc::_exit(128 + signal) };
        }
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only swaps an atomic and may leave.
        unsafe { libc::signal(signal, stop as *const () as libc::sighandler_t) };
    }
}

/// A name for a run; names sort by time.
fn new_run() -> String {
    let now = smelt_store::now();
    let stamp: String = crate::table::time(now).chars().filter(|c| c.is_ascii_digit()).collect();
    let milliseconds = (now.fract() * 1000.0) as u32;
    format!("{}-{}.{milliseconds:03}-{}", &stamp[..8], &stamp[8..], &smelt_store::unique()[..4])
}

/// A job that must run: why, and as which edition.
struct Ready {
    recipe: plan::Recipe,
    why: String,
    edition: u32,
}

/// The GPU that a job computes on.
fn gpu_of(job: &Instance) -> Option<u32> {
    match job.run.device {
        Device::Cuda(number) => Some(number),
        Device::Auto if Path::new("/dev/nvidiactl").exists() => Some(0),
        Device::Auto | Device::Cpu => None,
    }
}

struct Runner<'a> {
    plan: &'a Plan,
    store: &'a Store,
    options: &'a Options,
    view: &'a View,
    run: String,
    done: Done,
    /// Jobs that were started, are cached, or are not wanted.
    settled: Vec<bool>,
    /// Jobs that must run and wait for free cores.
    ready: HashMap<usize, Ready>,
    running: Vec<Running>,
    began: bool,
    started: f64,
    owner: Owner,
    facts: Vec<Value>,
    summary: Summary,
}

pub(crate) fn run(plan: &Plan, store: &Store, options: &Options) -> Result<Summary> {
    let view =
        View::new(options.mode, plan.jobs.iter().map(|j| (j.name.chars().count(), j.program.description.name.len())));
    let n = plan.jobs.len();
    let wanted = options.wanted.clone().unwrap_or_else(|| vec![true; n]);
    let mut runner = Runner {
        plan,
        store,
        options,
        view: &view,
        run: new_run(),
        done: vec![None; n],
        settled: wanted.iter().map(|w| !w).collect(),
        ready: HashMap::new(),
        running: Vec::new(),
        began: false,
        started: smelt_store::now(),
        owner: Owner::this_process(),
        facts: Vec::new(),
        summary: Summary::default(),
    };
    let result = runner.work();
    if runner.began || !plan.views.sql.is_empty() {
        store.set_views(&plan.name, &plan.views.sql)?;
    }
    if runner.began {
        let state = match &result {
            Ok(()) => RunState::Done,
            Err(_) if STOP.load(Ordering::SeqCst) => RunState::Stopped,
            Err(_) => RunState::Failed,
        };
        let recorded = runner.record(state);
        result?;
        recorded?;
        let s = &runner.summary;
        view.note(&format!(
            "{} jobs in {}, {} cached; store {}, run {}",
            s.ran,
            duration(options.begun.elapsed().as_secs_f64()),
            s.cached,
            store.address(),
            runner.run
        ));
    } else {
        result?;
        view.note(&format!(
            "{}: nothing to do, {} jobs cached ({:.2} s)",
            plan.name,
            runner.summary.cached,
            options.begun.elapsed().as_secs_f64()
        ));
    }
    Ok(runner.summary)
}

impl Runner<'_> {
    fn work(&mut self) -> Result<()> {
        let cores =
            self.options.cores.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
        let (send, receive) = mpsc::channel::<(usize, usize, Result<Manifest>)>();
        let (plan, store, view, run) = (self.plan, self.store, self.view, self.run.clone());
        let store_flag = plan.store_flag();
        let store_flag = store_flag.as_str();
        std::thread::scope(|scope| {
            let (mut free, mut running, mut failure) = (cores, 0usize, None);
            loop {
                if failure.is_none() && !STOP.load(Ordering::SeqCst) {
                    match self.start_ready(cores, &mut free, &mut running, |i, recipe, edition, threads, retries| {
                        let (send, run) = (send.clone(), run.clone());
                        scope.spawn(move || {
                            let work = Work {
                                job: &plan.jobs[i],
                                recipe: &recipe,
                                store,
                                run: &run,
                                edition,
                                threads,
                                retries,
                                store_flag,
                                view,
                            };
                            // The receiver lives until every job has reported.
                            drop(send.send((i, threads, work.run())));
                        });
                    }) {
                        Ok(()) => {}
                        Err(e) => failure = Some(e),
                    }
                }
                if running == 0 {
                    break;
                }
                let (i, threads, result) = match receive.recv_timeout(RENEW) {
                    Ok(ended) => ended,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        // Shows that the runner is alive. If the store does not answer now, the next record does it.
                        drop(self.record(RunState::Running));
                        continue;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                };
                (free, running) = (free + threads, running - 1);
                self.running.retain(|r| r.job != plan.jobs[i].name);
                match result.and_then(|manifest| self.finish(i, manifest)) {
                    Ok(()) => {}
                    Err(e) => {
                        self.facts.push(json!({ "job": plan.jobs[i].name, "state": "failed", "error": e.message }));
                        failure.get_or_insert(e);
                    }
                }
            }
            match failure {
                Some(e) => Err(e),
                None if STOP.load(Ordering::SeqCst) && self.settled.iter().any(|s| !s) => Err(job::stopped()),
                None => Ok(()),
            }
        })
    }

    /// Starts every job whose inputs are there, as long as cores are free; settles those that are cached.
    fn start_ready(
        &mut self,
        cores: usize,
        free: &mut usize,
        running: &mut usize,
        mut spawn: impl FnMut(usize, plan::Recipe, u32, usize, Option<u32>),
    ) -> Result<()> {
        let (mut settled_one, mut started_one) = (true, false);
        while std::mem::take(&mut settled_one) {
            for i in 0..self.plan.jobs.len() {
                let job = &self.plan.jobs[i];
                if self.settled[i] {
                    continue;
                }
                let stage = &job.program.description.name;
                if !self.ready.contains_key(&i) {
                    let Ok(recipe) = plan::recipe(self.plan, job, &self.done) else { continue };
                    let (state, is_pointed_at) = plan::look_up(self.store, self.plan, job, &recipe)?;
                    let again = self.options.again.contains(&i);
                    let taken = again || matches!(state, State::Damaged);
                    let why = match state {
                        State::Cached(manifest) if !again => {
                            self.settled[i] = true;
                            settled_one = true;
                            self.summary.cached += 1;
                            self.facts.push(facts(&job.name, "cached", &manifest));
                            if self.began {
                                self.view.cached(&job.name, stage, &manifest.books.summary("rows"));
                            }
                            if !is_pointed_at {
                                self.point(i, &manifest)?;
                            }
                            self.done[i] = Some(*manifest);
                            continue;
                        }
                        State::Cached(_) => "again".to_owned(),
                        State::New(_) | State::Damaged => state.words().1.to_owned(),
                        State::After(_) => continue,
                    };
                    let edition = match taken {
                        true => self.store.editions(stage, &recipe.fingerprint)?.last().map_or(0, |e| e + 1),
                        false => 0,
                    };
                    self.ready.insert(i, Ready { recipe, why, edition });
                }
                let claim = job.run.threads.unwrap_or(match job.program.description.cores {
                    Cores::One => 1,
                    Cores::All => cores,
                });
                let claim = claim.max(job.run.workers.unwrap_or(1)).clamp(1, cores);
                if claim > *free {
                    continue;
                }
                if gpu_of(job).is_some_and(|gpu| self.is_taken(gpu)) {
                    continue;
                }
                if !self.began {
                    self.begin()?;
                }
                let Some(Ready { recipe, why, edition }) = self.ready.remove(&i) else { continue };
                self.settled[i] = true;
                *free -= claim;
                *running += 1;
                started_one = true;
                self.view.started(&job.name, stage, &why);
                self.running.push(Running {
                    job: job.name.clone(),
                    stage: stage.clone(),
                    fingerprint: recipe.fingerprint.clone(),
                    started: smelt_store::now(),
                    axes: job.axes.clone(),
                });
                spawn(i, recipe, edition, claim, self.options.retries);
            }
        }
        if started_one {
            // So that `status` shows it. If the store does not answer now, the next record does it.
            drop(self.record(RunState::Running));
        }
        Ok(())
    }

    /// Whether a running job computes on this GPU, whose memory is enough for one.
    fn is_taken(&self, gpu: u32) -> bool {
        let is_running = |job: &Instance| self.running.iter().any(|running| running.job == job.name);
        self.plan.jobs.iter().any(|job| gpu_of(job) == Some(gpu) && is_running(job))
    }

    /// Before the first job: the store must be writable, and safe for two runs at once.
    fn begin(&mut self) -> Result<()> {
        query::check_report(self.store, self.plan)?;
        job::sweep();
        self.store.probe(self.options.single_writer)?;
        self.began = true;
        let cached = self.summary.cached;
        let note = if cached > 0 { format!(", {cached} cached") } else { String::new() };
        self.view.note(&format!(
            "{}: {} jobs{note}, store {}, run {}",
            self.plan.name,
            self.plan.jobs.len(),
            self.store.address(),
            self.run
        ));
        self.record(RunState::Running)
    }

    fn finish(&mut self, i: usize, manifest: Manifest) -> Result<()> {
        let job = &self.plan.jobs[i];
        let mut summary = summarise(&manifest);
        if self.options.again.contains(&i)
            && let Some(before) = (0..manifest.edition).next_back()
            && let Some(before) = self.before(&ArtifactRef { edition: before, ..manifest.artifact() })?
        {
            if manifest.reproduces(&before) {
                self.summary.reproduced.push(job.name.clone());
                summary += ", reproduced";
            } else {
                summary += ", other bytes than before";
            }
        }
        self.view.done(&job.name, &job.program.description.name, &summary, manifest.provenance.seconds);
        self.point(i, &manifest)?;
        self.facts.push(facts(&job.name, "done", &manifest));
        self.summary.ran += 1;
        self.done[i] = Some(manifest);
        Ok(())
    }

    /// Makes the pipeline's job mean this artifact, if it does not already.
    fn point(&self, i: usize, manifest: &Manifest) -> Result<()> {
        let Instance { name, axes, .. } = &self.plan.jobs[i];
        let artifact = manifest.artifact();
        if self.store.pointer(&self.plan.name, name)?.is_some_and(|p| p.artifact == artifact) {
            return Ok(());
        }
        let pointer = Pointer { artifact, time: smelt_store::now(), run: self.run.clone(), axes: axes.clone() };
        Ok(self.store.point(&self.plan.name, name, &pointer)?)
    }

    /// An earlier edition, if it is there and whole.
    fn before(&self, artifact: &ArtifactRef) -> Result<Option<Manifest>> {
        match self.store.manifest(artifact) {
            Err(Error::Corrupt { .. }) => Ok(None),
            other => Ok(other?),
        }
    }

    fn record(&self, state: RunState) -> Result<()> {
        let now = smelt_store::now();
        let fixed = |i: &Input| if let Input::Fixed(i) = i { Some(i.artifact.clone()) } else { None };
        let fixed = self.plan.jobs.iter().flat_map(|j| j.inputs.values().flatten()).filter_map(fixed);
        Ok(self.store.record_run(&RunRecord {
            run: self.run.clone(),
            pipeline: self.plan.name.clone(),
            file: self.plan.file.clone(),
            folder: std::env::current_dir().unwrap_or_default().display().to_string(),
            set: self.plan.set.clone(),
            state,
            started: self.started,
            renewed: now,
            ended: (state != RunState::Running).then_some(now),
            owner: Some(self.owner.clone()),
            holds: self.done.iter().flatten().map(Manifest::artifact).chain(fixed).collect(),
            jobs: self.facts.clone(),
            running: if state == RunState::Running { self.running.clone() } else { Vec::new() },
        })?)
    }
}

/// What the record of a run says of a job that has an artifact.
fn facts(job: &str, state: &str, manifest: &Manifest) -> Value {
    let p = &manifest.provenance;
    json!({
        "job": job, "state": state, "stage": manifest.stage, "fingerprint": manifest.fingerprint,
        "edition": manifest.edition, "seconds": p.seconds, "peak_memory_bytes": p.peak_memory_bytes,
    })
}

/// One line about what a job made.
pub(crate) fn summarise(manifest: &Manifest) -> String {
    if manifest.books != Default::default() {
        return format!("{}, {}", manifest.books.summary("rows"), crate::table::bytes(manifest.bytes()));
    }
    crate::table::bytes(manifest.bytes())
}
