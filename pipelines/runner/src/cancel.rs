//! `smelt cancel RUN`: takes the jobs of a run away from a cluster.

use crate::asked::Asked;
use crate::diagnostic::{Diagnostic, Result};
use crate::executor::kubernetes;
use crate::executor::slurm::queue::{ask, command, queued};
use crate::executor::slurm::{ids, parse_comment};
use crate::load::Plan;
use crate::query;
use smelt_schemas::{Executor, ExitCode};
use std::collections::BTreeSet;

pub(crate) fn cancel(run: Option<&str>, store: Option<&str>) -> Result<()> {
    let Some(run) = run else { return slurm(None) };
    let Some(plan) = plan_of(run, store)? else { return slurm(Some(run)) };
    let names = kubernetes::cancel(&plan, run)?;
    if !names.is_empty() {
        println!("run {run}: cancelled {} on Kubernetes: {}", jobs(names.len()), names.join(", "));
    }
    let asks_slurm = plan.jobs.iter().any(|job| job.run.executor == Executor::Slurm);
    match (asks_slurm, names.is_empty()) {
        (true, true) => slurm(Some(run)),
        (true, false) => slurm(Some(run)).or(Ok(())),
        (false, false) => Ok(()),
        (false, true) => Err(Diagnostic::pipeline(format!("no cluster has jobs of run `{run}`"))
            .hint("`smelt runs` names the runs of a store")),
    }
}

/// What a run of this store was asked to do.
fn plan_of(run: &str, store: Option<&str>) -> Result<Option<Plan>> {
    let store = query::store_of(store, None)?;
    let asked = Asked::read(&store, run).ok();
    asked.map(|asked| asked.plan(&store)).transpose()
}

fn slurm(run: Option<&str>) -> Result<()> {
    let silent = |why: String| {
        Diagnostic::new(ExitCode::Again, format!("Slurm does not answer: {why}"))
            .hint("`squeue --me` says when it does")
    };
    let tasks = queued().map_err(silent)?;
    let runs: BTreeSet<&str> = tasks.iter().filter_map(|task| Some(parse_comment(&task.comment)?.0)).collect();
    let names = || runs.iter().copied().collect::<Vec<_>>().join(", ");
    let run = match (run, runs.len()) {
        (Some(run), _) if runs.contains(run) => run,
        (_, 0) => return Err(Diagnostic::pipeline("Slurm has no job of any run")),
        (Some(run), _) => {
            let what = format!("Slurm has no job of run `{run}`");
            return Err(Diagnostic::pipeline(what).hint(format!("it has jobs of {}", names())));
        }
        (None, 1) => runs.first().expect("there is one"),
        (None, _) => {
            return Err(
                Diagnostic::pipeline("which run? several have jobs on Slurm").hint(format!("name one of {}", names()))
            );
        }
    };
    let ids: Vec<String> = ids(&tasks, run).iter().map(u64::to_string).collect();
    ask(command("scancel").args(&ids)).map_err(silent)?;
    println!("run {run}: cancelled {} on Slurm: {}", jobs(ids.len()), ids.join(", "));
    Ok(())
}

fn jobs(count: usize) -> String {
    if count == 1 { "1 job".into() } else { format!("{count} jobs") }
}
