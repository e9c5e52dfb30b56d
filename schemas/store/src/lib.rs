//! Artifacts in object storage: a directory, S3, or memory, with one layout and one commit protocol.
//!
//! ```text
//! artifacts/<stage>/<fingerprint>/<n>.json            manifest of edition n: created last, create-only: the commit
//! artifacts/<stage>/<fingerprint>/attempts/<id>/...   what one attempt wrote: files, lease, progress, units
//! pipelines/<pipeline>/<job>.json                     the edition a pipeline's job now points at
//! tags/<name>.json                                    a human name that pins an edition
//! runs/<run>/run.json                                 who runs it, what it holds, how it ended
//! runs/<run>/...                                      events, metrics and logs of one run
//! ```
//!
//! The interface is blocking, for stages compute and rarely wait; a small runtime behind it talks to S3.

mod artifacts;
mod attempt;
mod directory;
mod error;
mod gc;
mod objects;
mod run;
mod store;
mod upload;

pub use artifacts::{Commit, Damaged, Pointer, Tag, artifact_key, safe_name};
pub use attempt::{Attempt, Kept, Lease, Owner, Progress, RENEW, UnitRecord, has_lapsed};
pub use error::{Error, Result};
pub use gc::{GcPlan, GcRules};
pub use run::{RunRecord, RunState};
pub use store::{Entry, LocalFile, Store, Version};
pub use upload::Upload;

/// Seconds since 1970, UTC.
pub fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Twelve hexadecimal digits that no other process draws.
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut seed = [0u8; 16];
    if let Ok(mut f) = std::fs::File::open("/dev/urandom") {
        // A short read leaves the clock, the pid and the counter to tell processes apart.
        std::io::Read::read_exact(&mut f, &mut seed).unwrap_or_default();
    }
    let text = format!("{seed:?} {} {} {}", now(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    blake3::hash(text.as_bytes()).to_hex()[..12].to_owned()
}
