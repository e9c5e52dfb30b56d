//! What runs on a device: tensors and the coarse operations a model is made of.
//!
//! [`Reference`] has each operation as its equation, in plain loops; [`Cpu`] computes the same fast, and the tests hold
//! one against the other. [`Backend`] is the table of operations that both implement.
//!
//! Nothing here knows a model, a file or a store. A wrong shape is our bug and panics with operation, expected and
//! found.
//!
//! On the CPU a result has the same bits for any thread count and vector width, and a row's result does not depend on
//! the other rows of the batch: every sum has one fixed order, and `exp`, `ln`, `sin` and so on are our own ([`math`]).

mod adapters;
mod backend;
pub mod collective;
mod cpu;
pub mod cuda;
mod document_bounds;
mod downloads;
mod dtype;
mod e4m3;
pub mod fp8;
mod library;
pub mod math;
mod memory;
mod meta;
mod place;
mod prefetch;
mod quantiser;
pub mod random;
mod rectangle;
mod reference;
mod segments;
mod spans;
mod tensor;
mod view;

pub use adapters::{Fenced, Spent, Trace};
pub use backend::{
    AdamW, AttentionShape, Backend, CachedRows, Counted, Draw, GroupedShape, Head, Layout, OPERATIONS, Rope, Router,
    Routing, Softmax, Write,
};
pub use cpu::{Cpu, gemm};
pub use cuda::{Cuda, DeviceError};
pub use document_bounds::{DocumentBounds, Documents};
pub use downloads::{Copied, Downloads};
pub use dtype::{DType, Element};
pub use half::bf16;
pub use meta::Meta;
pub use place::Device;
pub use reference::Reference;
pub use segments::Segments;
pub use tensor::{Shape, Tensor};
