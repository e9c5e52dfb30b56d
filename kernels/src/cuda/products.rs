//! Products in full precision.

use super::device::Cuda;
use super::launch::{Arg, flag, int, long};
use super::rows::expect_f32;
use crate::backend::{Layout, Write};
use crate::dtype::DType;
use crate::segments::Segments;
use crate::tensor::Tensor;

/// Rows and columns of C that one block computes.
pub(super) const SIDE: usize = 64;

/// Where a matrix begins and how far apart its rows, its columns and the matrices of a batch are, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strided {
    pub address: u64,
    pub row: usize,
    pub col: usize,
    pub next: usize,
}

impl Strided {
    /// The transpose.
    pub(super) fn t(self) -> Self {
        Self { row: self.col, col: self.row, ..self }
    }
}

impl Cuda {
    /// A matrix of F32 from element `first` of x on.
    pub(super) fn strided(&self, x: &Tensor, first: usize, row: usize, next: usize) -> Strided {
        expect_f32("gemm", x);
        Strided { address: x.address(self.place()) + 4 * first as u64, row, col: 1, next }
    }

    /// `C[M, N] = A·B`, or `+=`, for each of `batch` matrices; C's rows are contiguous.
    pub(super) fn multiply(
        &self,
        a: Strided,
        b: Strided,
        c: Strided,
        [m, n, k]: [usize; 3],
        batch: usize,
        write: Write,
    ) {
        let address = |x: Strided| Arg::Address(x.address);
        let args = [
            address(a),
            address(b),
            address(c),
            int(m),
            int(n),
            int(k),
            long(a.row),
            long(a.col),
            long(b.row),
            long(b.col),
            long(c.row),
            long(a.next),
            long(b.next),
            long(c.next),
            flag(write == Write::Add),
        ];
        self.launch("gemm", [n.div_ceil(SIDE), m.div_ceil(SIDE), batch], 0, &args);
    }

    pub(super) fn full_gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, c: &mut Tensor, write: Write) {
        let (a_cols, b_cols) = (a.cols(), b.cols());
        let ([m, k], [also_k, n]) = match layout {
            Layout::Nt => ([a.rows(), a_cols], [b_cols, b.rows()]),
            Layout::Nn => ([a.rows(), a_cols], [b.rows(), b_cols]),
            Layout::Tn => ([a_cols, a.rows()], [b.rows(), b_cols]),
        };
        assert!(k == also_k, "gemm: {layout:?} of {:?} and {:?}", a.shape(), b.shape());
        assert!(c.len() == m * n, "gemm: expected [{m}, {n}], found {:?}", c.shape());
        let (x, y) = (self.strided(a, 0, a_cols, 0), self.strided(b, 0, b_cols, 0));
        let (x, y) = match layout {
            Layout::Nt => (x, y.t()),
            Layout::Nn => (x, y),
            Layout::Tn => (x.t(), y),
        };
        expect_f32("gemm", c);
        let to = Strided { address: c.address_to_write(self.place()), row: n, col: 1, next: 0 };
        self.multiply(x, y, to, [m, n, k], 1, write);
    }

    pub(super) fn full_grouped_gemm(
        &self,
        layout: Layout,
        a: &Tensor,
        w: &Tensor,
        segments: &Segments,
        c: &mut Tensor,
        write: Write,
    ) {
        let [experts, out, inner] = w.dims("grouped_gemm: w");
        let (k, n, row, col) = match layout {
            Layout::Nt => (inner, out, 1, inner),
            Layout::Nn => (out, inner, inner, 1),
            Layout::Tn => panic!("grouped_gemm: Tn is grouped_gradient"),
        };
        let m = segments.rows();
        a.expect("grouped_gemm: a", [m, k]);
        c.expect("grouped_gemm: c", [m, n]);
        assert!(segments.count() == experts, "grouped_gemm: {experts} weights, {} segments", segments.count());
        for x in [a, w, &*c] {
            expect_f32("grouped_gemm", x);
        }
        let args = [
            self.read(a),
            self.read(w),
            self.write(c),
            self.read(segments.ends()),
            int(experts),
            int(n),
            int(k),
            long(out * inner),
            long(row),
            long(col),
            flag(write == Write::Add),
        ];
        self.launch("grouped_gemm", [n.div_ceil(SIDE), tiles(m, experts, SIDE), 1], 0, &args);
    }

    pub(super) fn full_grouped_gradient(
        &self,
        dy: &Tensor,
        x: &Tensor,
        segments: &Segments,
        dw: &mut Tensor,
        write: Write,
    ) {
        let (out, inner, experts) = (dy.cols(), x.cols(), segments.count());
        assert!(
            dy.rows() == segments.rows() && x.rows() == segments.rows(),
            "grouped_gradient: dy {:?}, x {:?}, {} rows",
            dy.shape(),
            x.shape(),
            segments.rows()
        );
        dw.expect("grouped_gradient: dw", [experts, out, inner]);
        assert!(dw.dtype() == DType::F32, "grouped_gradient: a GPU computes in F32");
        let args = [
            self.read(dy),
            self.read(x),
            self.write(dw),
            self.read(segments.ends()),
            int(out),
            int(inner),
            flag(write == Write::Add),
        ];
        self.launch("grouped_gradient", [inner.div_ceil(SIDE), out.div_ceil(SIDE), experts], 0, &args);
    }
}

/// Tiles of `height` rows, at most, when none spans two of `segments`.
pub(super) fn tiles(rows: usize, segments: usize, height: usize) -> usize {
    rows.div_ceil(height) + segments.saturating_sub(1).min(rows)
}
