//! FP8, E4M3 with scales (Micikevicius et al. 2022; DeepSeek-V3, §3.3): one scale per tile, so that an outlier costs its own tile.
//!
//! The three products of a linear layer contract over different dims, and scales run along the contracted one:
//!
//! | product         | contracts | a             | b          |
//! |-----------------|-----------|---------------|------------|
//! | `y  = x · wᵀ`   | in        | x: `Row`      | w: `Block` |
//! | `dx = dy · w`   | out       | dy: `Row`     | w: `Block` |
//! | `dw = dyᵀ · x`  | tokens    | dy: `Column`  | x: `Column`|
//!
//! A value is about `q · scale`; `scale = max(amax, floor) / 448` over the finite values of a tile, and `q = e4m3(x / scale)`, a true
//! division: times the reciprocal gives other bytes. ±∞ saturates to ±448, NaN stays NaN at its place alone, and either clears
//! [`Scaled::is_finite`]. −0 keeps its sign.
//!
//! The design lets segments begin at multiples of 128 rows. Here they are dense ([`Segments`]), and tiles are cut at their ends instead:
//! a short last tile has the scale and the bytes of one padded with zeros, and no tile straddles two experts.

use crate::{Segments, Tensor};
use std::ops::Range;

/// Rows or columns that share a scale, and products that are summed before they are scaled.
pub const TILE: usize = 128;
/// The largest finite value.
pub const MAX: f32 = 448.0;

/// One E4M3 number: sign, 4 bits of exponent (bias 7), 3 of mantissa. No infinity; NaN is 0x7f and 0xff.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct E4m3(pub u8);

impl E4m3 {
    pub const NAN: Self = Self(0x7f);

    /// The nearest value, ties to even; beyond ±448, and at ±∞, ±448.
    #[inline(always)]
    pub fn from_f32(x: f32) -> Self {
        let sign = x.to_bits() >> 31 << 7;
        let a = x.abs();
        let limited = if a < MAX { a } else { MAX };
        // 20 bits are dropped; the carry of rounding runs into the exponent, as it should
        let bits = limited.to_bits();
        let normal = ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
        // near 2¹⁴ the neighbours of an f32 are 2⁻⁹ apart, as subnormals here: the addition rounds
        let subnormal = (limited + 16_384.0).to_bits() - 16_384f32.to_bits();
        let magnitude = if limited < 0.015_625 { subnormal } else { normal };
        Self((if a.is_nan() { 0x7f } else { magnitude } | sign) as u8)
    }

    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let bits = u32::from(self.0 & 0x7f);
        let normal = f32::from_bits((bits << 20) + (120 << 23));
        let subnormal = bits as f32 * (1.0 / 512.0);
        let magnitude = if bits < 8 { subnormal } else { normal };
        let magnitude = if bits == 0x7f { f32::NAN } else { magnitude };
        f32::from_bits(magnitude.to_bits() | u32::from(self.0 & 0x80) << 24)
    }
}

/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 1×128, along features.
    Row,
    /// 128×1, along tokens. Not stored transposed: products here read through strides.
    Column,
    /// 128×128.
    Block,
    /// A whole segment, or all rows when there are none (Peng et al. 2023).
    Tensor,
}

/// Whose values they are: that decides how small a scale may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// amax counts as at least 1e-4, as in DeepSeek's kernels.
    Activation,
    /// A tile of zeros has scale 1, as in transformers.
    Weight,
    /// No floor but that of normal numbers: 1e-4 would flush small gradients.
    Gradient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantiser {
    pub tile: Tile,
    pub role: Role,
    /// Scales are rounded up to powers of two (ue8m0).
    pub power_of_two: bool,
}

/// A matrix of `[N, D]` E4M3 numbers with its scales.
#[derive(Clone, Debug)]
pub struct Scaled {
    pub q: Tensor,     // E4M3, [N, D]
    pub scale: Tensor, // F32, [bands, tiles across]: to multiply with
    pub how: Quantiser,
    /// No value was infinite or NaN.
    pub is_finite: bool,
}

/// A side of a product.
#[derive(Clone, Debug)]
pub enum Operand {
    /// F32, or rounded to bf16.
    Plain(Tensor),
    Fp8(Scaled),
}

impl Tile {
    /// Columns that share a scale, of `cols`.
    pub fn width(self, cols: usize) -> usize {
        match self {
            Tile::Row | Tile::Block => TILE,
            Tile::Column => 1,
            Tile::Tensor => cols.max(1),
        }
    }

    /// Rows that share scales, in order: never of two segments.
    pub fn bands(self, rows: usize, segments: Option<&Segments>) -> Vec<Range<usize>> {
        let height = match self {
            Tile::Row => 1,
            Tile::Column | Tile::Block => TILE,
            Tile::Tensor => usize::MAX,
        };
        let cut = |rows: Range<usize>| {
            let end = rows.end;
            let count = rows.len().div_ceil(height).max(usize::from(self == Tile::Tensor));
            (0..count).map(move |i| rows.start + i * height..end.min((rows.start + i * height).saturating_add(height)))
        };
        match segments {
            Some(segments) => segments.iter().flat_map(cut).collect(),
            None => cut(0..rows).collect(),
        }
    }
}

impl Quantiser {
    /// Of a tile whose largest finite magnitude is `amax`.
    #[inline(always)]
    pub fn scale(&self, amax: f32) -> f32 {
        const SMALLEST: f32 = f32::MIN_POSITIVE * MAX;
        let floor = if self.role == Role::Activation { 1e-4 } else { SMALLEST };
        let scale = if amax > floor { amax } else { floor } / MAX;
        let bits = scale.to_bits(); // a normal number: up to the next power of two unless it is one
        let up = f32::from_bits((bits + 0x7f_ffff) & 0xff80_0000);
        let scale = if self.power_of_two { up } else { scale };
        if self.role == Role::Weight && amax == 0.0 { 1.0 } else { scale }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: (−1)ˢ · 2^(e−7) · (1 + m/8), or (−1)ˢ · 2⁻⁶ · m/8 when e = 0.
    fn value(byte: u8) -> f64 {
        let (e, m) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
        let magnitude = if e == 0 { m / 8.0 * 2f64.powi(-6) } else { 2f64.powi(e - 7) * (1.0 + m / 8.0) };
        if byte & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn all_256_bytes_mean_what_the_format_says() {
        for byte in 0..=255u8 {
            let found = E4m3(byte).to_f32();
            if byte & 0x7f == 0x7f {
                assert!(found.is_nan(), "{byte:#x}");
                assert_eq!(E4m3::from_f32(found).0, byte);
                continue;
            }
            assert_eq!(f64::from(found).to_bits(), value(byte).to_bits(), "{byte:#x}");
            assert_eq!(E4m3::from_f32(found).0, byte, "{byte:#x}");
        }
    }

    /// Between all neighbours: just below the middle, the middle, just above.
    #[test]
    fn the_nearest_value_is_taken_and_a_tie_is_even() {
        for low in 0..0x7eu8 {
            let middle = ((value(low) + value(low + 1)) / 2.0) as f32;
            let [below, above] = [-1, 1].map(|by| f32::from_bits((middle.to_bits() as i32 + by) as u32));
            for (x, expected) in [(below, low), (middle, low + (low & 1)), (above, low + 1)] {
                assert_eq!(E4m3::from_f32(x).0, expected, "{x}");
                assert_eq!(E4m3::from_f32(-x).0, expected | 0x80, "{}", -x);
            }
        }
        for x in [449.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!([E4m3::from_f32(x).0, E4m3::from_f32(-x).0], [0x7e, 0xfe], "{x}");
        }
        assert_eq!([E4m3::from_f32(0.0).0, E4m3::from_f32(-0.0).0, E4m3::from_f32(1e-40).0], [0, 0x80, 0]);
    }

    #[test]
    fn scales_follow_the_roles() {
        let scale = |role, power_of_two, amax| Quantiser { tile: Tile::Row, role, power_of_two }.scale(amax);
        assert_eq!(scale(Role::Activation, false, 0.0), 1e-4 / 448.0);
        assert_eq!(scale(Role::Weight, false, 0.0), 1.0);
        assert_eq!(scale(Role::Gradient, false, 0.0), f32::MIN_POSITIVE);
        assert_eq!(scale(Role::Gradient, false, 1e-30), 1e-30 / 448.0);
        assert_eq!(scale(Role::Weight, true, 448.0), 1.0);
        assert_eq!(scale(Role::Weight, true, 449.0), 2.0);
        assert_eq!(scale(Role::Weight, true, 447.0), 1.0);
    }

    #[test]
    fn bands_end_where_segments_end() {
        let segments = Segments::of_counts(&[130, 0, 128, 2]);
        assert_eq!(Tile::Block.bands(260, Some(&segments)), [0..128, 128..130, 130..258, 258..260]);
        assert_eq!(Tile::Tensor.bands(260, Some(&segments)), [0..130, 130..130, 130..258, 258..260]);
        assert!(Tile::Tensor.bands(0, None).iter().eq([&(0..0)]));
        assert_eq!(Tile::Column.bands(129, None), [0..128, 128..129]);
        assert_eq!(Tile::Row.bands(3, None), [0..1, 1..2, 2..3]);
    }
}
