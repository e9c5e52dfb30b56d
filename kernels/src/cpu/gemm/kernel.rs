//! The register tile: R rows × V·16 outputs, all of K in order, one accumulator per output.
//!
//! One generic loop is compiled for every level, element, height and width. A single row (decoding) is the same loop
//! with R = 1: it reads B once, with V independent chains, at the speed of memory, and has the same bits by
//! construction.
#![allow(clippy::needless_range_loop)] // the indices are names of registers

use crate::prefetch::prefetch;

/// Outputs per panel of packed B, and at most per tile.
pub(crate) const NR: usize = 64;

/// One tile of work: C[rows, vectors·16] from A[rows, cells] and a panel of B.
#[derive(Debug)]
pub struct RegisterTile<'a> {
    pub a: *const u32,
    /// Distance between rows of A, and between cells along k.
    pub a_row: usize,
    pub a_k: usize,
    pub b: *const u32,
    /// Distance between cells of B along k; outputs are neighbours.
    pub b_k: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub rows: usize,
    /// Vectors of 16 outputs.
    pub vectors: usize,
    pub cells: usize,
    /// At each k one of these is prefetched, in turn: cells from A's (0, k).
    pub ahead: &'a [usize; 8],
    /// The chain starts here, at zero; otherwise it continues from what C holds.
    pub is_first: bool,
}

/// A loop for each height and width, indexed by rows − 1 and vectors − 1, so that none is computed at run time.
///
/// Safety: the CPU has the level's features; a, b and c are valid for the extents in [`RegisterTile`]; nobody else
/// writes c.
pub(super) type Micro = [[unsafe fn(&RegisterTile); NR / 16]; MAX_ROWS];

impl RegisterTile<'_> {
    /// # Safety
    /// As for [`Micro`].
    #[inline(always)]
    pub unsafe fn run(&self, micro: &Micro) {
        // SAFETY: the caller's promise.
        unsafe { micro[self.rows - 1][self.vectors - 1](self) }
    }
}

/// Defines the [`Micro`] of some [`Lanes`], compiled for CPU features.
macro_rules! micro {
    ($name:ident, $lanes:ty $(, $features:meta)?) => {
        pub(crate) static $name: $crate::cpu::gemm::kernel::Micro = {
            $(#[$features])?
            unsafe fn tile<const ROWS: usize, const VECTORS: usize>(t: &$crate::cpu::gemm::kernel::RegisterTile) {
                // SAFETY: the caller's promise; the features are enabled here.
                unsafe { $crate::cpu::gemm::kernel::whole::<$lanes, ROWS, VECTORS>(t) }
            }
            [
                [tile::<1, 1>, tile::<1, 2>, tile::<1, 3>, tile::<1, 4>],
                [tile::<2, 1>, tile::<2, 2>, tile::<2, 3>, tile::<2, 4>],
                [tile::<3, 1>, tile::<3, 2>, tile::<3, 3>, tile::<3, 4>],
                [tile::<4, 1>, tile::<4, 2>, tile::<4, 3>, tile::<4, 4>],
                [tile::<5, 1>, tile::<5, 2>, tile::<5, 3>, tile::<5, 4>],
                [tile::<6, 1>, tile::<6, 2>, tile::<6, 3>, tile::<6, 4>],
            ]
        };
    };
}
pub(super) use micro;

/// How many steps of K ahead operands are prefetched: 20 × 24 cycles of the largest tile, 130 ns.
const AHEAD: usize = 20;

/// What to prefetch of A, where hardware prefetchers are too late. Where A is read down columns, which leaves a page
/// soon: the cells [`AHEAD`] steps on. Where it is read along rows: the rows of the next tile, `high` rows below, each
/// of which is a new stream.
pub(super) fn ahead(a_row: usize, a_k: usize, high: usize) -> [usize; 8] {
    std::array::from_fn(|i| if a_row == 1 { AHEAD * a_k } else { (high + i % high) * a_row })
}

/// The most rows of any level's tile.
pub(super) const MAX_ROWS: usize = 6;

/// 16 accumulators and how to step them. An instruction set that implements it gets a kernel.
pub(super) trait Lanes: Copy {
    type Cells: Copy;
    /// Rows and vectors of the largest tile that stays in registers.
    const ROWS: usize;
    const VECTORS: usize;
    unsafe fn load(c: *const f32) -> Self;
    unsafe fn store(self, c: *mut f32);
    unsafe fn zero() -> Self;
    unsafe fn cells(b: *const u32) -> Self::Cells;
    unsafe fn splat(a: *const u32) -> Self::Cells;
    unsafe fn step(self, a: Self::Cells, b: Self::Cells) -> Self;
}

#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const V: usize>(t: &RegisterTile, row: usize, vector: usize) {
    // SAFETY: row + R ≤ rows and vector + V ≤ vectors, so every address lies within the extents of `t`.
    unsafe {
        let c = t.c.add(row * t.c_row + vector * 16);
        let mut acc = [[L::zero(); V]; R];
        for r in 0..R {
            for v in 0..V {
                let c = c.add(r * t.c_row + v * 16);
                prefetch(c.wrapping_add(NR)); // C of the next panel: its tile would wait to load and to store it
                if !t.is_first {
                    acc[r][v] = L::load(c);
                }
            }
        }
        let (mut a, mut b) = (t.a.add(row * t.a_row), t.b.add(vector * 16));
        for k in 0..t.cells {
            prefetch(a.wrapping_add(t.ahead[k % 8]));
            for v in 0..V {
                prefetch(b.wrapping_add(AHEAD * t.b_k + v * 16));
            }
            let mut bs = [L::cells(b); V];
            for v in 1..V {
                bs[v] = L::cells(b.add(v * 16));
            }
            for r in 0..R {
                let x = L::splat(a.add(r * t.a_row));
                for v in 0..V {
                    acc[r][v] = acc[r][v].step(x, bs[v]);
                }
            }
            a = a.add(t.a_k);
            b = b.add(t.b_k);
        }
        for r in 0..R {
            for v in 0..V {
                acc[r][v].store(c.add(r * t.c_row + v * 16));
            }
        }
    }
}

/// Cuts a tile of R rows and V vectors into what the registers of `L` hold.
#[inline(always)]
pub(super) unsafe fn whole<L: Lanes, const R: usize, const V: usize>(t: &RegisterTile) {
    for vector in (0..V).step_by(L::VECTORS) {
        for row in (0..R).step_by(L::ROWS) {
            let (rows, vectors) = ((R - row).min(L::ROWS), (V - vector).min(L::VECTORS));
            // SAFETY: as for `tile`.
            unsafe {
                match vectors {
                    4 if L::VECTORS >= 4 => column::<L, 4>(t, row, rows, vector),
                    3 if L::VECTORS >= 3 => column::<L, 3>(t, row, rows, vector),
                    2 if L::VECTORS >= 2 => column::<L, 2>(t, row, rows, vector),
                    _ => column::<L, 1>(t, row, rows, vector),
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn column<L: Lanes, const V: usize>(t: &RegisterTile, row: usize, rows: usize, vector: usize) {
    // SAFETY: as for `tile`.
    unsafe {
        match rows {
            6 if L::ROWS >= 6 => tile::<L, 6, V>(t, row, vector),
            5 if L::ROWS >= 5 => tile::<L, 5, V>(t, row, vector),
            4 => tile::<L, 4, V>(t, row, vector),
            3 => tile::<L, 3, V>(t, row, vector),
            2 => tile::<L, 2, V>(t, row, vector),
            _ => tile::<L, 1, V>(t, row, vector),
        }
    }
}
