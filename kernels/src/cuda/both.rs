//! Both FP8 forms of a matrix, along features and along tokens, from one pass over what it is made of.

use super::device::Cuda;
use super::launch::{Arg, flag, int, long};
use super::low_precision::pitch_of_e4m3;
use super::products::tiles;
use super::rows::expect_f32;
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser, Scaled, TILE};
use crate::segments::Segments;
use crate::tensor::Tensor;

/// Dynamic shared memory of each kernel: a tile of 128×129 floats, and two maxima of each column.
const SHARED: usize = 67_072;

/// A matrix `[n, d]` that a kernel makes of `sources`, in blocks of 128 columns; `width` is what it is told of columns.
struct Made<'a> {
    kernel: &'static str,
    sources: &'a [Arg],
    n: usize,
    d: usize,
    width: usize,
    blocks: usize,
}

impl Cuda {
    /// Of x, read once.
    pub(super) fn quantise_both(
        &self,
        x: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        expect_f32("lower_both", x);
        let (n, d) = (x.rows(), x.cols());
        let (kernel, sources, blocks) = ("quantise_both", &[self.read(x)], d.div_ceil(TILE));
        self.make_both(&Made { kernel, sources, n, d, width: d, blocks }, how, segments, saturated)
    }

    /// Of SwiGLU of h `[N, 2F]`: `[N, F]`.
    pub(super) fn quantise_gated(
        &self,
        h: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        expect_f32("swiglu_lower", h);
        let (n, f) = (h.rows(), h.cols() / 2);
        let (kernel, sources, blocks) = ("quantise_gated", &[self.read(h)], f.div_ceil(TILE));
        self.make_both(&Made { kernel, sources, n, d: f, width: f, blocks }, how, segments, saturated)
    }

    /// Of the gradient of h `[N, 2F]` for dy `[N, F]`; F is a multiple of 128.
    pub(super) fn quantise_gated_gradient(
        &self,
        h: &Tensor,
        dy: &Tensor,
        how: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        expect_f32("swiglu_backward_lower", h);
        let (n, f) = (h.rows(), h.cols() / 2);
        dy.expect("swiglu_backward_lower: dy", [n, f]);
        let (kernel, sources) = ("quantise_gated_gradient", &[self.read(h), self.read(dy)]);
        self.make_both(&Made { kernel, sources, n, d: 2 * f, width: f, blocks: f / TILE }, how, segments, saturated)
    }

    fn make_both(
        &self,
        made: &Made,
        [row, column]: [Quantiser; 2],
        segments: Option<&Segments>,
        saturated: &mut Tensor,
    ) -> [Operand; 2] {
        let &Made { kernel, sources, n, d, width, blocks } = made;
        assert!(segments.is_none_or(|segments| segments.rows() == n), "{kernel}: {n} rows, {segments:?}");
        let (pitch, ends) = (pitch_of_e4m3(d), self.ends(segments, n));
        let bands = tiles(n, ends.count, TILE);
        let mut rows = self.make([n, pitch], DType::E4m3);
        let mut row_scale = self.make([n, d.div_ceil(TILE)], DType::F32);
        let mut columns = self.make([d, bands * TILE], DType::E4m3);
        let mut column_scale = self.make([bands, d], DType::F32);
        let how = |how: Quantiser| [Arg::Int(how.role as i32), flag(how.power_of_two)];
        let ([row_role, row_power], [column_role, column_power]) = (how(row), how(column));
        let mut args = sources.to_vec();
        args.extend([
            self.read(ends.tensor()),
            int(ends.count),
            self.write(&mut rows),
            self.write(&mut row_scale),
            row_role,
            row_power,
            self.write(&mut columns),
            self.write(&mut column_scale),
            column_role,
            column_power,
            self.write(saturated),
            int(width),
            int(pitch),
            long(bands * TILE),
        ]);
        self.launch(kernel, [bands, blocks, 1], SHARED, &args);
        [
            Operand::Fp8(Scaled { q: rows, scale: row_scale, how: row }),
            Operand::Fp8(Scaled { q: columns, scale: column_scale, how: column }),
        ]
    }
}
