//! Where jobs run.

pub(crate) mod cgroup;
mod follow;
pub(crate) mod kubernetes;
pub(crate) mod local;
pub(crate) mod slurm;
mod verdict;

use self::kubernetes::Kubernetes;
use self::local::Local;
use self::slurm::Slurm;
use crate::diagnostic::Result;
use crate::job::Work;
use crate::load::Instance;
use crate::resources::{Budget, Claim, Granted};
use smelt_schemas::{Executor as Where, Manifest};

pub(crate) trait Executor: Sync {
    /// What a job takes of the runner's machine while it runs.
    fn claim(&self, job: &Instance, budget: &Budget) -> Claim;

    /// Does a job. Returns when its manifest is committed, or it has failed for good, or the run is stopped.
    fn run(&self, work: &Work, granted: &Granted) -> Result<Manifest>;

    /// Puts a job in a queue, if there is one, behind those that it needs and that are not done yet. Where one of these
    /// is not in the queue itself, nothing happens yet.
    fn queue(&self, _place: usize, _is_done: &dyn Fn(usize) -> bool) -> Result<()> {
        Ok(())
    }

    /// Whether it has a job in its queue, or at work.
    fn has(&self, _place: usize) -> bool {
        false
    }

    /// A job that was put in the queue need not run.
    fn withdraw(&self, _place: usize) {}
}

/// All there are.
pub(crate) struct Executors<'a> {
    pub local: Local,
    pub slurm: Slurm<'a>,
    pub kubernetes: Kubernetes<'a>,
}

impl Executors<'_> {
    /// The one that does a job.
    pub(crate) fn of(&self, job: &Instance) -> &dyn Executor {
        match job.run.executor {
            Where::Local => &self.local,
            Where::Slurm => &self.slurm,
            Where::Kubernetes => &self.kubernetes,
        }
    }
}
