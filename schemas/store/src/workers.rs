//! Many workers at one attempt. Each joins it with a lease of its own, claims units one by one, and commits them.
//!
//! ```text
//! attempts/e<edition>/lease.json              created once; says that the attempt is shared
//! attempts/e<edition>/workers/<worker>.json   lease of one process, which alone renews it
//! attempts/e<edition>/claims/<phase>/<i>.json who works on a unit, and the how manieth that is
//! attempts/e<edition>/units/<phase>/<i>.json  record of a unit, create-only: whoever commits first has done it
//! ```
//!
//! A claim is void when the lease of its worker is. Nobody can stop a process that slept for longer than that, so its
//! successor takes the next *turn*, and the files of each turn have a place of their own: no file that a record names
//! is ever written by two. A process that has ended, or that gave its lease back, writes nothing more, and its turn
//! goes on.

use crate::artifacts::{artifact_key, safe_name, to_json};
use crate::attempt::{Attempt, Begun, Lease};
use crate::clock::now;
use crate::error::Result;
use crate::owner::Owner;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use smelt_schemas::{ArtifactRef, Digest};

/// Folder of the workers' leases, inside an attempt.
pub(crate) const WORKERS: &str = "workers";
/// Folder of the claims on units, inside an attempt.
pub(crate) const CLAIMS: &str = "claims";

/// Who works on a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Claim {
    /// Names the lease.
    worker: String,
    /// 0 for the first worker, one more for each that may write beside another one.
    turn: u32,
}

impl Attempt {
    /// Joins the attempt at this edition that all workers share, and begins it if it is not there.
    pub fn join(store: &Store, stage: &str, fingerprint: &Digest, edition: u32) -> Result<Begun> {
        let artifact = ArtifactRef { stage: stage.into(), fingerprint: fingerprint.clone(), edition };
        if let Some(manifest) = store.manifest(&artifact)? {
            return Ok(Begun::Committed(Box::new(manifest)));
        }
        let id = format!("e{edition}");
        let folder = format!("{}/attempts/{id}", artifact_key(stage, fingerprint));
        let mut lease = Lease::new(Owner::this_process(), edition);
        // Whoever is first creates it; its own lease is the one below.
        store.create(&format!("{folder}/lease.json"), &to_json(&Lease { shared: true, ..lease.clone() }))?;
        let workers = store.list_here(&format!("{folder}/{WORKERS}"))?.0;
        for worker in workers.iter().filter_map(|name| name.strip_suffix(".json")) {
            lease.resumed += u32::from(!matches!(state(store, &folder, worker, &lease.owner)?, State::Works));
        }
        let key = format!("{folder}/{WORKERS}/{}.json", lease.owner.id);
        store.create(&key, &to_json(&lease))?;
        let attempt = Self::held(store, folder, id, key, lease)?;
        // Another worker may have committed after this one looked for the manifest, and tidied up.
        let Some(manifest) = store.manifest(&artifact)? else { return Ok(Begun::Held(Box::new(attempt))) };
        attempt.leave();
        Ok(Begun::Committed(Box::new(manifest)))
    }

    /// Whether other workers may be at this attempt.
    pub fn is_shared(&self) -> bool {
        self.hold.lease_key != self.key("lease.json")
    }

    /// The turn in which this process now works on a unit; `None` if another worker does. The only worker of an attempt
    /// that is not shared need not ask.
    pub fn claim_unit(&self, phase: &str, index: u64) -> Result<Option<u32>> {
        if !self.is_shared() {
            return Ok(Some(0));
        }
        self.check()?;
        let (store, folder, me) = (&self.hold.store, &self.hold.folder, &self.hold.owner);
        let key = format!("{folder}/{CLAIMS}/{}/{index:06}.json", safe_name(phase));
        let claim = |turn| Claim { worker: me.clone(), turn };
        let created = store.create(&key, &to_json(&claim(0)));
        if let Ok(true) = created {
            self.check()?; // nobody had claimed it, or the attempt is over and its claims are deleted
            return Ok(Some(0));
        }
        // It exists, or the reply was lost: whose is it?
        let Some((bytes, version)) = store.get_versioned(&key)? else {
            created?;
            self.check()?; // an error if the attempt is over
            return Ok(None);
        };
        let found: Claim =
            serde_json::from_slice(&bytes).map_err(|e| store.corrupt(&key, format!("cannot be read: {e}")))?;
        if found.worker == *me {
            return Ok(Some(found.turn));
        }
        let turn = match state(store, folder, &found.worker, &self.lease.owner)? {
            State::Works => return Ok(None),
            State::Ended => found.turn,
            State::Unknown => found.turn + 1,
        };
        if !store.swap(&key, &version, &to_json(&claim(turn)))? {
            return Ok(None);
        }
        self.check()?;
        // Its worker may have ended after it committed the unit.
        Ok(self.unit(phase, index)?.is_none().then_some(turn))
    }

    /// Numbers of the units of a phase that somebody has claimed, ascending.
    pub fn claims(&self, phase: &str) -> Result<Vec<u64>> {
        self.numbers(CLAIMS, phase)
    }

    /// Seconds in which at least one worker was at a shared attempt.
    pub(crate) fn workers_seconds(&self) -> Option<f64> {
        if !self.is_shared() {
            return None;
        }
        let (store, folder) = (&self.hold.store, self.key(WORKERS));
        let mut spans = vec![(now() - self.own_seconds(), now())];
        for name in store.list_here(&folder).ok()?.0 {
            let lease: Option<Lease> = store.get_json(&format!("{folder}/{name}")).ok()?;
            spans.extend(lease.map(|lease| (lease.began, lease.renewed)));
        }
        Some(union(spans))
    }

    /// Takes the own lease away: this process has done nothing here.
    fn leave(self) {
        let hold = self.hold.clone();
        self.release();
        drop(hold.store.delete(&hold.lease_key)); // what stays is found by `gc`
    }
}

/// What is known of a worker.
enum State {
    Works,
    /// It gave its lease back, or its process is gone: it writes nothing more.
    Ended,
    /// Its lease was not renewed for long, or is not there: it may sleep, and write when it wakes up.
    Unknown,
}

fn state(store: &Store, folder: &str, worker: &str, me: &Owner) -> Result<State> {
    let lease: Option<Lease> = store.get_json(&format!("{folder}/{WORKERS}/{worker}.json"))?;
    Ok(match lease {
        Some(lease) if lease.released || lease.owner.is_gone(me) => State::Ended,
        Some(lease) if !lease.has_lapsed(now(), me) => State::Works,
        _ => State::Unknown,
    })
}

/// The length of what spans of time cover together.
fn union(mut spans: Vec<(f64, f64)>) -> f64 {
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut sum, mut end) = (0.0, f64::NEG_INFINITY);
    for (from, to) in spans {
        sum += (to - from.max(end)).max(0.0);
        end = end.max(to);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::Commit;
    use crate::attempt::UnitRecord;
    use crate::unique::unique;
    use crate::work::WorkRecord;
    use smelt_schemas::{FileRecord, Manifest, PortRecord};
    use std::io::Write;

    fn recipe() -> Digest {
        Digest::of(b"recipe")
    }

    fn join(store: &Store) -> Attempt {
        match Attempt::join(store, "clean", &recipe(), 0).unwrap() {
            Begun::Held(attempt) => *attempt,
            Begun::Committed(manifest) => panic!("{manifest:?}"),
        }
    }

    fn manifest() -> Manifest {
        crate::artifacts::tests::manifest("clean", &recipe(), "e0")
    }

    /// A directory and an object store, both empty.
    fn both(name: &str, test: impl Fn(&Store)) {
        let folder = std::env::temp_dir().join(format!("smelt-{name}-{}", unique()));
        for address in [folder.to_str().unwrap(), &format!("memory:{name}")] {
            test(&Store::open(address).unwrap());
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// As if the process had slept since long ago.
    fn sleep(attempt: &Attempt) {
        let key = &attempt.hold.lease_key;
        let lease: Lease = attempt.store().get_json(key).unwrap().unwrap();
        attempt.store().put(key, &to_json(&Lease { renewed: lease.renewed - 1000.0, ..lease })).unwrap();
    }

    /// Writes one file as a unit of this turn would.
    fn write(attempt: &Attempt, turn: u32, bytes: &[u8]) -> UnitRecord {
        let at = if turn == 0 { "0.bin".to_owned() } else { format!("turn{turn}/0.bin") };
        let mut upload = attempt.upload("documents", &at).unwrap();
        upload.write_all(bytes).unwrap();
        let file = FileRecord { at: (turn > 0).then(|| at.clone()), ..upload.finish("0.bin").unwrap() };
        let mut record = UnitRecord::default();
        record.files.insert("documents".into(), vec![file]);
        let mut work = attempt.upload_work(&format!("all/{at}")).unwrap();
        work.write_all(bytes).unwrap();
        let file = FileRecord { at: Some(format!("all/{at}")), ..work.finish("0.bin").unwrap() };
        record.work.push(WorkRecord { file, parts: 1 });
        record
    }

    #[test]
    fn workers_share_an_attempt_and_each_unit_has_one_of_them() {
        both("share", |store| {
            let (a, b) = (join(store), join(store));
            assert_eq!((a.id(), b.id(), a.resumed(), b.resumed()), ("e0", "e0", 0, 0));
            assert_eq!((a.claim_unit("all", 0).unwrap(), b.claim_unit("all", 0).unwrap()), (Some(0), None));
            assert_eq!((b.claim_unit("all", 1).unwrap(), a.claim_unit("all", 1).unwrap()), (Some(0), None));
            assert_eq!(a.claim_unit("all", 0).unwrap(), Some(0), "its own, after a lost reply");
            assert_eq!(a.claims("all").unwrap(), [0, 1]);
            // Whoever ends gives its units back, in the same turn: it writes nothing more.
            b.release();
            assert_eq!(a.claim_unit("all", 1).unwrap(), Some(0));
            let c = join(store);
            assert_eq!(c.resumed(), 1);
            // What it has committed is not done again.
            assert_eq!(c.claim_unit("all", 2).unwrap(), Some(0));
            c.commit_unit("all", 2, UnitRecord::default()).unwrap();
            c.release();
            assert_eq!(a.claim_unit("all", 2).unwrap(), None);
        });
    }

    #[test]
    fn of_many_that_want_a_unit_at_once_one_gets_it() {
        both("rush", |store| {
            let workers: Vec<Attempt> = (0..4).map(|_| join(store)).collect();
            let got: Vec<usize> = std::thread::scope(|scope| {
                let threads: Vec<_> = workers
                    .iter()
                    .map(|w| scope.spawn(|| (0..20).filter(|&i| w.claim_unit("all", i).unwrap().is_some()).count()))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(got.iter().sum::<usize>(), 20, "{got:?}");
            // The same for the units of one that sleeps.
            let (sleeper, others) = workers.split_first().unwrap();
            (20..40).for_each(|i| assert_eq!(sleeper.claim_unit("all", i).unwrap(), Some(0)));
            sleep(sleeper);
            let got: Vec<u32> = std::thread::scope(|scope| {
                let claim = |w: &Attempt| (20..40).filter_map(|i| w.claim_unit("all", i).unwrap()).collect::<Vec<_>>();
                let threads: Vec<_> = others.iter().map(|w| scope.spawn(move || claim(w))).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(got, [1; 20]);
        });
    }

    #[test]
    fn a_worker_that_slept_overwrites_nothing_and_adopts_what_was_done_meanwhile() {
        both("slept", |store| {
            let (sleeper, other) = (join(store), join(store));
            assert_eq!(sleeper.claim_unit("all", 0).unwrap(), Some(0));
            sleep(&sleeper);
            let turn = other.claim_unit("all", 0).unwrap().expect("a lapsed claim is taken over");
            assert_eq!(turn, 1);
            let theirs = write(&other, turn, b"the other's");
            assert_eq!(other.commit_unit("all", 0, theirs.clone()).unwrap(), theirs);
            // It wakes up, and ends what it was at.
            let own = write(&sleeper, 0, b"the sleeper's");
            assert_eq!(sleeper.commit_unit("all", 0, own).unwrap(), theirs);
            let work = store.get(&sleeper.work_key(&theirs.work[0])).unwrap();
            assert_eq!(&work[..], b"the other's", "what it wrote for later phases lies beside");
            let (mut manifest, port) = (manifest(), "documents");
            let files = theirs.files[port].clone();
            manifest.ports.insert(port.into(), PortRecord::new(smelt_schemas::kind::documents(), files));
            assert!(matches!(sleeper.commit(&manifest).unwrap(), Commit::Won));
            let file = &manifest.ports[port].files[0];
            let key = store.file_key(&manifest, port, file);
            assert!(key.ends_with("e0/files/documents/turn1/0.bin"), "{key}");
            assert_eq!(&store.get(&key).unwrap()[..], b"the other's");
            let left: Vec<String> = store.list(&sleeper.hold.folder).unwrap().into_iter().map(|e| e.key).collect();
            assert_eq!(left, [key, sleeper.key("lease.json")], "nothing else is left");
        });
    }

    #[test]
    fn one_commits_and_the_others_adopt_it_whenever_they_come() {
        both("adopt", |store| {
            let (a, b) = (join(store), join(store));
            let own = manifest();
            let mut other = own.clone();
            other.provenance.host = "elsewhere".into();
            assert!(matches!(a.commit(&own).unwrap(), Commit::Won));
            assert!(matches!(a.hold.store.commit(&own).unwrap(), Commit::Won), "after a lost reply");
            // Whoever was about to commit too finds its lease gone; so does whoever goes on with a unit.
            for error in [b.commit(&other).unwrap_err(), b.claim_unit("all", 3).unwrap_err()] {
                assert_eq!(error.to_string(), "attempt e0 lost its lease to nobody");
            }
            match store.commit(&other).unwrap() {
                Commit::Adopted(found) => assert_eq!(*found, own),
                Commit::Won => panic!("two have won"),
            }
            assert!(matches!(Attempt::join(store, "clean", &recipe(), 0).unwrap(), Begun::Committed(_)));
            assert_eq!(store.list(&a.key(WORKERS)).unwrap(), []);
        });
    }

    #[test]
    fn a_worker_that_comes_while_claims_and_records_are_deleted_does_nothing_again() {
        both("tidied", |store| {
            let (a, late) = (join(store), join(store));
            assert_eq!(a.claim_unit("all", 0).unwrap(), Some(0));
            a.commit_unit("all", 0, UnitRecord::default()).unwrap();
            let leftovers = store.leftovers(&manifest()).unwrap();
            for folder in &leftovers.folders {
                store.delete_all(folder).unwrap();
                assert_eq!(late.claim_unit("all", 0).unwrap_err().to_string(), "attempt e0 lost its lease to nobody");
            }
            assert_eq!(leftovers.folders.len(), 3, "{leftovers:?}");
        });
    }

    #[test]
    fn gc_spares_an_attempt_while_one_of_its_workers_lives() {
        both("gc-workers", |store| {
            let (a, b) = (join(store), join(store));
            let rules = crate::gc::GcRules { attempt_age: 100.0, artifact_age: 100.0, newest: 1 };
            let lease: Lease = store.get_json(&a.key("lease.json")).unwrap().unwrap();
            store.put(&a.key("lease.json"), &to_json(&Lease { renewed: lease.renewed - 1000.0, ..lease })).unwrap();
            sleep(&a);
            assert_eq!(store.plan_gc(&rules).unwrap().attempts, Vec::<String>::new());
            sleep(&b);
            assert_eq!(store.plan_gc(&rules).unwrap().attempts, std::slice::from_ref(&a.hold.folder));
        });
    }

    #[test]
    fn the_time_of_an_attempt_is_that_in_which_anybody_worked() {
        assert_eq!(union(vec![(10.0, 20.0), (0.0, 5.0), (12.0, 14.0), (18.0, 25.0)]), 20.0);
        assert_eq!(union(vec![(3.0, 3.0)]), 0.0);
    }
}
