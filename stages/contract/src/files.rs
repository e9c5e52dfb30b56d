//! Local files that a stage reads from outside the store: how they are named, and what they are.

mod error;
mod expand;
mod hashes;
mod own_store;

pub use error::FileError;
pub use expand::expand;
pub use hashes::{Found, Memory, hash};
pub(crate) use own_store::set as set_own_store;
