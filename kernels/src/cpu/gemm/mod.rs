//! Matrix products on the CPU. A row of the result does not depend on the other rows of the batch.
//!
//! Letters: M rows (tokens), N outputs, K contraction, E experts. For `C[M,N] = A[M,K]·B[K,N]` every element is
//!
//! ```text
//! c = 0, or what C holds when adding
//! for k in 0..K { c = fma(a[i][k], b[k][j], c) }          f32, one rounding per k
//! ```
//!
//! one chain of additions in ascending k, whatever the row, the number of rows, threads or segments, and the CPU level:
//! vectors run across N, so lanes are never added to each other. Between two blocks of K, `c` is stored to memory and
//! loaded again, which changes no bit; block sizes are therefore free to tune. bf16 has the same chain with a
//! [step](Cells) of two k at a time. (Only the payload of a NaN is unspecified.)
//!
//! The alternative, several partial sums per element, rounds a little better and lets lanes run along K, so that B
//! needs no packing for a single row. But then the order of summation depends on the kernel, and decoding gives other
//! bits than prefill.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cells;
mod factor;
mod kernel;
mod level;
mod packed;
mod pool;
mod portable;
mod product;
mod scaled;
mod scales;
mod task;

pub use crate::view::View;
pub use cells::{Bf16, Cells};
pub use factor::Factor;
pub use level::Level;
pub(crate) use level::wide;
pub use packed::{PackedB, RightSide};
pub use product::Gemm;
pub(crate) use product::Promoted;
pub(crate) use scales::Scales;
pub use task::Causal;
