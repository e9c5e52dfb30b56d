//! NVIDIA GPUs: the operations as kernels of `../../cu`, one name here, there and in [`cpu`](crate::Cpu).
//!
//! The driver, the compiler and everything else of CUDA is opened at run time: one binary runs with and without a GPU.
//! All operations of a device run in one stream, in the order in which the host calls them, and the host goes on at
//! once; it waits in `download` alone. Small uploads, copies of what a save holds, and communications have streams of
//! their own, ordered with that one by events.

mod attention;
mod both;
mod compared;
mod compiler;
mod cubin;
mod cublaslt;
mod device;
mod error;
mod flash;
mod graphs;
mod head;
mod landing;
mod launch;
mod low_precision;
mod memory;
mod operations;
mod optimizer;
mod products;
mod router;
mod rows;
mod sample;
mod side_stream;
mod sources;
mod table;
mod tensor_cores;
mod uploads;

pub use compared::{Comparison, Differing};
pub use compiler::{Compiled, architecture, compile, kernels_of, open_compiler};
pub use cubin::Code;
pub(crate) use device::Watched;
pub use device::{Cuda, Found, find};
pub use error::{DeviceError, size};
pub(crate) use head::rows_at_once as rows_of_logits;
pub(crate) use landing::{Landed, Landing};
pub(crate) use memory::DeviceMemory;
pub(crate) use side_stream::{Mark, SideStream};
pub use sources::{SOURCES, Source};
