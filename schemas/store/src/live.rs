//! What runs now: the jobs of live runs, what they told last, and the curves that they have so far.

use crate::artifacts::{artifact_key, safe_name};
use crate::attempt::Progress;
use crate::error::Result;
use crate::run::{RunState, Running};
use crate::store::Store;
use smelt_schemas::{Event, EventBody};
use std::collections::BTreeMap;

/// A job that a live run has started.
#[derive(Clone, Debug)]
pub struct Live {
    pub run: String,
    pub pipeline: String,
    pub running: Running,
    /// Its last events; none before its first one, or while it waits for another run.
    pub told: Vec<Event>,
}

/// A point of a curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub step: u64,
    pub name: String,
    pub value: f64,
}

impl Store {
    /// Running jobs of a pipeline, or of all, each once.
    pub fn live(&self, pipeline: Option<&str>) -> Result<Vec<Live>> {
        let mut found: Vec<Live> = Vec::new();
        let is_meant = |of: &str| pipeline.is_none_or(|pipeline| pipeline == of);
        for run in self.runs()?.into_iter().filter(|run| run.state == RunState::Running && is_meant(&run.pipeline)) {
            for running in run.running {
                let told = self.last_events(&run.run, &running.job)?;
                let live = Live { run: run.run.clone(), pipeline: run.pipeline.clone(), running, told };
                let is_same =
                    |other: &&mut Live| (&other.pipeline, &other.running.job) == (&live.pipeline, &live.running.job);
                // Of two runs with the same job one works, and the other waits for it.
                match found.iter_mut().find(is_same) {
                    Some(other) if other.told.is_empty() => *other = live,
                    Some(_) => {}
                    None => found.push(live),
                }
            }
        }
        Ok(found)
    }

    /// Everything a job said in a run: its log, or its events. `kind`: `log` or `events`.
    pub fn read_logs(&self, run: &str, job: &str, kind: &str) -> Result<Option<String>> {
        let folder = format!("runs/{run}/jobs/{}", safe_name(job));
        let (mut text, mut found) = (String::new(), false);
        for file in self.list_here(&folder)?.0.iter().filter(|file| file.starts_with(kind)) {
            found = true;
            text += &String::from_utf8_lossy(&self.get(&format!("{folder}/{file}"))?);
        }
        Ok(found.then_some(text))
    }

    fn last_events(&self, run: &str, job: &str) -> Result<Vec<Event>> {
        let folder = format!("runs/{run}/jobs/{}", safe_name(job));
        let parts = self.list_here(&folder)?.0;
        let mut told = Vec::new();
        // The last part may have just begun.
        for part in parts.iter().filter(|part| part.starts_with("events")).rev().take(2) {
            let Some(text) = self.get_opt(&format!("{folder}/{part}"))? else { continue };
            told.splice(0..0, events(&String::from_utf8_lossy(&text)));
        }
        Ok(told)
    }
}

fn events(text: &str) -> Vec<Event> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl Live {
    /// Seconds since it was started.
    pub fn seconds(&self) -> f64 {
        crate::now() - self.running.started
    }

    /// Points of its curves so far: those of earlier processes up to their last save, and all of this run.
    pub fn curve(&self, store: &Store) -> Result<Vec<Point>> {
        let mut points: BTreeMap<(u64, String), f64> = BTreeMap::new();
        let text = store.read_logs(&self.run, &self.running.job, "events")?.unwrap_or_default();
        let mut attempt = None;
        for event in events(&text) {
            match event.body {
                EventBody::Started { attempt: id, .. } => attempt = Some(id),
                EventBody::Metrics { step, values } => {
                    points.extend(values.into_iter().map(|(name, value)| ((step, name), value)));
                }
                _ => {}
            }
        }
        for (step, name, value) in attempt.and_then(|id| self.saved_curve(store, &id)).unwrap_or_default() {
            points.entry((step, name)).or_insert(value);
        }
        Ok(points.into_iter().map(|((step, name), value)| Point { step, name, value }).collect())
    }

    /// The curve in the newest save. While a training goes on its saves come and go: then the next query finds it.
    fn saved_curve(&self, store: &Store, attempt: &str) -> Option<Vec<(u64, String, f64)>> {
        let recipe = artifact_key(&self.running.stage, &self.running.fingerprint);
        let folder = format!("{recipe}/attempts/{attempt}");
        let read = |key: &str| store.get_opt(&format!("{folder}/{key}")).ok().flatten();
        let progress: Progress = serde_json::from_slice(&read("progress.json")?).ok()?;
        serde_json::from_slice(&read(&progress.files.get("curve.json")?.path)?).ok()
    }
}
