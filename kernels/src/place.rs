//! Where memory is, and who may touch it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a tensor's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The host reads and writes it.
    Host,
    /// The memory of [`Fenced`](crate::Fenced): only its operations may touch it.
    Fenced,
    /// The memory of a GPU, by its number: only operations of [`Cuda`](crate::Cuda) touch it.
    Cuda(u32),
    /// There is none: [`Meta`](crate::Meta) has shapes alone.
    Meta,
}

thread_local! {
    static HERE: Cell<Device> = const { Cell::new(Device::Host) };
    /// Counts the tensors without memory that this thread makes now.
    static GAUGE: RefCell<Option<Arc<Gauge>>> = const { RefCell::new(None) };
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

/// Counts the bytes that tensors without memory would take.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    live: AtomicU64,
    peak: AtomicU64,
}

impl Gauge {
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// The most since the last call.
    pub(crate) fn take_peak(&self) -> u64 {
        self.peak.swap(self.live(), Ordering::Relaxed)
    }

    /// Tensors that `work` makes have no memory, and count here.
    pub(crate) fn within<R>(self: &Arc<Self>, work: impl FnOnce() -> R) -> R {
        let outside = GAUGE.replace(Some(self.clone()));
        let result = Device::Meta.within(work);
        GAUGE.set(outside);
        result
    }

    /// A tensor of so many bytes; they count until this is dropped.
    pub(crate) fn take(bytes: u64) -> Taken {
        let gauge = GAUGE.with_borrow(Clone::clone);
        if let Some(gauge) = &gauge {
            let live = gauge.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
            gauge.peak.fetch_max(live, Ordering::Relaxed);
        }
        Taken { gauge, bytes }
    }
}

/// The bytes of one tensor, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    gauge: Option<Arc<Gauge>>,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.live.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
