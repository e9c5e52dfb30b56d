//! Runs what must run: ready jobs in parallel within a budget of cores, memory and GPUs, until all are done or one
//! fails.

use crate::asked::{Asked, next_edition};
use crate::diagnostic::{Diagnostic, Result};
use crate::executor::Executors;
use crate::executor::kubernetes::{self, Kubernetes};
use crate::executor::local::Local;
use crate::executor::slurm::{self, Slurm, Submissions};
use crate::job::{self, STOP, Work};
use crate::load::{Input, Instance, Plan};
use crate::lock::Lock;
use crate::plan::{self, Done, Gate, State};
use crate::query;
use crate::resources::{Budget, Free, Given, Granted};
use crate::schedule::Schedule;
use crate::table::duration;
use crate::traces;
use crate::view::{Mode, View};
use serde_json::{Value, json};
use smelt_schemas::{ArtifactRef, Executor as Where, ExitCode, Manifest, OnFailure};
use smelt_store::{Error, Owner, Pointer, RENEW, RunRecord, RunState, Running, Store};
use std::collections::BTreeMap;
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
    pub budget: Given,
    /// The store has no create-only puts, and the user starts one run at a time.
    pub single_writer: bool,
    /// The programs that nodes of a cluster must run it with.
    pub locked: Option<Lock>,
    /// When this program started: what a user waits for begins there.
    pub begun: Instant,
}

/// What a run did.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub ran: usize,
    pub cached: usize,
    pub skipped: usize,
    pub reproduced: Vec<String>,
}

impl Summary {
    fn skipped_words(&self) -> String {
        if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() }
    }
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

/// An earlier run of the same pipeline, text and settings, whose runner is gone and of which a cluster may still have
/// jobs: this runner goes on with it.
struct Adopted {
    run: String,
    started: f64,
    facts: Vec<Value>,
    submissions: Submissions,
}

fn adopt(plan: &Plan, store: &Store, asked: &Asked, wanted: &[bool]) -> Result<Option<Adopted>> {
    let tasks = match slurm::is_wanted(plan, wanted) {
        false => Vec::new(),
        true => slurm::queue::queued().map_err(|why| {
            let what = format!("Slurm does not answer, and may have jobs of an earlier run: {why}");
            Diagnostic::new(ExitCode::Again, what).hint("start again when `squeue --me` answers")
        })?,
    };
    // Names of Jobs follow from the run, so the same run finds its own again without asking.
    let in_pods = kubernetes::is_wanted(plan, wanted);
    for record in store.runs()?.into_iter().rev().filter(|record| record.pipeline == plan.name) {
        let submissions = slurm::submissions(&tasks, &record.run, plan);
        let was_left = in_pods && matches!(record.state, RunState::Stopped | RunState::Interrupted);
        if (submissions.is_empty() && !was_left) || record.state == RunState::Running {
            continue;
        }
        let Ok(before) = Asked::read(store, &record.run) else { continue };
        let texts = (&before.text, &before.included) == (&asked.text, &asked.included);
        if texts && (&before.set, &before.again) == (&asked.set, &asked.again) {
            let done = |fact: &Value| fact["state"] == json!("done");
            return Ok(Some(Adopted {
                run: record.run,
                started: record.started,
                facts: record.jobs.into_iter().filter(done).collect(),
                submissions,
            }));
        }
        let ids: Vec<String> = slurm::ids(&tasks, &record.run).iter().map(u64::to_string).collect();
        let (ids, run) = (ids.join(", "), record.run);
        if !ids.is_empty() {
            eprintln!("warning: Slurm still has jobs of another version of this pipeline: {ids}");
            eprintln!("hint: `smelt cancel {run}` ends them");
        }
    }
    Ok(None)
}

/// A job that must run: why, and as which edition.
struct Ready {
    recipe: plan::Recipe,
    why: String,
    edition: u32,
}

struct Runner<'a> {
    plan: &'a Plan,
    store: &'a Store,
    options: &'a Options,
    view: &'a View,
    executors: &'a Executors<'a>,
    /// Why it is not known whether a cluster has jobs of an earlier run.
    silent: Option<Diagnostic>,
    /// That this is an earlier run, and what a cluster has of it; nothing if it is a new one.
    taken_over: Option<String>,
    asked: Asked,
    run: String,
    done: Done,
    /// Jobs that never will be done: they failed, or were skipped.
    lost: Vec<bool>,
    schedule: Schedule,
    /// Jobs that must run and wait for what they claim.
    ready: BTreeMap<usize, Ready>,
    budget: Budget,
    free: Free,
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
    let budget = Budget::of_machine(options.budget);
    let mut here = plan.jobs.iter().zip(&wanted).filter(|(job, wanted)| **wanted && job.run.executor == Where::Local);
    here.try_for_each(|(job, _)| budget.check(job))?;
    slurm::check(plan, &wanted)?;
    kubernetes::check(plan, store, &wanted)?;
    let asked = Asked::new(plan, options);
    let (adopted, silent) = match slurm::is_wanted(plan, &wanted) || kubernetes::is_wanted(plan, &wanted) {
        true => adopt(plan, store, &asked, &wanted).map_or_else(|e| (None, Some(e)), |adopted| (adopted, None)),
        false => (None, None),
    };
    let taken_over = adopted.as_ref().map(|adopted| match adopted.submissions.len() {
        0 => "goes on with a run that was interrupted".to_owned(),
        count => format!("goes on with what Slurm has of this run: {count}"),
    });
    let Adopted { run, started, facts, submissions } = adopted.unwrap_or_else(|| Adopted {
        run: new_run(),
        started: smelt_store::now(),
        facts: Vec::new(),
        submissions: Submissions::new(),
    });
    let executors = Executors {
        local: Local::whole(),
        slurm: Slurm::new(plan, store, &view, &run, submissions),
        kubernetes: Kubernetes::new(plan, store, &view, &run),
    };
    let mut runner = Runner {
        plan,
        store,
        options,
        view: &view,
        executors: &executors,
        silent,
        taken_over,
        asked,
        run,
        done: vec![None; n],
        lost: vec![false; n],
        schedule: Schedule::new(plan.jobs.iter().map(Instance::needs), &wanted),
        ready: BTreeMap::new(),
        free: Free::all_of(budget.clone()),
        budget,
        running: Vec::new(),
        began: false,
        started,
        owner: Owner::this_process(),
        facts,
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
        traces::send(store, &runner.run);
        result?;
        recorded?;
        let s = &runner.summary;
        view.note(&format!(
            "{} jobs in {}, {} cached{}; store {}, run {}",
            s.ran,
            duration(options.begun.elapsed().as_secs_f64()),
            s.cached,
            s.skipped_words(),
            store.address(),
            runner.run
        ));
    } else {
        result?;
        view.note(&format!(
            "{}: nothing to do, {} jobs cached{} ({:.2} s)",
            plan.name,
            runner.summary.cached,
            runner.summary.skipped_words(),
            options.begun.elapsed().as_secs_f64()
        ));
    }
    Ok(runner.summary)
}

/// What a thread reports of its job: its place, what it held, what came of it.
type Report = (usize, Granted, Result<Manifest>);

impl Runner<'_> {
    fn work(&mut self) -> Result<()> {
        let (send, receive) = mpsc::channel::<Report>();
        let (plan, store, view, run) = (self.plan, self.store, self.view, self.run.clone());
        let (store_flag, retries) = (plan.store_flag(), self.options.retries);
        let (run, store_flag) = (run.as_str(), store_flag.as_str());
        let executors = self.executors;
        std::thread::scope(|scope| {
            let (mut running, mut failures) = (0usize, Vec::new());
            let keeps_on = plan.on_failure == OnFailure::Continue;
            loop {
                if (failures.is_empty() || keeps_on) && !STOP.load(Ordering::SeqCst) {
                    let started = self.start_ready(|place, Ready { recipe, edition, .. }, granted| {
                        let send = send.clone();
                        running += 1;
                        scope.spawn(move || {
                            let (job, recipe) = (&plan.jobs[place], &recipe);
                            let work = Work { job, place, recipe, store, run, edition, retries, store_flag, view };
                            let done = executors.of(job).run(&work, &granted);
                            // The receiver lives until every job has reported.
                            drop(send.send((place, granted, done)));
                        });
                    });
                    failures.extend(started.err());
                }
                if running == 0 {
                    break;
                }
                let (place, granted, result) = match receive.recv_timeout(RENEW) {
                    Ok(ended) => ended,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        // Shows that the runner is alive. If the store does not answer now, the next record does it.
                        drop(self.record(RunState::Running));
                        continue;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                };
                running -= 1;
                self.free.give_back(&granted);
                self.running.retain(|r| r.job != plan.jobs[place].name);
                if let Err(e) = result.and_then(|manifest| self.finish(place, manifest)) {
                    self.lose(place, &e);
                    failures.push(e);
                    if !keeps_on && !STOP.load(Ordering::SeqCst) {
                        let waiting = self.schedule.waiting();
                        waiting.into_iter().for_each(|i| executors.of(&plan.jobs[i]).withdraw(i));
                    }
                }
            }
            // The first one is returned, and told last.
            failures.iter().skip(1).filter(|_| keeps_on).for_each(Diagnostic::print);
            match failures.into_iter().next() {
                Some(e) if e == job::stopped() => Err(self.stopped()),
                Some(e) => Err(e),
                None if STOP.load(Ordering::SeqCst) && !self.schedule.is_over() => Err(self.stopped()),
                None => Ok(()),
            }
        })
    }

    /// This job has failed for good.
    fn lose(&mut self, place: usize, e: &Diagnostic) {
        self.facts.push(json!({ "job": self.plan.jobs[place].name, "state": "failed", "error": e.message }));
        self.lost[place] = true;
        self.schedule.settle(place);
    }

    /// What is told after Ctrl-C.
    fn stopped(&self) -> Diagnostic {
        let jobs = |count: usize| if count == 1 { "1 job".to_owned() } else { format!("{count} jobs") };
        let left = match (self.executors.slurm.left(), self.executors.kubernetes.left()) {
            (0, 0) => return job::stopped(),
            (slurm, 0) => format!("Slurm goes on with {}", jobs(slurm)),
            (slurm, pods) => format!("the cluster goes on with {}", jobs(slurm + pods)),
        };
        Diagnostic::new(ExitCode::Again, format!("stopped here; {left}"))
            .hint(format!("the same command goes on with them, `smelt cancel {}` ends them", self.run))
    }

    /// Looks at every job that is due, once, and starts every one that must run, as far as the budget lasts.
    fn start_ready(&mut self, mut spawn: impl FnMut(usize, Ready, Granted)) -> Result<()> {
        let (mut place, mut started_one) = (0, false);
        // What becomes due comes after what it needs, so one pass finds all.
        loop {
            let ready = self.ready.range(place..).next().map(|(&ready, _)| ready);
            let Some(next) = self.schedule.due_from(place).into_iter().chain(ready).min() else { break };
            place = next + 1;
            if !self.ready.contains_key(&next) && !self.look_up(next)? {
                continue;
            }
            let job = &self.plan.jobs[next];
            let Some(granted) = self.free.take(&self.executors.of(job).claim(job, &self.budget)) else { continue };
            if !self.began {
                self.begin()?;
            }
            let Some(ready) = self.ready.remove(&next) else { continue };
            started_one = true;
            let stage = &job.program.description.name;
            self.view.started(&job.name, stage, &ready.why);
            if let Err(e) = self.executors.of(job).queue(next, &|need| self.done[need].is_some()) {
                self.free.give_back(&granted);
                self.lose(next, &e);
                return Err(e);
            }
            self.running.push(Running {
                job: job.name.clone(),
                stage: stage.clone(),
                fingerprint: ready.recipe.fingerprint.clone(),
                started: smelt_store::now(),
                axes: job.axes.clone(),
            });
            spawn(next, ready, granted);
        }
        if self.began {
            let is_done = |place: usize| self.done[place].is_some();
            let waiting = self.schedule.waiting();
            waiting.into_iter().try_for_each(|i| self.executors.of(&self.plan.jobs[i]).queue(i, &is_done))?;
        }
        if started_one {
            // So that `status` shows it. If the store does not answer now, the next record does it.
            drop(self.record(RunState::Running));
        }
        Ok(())
    }

    /// Looks a job up whose needs are settled: true if it must run.
    fn look_up(&mut self, place: usize) -> Result<bool> {
        let job = &self.plan.jobs[place];
        let stage = &job.program.description.name;
        // Whatever comes of it, it is not looked at again.
        self.schedule.start(place);
        let executor = self.executors.of(job);
        if let Gate::Closed(why) = plan::gate(self.plan, job, &self.done, &self.lost)? {
            self.view.skipped(&job.name, stage, &why);
            self.facts.push(json!({ "job": job.name, "stage": stage, "state": "skipped", "why": why }));
            self.summary.skipped += 1;
            executor.withdraw(place);
            self.lost[place] = true;
            self.schedule.settle(place);
            return Ok(false);
        }
        let Ok(recipe) = plan::recipe(self.plan, job, &self.done) else { return Ok(false) };
        let (state, is_pointed_at) = plan::look_up(self.store, self.plan, job, &recipe)?;
        let again = self.options.again.contains(&place);
        let taken = again || matches!(state, State::Damaged);
        let why = match state {
            // A cluster was faster than this look.
            State::Cached(manifest) if executor.has(place) && manifest.provenance.run == self.run => {
                executor.withdraw(place);
                return self.finish(place, *manifest).map(|()| false);
            }
            State::Cached(manifest) if !again => {
                executor.withdraw(place);
                self.schedule.settle(place);
                self.summary.cached += 1;
                self.facts.push(facts(&job.name, "cached", &manifest));
                if self.began {
                    self.view.cached(&job.name, stage, &manifest.books.summary("rows"));
                }
                if !is_pointed_at {
                    self.point(place, &manifest)?;
                }
                self.done[place] = Some(*manifest);
                return Ok(false);
            }
            State::Cached(_) => "again".to_owned(),
            state => state.words().1.to_owned(),
        };
        let edition = match taken {
            true => next_edition(self.store, &self.run, &job.name, stage, &recipe.fingerprint)?,
            false => 0,
        };
        self.ready.insert(place, Ready { recipe, why, edition });
        Ok(true)
    }

    /// Before the first job: the store must be writable, and safe for two runs at once.
    fn begin(&mut self) -> Result<()> {
        query::check_report(self.store, self.plan)?;
        if let Some(error) = self.silent.take() {
            return Err(error);
        }
        job::sweep();
        self.store.probe(self.options.single_writer)?;
        self.began = true;
        self.asked.write(self.store, &self.run)?;
        let cached = self.summary.cached;
        let note = if cached > 0 { format!(", {cached} cached") } else { String::new() };
        self.view.note(&format!(
            "{}: {} jobs{note}, store {}, run {}",
            self.plan.name,
            self.plan.jobs.len(),
            self.store.address(),
            self.run
        ));
        if let Some(words) = &self.taken_over {
            self.view.note(words);
        }
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
        self.schedule.settle(i);
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
