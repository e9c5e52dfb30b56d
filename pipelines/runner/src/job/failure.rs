//! How a job ended on another machine, for the runner that waits for it. A job that ended well has its manifest.

use super::job_folder;
use crate::diagnostic::Result;
use serde::{Deserialize, Serialize};
use smelt_schemas::{ExitCode, Problem};
use smelt_store::Store;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub code: ExitCode,
    pub problem: Problem,
}

impl Failure {
    /// `number`: of the submission.
    fn key(run: &str, job: &str, number: u32) -> String {
        format!("{}/failure-{number}.json", job_folder(run, job))
    }

    /// The first of several workers that fail says why.
    pub(crate) fn write(&self, store: &Store, run: &str, job: &str, number: u32) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).expect("a failure is plain data");
        store.create(&Self::key(run, job, number), &bytes)?;
        Ok(())
    }

    /// The largest number of a submission that failed; 0 if none did.
    pub(crate) fn last(store: &Store, run: &str, job: &str) -> Result<u32> {
        let (files, _) = store.list_here(&job_folder(run, job))?;
        let number = |name: &String| name.strip_prefix("failure-")?.strip_suffix(".json")?.parse::<u32>().ok();
        Ok(files.iter().filter_map(number).max().unwrap_or(0))
    }

    pub(crate) fn read(store: &Store, run: &str, job: &str, number: u32) -> Result<Option<Self>> {
        let bytes = store.get_opt(&Self::key(run, job, number))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}
