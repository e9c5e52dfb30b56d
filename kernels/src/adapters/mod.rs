//! Backends that wrap another backend.

mod trace;

pub use trace::{Spent, Trace};
