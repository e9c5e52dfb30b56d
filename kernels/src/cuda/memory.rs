//! The arena of a device: freed memory is used again, in the order of the one stream that all operations run in.
//!
//! What the host writes in another stream ([`uploads`](super::uploads)) lies in memory of its own, each piece with an
//! event behind the operations that used it last.

use super::error::{DeviceError, expect, size};
use crate::dtype::DType;
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Allocations are multiples of it: the alignment that the copy engine and vectors want, with room to spare.
const GRAIN: usize = 512;

/// The number of an element type in `../../cu/rows.cu`.
pub(super) fn code(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 0,
        DType::F64 => 1,
        DType::Bf16 => 2,
        DType::E4m3 => 3,
        DType::U32 => 4,
    }
}

/// Memory of one tensor on the device; given back when dropped.
pub(crate) struct DeviceMemory {
    address: u64,
    bytes: usize,
    /// Of memory that another stream writes: recorded when it is given back.
    unused: Option<Event>,
    arena: Arc<Arena>,
}

/// A handle of the driver.
#[derive(Clone, Copy)]
struct Event(sys::CUevent);

// SAFETY: may be used from any thread whose current context is the device's.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Event {}

impl DeviceMemory {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "DeviceMemory of {} bytes", self.bytes)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let mut state = self.arena.lock();
        state.used -= self.bytes;
        match self.unused {
            None => state.free.entry(self.bytes).or_default().push(self.address),
            Some(event) => state.unused.push((self.bytes, self.address, event)),
        }
    }
}

#[derive(Default)]
pub(super) struct Arena {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: HashMap<usize, Vec<u64>>,
    /// Given back, by size; the events are recorded.
    free_beside: HashMap<usize, Vec<(u64, Event)>>,
    /// Given back, but operations that use it may not be handed to the driver yet: size, address, event.
    unused: Vec<(usize, u64, Event)>,
    used: usize,
    peak: usize,
}

/// Sizes are rounded up to a sixteenth of a power of two: at most 6 % is wasted, and sizes that differ little share a
/// list.
fn class(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of((bytes.next_power_of_two() / 32).max(GRAIN))
}

impl Arena {
    /// Memory with unspecified contents, for `what` is to be said where there is none. The caller has made the device's
    /// context current. `submit` hands to the driver what was asked for so far: it is called before memory goes back to
    /// it.
    pub(super) fn take(
        self: &Arc<Self>,
        bytes: usize,
        what: impl FnOnce() -> String,
        submit: impl FnOnce(),
    ) -> DeviceMemory {
        let class = class(bytes);
        let again = self.lock().free.get_mut(&class).and_then(Vec::pop);
        let address = again.or_else(|| self.allocate(class, submit));
        self.give(address, bytes, what, None)
    }

    /// The same, for what `stream` writes: its next work runs behind the operations that used the memory before.
    pub(super) fn take_beside(
        self: &Arc<Self>,
        bytes: usize,
        stream: sys::CUstream,
        submit: impl FnOnce(),
    ) -> DeviceMemory {
        let class = class(bytes);
        let again = self.lock().free_beside.get_mut(&class).and_then(Vec::pop);
        if let Some((_, event)) = again {
            // SAFETY: both belong to the device; the event was recorded when the memory was given back.
            let waits =
                unsafe { result::stream::wait_event(stream, event.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) };
            expect("order a copy", waits);
        }
        let found = again.or_else(|| {
            let event = expect("make an event", result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING));
            self.allocate(class, submit).map(|address| (address, Event(event)))
        });
        let what = || "what is uploaded".to_owned();
        self.give(found.map(|(address, _)| address), bytes, what, found.map(|(_, event)| event))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New memory of the driver, if need be after returning to it what is free.
    fn allocate(&self, bytes: usize, submit: impl FnOnce()) -> Option<u64> {
        // SAFETY: sizes of classes are above zero, and a context is current.
        let new = || unsafe { result::malloc_sync(bytes) }.ok();
        new().or_else(|| {
            submit();
            self.lock().release();
            new()
        })
    }

    /// Everything asked for so far is in `stream`: what was given back is free behind it.
    pub(super) fn record_unused(&self, stream: sys::CUstream) {
        let mut state = self.lock();
        for (bytes, address, event) in std::mem::take(&mut state.unused) {
            // SAFETY: both are the device's. Errors are those of a device that is gone.
            let _ = unsafe { result::event::record(event.0, stream) };
            state.free_beside.entry(bytes).or_default().push((address, event));
        }
    }

    fn give(
        self: &Arc<Self>,
        address: Option<u64>,
        bytes: usize,
        what: impl FnOnce() -> String,
        unused: Option<Event>,
    ) -> DeviceMemory {
        let mut state = self.lock();
        let Some(address) = address else {
            let used = state.used;
            drop(state);
            out_of_memory(bytes, &what(), used)
        };
        let bytes = class(bytes);
        state.used += bytes;
        state.peak = state.peak.max(state.used);
        DeviceMemory { address, bytes, unused, arena: self.clone() }
    }

    /// The most bytes that tensors took at once since the last call.
    pub(super) fn take_peak(&self) -> usize {
        let mut state = self.lock();
        let now = state.used;
        std::mem::replace(&mut state.peak, now)
    }

    /// Returns free memory to the driver.
    pub(super) fn release(&self) {
        self.lock().release();
    }
}

impl State {
    /// The driver waits for the operations that still use the memory.
    fn release(&mut self) {
        let of_operations = self.free.drain().flat_map(|(_, addresses)| addresses).map(|address| (address, None));
        let beside = self.free_beside.drain().flat_map(|(_, free)| free).map(|(address, event)| (address, Some(event)));
        for (address, event) in of_operations.chain(beside) {
            // SAFETY: they came from the driver, and no tensor has them. A device that is gone has freed them already.
            unsafe {
                let _ = result::free_sync(address);
                let _ = event.map(|event| result::event::destroy(event.0));
            }
        }
    }
}

fn out_of_memory(bytes: usize, what: &str, used: usize) -> ! {
    let (free, total) = result::mem_get_info().unwrap_or_default();
    let [asked, taken, free, total] = [bytes, used, free, total].map(|bytes| size(bytes as u64));
    DeviceError::of_memory(format!(
        "the GPU has no {asked} for {what}: tensors take {taken}, {free} of {total} are free"
    ))
    .raise()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_by_little() {
        assert_eq!([0, 1, 512, 513].map(class), [512, 512, 512, 1024]);
        for bytes in (1 << 20..1 << 24).step_by(12_345) {
            assert!(class(bytes) >= bytes && class(bytes) as f64 <= bytes as f64 * 1.07, "{bytes}: {}", class(bytes));
        }
    }
}
