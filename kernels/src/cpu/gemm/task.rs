//! One task: blocks of K and N for the caches, tiles for the registers.
//!
//! A block of B stays in the second-level cache while a strip of A is multiplied by it; a tile of A stays in the
//! first-level cache while it is multiplied by the panels of B. Between two blocks of K, C is stored to memory: that is
//! all that blocking does to a chain.

use super::cells::Cells;
use super::factor::Factor;
use super::kernel::{MAX_ROWS, Micro, NR, RegisterTile, ahead};
use super::level::Supported;
use super::packed::{ReadyB, to_cells};
use super::scales::Scales;
use crate::backend::Write;
use crate::rectangle::Rectangle;
use crate::spans::spans;
use crate::view::View;
use std::{cell::Cell, ops::Range};

/// Cells of K per block: a tile of A (9 KiB) stays in the first-level cache while it meets the panels of a block.
pub(super) const DEPTH: usize = 384;
/// Panels per block: DEPTH × 6 × 64 cells (576 KiB) stay in the second-level cache while they meet the tiles of a
/// strip.
const PANELS: usize = 6;
/// Tiles per strip, which are copied together: 96 rows, whose part of C stays in the second-level cache from one block
/// of K to the next.
pub(super) const STRIP: usize = 16;
/// Cells from one copied row to the next; not a power of two, which would put all rows into the same set of the cache.
const A_ROW: usize = DEPTH + 16;
/// Cells from one k to the next of a copied tile whose rows are neighbours.
const A_TILE: usize = 8;
/// Cells of such a tile, plus a cache line: otherwise the tiles of a strip would share one set of the cache.
const TILE: usize = DEPTH * A_TILE + 16;
/// Cells of a copied strip of either kind.
pub(super) const COPY: usize = STRIP * TILE;
const _: () = assert!(COPY >= STRIP * MAX_ROWS * A_ROW);

/// Which part of a product a causal mask leaves; the rest need not be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causal {
    /// Everything.
    All,
    /// Row i of C is needed in columns up to `first + i`; other columns are ignored and hold arbitrary values.
    Columns { first: usize },
    /// Row i of A is zero beyond column `first + i`.
    Before { first: usize },
    /// Row i of A is zero before column `i − first`.
    After { first: usize },
}

impl Causal {
    /// Columns of C that `rows` need, of `n`.
    fn columns(self, rows: &Range<usize>, n: usize) -> usize {
        match self {
            // whole vectors, which are faster than a partial one
            Causal::Columns { first } => n.min((first + rows.end).next_multiple_of(16)),
            _ => n,
        }
    }

    /// Columns of A, of `k`, in which one of `rows` is not zero; at least one, to set C.
    fn steps(self, rows: &Range<usize>, k: usize) -> Range<usize> {
        match self {
            Causal::Before { first } => 0..k.min(first + rows.end),
            Causal::After { first } => rows.start.saturating_sub(first).min(k.saturating_sub(1))..k,
            _ => 0..k,
        }
    }
}

/// A rectangle of one product's C, over all of K.
pub(crate) struct Task<'a, T> {
    pub a: View<'a, T>,
    pub b: ReadyB<'a, T>,
    /// Columns of the whole C.
    pub n: usize,
    /// `rows` and `panels` of C.
    pub c: Rectangle<'a, f32>,
    pub rows: Range<usize>,
    pub panels: Range<usize>,
    /// For FP8 operands only.
    pub scales: Option<Scales<'a>>,
    /// For f32 only.
    pub causal: Causal,
}

thread_local! {
    /// Copied tiles of A.
    pub(super) static TILES: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

impl<T: Factor> Task<'_, T> {
    /// The kernels rely on it: `c` is the rectangle that `rows` and `panels` name, and `a` has these rows.
    pub(super) fn check(&self) {
        let cols = self.n.min(self.panels.end * NR).saturating_sub(self.panels.start * NR);
        let fits = self.c.rows() == self.rows.len() && self.c.cols() == cols && self.rows.end <= self.a.rows;
        assert!(fits, "task: rows {:?} and panels {:?} of C in another rectangle", self.rows, self.panels);
    }

    #[inline(always)] // as `Panel::fill`, because it copies A
    pub(super) fn run(mut self, level: Supported, write: Write) {
        self.check();
        let micro = T::micro(level.level());
        let cells = self.a.cols.div_ceil(T::PER_CELL);
        let high = self.rows.len().div_ceil(self.rows.len().div_ceil(MAX_ROWS)); // 7 rows as 4 + 3, not 6 + 1
        let mut tiles = TILES.take();
        tiles.resize(COPY, 0);
        for strip in spans(self.rows.len(), high * STRIP) {
            let first = self.rows.start + strip.start;
            for k in (0..cells.max(1)).step_by(DEPTH) {
                let depth = DEPTH.min(cells - k);
                let in_place = T::in_place(&self.a, first, k, strip.len(), depth);
                let (a, [a_tile, a_row, a_k]) = match in_place {
                    Some((cells, [row, k])) => (cells, [high * row, row, k]),
                    None => {
                        let strides = copy_a(self.a, first, strip.len(), high, k, depth, &mut tiles);
                        (tiles.as_ptr(), strides)
                    }
                };
                let ahead = ahead(a_row, a_k, high);
                for block in spans(self.panels.len(), PANELS) {
                    for (t, rows) in spans(strip.len(), high).enumerate() {
                        let row = first + rows.start;
                        let all = row..row + rows.len();
                        let (n, steps) = (self.causal.columns(&all, self.n), self.causal.steps(&all, cells));
                        let (start, end) = (steps.start.max(k), steps.end.min(k + depth));
                        if start >= end && cells > 0 {
                            continue;
                        }
                        for panel in block.clone().map(|p| self.panels.start + p).take_while(|p| p * NR < n) {
                            let columns = NR.min(n - panel * NR);
                            let (b, b_k) = self.b.cells(panel, start, end - start, columns.div_ceil(16));
                            let tile = RegisterTile {
                                a: a.wrapping_add(t * a_tile + (start - k) * a_k),
                                a_row,
                                a_k,
                                b,
                                b_k,
                                c: self.c.address(row - self.rows.start, (panel - self.panels.start) * NR),
                                c_row: self.c.stride(),
                                rows: rows.len(),
                                vectors: columns.div_ceil(16),
                                cells: end - start,
                                ahead: &ahead,
                                is_first: write == Write::Set && start == steps.start,
                            };
                            // SAFETY: the level is supported; A and B are as large as the slices above; the rectangle
                            // of C is this task's own and, by `check`, holds the tile.
                            unsafe {
                                if columns.is_multiple_of(16) { tile.run(micro) } else { ragged(micro, tile, columns) }
                            }
                        }
                    }
                }
            }
        }
        TILES.set(tiles);
    }
}

/// A tile with a partial last vector is computed in a copy with whole vectors.
unsafe fn ragged(micro: &Micro, tile: RegisterTile, columns: usize) {
    let mut c = [0.0; MAX_ROWS * NR];
    // SAFETY: `columns` of each row are inside the tile's C, and inside the copy.
    unsafe {
        for r in 0..tile.rows {
            tile.c.add(r * tile.c_row).copy_to_nonoverlapping(c[r * NR..].as_mut_ptr(), columns);
        }
        RegisterTile { c: c.as_mut_ptr(), c_row: NR, ..tile }.run(micro);
        for r in 0..tile.rows {
            tile.c.add(r * tile.c_row).copy_from_nonoverlapping(c[r * NR..].as_ptr(), columns);
        }
    }
}

/// Copies `rows` of A to cells, in tiles of `high` rows. Returns the strides of tiles, rows and cells. (f32 is read
/// without a copy: a copy only waits for memory, while a tile computes during the wait.)
#[inline(always)]
pub(super) fn copy_a<T: Cells>(
    a: View<T>,
    row: usize,
    rows: usize,
    high: usize,
    cell: usize,
    depth: usize,
    out: &mut [u32],
) -> [usize; 3] {
    let k = cell * T::PER_CELL;
    if a.is_row_major() {
        let len = (depth * T::PER_CELL).min(a.cols - k);
        for r in 0..rows {
            to_cells(a.run(row + r, k, len), &mut out[r * A_ROW..][..depth]);
        }
        return [high * A_ROW, A_ROW, 1];
    }
    let zeros = [T::default(); MAX_ROWS * STRIP];
    for c in 0..depth {
        let k = k + c * T::PER_CELL;
        a.prefetch(row, k + 16, rows);
        let even = a.run(row, k, rows);
        let odd = if T::PER_CELL == 1 {
            even
        } else if k + 1 < a.cols {
            a.run(row, k + 1, rows)
        } else {
            &zeros[..rows]
        };
        for (t, (even, odd)) in even.chunks(high).zip(odd.chunks(high)).enumerate() {
            let out = &mut out[t * TILE + c * A_TILE..][..A_TILE];
            match (even.as_array::<MAX_ROWS>(), odd.as_array::<MAX_ROWS>()) {
                (Some(even), Some(odd)) => (0..MAX_ROWS).for_each(|r| out[r] = T::cell([even[r], odd[r]])),
                _ => (0..even.len()).for_each(|r| out[r] = T::cell([even[r], odd[r]])),
            }
        }
    }
    [TILE, 1, A_TILE]
}
