//! Artifacts in object storage: a directory, S3, Google Cloud Storage, Azure, or memory, with one layout and one commit
//! protocol over any [`Backing`].
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
//! The interface is blocking, because stages compute and rarely wait; a small runtime behind it talks to S3.

mod artifacts;
mod attempt;
mod backing;
mod cache;
mod clock;
mod clouds;
pub mod conformance;
mod directory;
mod entry;
mod error;
mod export;
mod faults;
mod gc;
mod kill;
mod live;
mod memory;
mod objects;
mod owner;
mod profile;
mod remote;
mod retry;
mod run;
mod store;
mod transfer;
mod unique;
mod upload;
mod verified;
mod work;
mod workers;

pub use artifacts::{Commit, Damaged, Pointer, Tag, artifact_key, safe_name};
pub use attempt::{Attempt, Begun, Kept, Lease, Progress, RENEW, UnitRecord, has_lapsed};
pub use backing::{Backing, BackingError, Sink};
pub use cache::{CACHE_BYTES, Cache};
pub use clock::now;
pub use entry::{Entry, Version};
pub use error::{Error, Result, without_secrets};
pub use faults::{Faults, Faulty};
pub use gc::{GcPlan, GcRules, Leftovers};
pub use live::{Live, Point};
pub use owner::Owner;
pub use remote::{Remote, RemoteFile};
pub use retry::Client;
pub use run::{RunRecord, RunState, Running};
pub use store::{LocalFile, Store};
pub use transfer::Copied;
pub use unique::unique;
pub use upload::Upload;
pub use work::{WorkRecord, nameless};
