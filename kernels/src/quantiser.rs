//! How a matrix becomes FP8: which elements share a scale, and how a scale follows from them.

use crate::e4m3::MAX;
use crate::segments::Segments;
use std::ops::Range;

/// Rows or columns of a tile, and the length of the partial sums that are scaled.
pub const TILE: usize = 128;
/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 1×128, along features.
    Row,
    /// 128×1, along tokens. Not stored transposed: the CPU reads it through strides.
    Column,
    /// 128×128.
    Block,
    /// A whole segment, or all rows when there are none (Peng et al. 2023).
    Tensor,
}

/// What the values are; decides how small a scale may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// amax is at least 1e-4, as in DeepSeek's kernels.
    Activation,
    /// A tile of zeros has scale 1, as in transformers.
    Weight,
    /// The scale is at least the smallest normal number. A floor of 1e-4 would flush small gradients to zero.
    Gradient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantiser {
    pub tile: Tile,
    pub role: Role,
    /// Scales are rounded up to powers of two (ue8m0).
    pub power_of_two: bool,
}

impl Tile {
    /// Columns that share a scale, of `cols`.
    pub(crate) fn width(self, cols: usize) -> usize {
        match self {
            Tile::Row | Tile::Block => TILE,
            Tile::Column => 1,
            Tile::Tensor => cols.max(1),
        }
    }

    /// Ranges of rows that share scales, in order. None spans two segments.
    pub(crate) fn bands(self, rows: usize, segments: Option<&Segments>) -> Vec<Range<usize>> {
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
    /// The scale of a tile whose largest finite magnitude is `amax`.
    #[inline(always)]
    pub(crate) fn scale(&self, amax: f32) -> f32 {
        const SMALLEST: f32 = f32::MIN_POSITIVE * MAX;
        let floor = if self.role == Role::Activation { 1e-4 } else { SMALLEST };
        let scale = if amax > floor { amax } else { floor } / MAX;
        // of a normal number: clearing the mantissa after the addition rounds up to a power of two
        let bits = scale.to_bits();
        let up = f32::from_bits((bits + 0x7f_ffff) & 0xff80_0000);
        let scale = if self.power_of_two { up } else { scale };
        if self.role == Role::Weight && amax == 0.0 { 1.0 } else { scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
