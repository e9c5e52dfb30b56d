//! The record of one run: its pipeline, its runner, the artifacts it holds, how it ended.
//!
//! Only its runner rewrites it: when a job ends, and every half minute. So a record that says `running` but is no
//! longer renewed belongs to a runner that was killed.

use crate::artifacts::to_json;
use crate::attempt::has_lapsed;
use crate::clock::now;
use crate::error::Result;
use crate::owner::Owner;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use smelt_schemas::{ArtifactRef, Digest};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Running,
    Done,
    Failed,
    /// By Ctrl-C or SIGTERM.
    Stopped,
    /// Its runner vanished. Never stored, because nobody is left to write it: `runs` works it out.
    Interrupted,
}

impl RunState {
    /// As it is written: `running`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    pub run: String,
    pub pipeline: String,
    /// The pipeline's file as it was named, and the folder in which it was.
    #[serde(default)]
    pub file: String,
    #[serde(default)]
    pub folder: String,
    /// What `--set` changed.
    #[serde(default)]
    pub set: Vec<String>,
    pub state: RunState,
    /// Seconds since 1970, UTC; so are the others.
    pub started: f64,
    #[serde(default)]
    pub renewed: f64,
    #[serde(default)]
    pub ended: Option<f64>,
    #[serde(default)]
    pub owner: Option<Owner>,
    /// What its jobs read and made: `gc` keeps these while it runs.
    #[serde(default)]
    pub holds: Vec<ArtifactRef>,
    /// Of each job that ended: its state, artifact, seconds, error.
    #[serde(default)]
    pub jobs: Vec<Value>,
    /// Jobs that are running.
    #[serde(default)]
    pub running: Vec<Running>,
}

/// A job that a run has started and that has not ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Running {
    pub job: String,
    pub stage: String,
    pub fingerprint: Digest,
    pub started: f64,
    /// Of an instance: its axes and their values, in order.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub axes: Map<String, Value>,
}

impl RunRecord {
    fn key(run: &str) -> String {
        format!("runs/{run}/run.json")
    }

    /// Whether its runner is still alive, as far as this host can know.
    fn is_live(&self, now: f64, me: &Owner) -> bool {
        let owned = |owner: &Owner| !has_lapsed(owner, self.renewed, now, me);
        self.state == RunState::Running && self.owner.as_ref().is_some_and(owned)
    }
}

impl Store {
    pub fn record_run(&self, record: &RunRecord) -> Result<()> {
        self.put(&RunRecord::key(&record.run), &to_json(record))
    }

    pub fn run(&self, run: &str) -> Result<Option<RunRecord>> {
        let Some(mut record) = self.get_json::<RunRecord>(&RunRecord::key(run))? else { return Ok(None) };
        if record.state == RunState::Running && !record.is_live(now(), &Owner::this_process()) {
            record.state = RunState::Interrupted;
        }
        Ok(Some(record))
    }

    /// The newest run of which `is_meant` holds.
    pub fn last_run(&self, is_meant: impl Fn(&RunRecord) -> bool) -> Result<Option<RunRecord>> {
        for run in self.list_here("runs")?.1.into_iter().rev() {
            let Some(bytes) = self.get_opt(&RunRecord::key(&run))? else { continue };
            let record = serde_json::from_slice::<RunRecord>(&bytes).ok();
            if let Some(record) = record.filter(|record| is_meant(record)) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The record of each run, newest last. Unreadable records are left out.
    pub fn runs(&self) -> Result<Vec<RunRecord>> {
        let (me, now) = (Owner::this_process(), now());
        let mut found = Vec::new();
        for run in self.list_here("runs")?.1 {
            let Some(bytes) = self.get_opt(&RunRecord::key(&run))? else { continue };
            let Ok(mut record) = serde_json::from_slice::<RunRecord>(&bytes) else { continue };
            if record.state == RunState::Running && !record.is_live(now, &me) {
                record.state = RunState::Interrupted;
            }
            found.push(record);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_runner_is_gone_was_interrupted() {
        let store = Store::open("memory:runs").unwrap();
        let me = Owner::this_process();
        let record = |run: &str, owner: Option<Owner>, renewed: f64| RunRecord {
            run: run.into(),
            pipeline: "p".into(),
            file: String::new(),
            folder: String::new(),
            set: Vec::new(),
            state: RunState::Running,
            started: renewed,
            renewed,
            ended: None,
            owner,
            holds: Vec::new(),
            jobs: Vec::new(),
            running: Vec::new(),
        };
        let now = now();
        let gone = Owner { pid_start: me.pid_start + 1, ..me.clone() };
        let elsewhere = Owner { host: "elsewhere".into(), ..gone.clone() };
        store.record_run(&record("a", Some(me), now)).unwrap();
        store.record_run(&record("b", Some(gone), now)).unwrap();
        store.record_run(&record("c", Some(elsewhere.clone()), now)).unwrap();
        store.record_run(&record("d", Some(elsewhere), now - 1000.0)).unwrap();
        store.record_run(&record("e", None, now)).unwrap();
        let states: Vec<&str> = store.runs().unwrap().iter().map(|r| r.state.word()).collect();
        assert_eq!(states, ["running", "interrupted", "running", "interrupted", "interrupted"]);
    }
}
