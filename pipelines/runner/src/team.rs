//! The workers of one job on this machine: processes that join one attempt in the store.
//!
//! They tell the store, not each other, who does what. Here is what the runner knows of them together: whether one has
//! committed or failed, so that the others end, and how far they are.

use crate::diagnostic::{Diagnostic, Result};
use smelt_schemas::{ExitCode, Manifest};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Once one has committed, the others find out within a second, unless they are suspended.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) struct Team {
    workers: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    committed: Option<(Manifest, Instant)>,
    failure: Option<Diagnostic>,
    /// Phases that any worker has told of, in this order, and how far the last one is.
    phases: Vec<String>,
    done: u64,
    /// Who gave a warning first.
    warned: HashMap<String, u32>,
}

impl Team {
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The threads of worker `rank`, if all together have `threads`.
    pub(crate) fn share(&self, threads: usize, rank: u32) -> usize {
        let (rank, all) = (rank as usize, threads.max(self.workers));
        all / self.workers + usize::from(rank < all % self.workers)
    }

    pub(crate) fn commit(&self, manifest: Manifest) {
        self.state().committed.get_or_insert((manifest, Instant::now()));
    }

    pub(crate) fn fail(&self, error: Diagnostic) {
        self.state().failure.get_or_insert(error);
    }

    /// Whether nothing is left to do for a worker.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state();
        state.committed.is_some() || state.failure.is_some()
    }

    /// Why a worker that runs is to be ended.
    pub(crate) fn ends(&self) -> Option<&'static str> {
        let state = self.state();
        match &state.committed {
            Some((_, since)) => (since.elapsed() > GRACE).then_some("another worker has done the rest"),
            None => state.failure.is_some().then_some("another worker of the job failed"),
        }
    }

    /// What a commit makes of a failure: the job is done.
    pub(crate) fn result(self) -> Result<Manifest> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (state.committed, state.failure) {
            (Some((manifest, _)), _) => Ok(manifest),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Diagnostic::new(ExitCode::Bug, "no worker of the job says how it ended")),
        }
    }

    /// How far all workers are, when one says that `done` of a phase is; nothing if another one is in a later phase.
    /// Each counts what all have committed, as far as it knows.
    pub(crate) fn progress(&self, phase: &str, done: u64) -> Option<u64> {
        if self.workers == 1 {
            return Some(done);
        }
        let mut state = self.state();
        match state.phases.iter().position(|known| known == phase) {
            Some(at) if at + 1 < state.phases.len() => return None,
            Some(_) => state.done = state.done.max(done),
            None => {
                state.phases.push(phase.into());
                state.done = done;
            }
        }
        Some(state.done)
    }

    /// Whether a warning was not yet given by another worker: most are of what all of them see.
    pub(crate) fn is_news(&self, rank: u32, warning: &str) -> bool {
        *self.state().warned.entry(warning.into()).or_insert(rank) == rank
    }

    /// A line of the log, with the worker that wrote it if there are several.
    pub(crate) fn tagged<'a>(&self, rank: u32, line: &'a str) -> Cow<'a, str> {
        if self.workers == 1 { line.into() } else { format!("[{rank}] {line}").into() }
    }

    /// Names a worker in messages: ` in worker 1 of 4`, or nothing.
    pub(crate) fn named(&self, rank: u32) -> String {
        if self.workers == 1 { String::new() } else { format!(" in worker {rank} of {}", self.workers) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_shared_out_and_nobody_is_without() {
        let shares = |workers, threads| -> Vec<usize> {
            let team = Team::new(workers);
            (0..workers as u32).map(|rank| team.share(threads, rank)).collect()
        };
        assert_eq!(shares(1, 8), [8]);
        assert_eq!(shares(3, 8), [3, 3, 2]);
        assert_eq!(shares(4, 2), [1; 4]);
    }

    #[test]
    fn progress_is_that_of_all_and_never_goes_back() {
        let team = Team::new(2);
        let told = [("sketches", 3), ("sketches", 2), ("sketches", 9), ("filter", 1), ("sketches", 10), ("filter", 0)];
        let shown: Vec<_> = told.iter().map(|(phase, done)| team.progress(phase, *done)).collect();
        assert_eq!(shown, [Some(3), Some(3), Some(9), Some(1), None, Some(1)]);
        let alone = Team::new(1);
        assert_eq!((alone.progress("train", 5), alone.progress("train", 4)), (Some(5), Some(4)));
    }

    #[test]
    fn the_first_failure_is_told_and_ends_the_others() {
        let team = Team::new(3);
        assert!(!team.is_over() && team.ends().is_none());
        team.fail(Diagnostic::new(ExitCode::Data, "bad data"));
        team.fail(Diagnostic::new(ExitCode::Again, "stopped"));
        assert!(team.is_over());
        assert_eq!(team.ends(), Some("another worker of the job failed"));
        assert_eq!(team.result().unwrap_err().message, "bad data");
    }

    #[test]
    fn a_warning_of_all_is_given_once_and_lines_name_their_worker() {
        let team = Team::new(2);
        let news: Vec<bool> = [(0, "a"), (1, "a"), (0, "a"), (1, "b")].map(|(rank, w)| team.is_news(rank, w)).into();
        assert_eq!(news, [true, false, true, true]);
        assert_eq!((&*team.tagged(1, "x"), team.named(1).as_str()), ("[1] x", " in worker 1 of 2"));
        assert_eq!((&*Team::new(1).tagged(0, "x"), Team::new(1).named(0).as_str()), ("x", ""));
    }
}
