//! What a run was asked to do, in the store: enough for another machine to do one of its jobs, and for another runner
//! to take it over.

use crate::diagnostic::{Diagnostic, Result};
use crate::job::job_folder;
use crate::load::{self, Plan, Texts};
use crate::lock::Lock;
use crate::run;
use serde::{Deserialize, Serialize};
use smelt_schemas::{Digest, ExitCode};
use smelt_store::Store;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub pipeline: String,
    /// The pipeline's file as it was named, the folder in which it was, and its text then.
    pub file: String,
    pub folder: String,
    pub text: String,
    /// The texts of the files that it includes.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub included: Texts,
    /// What `--set` changed.
    pub set: Vec<String>,
    /// Jobs to run again although they are cached.
    pub again: Vec<String>,
    pub retries: Option<u32>,
    /// The programs that it must be run with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<Lock>,
}

impl Asked {
    pub(crate) fn new(plan: &Plan, options: &run::Options) -> Self {
        Self {
            pipeline: plan.name.clone(),
            file: plan.file.clone(),
            folder: std::env::current_dir().unwrap_or_default().display().to_string(),
            text: plan.text.clone(),
            included: plan.included.clone(),
            set: plan.set.clone(),
            again: options.again.iter().map(|&place| plan.jobs[place].name.clone()).collect(),
            retries: options.retries,
            locked: options.locked.clone(),
        }
    }

    fn key(run: &str) -> String {
        format!("runs/{run}/asked.json")
    }

    pub(crate) fn write(&self, store: &Store, run: &str) -> Result<()> {
        Ok(store.put(&Self::key(run), &serde_json::to_vec_pretty(self).expect("it is plain data"))?)
    }

    pub(crate) fn read(store: &Store, run: &str) -> Result<Self> {
        let unknown = || {
            Diagnostic::pipeline(format!("there is no run `{run}` in {}", store.address()))
                .hint("`smelt status` names the last run of a pipeline, `smelt sql \"select run from smelt.runs\"` all")
        };
        let bytes = store.get_opt(&Self::key(run))?.ok_or_else(unknown)?;
        let corrupt = |e| Diagnostic::new(ExitCode::Data, format!("what run `{run}` was asked cannot be read: {e}"));
        serde_json::from_slice(&bytes).map_err(corrupt)
    }

    /// The plan of the run, as it was; an error if it was locked and programs here are others.
    pub(crate) fn plan(&self, store: &Store) -> Result<Plan> {
        let options =
            load::Options { store: Some(store.address().into()), set: self.set.clone(), ..load::Options::default() };
        let plan = load::load_recorded(Path::new(&self.file), self.text.clone(), self.included.clone(), &options)?;
        match self.locked.as_ref().map_or(Ok(()), |lock| lock.check(&plan)) {
            Ok(()) => Ok(plan),
            Err((_, error)) => Err(error),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Edition {
    fingerprint: Digest,
    edition: u32,
}

/// The edition that a job of this run commits though there are others: the first process that asks decides, and others,
/// on other machines or later, get the same answer.
pub(crate) fn next_edition(store: &Store, run: &str, job: &str, stage: &str, fingerprint: &Digest) -> Result<u32> {
    let key = format!("{}/edition.json", job_folder(run, job));
    let edition = store.editions(stage, fingerprint)?.last().map_or(0, |last| last + 1);
    let chosen = Edition { fingerprint: fingerprint.clone(), edition };
    if store.create(&key, &serde_json::to_vec(&chosen).expect("it is plain data"))? {
        return Ok(edition);
    }
    let found = store.get_opt(&key)?.and_then(|bytes| serde_json::from_slice::<Edition>(&bytes).ok());
    // Of another recipe when an input came out differently after a failure: then there is nothing to agree on.
    Ok(found.filter(|found| found.fingerprint == *fingerprint).map_or(edition, |found| found.edition))
}
