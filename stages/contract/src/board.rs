//! Which unit of a phase a thread works on next, of all threads of all workers.
//!
//! What other workers do is learnt from the store: a claim that fails tells of one unit, a look at all records of all
//! that are done. So a worker asks often while it waits, and rarely while it works.

use crate::error::Error;
use crate::lock::lock;
use smelt_store::{Attempt, UnitRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The longest wait between two looks for units that other workers still work on, and the shortest.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(20));
/// While there is work of its own, a worker looks this often how far the others are: only to tell it.
const GLANCE: Duration = Duration::from_secs(2);

pub(crate) struct Board<'a> {
    attempt: &'a Attempt,
    phase: &'a str,
    count: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Units that nobody has claimed, as far as is known, in the order in which this worker wants them.
    open: Vec<usize>,
    /// Units that other workers have claimed.
    elsewhere: BTreeSet<usize>,
    done: BTreeSet<usize>,
    /// Records of units that were committed here.
    records: BTreeMap<usize, UnitRecord>,
    /// A thread looks at the store.
    looks: bool,
    looked: Option<Instant>,
    wait: Duration,
}

/// What a thread does next.
pub(crate) enum Next {
    /// This unit, in this turn.
    Unit(usize, u32),
    Wait(Duration),
    /// Every unit is committed.
    Done,
}

impl<'a> Board<'a> {
    /// `rank`: of this worker. Workers begin at different units, so that they seldom want the same one.
    pub(crate) fn new(attempt: &'a Attempt, phase: &'a str, count: usize, rank: u32) -> Result<Self, Error> {
        let mut known = Known { wait: WAITS.1, ..Known::default() };
        let within = |found: Vec<u64>| found.into_iter().map(|i| i as usize).filter(|&i| i < count).collect();
        if attempt.is_shared() {
            known.elsewhere = within(attempt.claims(phase)?);
        }
        known.done = within(attempt.units(phase)?);
        known.elsewhere = &known.elsewhere - &known.done;
        // Multiples of the golden ratio: any number of ranks is spread evenly.
        let first = ((f64::from(rank) * 0.618_033_988_749_895).fract() * count as f64) as usize;
        let wanted = (first..count).chain(0..first);
        known.open = wanted.filter(|i| !known.done.contains(i) && !known.elsewhere.contains(i)).collect();
        known.open.reverse(); // the next one is popped
        Ok(Self { attempt, phase, count, known: Mutex::new(known) })
    }

    /// Units that may still need a thread of this worker.
    pub(crate) fn left(&self) -> usize {
        self.count - lock(&self.known).done.len()
    }

    /// How many units are committed, as far as is known.
    pub(crate) fn done(&self) -> usize {
        lock(&self.known).done.len()
    }

    pub(crate) fn next(&self) -> Result<Next, Error> {
        loop {
            let candidate = lock(&self.known).open.pop();
            let Some(index) = candidate else { break };
            if let Some(turn) = self.attempt.claim_unit(self.phase, index as u64)? {
                return Ok(Next::Unit(index, turn));
            }
            lock(&self.known).elsewhere.insert(index);
        }
        let elsewhere: Vec<usize> = {
            let mut known = lock(&self.known);
            if known.done.len() == self.count {
                return Ok(Next::Done);
            }
            // One thread looks for all; and what threads of this worker have in hand needs no look.
            if known.looks || known.elsewhere.is_empty() {
                return Ok(Next::Wait(WAITS.1));
            }
            known.looks = true;
            known.elsewhere.iter().copied().collect()
        };
        let taken = self.look().and_then(|()| {
            // Units of workers that have ended are taken over, one by this thread.
            for index in elsewhere {
                if lock(&self.known).done.contains(&index) {
                    continue;
                }
                if let Some(turn) = self.attempt.claim_unit(self.phase, index as u64)? {
                    return Ok(Some((index, turn)));
                }
            }
            Ok(None)
        });
        let mut known = lock(&self.known);
        known.looks = false;
        match taken? {
            Some((index, turn)) => {
                known.elsewhere.remove(&index);
                known.wait = WAITS.1;
                Ok(Next::Unit(index, turn))
            }
            None if known.done.len() == self.count => Ok(Next::Done),
            None => {
                let wait = known.wait;
                known.wait = (wait * 2).min(WAITS.0);
                Ok(Next::Wait(wait))
            }
        }
    }

    /// Learns which units are committed.
    fn look(&self) -> Result<(), Error> {
        let done = self.attempt.units(self.phase)?;
        let mut known = lock(&self.known);
        let before = known.done.len();
        known.done.extend(done.into_iter().map(|i| i as usize).filter(|&i| i < self.count));
        if known.done.len() > before {
            known.wait = WAITS.1;
        }
        known.elsewhere = &known.elsewhere - &known.done;
        known.looked = Some(Instant::now());
        Ok(())
    }

    /// Commits a unit; if another worker was first, its record counts.
    pub(crate) fn commit(&self, index: usize, record: UnitRecord) -> Result<(), Error> {
        let record = self.attempt.commit_unit(self.phase, index as u64, record)?;
        let glances = {
            let mut known = lock(&self.known);
            known.done.insert(index);
            known.records.insert(index, record);
            let is_due = known.looked.is_none_or(|looked| looked.elapsed() > GLANCE);
            if is_due {
                known.looked = Some(Instant::now());
            }
            is_due && !known.elsewhere.is_empty()
        };
        if glances { self.look() } else { Ok(()) }
    }

    /// The records of all units, in order, once all are committed. `threads` read those of other workers.
    pub(crate) fn into_records(self, threads: usize) -> Result<Vec<UnitRecord>, Error> {
        let own = self.known.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).records;
        let missing: Vec<usize> = (0..self.count).filter(|i| !own.contains_key(i)).collect();
        let share = missing.len().div_ceil(threads.max(1)).max(1);
        let (attempt, phase) = (self.attempt, self.phase);
        let read = move |indices: &[usize]| -> Result<Vec<(usize, UnitRecord)>, Error> {
            let one = |&i: &usize| match attempt.unit(phase, i as u64)? {
                Some(record) => Ok((i, record)),
                // Another worker has committed the artifact, and tidied up.
                None => attempt.check().map_err(Error::from).and_then(|()| {
                    Err(Error::bug(format!("the record of unit {i} of phase `{phase}` was there, and is not")))
                }),
            };
            indices.iter().map(one).collect()
        };
        let mut all = own;
        std::thread::scope(|scope| {
            let readers: Vec<_> = missing.chunks(share).map(|part| scope.spawn(move || read(part))).collect();
            for reader in readers {
                all.extend(reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok::<(), Error>(())
        })?;
        Ok(all.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::{Document, Documents};
    use crate::{Context, Error, Stage, run_invocation};
    use smelt_schemas::{ArtifactRef, Device, Digest, ExitCode, Invocation, PROTOCOL, SavePolicy};
    use smelt_store::{Store, unique};
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::sync::Mutex;

    #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(default)]
    struct Config {
        /// Names the test whose units are noted.
        test: String,
        /// This worker fails in its first unit.
        fails: Option<u32>,
        saves: bool,
    }

    crate::inputs! { struct Nothing {} }
    crate::outputs! { struct Rows { documents: Port<Documents> } }

    /// The second phase writes what it reads in the files of the first one.
    struct Phases;

    /// Units that were done, by test.
    static DONE: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

    impl Stage for Phases {
        const NAME: &'static str = "phases";
        const VERSION: u32 = 1;
        const ABOUT: &'static str = "Counts, then writes";
        const SPREADS: bool = true;
        type Config = Config;
        type Inputs = Nothing;
        type Outputs = Rows;

        fn run(config: Config, _: Nothing, out: Rows, cx: &Context) -> Result<(), Error> {
            if config.saves {
                return cx.save(1, serde_json::Value::Null, &[]);
            }
            let note = |phase: &str, i: usize| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                DONE.lock().unwrap().entry(config.test.clone()).or_default().push(format!("{phase} {i}"));
            };
            let counted = cx.units("count", 12, |i, unit| {
                if config.fails == Some(cx.rank()) {
                    return Err(Error::data("the data are bad"));
                }
                note("count", i);
                // For each unit of the next phase a part of as many bytes as the sum below counts.
                let mut file = unit.work_file("counts")?;
                for part in 0..7 {
                    file.write_all(&vec![i as u8; i * part * 1000]).map_err(|e| file.error(e))?;
                    file.end_part()?;
                }
                file.finish(unit)
            })?;
            cx.units("write", 7, |i, unit| {
                let mut sum = 0;
                for (from, record) in counted.iter().enumerate() {
                    let mut bytes = Vec::new();
                    cx.work(record, "counts")?.part(i)?.read_to_end(&mut bytes).map_err(Error::of_read)?;
                    assert!(bytes.iter().all(|&byte| usize::from(byte) == from));
                    sum += bytes.len();
                }
                assert_eq!(sum, i * 66_000);
                note("write", i);
                unit.count_derived(1);
                unit.keep(&out.documents, Document::new(format!("{i}"), format!("{sum}"), "phases"))
            })?;
            Ok(())
        }
    }

    fn invocation(store: &str, test: &str, rank: u32, config: serde_json::Value) -> Invocation {
        Invocation {
            protocol: PROTOCOL,
            run: "r".into(),
            job: "j".into(),
            stage: "phases".into(),
            version: 1,
            fingerprint: Digest::of(test.as_bytes()),
            config,
            sources: Vec::new(),
            inputs: BTreeMap::new(),
            store: store.into(),
            edition: 0,
            threads: 2,
            memory: None,
            rank,
            device: Device::Cpu,
            save: SavePolicy::default(),
            scratch: std::env::temp_dir(),
        }
    }

    /// Runs workers at once, and gives how each ended and the digest of what they committed.
    fn run(store: &str, test: &str, workers: u32, fails: Option<u32>) -> (Vec<Option<ExitCode>>, Option<Digest>) {
        let config = serde_json::json!({ "test": test, "fails": fails });
        let ended: Vec<Option<ExitCode>> = std::thread::scope(|scope| {
            let work = |rank| run_invocation::<Phases>(&invocation(store, test, rank, config.clone()));
            let work = move |rank| work(rank).err().map(|e| e.exit_code());
            let threads: Vec<_> = (0..workers).map(|rank| scope.spawn(move || work(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let artifact = ArtifactRef { stage: "phases".into(), fingerprint: Digest::of(test.as_bytes()), edition: 0 };
        let store = Store::open(store).unwrap();
        let found = store.manifest(&artifact).unwrap();
        let work = format!("{}/attempts/e0/work", smelt_store::artifact_key("phases", &artifact.fingerprint));
        assert!(found.is_none() || store.list(&work).unwrap().is_empty(), "files for later phases go with the commit");
        (ended, found.map(|manifest| manifest.ports["documents"].digest.clone()))
    }

    fn done(test: &str) -> Vec<String> {
        let mut done = DONE.lock().unwrap().remove(test).unwrap_or_default();
        done.sort();
        done
    }

    #[test]
    fn any_number_of_workers_does_each_unit_once_and_gives_one_digest() {
        let folder = std::env::temp_dir().join(format!("smelt-board-{}", unique()));
        let mut digests = Vec::new();
        for address in [folder.to_str().unwrap(), "memory:board"] {
            for workers in [1, 2, 5] {
                let test = format!("{workers} at {address}");
                let (ended, digest) = run(address, &test, workers, None);
                assert_eq!(ended, vec![None; workers as usize], "{test}");
                digests.push(digest.expect("it is committed"));
                let mut expected: Vec<String> = (0..12).map(|i| format!("count {i}")).collect();
                expected.extend((0..7).map(|i| format!("write {i}")));
                expected.sort();
                assert_eq!(done(&test), expected, "{test}");
            }
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_worker_that_fails_leaves_is_done_by_the_others() {
        let (ended, digest) = run("memory:board-fails", "fails", 3, Some(1));
        // It either failed, or came when nothing was left to do.
        assert!(ended[0].is_none() && ended[2].is_none() && digest.is_some(), "{ended:?}");
        assert!(ended[1].is_none_or(|code| code == ExitCode::Data), "{ended:?}");
        assert_eq!(done("fails").len(), 19);
        let (ended, digest) = run("memory:board-fails", "alone", 1, Some(0));
        assert_eq!((ended[0], digest), (Some(ExitCode::Data), None));
    }

    #[test]
    fn a_stage_that_saves_cannot_be_spread() {
        let invocation = invocation("memory:board-saves", "saves", 0, serde_json::json!({ "saves": true }));
        let error = run_invocation::<Phases>(&invocation).unwrap_err();
        assert_eq!(error.to_string(), "a stage that saves cannot be spread over workers: its `SPREADS` must be false");
        assert_eq!(error.exit_code(), ExitCode::Bug);
    }
}
