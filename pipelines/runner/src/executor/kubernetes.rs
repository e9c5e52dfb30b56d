//! Jobs on a Kubernetes cluster.
//!
//! A Job of Kubernetes cannot wait for another one, so it is created when its inputs are there, by this process. What
//! its pod starts is `smelt exec RUN JOB`, as on Slurm: it finds the inputs, looks up and works. Whether a job is done,
//! its manifest says; the cluster is only asked whether somebody still works on it. The name of a Job follows from run,
//! job and number, so a runner that is started again creates what is there already, and goes on with it.

pub(crate) mod client;
mod manifest;

use self::client::{Client, Watch};
use self::manifest::{Order, pipeline_selector, selector, stem};
use super::Executor;
use super::follow::Follow;
use super::verdict::{Tries, Verdict};
use crate::diagnostic::{Diagnostic, Result};
use crate::job::{Failure, STOP, Work, stopped};
use crate::load::{Instance, Plan};
use crate::plan::State;
use crate::resources::{Budget, Claim, Granted};
use crate::view::View;
use smelt_schemas::{ClusterJob, ClusterState, Executor as Where, ExitCode, Kubernetes as Options, Manifest};
use smelt_store::{RunState, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(crate) struct Kubernetes<'a> {
    plan: &'a Plan,
    store: &'a Store,
    view: &'a View,
    run: String,
    folder: PathBuf,
    /// One for each namespace, from the first job on.
    watches: Mutex<BTreeMap<Option<String>, Watch>>,
    /// Names of Jobs that were created and are not done.
    open: Mutex<BTreeSet<String>>,
}

/// How long a manifest, or the word of a pod, may take to be seen after the cluster says that the job is over.
const ARRIVES: Duration = Duration::from_secs(5);
/// How long a Job may be unknown to a watch that breaks off again and again.
const IS_TOLD: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(300);

fn is_here(job: &Instance) -> bool {
    job.run.executor == Where::Kubernetes
}

/// Whether the cluster has any part in some of the jobs.
pub(crate) fn is_wanted(plan: &Plan, wanted: &[bool]) -> bool {
    plan.jobs.iter().zip(wanted).any(|(job, wanted)| *wanted && is_here(job))
}

/// An error if pods could not do one of the jobs.
pub(crate) fn check(plan: &Plan, store: &Store, wanted: &[bool]) -> Result<()> {
    let mut here = plan.jobs.iter().zip(wanted).filter(|(job, wanted)| **wanted && is_here(job)).map(|(job, _)| job);
    here.try_for_each(|job| {
        let refuse = |what: String, hint: &str| {
            Err(Diagnostic::pipeline(format!("job `{}` is for Kubernetes{what}", job.name))
                .at(job.place.clone())
                .hint(hint))
        };
        let options = job.run.kubernetes.as_ref();
        let Some(options) = options.filter(|options| options.image.as_ref().is_some_and(|image| !image.is_empty()))
        else {
            return refuse(
                ", and nothing says what its pods are made of".into(),
                "say `run: { kubernetes: { image: … } }`: an image that holds smelt and its stages",
            );
        };
        match store.directory() {
            Some(folder) if !is_mounted(options, &folder) => refuse(
                format!(", whose pods do not see the folder `{}`", folder.display()),
                "keep the store in a bucket, or mount a claim there: `run: { kubernetes: { volumes: { FOLDER: CLAIM } \
                 } }`",
            ),
            _ => Ok(()),
        }
    })
}

fn is_mounted(options: &Options, folder: &Path) -> bool {
    options.volumes.keys().any(|mounted| folder.starts_with(mounted))
}

/// Deletes the Jobs of a run, and says how many were not over.
pub(crate) fn cancel(plan: &Plan, run: &str) -> Result<Vec<String>> {
    let here = plan.jobs.iter().filter(|job| is_here(job));
    let namespaces: BTreeSet<Option<String>> = here.map(namespace).collect();
    let mut names = Vec::new();
    for namespace in namespaces {
        names.extend(Client::new(namespace).cancel(&selector(run)).map_err(|failed| failed.told("cancels nothing"))?);
    }
    Ok(names)
}

fn namespace(job: &Instance) -> Option<String> {
    job.run.kubernetes.as_ref().and_then(|options| options.namespace.clone())
}

impl<'a> Kubernetes<'a> {
    pub(crate) fn new(plan: &'a Plan, store: &'a Store, view: &'a View, run: &str) -> Self {
        let folder = std::env::current_dir().unwrap_or_default();
        let (watches, open) = (Mutex::default(), Mutex::default());
        Self { plan, store, view, run: run.into(), folder, watches, open }
    }

    /// How many of its Jobs are not done.
    pub(crate) fn left(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn note(&self, name: &str, is_open: bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match is_open {
            true => drop(open.insert(name.into())),
            false => drop(open.remove(name)),
        }
    }

    /// What the cluster last said of a Job, or why it says nothing.
    fn look(&self, job: &Instance, name: &str) -> std::result::Result<Option<ClusterJob>, String> {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = watches
            .entry(namespace(job))
            .or_insert_with_key(|namespace| Watch::new(Client::new(namespace.clone()), &selector(&self.run)));
        watch.look(name)
    }

    /// Creates the Job of this number; that it is there already is no error.
    fn create(&self, job: &Instance, number: u32) -> Result<String> {
        let order = Order {
            pipeline: &self.plan.name,
            run: &self.run,
            job,
            number,
            folder: &self.folder,
            store: self.store.address(),
        };
        let (name, stage) = (order.name(), &job.program.description.name);
        let (client, objects) = (Client::new(namespace(job)), order.objects());
        let mut pause = Duration::from_secs(1);
        for attempt in 0.. {
            match client.submit(&objects) {
                Ok(()) => break,
                Err(failed) if failed.code == ExitCode::Again && attempt < 8 && !STOP.load(Ordering::SeqCst) => {
                    self.view.again(&job.name, stage, &failed.words, pause.as_secs_f64());
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
                Err(failed) => {
                    let refused = format!("does not take job `{}`", job.name);
                    return Err(failed.told(&refused).at(job.place.clone()));
                }
            }
        }
        self.note(&name, true);
        self.view.queued(&job.name, stage, &format!("Kubernetes job {name}"));
        Ok(name)
    }

    /// Until the manifest of the job is there, or it has failed for good.
    fn wait(&self, work: &Work) -> Result<Manifest> {
        let (job, stage) = (work.job, &work.job.program.description.name);
        let artifact = work.artifact();
        let mut number = Failure::last(work.store, work.run, &job.name)? + 1;
        let mut name = self.create(job, number)?;
        let (mut tries, mut told, mut since) = (Tries::default(), String::new(), Instant::now());
        let mut follow = Follow::new(work);
        loop {
            // Asked before the store: what it had written when it ended is there.
            let seen = self.look(job, &name);
            follow.on();
            if let Some(manifest) = work.store.manifest(&artifact)? {
                self.note(&name, false);
                return Ok(manifest);
            }
            if STOP.load(Ordering::SeqCst) {
                return Err(stopped());
            }
            let mut tell = |words: &str| {
                let is_news = told != words && !words.is_empty();
                told = words.to_owned();
                is_news
            };
            let failure = Failure::read(work.store, work.run, &job.name, number)?;
            let verdict = match (failure, seen) {
                (Some(failure), _) => failure.into(),
                (None, Err(why)) => {
                    if tell(&why) {
                        let what = format!("nobody knows how it is, Kubernetes does not answer: {why}");
                        self.view.warning(&job.name, stage, &what);
                    }
                    since = Instant::now();
                    std::thread::sleep(PAUSE);
                    continue;
                }
                (None, Ok(Some(ClusterJob { state: ClusterState::Waits | ClusterState::Runs, why, .. }))) => {
                    if tell(&why) {
                        match never_starts(&why) {
                            Some(hint) => {
                                let what = format!("Kubernetes job {name} waits, {why}; {hint}");
                                self.view.warning(&job.name, stage, &what);
                            }
                            None => self.view.queued(&job.name, stage, &format!("Kubernetes job {name}: {why}")),
                        }
                    }
                    since = Instant::now();
                    std::thread::sleep(PAUSE);
                    continue;
                }
                (None, Ok(over)) if since.elapsed() < if over.is_some() { ARRIVES } else { IS_TOLD } => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                (None, Ok(over)) => self.verdict(&name, over),
            };
            self.note(&name, false);
            tries.settle(work, verdict)?;
            number += 1;
            name = self.create(job, number)?;
            since = Instant::now();
        }
    }

    /// What to make of a Job that is over and has left neither manifest nor word.
    fn verdict(&self, name: &str, over: Option<ClusterJob>) -> Verdict {
        let Some(ClusterJob { state, why, status, .. }) = over else {
            return Verdict::Again(format!("nothing is heard of Kubernetes job {name}"));
        };
        let why = if why.is_empty() { why } else { format!(": {why}") };
        let end = ExitCode::of_process(status.filter(|status| *status < 128));
        match state {
            ClusterState::Gone => Verdict::fail(
                ExitCode::Again,
                format!("somebody deleted Kubernetes job {name}"),
                "the same command goes on from what is saved",
            ),
            ClusterState::OutOfMemory => Verdict::fail(
                ExitCode::Machine,
                format!("it took more memory than its pod may (Kubernetes job {name})"),
                "say more in its `run: { memory: … }`",
            ),
            ClusterState::Done => Verdict::fail(
                ExitCode::Bug,
                format!("Kubernetes job {name} ended well, and nothing is in {}", self.store.address()),
                "do the pods see the same store?",
            ),
            ClusterState::Late => Verdict::GoOn(Some(format!("Kubernetes job {name} met its time limit, and goes on"))),
            _ if status.is_some() && end != ExitCode::Again => Verdict::fail(
                ExitCode::Machine,
                format!("Kubernetes job {name} ended with exit status {}{why}", status.unwrap_or_default()),
                "`kubectl logs` of its pod says more: does the image hold smelt, its stages and what they need?",
            ),
            _ => Verdict::Again(format!("Kubernetes job {name} is lost{why}")),
        }
    }
}

/// What to do about a pod that waits for something that does not come by itself.
fn never_starts(why: &str) -> Option<&'static str> {
    let is = |reasons: &[&str]| reasons.iter().any(|reason| why.starts_with(reason));
    if is(&["ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"]) {
        return Some("is `image` right, and may the cluster pull it? It tries again; `smelt cancel` ends it");
    }
    is(&["CreateContainerConfigError", "CreateContainerError"])
        .then_some("are `secrets` and `volumes` there? It tries again; `smelt cancel` ends it")
}

/// What a cluster has of a pipeline's jobs, where they are not done.
pub(crate) fn look_after(store: &Store, plan: &Plan, states: &mut [State]) -> Result<()> {
    let is_open = |place: usize, states: &[State]| {
        is_here(&plan.jobs[place]) && !matches!(states[place], State::Cached(_) | State::Skipped(_))
    };
    let open: Vec<usize> = (0..plan.jobs.len()).filter(|&place| is_open(place, states)).collect();
    if open.is_empty() {
        return Ok(());
    }
    // Of a run that is done nothing is left there.
    let runs = store.runs()?.into_iter().filter(|run| run.pipeline == plan.name && run.state != RunState::Done);
    let runs: Vec<String> = runs.map(|run| run.run).collect();
    if runs.is_empty() {
        return Ok(());
    }
    let mut listed = BTreeMap::new();
    for place in open {
        let job = &plan.jobs[place];
        let found: &std::result::Result<Vec<ClusterJob>, String> =
            listed.entry(namespace(job)).or_insert_with_key(|of| {
                Client::new(of.clone()).list(&pipeline_selector(&plan.name)).map_err(|failed| failed.words)
            });
        match found {
            Ok(found) => {
                let stems: Vec<String> = runs.iter().map(|run| stem(run, &job.name)).collect();
                let is_own = |name: &str| stems.iter().any(|stem| name.starts_with(stem));
                if let Some(words) = found.iter().filter(|found| is_own(&found.name)).find_map(words) {
                    states[place] = State::Submitted(words);
                }
            }
            Err(why) => states[place] = State::Unknown(format!("Kubernetes does not tell: {why}")),
        }
    }
    Ok(())
}

/// How a Job is that is not over.
fn words(ClusterJob { name, state, why, .. }: &ClusterJob) -> Option<String> {
    match state {
        ClusterState::Runs => Some(format!("Kubernetes job {name} runs")),
        ClusterState::Waits if why.is_empty() => Some(format!("Kubernetes job {name} waits")),
        ClusterState::Waits => Some(format!("Kubernetes job {name} waits, {why}")),
        _ => None, // the next run learns what became of it
    }
}

impl Executor for Kubernetes<'_> {
    fn claim(&self, _: &Instance, _: &Budget) -> Claim {
        Claim::default()
    }

    fn run(&self, work: &Work, _: &Granted) -> Result<Manifest> {
        self.wait(work)
    }
}
