//! `smelt-classify`: a linear classifier of texts over hashed words and pairs of words.
//!
//! The features are those of fastText (Joulin et al. 2017) without its embedding layer, which a binary classifier over
//! so many buckets does not need. `quality` trains one, `clean` applies it; both see the same arithmetic here, and no
//! function of the C library, so a score has the same bits on every machine.

mod classifier;
mod features;
mod judge;
mod train;

pub use classifier::Classifier;
pub use features::{Features, features};
pub use judge::{Judgement, calibrate, judge};
pub use train::{Example, Training, error, train};
