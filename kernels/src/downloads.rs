//! Copies of tensors on their way from a device to the host, while the device goes on.

use crate::cuda::{DeviceError, Landed, Landing};
use crate::tensor::Tensor;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What [`Backend::download_beside`](crate::Backend::download_beside) gives. It may be sent to another thread, which
/// waits there.
#[derive(Debug)]
pub struct Downloads {
    copies: Copies,
    copied: Copied,
}

#[derive(Debug)]
enum Copies {
    There(Vec<Tensor>),
    OnTheWay(Landing),
}

/// Keeps what is copied as it is: while this has the tensors, nobody can write them or use their memory again.
#[derive(Clone, Default)]
pub struct Copied {
    sources: Arc<Mutex<Vec<Tensor>>>,
    landed: Option<Landed>,
}

impl fmt::Debug for Copied {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Copied").field("landed", &self.landed).finish_non_exhaustive()
    }
}

impl Copied {
    pub(crate) fn landed(&self) -> Option<&Landed> {
        self.landed.as_ref()
    }

    /// Lets others write the tensors, since what writes them runs behind the copies.
    pub(crate) fn release(&self) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Downloads {
    /// Of a device whose copies are there at once.
    pub(crate) fn there(copies: Vec<Tensor>) -> Self {
        Self { copies: Copies::There(copies), copied: Copied::default() }
    }

    pub(crate) fn on_the_way(landing: Landing, sources: Vec<Tensor>) -> Self {
        let copied = Copied { sources: Arc::new(Mutex::new(sources)), landed: Some(landing.landed().clone()) };
        Self { copies: Copies::OnTheWay(landing), copied }
    }

    /// The point at which the copies are done, for [`Backend::hold_back`](crate::Backend::hold_back); none when they
    /// are there already. Then they may share memory with the tensors, which are written only after the copies are
    /// dropped.
    pub fn copied(&self) -> Option<Copied> {
        matches!(self.copies, Copies::OnTheWay(_)).then(|| self.copied.clone())
    }

    /// Waits, in this thread, until the copies are there: the bytes of each tensor, in order.
    pub fn bytes(&self) -> Result<Vec<&[u8]>, DeviceError> {
        match &self.copies {
            Copies::There(copies) => Ok(copies.iter().map(Tensor::bytes).collect()),
            Copies::OnTheWay(landing) => {
                let bytes = landing.wait()?;
                self.copied.release();
                Ok(bytes)
            }
        }
    }
}
