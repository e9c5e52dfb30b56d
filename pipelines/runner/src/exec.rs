//! `smelt exec RUN JOB`: does one job of a recorded run on the machine where it is started, as a node of a cluster
//! does.

use crate::asked::{Asked, next_edition};
use crate::diagnostic::{Diagnostic, Result, nearest};
use crate::executor::Executor;
use crate::executor::local::{Local, Part, Rank};
use crate::executor::slurm::queue::{ask, command};
use crate::job::{Failure, SAVE, STOP, Work};
use crate::load::{Instance, Plan};
use crate::plan::{self, Done, State};
use crate::query;
use crate::resources::{Budget, Free, Given};
use crate::run::{self, summarise};
use crate::view::{Mode, View};
use smelt_schemas::{ExitCode, Manifest, Problem};
use smelt_store::{Pointer, Store};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(crate) struct Options {
    pub store: Option<String>,
    pub run: String,
    pub job: String,
    /// Of the submission, if a cluster starts this.
    pub number: Option<u32>,
    pub quiet: bool,
}

/// A job that a cluster starts right after those before it: a file system shared by nodes may show their manifests only
/// a minute later.
const INPUTS_ARRIVE: Duration = Duration::from_secs(90);

pub(crate) fn exec(options: &Options) -> Result<()> {
    run::catch_signals();
    catch_save();
    let store = query::store_of(options.store.as_deref(), None)?.hasty(false);
    let asked = Asked::read(&store, &options.run)?;
    let done = one(options, &store, &asked);
    let Err(error) = &done else { return Ok(()) };
    // Somebody ended this process: whoever waits for the job learns how from the cluster.
    if STOP.load(Ordering::SeqCst) {
        return done;
    }
    if SAVE.load(Ordering::SeqCst) && error.code == ExitCode::Again && (pod().is_some() || again_later()) {
        return done;
    }
    if let Some(number) = options.number {
        let problem = Problem { message: error.message.clone(), hint: error.hint.clone(), ..Problem::default() };
        Failure { code: error.code, problem }.write(&store, &options.run, &options.job, number)?;
    }
    done
}

/// SIGUSR1: the time of this process is nearly over. To a pod SIGTERM says so, some time before it is killed.
fn catch_save() {
    extern "C" fn save(_: libc::c_int) {
        SAVE.store(true, Ordering::SeqCst);
    }
    for signal in [Some(libc::SIGUSR1), pod().map(|_| libc::SIGTERM)].into_iter().flatten() {
        // SAFETY: the handler only stores into an atomic.
        unsafe { libc::signal(signal, save as *const () as libc::sighandler_t) };
    }
}

/// The name of the pod of Kubernetes in which this process runs.
fn pod() -> Option<String> {
    std::env::var("SMELT_POD").ok()
}

/// Puts this job of Slurm back into its queue, under the same id, so that what comes after it waits on. Slurm then ends
/// this process. False if it does not.
fn again_later() -> bool {
    let Ok(id) = std::env::var("SLURM_JOB_ID") else { return false };
    // Of several ranks one is enough.
    let is_first = variable("SLURM_PROCID").is_none_or(|rank| rank == 0);
    if is_first && ask(command("scontrol").args(["requeue", &id])).is_err() {
        return false;
    }
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until && !STOP.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
    }
    STOP.load(Ordering::SeqCst)
}

fn variable(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

fn one(options: &Options, store: &Store, asked: &Asked) -> Result<()> {
    std::env::set_current_dir(&asked.folder).map_err(|e| {
        let what =
            format!("folder `{}`, in which run `{}` was started, cannot be entered: {e}", asked.folder, options.run);
        Diagnostic::new(ExitCode::Machine, what).hint("every node must see it under this name")
    })?;
    let plan = asked.plan(store)?;
    let name = &options.job;
    let place = plan.jobs.iter().position(|job| job.name == *name).ok_or_else(|| {
        let error = Diagnostic::pipeline(format!("there is no job `{name}` in run `{}`", options.run));
        match nearest(name, plan.jobs.iter().map(|job| job.name.as_str())) {
            Some(near) => error.hint(format!("is `{near}` meant?")),
            None => error.hint("`smelt status` lists the jobs"),
        }
    })?;
    let job = &plan.jobs[place];
    let stage = &job.program.description.name;
    let mode = if options.quiet { Mode::Quiet } else { Mode::Auto };
    let view = View::new(mode, std::iter::once((name.chars().count(), stage.len())));
    let (state, done) = settled(options, store, &plan, place)?;
    if let State::Skipped(why) = &state {
        view.skipped(name, stage, why);
        return Ok(());
    }
    let recipe = plan::recipe(&plan, job, &done).map_err(|need| {
        let what = format!("job `{name}` needs `{need}`, which is not done");
        Diagnostic::new(ExitCode::Again, what).hint(format!("`smelt exec {} {need}` does it", options.run))
    })?;
    let again = asked.again.contains(name) || matches!(state, State::Damaged);
    let why = state.words().1.to_owned();
    let edition = match (again, state) {
        (false, State::Cached(manifest)) => {
            view.cached(name, stage, &manifest.books.summary("rows"));
            return point(store, &plan, job, &options.run, &manifest);
        }
        (false, _) => 0,
        (true, _) => next_edition(store, &options.run, name, stage, &recipe.fingerprint)?,
    };
    let flag = plan.store_flag();
    let work = Work {
        job,
        place,
        recipe: &recipe,
        store,
        run: &options.run,
        edition,
        retries: asked.retries,
        store_flag: &flag,
        view: &view,
    };
    if let Some(manifest) = store.manifest(&work.artifact())? {
        // An earlier process of this job committed it, and was ended before it could say so.
        return point(store, &plan, job, &options.run, &manifest);
    }
    let budget = Budget::of_machine(Given::default());
    if options.number.is_none() {
        budget.check(job)?;
    }
    let claim = budget.claim(job);
    // A cluster has granted the memory and the GPUs, and shows this process no others.
    let granted = Free::all_of(budget).take(&claim).unwrap_or_default().of_cluster(options.number.is_some(), &claim);
    view.started(name, stage, &why);
    let manifest = local(options, job).run(&work, &granted)?;
    view.done(name, stage, &summarise(&manifest), manifest.provenance.seconds);
    point(store, &plan, job, &options.run, &manifest)
}

/// The state of a job, and what those before it made.
fn settled(options: &Options, store: &Store, plan: &Plan, place: usize) -> Result<(State, Done)> {
    let wanted = plan::needed(plan, std::slice::from_ref(&plan.jobs[place].name))?;
    let since = Instant::now();
    loop {
        let (mut states, done) = plan::states_of(store, plan, &wanted)?;
        let state = states.swap_remove(place);
        let waits = matches!(state, State::After(_));
        if !waits || options.number.is_none() || since.elapsed() > INPUTS_ARRIVE || STOP.load(Ordering::SeqCst) {
            return Ok((state, done));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Makes the pipeline's job mean this artifact.
fn point(store: &Store, plan: &Plan, job: &Instance, run: &str, manifest: &Manifest) -> Result<()> {
    let artifact = manifest.artifact();
    if store.pointer(&plan.name, &job.name)?.is_some_and(|pointer| pointer.artifact == artifact) {
        return Ok(());
    }
    let pointer = Pointer { artifact, time: smelt_store::now(), run: run.into(), axes: job.axes.clone() };
    Ok(store.point(&plan.name, &job.name, &pointer)?)
}

/// What of the job runs here, and how its logs are named: in order of submissions, restarts and processes.
fn local(options: &Options, job: &Instance) -> Local {
    let Some(number) = options.number else { return Local::whole() };
    let pod = pod();
    let index = variable(if pod.is_some() { "JOB_COMPLETION_INDEX" } else { "SLURM_ARRAY_TASK_ID" });
    let part = match (index, job.run.nodes) {
        (Some(worker), _) if job.run.workers.is_some_and(|workers| workers > 1) => Part::Worker(worker),
        (Some(index), Some(2..)) if pod.is_some() => rank_of_pod(index).map_or(Part::All, Part::Rank),
        (_, Some(2..)) => rank().map_or(Part::All, Part::Rank),
        _ => Part::All,
    };
    let process = match &part {
        Part::All => 0,
        Part::Worker(rank) | Part::Rank(Rank { rank, .. }) => *rank,
    };
    let restart = match &pod {
        // What Kubernetes put behind its name tells a pod from the one that it replaces.
        Some(pod) => pod.rsplit('-').next().unwrap_or_default().to_owned(),
        None => format!("{:02}", variable("SLURM_RESTART_COUNT").unwrap_or(0)),
    };
    Local { part, writer: format!("{number:02}.{restart}.{process:04}-"), cgroups: None }
}

/// Which rank this pod is. Where the first one is, the pod was told.
fn rank_of_pod(rank: u32) -> Option<Rank> {
    let (ranks, address) = (variable("WORLD_SIZE")?, std::env::var("MASTER_ADDR").ok()?);
    let port = variable("MASTER_PORT")?;
    Some(Rank { rank, ranks, variables: meeting(rank, ranks, 0, rank, address, port) })
}

fn meeting(rank: u32, ranks: u32, local: u32, node: u32, address: String, port: u32) -> Vec<(&'static str, String)> {
    vec![
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", ranks.to_string()),
        ("LOCAL_RANK", local.to_string()),
        ("LOCAL_WORLD_SIZE", "1".into()),
        ("NODE_RANK", node.to_string()),
        ("MASTER_ADDR", address),
        ("MASTER_PORT", port.to_string()),
    ]
}

/// Which rank this process is on Slurm, and the variables by which ranks find each other: those that PyTorch, and most
/// other trainers, read.
fn rank() -> Option<Rank> {
    let (rank, ranks) = (variable("SLURM_PROCID")?, variable("SLURM_NTASKS")?);
    let nodes = std::env::var("SLURM_JOB_NODELIST").ok()?;
    let names = ask(command("scontrol").args(["show", "hostnames", &nodes])).ok()?;
    let first = names.lines().next()?.trim().to_owned();
    // The address by which Slurm itself reaches the node: its name need not resolve.
    let about = ask(command("scontrol").args(["--oneliner", "show", "node", &first])).unwrap_or_default();
    let address = about.split_whitespace().find_map(|word| word.strip_prefix("NodeAddr=").map(str::to_owned));
    // Two jobs on one node have other ids, so other ports.
    let port = 20_000 + variable("SLURM_JOB_ID").unwrap_or(0) % 10_000;
    let local = variable("SLURM_LOCALID").unwrap_or(0);
    let node = variable("SLURM_NODEID").unwrap_or(rank);
    Some(Rank { rank, ranks, variables: meeting(rank, ranks, local, node, address.unwrap_or(first), port) })
}
