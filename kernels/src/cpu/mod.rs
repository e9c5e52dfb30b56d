//! The fast CPU: the operations of [`reference`](crate::reference) with threads, tiles and vectors. It is the device of
//! the quickstart.
//!
//! Operations on rows are loops, cut over rows into tasks for the threads and compiled for each CPU level
//! ([`wide`](gemm::wide)). The bits depend on neither: a row is computed alone, and sums over rows go by fixed blocks.

mod attention;
mod balance;
mod device;
mod full_precision;
pub mod gemm;
mod grouped;
mod head;
mod latent;
mod low_precision;
mod lowered;
mod one_head;
mod optimizer;
mod products;
mod quantise;
mod router;
mod rows;
mod sample;
mod scratch;
mod table;
mod vectors;

pub use device::Cpu;
pub(crate) use head::keeps_logits;
pub(crate) use one_head::softmax as kept_of_attention;
