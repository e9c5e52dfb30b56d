//! Copies to the device beside its operations.
//!
//! A copy from ordinary memory of the host may wait for what its stream still has to do. What the host uploads in a
//! step (token ids, bounds of documents, settings of requests) is small: it goes through page-locked memory, in a
//! stream of its own, so that the host never waits and the copy runs beside the operations asked for before.

use super::device::Cuda;
use super::error::expect;
use super::memory::DeviceMemory;
use crate::tensor::Tensor;
use cudarc::driver::{DriverError, result, sys};
use std::fmt;
use std::sync::PoisonError;

/// Bytes of page-locked memory. When copies have gone through all of it, the host waits for the last of them: by then
/// the others are long done.
const LOCKED: usize = 8 << 20;

/// A larger tensor, such as a weight, is copied by the driver's own means, in the operations' stream.
const MOST: usize = 1 << 20;

/// Places in page-locked memory are multiples of it.
const GRAIN: usize = 64;

/// The stream of copies to a device, and the memory that they come from.
pub(super) struct Uploads {
    pub(super) stream: sys::CUstream,
    /// Behind the last copy.
    copied: sys::CUevent,
    locked: *mut u8,
    /// Bytes in use, from the beginning.
    taken: usize,
}

// SAFETY: handles of the driver and memory that it alone reads; it is behind a lock.
unsafe impl Send for Uploads {}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Uploads").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Uploads {
    /// For the device of the current context.
    pub(super) fn new() -> Result<Self, DriverError> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        let copied = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: freed by `close`.
        let locked = unsafe { result::malloc_host(LOCKED, 0) }?.cast();
        Ok(Self { stream, copied, locked, taken: 0 })
    }

    /// A copy of `bytes` in page-locked memory, which stays until the next wait.
    fn lock(&mut self, bytes: &[u8]) -> &[u8] {
        if self.taken + bytes.len() > LOCKED {
            // SAFETY: the stream is this one's.
            expect("copy to the device", unsafe { result::stream::synchronize(self.stream) });
            self.taken = 0;
        }
        // SAFETY: the place is within the memory, and no copy reads it.
        let place = unsafe { std::slice::from_raw_parts_mut(self.locked.add(self.taken), bytes.len()) };
        place.copy_from_slice(bytes);
        self.taken += bytes.len().next_multiple_of(GRAIN);
        place
    }

    /// Gives everything back to the driver; the device is closed.
    pub(super) fn close(&mut self) {
        // SAFETY: nothing uses them any more. Errors are those of a device that is already gone.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::event::destroy(self.copied);
            let _ = result::stream::destroy(self.stream);
            let _ = result::free_host(self.locked.cast());
        }
    }
}

impl Cuda {
    pub(super) fn upload_one(&self, x: &Tensor) -> Tensor {
        if x.device() == self.place() {
            return x.clone();
        }
        let bytes = x.bytes();
        if bytes.is_empty() || bytes.len() > MOST {
            return self.upload_in_order(x);
        }
        self.bind();
        let memory = self.upload_beside(bytes);
        Tensor::of_device(self.place(), memory, x.shape(), x.dtype())
    }

    fn upload_in_order(&self, x: &Tensor) -> Tensor {
        let mut to = self.make(x.shape(), x.dtype());
        if !x.bytes().is_empty() {
            let address = to.address_to_write(self.place());
            // SAFETY: both are as long as the tensor; the driver has read pageable memory when the call returns.
            let copied = unsafe { result::memcpy_htod_async(address, x.bytes(), self.stream()) };
            expect("copy to the device", copied);
        }
        to
    }

    /// The operations asked for from now on run behind the copy.
    fn upload_beside(&self, bytes: &[u8]) -> DeviceMemory {
        let mut uploads = self.uploads().lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, copied) = (uploads.stream, uploads.copied);
        let memory = self.arena().take_beside(bytes.len(), stream, || self.submit());
        let from = uploads.lock(bytes);
        let after = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // Launches that are not handed to the driver yet come behind the copy too: none of them reads the memory.
        // SAFETY: the memory is as long and no operation has it; page-locked memory stays as it is until the copy is
        // done; a stream that waits for an event waits for what was recorded when it was told to.
        unsafe {
            expect("copy to the device", result::memcpy_htod_async(memory.address(), from, stream));
            expect("order a copy", result::event::record(copied, stream));
            expect("order a copy", result::stream::wait_event(self.stream, copied, after));
        }
        memory
    }
}
