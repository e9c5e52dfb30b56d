//! `smelt-verify`: says whether an answer is right, by rule.
//!
//! The problems a model trains on are worth as much as the check of its answers. This crate holds the checks and what
//! surrounds them: the families of problems with their worked solutions, the parsing of what a model wrote, rewards
//! that follow from it, and solutions spoilt on purpose for a reward model to learn from. No I/O, no clock, and every
//! random choice comes from the caller's [`Rng`].
//!
//! What cannot be scored gives `None`, never a 1: a verifier that this build does not know must not reward anybody.

pub mod account;
pub mod addition;
pub mod chain;
pub mod corrupt;
mod number;
mod rng;
pub mod verifier;

pub use number::{Number, final_number};
pub use rng::{Rng, hash};
pub use verifier::{Score, Verifier, VerifierError};
