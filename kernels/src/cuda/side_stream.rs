//! A second stream of a device, ordered with the one that its operations run in by events. The host waits for neither.

use super::device::Cuda;
use super::error::{DeviceError, expect};
use cudarc::driver::{DriverError, result, sys};
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

/// What is issued to it runs beside the device's operations, except where [`follow`](Self::follow) and
/// [`Mark::hold_back`] order the two.
pub(crate) struct SideStream {
    gpu: Arc<Cuda>,
    stream: sys::CUstream,
}

// SAFETY: a handle of the driver, which may be used from any thread whose current context is the device's.
unsafe impl Send for SideStream {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for SideStream {}

impl fmt::Debug for SideStream {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("SideStream").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

impl SideStream {
    pub(crate) fn new(gpu: &Arc<Cuda>) -> Result<Self, DeviceError> {
        let failed = |error| DeviceError::of_driver("make a second stream", error);
        gpu.try_bind().map_err(failed)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        Ok(Self { gpu: gpu.clone(), stream })
    }

    pub(crate) fn gpu(&self) -> &Arc<Cuda> {
        &self.gpu
    }

    /// The handle, as other libraries of CUDA take it.
    pub(crate) fn handle(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// What is issued from now on runs after everything that the device was asked for so far.
    pub(crate) fn follow(&self) {
        let point = Mark::record(&self.gpu, self.gpu.stream());
        // SAFETY: both are this device's, and alive; the driver frees an event after the last wait for it.
        let waits = unsafe {
            result::stream::wait_event(self.stream, point.event, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
        };
        expect("order two streams", waits);
    }

    /// The point behind everything that was issued so far.
    pub(crate) fn mark(&self) -> Mark {
        Mark::record(&self.gpu, self.stream)
    }

    /// Waits, on the host, until everything that was issued is done.
    pub(crate) fn wait(&self) -> Result<(), DriverError> {
        self.gpu.try_bind()?;
        // SAFETY: the stream is this device's.
        unsafe { result::stream::synchronize(self.stream) }
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        // SAFETY: nobody else has the stream; the driver frees it after its last work. Errors are those of a device
        // that is already gone.
        let _ = self.gpu.try_bind().and_then(|()| unsafe { result::stream::destroy(self.stream) });
    }
}

/// A point in the work of a stream.
pub(crate) struct Mark {
    gpu: Arc<Cuda>,
    event: sys::CUevent,
}

// SAFETY: as for `SideStream`.
unsafe impl Send for Mark {}
// SAFETY: as for `SideStream`.
unsafe impl Sync for Mark {}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Mark").finish_non_exhaustive()
    }
}

impl Mark {
    fn record(gpu: &Arc<Cuda>, stream: sys::CUstream) -> Self {
        gpu.bind();
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let mark = Self { gpu: gpu.clone(), event: expect("make an event", event) };
        // SAFETY: the event was just made, on the device of the stream.
        expect("record an event", unsafe { result::event::record(mark.event, stream) });
        mark
    }

    /// What the device is asked for from now on runs after this point.
    pub(crate) fn hold_back(&self) -> Result<(), DeviceError> {
        let none = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        let gpu = &self.gpu;
        // SAFETY: both are this device's, and alive.
        let waits = gpu.try_bind().and_then(|()| unsafe { result::stream::wait_event(gpu.stream(), self.event, none) });
        waits.map_err(|error| DeviceError::of_driver("wait for a communication", error))
    }

    /// Whether the device has come to it. True also on a device that failed: whoever waits for it sees the error.
    pub(crate) fn is_reached(&self) -> bool {
        // SAFETY: the event is alive.
        let state = self.gpu.try_bind().and_then(|()| unsafe { result::event::query(self.event) });
        state != Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: nobody else has the event; the driver frees it after the last wait for it. Errors are those of a
        // device that is already gone.
        let _ = self.gpu.try_bind().and_then(|()| unsafe { result::event::destroy(self.event) });
    }
}
