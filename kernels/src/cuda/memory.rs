//! The arena of a device: freed memory is used again, in the order of the one stream that all operations run in.

use super::error::DeviceError;
use crate::dtype::DType;
use cudarc::driver::result;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

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
    arena: Arc<Arena>,
}

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
        let mut state = self.arena.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.used -= self.bytes;
        state.free.entry(self.bytes).or_default().push(self.address);
    }
}

#[derive(Debug, Default)]
pub(super) struct Arena {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: HashMap<usize, Vec<u64>>,
    used: usize,
    peak: usize,
}

/// Sizes are rounded up to a sixteenth of a power of two: at most 6 % is wasted, and sizes that differ little share a
/// list.
fn class(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of((bytes.next_power_of_two() / 32).max(GRAIN))
}

impl Arena {
    /// Memory with unspecified contents. The caller has made the device's context current.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> DeviceMemory {
        let class = class(bytes);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.free.get_mut(&class).and_then(Vec::pop);
        // SAFETY: `malloc_sync` asks for a size above zero, with a current context.
        let address = found.or_else(|| unsafe { result::malloc_sync(class) }.ok());
        let address = address.or_else(|| {
            state.release();
            // SAFETY: as above.
            unsafe { result::malloc_sync(class) }.ok()
        });
        let Some(address) = address else {
            let used = state.used;
            drop(state);
            out_of_memory(bytes, used)
        };
        state.used += class;
        state.peak = state.peak.max(state.used);
        DeviceMemory { address, bytes: class, arena: self.clone() }
    }

    /// The most bytes that tensors took at once since the last call.
    pub(super) fn take_peak(&self) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state.used;
        std::mem::replace(&mut state.peak, now)
    }

    /// Returns free memory to the driver.
    pub(super) fn release(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).release();
    }
}

impl State {
    /// The driver waits for the operations that still use the memory.
    fn release(&mut self) {
        for address in self.free.drain().flat_map(|(_, addresses)| addresses) {
            // SAFETY: it came from `malloc_sync`, and no tensor has it. A device that is gone has freed it already.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

fn out_of_memory(bytes: usize, used: usize) -> ! {
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    let (free, total) = result::mem_get_info().unwrap_or_default();
    DeviceError::new(
        format!(
            "the GPU has no {:.2} GiB for one more tensor: tensors take {:.2} GiB, {:.2} of {:.2} GiB are free",
            gib(bytes),
            gib(used),
            gib(free),
            gib(total)
        ),
        "lower `micro_batch_tokens`, or set `recompute: light` or `full`",
    )
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
