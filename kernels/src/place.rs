//! Where memory is, and who may touch it.

use std::cell::Cell;

/// Where a tensor's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The host reads and writes it.
    Host,
    /// The memory of [`Fenced`](crate::Fenced): only its operations may touch it.
    Fenced,
}

thread_local! {
    static HERE: Cell<Device> = const { Cell::new(Device::Host) };
}

impl Device {
    /// Whose memory this thread may touch now: the host's, except inside an operation of another device.
    pub(crate) fn here() -> Self {
        HERE.get()
    }

    /// Runs `work` inside an operation of this device.
    pub(crate) fn within<R>(self, work: impl FnOnce() -> R) -> R {
        /// The device outside, also after a panic.
        struct Outside(Device);
        impl Drop for Outside {
            fn drop(&mut self) {
                HERE.set(self.0);
            }
        }
        let _outside = Outside(HERE.replace(self));
        work()
    }
}
