//! A thread pool for parallel rounds of a few microseconds.
//!
//! Helper threads sleep between rounds. After a round a helper keeps checking for the next one for a short time before
//! it sleeps, and the caller checks in the same way for the helpers to finish: within a training step the next round
//! comes sooner than the system wakes a thread. After the first checks a thread yields its core at each check, so on a
//! shared machine it does not take the core from others.
//!
//! The items of a round are cut into one run of neighbours per thread; a thread that has finished its own run takes
//! items from the others. So a thread mostly reads the rows that it wrote in the round before, from its own cache.
//!
//! The caller works too and waits only for helpers that have begun, so a helper that wakes late costs nothing. When the
//! pool is busy (nested use, several ranks) the caller works alone; the results are the same.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    is_busy: AtomicBool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    done: Condvar,
    /// Copies of `State::number` and `State::inside`, to be read without the lock.
    newest: AtomicU64,
    inside: AtomicUsize,
}

/// How long a thread checks for what it waits for before it sleeps.
const LINGER: Duration = Duration::from_micros(200);

/// Checks without yielding the core: a few microseconds, longer than most waits within a step.
const CHECKS: usize = 100;

/// Returns when `is_over`, or after [`LINGER`].
fn linger(is_over: impl Fn() -> bool) {
    for _ in 0..CHECKS {
        if is_over() {
            return;
        }
        std::hint::spin_loop();
    }
    let start = Instant::now();
    while !is_over() && start.elapsed() < LINGER {
        std::thread::yield_now();
    }
}

#[derive(Default)]
struct State {
    /// Of the current round.
    closure: Option<Closure>,
    /// Counts rounds, so that a helper takes part in each at most once.
    number: u64,
    /// Helpers that now run `closure`.
    inside: usize,
    /// Helpers that sleep, and whether the caller does. Notifying is a system call even when nobody sleeps, so it is
    /// done only if needed.
    asleep: usize,
    is_waited_for: bool,
    has_panicked: bool,
    is_closing: bool,
}

#[derive(Clone, Copy)]
struct Closure(*const (dyn Fn(usize) + Sync));

// SAFETY: the pointer is to a `Sync` closure, and `Round` keeps that closure alive while a helper is inside.
unsafe impl Send for Closure {}

impl Shared {
    /// A poisoned lock is fine: no code that holds it can panic with the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn enter(&self, state: &mut State, helpers: isize) {
        state.inside = state.inside.strict_add_signed(helpers);
        self.inside.store(state.inside, Relaxed);
    }

    /// The main loop of helper `thread`; the caller is thread 0.
    fn help(&self, thread: usize) {
        let (mut state, mut seen, mut is_fresh) = (self.lock(), 0, false);
        while !state.is_closing {
            let Some(closure) = state.closure.filter(|_| state.number != seen) else {
                if is_fresh {
                    is_fresh = false;
                    drop(state);
                    linger(|| self.newest.load(Relaxed) != seen);
                    state = self.lock();
                } else {
                    state.asleep += 1;
                    state = self.start.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                    state.asleep -= 1;
                }
                continue;
            };
            is_fresh = true;
            seen = state.number;
            self.enter(&mut state, 1);
            drop(state);
            // SAFETY: `inside` was raised under the lock while the closure was set, and `Round` waits until it is 0.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*closure.0)(thread) }));
            state = self.lock();
            state.has_panicked |= outcome.is_err();
            self.enter(&mut state, -1);
            if state.inside == 0 && state.is_waited_for {
                self.done.notify_all();
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// `threads` counts the caller.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let help = |thread| {
            spawn({
                let shared = shared.clone();
                move || shared.help(thread)
            })
        };
        let helpers = (1..threads).map(help).collect();
        Self { shared, helpers, is_busy: AtomicBool::new(false) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once for each of `items`, in any order, on any thread.
    pub(crate) fn each<I: Send>(&self, items: Vec<I>, work: impl Fn(I) + Sync) {
        if items.len() < 2 || self.helpers.is_empty() || self.is_busy.swap(true, Acquire) {
            return items.into_iter().for_each(work);
        }
        let (count, threads) = (items.len(), self.threads());
        let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        let first = |thread: usize| count * thread / threads;
        let next: Vec<_> = (0..threads).map(|thread| AtomicUsize::new(first(thread))).collect();
        let run = |thread: usize| {
            for whose in (thread..threads).chain(0..thread) {
                while let Some(item) = items[..first(whose + 1)].get(next[whose].fetch_add(1, Relaxed)) {
                    work(item.lock().unwrap().take().expect("an index is given out once"));
                }
            }
        };
        // SAFETY: dropped below, or by a panic in `run(0)`.
        let round = unsafe { Round::start(self, &run) };
        run(0);
        drop(round);
        let has_panicked = std::mem::take(&mut self.shared.lock().has_panicked);
        assert!(!has_panicked, "pool: a helper panicked; its message is above");
    }
}

/// A round in progress. Dropping it, also by a panic, closes the round and waits for the helpers inside.
struct Round<'a>(&'a Pool);

impl<'a> Round<'a> {
    /// # Safety
    /// The result is dropped, not forgotten, before `run` is.
    unsafe fn start(pool: &'a Pool, run: &'a (dyn Fn(usize) + Sync)) -> Self {
        let mut state = pool.shared.lock();
        // SAFETY: forgets only the lifetime; `drop` waits until no helper runs it.
        state.closure = Some(Closure(unsafe {
            std::mem::transmute::<&'a (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(run)
        }));
        state.number += 1;
        pool.shared.newest.store(state.number, Relaxed);
        state.has_panicked = false;
        if state.asleep > 0 {
            drop(state);
            pool.shared.start.notify_all();
        }
        Self(pool)
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let mut state = self.0.shared.lock();
        state.closure = None;
        if state.inside > 0 {
            drop(state);
            linger(|| self.0.shared.inside.load(Relaxed) == 0);
            state = self.0.shared.lock();
        }
        state.is_waited_for = true;
        while state.inside > 0 {
            state = self.0.shared.done.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.is_waited_for = false;
        drop(state);
        self.0.is_busy.store(false, Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.start.notify_all();
        for helper in self.helpers.drain(..) {
            drop(helper.join()); // a helper that panicked has printed its message
        }
    }
}
