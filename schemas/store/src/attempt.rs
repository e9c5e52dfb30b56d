//! One attempt at an artifact: a lease, the files written so far, and the records that say which of them count.
//!
//! A start takes over the newest lapsed attempt of the same edition, at once if its process on this boot is gone.
//! Files that no unit and no progress names are ignored. A process that loses the lease stops and writes nothing more.
//! Of two processes that begin the same edition at once one works; the other waits, and adopts what it commits.

use crate::artifacts::{Commit, artifact_key, safe_name, to_json};
use crate::clock::now;
use crate::entry::Version;
use crate::error::{Error, Result};
use crate::owner::Owner;
use crate::store::Store;
use crate::unique::unique;
use crate::upload::Upload;
use crate::work::WorkRecord;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smelt_schemas::{ArtifactRef, Books, Digest, FileRecord, Manifest};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A lease that is not renewed for this long has lapsed.
const LEASE_SECONDS: f64 = 120.0;
/// The holder of a lease renews it this often.
pub const RENEW: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub owner: Owner,
    /// The edition that this attempt is for.
    pub edition: u32,
    /// Since when the owner works on it: seconds since 1970, UTC.
    #[serde(default)]
    pub began: f64,
    /// Seconds since 1970, UTC.
    pub renewed: f64,
    /// Given back, or finished.
    #[serde(default)]
    pub released: bool,
    /// How often the attempt was taken over.
    #[serde(default)]
    pub resumed: u32,
    /// Seconds worked by earlier owners.
    #[serde(default)]
    pub seconds: f64,
    /// Many workers join this attempt, each with a lease of its own in `workers/`; this one is held by nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

impl Lease {
    pub(crate) fn new(owner: Owner, edition: u32) -> Self {
        let now = now();
        Self { owner, edition, began: now, renewed: now, released: false, resumed: 0, seconds: 0.0, shared: false }
    }

    pub fn has_lapsed(&self, now: f64, me: &Owner) -> bool {
        self.released || has_lapsed(&self.owner, self.renewed, now, me)
    }
}

/// Whether an owner's claim on an attempt or a run, last renewed at `renewed`, is void.
pub fn has_lapsed(owner: &Owner, renewed: f64, now: f64, me: &Owner) -> bool {
    now - renewed > LEASE_SECONDS || owner.is_gone(me)
}

/// Folder of the records of units, inside an attempt.
pub(crate) const UNITS: &str = "units";
/// Folder of the files that units write for later phases, inside an attempt.
pub(crate) const WORK: &str = "work";

/// How far a running job is: the newest save, and older ones that are kept. Written after the files that it names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Where to continue, such as the next training step.
    pub cursor: u64,
    /// Files of the save, by name; keys are relative to the attempt's folder.
    pub files: BTreeMap<String, FileRecord>,
    pub books: Books,
    #[serde(default)]
    pub detail: Value,
    /// This save is kept when the artifact is committed; others go.
    #[serde(default)]
    pub stays: bool,
    /// Saves before this one, the newest first.
    #[serde(default)]
    pub older: Vec<Kept>,
}

/// An older save.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub cursor: u64,
    pub files: BTreeMap<String, FileRecord>,
    #[serde(default)]
    pub detail: Value,
    #[serde(default)]
    pub stays: bool,
}

impl Progress {
    /// All saves, the newest first.
    pub fn into_saves(self) -> Vec<Kept> {
        let newest = Kept { cursor: self.cursor, files: self.files, detail: self.detail, stays: self.stays };
        std::iter::once(newest).chain(self.older).collect()
    }
}

/// One indivisible piece of work, done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// Port to files.
    pub files: BTreeMap<String, Vec<FileRecord>>,
    /// What it wrote for later phases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub work: Vec<WorkRecord>,
    pub books: Books,
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// Small results that a later phase reads.
    #[serde(default)]
    pub detail: Value,
}

/// An attempt that this process holds. A background thread renews the lease until this is dropped.
#[derive(Debug)]
pub struct Attempt {
    pub(crate) hold: Arc<Hold>,
    pub(crate) lease: Lease,
    started: f64,
    /// What this process last knew `progress.json` to be: only that is replaced.
    known: Mutex<Option<Version>>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    renewer: Option<JoinHandle<()>>,
}

/// How a start ended.
#[derive(Debug)]
pub enum Begun {
    Held(Box<Attempt>),
    /// Another process has committed this edition meanwhile.
    Committed(Box<Manifest>),
}

impl Attempt {
    /// Takes over the newest lapsed attempt of this edition, or begins a new one. While another process works on the
    /// edition, waits for what it commits; `waits` is told for whom, once each.
    pub fn begin(
        store: &Store,
        stage: &str,
        fingerprint: &Digest,
        edition: u32,
        mut waits: impl FnMut(&Owner),
    ) -> Result<Begun> {
        let artifact = ArtifactRef { stage: stage.into(), fingerprint: fingerprint.clone(), edition };
        let (mut told, mut pause) = (None, Duration::from_millis(50));
        loop {
            if let Some(manifest) = store.manifest(&artifact)? {
                return Ok(Begun::Committed(Box::new(manifest)));
            }
            let mut rival = live(store, &artifact, None)?.into_iter().next().map(|(_, owner)| owner);
            if rival.is_none() {
                let attempt = Self::begin_beside(store, stage, fingerprint, edition)?;
                rival = attempt.rival(&artifact)?;
                if rival.is_none() {
                    // Another process may have committed after this one looked for its manifest, and released its lease
                    // before this one looked for leases.
                    let Some(manifest) = store.manifest(&artifact)? else { return Ok(Begun::Held(Box::new(attempt))) };
                    attempt.give_up();
                    return Ok(Begun::Committed(Box::new(manifest)));
                }
                attempt.give_up();
            }
            if let Some(owner) = rival.filter(|owner| told.as_ref() != Some(&owner.id)) {
                waits(&owner);
                told = Some(owner.id);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// The same, though another process may work on the edition: both do all the work, and one commits.
    pub fn begin_beside(store: &Store, stage: &str, fingerprint: &Digest, edition: u32) -> Result<Self> {
        let me = Owner::this_process();
        let recipe = format!("{}/attempts", artifact_key(stage, fingerprint));
        let mut attempts = store.list_here(&recipe)?.1;
        attempts.sort();
        for id in attempts.into_iter().rev() {
            let folder = format!("{recipe}/{id}");
            let key = format!("{folder}/lease.json");
            let Some((bytes, version)) = store.get_versioned(&key)? else { continue };
            let Ok(old) = serde_json::from_slice::<Lease>(&bytes) else { continue };
            if old.edition != edition || old.shared || !old.has_lapsed(now(), &me) {
                continue;
            }
            let now = now();
            let resumed = old.resumed + 1;
            let lease = Lease { owner: me.clone(), began: now, renewed: now, released: false, resumed, ..old };
            if store.swap(&key, &version, &to_json(&lease))? {
                return Self::held(store, folder, id, key, lease);
            }
        }
        let id = format!("{:012x}-{}", (now() * 1e3) as u64, unique());
        let folder = format!("{recipe}/{id}");
        let (lease, key) = (Lease::new(me, edition), format!("{folder}/lease.json"));
        if !store.create(&key, &to_json(&lease))? {
            return Err(store.corrupt(&folder, "exists already, though its name was just drawn"));
        }
        Self::held(store, folder, id, key, lease)
    }

    pub(crate) fn held(store: &Store, folder: String, id: String, lease_key: String, lease: Lease) -> Result<Self> {
        let known = store.get_versioned(&format!("{folder}/progress.json"))?.map(|(_, version)| version);
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let hold = Arc::new(Hold {
            store: store.clone(),
            folder,
            id,
            lease_key,
            owner: lease.owner.id.clone(),
            lost: AtomicBool::new(false),
            renewed: Mutex::new(Instant::now()),
        });
        let renewer = {
            let (hold, stop) = (hold.clone(), stop.clone());
            std::thread::spawn(move || {
                let (done, signal) = &*stop;
                let mut done = done.lock().expect("nothing panics while it holds this lock");
                while !*done {
                    done = signal.wait_timeout(done, RENEW).expect("as above").0;
                    // A store that does not answer is asked again; a lease that somebody else holds is lost for good.
                    if *done || matches!(hold.renew(), Ok(false)) {
                        return;
                    }
                }
            })
        };
        Ok(Self { hold, lease, started: now(), known: Mutex::new(known), stop, renewer: Some(renewer) })
    }

    /// Another process that goes on with this edition, if this one must give up. Of two that begin at the same moment,
    /// the one with the smaller name goes on, and the other sees it and gives up. One with a larger name that stays
    /// had looked before this attempt was there: then this one gives up.
    fn rival(&self, artifact: &ArtifactRef) -> Result<Option<Owner>> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let since = Instant::now();
        loop {
            let others = live(&self.hold.store, artifact, Some(&self.hold.id))?;
            let Some((id, owner)) = others.into_iter().min_by(|a, b| a.0.cmp(&b.0)) else { return Ok(None) };
            if id < self.hold.id || since.elapsed() > PATIENCE {
                return Ok(Some(owner));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Leaves the work to another process.
    fn give_up(self) {
        let (hold, is_fresh) = (self.hold.clone(), self.lease.resumed == 0);
        self.release();
        if is_fresh {
            drop(hold.store.delete_all(&hold.folder)); // what stays is empty, and `gc` deletes it
        }
    }

    pub fn id(&self) -> &str {
        &self.hold.id
    }

    pub fn store(&self) -> &Store {
        &self.hold.store
    }

    /// How many earlier processes worked on it.
    pub fn resumed(&self) -> u32 {
        self.lease.resumed
    }

    /// Seconds worked on it, by all its owners.
    pub fn seconds(&self) -> f64 {
        self.workers_seconds().unwrap_or(self.lease.seconds + self.own_seconds())
    }

    /// Since this process began.
    pub(crate) fn own_seconds(&self) -> f64 {
        now() - self.started
    }

    /// An error once somebody else holds the lease: stop, and write nothing more. Reads the lease from the store.
    pub fn check(&self) -> Result<()> {
        self.hold.check()
    }

    /// Whether the lease is known to be lost, without asking the store: work that takes long looks here.
    pub fn is_lost(&self) -> bool {
        self.hold.lost.load(Ordering::SeqCst)
    }

    /// Commits the edition. The lease is renewed first, so that nobody can take the attempt over meanwhile; then the
    /// files in it that nothing names are deleted.
    pub fn commit(&self, manifest: &Manifest) -> Result<Commit> {
        self.check()?;
        if !self.hold.renew()? {
            return Err(self.hold.lost()?);
        }
        let commit = self.hold.store.commit(manifest)?;
        // The work is done whether or not this succeeds: what stays is found by `gc`.
        drop(match &commit {
            Commit::Won => self.hold.store.tidy(manifest),
            // Another worker of this attempt committed it: the files are in this folder.
            Commit::Adopted(theirs) if theirs.attempt == self.hold.id => Ok(()),
            Commit::Adopted(_) => self.hold.store.delete_all(&self.hold.folder),
        });
        Ok(commit)
    }

    /// The key of a file of this attempt: `files/<port>/<path>`, `saves/...`.
    pub fn key(&self, path: &str) -> String {
        format!("{}/{path}", self.hold.folder)
    }

    /// Opens a file of a port. `at`: where it will lie inside the port's folder.
    pub fn upload(&self, port: &str, at: &str) -> Result<Upload> {
        self.upload_at(&format!("files/{port}/{at}"))
    }

    /// Opens a file of this attempt, at the path that `key` takes. It becomes visible only if the lease is still held
    /// then.
    pub fn upload_at(&self, path: &str) -> Result<Upload> {
        self.check()?;
        let hold = self.hold.clone();
        Ok(self.hold.store.upload(&self.key(path))?.only_if(Box::new(move || hold.check())))
    }

    pub fn progress(&self) -> Result<Option<Progress>> {
        self.hold.store.get_json(&self.key("progress.json"))
    }

    /// Replaces the saved progress, whose files must have been written before, if it still is what this process saved
    /// or found last. A process that slept while another one took the attempt over therefore replaces nothing.
    pub fn save_progress(&self, progress: &Progress) -> Result<()> {
        let (store, key, bytes) = (&self.hold.store, self.key("progress.json"), to_json(progress));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            self.check()?;
            let is_saved = match &*known {
                Some(version) => store.swap(&key, version, &bytes)?,
                None => store.create(&key, &bytes)?,
            };
            // What is there now is this save, or one that is not this process's. As long as this process holds the
            // lease such a one is older: it was on its way when the attempt was taken over, or its reply was lost.
            *known = store.get_versioned(&key)?.map(|(_, version)| version);
            if is_saved {
                return Ok(());
            }
        }
    }

    /// Deletes everything below `path`, a folder of this attempt.
    pub fn delete_all(&self, path: &str) -> Result<()> {
        self.check()?;
        self.hold.store.delete_all(&self.key(path))
    }

    fn unit_key(&self, phase: &str, index: u64) -> String {
        self.key(&format!("{UNITS}/{}/{index:06}.json", safe_name(phase)))
    }

    pub fn unit(&self, phase: &str, index: u64) -> Result<Option<UnitRecord>> {
        self.hold.store.get_json(&self.unit_key(phase, index))
    }

    /// Numbers of the units of a phase that are committed, ascending.
    pub fn units(&self, phase: &str) -> Result<Vec<u64>> {
        self.numbers(UNITS, phase)
    }

    /// Numbers that name the files of a phase in `folder`, ascending.
    pub(crate) fn numbers(&self, folder: &str, phase: &str) -> Result<Vec<u64>> {
        let files = self.hold.store.list_here(&self.key(&format!("{folder}/{}", safe_name(phase))))?.0;
        let mut found: Vec<u64> = files.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Commits a unit; if another worker was first, its record counts and is returned.
    pub fn commit_unit(&self, phase: &str, index: u64, record: UnitRecord) -> Result<UnitRecord> {
        self.check()?;
        let key = self.unit_key(phase, index);
        let created = self.hold.store.create(&key, &to_json(&record));
        match (created, self.hold.store.get_json(&key)?) {
            (Ok(true), _) => Ok(record),
            (_, Some(found)) => Ok(found),
            (Err(e), None) => Err(e),
            (Ok(false), None) => Err(self.hold.store.corrupt(&key, "was said to exist, and does not")),
        }
    }

    /// Gives the lease back, so that the next start need not wait for it to lapse.
    pub fn release(mut self) {
        self.stop_renewing();
        let seconds = self.lease.seconds + self.own_seconds();
        // Best effort: a lease that is not given back lapses by itself.
        drop(self.hold.change(|l| (l.released, l.renewed, l.seconds) = (true, now(), seconds)));
    }

    fn stop_renewing(&mut self) {
        *self.stop.0.lock().expect("nothing panics while it holds this lock") = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.renewer.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.stop_renewing();
    }
}

/// What this process holds, as its threads share it.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) store: Store,
    pub(crate) folder: String,
    pub(crate) id: String,
    /// Where its lease lies.
    pub(crate) lease_key: String,
    /// The id of this process's `Owner`.
    pub(crate) owner: String,
    lost: AtomicBool,
    renewed: Mutex<Instant>,
}

impl Hold {
    /// An error if this process does not hold the lease any more. One that it has not renewed for long, because the
    /// machine slept or the store did not answer, is renewed first: somebody may be about to take it.
    fn check(&self) -> Result<()> {
        let lease: Option<Lease> = self.store.get_json(&self.lease_key)?;
        if self.lost.load(Ordering::SeqCst) || lease.is_none_or(|lease| lease.owner.id != self.owner) {
            return Err(self.lost()?);
        }
        let age = self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if age > 2 * RENEW && !self.renew()? {
            return Err(self.lost()?);
        }
        Ok(())
    }

    /// The error that says who holds the lease now.
    fn lost(&self) -> Result<Error> {
        self.lost.store(true, Ordering::SeqCst);
        let lease: Option<Lease> = self.store.get_json(&self.lease_key)?;
        let name = |l: Lease| format!("process {} on {}", l.owner.pid, l.owner.host);
        Ok(Error::LeaseLost { attempt: self.id.clone(), holder: lease.map_or_else(|| "nobody".into(), name) })
    }

    /// False if somebody else holds the lease.
    fn renew(&self) -> Result<bool> {
        let begun = Instant::now();
        let is_ours = self.change(|l| l.renewed = now())?;
        match is_ours {
            true => *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = begun,
            false => self.lost.store(true, Ordering::SeqCst),
        }
        Ok(is_ours)
    }

    /// Changes the lease if this process still holds it; false if not. Its own threads may change it at the same time.
    fn change(&self, mut change: impl FnMut(&mut Lease)) -> Result<bool> {
        loop {
            let Some((bytes, version)) = self.store.get_versioned(&self.lease_key)? else { return Ok(false) };
            let Ok(mut lease) = serde_json::from_slice::<Lease>(&bytes) else { return Ok(false) };
            if lease.owner.id != self.owner {
                return Ok(false);
            }
            change(&mut lease);
            if self.store.swap(&self.lease_key, &version, &to_json(&lease))? {
                return Ok(true);
            }
        }
    }
}

/// Attempts at an edition whose owners are alive, except `own`.
fn live(store: &Store, artifact: &ArtifactRef, own: Option<&str>) -> Result<Vec<(String, Owner)>> {
    let me = Owner::this_process();
    let recipe = format!("{}/attempts", artifact_key(&artifact.stage, &artifact.fingerprint));
    let mut found = Vec::new();
    for id in store.list_here(&recipe)?.1 {
        if own == Some(id.as_str()) {
            continue;
        }
        let Some(bytes) = store.get_opt(&format!("{recipe}/{id}/lease.json"))? else { continue };
        let Ok(lease) = serde_json::from_slice::<Lease>(&bytes) else { continue };
        if lease.edition == artifact.edition && !lease.shared && !lease.has_lapsed(now(), &me) {
            found.push((id, lease.owner));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn recipe() -> Digest {
        Digest::of(b"recipe")
    }

    #[test]
    fn a_lapsed_attempt_is_taken_over_with_its_units_and_a_live_one_is_not() {
        let store = Store::open("memory:take-over").unwrap();
        let first = Attempt::begin_beside(&store, "dedup", &recipe(), 0).unwrap();
        let mut upload = first.upload("documents", "00000.parquet").unwrap();
        upload.write_all(b"rows").unwrap();
        let file = upload.finish("00000.parquet").unwrap();
        let mut record = UnitRecord::default();
        record.files.insert("documents".into(), vec![file]);
        first.commit_unit("filter", 3, record.clone()).unwrap();

        let beside = Attempt::begin_beside(&store, "dedup", &recipe(), 0).unwrap();
        assert_ne!(beside.id(), first.id(), "a live attempt was taken over");
        beside.release();

        let id = first.id().to_owned();
        first.release();
        // The newest lapsed one goes first; a rerun (edition 1) takes none of them.
        let third = Attempt::begin_beside(&store, "dedup", &recipe(), 1).unwrap();
        assert_eq!(third.resumed(), 0);
        let second = Attempt::begin_beside(&store, "dedup", &recipe(), 0).unwrap();
        let again = Attempt::begin_beside(&store, "dedup", &recipe(), 0).unwrap();
        assert_eq!((second.resumed(), again.resumed()), (1, 1));
        let taken = [second, again].into_iter().find(|a| a.id() == id).expect("both lapsed ones are taken over");
        assert_eq!(taken.units("filter").unwrap(), [3]);
        assert_eq!(taken.unit("filter", 3).unwrap(), Some(record));
    }

    #[test]
    fn whoever_loses_the_lease_stops() {
        let store = Store::open("memory:lost").unwrap();
        let attempt = Attempt::begin_beside(&store, "dedup", &recipe(), 0).unwrap();
        attempt.check().unwrap();
        let key = attempt.key("lease.json");
        let mut lease: Lease = store.get_json(&key).unwrap().unwrap();
        lease.owner = Owner { id: "other".into(), host: "elsewhere".into(), pid: 7, ..lease.owner };
        store.put(&key, &to_json(&lease)).unwrap();
        assert!(!attempt.hold.change(|l| l.renewed = 0.0).unwrap() && !attempt.is_lost());
        let error = attempt.save_progress(&Progress { cursor: 1, ..Progress::default() });
        assert!(error.unwrap_err().to_string().ends_with("lost its lease to process 7 on elsewhere"));
        assert!(attempt.is_lost(), "work that asks no store is told");
        let error = attempt.commit(&manifest("mine")).unwrap_err();
        assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
        assert_eq!(store.artifacts().unwrap(), []);
        // Whoever holds it now cannot lose it to this process again.
        assert_eq!(store.get_json::<Lease>(&key).unwrap().unwrap().owner.id, "other");
    }

    #[test]
    fn an_owner_that_slept_overwrites_no_newer_progress() {
        let folder = std::env::temp_dir().join(format!("smelt-progress-{}", unique()));
        for address in [folder.to_str().unwrap(), "memory:progress"] {
            let store = Store::open(address).unwrap();
            let sleeper = Attempt::begin_beside(&store, "train", &recipe(), 0).unwrap();
            let progress = |cursor| Progress { cursor, ..Progress::default() };
            sleeper.save_progress(&progress(1)).unwrap();
            let key = sleeper.key("lease.json");
            let lease: Lease = store.get_json(&key).unwrap().unwrap();
            store.put(&key, &to_json(&Lease { released: true, ..lease.clone() })).unwrap();
            let other = Attempt::begin_beside(&store, "train", &recipe(), 0).unwrap();
            assert_eq!(other.id(), sleeper.id());
            other.save_progress(&progress(5)).unwrap();
            // The sleeper has looked at its lease just before: it wakes up between that and the write.
            let theirs = store.get(&key).unwrap();
            store.put(&key, &to_json(&lease)).unwrap();
            let stale = sleeper.known.lock().unwrap().clone().unwrap();
            assert!(!store.swap(&sleeper.key("progress.json"), &stale, &to_json(&progress(2))).unwrap());
            store.put(&key, &theirs).unwrap();
            assert!(matches!(sleeper.save_progress(&progress(2)), Err(Error::LeaseLost { .. })));
            assert_eq!(other.progress().unwrap().unwrap().cursor, 5);
            // A write of the sleeper that was on its way does not stop the owner.
            store.put(&other.key("progress.json"), &to_json(&progress(2))).unwrap();
            other.save_progress(&progress(6)).unwrap();
            assert_eq!(other.progress().unwrap().unwrap().cursor, 6);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn manifest(attempt: &str) -> Manifest {
        crate::artifacts::tests::manifest("dedup", &recipe(), attempt)
    }

    #[test]
    fn a_lease_that_was_not_renewed_for_long_is_renewed_before_anything_is_written() {
        let store = Store::open("memory:asleep").unwrap();
        let attempt = Attempt::begin_beside(&store, "dedup", &recipe(), 0).unwrap();
        let key = attempt.key("lease.json");
        let asleep = || *attempt.hold.renewed.lock().unwrap() -= 3 * RENEW;
        let age = || now() - store.get_json::<Lease>(&key).unwrap().unwrap().renewed;
        let old = |l: &mut Lease| l.renewed -= 100.0;
        assert!(attempt.hold.change(old).unwrap() && age() > 90.0);
        asleep();
        attempt.save_progress(&Progress::default()).unwrap();
        assert!(age() < 90.0, "it was renewed");
    }

    #[test]
    fn of_two_that_begin_at_once_one_works_and_the_other_adopts() {
        let folder = std::env::temp_dir().join(format!("smelt-two-{}", unique()));
        // the shorter the work, the more often one begins while another commits
        for (round, milliseconds) in [100, 0, 0, 1, 2, 3, 5, 8, 13, 21, 34, 55].into_iter().enumerate() {
            let address = match round % 2 {
                0 => folder.join(round.to_string()).to_str().unwrap().to_owned(),
                _ => format!("memory:two-{round}"),
            };
            let store = Store::open(&address).unwrap();
            let (worked, waited) = (Mutex::new(0), Mutex::new(0));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        match Attempt::begin(&store, "dedup", &recipe(), 0, |_| *waited.lock().unwrap() += 1).unwrap() {
                            Begun::Held(attempt) => {
                                *worked.lock().unwrap() += 1;
                                std::thread::sleep(Duration::from_millis(milliseconds));
                                assert!(matches!(attempt.commit(&manifest(attempt.id())).unwrap(), Commit::Won));
                                attempt.release();
                            }
                            Begun::Committed(found) => assert_eq!(found.stage, "dedup"),
                        }
                    });
                }
            });
            assert_eq!((*worked.lock().unwrap(), store.artifacts().unwrap().len()), (1, 1), "{address}");
            let attempts = store.list_here(&format!("{}/attempts", artifact_key("dedup", &recipe()))).unwrap().1;
            assert_eq!(attempts.len(), 1, "whoever gave up left nothing: {attempts:?}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_upload_becomes_visible_only_while_the_lease_is_held() {
        let folder = std::env::temp_dir().join(format!("smelt-lease-{}", unique()));
        for address in [folder.to_str().unwrap(), "memory:lease"] {
            let store = Store::open(address).unwrap();
            let attempt = Attempt::begin_beside(&store, "dedup", &recipe(), 0).unwrap();
            // One small enough for a single put, one that S3 takes in parts.
            let mut uploads = [1usize, 9 << 20].map(|bytes| {
                let mut upload = attempt.upload("documents", &format!("{bytes}.parquet")).unwrap();
                upload.write_all(&vec![7; bytes]).unwrap();
                Some(upload)
            });
            let mut before = attempt.upload("documents", "before.parquet").unwrap();
            before.write_all(b"rows").unwrap();
            before.finish("before.parquet").unwrap();

            let key = attempt.key("lease.json");
            let mut lease: Lease = store.get_json(&key).unwrap().unwrap();
            lease.owner = Owner { id: "other".into(), host: "elsewhere".into(), pid: 7, ..lease.owner };
            store.put(&key, &to_json(&lease)).unwrap();
            for upload in uploads.iter_mut().filter_map(Option::take) {
                let error = upload.finish("late.parquet").unwrap_err();
                assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
            }
            assert!(matches!(attempt.upload("documents", "later.parquet"), Err(Error::LeaseLost { .. })));
            let files: Vec<String> = store.list(&attempt.key("files")).unwrap().into_iter().map(|e| e.key).collect();
            assert_eq!(files, [attempt.key("files/documents/before.parquet")]);
            if let Some(root) = store.directory() {
                let left = std::fs::read_dir(root.join(attempt.key("files/documents"))).unwrap().count();
                assert_eq!(left, 1, "a refused upload leaves no temporary file");
            }
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
