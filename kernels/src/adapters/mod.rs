//! Backends around a backend.

mod trace;

pub use trace::{Spent, Trace};
