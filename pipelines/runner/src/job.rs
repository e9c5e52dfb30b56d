//! A job that is to be done: what it is, how often it is tried, and how its failure is told.

mod failure;
mod logs;
mod scratch;

pub(crate) use self::failure::Failure;
pub(crate) use self::logs::{Logs, job_folder};
pub(crate) use self::scratch::{Scratch, sweep};
use crate::diagnostic::{Diagnostic, Result};
use crate::load::Instance;
use crate::plan::Recipe;
use crate::view::View;
use smelt_schemas::{ArtifactRef, ExitCode, Io, Manifest, Problem};
use smelt_store::Store;
use std::sync::atomic::AtomicBool;

/// Set by Ctrl-C or SIGTERM: no job is started any more, and running jobs are ended.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Set by SIGUSR1: the time of this process is nearly over. The job saves its progress and ends.
pub(crate) static SAVE: AtomicBool = AtomicBool::new(false);

/// A job whose inputs are there.
pub(crate) struct Work<'a> {
    pub job: &'a Instance,
    /// Its place in `Plan::jobs`.
    pub place: usize,
    pub recipe: &'a Recipe,
    pub store: &'a Store,
    pub run: &'a str,
    pub edition: u32,
    pub retries: Option<u32>,
    /// `--store …` for commands that are suggested to the user, or nothing.
    pub store_flag: &'a str,
    pub view: &'a View,
}

const DEFAULT_RETRIES: u32 = 2;

impl Work<'_> {
    /// How often it is tried again.
    pub(crate) fn retries(&self) -> u32 {
        self.retries.or(self.job.run.retries).unwrap_or(DEFAULT_RETRIES)
    }

    /// What it is to commit.
    pub(crate) fn artifact(&self) -> ArtifactRef {
        ArtifactRef {
            stage: self.job.program.description.name.clone(),
            fingerprint: self.recipe.fingerprint.clone(),
            edition: self.edition,
        }
    }

    /// Tells that it failed. `of`: names the worker that did, or nothing; `hint`: what to do, if the job itself does
    /// not say better.
    pub(crate) fn failed(&self, code: ExitCode, of: &str, problem: Problem, hint: Option<String>) -> Diagnostic {
        let (name, description) = (&self.job.name, &self.job.program.description);
        let field = problem.field.filter(|f| !f.is_empty()).map(|f| format!("`config{}`: ", f.replace('/', ".")));
        let remedy = match (code, description.io) {
            (ExitCode::Bug, Io::Files) => "a bug of the stage",
            (code, _) => code.remedy(),
        };
        self.view.failed(name, &description.name, remedy);
        let failed = format!("job `{name}` failed");
        // What a node tells says so already.
        let message = match problem.message.starts_with(&failed) {
            true => problem.message,
            false => format!("{failed}{of}: {}{}", field.unwrap_or_default(), problem.message),
        };
        let mut error = Diagnostic::new(code, message).at(self.job.place.clone());
        let logs = || Some(format!("`smelt logs {name}{}` shows what it said", self.store_flag));
        error.hint = problem.hint.or(hint).or_else(logs);
        error
    }

    /// The manifest that it committed.
    pub(crate) fn manifest(&self, artifact: &ArtifactRef) -> Result<Manifest> {
        let missing = || format!("job `{}`: its manifest is not in the store", self.job.name);
        self.store.manifest(artifact)?.ok_or_else(|| Diagnostic::new(ExitCode::Bug, missing()))
    }
}

pub(crate) fn stopped() -> Diagnostic {
    Diagnostic::new(ExitCode::Again, "stopped").hint("what is finished is kept; the same command goes on from there")
}
