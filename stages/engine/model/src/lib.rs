//! DeepSeek-V3 (DeepSeek-AI 2024, arXiv 2412.19437) and the dense families Qwen2, Qwen3 and Llama as explicit layers
//! with typed saved state.
//!
//! Forward and backward of a layer sit side by side in one file, and what one leaves for the other is a struct that is
//! moved: using it twice does not compile. Parameters live beside the model ([`Params`]), so policy, reference and
//! reward model are one [`Model`] with several sets of them. Nothing here reads or writes a store: bytes in, bytes out.
//!
//! Letters, in all files: N rows (tokens), D width, F expert width, H heads, E experts, K experts per token, R
//! dispatched rows, V vocabulary.

mod attention;
mod balance;
mod batch;
mod block;
mod cache;
mod checkpoint;
mod chunk;
mod config;
mod cx;
mod error;
mod experts;
mod family;
mod gqa;
mod grads;
mod head;
mod known;
mod layer;
mod mla;
mod mlp;
mod model;
mod mtp;
mod opened;
mod params;
mod pickle;
mod precision;
mod prepared;
mod product;
mod projection;
mod quantised;
mod recompute;
mod rope_scaling;
mod tensor_file;
#[cfg(test)]
mod testing;
mod work;

pub use attention::Attention;
pub use balance::{Balance, BalanceCounts, BalanceScope};
pub use batch::{Batch, IGNORE};
pub use block::{Block, FeedForward};
pub use cache::{Cache, CacheRows};
pub use checkpoint::{CheckpointFile, save};
pub use config::{Config, TokenIds};
pub use cx::{Cx, Stats};
pub use error::Error;
pub use experts::Experts;
pub use family::{AttentionKind, DeepseekV3, Family, Grouped, KeyValueHeads};
pub use gqa::Gqa;
pub use grads::{Grads, WeightGemm};
pub use head::{HeadOutput, HostOutput, OutputGradient};
pub use layer::{Layer, Linear, RmsNorm};
pub use mla::Mla;
pub use mlp::Mlp;
pub use model::{Model, Saved};
pub use mtp::Mtp;
pub use opened::{Opened, expect_no_pointer, is_weight_file, load};
pub use params::{Init, Param, Params, Part, Spec, Start, Stored, Update};
pub use precision::{Fp8, GradientTiles, Library, Precision, Scaling};
pub use prepared::Prepared;
pub use projection::Projection;
pub use recompute::{Recompute, RecomputeSaved, Recomputed};
pub use rope_scaling::{Llama3, RopeScaling, Yarn};
pub use tensor_file::write_tensors;
pub use work::Work;
