//! AdamW, norms, and the small sums of a step.

use super::device::Cuda;
use super::launch::{Arg, flag, int, long};
use super::low_precision::Lowered;
use super::rows::expect_f32;
use crate::backend::AdamW;
use crate::dtype::DType;
use crate::fp8::{TILE, Tile};
use crate::tensor::Tensor;

/// Dynamic shared memory of `adamw_fp8`: a tile of 128×129 floats.
const SHARED: usize = 66_048;

/// Elements per partial sum.
const BLOCK: usize = 1 << 14;

impl Cuda {
    fn total_into(&self, x: &Tensor, is_squared: bool, sums: &mut Tensor, at: usize, adds: bool) {
        let args = [self.read(x), flag(is_squared), self.write(sums), long(at), flag(adds), long(x.len())];
        self.launch("total", [1, 1, 1], 0, &args);
    }

    pub(super) fn square_sum_of(&self, x: &Tensor, sum: &mut Tensor) {
        expect_f32("square_sum", x);
        let blocks = x.len().div_ceil(BLOCK);
        let mut partial = self.make([blocks], DType::F64);
        let args = [self.read(x), self.write(&mut partial), long(x.len())];
        self.launch("square_sum_partial", [blocks, 1, 1], 0, &args);
        self.total_into(&partial, false, sum, 0, true);
    }

    pub(super) fn total_of(&self, x: &Tensor, is_squared: bool, sums: &mut Tensor, at: usize) {
        assert!(x.dtype() == DType::F64 && at < sums.len(), "total: {:?} into {at} of {:?}", x, sums);
        self.total_into(x, is_squared, sums, at, false);
    }

    /// `sum[0] += Σ x`
    pub(super) fn add_total(&self, x: &Tensor, sum: &mut Tensor) {
        self.total_into(x, false, sum, 0, true);
    }

    pub(super) fn clip_factor(&self, square_sum: &Tensor, most: f64) -> Tensor {
        let mut factor = self.make([1], DType::F64);
        let args = [self.read(square_sum), Arg::Double(most), self.write(&mut factor)];
        self.launch("clip", [1, 1, 1], 0, &args);
        factor
    }

    pub(super) fn average_into(&self, acc: &mut Tensor, x: &Tensor, keep: f64) {
        expect_f32("average", x);
        acc.expect("average", x.shape());
        let (keep, rest) = (Arg::Float(keep as f32), Arg::Float((1.0 - keep) as f32));
        self.each("average", x.len(), &[self.write(acc), self.read(x), keep, rest, long(x.len())]);
    }

    pub(super) fn adamw_step(
        &self,
        h: &AdamW,
        w: &mut Tensor,
        dw: &Tensor,
        scale: &Tensor,
        m: &mut Tensor,
        v: &mut Tensor,
    ) {
        expect_f32("adamw", dw);
        for x in [&*w, &*m, &*v] {
            x.expect("adamw", dw.shape());
        }
        let power = |beta: f64| crate::math::power(beta, h.step);
        let float = |x: f64| Arg::Float(x as f32);
        let is_bf16 = m.dtype() == DType::Bf16;
        let mut lowered = w.take_derived::<Lowered>();
        let mut args = vec![
            self.write(w),
            self.read(dw),
            self.read(scale),
            self.write(m),
            self.write(v),
            flag(is_bf16),
            float(1.0 - h.lr * h.decay),
            float(h.lr / (1.0 - power(h.beta1))),
            float(1.0 / (1.0 - power(h.beta2)).sqrt()),
            float(h.beta1),
            float(1.0 - h.beta1),
            float(h.beta2),
            float(1.0 - h.beta2),
            float(h.eps),
        ];
        match &mut lowered {
            // a weight that was multiplied in FP8 will be again: its new bytes are written now, in one pass
            Some(Lowered { how: Some(how), experts, nt, nn: Some(nn), scales: Some((scales, turned)) })
                if how.tile == Tile::Block =>
            {
                let (out, inner) = (w.rows() / *experts, w.cols());
                let (bands, across) = (out.div_ceil(TILE), inner.div_ceil(TILE));
                args.extend([int(out), int(inner), int(bands), flag(how.power_of_two)]);
                let (pitch, to_pitch) = (int(nt.cols()), int(nn.cols()));
                args.extend([self.write(nt), self.write(scales), pitch, self.write(nn), self.write(turned), to_pitch]);
                self.launch("adamw_fp8", [*experts * bands, across, 1], SHARED, &args);
                w.put_derived(lowered.take().expect("it was just there"));
            }
            _ => {
                drop(lowered);
                args.push(long(dw.len()));
                self.each("adamw", dw.len(), &args);
            }
        }
    }
}
