//! A world of one: what a rank would get from itself.

use super::mailbox::Mailbox;
use super::shapes::{exchanged, expect_rank, expect_reducible, gathered, scattered};
use super::{Group, Pending, Reduce};
use crate::backend::Backend;
use crate::dtype::DType;
use crate::tensor::{Shape, Tensor};
use std::fmt;
use std::sync::Arc;

/// The group of one rank, on any device. Results are copies with memory of their own, as those of other groups, so that
/// code that runs here runs there.
pub struct Solo {
    backend: Arc<dyn Backend>,
    mailbox: Mailbox,
}

impl fmt::Debug for Solo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Solo").finish_non_exhaustive()
    }
}

impl Solo {
    /// On the device of `backend`.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, mailbox: Mailbox::default() }
    }
}

impl Group for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, x: &mut Tensor, reduce: Reduce) {
        expect_reducible("all_reduce", x.dtype(), reduce);
    }

    fn all_gather(&self, x: &Tensor) -> Pending<Tensor> {
        let shape = gathered(x, 1);
        Pending::ready(self.backend.copy(x).reshape(shape))
    }

    fn reduce_scatter(&self, x: &Tensor, reduce: Reduce) -> Pending<Tensor> {
        expect_reducible("reduce_scatter", x.dtype(), reduce);
        let shape = scattered(x, 1);
        Pending::ready(self.backend.copy(x).reshape(shape))
    }

    fn send(&self, x: &Tensor, to: usize) -> Pending<()> {
        expect_rank("send", to, 1);
        self.mailbox.put(self.backend.copy(x));
        Pending::ready(())
    }

    fn receive(&self, shape: Shape, dtype: DType, from: usize) -> Pending<Tensor> {
        expect_rank("receive", from, 1);
        Pending::ready(self.mailbox.take(shape, dtype, 0))
    }

    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Pending<Tensor> {
        let shape = exchanged(rows, sent, received, [0, 1]);
        Pending::ready(self.backend.copy(rows).reshape(shape))
    }
}
