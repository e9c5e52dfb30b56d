//! What jobs say, in the store.

use smelt_store::{Store, safe_name};
use std::sync::{Mutex, MutexGuard, mpsc};
use std::time::Duration;

/// Where a run keeps what concerns one of its jobs.
pub(crate) fn job_folder(run: &str, job: &str) -> String {
    format!("runs/{run}/jobs/{}", safe_name(job))
}

/// A job's log and events on their way into the store. S3 cannot append, so they are stored in parts; the last part is
/// rewritten as it grows, and a new one begins when it is large.
pub(crate) struct Logs {
    store: Store,
    folder: String,
    /// Begins the names of its parts: several processes may write logs of one job.
    writer: String,
    buffers: Mutex<Buffers>,
    /// Held while a part is written; new lines go into the buffers meanwhile and need not wait.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Buffers {
    text: Vec<u8>,
    events: Vec<u8>,
    part: u32,
    /// Bytes of `text` and `events` that are in the store.
    written: (usize, usize),
}

impl Logs {
    const BYTES: usize = 256 << 10;
    const EVERY: Duration = Duration::from_secs(1);

    /// `writer`: tells the parts of several processes apart, and puts them in order; empty for the only one.
    pub(crate) fn new(store: &Store, run: &str, job: &str, writer: &str) -> Self {
        let (folder, writer) = (job_folder(run, job), writer.into());
        Self { store: store.clone(), folder, writer, buffers: Mutex::default(), writing: Mutex::default() }
    }

    /// Does `work`; meanwhile lines reach the store soon, even if no other line follows.
    pub(crate) fn writing<T>(&self, work: impl FnOnce() -> T) -> (T, smelt_store::Result<()>) {
        let result = std::thread::scope(|scope| {
            let (ended, wait) = mpsc::channel::<()>();
            scope.spawn(move || {
                while wait.recv_timeout(Self::EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // A log that cannot be written now is kept and tried again; the last flush reports.
                    drop(self.flush());
                }
            });
            let result = work();
            drop(ended);
            result
        });
        (result, self.flush())
    }

    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn text(&self, line: &str) {
        self.push(|b| &mut b.text, line);
    }

    pub(crate) fn event(&self, line: &str) {
        self.push(|b| &mut b.events, line);
    }

    fn push(&self, which: impl Fn(&mut Buffers) -> &mut Vec<u8>, line: &str) {
        let mut buffers = self.buffers();
        let buffer = which(&mut buffers);
        buffer.extend_from_slice(line.as_bytes());
        buffer.push(b'\n');
        if buffers.text.len() + buffers.events.len() > Self::BYTES {
            drop(buffers);
            drop(self.flush()); // the thread of `writing` tries again
        }
    }

    fn flush(&self) -> smelt_store::Result<()> {
        let _held = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (part, text, events) = {
            let b = self.buffers();
            let fresh = |bytes: &Vec<u8>, written: usize| (bytes.len() > written).then(|| bytes.clone());
            (b.part, fresh(&b.text, b.written.0), fresh(&b.events, b.written.1))
        };
        for (kind, bytes) in [("log", &text), ("events", &events)] {
            if let Some(bytes) = bytes {
                self.store.put(&format!("{}/{kind}-{}{part:05}.txt", self.folder, self.writer), bytes)?;
            }
        }
        let mut b = self.buffers();
        b.written = (text.map_or(b.written.0, |t| t.len()), events.map_or(b.written.1, |e| e.len()));
        if b.written.0 + b.written.1 > Self::BYTES {
            let (text, events) = b.written;
            b.text.drain(..text);
            b.events.drain(..events);
            (b.written, b.part) = ((0, 0), part + 1);
        }
        Ok(())
    }
}
