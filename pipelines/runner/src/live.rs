//! What runs now: the jobs of live runs, how far they are, and the curves that they have so far.

use crate::diagnostic::Result;
use crate::job::read_logs;
use crate::table::{duration, thousands};
use serde_json::{Value, json};
use smelt_schemas::{Event, EventBody};
use smelt_store::{Progress, RunState, Running, Store, artifact_key, safe_name};
use std::collections::BTreeMap;

/// A job that a live run has started.
pub(crate) struct Live {
    run: String,
    pub running: Running,
    /// How far it is; nothing before its first event, or while it waits for another run.
    progress: Option<String>,
}

/// Running jobs of a pipeline, each once.
pub(crate) fn jobs(store: &Store, pipeline: &str) -> Result<Vec<Live>> {
    let mut found: Vec<Live> = Vec::new();
    let live = store.runs()?.into_iter().filter(|run| run.state == RunState::Running && run.pipeline == pipeline);
    for run in live {
        for running in run.running {
            let progress = progress(store, &run.run, &running.job)?;
            let live = Live { run: run.run.clone(), running, progress };
            // Of two runs with the same job one works, and the other waits for it.
            match found.iter_mut().find(|other| other.running.job == live.running.job) {
                Some(other) if other.progress.is_none() => *other = live,
                Some(_) => {}
                None => found.push(live),
            }
        }
    }
    Ok(found)
}

impl Live {
    pub(crate) fn seconds(&self) -> f64 {
        smelt_store::now() - self.running.started
    }

    /// For people: `steps 412/800, loss 2.913, about 14 s left`.
    pub(crate) fn words(&self) -> &str {
        self.progress.as_deref().unwrap_or("no progress told yet")
    }

    /// Points of its curves so far, as rows of the kind `metrics`: those of earlier processes up to their last save,
    /// and all of this run.
    pub(crate) fn curve(&self, store: &Store) -> Result<Vec<Value>> {
        let mut points: BTreeMap<(u64, String), f64> = BTreeMap::new();
        let text = read_logs(store, &self.run, &self.running.job, "events")?.unwrap_or_default();
        let mut attempt = None;
        for event in text.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()) {
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
        Ok(points
            .into_iter()
            .map(|((step, name), value)| json!({"step": step, "name": name, "value": value}))
            .collect())
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

/// How far a job is, by its last events.
fn progress(store: &Store, run: &str, job: &str) -> Result<Option<String>> {
    let folder = format!("runs/{run}/jobs/{}", safe_name(job));
    let parts = store.list_here(&folder)?.0;
    let mut told = Vec::new();
    // The last part may have just begun.
    for part in parts.iter().filter(|part| part.starts_with("events")).rev().take(2) {
        let Some(text) = store.get_opt(&format!("{folder}/{part}"))? else { continue };
        let text = String::from_utf8_lossy(&text).into_owned();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()).collect::<Vec<_>>();
        told.splice(0..0, events);
    }
    Ok(words(&told))
}

fn words(events: &[Event]) -> Option<String> {
    let told: Vec<(f64, &EventBody)> = events
        .iter()
        .filter(|event| matches!(event.body, EventBody::Progress { .. }))
        .map(|event| (event.time, &event.body))
        .collect();
    let (time, EventBody::Progress { phase, done, total, unit, note }) = told.last()? else { return None };
    let mut text = match total {
        Some(total) => format!("{unit} {}/{}", thousands(*done), thousands(*total)),
        None => format!("{} {unit}", thousands(*done)),
    };
    if !note.is_empty() {
        text += &format!(", {note}");
    }
    // The rate of what these events cover.
    let first = told.iter().find_map(|(time, body)| match body {
        EventBody::Progress { phase: of, done: before, .. } if of == phase && before < done => Some((*time, *before)),
        _ => None,
    });
    if let (Some(total), Some((since, before))) = (total, first)
        && *time > since
        && total > done
    {
        let rate = (done - before) as f64 / (time - since);
        text += &format!(", about {} left", duration((total - done) as f64 / rate));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_with_what_is_left() {
        let event = |time: f64, done: u64, note: &str| Event {
            v: 1,
            time,
            seq: 0,
            rank: 0,
            body: EventBody::Progress {
                phase: "train".into(),
                done,
                total: Some(800),
                unit: "steps".into(),
                note: note.into(),
            },
        };
        assert_eq!(words(&[]), None);
        assert_eq!(words(&[event(10.0, 12, "")]).unwrap(), "steps 12/800");
        let told = [event(10.0, 12, ""), event(30.0, 412, "loss 2.913")];
        assert_eq!(words(&told).unwrap(), "steps 412/800, loss 2.913, about 19 s left");
        assert_eq!(words(&[event(10.0, 12, ""), event(30.0, 800, "")]).unwrap(), "steps 800/800");
    }
}
