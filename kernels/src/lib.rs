//! What runs on a device: tensors and the coarse operations a model is made of.
//!
//! Nothing here knows a model, a file or a store. A wrong shape is our bug and panics with operation, expected and
//! found. On the CPU every result has the same bits for any thread count and vector width, and a row's result does not
//! depend on the rows beside it: sums have one order, and `exp` and its kin are our own ([`math`]).

mod adapters;
mod backend;
mod cpu;
mod documents;
mod dtype;
pub mod fp8;
pub mod gemm;
mod lowered;
pub mod math;
mod memory;
pub mod random;
mod rectangle;
mod segments;
mod tensor;

pub use adapters::{Spent, Trace};
pub use backend::{
    AdamW, AttentionShape, Backend, CachedRows, GroupedShape, Head, Layout, Rope, Router, Routing, Softmax,
};
pub use cpu::Cpu;
pub use documents::Documents;
pub use dtype::{DType, Element, Real};
pub use gemm::Write;
pub use half::bf16;
pub use segments::Segments;
pub use tensor::{Shape, Tensor};
