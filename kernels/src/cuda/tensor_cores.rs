//! Products on the tensor cores of Hopper: the copy engine's maps, and the launches.

use super::device::Cuda;
use super::error::expect;
use super::launch::{Arg, flag, int};
use crate::dtype::DType;
use crate::tensor::Tensor;
use cudarc::driver::sys;

/// Dynamic shared memory, `SHARED` of the kernels' files.
const OF_FP8_GEMM: usize = 198_768;
const OF_FP8_GRADIENT: usize = 204_912;
const OF_BF16: usize = 198_768;

/// Of one matrix to multiply, or one for each expert: how a box of it comes to shared memory. Opaque to us.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(super) struct TensorMap([u64; 16]);

/// What one copy brings to shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boxes {
    pub columns: u32,
    pub rows: u32,
}

const OF_E4M3: Boxes = Boxes { columns: 128, rows: 128 };
const OF_BF16_ROWS: Boxes = Boxes { columns: 64, rows: 128 };
/// For operands whose contracted dim is that of the rows.
const OF_BF16_TOKENS: Boxes = Boxes { columns: 64, rows: 64 };

/// Sizes of C: rows of all segments together, columns, and matrices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub experts: usize,
}

impl Cuda {
    /// Whether the tensor cores have a kernel for C with so many columns: it stores pairs of neighbours.
    pub(super) fn has_tensor_cores(&self, columns: usize, experts: usize) -> bool {
        self.found().is_sm90() && columns.is_multiple_of(2) && experts <= 256
    }

    /// A map that reads boxes, 128 bytes wide, with the 128-byte swizzle; zeros beyond the edges. `dims`: elements
    /// along each dim, the contiguous one first; `strides`: bytes from one to the next along the others.
    fn map(&self, x: &Tensor, dims: &[u64], strides: &[u64], boxes: &[u32]) -> Arg {
        use sys::CUtensorMapDataType as Type;
        let kind = match x.dtype() {
            DType::E4m3 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            other => panic!("cuda: the tensor cores have no product of {other:?}"),
        };
        assert!(dims.len() == boxes.len() && strides.len() + 1 == dims.len(), "cuda: a map of {dims:?} by {boxes:?}");
        let (mut map, steps) = (TensorMap([0; 16]), [1; 3]);
        // SAFETY: the arrays have as many entries as the rank asks for; the map is as large and as aligned as the
        // driver's; the address is the device's.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                kind,
                dims.len() as u32,
                x.address(self.place()) as *mut _,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        expect(&format!("map {dims:?} of {:?}", x.dtype()), encoded.result());
        Arg::Map(map)
    }

    /// `[rows, pitch]`, of which the first `cols` columns count.
    fn map_rows(&self, x: &Tensor, rows: usize, cols: usize, boxes: Boxes) -> Arg {
        let pitch = (x.cols() * x.dtype().bytes()) as u64;
        self.map(x, &[cols as u64, rows as u64], &[pitch], &[boxes.columns, boxes.rows])
    }

    /// `[matrices, rows, pitch]`, of which the first `cols` columns count.
    fn map_matrices(&self, x: &Tensor, [matrices, rows, cols]: [usize; 3], boxes: Boxes) -> Arg {
        let pitch = (x.cols() * x.dtype().bytes()) as u64;
        let dims = [cols, rows, matrices].map(|n| n as u64);
        self.map(x, &dims, &[pitch, pitch * rows as u64], &[boxes.columns, boxes.rows, 1])
    }

    /// `[N, H, width]`: boxes of rows of one head.
    pub(super) fn map_heads(&self, x: &Tensor, boxes: Boxes) -> Arg {
        let [n, heads, width] = x.dims("cuda: heads");
        let bytes = (width * x.dtype().bytes()) as u64;
        let dims = [width, heads, n].map(|n| n as u64);
        self.map(x, &dims, &[bytes, bytes * heads as u64], &[boxes.columns, 1, boxes.rows])
    }

    /// One block per multiprocessor, which takes tile after tile.
    pub(super) fn persistent(&self, name: &'static str, shared: usize, args: &[Arg]) {
        self.launch(name, [self.found().multiprocessors as usize, 1, 1], shared, args);
    }

    /// `C = A·Bᵀ` by segment; A E4M3 `[M, K]` with scales `[M, K/128]`, B `[E, N, K]` with scales `[E, ⌈N/128⌉,
    /// K/128]`.
    pub(super) fn fp8_product(
        &self,
        [a, b]: [&Tensor; 2],
        [a_scale, b_scale]: [&Tensor; 2],
        ends: &Tensor,
        c: Arg,
        Sizes { m, n, k, experts }: Sizes,
        adds: bool,
    ) {
        if m == 0 {
            return;
        }
        let args = [
            self.map_rows(a, m, k, OF_E4M3),
            self.map_matrices(b, [experts, n, k], OF_E4M3),
            self.read(a_scale),
            self.read(b_scale),
            self.read(ends),
            c,
            int(m),
            int(n),
            int(k),
            int(experts),
            flag(adds),
        ];
        self.persistent("fp8_gemm", OF_FP8_GEMM, &args);
    }

    /// `dw = dyᵀ·x` by segment; E4M3 `[O, T]` and `[I, T]` with scales `[T/128, O]` and `[T/128, I]`.
    pub(super) fn fp8_weight_gradient(
        &self,
        [dy, x]: [&Tensor; 2],
        [dy_scale, x_scale]: [&Tensor; 2],
        ends: &Tensor,
        dw: Arg,
        Sizes { m: out, n: inner, k: tokens, experts }: Sizes,
        adds: bool,
    ) {
        let args = [
            self.map_rows(dy, out, tokens, OF_E4M3),
            self.map_rows(x, inner, tokens, OF_E4M3),
            self.read(dy_scale),
            self.read(x_scale),
            self.read(ends),
            dw,
            int(out),
            int(inner),
            int(experts),
            flag(adds),
        ];
        self.persistent("fp8_gradient", OF_FP8_GRADIENT, &args);
    }

    /// `C = A·Bᵀ` by segment, A bf16 `[M, K]`, B `[E, N, K]`.
    pub(super) fn bf16_product(
        &self,
        a: &Tensor,
        b: &Tensor,
        ends: &Tensor,
        c: Arg,
        Sizes { m, n, k, experts }: Sizes,
        adds: bool,
    ) {
        if m == 0 {
            return;
        }
        let args = [
            self.map_rows(a, m, k, OF_BF16_ROWS),
            self.map_matrices(b, [experts, n, k], OF_BF16_ROWS),
            self.read(ends),
            c,
            int(n),
            int(k),
            int(experts),
            flag(adds),
        ];
        self.persistent("bf16_gemm", OF_BF16, &args);
    }

    /// `C = A·B` by segment, A bf16 `[M, pitch]`, B `[E, K, N]` as it is stored for `bf16_product`.
    pub(super) fn bf16_product_nn(
        &self,
        a: &Tensor,
        b: &Tensor,
        ends: &Tensor,
        c: Arg,
        Sizes { m, n, k, experts }: Sizes,
        adds: bool,
    ) {
        if m == 0 {
            return;
        }
        let padded = k.next_multiple_of(64);
        let args = [
            self.map_rows(a, m, padded, OF_BF16_ROWS),
            self.map_matrices(b, [experts, k, n], OF_BF16_TOKENS),
            self.read(ends),
            c,
            int(n),
            int(padded),
            int(experts),
            flag(adds),
        ];
        self.persistent("bf16_gemm_nn", OF_BF16, &args);
    }

    /// `dw = dyᵀ·x` by segment, bf16 `[M, O]` and `[M, I]`.
    pub(super) fn bf16_weight_gradient(
        &self,
        [dy, x]: [&Tensor; 2],
        ends: &Tensor,
        dw: Arg,
        Sizes { m: out, n: inner, k: rows, experts }: Sizes,
        adds: bool,
    ) {
        let args = [
            self.map_rows(dy, rows, out, OF_BF16_TOKENS),
            self.map_rows(x, rows, inner, OF_BF16_TOKENS),
            self.read(ends),
            dw,
            int(out),
            int(inner),
            int(experts),
            flag(adds),
        ];
        self.persistent("bf16_gradient", OF_BF16, &args);
    }
}
