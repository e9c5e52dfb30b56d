//! Kills for tests: a process ends before one of its writes, and the next one must be able to continue.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

static WRITES: AtomicU64 = AtomicU64::new(0);
static KILL_AT: LazyLock<Option<u64>> = LazyLock::new(|| kill_at(&std::env::var("SMELT_KILL_AT_WRITE").ok()?));

/// `3`, or `smelt-dedup:3` for one program alone.
fn kill_at(text: &str) -> Option<u64> {
    let Some((program, n)) = text.split_once(':') else { return text.parse().ok() };
    let own = std::env::current_exe().ok()?;
    (own.file_name()?.to_str()? == program).then(|| n.parse().ok())?
}

/// Every change that others can see passes here first: put, create, swap, delete, and the end of an upload.
/// `SMELT_KILL_AT_WRITE=n` ends the process right before its n-th one, so that tests can kill a stage, or the runner,
/// at each of its writes. Temporary files and parts of an upload are invisible and not counted.
pub(crate) fn before_write() {
    let n = WRITES.fetch_add(1, Ordering::SeqCst) + 1;
    if *KILL_AT == Some(n) {
        // SAFETY: ends this process and nothing else.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        std::process::abort();
    }
}
