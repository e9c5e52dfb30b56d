//! Jobs on a Slurm cluster.
//!
//! A job is submitted before its inputs are there, behind the jobs that make them, so the cluster goes on without this
//! process. What a node starts is `smelt exec RUN JOB`, which finds the inputs, looks up and works. Whether a job is
//! done, its manifest says; Slurm is only asked whether somebody still works on it. A comment names run, job and number
//! of each submission: a runner that is started again finds its jobs in the queue.

mod batch;
pub(crate) mod queue;

pub(crate) use self::batch::parse_comment;
use self::batch::{Batch, comment};
use self::queue::{End, Seen, Task};
use super::Executor;
use super::follow::Follow;
use super::verdict::{Tries, Verdict};
use crate::child;
use crate::diagnostic::{Diagnostic, Result};
use crate::job::{Failure, STOP, Work, job_folder, stopped};
use crate::load::{Instance, Plan};
use crate::plan::State;
use crate::resources::{Budget, Claim, Granted};
use crate::view::View;
use smelt_schemas::{Executor as Where, ExitCode, Manifest};
use smelt_store::{RunState, Store, safe_name};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A job that Slurm was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Submission {
    pub id: u64,
    /// How often the job was submitted in this run, this time included.
    pub number: u32,
}

/// Submissions by the place of their job.
pub(crate) type Submissions = BTreeMap<usize, Submission>;

/// What waits and runs, or why Slurm did not say, and when it was asked.
type Queue = (Instant, std::result::Result<Vec<Task>, String>);

pub(crate) struct Slurm<'a> {
    plan: &'a Plan,
    store: &'a Store,
    view: &'a View,
    run: String,
    folder: PathBuf,
    submitted: Mutex<Submissions>,
    queue: Mutex<Option<Queue>>,
    /// Held while one job is submitted, so that none is twice.
    submitting: Mutex<()>,
    began: Instant,
}

/// How long a manifest, or the word of a node, may take to be seen here after Slurm says that the job is over.
const ARRIVES: Duration = Duration::from_secs(5);
/// The same where Slurm says that it ended well: a file system shared by nodes may show a new file a minute later.
const ARRIVES_SURELY: Duration = Duration::from_secs(90);

/// Whether Slurm has any part in some of the jobs.
pub(crate) fn is_wanted(plan: &Plan, wanted: &[bool]) -> bool {
    plan.jobs.iter().zip(wanted).any(|(job, wanted)| *wanted && is_here(job))
}

fn is_here(job: &Instance) -> bool {
    job.run.executor == Where::Slurm
}

/// An error if this machine cannot submit jobs.
pub(crate) fn check(plan: &Plan, wanted: &[bool]) -> Result<()> {
    let first = plan.jobs.iter().zip(wanted).find(|(job, wanted)| **wanted && is_here(job));
    let Some((job, _)) = first else { return Ok(()) };
    let folders = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&folders).any(|folder| folder.join("sbatch").is_file()) {
        return Ok(());
    }
    let what = format!("job `{}` is for Slurm, and `sbatch` is not in PATH", job.name);
    let hint = "start smelt on a login node of the cluster, or run it here with `--set run.executor=local`";
    Err(Diagnostic::new(ExitCode::Machine, what).at(job.place.clone()).hint(hint))
}

impl<'a> Slurm<'a> {
    /// `submitted`: what the queue has of this run already.
    pub(crate) fn new(plan: &'a Plan, store: &'a Store, view: &'a View, run: &str, submitted: Submissions) -> Self {
        Self {
            plan,
            store,
            view,
            run: run.into(),
            folder: std::env::current_dir().unwrap_or_default(),
            submitted: Mutex::new(submitted),
            queue: Mutex::default(),
            submitting: Mutex::default(),
            began: Instant::now(),
        }
    }

    fn submitted(&self) -> MutexGuard<'_, Submissions> {
        self.submitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time between two looks: a short run is watched closely, and a long one does not bother the cluster.
    fn pause(&self) -> Duration {
        (self.began.elapsed() / 20).clamp(Duration::from_millis(300), Duration::from_secs(10))
    }

    /// Waits that time, or until the run is stopped.
    fn rest(&self) {
        let until = Instant::now() + self.pause();
        while Instant::now() < until && !STOP.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What waits and runs; asked anew if the last answer is old.
    fn queue(&self, may_be_old: bool) -> std::result::Result<Vec<Task>, String> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match &*queue {
            Some((asked, answer)) if may_be_old && asked.elapsed() < self.pause() / 2 => answer.clone(),
            _ => {
                let answer = queue::queued();
                *queue = Some((Instant::now(), answer.clone()));
                answer
            }
        }
    }

    fn look(&self, id: u64) -> Seen {
        match self.queue(true) {
            Ok(tasks) => queue::look(id, &tasks),
            Err(why) => Seen::Unknown(why),
        }
    }

    /// Where Slurm, and the script before smelt has started, write what they say: among the job's logs if the store is
    /// a directory.
    fn output(&self, job: &str, number: u32) -> Result<String> {
        let folder = match self.store.directory() {
            Some(store) => store.join(job_folder(&self.run, job)),
            None => self.folder.join(".smelt").join("slurm").join(&self.run).join(safe_name(job)),
        };
        std::fs::create_dir_all(&folder)
            .map_err(|e| Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be made: {e}", folder.display())))?;
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Ok(format!("{}/log-{number:02}.99-slurm-%j.txt", folder.display().to_string().replace('%', "%%")))
    }

    /// Gives a job to Slurm, unless the queue has it.
    fn submit(&self, place: usize, number: u32, after: &[u64]) -> Result<Submission> {
        let _held = self.submitting.lock().unwrap_or_else(PoisonError::into_inner);
        let job = &self.plan.jobs[place];
        let output = self.output(&job.name, number)?;
        let smelt = std::env::current_exe().unwrap_or_else(|_| "smelt".into());
        let batch = Batch {
            pipeline: &self.plan.name,
            run: &self.run,
            job,
            number,
            after,
            folder: &self.folder,
            output: &output,
            smelt: &smelt,
            store: self.store.address(),
        };
        let wanted = comment(&self.run, &job.name, number);
        let mut pause = Duration::from_secs(1);
        for attempt in 0.. {
            // After a lost reply, or a kill between submission and this line, the queue has it.
            if attempt > 0
                && let Ok(tasks) = self.queue(false)
                && let Some(task) = tasks.iter().find(|task| task.comment == wanted)
            {
                return Ok(self.note(place, Submission { id: task.id, number }));
            }
            match hand_over(&batch) {
                Ok(id) => return Ok(self.note(place, Submission { id, number })),
                Err(why) if is_passing(&why) && attempt < 8 && !STOP.load(Ordering::SeqCst) => {
                    let stage = &job.program.description.name;
                    self.view.again(&job.name, stage, &format!("Slurm: {why}"), pause.as_secs_f64());
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
                Err(why) => {
                    let code = if is_passing(&why) { ExitCode::Again } else { ExitCode::Pipeline };
                    let what = format!("job `{}`: Slurm does not take it: {why}", job.name);
                    let options = batch.options()[8..].join(" ");
                    return Err(Diagnostic::new(code, what)
                        .at(job.place.clone())
                        .hint(format!("it was submitted with `sbatch {options}`: `run:` says what it asks for")));
                }
            }
        }
        unreachable!("the loop returns")
    }

    fn note(&self, place: usize, submission: Submission) -> Submission {
        let job = &self.plan.jobs[place];
        self.submitted().insert(place, submission);
        self.view.queued(&job.name, &job.program.description.name, &format!("Slurm job {}", submission.id));
        submission
    }

    fn cancel(&self, submission: Submission) {
        // One that is over already is not to be cancelled any more.
        drop(queue::ask(queue::command("scancel").arg(submission.id.to_string())));
    }

    /// The last words of Slurm, or of the script before smelt had started.
    fn last_words(&self, job: &str, submission: Submission) -> Option<String> {
        let pattern = self.output(job, submission.number).ok()?;
        let (folder, prefix) = pattern.rsplit_once('/')?;
        let folder = folder.replace("%%", "%");
        let prefix = prefix.strip_suffix("%j.txt")?;
        let mut words = None;
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with(prefix) {
                continue;
            }
            let text = std::fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            if self.store.directory().is_none() {
                // The run's logs hold it too; if the store does not take it now, the file is still there.
                drop(self.store.put(&format!("{}/{name}", job_folder(&self.run, job)), text.as_bytes()));
            }
            // The error itself, rather than its place or hint.
            let is_error = |line: &&str| line.starts_with("error: ");
            let filled = |line: &&str| !line.trim().is_empty();
            let line = text.lines().rfind(is_error).or_else(|| text.lines().rfind(filled));
            words = line.map(|line| line.trim().to_owned()).or(words);
        }
        words
    }

    /// What to make of a job that is over and has left neither manifest nor word.
    fn verdict(&self, work: &Work, submission: Submission, end: &End) -> Verdict {
        let (id, said) = (submission.id, self.last_words(&work.job.name, submission));
        let said = said.map_or_else(String::new, |said| format!(": {said}"));
        match end.state.as_str() {
            // Slurm cancelled it because a job before it failed; meanwhile that one was done by another submission.
            "CANCELLED" if !end.has_started && end.reason.contains("Dependency") => Verdict::GoOn(None),
            "CANCELLED" => Verdict::fail(
                ExitCode::Again,
                format!("it was cancelled on Slurm (job {id})"),
                "the same command goes on from what is saved",
            ),
            "OUT_OF_MEMORY" => Verdict::fail(
                ExitCode::Machine,
                format!("it took more memory than Slurm gave it (job {id})"),
                "say more in its `run: { memory: … }`",
            ),
            "DEADLINE" => Verdict::fail(ExitCode::Machine, format!("it cannot end before its deadline (job {id})"), ""),
            "COMPLETED" => Verdict::fail(
                ExitCode::Bug,
                format!("Slurm job {id} ended well, and nothing is in {}{said}", self.store.address()),
                "do the nodes see the same store?",
            ),
            "FAILED" if ExitCode::of_process((end.status < 128).then_some(end.status)) != ExitCode::Again => {
                Verdict::fail(
                    ExitCode::Machine,
                    format!("Slurm job {id} ended with exit status {}{said}", end.status),
                    "do the nodes see the same programs and folders?",
                )
            }
            "TIMEOUT" => Verdict::Again(format!("Slurm job {id} met its time limit before it could save{said}")),
            state => Verdict::Again(format!("Slurm job {id} is lost: {state}{said}")),
        }
    }
}

/// `sbatch`, which answers with the id.
fn hand_over(batch: &Batch) -> std::result::Result<u64, String> {
    let mut sbatch = queue::command("sbatch");
    let output = child::ask(sbatch.args(batch.options()), batch.script().as_bytes())
        .map_err(|e| format!("`sbatch` cannot be started: {e}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // `id` or `id;cluster`
    let id = out.trim().split(';').next().and_then(|id| id.parse().ok()).filter(|_| output.status.success());
    id.ok_or_else(|| {
        let lines = err.lines().map(|line| line.trim_start_matches("sbatch: ").trim_start_matches("error: "));
        lines.filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ")
    })
}

/// Whether the controller may answer later.
fn is_passing(why: &str) -> bool {
    ["contact slurm controller", "timed out", "Connection refused", "Communication", "temporarily", "Resource busy"]
        .iter()
        .any(|words| why.contains(words))
}

impl Executor for Slurm<'_> {
    fn claim(&self, _: &Instance, _: &Budget) -> Claim {
        Claim::default()
    }

    fn queue(&self, place: usize, is_done: &dyn Fn(usize) -> bool) -> Result<()> {
        let job = &self.plan.jobs[place];
        if self.submitted().contains_key(&place) {
            return Ok(());
        }
        let mut after = Vec::new();
        for need in job.needs().filter(|&need| !is_done(need)) {
            match self.submitted().get(&need) {
                Some(submission) => after.push(submission.id),
                None => return Ok(()), // it waits for a job that runs here
            }
        }
        after.sort_unstable();
        after.dedup();
        self.submit(place, self.next_number(&job.name)?, &after).map(drop)
    }

    fn has(&self, place: usize) -> bool {
        self.submitted().contains_key(&place)
    }

    fn run(&self, work: &Work, _: &Granted) -> Result<Manifest> {
        let done = self.wait(work);
        if !STOP.load(Ordering::SeqCst) {
            self.submitted().remove(&work.place);
        }
        done
    }

    fn withdraw(&self, place: usize) {
        let submission = self.submitted().remove(&place);
        let Some(submission) = submission else { return };
        // What runs already is finished, as it is here.
        if !matches!(self.look(submission.id), Seen::Runs) {
            self.cancel(submission);
        }
    }
}

impl Slurm<'_> {
    /// How many jobs Slurm has of this run.
    pub(crate) fn left(&self) -> usize {
        self.submitted().len()
    }

    /// Another one than earlier submissions of the same run have, of which a failure may be noted.
    fn next_number(&self, job: &str) -> Result<u32> {
        Ok(Failure::last(self.store, &self.run, job)? + 1)
    }

    /// Until the manifest of the job is there, or it has failed for good.
    fn wait(&self, work: &Work) -> Result<Manifest> {
        let (name, stage) = (&work.job.name, &work.job.program.description.name);
        let artifact = work.artifact();
        let known = self.submitted().get(&work.place).copied();
        let mut current = match known {
            Some(submission) => submission,
            None => self.submit(work.place, self.next_number(name)?, &[])?,
        };
        let (mut tries, mut told, mut over_since) = (Tries::default(), String::new(), None::<Instant>);
        let mut follow = Follow::new(work);
        loop {
            // Asked before the store: what it had written when it ended is there.
            let seen = self.look(current.id);
            follow.on();
            if let Some(manifest) = work.store.manifest(&artifact)? {
                return Ok(manifest);
            }
            if STOP.load(Ordering::SeqCst) {
                return Err(stopped());
            }
            let failure = Failure::read(work.store, work.run, name, current.number)?;
            let mut tell = |words: String| {
                let is_news = told != words;
                told = words;
                is_news
            };
            let verdict = match (failure, seen) {
                (Some(failure), _) => failure.into(),
                (None, Seen::Runs) => {
                    over_since = None;
                    self.rest();
                    continue;
                }
                (None, Seen::Waits(reason)) => {
                    over_since = None;
                    if tell(reason.clone()) && !matches!(reason.as_str(), "None" | "Priority" | "Dependency" | "") {
                        self.view.queued(name, stage, &format!("Slurm job {}: {reason}", current.id));
                    }
                    self.rest();
                    continue;
                }
                (None, Seen::Unknown(why)) => {
                    if tell(why.clone()) {
                        let what = format!("nobody knows how it is, Slurm does not answer: {why}");
                        self.view.warning(name, stage, &what);
                    }
                    self.rest();
                    continue;
                }
                (None, over) => {
                    let end = match over {
                        Seen::Ended(end) => end,
                        _ => End { state: "nobody remembers it".into(), ..End::default() },
                    };
                    let patience = if end.state == "COMPLETED" { ARRIVES_SURELY } else { ARRIVES };
                    if over_since.get_or_insert_with(Instant::now).elapsed() < patience {
                        self.rest();
                        continue;
                    }
                    self.verdict(work, current, &end)
                }
            };
            tries.settle(work, verdict)?;
            over_since = None;
            current = self.submit(work.place, current.number + 1, &[])?;
        }
    }
}

/// Ids of the jobs of a run that wait or run.
pub(crate) fn ids(tasks: &[Task], run: &str) -> Vec<u64> {
    let own = tasks.iter().filter(|task| parse_comment(&task.comment).is_some_and(|(of, _, _)| of == run));
    let mut ids: Vec<u64> = own.map(|task| task.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What the queue has of a run.
pub(crate) fn submissions(tasks: &[Task], run: &str, plan: &Plan) -> Submissions {
    let mut found = Submissions::new();
    for task in tasks {
        let Some((of, job, number)) = parse_comment(&task.comment) else { continue };
        let place = plan.jobs.iter().position(|known| safe_name(&known.name) == job);
        if let Some(place) = place.filter(|_| of == run) {
            let submission = Submission { id: task.id, number };
            let newest = found.entry(place).or_insert(submission);
            if newest.number < number {
                *newest = submission;
            }
        }
    }
    found
}

/// What a cluster has of a pipeline's jobs, where they are not done.
pub(crate) fn look_after(store: &Store, plan: &Plan, states: &mut [State]) -> Result<()> {
    let is_open = |place: usize, states: &[State]| {
        is_here(&plan.jobs[place]) && !matches!(states[place], State::Cached(_) | State::Skipped(_))
    };
    if !(0..plan.jobs.len()).any(|place| is_open(place, states)) {
        return Ok(());
    }
    let runs: Vec<_> = store.runs()?.into_iter().filter(|run| run.pipeline == plan.name).collect();
    let tasks = match queue::queued() {
        Ok(tasks) => tasks,
        Err(why) => {
            // Without an open run there is nobody to ask for.
            if runs.last().is_some_and(|run| run.state != RunState::Done) {
                let open: Vec<usize> = (0..plan.jobs.len()).filter(|&place| is_open(place, states)).collect();
                open.into_iter().for_each(|i| states[i] = State::Unknown(format!("Slurm does not answer: {why}")));
            }
            return Ok(());
        }
    };
    for run in &runs {
        for (place, submission) in submissions(&tasks, &run.run, plan) {
            let Some(task) = tasks.iter().find(|task| task.id == submission.id) else { continue };
            let reason = Some(task.reason.as_str()).filter(|reason| task.state == "PENDING" && *reason != "None");
            let reason = reason.map_or_else(String::new, |reason| format!(", {reason}"));
            if is_open(place, states) {
                states[place] = State::Submitted(format!("Slurm job {}: {}{reason}", task.id, task.state));
            }
        }
    }
    Ok(())
}
