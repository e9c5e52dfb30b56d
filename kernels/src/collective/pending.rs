//! The result of a communication that may be on its way.

use crate::cuda::DeviceError;
use std::{fmt, mem};

/// A communication on its way, which holds what it reads.
pub(super) trait Transfer: Send {
    /// Lets everything that the device is asked for from now on wait for the communication; the host does not wait.
    fn finish(self: Box<Self>) -> Result<(), DeviceError>;
}

/// What a communication gives. The device's other operations go on beside it until [`wait`](Self::wait), so what is
/// asked for between the two costs no time. Dropping it waits too, and drops the result.
#[must_use = "a communication that nobody waits for overlaps with nothing"]
pub struct Pending<T> {
    /// None once it was taken.
    value: Option<T>,
    transfer: Option<Box<dyn Transfer>>,
}

impl<T> Pending<T> {
    /// A result that is there.
    pub(super) fn ready(value: T) -> Self {
        Self { value: Some(value), transfer: None }
    }

    pub(super) fn new(value: T, transfer: impl Transfer + 'static) -> Self {
        Self { value: Some(value), transfer: Some(Box::new(transfer)) }
    }

    /// The result. **The device waits** for the communication before its next operation, the host does not.
    pub fn wait(mut self) -> T {
        self.settle().unwrap_or_else(|error| error.raise());
        self.value.take().expect("taken once, here")
    }

    fn settle(&mut self) -> Result<(), DeviceError> {
        let done = self.transfer.take().map_or(Ok(()), Transfer::finish);
        if done.is_err() {
            mem::forget(self.value.take()); // the communication may still write this memory: nobody may get it again
        }
        done
    }
}

impl<T> Drop for Pending<T> {
    /// Memory goes back to the arena in the order of the device's stream, so that stream has to wait before.
    fn drop(&mut self) {
        drop(self.settle()); // the next operation meets the same failure
    }
}

impl<T: fmt::Debug> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let is_ready = self.transfer.is_none();
        f.debug_struct("Pending").field("value", &self.value).field("is_ready", &is_ready).finish()
    }
}
