//! The output projection with softmax, by blocks of rows: the logits `[N, V]` are never all in memory.

use super::device::Cuda;
use super::launch::{Arg, int, long};
use super::low_precision::{Lowered, pitch_of_bf16};
use super::products::Strided;
use super::tensor_cores::Product;
use crate::backend::{Head, Write};
use crate::dtype::DType;
use crate::tensor::Tensor;
use std::sync::Arc;

/// Logits per block of rows: 256 MiB.
const BLOCK: usize = 1 << 26;

/// Rows that have their logits in memory at once.
pub(crate) fn rows_at_once(n: usize, v: usize) -> usize {
    (BLOCK / v).clamp(1, n.max(1))
}

fn check(x: &Tensor, w: &Tensor, targets: &Tensor) -> [usize; 3] {
    let ([n, d], [v, inner]) = (x.dims("head: x"), w.dims("head: w"));
    assert!(d == inner && targets.len() == n, "head: x [{n}, {d}], w [{v}, {inner}], {} targets", targets.len());
    [n, d, v]
}

/// x and w `[V, D]` in bf16, for the tensor cores.
struct Low {
    x: Tensor,
    w: Arc<Lowered>,
}

impl Cuda {
    /// Element `at` of a tensor.
    fn at(&self, x: &Tensor, at: usize) -> Arg {
        Arg::Address(x.address(self.place()) + (at * x.dtype().bytes()) as u64)
    }

    /// Both in bf16, where the tensor cores multiply them.
    fn low(&self, x: &Tensor, w: &Tensor) -> Option<Low> {
        let is_low = self.is_low() && self.has_tensor_cores(w.rows(), 1) && self.has_tensor_cores(w.cols(), 1);
        is_low.then(|| Low { x: self.round(x, x.rows()), w: self.lowered(w, None, 1) })
    }

    fn logits(&self, low: Option<&Low>, x: &Tensor, w: &Tensor, first: usize, rows: usize, z: &mut Tensor) {
        let (d, v) = (x.cols(), w.rows());
        if let Some(Low { x, w }) = low {
            let (part, ends) = (self.rows_of(x, first, rows), self.ends(None, rows));
            let (ends, to) = (ends.tensor(), self.write(z));
            return self.bf16_product(&part, &w.nt, Product { ends, to, m: rows, n: v, k: d, experts: 1, adds: false });
        }
        let to = Strided { address: z.address_to_write(self.place()), row: v, col: 1, next: 0 };
        let (x, w) = (self.strided(x, first * d, d, 0), self.strided(w, 0, d, 0).t());
        self.multiply(x, w, to, [rows, v, d], 1, Write::Set);
    }

    /// A copy of some rows: the copy engine's maps begin where a tensor does.
    fn rows_of(&self, x: &Tensor, first: usize, rows: usize) -> Tensor {
        if rows == x.rows() {
            return x.clone();
        }
        let mut part = self.make([rows, x.cols()], x.dtype());
        let bytes = x.cols() * x.dtype().bytes();
        self.copy_bytes(x.address(self.place()) + (first * bytes) as u64, &mut part, rows * bytes);
        part
    }

    pub(super) fn head_forward(&self, x: &Tensor, w: &Tensor, targets: &Tensor) -> Head {
        let [n, _, v] = check(x, w, targets);
        let (logp, lse, block) = (self.make([n], DType::F64), self.make([n], DType::F64), rows_at_once(n, v));
        let low = self.low(x, w);
        let mut z = self.make([block, v], DType::F32);
        for first in (0..n).step_by(block) {
            let rows = block.min(n - first);
            self.logits(low.as_ref(), x, w, first, rows, &mut z);
            let args = [self.read(&z), self.at(targets, first), self.at(&logp, first), self.at(&lse, first), int(v)];
            self.launch("log_probabilities", [rows, 1, 1], 0, &args);
        }
        Head { logp, lse, kept: None }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn head_gradient(
        &self,
        head: &Head,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        dlogp: &Tensor,
        dlse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor {
        let [n, d, v] = check(x, w, targets);
        dw.expect("head_backward: dw", [v, d]);
        assert!(dlogp.len() == n && dlse.len() == n, "head_backward: {} and {} of {n} rows", dlogp.len(), dlse.len());
        let (mut dx, block, low) = (self.like(x), rows_at_once(n, v), self.low(x, w));
        let mut z = self.make([block, v], DType::F32);
        let whole = |address: u64| Strided { address, row: d, col: 1, next: 0 };
        for first in (0..n).step_by(block) {
            let rows = block.min(n - first);
            self.logits(low.as_ref(), x, w, first, rows, &mut z);
            let known =
                [self.at(targets, first), self.at(&head.lse, first), self.at(dlogp, first), self.at(dlse, first)];
            let dx_of_rows = dx.address_to_write(self.place()) + 4 * (first * d) as u64;
            if let Some(Low { x, w }) = &low {
                let (pitch, ends) = (pitch_of_bf16(v), self.ends(None, rows));
                let mut dlogits = self.make([rows, pitch], DType::Bf16);
                let args = [self.read(&z)].into_iter().chain(known);
                let args = args.chain([self.write(&mut dlogits), long(rows), int(v), int(pitch)]);
                self.each_row("logits_gradient_bf16", [rows, pitch], &args.collect::<Vec<_>>());
                let (part, ends) = (self.rows_of(x, first, rows), ends.tensor());
                let to = Arg::Address(dx_of_rows);
                let of_x = Product { ends, to, m: rows, n: d, k: v, experts: 1, adds: false };
                self.bf16_product_nn(&dlogits, &w.nt, of_x);
                let of_w = Product { ends, to: self.write(dw), m: v, n: d, k: rows, experts: 1, adds: true };
                self.bf16_weight_gradient([&dlogits, &part], of_w);
                continue;
            }
            let args = [self.write(&mut z)].into_iter().chain(known).chain([long(rows), int(v)]);
            self.each_row("logits_gradient", [rows, v], &args.collect::<Vec<_>>());
            let dlogits = self.strided(&z, 0, v, 0);
            self.multiply(dlogits, self.strided(w, 0, d, 0), whole(dx_of_rows), [rows, d, v], 1, Write::Set);
            let to = whole(dw.address_to_write(self.place()));
            self.multiply(dlogits.t(), self.strided(x, first * d, d, 0), to, [v, d, rows], 1, Write::Add);
        }
        dx
    }
}
