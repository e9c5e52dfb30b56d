//! Products on the tensor cores of Hopper: the copy engine's maps, and the launches.

use super::device::Cuda;
use super::error::expect;
use super::launch::{Arg, flag, int};
use super::products::tiles;
use crate::dtype::DType;
use crate::fp8::TILE;
use crate::tensor::Tensor;
use cudarc::driver::sys;

/// A kernel for tiles of C of 128 rows and some columns, with its dynamic shared memory: `SHARED` of its file.
#[derive(Clone, Copy, Debug)]
struct Tiled {
    name: &'static str,
    shared: usize,
    columns: u32,
}

/// For narrow tiles and for wide ones. Both give the same bits.
type Widths = [Tiled; 2];
const FP8_GEMM: Widths = widths(["fp8_gemm", "fp8_gemm_wide"], [198_768, 206_944], 192);
const FP8_GRADIENT: Widths = widths(["fp8_gradient", "fp8_gradient_wide"], [204_912, 213_344], 192);
const BF16_GEMM: Widths = widths(["bf16_gemm", "bf16_gemm_wide"], [198_768, 198_736], 256);
const BF16_GEMM_NN: Widths = widths(["bf16_gemm_nn", "bf16_gemm_nn_wide"], [198_768, 198_736], 256);
const BF16_GRADIENT: Widths = widths(["bf16_gradient", "bf16_gradient_wide"], [198_768, 198_736], 256);

const fn widths(names: [&'static str; 2], shared: [usize; 2], wide: u32) -> Widths {
    [
        Tiled { name: names[0], shared: shared[0], columns: 128 },
        Tiled { name: names[1], shared: shared[1], columns: wide },
    ]
}

/// Wide tiles read less from the cache for the same product, but there are fewer of them: they are taken when each
/// multiprocessor gets several. Computed, not measured.
const WIDE_TILES_PER_MULTIPROCESSOR: usize = 4;

/// Of one matrix to multiply, or one for each expert: how a box of it comes to shared memory. Opaque to us.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(128))]
pub(super) struct TensorMap([u64; 16]);

/// What one copy brings to shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boxes {
    pub columns: u32,
    pub rows: u32,
}

/// Rows of bf16 whose contracted dim is that of the rows.
const OF_TOKENS: Boxes = Boxes { columns: 64, rows: 64 };

/// What a product of the tensor cores writes, and its sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a> {
    /// U32, one per segment.
    pub ends: &'a Tensor,
    /// C, or the gradient of a weight.
    pub to: Arg,
    /// Rows of C (of all segments together, or of one gradient), its columns, and the contracted dim.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub experts: usize,
    /// `+=`
    pub adds: bool,
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

    /// The kernel for `row_tiles` × `columns` of C.
    fn chosen(&self, [narrow, wide]: Widths, row_tiles: usize, columns: usize) -> Tiled {
        let tiles = row_tiles * columns.div_ceil(wide.columns as usize);
        if tiles >= WIDE_TILES_PER_MULTIPROCESSOR * self.found().multiprocessors as usize { wide } else { narrow }
    }

    /// The same for rows by segment, and for gradients of one matrix per segment.
    fn for_rows(&self, widths: Widths, p: &Product) -> Tiled {
        self.chosen(widths, tiles(p.m, p.experts, TILE), p.n)
    }
    fn for_gradients(&self, widths: Widths, p: &Product) -> Tiled {
        self.chosen(widths, p.experts * p.m.div_ceil(TILE), p.n)
    }

    /// `C = A·Bᵀ` by segment; A E4M3 `[M, K]` with scales `[M, K/128]`, B `[E, N, K]` with scales
    /// `[E, ⌈N/128⌉, K/128]`.
    pub(super) fn fp8_product(&self, [a, b]: [&Tensor; 2], [a_scale, b_scale]: [&Tensor; 2], p: Product) {
        if p.m == 0 {
            return;
        }
        let kernel = self.for_rows(FP8_GEMM, &p);
        let args = [
            self.map_rows(a, p.m, p.k, Boxes { columns: 128, rows: 128 }),
            self.map_matrices(b, [p.experts, p.n, p.k], Boxes { columns: 128, rows: kernel.columns }),
            self.read(a_scale),
            self.read(b_scale),
            self.read(p.ends),
            p.to,
            int(p.m),
            int(p.n),
            int(p.k),
            int(p.experts),
            flag(p.adds),
        ];
        self.persistent(kernel.name, kernel.shared, &args);
    }

    /// `dw = dyᵀ·x` by segment; E4M3 `[O, T]` and `[I, T]` with scales `[T/128, O]` and `[T/128, I]`.
    pub(super) fn fp8_weight_gradient(&self, [dy, x]: [&Tensor; 2], [dy_scale, x_scale]: [&Tensor; 2], p: Product) {
        let kernel = self.for_gradients(FP8_GRADIENT, &p);
        let args = [
            self.map_rows(dy, p.m, p.k, Boxes { columns: 128, rows: 128 }),
            self.map_rows(x, p.n, p.k, Boxes { columns: 128, rows: kernel.columns }),
            self.read(dy_scale),
            self.read(x_scale),
            self.read(p.ends),
            p.to,
            int(p.m),
            int(p.n),
            int(p.experts),
            flag(p.adds),
        ];
        self.persistent(kernel.name, kernel.shared, &args);
    }

    /// `C = A·Bᵀ` by segment, A bf16 `[M, pitch]`, B `[E, N, pitch]`.
    pub(super) fn bf16_product(&self, a: &Tensor, b: &Tensor, p: Product) {
        let kernel = self.for_rows(BF16_GEMM, &p);
        let k = p.k.next_multiple_of(64);
        let boxes = Boxes { columns: 64, rows: kernel.columns };
        self.bf16_rows(kernel, a, self.map_matrices(b, [p.experts, p.n, k], boxes), p);
    }

    /// `C = A·B` by segment, A bf16 `[M, pitch]`, B `[E, K, pitch]`: the B of `bf16_product`, read the other way.
    pub(super) fn bf16_product_nn(&self, a: &Tensor, b: &Tensor, p: Product) {
        let b = self.map_matrices(b, [p.experts, p.k, p.n], OF_TOKENS);
        self.bf16_rows(self.for_rows(BF16_GEMM_NN, &p), a, b, p);
    }

    fn bf16_rows(&self, kernel: Tiled, a: &Tensor, b: Arg, p: Product) {
        if p.m == 0 {
            return;
        }
        let k = p.k.next_multiple_of(64);
        let a = self.map_rows(a, p.m, k, Boxes { columns: 64, rows: 128 });
        let args = [a, b, self.read(p.ends), p.to, int(p.n), int(k), int(p.experts), flag(p.adds)];
        self.persistent(kernel.name, kernel.shared, &args);
    }

    /// `dw = dyᵀ·x` by segment, bf16 `[K, pitch]` of M columns, and of N.
    pub(super) fn bf16_weight_gradient(&self, [dy, x]: [&Tensor; 2], p: Product) {
        let kernel = self.for_gradients(BF16_GRADIENT, &p);
        let [dy, x] = [(dy, p.m), (x, p.n)].map(|(x, columns)| self.map_rows(x, p.k, columns, OF_TOKENS));
        let args = [dy, x, self.read(p.ends), p.to, int(p.m), int(p.n), int(p.experts), flag(p.adds)];
        self.persistent(kernel.name, kernel.shared, &args);
    }
}
