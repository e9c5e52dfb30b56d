//! B in the order in which kernels read it: panels of 64 outputs; each panel holds all of K; each k has 64 neighbouring
//! outputs.
//!
//! `lines[panel][cell]` is four cache lines of 16 cells; the last panel is padded with zeros. The layout does not
//! depend on M, threads, blocking or CPU level, so one packing serves decoding and prefill, and a weight is packed once
//! per load or optimizer step. Repacking reuses the memory: fresh pages cost more than the packing.

use super::cells::Cells;
use super::kernel::NR;
use super::level::{Level, Supported};
use crate::memory::Line;
use crate::view::View;
use std::fmt;
use std::marker::PhantomData;

const LINES: usize = NR / 16;

/// A packed `[k, n]` matrix. For `y = x·Wᵀ` with W `[out, in]`, pack `View::new(w, out, in).t()`.
pub struct PackedB<T> {
    pub(crate) lines: Vec<Line>,
    pub k: usize,
    pub n: usize,
    element: PhantomData<T>,
}

impl<T> fmt::Debug for PackedB<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PackedB [{}, {}]", self.k, self.n)
    }
}

impl<T: Cells> PackedB<T> {
    /// An empty matrix, for [`Gemm::pack`](super::Gemm::pack) to fill.
    pub(crate) fn empty() -> Self {
        Self { lines: Vec::new(), k: 0, n: 0, element: PhantomData }
    }

    pub fn new(b: View<T>) -> Self {
        let mut packed = Self::empty();
        packed.reset(b).for_each(|panel| panel.fill(Supported::PORTABLE));
        packed
    }

    /// Takes the shape of `b`; the caller fills the panels, in any order.
    pub(crate) fn reset<'a>(&'a mut self, b: View<'a, T>) -> impl Iterator<Item = Panel<'a, T>> {
        (self.k, self.n) = (b.rows, b.cols);
        let lines = panel_lines::<T>(b) * b.cols.div_ceil(NR);
        self.lines.truncate(lines);
        self.lines.resize(lines, Line([0; 16]));
        panels(&mut self.lines, b)
    }
}

/// The right side of a product.
#[derive(Clone, Copy, Debug)]
pub enum RightSide<'a, T> {
    Packed(&'a PackedB<T>),
    /// The first `k` rows and `n` columns of a packed matrix. Columns beyond its own, up to the end of the last panel,
    /// are zeros. k is even where cells are pairs.
    Corner {
        b: &'a PackedB<T>,
        k: usize,
        n: usize,
    },
    /// Packed by the product, or read without a copy.
    View(View<'a, T>),
}

/// B as a task reads it.
#[derive(Clone, Copy)]
pub(crate) enum ReadyB<'a, T> {
    /// Panels of `cells` cells each.
    Panels {
        lines: &'a [Line],
        cells: usize,
    },
    Rows(View<'a, T>),
}

impl<T: Cells> ReadyB<'_, T> {
    /// Address of the cells `k..k + depth` of a panel, and the stride of k. At each k `vectors` · 16 cells may be
    /// read.
    #[inline(always)]
    pub(super) fn cells(&self, panel: usize, k: usize, depth: usize, vectors: usize) -> (*const u32, usize) {
        match self {
            ReadyB::Panels { lines, cells } => {
                (lines[(panel * cells + k) * LINES..][..depth * LINES].as_ptr().cast(), NR)
            }
            // an element is a cell: only f32 is read without a copy
            ReadyB::Rows(b) => {
                let (first, stride) = b.row_run(k, panel * NR, depth, vectors * 16);
                (first.cast(), stride)
            }
        }
    }
}

impl<'a, T> From<&'a PackedB<T>> for RightSide<'a, T> {
    fn from(b: &'a PackedB<T>) -> Self {
        RightSide::Packed(b)
    }
}

impl<'a, T> From<View<'a, T>> for RightSide<'a, T> {
    fn from(b: View<'a, T>) -> Self {
        RightSide::View(b)
    }
}

pub(crate) fn panel_lines<T: Cells>(b: View<T>) -> usize {
    b.rows.div_ceil(T::PER_CELL) * LINES
}

/// One panel of `b` and the memory it goes to.
pub(crate) struct Panel<'a, T> {
    b: View<'a, T>,
    first: usize,
    lines: &'a mut [Line],
}

/// Cuts `lines` into the panels of `b`.
pub(crate) fn panels<'a, T: Cells>(lines: &'a mut [Line], b: View<'a, T>) -> impl Iterator<Item = Panel<'a, T>> {
    let chunks = lines.chunks_mut(panel_lines(b).max(1));
    chunks.enumerate().map(move |(p, lines)| Panel { b, first: p * NR, lines })
}

impl<T: Cells> Panel<'_, T> {
    #[inline(always)] // into a function compiled for the CPU level, which makes these copies fast
    pub(crate) fn fill(self, level: Supported) {
        let columns = NR.min(self.b.cols - self.first);
        if self.b.is_row_major() { self.interleave(columns) } else { self.transpose(columns, level) }
    }

    /// Rows of `b` are contiguous: copies 64 neighbours, or interleaves those of two rows.
    #[inline(always)]
    fn interleave(self, columns: usize) {
        let Self { b, first, lines } = self;
        let row = |k| {
            let run = if k < b.rows { b.run(k, first, columns) } else { &[] };
            run.as_array::<NR>()
                .copied()
                .unwrap_or_else(|| std::array::from_fn(|j| run.get(j).copied().unwrap_or_default()))
        };
        for (cell, lines) in lines.as_chunks_mut::<LINES>().0.iter_mut().enumerate() {
            b.prefetch(cell * T::PER_CELL + 8, first, columns);
            let even = row(cell * T::PER_CELL);
            let odd = if T::PER_CELL == 2 { row(cell * 2 + 1) } else { even };
            for v in 0..LINES {
                lines[v].0 = std::array::from_fn(|lane| T::cell([even[v * 16 + lane], odd[v * 16 + lane]]));
            }
        }
    }

    /// Columns of `b` are contiguous: transposes 16 × 16 cells at a time, read and written in whole cache lines. It
    /// goes through all of K for 16 columns before the next 16, so that hardware prefetchers see 16 streams, not 64.
    #[inline(always)]
    fn transpose(self, columns: usize, level: Supported) {
        let Self { b, first, lines } = self;
        for v in 0..LINES {
            let lanes = columns.saturating_sub(v * 16).min(16);
            for (c0, cells) in lines.chunks_mut(16 * LINES).enumerate() {
                let (k0, depth) = (c0 * 16 * T::PER_CELL, cells.len() / LINES);
                let len = (depth * T::PER_CELL).min(b.rows - k0);
                let column = |lane| b.run(k0, first + v * 16 + lane, len);
                #[cfg(target_arch = "x86_64")]
                if level.level() >= Level::Avx512 && len == depth * T::PER_CELL {
                    let mut starts = [std::ptr::null::<u32>(); 16];
                    starts.iter_mut().enumerate().take(lanes).for_each(|(lane, x)| *x = column(lane).as_ptr().cast());
                    let to = cells[v..].as_mut_ptr().cast::<u32>();
                    // SAFETY: the level is supported; a column has `len` elements, which are `depth` cells as they lie
                    // (the even one in the low half); line v of each of `depth` cells is within `cells`.
                    unsafe { super::avx512::transpose(&starts[..lanes], depth, to) };
                    continue;
                }
                let _ = level;
                let mut square = [[0; 16]; 16];
                for (lane, row) in square.iter_mut().enumerate().take(lanes) {
                    match len == 16 * T::PER_CELL {
                        true => to_cells(column(lane), row), // a length that the compiler knows
                        false => to_cells(column(lane), &mut row[..depth]),
                    }
                }
                for cell in 0..depth {
                    cells[cell * LINES + v].0 = std::array::from_fn(|lane| square[lane][cell]);
                }
            }
        }
    }
}

/// Makes cells of consecutive k; a last element without a partner is paired with zero.
#[inline(always)]
pub(crate) fn to_cells<T: Cells>(run: &[T], cells: &mut [u32]) {
    let whole = run.chunks_exact(T::PER_CELL);
    if let [lone] = whole.remainder() {
        cells[run.len() / 2] = T::cell([*lone, T::default()]);
    }
    for (cell, pair) in cells.iter_mut().zip(whole) {
        *cell = T::cell([pair[0], pair[T::PER_CELL - 1]]);
    }
}
