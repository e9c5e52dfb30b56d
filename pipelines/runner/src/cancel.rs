//! `smelt cancel RUN`: takes the jobs of a run away from Slurm.

use crate::diagnostic::{Diagnostic, Result};
use crate::executor::slurm::queue::{ask, command, queued};
use crate::executor::slurm::{ids, parse_comment};
use smelt_schemas::ExitCode;
use std::collections::BTreeSet;

pub(crate) fn cancel(run: Option<&str>) -> Result<()> {
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
