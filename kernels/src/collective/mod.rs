//! Ranks that communicate: what each holds, moved and summed between them.
//!
//! Every rank calls the same operations of a group in the same order, with shapes that fit; [`Solo`] is a world of one
//! on any device, [`Nccl`] GPUs of one machine or many. Communications run beside the device's other operations: an
//! operation starts after everything that the device was asked for before, the host goes on at once, and
//! [`Pending::wait`] makes the device, not the host, wait for the result.
//!
//! Operations do not return `Result`. A wrong shape panics with operation, expected and found. A rank that is gone or
//! a link that fails ends the operations of all ranks with a [`DeviceError`](crate::DeviceError), as the payload of a
//! panic; a group that failed once fails ever after.
//!
//! Letters: W ranks of the group, N and R rows, D width.

mod communicator;
mod library;
mod mailbox;
mod nccl;
mod pending;
mod shapes;
mod solo;

pub use communicator::UniqueId;
pub use nccl::Nccl;
pub use pending::Pending;
pub use solo::Solo;

use crate::dtype::DType;
use crate::tensor::{Shape, Tensor};

/// How the values of the ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Sum,
    Max,
    /// Not of U32.
    Mean,
}

/// The ranks that communicate, seen from one of them.
///
/// Elements of every type are moved with their bits. Sums are computed in the type of the elements, in an order that is
/// the library's: bf16 is rounded at each addition, U32 wraps. E4M3 is only moved, because its scales are elsewhere.
pub trait Group: Send + Sync {
    /// Which of the ranks this one is, from 0.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn size(&self) -> usize;

    /// Every rank's x, any shape but the same on all, becomes the reduction of all of them. What the device is asked
    /// for next waits for it: this is for small tensors, such as norms and counts.
    fn all_reduce(&self, x: &mut Tensor, reduce: Reduce);

    /// `[N, …]` of each rank → `[W·N, …]`, rank after rank.
    fn all_gather(&self, x: &Tensor) -> Pending<Tensor>;

    /// `[W·N, …]` on each rank → `[N, …]`: the reduction of everybody's rows `rank·N..(rank + 1)·N`.
    fn reduce_scatter(&self, x: &Tensor, reduce: Reduce) -> Pending<Tensor>;

    /// x, any shape, to a rank that calls [`receive`](Self::receive). What one rank sends another arrives in order. Two
    /// ranks that send to each other would both wait to be received from: [`all_to_all`](Self::all_to_all) exchanges.
    fn send(&self, x: &Tensor, to: usize) -> Pending<()>;

    /// What rank `from` sends next to this one, which has this shape and type.
    fn receive(&self, shape: Shape, dtype: DType, from: usize) -> Pending<Tensor>;

    /// Rows `[R, D]` that stand in the order of the ranks they go to, `sent[r]` of them to rank r → `[R', D]`, in the
    /// order of the ranks they come from, `received[r]` of them from rank r. Counts may be 0; `received[r]` here is
    /// `sent[rank]` on rank r.
    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Pending<Tensor>;
}
