//! Asks a model, and judges its answers: problem → messages → prompt → completion → verdict → a row of
//! `samples`.
//!
//! Every stage that asks (`distill`, `reward`, `align`, `evaluate`) says here how to ask and keeps what it likes; none
//! of them calls the sampler, a chat template or a verifier by itself, so an answer means the same in all of them:
//!
//! - It ends with the checkpoint's own end: the token that ends a turn, or the one that ends a document.
//! - It is judged without the white space at its end, and an answer that was cut off is never right.
//! - `reward` is the rule's reward ([`Verdict::reward`]), plus what a reward model adds where a stage asks one; null
//!   where the problem cannot be scored.

mod asker;
mod conversations;
mod pairs;
mod scores;
mod unusable;
mod verdict;

pub use asker::{Answer, Asker, Prompting, Question, expect_by_row};
pub use conversations::{Examples, examples};
pub use pairs::spoil;
pub use scores::{Pairs, Scorer, logprobs};
pub use smelt_generate::Drafts;
pub use unusable::{Unusable, nothing_left, write_unusable};
pub use verdict::Verdict;
