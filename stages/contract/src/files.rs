//! Local files that a stage reads from outside the store: how they are named, and what they are.

mod error;
mod expand;
mod hashes;

pub use error::FileError;
pub use expand::expand;
pub use hashes::{Found, Memory, hash};
