//! One attempt at an artifact: a lease, the files written so far, and the records that say which of them count.
//!
//! A start takes over the newest lapsed attempt of the same edition, at once if its process on this boot is gone.
//! Files that no unit and no progress names are ignored. A process that loses the lease stops and writes nothing more.

use crate::artifacts::{artifact_key, safe_name, to_json};
use crate::clock::now;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::unique::unique;
use crate::upload::Upload;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smelt_schemas::{Books, Digest, FileRecord};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A lease that is not renewed for this long has lapsed.
const LEASE_SECONDS: f64 = 120.0;
/// The holder of a claim renews it this often.
pub const RENEW: Duration = Duration::from_secs(30);

/// Who works on an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Random, another one for each process.
    pub id: String,
    pub host: String,
    /// Changes when the host restarts.
    pub boot: String,
    pub pid: u32,
    /// Clock ticks from boot to the start of the process: tells a reused pid from the old one.
    pub pid_start: u64,
}

impl Owner {
    pub fn this_process() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let pid = std::process::id();
        Self {
            id: unique(),
            host: read("/proc/sys/kernel/hostname"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            pid,
            pid_start: pid_start(pid).unwrap_or(0),
        }
    }

    /// True if this owner ran on this boot of this host and has ended.
    pub fn is_gone(&self, me: &Owner) -> bool {
        let here = !self.boot.is_empty() && self.boot == me.boot && self.host == me.host;
        here && pid_start(self.pid) != Some(self.pid_start)
    }
}

/// Field 22 of /proc/PID/stat; fields are counted after the name, which may hold blanks.
fn pid_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None; // ended, but its parent has not waited for it yet
    }
    fields.get(19)?.parse().ok()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub owner: Owner,
    /// The edition that this attempt is for.
    pub edition: u32,
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
}

impl Lease {
    pub fn has_lapsed(&self, now: f64, me: &Owner) -> bool {
        self.released || has_lapsed(&self.owner, self.renewed, now, me)
    }
}

/// Whether an owner's claim on an attempt or a run, last renewed at `renewed`, is void.
pub fn has_lapsed(owner: &Owner, renewed: f64, now: f64, me: &Owner) -> bool {
    now - renewed > LEASE_SECONDS || owner.is_gone(me)
}

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
}

impl Progress {
    /// All saves, the newest first.
    pub fn into_saves(self) -> Vec<Kept> {
        let newest = Kept { cursor: self.cursor, files: self.files, detail: self.detail };
        std::iter::once(newest).chain(self.older).collect()
    }
}

/// One indivisible piece of work, done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// Port to files.
    pub files: BTreeMap<String, Vec<FileRecord>>,
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
    store: Store,
    folder: String,
    id: String,
    lease: Lease,
    started: f64,
    stop: Arc<(Mutex<bool>, Condvar)>,
    renewer: Option<JoinHandle<()>>,
}

impl Attempt {
    /// Takes over the newest lapsed attempt of this recipe and edition, or begins a new one.
    pub fn begin(store: &Store, stage: &str, fingerprint: &Digest, edition: u32) -> Result<Self> {
        let me = Owner::this_process();
        let recipe = format!("{}/attempts", artifact_key(stage, fingerprint));
        let mut attempts = store.list_here(&recipe)?.1;
        attempts.sort();
        for id in attempts.into_iter().rev() {
            let folder = format!("{recipe}/{id}");
            let key = format!("{folder}/lease.json");
            let Some((bytes, version)) = store.get_versioned(&key)? else { continue };
            let Ok(old) = serde_json::from_slice::<Lease>(&bytes) else { continue };
            if old.edition != edition || !old.has_lapsed(now(), &me) {
                continue;
            }
            let lease = Lease { owner: me.clone(), renewed: now(), released: false, resumed: old.resumed + 1, ..old };
            if store.swap(&key, &version, &to_json(&lease))? {
                return Ok(Self::held(store, folder, id, lease));
            }
        }
        let id = format!("{:012x}-{}", (now() * 1e3) as u64, unique());
        let folder = format!("{recipe}/{id}");
        let lease = Lease { owner: me, edition, renewed: now(), released: false, resumed: 0, seconds: 0.0 };
        if !store.create(&format!("{folder}/lease.json"), &to_json(&lease))? {
            return Err(store.corrupt(&folder, "exists already, though its name was just drawn"));
        }
        Ok(Self::held(store, folder, id, lease))
    }

    fn held(store: &Store, folder: String, id: String, lease: Lease) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let renewer = {
            let (store, key, owner, stop) =
                (store.clone(), format!("{folder}/lease.json"), lease.owner.id.clone(), stop.clone());
            std::thread::spawn(move || {
                let (done, signal) = &*stop;
                let mut done = done.lock().expect("nothing panics while it holds this lock");
                while !*done {
                    done = signal.wait_timeout(done, RENEW).expect("as above").0;
                    if *done {
                        return;
                    }
                    // A store that does not answer is asked again; a lease that somebody else holds is lost for good.
                    if let Ok(false) = renew(&store, &key, &owner, |l| l.renewed = now()) {
                        return;
                    }
                }
            })
        };
        Self { store: store.clone(), folder, id, lease, started: now(), stop, renewer: Some(renewer) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How many earlier processes worked on it.
    pub fn resumed(&self) -> u32 {
        self.lease.resumed
    }

    /// Seconds worked on it, by all its owners.
    pub fn seconds(&self) -> f64 {
        self.lease.seconds + now() - self.started
    }

    /// An error once somebody else holds the lease: stop, and write nothing more. Reads the lease from the store.
    pub fn check(&self) -> Result<()> {
        check(&self.store, &self.folder, &self.id, &self.lease.owner.id)
    }

    /// The key of a file of this attempt: `files/<port>/<path>`, `saves/...`.
    pub fn key(&self, path: &str) -> String {
        format!("{}/{path}", self.folder)
    }

    /// Opens a file of a port.
    pub fn upload(&self, port: &str, path: &str) -> Result<Upload> {
        self.upload_at(&format!("files/{port}/{path}"))
    }

    /// Opens a file of this attempt, at the path that `key` takes. It becomes visible only if the lease is still held
    /// then.
    pub fn upload_at(&self, path: &str) -> Result<Upload> {
        self.check()?;
        let (store, folder) = (self.store.clone(), self.folder.clone());
        let (id, owner) = (self.id.clone(), self.lease.owner.id.clone());
        Ok(self.store.upload(&self.key(path))?.only_if(Box::new(move || check(&store, &folder, &id, &owner))))
    }

    pub fn progress(&self) -> Result<Option<Progress>> {
        self.store.get_json(&self.key("progress.json"))
    }

    /// Replaces the saved progress. Its files must have been written before.
    pub fn save_progress(&self, progress: &Progress) -> Result<()> {
        self.check()?;
        self.store.put(&self.key("progress.json"), &to_json(progress))
    }

    fn unit_key(&self, phase: &str, index: u64) -> String {
        self.key(&format!("units/{}/{index:06}.json", safe_name(phase)))
    }

    pub fn unit(&self, phase: &str, index: u64) -> Result<Option<UnitRecord>> {
        self.store.get_json(&self.unit_key(phase, index))
    }

    /// Units of a phase that are committed, ascending.
    pub fn units(&self, phase: &str) -> Result<Vec<(u64, UnitRecord)>> {
        let folder = self.key(&format!("units/{}", safe_name(phase)));
        let mut found = Vec::new();
        for name in self.store.list_here(&folder)?.0 {
            let Some(index) = name.strip_suffix(".json").and_then(|n| n.parse().ok()) else { continue };
            if let Some(record) = self.unit(phase, index)? {
                found.push((index, record));
            }
        }
        Ok(found)
    }

    /// Commits a unit; if another worker was first, its record counts and is returned.
    pub fn commit_unit(&self, phase: &str, index: u64, record: UnitRecord) -> Result<UnitRecord> {
        self.check()?;
        let key = self.unit_key(phase, index);
        let created = self.store.create(&key, &to_json(&record));
        match (created, self.store.get_json(&key)?) {
            (Ok(true), _) => Ok(record),
            (_, Some(found)) => Ok(found),
            (Err(e), None) => Err(e),
            (Ok(false), None) => Err(self.store.corrupt(&key, "was said to exist, and does not")),
        }
    }

    /// Gives the lease back, so that the next start need not wait for it to lapse.
    pub fn release(mut self) {
        self.stop_renewing();
        let seconds = self.seconds();
        let key = format!("{}/lease.json", self.folder);
        // Best effort: a lease that is not given back lapses by itself.
        drop(renew(&self.store, &key, &self.lease.owner.id, |l| (l.released, l.seconds) = (true, seconds)));
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

/// An error if `owner` does not hold the lease of the attempt `id` in `folder`.
fn check(store: &Store, folder: &str, id: &str, owner: &str) -> Result<()> {
    let lease: Option<Lease> = store.get_json(&format!("{folder}/lease.json"))?;
    match lease {
        Some(lease) if lease.owner.id == owner => Ok(()),
        other => {
            let name = |l: Lease| format!("process {} on {}", l.owner.pid, l.owner.host);
            Err(Error::LeaseLost { attempt: id.into(), holder: other.map_or_else(|| "nobody".into(), name) })
        }
    }
}

/// Changes the lease if `owner` still holds it; false if not.
fn renew(store: &Store, key: &str, owner: &str, change: impl FnOnce(&mut Lease)) -> Result<bool> {
    let Some((bytes, version)) = store.get_versioned(key)? else { return Ok(false) };
    let Ok(mut lease) = serde_json::from_slice::<Lease>(&bytes) else { return Ok(false) };
    if lease.owner.id != owner {
        return Ok(false);
    }
    change(&mut lease);
    store.swap(key, &version, &to_json(&lease))
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
        let first = Attempt::begin(&store, "dedup", &recipe(), 0).unwrap();
        let mut upload = first.upload("documents", "00000.parquet").unwrap();
        upload.write_all(b"rows").unwrap();
        let file = upload.finish("00000.parquet").unwrap();
        let mut record = UnitRecord::default();
        record.files.insert("documents".into(), vec![file]);
        first.commit_unit("filter", 3, record.clone()).unwrap();

        let beside = Attempt::begin(&store, "dedup", &recipe(), 0).unwrap();
        assert_ne!(beside.id(), first.id(), "a live attempt was taken over");
        beside.release();

        let id = first.id().to_owned();
        first.release();
        // The newest lapsed one goes first; a rerun (edition 1) takes none of them.
        let third = Attempt::begin(&store, "dedup", &recipe(), 1).unwrap();
        assert_eq!(third.resumed(), 0);
        let second = Attempt::begin(&store, "dedup", &recipe(), 0).unwrap();
        let again = Attempt::begin(&store, "dedup", &recipe(), 0).unwrap();
        assert_eq!((second.resumed(), again.resumed()), (1, 1));
        let taken = [second, again].into_iter().find(|a| a.id() == id).expect("both lapsed ones are taken over");
        assert_eq!(taken.units("filter").unwrap(), vec![(3, record)]);
    }

    #[test]
    fn whoever_loses_the_lease_stops() {
        let store = Store::open("memory:lost").unwrap();
        let attempt = Attempt::begin(&store, "dedup", &recipe(), 0).unwrap();
        attempt.check().unwrap();
        let key = attempt.key("lease.json");
        let mut lease: Lease = store.get_json(&key).unwrap().unwrap();
        lease.owner = Owner { id: "other".into(), host: "elsewhere".into(), pid: 7, ..lease.owner };
        store.put(&key, &to_json(&lease)).unwrap();
        assert!(!renew(&store, &key, &attempt.lease.owner.id, |l| l.renewed = 0.0).unwrap());
        let error = attempt.save_progress(&Progress { cursor: 1, ..Progress::default() });
        assert!(error.unwrap_err().to_string().ends_with("lost its lease to process 7 on elsewhere"));
    }

    #[test]
    fn an_upload_becomes_visible_only_while_the_lease_is_held() {
        let folder = std::env::temp_dir().join(format!("smelt-lease-{}", unique()));
        for address in [folder.to_str().unwrap(), "memory:lease"] {
            let store = Store::open(address).unwrap();
            let attempt = Attempt::begin(&store, "dedup", &recipe(), 0).unwrap();
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

    #[test]
    fn a_process_that_ended_is_gone_and_one_that_runs_is_not() {
        let me = Owner::this_process();
        assert!(!me.is_gone(&me));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = Owner { pid: child.id(), pid_start: 1, ..me.clone() };
        child.wait().unwrap();
        assert!(ended.is_gone(&me));
        assert!(!Owner { host: "elsewhere".into(), ..ended }.is_gone(&me), "another host cannot be asked");
    }
}
