//! A device whose memory the host cannot touch, for tests on machines without one.

use crate::backend::*;
use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser};
use crate::place::Device;
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs the operations of another backend on tensors of its own. The host panics when it reads or writes one of them,
/// and so does an operation that is given a tensor of the host: what works here touches no memory of a real device by
/// mistake. [`take_waits`](Self::take_waits) says how often the host would have waited for one.
pub struct Fenced {
    inner: Arc<dyn Backend>,
    waits: AtomicUsize,
}

impl fmt::Debug for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Fenced").field("waits", &self.waits).finish_non_exhaustive()
    }
}

impl Fenced {
    /// `inner`: one that computes in the host's memory.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, waits: AtomicUsize::new(0) }
    }

    /// Downloads since the last call.
    pub fn take_waits(&self) -> usize {
        self.waits.swap(0, Ordering::Relaxed)
    }

    fn download_one(&self, x: &Tensor) -> Tensor {
        self.waits.fetch_add(1, Ordering::Relaxed);
        x.carried(Device::Fenced, Device::Host)
    }
}

macro_rules! fence {
    ($($(#[$meta:meta])* fn $name:ident(&self $(, $arg:ident: $type:ty)* $(,)?) $(-> $result:ty)?;)*) => {
        impl Backend for Fenced {
            $(fn $name(&self $(, $arg: $type)*) $(-> $result)? {
                fence!(@call self, $name, $($arg),*)
            })*
        }
    };
    (@call $self:ident, upload, $x:ident) => {
        if $x.device() == Device::Fenced { $x.clone() } else { $x.carried(Device::Host, Device::Fenced) }
    };
    (@call $self:ident, download, $x:ident) => {
        $self.download_one($x)
    };
    (@call $self:ident, download_beside, $tensors:ident) => {
        Downloads::there($tensors.iter().map(|x| x.carried(Device::Fenced, Device::Host)).collect())
    };
    (@call $self:ident, $name:ident, $($arg:ident),*) => {
        Device::Fenced.within(|| $self.inner.$name($($arg),*))
    };
}

operations!(fence);
