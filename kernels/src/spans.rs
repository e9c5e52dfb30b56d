//! Cutting a length into pieces.

use std::ops::Range;

/// `0..len` in ranges of `step`; the last may be shorter.
pub(crate) fn spans(len: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(step).map(move |start| start..len.min(start + step))
}
