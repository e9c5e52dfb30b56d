//! Saves of a running training: a background thread writes them, and the last few are kept.
//!
//! Order: the files, then the progress that names them, then the deletion of older saves. So a kill at any moment
//! leaves a complete save. The caller hands over what writes the bytes, so the training continues while they come, are
//! hashed and written.

use crate::Mapped;
use crate::error::Error;
use crate::lock::lock;
use serde_json::Value;
use smelt_schemas::{ExitCode, FileRecord, SavePolicy};
use smelt_store::{Attempt, Kept, Progress};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A save of an earlier process, to continue from.
#[derive(Debug)]
pub struct Saved {
    /// As given to `save`, such as the next training step.
    pub cursor: u64,
    pub detail: Value,
    /// Verified contents, by name.
    pub files: BTreeMap<String, Mapped>,
}

/// Writes one file of a save.
pub(crate) type WriteFile<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'a>;

/// A file of a save whose bytes are there.
pub(crate) fn bytes<'a>(bytes: impl AsRef<[u8]> + Send + 'a) -> WriteFile<'a> {
    Box::new(move |out| out.write_all(bytes.as_ref()))
}

pub(crate) struct Saves {
    attempt: Arc<Attempt>,
    policy: SavePolicy,
    last: Mutex<Instant>,
    writing: Mutex<Option<JoinHandle<Result<(), Error>>>>,
}

impl Saves {
    /// `SMELT_SAVE_SECONDS` overrides the interval. Saves change no byte of the output and are not in the fingerprint.
    pub(crate) fn new(attempt: Arc<Attempt>, mut policy: SavePolicy) -> Self {
        let seconds = std::env::var("SMELT_SAVE_SECONDS").ok().and_then(|s| s.parse().ok());
        policy.seconds = seconds.filter(|s: &f64| s.is_finite() && *s >= 0.0).unwrap_or(policy.seconds);
        Self { attempt, policy, last: Mutex::new(Instant::now()), writing: Mutex::default() }
    }

    /// Whether to save before step `next`: this save is to be kept for good, or the last one began long enough ago and
    /// is written.
    pub(crate) fn are_due(&self, next: u64) -> bool {
        if self.policy.stays(next) {
            return true;
        }
        let is_time = lock(&self.last).elapsed() >= Duration::from_secs_f64(self.policy.seconds.min(1e9));
        is_time && lock(&self.writing).as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Writes a save in the background; if the interval is 0, in the foreground. Returns the error of the save before.
    pub(crate) fn begin(
        &self,
        cursor: u64,
        detail: Value,
        files: Vec<(&'static str, WriteFile<'static>)>,
    ) -> Result<(), Error> {
        self.wait()?;
        *lock(&self.last) = Instant::now();
        if self.policy.seconds == 0.0 {
            return self.write(cursor, detail, files);
        }
        let (attempt, policy) = (self.attempt.clone(), self.policy);
        *lock(&self.writing) = Some(std::thread::spawn(move || write(&attempt, &policy, cursor, detail, files)));
        Ok(())
    }

    /// Writes a save now.
    pub(crate) fn write(&self, cursor: u64, detail: Value, files: Vec<(&str, WriteFile)>) -> Result<(), Error> {
        self.wait()?;
        write(&self.attempt, &self.policy, cursor, detail, files)
    }

    /// Waits until nothing is being written.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        match lock(&self.writing).take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

fn write(
    attempt: &Attempt,
    policy: &SavePolicy,
    cursor: u64,
    detail: Value,
    files: Vec<(&str, WriteFile)>,
) -> Result<(), Error> {
    let before = attempt.progress()?;
    let mut records = BTreeMap::new();
    for (name, write_file) in files {
        let path = format!("saves/{cursor}/{name}");
        let mut upload = attempt.upload_at(&path)?;
        write_file(&mut upload).map_err(|e| smelt_store::Error::from_write(e, attempt.store(), &path))?;
        records.insert(name.to_owned(), upload.finish(&path)?);
    }
    let mut older: Vec<Kept> = before.map(Progress::into_saves).unwrap_or_default();
    older.retain(|save| save.cursor != cursor);
    let mut nearer = 1; // the new one
    let (older, dropped): (Vec<Kept>, Vec<Kept>) = older.into_iter().partition(|save| {
        nearer += 1;
        nearer <= policy.last || policy.stays(save.cursor)
    });
    let stays = policy.stays(cursor);
    attempt.save_progress(&Progress { cursor, files: records, books: Default::default(), detail, stays, older })?;
    dropped.iter().try_for_each(|save| attempt.delete_all(&format!("saves/{}", save.cursor)))?;
    Ok(())
}

/// The newest save whose files are whole, and what was wrong with newer ones. Without any the work starts over.
pub(crate) fn newest(attempt: &Attempt, scratch: &Path) -> Result<(Option<Saved>, Vec<String>), Error> {
    let mut faults = Vec::new();
    for save in attempt.progress()?.map(Progress::into_saves).unwrap_or_default() {
        match read(attempt, &save, scratch) {
            Ok(files) => return Ok((Some(Saved { cursor: save.cursor, detail: save.detail, files }), faults)),
            Err(error) if error.exit_code() == ExitCode::Data => {
                faults.push(format!("the save at {} is skipped: {error}", save.cursor));
            }
            Err(error) => return Err(error), // it may be whole; the store just does not answer
        }
    }
    Ok((None, faults))
}

fn read(attempt: &Attempt, save: &Kept, scratch: &Path) -> Result<BTreeMap<String, Mapped>, Error> {
    let read =
        |record: &FileRecord| Mapped::open(attempt.store().fetch(&attempt.key(&record.path), record, scratch)?);
    save.files.iter().map(|(name, record)| Ok((name.clone(), read(record)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_schemas::Digest;
    use smelt_store::Store;

    fn saves(store: &Store, last: usize) -> Saves {
        let attempt = Attempt::begin_beside(store, "train", &Digest::of(b"recipe"), 0).unwrap();
        Saves::new(Arc::new(attempt), SavePolicy { seconds: 1e-9, last, every: 0 })
    }

    fn found(saves: &Saves) -> (Option<u64>, Vec<String>) {
        let (saved, faults) = newest(&saves.attempt, &std::env::temp_dir()).unwrap();
        if let Some(saved) = &saved {
            assert_eq!(saved.files["state"][..], *format!("state {}", saved.cursor).as_bytes());
            assert_eq!(saved.detail, Value::from(10 * saved.cursor), "the detail is that of the same save");
        }
        (saved.map(|saved| saved.cursor), faults)
    }

    fn begin(saves: &Saves, cursor: u64) {
        saves.begin(cursor, Value::from(10 * cursor), vec![("state", bytes(format!("state {cursor}")))]).unwrap();
    }

    #[test]
    fn the_last_saves_stay_and_a_damaged_one_is_passed_over() {
        let store = Store::open("memory:saves").unwrap();
        let saves = saves(&store, 2);
        (1..=4).for_each(|cursor| begin(&saves, cursor));
        saves.wait().unwrap();
        let kept = store.list_here(&saves.attempt.key("saves")).unwrap().1;
        assert_eq!(kept, ["3", "4"]);
        assert_eq!(found(&saves), (Some(4), vec![]));

        store.put(&saves.attempt.key("saves/4/state"), b"state 5").unwrap();
        let (cursor, faults) = found(&saves);
        assert_eq!(cursor, Some(3));
        assert!(faults.len() == 1 && faults[0].starts_with("the save at 4 is skipped: "), "{faults:?}");
        store.delete(&saves.attempt.key("saves/3/state")).unwrap();
        assert_eq!(found(&saves).0, None, "without a whole save the work starts over");
    }

    #[test]
    fn every_so_many_steps_a_save_is_due_and_stays() {
        let store = Store::open("memory:every").unwrap();
        let attempt = Attempt::begin_beside(&store, "train", &Digest::of(b"recipe"), 0).unwrap();
        let saves = Saves::new(Arc::new(attempt), SavePolicy { seconds: 1e9, last: 2, every: 4 });
        assert!(!saves.are_due(3) && saves.are_due(4));
        (1..=10).for_each(|cursor| begin(&saves, cursor));
        saves.wait().unwrap();
        assert_eq!(store.list_here(&saves.attempt.key("saves")).unwrap().1, ["10", "4", "8", "9"]);
        assert_eq!(found(&saves).0, Some(10));
    }

    #[test]
    fn what_went_wrong_in_the_background_is_told_at_the_next_save() {
        let folder = std::env::temp_dir().join(format!("smelt-saves-{}", smelt_store::unique()));
        let store = Store::open(folder.to_str().unwrap()).unwrap();
        let saves = saves(&store, 1);
        begin(&saves, 1);
        saves.wait().unwrap();
        // a file where the next save's folder would be
        std::fs::write(folder.join(saves.attempt.key("saves/2")), b"").unwrap();
        begin(&saves, 2);
        let error = saves.begin(3, Value::Null, Vec::new()).unwrap_err();
        assert!(error.to_string().contains("saves/2/state"), "{error}");
        assert_eq!(found(&saves), (Some(1), vec![]), "the save before it stays");
        drop(saves);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
