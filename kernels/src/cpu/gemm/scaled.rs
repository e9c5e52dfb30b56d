//! The product of FP8 operands: every 128 of K are summed, scaled, and only then added to the rest (DeepSeek-V3,
//! §3.3.2).
//!
//! ```text
//! c = 0, or what C holds when adding
//! for b in 0..⌈K/128⌉ { p = the chain over k in b, from zero;  c = c + p · a_scale[i][b] · b_scale[b][j] }
//! ```
//!
//! Operands are bf16, which holds every E4M3 number exactly. A product of two is exact in f32, and a sum of them is a
//! multiple of 2⁻¹⁸, so nothing is ever flushed to zero. The order of summation is fixed as in any product here.

use super::factor::Factor;
use super::kernel::{MAX_ROWS, NR, RegisterTile};
use super::level::Supported;
use super::scales::{PROMOTION, Scales};
use super::task::{COPY, STRIP, TILES, Task, copy_a};
use crate::backend::Write;
use crate::spans::spans;

/// Panels per block: 64 cells × 16 × 64 (256 KiB) stay in the second-level cache while they meet the rows of a strip.
const PANELS: usize = 16;

#[inline(always)] // as `run`
pub(super) fn run<T: Factor>(mut task: Task<T>, scales: Scales, level: Supported, write: Write) {
    task.check();
    let micro = T::micro_of_e4m3(level.level());
    let (n, cells, step) = (task.n, task.a.cols.div_ceil(T::PER_CELL), PROMOTION / T::PER_CELL);
    if write == Write::Set {
        (0..task.c.rows()).for_each(|row| task.c.row(row).fill(0.0));
    }
    let high = task.rows.len().div_ceil(task.rows.len().div_ceil(MAX_ROWS));
    let mut tiles = TILES.take();
    tiles.resize(COPY, 0);
    let mut partial = [0.0; MAX_ROWS * NR];
    for strip in spans(task.rows.len(), high * STRIP) {
        let first = task.rows.start + strip.start;
        for (b, k) in (0..cells).step_by(step).enumerate() {
            let depth = step.min(cells - k);
            let [a_tile, a_row, a_k] = copy_a(task.a, first, strip.len(), high, k, depth, &mut tiles);
            for block in spans(task.panels.len(), PANELS) {
                for (t, rows) in spans(strip.len(), high).enumerate() {
                    for panel in block.clone().map(|p| task.panels.start + p) {
                        let columns = NR.min(n - panel * NR);
                        let (b_cells, b_k) = task.b.cells(panel, k, depth, columns.div_ceil(16));
                        let tile = RegisterTile {
                            a: tiles.as_ptr().wrapping_add(t * a_tile),
                            a_row,
                            a_k,
                            b: b_cells,
                            b_k,
                            c: partial.as_mut_ptr(),
                            c_row: NR,
                            rows: rows.len(),
                            vectors: columns.div_ceil(16),
                            cells: depth,
                            ahead: &[0; 8],
                            is_first: true,
                        };
                        // SAFETY: the level is supported; A and B are as large as the slices above; C of the tile is
                        // `partial`, which holds MAX_ROWS × NR.
                        unsafe { tile.run(micro) }
                        let b_scale = &scales.b[b * n + panel * NR..][..columns];
                        for r in 0..rows.len() {
                            let row = first + rows.start + r;
                            let a_scale = scales.a.at(row, b);
                            let c =
                                &mut task.c.row(row - task.rows.start)[(panel - task.panels.start) * NR..][..columns];
                            for ((c, p), b_scale) in c.iter_mut().zip(&partial[r * NR..]).zip(b_scale) {
                                *c += p * a_scale * b_scale;
                            }
                        }
                    }
                }
            }
        }
    }
    TILES.set(tiles);
}
