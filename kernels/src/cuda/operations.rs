//! The operations of the table by their names: an error says which one ran.

use super::device::Cuda;
use crate::backend::*;
use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser};
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static RUNNING: Cell<&'static str> = const { Cell::new("a transfer") };
}

/// The operation that this thread asked for last.
pub(super) fn running() -> &'static str {
    RUNNING.get()
}

macro_rules! named {
    ($($(#[$meta:meta])* fn $name:ident(&self $(, $arg:ident: $type:ty)* $(,)?) $(-> $result:ty)?;)*) => {
        /// What [`Cuda`] implements; as [`Backend`] it also keeps the name.
        #[allow(clippy::too_many_arguments)]
        pub(super) trait Operations {
            $(fn $name(&self $(, $arg: $type)*) $(-> $result)?;)*
        }

        impl Backend for Cuda {
            $(fn $name(&self $(, $arg: $type)*) $(-> $result)? {
                RUNNING.set(stringify!($name));
                Operations::$name(self $(, $arg)*)
            })*
        }
    };
}

operations!(named);
