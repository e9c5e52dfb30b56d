//! FP8, E4M3 with scales (Micikevicius et al. 2022; DeepSeek-V3, §3.3): one scale per tile, so that an outlier costs
//! its own tile.
//!
//! The three products of a linear layer contract over different dims, and scales run along the contracted one:
//!
//! | product         | contracts | a             | b          |
//! |-----------------|-----------|---------------|------------|
//! | `y  = x · wᵀ`   | in        | x: `Row`      | w: `Block` |
//! | `dx = dy · w`   | out       | dy: `Row`     | w: `Block` |
//! | `dw = dyᵀ · x`  | tokens    | dy: `Column`  | x: `Column`|
//!
//! A value is about `q · scale`, with `scale = max(amax, floor) / 448` over the finite values of a tile and
//! `q = e4m3(x / scale)`. That is a true division: multiplying by the reciprocal gives other bytes. ±∞ saturates
//! to ±448; a NaN stays NaN and does not affect the other elements of its tile; either is noted by the operation.
//! −0 keeps its sign.
//!
//! Tiles are cut at the ends of [`Segments`], so no tile spans two experts: a short last tile has the scale and the
//! bytes of one padded with zeros.

pub use crate::e4m3::{E4m3, MAX};
pub use crate::quantiser::{Quantiser, Role, TILE, Tile};
use crate::segments::Segments;
use crate::tensor::Tensor;

/// A matrix of `[N, D]` E4M3 numbers with its scales.
#[derive(Clone, Debug)]
pub struct Scaled {
    pub q: Tensor,     // E4M3, [N, D]
    pub scale: Tensor, // F32, [bands, tiles across]; a value is q · scale
    pub how: Quantiser,
}

/// One operand of a product.
#[derive(Clone, Debug)]
pub enum Operand {
    /// F32 or F64 as it is, or rounded to bf16.
    Plain(Tensor),
    Fp8(Scaled),
}

impl Scaled {
    /// `q · scale`, in f32; `segments` as when it was quantised.
    pub fn dequantised(&self, segments: Option<&Segments>) -> Tensor {
        let (cols, width) = (self.q.cols(), self.how.tile.width(self.q.cols()));
        let (mut values, scale) = (vec![0.0; self.q.len()], self.scale.read::<f32>());
        for (band, rows) in self.how.tile.bands(self.q.rows(), segments).into_iter().enumerate() {
            let scale = &scale[band * self.scale.cols()..][..self.scale.cols()];
            for row in rows {
                let q = &self.q.read::<E4m3>()[row * cols..][..cols];
                for (j, (x, q)) in values[row * cols..][..cols].iter_mut().zip(q).enumerate() {
                    *x = q.to_f32() * scale[j / width];
                }
            }
        }
        Tensor::new(self.q.shape(), &values)
    }
}
