//! Threads that sleep between jobs. After a job a helper looks for the next one a few microseconds longer, and so does the caller for the
//! helpers' end, giving the core away at each look: within a training step jobs follow each other faster than the system wakes a thread.
//! Nobody spins for longer: on a shared machine that takes the core the work needs.
//!
//! The items of a job are cut into one run of neighbours per thread; who is through with his own takes from the others'. So the rows that a
//! thread wrote in one job are, mostly, those that it reads in the next, from its own cache.
//!
//! The caller works too and waits only for helpers that have begun, so a helper that the system wakes late costs
//! nothing. A pool that is busy (nested use, several ranks) lets the caller do it all alone; no result can tell.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    is_busy: AtomicBool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    done: Condvar,
    /// Number of the newest job, and helpers inside it, to be read without the lock.
    newest: AtomicU64,
    inside: AtomicUsize,
}

/// How long a thread looks for what it waits for before it sleeps.
const LINGER: Duration = Duration::from_micros(200);

/// Looks before the core is given away at each: a few microseconds, most waits within a step.
const LOOKS: usize = 100;

/// Until `is_over`, or [`LINGER`] is.
fn linger(is_over: impl Fn() -> bool) {
    for _ in 0..LOOKS {
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
    job: Option<Job>,
    /// Counts jobs, so that a helper takes each at most once.
    number: u64,
    /// Helpers now inside the job.
    inside: usize,
    /// Helpers that sleep, and whether the caller does: to wake one is a call of the system, even when nobody sleeps.
    asleep: usize,
    is_waited_for: bool,
    has_panicked: bool,
    is_closing: bool,
}

#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: the pointer is to a `Sync` closure, and `Turn` keeps that closure alive while a helper is inside.
unsafe impl Send for Job {}

impl Shared {
    /// A panic elsewhere leaves the state whole: it is only ever changed between panicking points.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn enter(&self, state: &mut State, helpers: isize) {
        state.inside = state.inside.strict_add_signed(helpers);
        self.inside.store(state.inside, Relaxed);
    }

    /// The life of thread `thread`; the caller is thread 0.
    fn help(&self, thread: usize) {
        let (mut state, mut seen, mut is_fresh) = (self.lock(), 0, false);
        while !state.is_closing {
            let Some(job) = state.job.filter(|_| state.number != seen) else {
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
            // SAFETY: `inside` was raised under the lock while the job stood, and `Turn` waits until it is 0.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*job.0)(thread) }));
            state = self.lock();
            state.has_panicked |= outcome.is_err();
            self.enter(&mut state, -1);
            if state.inside == 0 && state.is_waited_for {
                self.done.notify_all();
            }
        }
    }
}

impl Pool {
    /// `threads` counts the caller.
    pub fn new(threads: usize) -> Self {
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

    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once for each of `items`, in no promised order or thread.
    pub fn each<I: Send>(&self, items: Vec<I>, work: impl Fn(I) + Sync) {
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
        let turn = unsafe { Turn::start(self, &run) };
        run(0);
        drop(turn);
        let has_panicked = std::mem::take(&mut self.shared.lock().has_panicked);
        assert!(!has_panicked, "pool: a helper panicked; its message is above");
    }
}

/// A job in progress. Dropping it, also by a panic, closes the job and waits for the helpers inside.
struct Turn<'a>(&'a Pool);

impl<'a> Turn<'a> {
    /// # Safety
    /// The result is dropped, not forgotten, before `run` is.
    unsafe fn start(pool: &'a Pool, run: &'a (dyn Fn(usize) + Sync)) -> Self {
        let mut state = pool.shared.lock();
        // SAFETY: forgets only the lifetime; `drop` waits until no helper uses the job.
        state.job =
            Some(Job(unsafe { std::mem::transmute::<&'a (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(run) }));
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

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.shared.lock();
        state.job = None;
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
            drop(helper.join()); // a helper that panicked has said so already
        }
    }
}
