//! What a running stage can ask for and report.

use crate::Mapped;
use crate::Port;
use crate::board::{Board, Next};
use crate::ending;
use crate::error::Error;
use crate::kinds::{KindType, Metric};
use crate::lock::lock;
use crate::saves::{Saved, Saves, bytes, newest};
use crate::unit::Unit;
use crate::work::Work;
use serde_json::Value;
use smelt_schemas::{Device, Event, EventBody, Invocation, PROTOCOL, Source};
use smelt_store::{Attempt, UnitRecord};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// One running job: its threads, its attempt, its events.
pub struct Context {
    pub(crate) attempt: Arc<Attempt>,
    pub(crate) threads: usize,
    memory: usize,
    device: Device,
    /// See [`Context::computes_on`].
    pub(crate) computes_on: Mutex<Option<String>>,
    explain: Mutex<Option<Explain>>,
    pub(crate) scratch: PathBuf,
    sources: Vec<Source>,
    pub(crate) records: Mutex<Vec<UnitRecord>>,
    pub(crate) curve: Mutex<Vec<Metric>>,
    pub(crate) results: Mutex<BTreeMap<String, f64>>,
    pub(crate) phases: Mutex<Vec<String>>,
    /// By port.
    pub(crate) tokenizers: Mutex<BTreeMap<&'static str, String>>,
    events: AtomicU64,
    rank: u32,
    last_progress: Mutex<Option<Instant>>,
    pub(crate) saves: Saves,
}

/// What a panic's payload says, if the device was its cause.
pub type Explain = fn(&(dyn Any + Send)) -> Option<Error>;

/// Bytes that a job may hold where nothing else is said.
const MEMORY: usize = 1 << 30;

/// Names the saved curve among the files of a save.
const CURVE: &str = "curve.json";

/// Names a training's state among the files of a save.
const STATE: &str = "state";

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Context({:?}, {} threads)", self.attempt.id(), self.threads)
    }
}

impl Context {
    /// `events`: how many this process has sent already.
    pub(crate) fn new(attempt: Attempt, invocation: &Invocation, events: u64) -> Self {
        let attempt = Arc::new(attempt);
        Self {
            saves: Saves::new(attempt.clone(), invocation.save),
            attempt,
            threads: invocation.threads.max(1),
            memory: invocation.memory.map_or(MEMORY, |bytes| bytes as usize),
            device: invocation.device,
            computes_on: Mutex::default(),
            explain: Mutex::default(),
            scratch: invocation.scratch.clone(),
            sources: invocation.sources.clone(),
            records: Mutex::default(),
            curve: Mutex::default(),
            results: Mutex::default(),
            phases: Mutex::default(),
            tokenizers: Mutex::default(),
            events: AtomicU64::new(events),
            rank: invocation.rank,
            last_progress: Mutex::default(),
        }
    }

    /// Threads this job may use; no byte of its output may depend on them.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes that this process may hold of a corpus, all threads together. No byte of its output may depend on it.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Which of the workers of its job this process is, from 0. No byte of its output may depend on it.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// What this job is asked to compute on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Says in the manifest on what it computes, and how a panic becomes an error: a device that fails while a model
    /// computes has no other way to say so.
    pub fn computes_on(&self, device: &str, explain: Explain) {
        *lock(&self.computes_on) = Some(device.into());
        *lock(&self.explain) = Some(explain);
    }

    /// Runs `work`; a panic that the device explains is its error.
    pub(crate) fn guarded<R>(&self, work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
            let explain = *lock(&self.explain);
            match explain.and_then(|explain| explain(payload.as_ref())) {
                Some(error) => Err(error),
                None => std::panic::resume_unwind(payload),
            }
        })
    }

    /// The sources that `resolve` listed; the fingerprint covers them. The stage checks what it reads against them.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// A local folder that may vanish between two processes.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Does units `0..count` of a phase, in parallel, each once: those that another process has committed, or works on,
    /// are left to it. Returns the record of each, in order, when all are committed. After the first error every thread
    /// stops when its unit is done; so it does when the process is asked to end (SIGUSR1).
    pub fn units<F>(&self, phase: &str, count: usize, work: F) -> Result<Vec<UnitRecord>, Error>
    where
        F: Fn(usize, &mut Unit) -> Result<(), Error> + Sync,
    {
        let first_phase = {
            let mut phases = lock(&self.phases);
            assert!(!phases.iter().any(|p| p == phase), "phase `{phase}` runs twice");
            phases.push(phase.to_owned());
            phases.len() == 1
        };
        let board = Board::new(&self.attempt, phase, count, self.rank)?;
        let (failed, error) = (AtomicBool::new(false), Mutex::new(None));
        let one = |index: usize, turn: u32| {
            // Shards of the first phase carry plain numbers, later ones the phase's name as well.
            let name = if first_phase { format!("{index:05}") } else { format!("{phase}-{index:05}") };
            let mut unit = Unit::new(&self.attempt, phase, name, index, turn);
            self.still_ours()?;
            self.guarded(|| work(index, &mut unit))?;
            board.commit(index, unit.finish()?)?;
            if count > 1 {
                self.progress(phase, board.done() as u64, Some(count as u64), "units", "");
            }
            Ok(())
        };
        let worker = || {
            while !failed.load(Ordering::SeqCst) {
                let done = match board.next() {
                    // A unit that it has claimed is given back with its lease.
                    Ok(Next::Unit(..) | Next::Wait(_)) if ending::is_asked() => Err(ending::error()),
                    Ok(Next::Unit(index, turn)) => one(index, turn),
                    Ok(Next::Wait(pause)) => {
                        std::thread::sleep(pause);
                        Ok(())
                    }
                    Ok(Next::Done) => return,
                    Err(e) => Err(e),
                };
                if let Err(e) = done {
                    failed.store(true, Ordering::SeqCst);
                    lock(&error).get_or_insert(e);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(board.left()) {
                scope.spawn(worker);
            }
            worker();
        });
        if let Some(e) = error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(e);
        }
        let done = board.into_records(self.threads)?;
        lock(&self.records).extend(done.iter().cloned());
        Ok(done)
    }

    /// The file called `name` that a unit of an earlier phase wrote for later ones.
    pub fn work(&self, record: &UnitRecord, name: &str) -> Result<Work, Error> {
        let found = record.work.iter().find(|work| work.file.path == name);
        let found = found.ok_or_else(|| Error::bug(format!("a committed unit wrote no file `{name}`")))?;
        Ok(Work::new(self.attempt.clone(), found.clone(), &self.scratch))
    }

    /// An error once this process is known to have lost its attempt: whatever it does from now on is in vain.
    fn still_ours(&self) -> Result<(), Error> {
        if self.attempt.is_lost() { Ok(self.attempt.check()?) } else { Ok(()) }
    }

    /// A job that is one piece: a phase of one unit.
    pub fn single<F>(&self, work: F) -> Result<(), Error>
    where
        F: Fn(&mut Unit) -> Result<(), Error> + Sync,
    {
        self.units("all", 1, |_, unit| work(unit)).map(drop)
    }

    /// The newest save of an earlier process, its files verified. A damaged one is skipped, with a warning.
    pub fn saved(&self) -> Result<Option<Saved>, Error> {
        let (saved, faults) = newest(&self.attempt, &self.scratch)?;
        faults.iter().for_each(|fault| self.warn(fault));
        let Some(mut saved) = saved else { return Ok(None) };
        if let Some(curve) = saved.files.remove(CURVE) {
            let rows: Vec<(u64, String, f64)> = serde_json::from_slice(&curve)
                .map_err(|e| Error::data(format!("the saved curve cannot be read: {e}")))?;
            *lock(&self.curve) = rows.into_iter().map(|(step, name, value)| Metric { step, name, value }).collect();
        }
        Ok(Some(saved))
    }

    /// Saves the progress of a running job: first the files, then the progress that names them; then it deletes older
    /// saves. An error if the process is asked to end: this was its last save.
    pub fn save(&self, cursor: u64, detail: Value, files: &[(&str, &[u8])]) -> Result<(), Error> {
        self.saves_alone()?;
        let curve = self.curve_so_far()?;
        let files = files.iter().copied().chain([(CURVE, curve.as_slice())]);
        self.saves.write(cursor, detail, files.map(|(name, contents)| (name, bytes(contents))).collect())?;
        if ending::is_asked() { Err(ending::error()) } else { Ok(()) }
    }

    /// Workers of one attempt would save over each other.
    fn saves_alone(&self) -> Result<(), Error> {
        match self.attempt.is_shared() {
            true => Err(Error::bug("a stage that saves cannot be spread over workers: its `SPREADS` must be false")),
            false => Ok(()),
        }
    }

    fn curve_so_far(&self) -> Result<Vec<u8>, Error> {
        let curve: Vec<_> = lock(&self.curve).iter().map(|m| (m.step, m.name.clone(), m.value)).collect();
        serde_json::to_vec(&curve).map_err(|e| Error::bug(format!("a curve holds what JSON cannot: {e}")))
    }

    /// Saves a training before step `next`, if the last save is long enough ago and completely written. A background
    /// thread writes it while the training continues. `state` gives what writes the trainer's state, and may wait in
    /// that thread for a device. `detail`: what the stage itself has to remember beside that state, such as what a
    /// guard counts. A process that is asked to end saves at once, waits for the save and returns the error to end
    /// with.
    pub fn save_when_due<W>(&self, next: u64, detail: Value, state: impl FnOnce() -> W) -> Result<(), Error>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    {
        self.still_ours()?;
        self.saves_alone()?;
        let is_last = ending::is_asked();
        if !is_last && !self.saves.are_due(next) {
            return Ok(());
        }
        let curve = self.curve_so_far()?;
        self.saves.begin(next, detail, vec![(STATE, Box::new(state())), (CURVE, bytes(curve))])?;
        if !is_last {
            return Ok(());
        }
        self.saves.wait()?;
        Err(ending::error())
    }

    /// Where an earlier process left a training: the next step, the detail, and the state it saved.
    pub fn saved_training(&self) -> Result<Option<(u64, Value, Mapped)>, Error> {
        let Some(mut saved) = self.saved()? else { return Ok(None) };
        let state = saved.files.remove(STATE).ok_or_else(|| Error::bug("a save of this training has no state"))?;
        Ok(Some((saved.cursor, saved.detail, state)))
    }

    /// How far the job is. At most ten events a second are sent, and always the last one.
    pub fn progress(&self, phase: &str, done: u64, total: Option<u64>, unit: &str, note: &str) {
        {
            let mut last = lock(&self.last_progress);
            if total != Some(done) && last.is_some_and(|t| t.elapsed().as_millis() < 100) {
                return;
            }
            *last = Some(Instant::now());
        }
        self.emit(EventBody::Progress { phase: phase.into(), done, total, unit: unit.into(), note: note.into() });
    }

    /// Points of curves. They go into the event stream and into the port `metrics` if the stage has one; the last value
    /// of each name goes into the manifest. NaN and infinity are left out, with a warning.
    pub fn metrics(&self, step: u64, values: &[(&str, f64)]) {
        let (good, bad): (Vec<_>, Vec<_>) = values.iter().partition(|(_, v)| v.is_finite());
        for (name, value) in bad {
            self.warn(&format!("metric `{name}` is {value} at step {step}"));
        }
        let mut curve = lock(&self.curve);
        let mut results = lock(&self.results);
        for (name, value) in &good {
            curve.push(Metric { step, name: (*name).to_owned(), value: *value });
            results.insert((*name).to_owned(), *value);
        }
        drop((curve, results));
        self.emit(EventBody::Metrics { step, values: good.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect() });
    }

    /// One value for the manifest.
    pub fn result(&self, name: &str, value: f64) {
        lock(&self.results).insert(name.into(), value);
    }

    /// Notes in the manifest which tokenizer the ids of `port` were made with, so that a later job can refuse to mix.
    pub fn made_with_tokenizer<K: KindType>(&self, port: &Port<K>, digest: &str) {
        lock(&self.tokenizers).insert(port.name, digest.into());
    }

    /// Something a person should know, although work continues.
    pub fn warn(&self, message: &str) {
        self.emit(EventBody::Warning { message: message.into() });
    }

    /// Gives the attempt back, after the last write.
    pub(crate) fn release(self) {
        drop(self.saves);
        if let Some(attempt) = Arc::into_inner(self.attempt) {
            attempt.release();
        }
    }

    pub(crate) fn emit(&self, body: EventBody) {
        emit(self.events.fetch_add(1, Ordering::SeqCst), self.rank, body);
    }
}

/// One event, one line, in one write: lines of threads never mix.
pub(crate) fn emit(seq: u64, rank: u32, body: EventBody) {
    let event = Event { v: PROTOCOL, time: smelt_store::now(), seq, rank, body };
    let mut line = serde_json::to_vec(&event).expect("events are plain data");
    line.push(b'\n');
    // A failed write means that the runner is gone, and its end also ends this process.
    drop(io::stdout().lock().write_all(&line));
}
