//! DeepSeek-V3 as explicit layers with typed saved state (DeepSeek-AI 2024, arXiv 2412.19437).
//!
//! Forward and backward of a layer sit side by side in one file, and what one leaves for the other is a struct that is moved:
//! using it twice does not compile. Parameters live beside the model ([`Params`]), so policy, reference and reward model are
//! one [`Model`] with several sets of them. Nothing here reads or writes a store: bytes in, bytes out.
//!
//! Letters, in all files: N rows (tokens), D width, F expert width, H heads, E experts, K experts per token, R dispatched
//! rows, V vocabulary.

mod block;
mod cache;
mod checkpoint;
mod config;
mod error;
mod experts;
mod layer;
mod mla;
mod mlp;
mod model;
mod mtp;
mod params;
mod precision;
mod product;
mod quantised;
#[cfg(test)]
mod testing;

pub use block::{Block, FeedForward};
pub use cache::{CacheRows, LatentCache};
pub use checkpoint::{load, save};
pub use config::{Config, RopeScaling};
pub use error::Error;
pub use experts::Experts;
pub use layer::{Cx, Layer, Linear, RmsNorm, Stats};
pub use mla::Mla;
pub use mlp::Mlp;
pub use model::{Batch, HeadOutput, IGNORE, Model, OutputGradient, Saved};
pub use mtp::Mtp;
pub use params::{Grads, Init, Kind, Param, Params, Part, Spec, WeightGemm};
pub use precision::{Fp8, GradientTiles, Precision, Scaling};
