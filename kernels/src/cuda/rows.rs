//! Operations on rows: norm, SwiGLU, rotation, and copies.

use super::device::Cuda;
use super::launch::{Arg, flag, int, long};
use super::memory::code;
use crate::backend::Rope;
use crate::dtype::DType;
use crate::tensor::{Shape, Tensor};
use cudarc::driver::result;
use half::bf16;
use std::ops::Range;

use super::error::expect;

/// Rows that one block sums for a gradient of a gain or a bias.
const ROWS_PER_BLOCK: usize = 64;

/// Ids of a vocabulary are sorted by their lowest bits.
const BUCKETS: usize = 256;

/// Shared memory that a block may take where two share a multiprocessor of 228 KiB.
const HALF_OF_SHARED: usize = 112 << 10;

/// Panics unless the operation is asked to compute in F32: F64 is for gradient checks on the CPU.
pub(super) fn expect_f32(what: &str, x: &Tensor) {
    assert!(x.dtype() == DType::F32, "{what}: a GPU computes in F32, found {:?}", x.dtype());
}

impl Cuda {
    pub(super) fn download_one(&self, x: &Tensor) -> Tensor {
        let mut to = Tensor::empty(x.shape(), x.dtype());
        self.copy_to_host(x.address(self.place()), to.bytes_to_write());
        to
    }

    pub(crate) fn copy_one(&self, x: &Tensor) -> Tensor {
        let mut to = self.like(x);
        self.copy_bytes(x.address(self.place()), &mut to, x.len() * x.dtype().bytes());
        to
    }

    /// The first `bytes` of `to` from an address of the device.
    pub(super) fn copy_bytes(&self, from: u64, to: &mut Tensor, bytes: usize) {
        assert!(bytes <= to.len() * to.dtype().bytes(), "copy: {bytes} bytes to {to:?}");
        if bytes > 0 {
            self.bind();
            let to = to.address_to_write(self.place());
            // SAFETY: both are as long; whoever names an address of a tensor has its length.
            expect("copy", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream()) });
        }
    }

    /// Converts x into elements `at..` of `to`.
    fn convert(&self, x: &Tensor, to: &mut Tensor, at: usize) {
        let (kind, bytes) = (to.dtype(), to.dtype().bytes());
        let address = Arg::Address(to.address_to_write(self.place()) + (at * bytes) as u64);
        let args = [self.read(x), Arg::Int(code(x.dtype())), address, Arg::Int(code(kind)), long(x.len())];
        self.each("cast", x.len(), &args);
    }

    pub(super) fn cast_one(&self, x: &Tensor, dtype: DType) -> Tensor {
        if dtype == x.dtype() {
            return x.clone();
        }
        let mut y = self.make(x.shape(), dtype);
        self.convert(x, &mut y, 0);
        y
    }

    pub(super) fn collect_all(&self, parts: &[&Tensor]) -> Tensor {
        let mut all = self.make([parts.iter().map(|part| part.len()).sum()], DType::F64);
        let mut at = 0;
        for part in parts {
            self.convert(part, &mut all, at);
            at += part.len();
        }
        all
    }

    pub(super) fn fill_all(&self, x: &mut Tensor, value: f64) {
        let bits = match x.dtype() {
            DType::F32 => u64::from((value as f32).to_bits()),
            DType::F64 => value.to_bits(),
            DType::Bf16 => u64::from(bf16::from_f32(value as f32).to_bits()),
            DType::E4m3 => u64::from(crate::e4m3::E4m3::from_f32(value as f32).0),
            DType::U32 => u64::from(value as u32),
        };
        let (n, bytes) = (x.len(), x.dtype().bytes());
        self.each("fill", n, &[self.write(x), Arg::Bits(bits), int(bytes), long(n)]);
    }

    /// Of what lies at `from`, which has the shape of `like`; with `more`, that is added to it first.
    pub(super) fn rms_norm_forward(
        &self,
        from: Arg,
        more: Option<&Tensor>,
        like: &Tensor,
        gain: &Tensor,
        eps: f64,
    ) -> (Tensor, Tensor) {
        expect_f32("rms_norm", like);
        let (n, d) = (like.rows(), like.cols());
        gain.expect("rms_norm: gain", [d]);
        let (mut y, mut rstd) = (self.like(like), self.make([n], DType::F32));
        let (more, eps) = (more.map_or(Arg::Address(0), |more| self.read(more)), Arg::Float(eps as f32));
        let args = [from, more, self.read(gain), self.write(&mut y), self.write(&mut rstd), int(n), int(d), eps];
        let blocks = n.min(8 * self.found().multiprocessors as usize); // as many as there is room for at once
        self.launch("rms_norm", [blocks, 1, 1], 8 * d, &args);
        (y, rstd)
    }

    pub(super) fn rms_norm_gradient(
        &self,
        x: &Tensor,
        rstd: &Tensor,
        gain: &Tensor,
        dy: &Tensor,
        dgain: &mut Tensor,
        beside: Option<&Tensor>,
    ) -> Tensor {
        expect_f32("rms_norm_backward", x);
        if let Some(beside) = beside {
            beside.expect("rms_norm_backward_add: beside", x.shape());
        }
        let (n, d) = (x.rows(), x.cols());
        dy.expect("rms_norm_backward: dy", x.shape());
        dgain.expect("rms_norm_backward: dgain", [d]);
        let (blocks, keeps_gain) = (n.div_ceil(ROWS_PER_BLOCK), 16 * d <= HALF_OF_SHARED);
        let (mut dx, mut partial) = (self.like(x), self.make([blocks, d], DType::F32));
        let args = [
            self.read(x),
            self.read(rstd),
            self.read(gain),
            self.read(dy),
            beside.map_or(Arg::Address(0), |beside| self.read(beside)),
            self.write(&mut dx),
            self.write(&mut partial),
            int(n),
            int(d),
            flag(keeps_gain),
        ];
        self.launch("rms_norm_backward", [blocks, 1, 1], if keeps_gain { 16 * d } else { 12 * d }, &args);
        self.add_partial_sums(&partial, dgain);
        dx
    }

    fn add_partial_sums(&self, partial: &Tensor, acc: &mut Tensor) {
        let (parts, d) = (partial.rows(), partial.cols());
        let args = [self.read(partial), self.write(acc), int(parts), int(d)];
        self.launch("add_partial_sums", [d.div_ceil(256), 1, 1], 0, &args);
    }

    pub(super) fn swiglu_forward(&self, h: &Tensor) -> Tensor {
        expect_f32("swiglu", h);
        let (n, f) = (h.rows(), h.cols() / 2);
        let mut y = self.make([n, f], DType::F32);
        self.each_row("swiglu", [n, f], &[self.read(h), self.write(&mut y), long(n), int(f)]);
        y
    }

    pub(super) fn swiglu_gradient(&self, h: &Tensor, dy: &Tensor) -> Tensor {
        expect_f32("swiglu_backward", h);
        let (n, f) = (h.rows(), h.cols() / 2);
        dy.expect("swiglu_backward: dy", [n, f]);
        let mut dh = self.like(h);
        let args = [self.read(h), self.read(dy), self.write(&mut dh), long(n), int(f)];
        self.each_row("swiglu_backward", [n, f], &args);
        dh
    }

    pub(super) fn rotate(
        &self,
        x: &mut Tensor,
        heads: usize,
        offset: usize,
        rope: &Rope,
        positions: &Tensor,
        is_backward: bool,
    ) {
        expect_f32("rope", x);
        let (n, width, half) = (x.rows(), x.cols(), rope.dim / 2);
        assert!(positions.len() == n, "rope: {n} rows, {} positions", positions.len());
        assert!(
            width.is_multiple_of(heads) && offset + rope.dim <= width / heads,
            "rope: {heads} heads of {width} columns, {} from {offset} on",
            rope.dim
        );
        let args = [
            self.write(x),
            self.read(&rope.cos),
            self.read(&rope.sin),
            self.read(positions),
            long(n),
            int(width),
            int(heads),
            int(offset),
            int(half),
            flag(rope.is_interleaved),
            flag(is_backward),
        ];
        self.each_row("rope", [n, half], &args);
    }

    pub(super) fn add_bias(&self, y: &mut Tensor, bias: &Tensor) {
        expect_f32("bias", y);
        let (n, d) = (y.rows(), y.cols());
        bias.expect("bias", [d]);
        // a thread has eight rows or more, so that it seldom asks for the bias
        self.each_row("bias", [n.div_ceil(8), d], &[self.write(y), self.read(bias), long(n), int(d)]);
    }

    pub(super) fn bias_gradient(&self, dy: &Tensor, dbias: &mut Tensor) {
        expect_f32("bias_backward", dy);
        let (n, d) = (dy.rows(), dy.cols());
        dbias.expect("bias_backward: dbias", [d]);
        let blocks = n.div_ceil(ROWS_PER_BLOCK);
        let mut partial = self.make([blocks, d], DType::F32);
        let args = [self.read(dy), self.write(&mut partial), int(n), int(d)];
        self.launch("sum_rows_partial", [blocks, d.div_ceil(256), 1], 0, &args);
        self.add_partial_sums(&partial, dbias);
    }

    pub(super) fn scale_all(&self, x: &mut Tensor, by: f64, over: f64) {
        let n = x.len();
        if x.dtype() == DType::F64 {
            return self.each("scale_f64", n, &[self.write(x), Arg::Double(by), Arg::Double(over), long(n)]);
        }
        expect_f32("scale", x);
        self.each("scale", n, &[self.write(x), Arg::Float(by as f32), Arg::Float(over as f32), long(n)]);
    }

    pub(super) fn add_to(&self, acc: &mut Tensor, x: &Tensor) {
        acc.expect("add", x.shape());
        assert!(acc.dtype() == x.dtype(), "add: {:?} to {:?}", x.dtype(), acc.dtype());
        let is_f64 = x.dtype() == DType::F64;
        if !is_f64 {
            expect_f32("add", x);
        }
        self.each(if is_f64 { "add_f64" } else { "add" }, x.len(), &[self.write(acc), self.read(x), long(x.len())]);
    }

    /// `[rows, cols]` of x, from its element `from` on, into y, from its element `to` on.
    fn copy_columns(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, [rows, cols]: [usize; 2]) {
        expect_f32("copy of columns", x);
        let (from_width, to_width) = (x.cols(), y.cols());
        let args = [
            Arg::Address(x.address(self.place()) + 4 * from as u64),
            long(from_width),
            Arg::Address(y.address_to_write(self.place()) + 4 * to as u64),
            long(to_width),
            long(rows),
            int(cols),
        ];
        self.each_row("copy_columns", [rows, cols], &args);
    }

    pub(super) fn split_at(&self, x: &Tensor, at: usize) -> (Tensor, Tensor) {
        let (n, rest) = (x.rows(), x.cols() - at);
        let (mut a, mut b) = (self.make([n, at], DType::F32), self.make([n, rest], DType::F32));
        self.copy_columns(x, 0, &mut a, 0, [n, at]);
        self.copy_columns(x, at, &mut b, 0, [n, rest]);
        (a, b)
    }

    pub(super) fn join_two(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let (n, p, q) = (a.rows(), a.cols(), b.cols());
        assert!(b.rows() == n, "join: {n} and {} rows", b.rows());
        let mut x = self.make([n, p + q], DType::F32);
        self.copy_columns(a, 0, &mut x, 0, [n, p]);
        self.copy_columns(b, 0, &mut x, p, [n, q]);
        x
    }

    pub(super) fn append_rows(&self, page: &mut Tensor, at: usize, parts: &[&Tensor], rows: Range<usize>) {
        let width = page.cols();
        assert!(
            at + rows.len() <= page.rows() && parts.iter().map(|part| part.cols()).sum::<usize>() == width,
            "append: {} rows at {at} of {:?}",
            rows.len(),
            page.shape()
        );
        let mut column = 0;
        for part in parts {
            assert!(rows.end <= part.rows(), "append: rows {rows:?} of {:?}", part.shape());
            let cols = part.cols();
            self.copy_columns(part, rows.start * cols, page, at * width + column, [rows.len(), cols]);
            column += cols;
        }
    }

    pub(super) fn gather_rows(&self, x: &Tensor, rows: &Tensor) -> Tensor {
        expect_f32("gather", x);
        let (n, d) = (rows.len(), x.cols());
        let mut y = self.make([n, d], DType::F32);
        self.each_row("gather", [n, d], &[self.read(x), self.read(rows), self.write(&mut y), long(n), int(d)]);
        y
    }

    pub(super) fn embedding_gradient(&self, ids: &Tensor, dx: &Tensor, dw: &mut Tensor) {
        expect_f32("embedding_backward", dx);
        let (n, d) = (ids.len(), dx.cols());
        assert!(
            dx.rows() == n && dw.cols() == d,
            "embedding_backward: {n} ids, dx {:?}, dw {:?}",
            dx.shape(),
            dw.shape()
        );
        let (ends, order, _) = self.sort_choices(ids, BUCKETS, 1);
        let args = [self.read(ids), self.read(&order), self.read(ends.ends()), self.read(dx), self.write(dw), int(d)];
        self.launch("embedding_backward", [BUCKETS, d.div_ceil(256), 1], 0, &args);
    }

    /// On the device, of the host's numbers, in the layout of a C struct of the kernel.
    pub(super) fn upload_bytes(&self, words: &[u32]) -> Tensor {
        self.upload_one(&Tensor::new(Shape::from([words.len()]), words))
    }
}
