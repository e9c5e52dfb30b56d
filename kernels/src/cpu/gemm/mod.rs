//! Matrix products on the CPU whose rows do not depend on their batch.
//!
//! Letters: M rows (tokens), N outputs, K contraction, E experts. For `C[M,N] = A[M,K]·B[K,N]` every element is
//!
//! ```text
//! c = 0, or what C holds when adding
//! for k in 0..K { c = fma(a[i][k], b[k][j], c) }          f32, one rounding per k
//! ```
//!
//! one chain in ascending k, wherever the row stands, however many rows, threads or segments there are, and on every
//! CPU level: vectors run across N, so no lane ever meets another. Blocks over K park `c` in memory between two
//! links of the chain, which changes no bit; block sizes are therefore free to tune. bf16 has the same chain with
//! [`Bf16`'s step](Cells) of two k at a time. (NaN payloads alone are not promised.)
//!
//! The alternative, several partial sums per element, rounds a little better and lets lanes run along K, so that B
//! needs no packing for one row; but then the order depends on the kernel, and decode ≠ prefill.

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
pub use pool::Pool;
pub use product::{Gemm, Promoted};
pub use scales::{PROMOTION, Scales};
pub use task::Causal;
