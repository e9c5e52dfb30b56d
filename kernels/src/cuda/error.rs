//! What can go wrong on a device while operations run.

use cudarc::driver::DriverError;
use std::fmt;

/// A failure of the device: no memory left, a kernel that failed, a device that is gone. Operations do not return
/// `Result`, so it is the payload of a panic; [`DeviceError::of_panic`] finds it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceError {
    pub(super) message: String,
    pub(super) hint: String,
    pub(super) is_temporary: bool,
    pub(super) is_memory: bool,
}

impl DeviceError {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), is_temporary: false, is_memory: false }
    }

    /// There is no memory left.
    pub(super) fn of_memory(message: String) -> Self {
        Self {
            is_memory: true,
            ..Self::new(message, "lower `micro_batch_tokens`, or set `recompute: light` or `full`")
        }
    }

    /// What the driver said when smelt asked it to do `what`.
    pub(crate) fn of_driver(what: &str, error: DriverError) -> Self {
        let name = name_of(error);
        let hint = "see the kernel log (`dmesg`) for the cause; another try goes on from the last save";
        Self::temporary(format!("the GPU failed to {what}: {name}"), hint)
    }

    /// One that another process may not meet again.
    pub(crate) fn temporary(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { is_temporary: true, ..Self::new(message, hint) }
    }

    /// The one thing to do.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// Whether another process may not meet it again.
    pub fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    /// Whether the device's memory did not suffice.
    pub fn is_out_of_memory(&self) -> bool {
        self.is_memory
    }

    /// The failure with which an operation panicked, if it was one of the device.
    pub fn of_panic(payload: &(dyn std::any::Any + Send)) -> Option<&Self> {
        payload.downcast_ref()
    }

    /// Ends the operation.
    pub(crate) fn raise(self) -> ! {
        std::panic::panic_any(self)
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeviceError {}

/// A number of bytes for people: 12.34 GiB, 5.00 MiB.
pub fn size(bytes: u64) -> String {
    match bytes as f64 / (1u64 << 30) as f64 {
        gib if gib < 0.1 => format!("{:.2} MiB", gib * 1024.0),
        gib => format!("{gib:.2} GiB"),
    }
}

/// The driver's own name of an error.
pub(super) fn name_of(error: DriverError) -> String {
    error.error_name().map_or_else(|_| "an unknown error".into(), |name| name.to_string_lossy().into_owned())
}

/// The value, or the end of the operation.
pub(super) fn expect<T>(what: &str, result: Result<T, DriverError>) -> T {
    result.unwrap_or_else(|error| DeviceError::of_driver(what, error).raise())
}
