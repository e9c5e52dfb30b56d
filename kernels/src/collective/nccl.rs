//! A group of GPUs that communicate through NCCL, one rank a GPU.

use super::communicator::{Calls, Communicator, UniqueId};
use super::library::{self, Code, SUCCESS, operation_of, type_of};
use super::mailbox::Mailbox;
use super::pending::Transfer;
use super::shapes::{exchanged, expect_rank, expect_reducible, gathered, scattered};
use super::{Group, Pending, Reduce};
use crate::cuda::{Cuda, DeviceError};
use crate::dtype::DType;
use crate::tensor::{Shape, Tensor};
use std::ffi::c_void;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// One rank of a group. NCCL is opened when the first group is made: `libnccl.so.2` where the system finds it, or the
/// file that `SMELT_NCCL` names.
///
/// A rank that drops it in a panic aborts the group, so that no other rank waits for it.
#[derive(Debug)]
pub struct Nccl {
    communicator: Arc<Communicator>,
    mailbox: Mailbox,
    watch: Option<JoinHandle<()>>,
}

/// A pointer of the device, `bytes` behind the start of a tensor.
fn pointer(address: u64, bytes: usize) -> *mut c_void {
    (address + bytes as u64) as *mut c_void
}

impl Nccl {
    /// Version and file of NCCL, or why there is none.
    pub fn found() -> Result<String, DeviceError> {
        library::open().map(library::describe)
    }

    /// For one rank, which sends it to the others.
    pub fn unique_id() -> Result<UniqueId, DeviceError> {
        UniqueId::new()
    }

    /// Joins the group as rank `rank` of `size`, each on a GPU of its own. **Waits** until all ranks have come, with no
    /// limit of its own.
    pub fn join(gpu: &Arc<Cuda>, id: &UniqueId, rank: usize, size: usize) -> Result<Self, DeviceError> {
        expect_rank("join", rank, size);
        let communicator = Communicator::join(gpu, id, rank, size)?;
        let watch = Some(communicator.watch());
        Ok(Self { communicator, mailbox: Mailbox::default(), watch })
    }

    /// Memory for a result, on the device.
    fn make(&self, shape: Shape, dtype: DType) -> (Tensor, u64) {
        let gpu = self.communicator.gpu();
        let mut x = gpu.make(shape, dtype);
        let address = x.address_to_write(gpu.place());
        (x, address)
    }

    fn address(&self, x: &Tensor) -> u64 {
        x.address(self.communicator.gpu().place())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        match thread::panicking() {
            true => self.communicator.abort(),
            false => self.communicator.leave(),
        }
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            drop(watch.join());
        }
    }
}

impl Group for Nccl {
    fn rank(&self) -> usize {
        self.communicator.rank
    }

    fn size(&self) -> usize {
        self.communicator.size
    }

    fn all_reduce(&self, x: &mut Tensor, reduce: Reduce) {
        expect_reducible("all_reduce", x.dtype(), reduce);
        let (kind, count) = (x.dtype(), x.len());
        let at = pointer(x.address_to_write(self.communicator.gpu().place()), 0);
        if count == 0 {
            return;
        }
        let flight = self.communicator.issue("all-reduce", Vec::new(), |to: &Calls| {
            let (kind, reduce) = (type_of(kind), operation_of(reduce));
            // SAFETY: `count` elements of the tensor, in place. Its memory is given back, if at all, after the device
            // was made to wait, below.
            unsafe { (to.library.all_reduce)(at, at, count, kind, reduce, to.communicator, to.stream) }
        });
        Box::new(flight).finish().unwrap_or_else(|error| error.raise());
    }

    fn all_gather(&self, x: &Tensor) -> Pending<Tensor> {
        let (all, address) = self.make(gathered(x, self.size()), x.dtype());
        let (from, to, count) = (pointer(self.address(x), 0), pointer(address, 0), x.len());
        if count == 0 {
            return Pending::ready(all);
        }
        let flight = self.communicator.issue("all-gather", vec![x.clone()], |by: &Calls| {
            // SAFETY: `count` elements of x, and as many for each rank. The flight holds x and the result stays with
            // it.
            unsafe { (by.library.all_gather)(from, to, count, type_of(x.dtype()), by.communicator, by.stream) }
        });
        Pending::new(all, flight)
    }

    fn reduce_scatter(&self, x: &Tensor, reduce: Reduce) -> Pending<Tensor> {
        expect_reducible("reduce_scatter", x.dtype(), reduce);
        let (part, address) = self.make(scattered(x, self.size()), x.dtype());
        let (from, to, count) = (pointer(self.address(x), 0), pointer(address, 0), part.len());
        if count == 0 {
            return Pending::ready(part);
        }
        let flight = self.communicator.issue("reduce-scatter", vec![x.clone()], |by: &Calls| {
            let (kind, reduce) = (type_of(x.dtype()), operation_of(reduce));
            // SAFETY: `count` elements of x for each rank, and `count` of the result. Held as above.
            unsafe { (by.library.reduce_scatter)(from, to, count, kind, reduce, by.communicator, by.stream) }
        });
        Pending::new(part, flight)
    }

    fn send(&self, x: &Tensor, to: usize) -> Pending<()> {
        expect_rank("send", to, self.size());
        if to == self.rank() {
            self.mailbox.put(self.communicator.gpu().copy_one(x));
            return Pending::ready(());
        }
        let from = pointer(self.address(x), 0);
        if x.is_empty() {
            return Pending::ready(());
        }
        let flight = self.communicator.issue("send", vec![x.clone()], |by: &Calls| {
            let (kind, peer) = (type_of(x.dtype()), to as i32);
            // SAFETY: all elements of x, which the flight holds.
            unsafe { (by.library.send)(from, x.len(), kind, peer, by.communicator, by.stream) }
        });
        Pending::new((), flight)
    }

    fn receive(&self, shape: Shape, dtype: DType, from: usize) -> Pending<Tensor> {
        expect_rank("receive", from, self.size());
        if from == self.rank() {
            return Pending::ready(self.mailbox.take(shape, dtype, from));
        }
        let (x, address) = self.make(shape, dtype);
        if x.is_empty() {
            return Pending::ready(x);
        }
        let flight = self.communicator.issue("receive", Vec::new(), |by: &Calls| {
            let (to, peer) = (pointer(address, 0), from as i32);
            // SAFETY: all elements of the result, which stays with the flight.
            unsafe { (by.library.receive)(to, x.len(), type_of(dtype), peer, by.communicator, by.stream) }
        });
        Pending::new(x, flight)
    }

    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Pending<Tensor> {
        let ends = [self.rank(), self.size()];
        let (result, address) = self.make(exchanged(rows, sent, received, ends), rows.dtype());
        let (from, width) = (self.address(rows), rows.cols());
        if sent.iter().chain(received).all(|count| count * width == 0) {
            return Pending::ready(result);
        }
        let flight = self.communicator.issue("exchange rows", vec![rows.clone()], |by: &Calls| {
            let (kind, row_bytes) = (type_of(rows.dtype()), width * rows.dtype().bytes());
            let (mut sent_rows, mut received_rows) = (0, 0);
            // One group, in which all sends and receives go on at once: one after the other, two ranks that send to
            // each other would wait for ever. It is closed also after an error, because it belongs to the thread.
            // SAFETY: takes nothing.
            let mut code = unsafe { (by.library.group_start)() };
            let mut and = |call: &dyn Fn() -> Code| code = if code == SUCCESS { call() } else { code };
            for (peer, (&to_send, &to_receive)) in sent.iter().zip(received).enumerate() {
                let (out, into) = (pointer(from, sent_rows * row_bytes), pointer(address, received_rows * row_bytes));
                let peer = peer as i32;
                if to_send * width > 0 {
                    // SAFETY: rows of `rows`, since the counts add up to all of them; the flight holds it.
                    and(&|| unsafe { (by.library.send)(out, to_send * width, kind, peer, by.communicator, by.stream) });
                }
                if to_receive * width > 0 {
                    // SAFETY: rows of the result, which has as many as the counts add up to, and stays with the flight.
                    and(&|| unsafe {
                        (by.library.receive)(into, to_receive * width, kind, peer, by.communicator, by.stream)
                    });
                }
                sent_rows += to_send;
                received_rows += to_receive;
            }
            // SAFETY: takes nothing.
            let end = unsafe { (by.library.group_end)() };
            if code == SUCCESS { end } else { code }
        });
        Pending::new(result, flight)
    }
}
