//! Copies to the host beside the device's operations: of what a save holds.
//!
//! A copy to ordinary memory of the host waits, so these go to page-locked memory, in a stream of their own. The
//! stream begins behind the operations asked for before; operations that write what is copied run behind it
//! ([`Cuda::hold_back_behind`]). The memory, as large as what is copied, is kept for the next time: to lock pages takes
//! far longer than to copy them.

use super::device::Cuda;
use super::error::{DeviceError, expect};
use crate::downloads::{Copied, Downloads};
use crate::tensor::Tensor;
use cudarc::driver::{DriverError, result, sys};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Places in page-locked memory are multiples of it.
const GRAIN: usize = 256;

/// Page-locked memory.
struct Locked {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: whoever has it is the only one that touches the memory.
unsafe impl Send for Locked {}

/// The stream, and memory that no copy uses. It keeps the device's context, for copies may outlive their device.
pub(super) struct Landings {
    handle: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    free: Mutex<Vec<Locked>>,
}

// SAFETY: handles of the driver, which may be used from any thread whose current context is the device's.
unsafe impl Send for Landings {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Landings {}

impl Landings {
    fn new(handle: sys::CUdevice) -> Result<Self, DriverError> {
        // SAFETY: the device is open, so it has a context; it is given back when this is dropped.
        let context = unsafe { result::primary_ctx::retain(handle) }?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        Ok(Self { handle, context, stream, free: Mutex::default() })
    }

    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// Memory that no copy uses: of the last time, if it is large enough.
    fn lock(&self, bytes: usize) -> Result<Locked, DriverError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = free.iter().position(|locked| locked.bytes >= bytes) {
            return Ok(free.swap_remove(at));
        }
        free.drain(..).for_each(unlock);
        // SAFETY: freed by `unlock`.
        let address = unsafe { result::malloc_host(bytes, 0) }?.cast();
        Ok(Locked { address, bytes })
    }
}

fn unlock(locked: Locked) {
    // SAFETY: no copy uses it any more. Errors are those of a device that is already gone.
    let _ = unsafe { result::free_host(locked.address.cast()) };
}

impl Drop for Landings {
    fn drop(&mut self) {
        let free = std::mem::take(self.free.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: no copy is left, for each keeps this. Errors are those of a device that is already gone.
        unsafe {
            let _ = self.bind();
            free.into_iter().for_each(unlock);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.handle);
        }
    }
}

/// The point behind the last copy.
#[derive(Clone)]
pub(crate) struct Landed(Arc<Event>);

struct Event {
    of: Arc<Landings>,
    event: sys::CUevent,
}

// SAFETY: a handle of the driver.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Event {}

impl fmt::Debug for Landed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Landed").finish_non_exhaustive()
    }
}

impl Event {
    fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event is alive, and was recorded.
        self.of.bind().and_then(|()| unsafe { result::event::synchronize(self.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has the event; the driver frees it after the last wait for it. Errors are those of a
        // device that is gone.
        let _ = self.of.bind().and_then(|()| unsafe { result::event::destroy(self.event) });
    }
}

/// Copies of tensors on their way.
pub(crate) struct Landing {
    done: Landed,
    /// Until this is dropped.
    locked: Option<Locked>,
    places: Vec<Range<usize>>,
    is_there: AtomicBool,
}

// SAFETY: the memory is written by the copies, and read after them.
unsafe impl Sync for Landing {}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Landing of {} tensors", self.places.len())
    }
}

impl Landing {
    /// Waits, on the host, until the copies are done: the bytes of each tensor.
    pub(crate) fn wait(&self) -> Result<Vec<&[u8]>, DeviceError> {
        if !self.is_there.load(Ordering::Acquire) {
            // An operation before the copies may be what failed.
            self.done.0.wait().map_err(|error| DeviceError::of_driver("compute", error))?;
            self.is_there.store(true, Ordering::Release);
        }
        let locked = self.locked.as_ref().expect("it is there until this is dropped");
        let bytes = |place: &Range<usize>| {
            // SAFETY: places are within the memory, which nobody writes any more.
            unsafe { std::slice::from_raw_parts(locked.address.add(place.start), place.len()) }
        };
        Ok(self.places.iter().map(bytes).collect())
    }

    pub(crate) fn landed(&self) -> &Landed {
        &self.done
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !*self.is_there.get_mut() {
            // the memory is used again; an error is that of a device that is gone
            let _ = self.done.0.wait();
        }
        let mut free = self.done.0.of.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.locked.take());
    }
}

impl Cuda {
    /// Copies beside the operations asked for from now on; where there is no page-locked memory for them, at once.
    pub(super) fn land(&self, tensors: &[&Tensor]) -> Downloads {
        let mut end = 0;
        let places: Vec<Range<usize>> = tensors
            .iter()
            .map(|x| {
                let start = end;
                end = start + (x.len() * x.dtype().bytes()).next_multiple_of(GRAIN);
                start..start + x.len() * x.dtype().bytes()
            })
            .collect();
        self.bind();
        let locked = self.landings().and_then(|of| Ok((of.lock(end.max(GRAIN))?, of)));
        let Ok((locked, of)) = locked else {
            return Downloads::there(tensors.iter().map(|x| self.download_one(x)).collect());
        };
        let none = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        let event = || expect("make an event", result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING));
        let (asked, done) = (event(), event());
        let (stream, to) = (of.stream, locked.address);
        let done = Landed(Arc::new(Event { of, event: done }));
        let landing = Landing { done, locked: Some(locked), places, is_there: AtomicBool::new(false) };
        // SAFETY: the streams are this device's; each place is as long as its tensor and within the memory, which
        // nobody else touches before `done`; the driver frees an event after the last wait for it.
        unsafe {
            expect("order a copy", result::event::record(asked, self.stream()));
            expect("order a copy", result::stream::wait_event(stream, asked, none));
            expect("order a copy", result::event::destroy(asked));
            for (x, place) in tensors.iter().zip(&landing.places).filter(|(x, _)| !x.is_empty()) {
                let to = std::slice::from_raw_parts_mut(to.add(place.start), place.len());
                expect("copy to the host", result::memcpy_dtoh_async(to, x.address(self.place()), stream));
            }
            expect("order a copy", result::event::record(landing.done.0.event, stream));
        }
        Downloads::on_the_way(landing, tensors.iter().map(|&x| x.clone()).collect())
    }

    /// The operations asked for from now on run behind the copies.
    pub(super) fn hold_back_behind(&self, copied: &Copied) {
        if let Some(Landed(copies)) = copied.landed() {
            self.bind();
            let none = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            // SAFETY: both are this device's, and alive.
            expect("order a copy", unsafe { result::stream::wait_event(self.stream(), copies.event, none) });
        }
        copied.release();
    }

    /// The stream for copies to the host, made when it is first used.
    fn landings(&self) -> Result<Arc<Landings>, DriverError> {
        let mut landings = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
        if landings.is_none() {
            *landings = Some(Arc::new(Landings::new(self.handle)?));
        }
        Ok(landings.clone().expect("it was just made"))
    }
}
