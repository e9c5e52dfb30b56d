//! Backends that wrap another backend.

mod fenced;
mod trace;

pub use fenced::Fenced;
pub use trace::{Spent, Trace};
