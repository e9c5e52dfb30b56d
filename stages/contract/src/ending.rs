//! SIGUSR1: this process is about to be ended from outside, as by the time limit of a cluster. It saves its progress
//! and ends with exit code 4, so that the next process goes on from there. SIGTERM ends it at once.

use crate::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the signal is noted instead of ending the process.
pub(crate) fn listen() {
    extern "C" fn note(_: libc::c_int) {
        ASKED.store(true, Ordering::SeqCst);
    }
    // SAFETY: the handler only stores into an atomic.
    unsafe { libc::signal(libc::SIGUSR1, note as *const () as libc::sighandler_t) };
}

pub(crate) fn is_asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// What a job says that ends because it was asked to.
pub(crate) fn error() -> Error {
    Error::again("it was asked to end, and has saved its progress")
}
