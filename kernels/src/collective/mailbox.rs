//! What a rank sends itself, as the first and the last stage of a pipeline on one rank do.

use crate::dtype::DType;
use crate::tensor::{Shape, Tensor};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// First in, first out.
#[derive(Debug, Default)]
pub(super) struct Mailbox(Mutex<VecDeque<Tensor>>);

impl Mailbox {
    /// `x`: with memory of its own, since the sender may write its tensor again.
    pub(super) fn put(&self, x: Tensor) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(x);
    }

    /// Panics unless something of this shape and type is next.
    pub(super) fn take(&self, shape: Shape, dtype: DType, rank: usize) -> Tensor {
        let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let next = next.unwrap_or_else(|| panic!("receive: rank {rank} has sent itself nothing"));
        next.expect("receive", shape);
        assert!(next.dtype() == dtype, "receive: expected {dtype:?}, found {:?}", next.dtype());
        next
    }
}
