//! What a job on another machine tells, as it arrives in the store.

use crate::job::{Work, job_folder};
use crate::team::Team;
use crate::view::Progress;
use smelt_schemas::{Event, EventBody};
use std::collections::{BTreeMap, BTreeSet};

/// Reads on in the events of a job.
pub(crate) struct Follow<'a> {
    work: &'a Work<'a>,
    folder: String,
    team: Team,
    /// Bytes read of each part, and parts that do not grow any more.
    read: BTreeMap<String, usize>,
    full: BTreeSet<String>,
}

impl<'a> Follow<'a> {
    pub(crate) fn new(work: &'a Work<'a>) -> Self {
        let team = Team::new(work.job.run.workers.unwrap_or(1));
        let folder = job_folder(work.run, &work.job.name);
        Self { work, folder, team, read: BTreeMap::new(), full: BTreeSet::new() }
    }

    /// Shows what is new. A store that does not answer now does so later.
    pub(crate) fn on(&mut self) {
        let Ok((parts, _)) = self.work.store.list_here(&self.folder) else { return };
        let parts: Vec<String> = parts.into_iter().filter(|part| part.starts_with("events")).collect();
        for (i, part) in parts.iter().enumerate() {
            if self.full.contains(part) {
                continue;
            }
            let Ok(Some(bytes)) = self.work.store.get_opt(&format!("{}/{part}", self.folder)) else { continue };
            let from = self.read.get(part).copied().unwrap_or(0).min(bytes.len());
            // A line that is not whole yet is read next time.
            let to = bytes.iter().rposition(|b| *b == b'\n').map_or(from, |end| end + 1).max(from);
            String::from_utf8_lossy(&bytes[from..to]).lines().for_each(|line| self.show(line));
            self.read.insert(part.clone(), to);
            // The next part of the same process begins when this one is full.
            let of = |part: &str| part.rsplit_once('-').map(|(writer, _)| writer.to_owned());
            if parts.get(i + 1).is_some_and(|next| of(next) == of(part)) {
                self.full.insert(part.clone());
            }
        }
    }

    fn show(&self, line: &str) {
        let (view, name) = (self.work.view, &self.work.job.name);
        let stage = &self.work.job.program.description.name;
        let Ok(event) = serde_json::from_str::<Event>(line) else { return };
        match event.body {
            EventBody::Progress { phase, done, total, unit, note } => {
                if let Some(done) = self.team.progress(&phase, done) {
                    view.progress(name, stage, Progress { phase: &phase, done, total, unit: &unit, note: &note });
                }
            }
            EventBody::Warning { message } if self.team.is_news(event.rank, &message) => {
                view.warning(name, stage, &message);
            }
            _ => {}
        }
    }
}
