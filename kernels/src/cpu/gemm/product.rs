//! Dense and grouped products, cut into tasks.
//!
//! Everything is a list of products, each with its own A, B and C: a dense product is a list of one, a grouped one has
//! a product per segment. Tasks are rectangles of C over all of K, so cutting finer or coarser changes no bit.

use super::cells::Bf16;
use super::factor::Factor;
use super::kernel::{MAX_ROWS, NR};
use super::level::{Level, Supported, wide};
use super::packed::{PackedB, Panel, ReadyB, RightSide, panel_lines, panels};
use super::pool::Pool;
use super::scaled;
use super::scales::{PROMOTION, Scales};
use super::task::{Causal, STRIP, Task};
use crate::backend::Write;
use crate::memory::{Allocation, Line};
use crate::rectangle::Rectangle;
use crate::spans::spans;
use crate::view::View;
use std::{cell::Cell, ops::Range};

/// Steps of the chain below which a product runs on one thread: waking another would cost more than it saves.
const SERIAL: usize = 1 << 20;
/// Rows of A up to which B is read without a copy.
const IN_PLACE: usize = 512;
/// Tasks per thread: enough to balance the load when another process uses a core too.
const TASKS: usize = 4;
/// Tasks per thread of a grouped product. More, because segments differ in size and the threads would wait for a large
/// last one.
const TASKS_OF_GROUPED: usize = 16;
/// The fewest rows per task.
const LOW: usize = 24;

/// Threads and CPU level; neither changes a result.
#[derive(Debug)]
pub struct Gemm {
    pool: Pool,
    level: Supported,
}

struct Multiplication<'a, T> {
    a: View<'a, T>,
    b: RightSide<'a, T>,
    c: Rectangle<'a, f32>,
    scales: Option<Scales<'a>>,
    causal: Causal,
}

impl<'a, T: Factor> Multiplication<'a, T> {
    /// C is contiguous.
    fn new(a: View<'a, T>, b: RightSide<'a, T>, c: &'a mut [f32]) -> Self {
        let (rows, n) = (a.rows, b.shape().1);
        assert!(c.len() == rows * n, "multiply: c has {} elements for [{rows}, {n}]", c.len());
        Self::strided(a, b, c, n)
    }

    /// C has `c_row` elements from one row to the next.
    fn strided(a: View<'a, T>, b: RightSide<'a, T>, c: &'a mut [f32], c_row: usize) -> Self {
        let (k, n) = b.shape();
        assert_eq!(a.cols, k, "multiply: a is [{}, {}], b is [{k}, {n}]", a.rows, a.cols);
        Self { a, b, c: Rectangle::new(c, a.rows, n, c_row), scales: None, causal: Causal::All }
    }
}

/// One product `c[M,N] = a[M,K]·b[K,N]` of FP8 operands, which are given as bf16 with their scales.
#[derive(Debug)]
pub(crate) struct Promoted<'a> {
    pub a: View<'a, Bf16>,
    pub b: RightSide<'a, Bf16>,
    pub scales: Scales<'a>,
    pub c: &'a mut [f32],
}

thread_local! {
    /// Memory to pack operands in, kept because fresh pages in each call would be slow.
    static SCRATCH: Cell<Allocation<Line>> = Cell::default();
}

/// [`SCRATCH`], of at least so many lines.
fn scratch_of(lines: usize) -> Allocation<Line> {
    let mut scratch = SCRATCH.take();
    if scratch.len() < lines {
        drop(std::mem::take(&mut scratch));
        scratch = Allocation::new(lines);
    }
    scratch
}

impl Gemm {
    /// `threads` counts the caller.
    pub fn new(threads: usize) -> Self {
        Self { pool: Pool::new(threads), level: Supported::new(Level::best()) }
    }

    /// The same on another CPU level, for tests.
    pub fn at(self, level: Level) -> Self {
        Self { level: Supported::new(level), ..self }
    }

    /// The threads, for work other than products.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn level(&self) -> Supported {
        self.level
    }

    /// [`multiply`](Self::multiply) on the calling thread only: for a product inside parallel work.
    pub(crate) fn alone<'a, T: Factor>(&self, a: View<T>, b: impl Into<RightSide<'a, T>>, c: &mut [f32], write: Write) {
        let b = b.into();
        self.alone_into(a, b, c, b.shape().1, write, Causal::All);
    }

    /// The same into some columns of a wider C with `c_row` elements from one row to the next; only what `causal`
    /// leaves of it.
    pub fn alone_into<'a, T: Factor>(
        &self,
        a: View<T>,
        b: impl Into<RightSide<'a, T>>,
        c: &mut [f32],
        c_row: usize,
        write: Write,
        causal: Causal,
    ) {
        assert!(
            causal == Causal::All || T::PER_CELL == 1,
            "multiply: a mask counts elements, and pairs would straddle it"
        );
        let product = Multiplication { causal, ..Multiplication::strided(a, b.into(), c, c_row) };
        let (lines, place) = (product.lines_to_pack(), product.place());
        let Multiplication { a, b, c, scales, causal } = product;
        let mut scratch = Allocation::default();
        let b = match (place, b) {
            (None, RightSide::View(view)) => {
                // as in `run_parts`, without its lists: a product by one page of a cache is so small that they show
                scratch = scratch_of(lines);
                panels(&mut scratch[..lines], view).for_each(|panel| self.fill(panel));
                ReadyB::Panels { lines: &scratch[..lines], cells: a.cols.div_ceil(T::PER_CELL) }
            }
            (place, _) => place.expect("only a view is packed"),
        };
        let (n, rows, panels) = (c.cols(), 0..c.rows(), 0..c.cols().div_ceil(NR));
        self.task(Task { a, b, n, c, rows, panels, scales, causal }, write);
        if lines > 0 {
            SCRATCH.set(scratch);
        }
    }

    /// Packs `b`, reusing the memory of what was there.
    pub(crate) fn pack<T: Factor>(&self, packed: &mut PackedB<T>, b: View<T>) {
        self.pack_all([(packed, b)]);
    }

    /// Packs many at once: a small one alone would not keep the threads busy.
    pub(crate) fn pack_all<'a, T: Factor>(&self, all: impl IntoIterator<Item = (&'a mut PackedB<T>, View<'a, T>)>) {
        let panels = all.into_iter().flat_map(|(packed, b)| packed.reset(b)).collect();
        self.pool.each(panels, |panel| self.fill(panel));
    }

    /// `c[M,N] = a[M,K]·b[K,N]`, or `+=`. With `.t()` on a view this is NT (`x, w.t()`), NN (`dy, w`) and
    /// TN (`dy.t(), x`).
    pub fn multiply<'a, T: Factor>(&self, a: View<T>, b: impl Into<RightSide<'a, T>>, c: &mut [f32], write: Write) {
        self.run(vec![Multiplication::new(a, b.into(), c)], write);
    }

    /// Segment e, rows `ends[e-1]..ends[e]` of `a[M,K]`, times its own `b[e]` `[K,N]`, into the same rows of `c[M,N]`.
    pub fn grouped<'a, T: Factor>(
        &self,
        a: View<'a, T>,
        ends: &[usize],
        b: &[RightSide<'a, T>],
        mut c: &'a mut [f32],
        write: Write,
    ) {
        assert_eq!(ends.len(), b.len(), "grouped: {} segments, {} operands", ends.len(), b.len());
        let products = segments(ends, a.rows).zip(b).map(|(rows, &b)| {
            let segment = c.split_off_mut(..rows.len() * b.shape().1).expect("grouped: c is shorter than [M, N]");
            Multiplication::new(a.slice(rows.start, rows.end), b, segment)
        });
        let products = products.collect();
        assert!(c.is_empty(), "grouped: c is {} longer than [M, N]", c.len());
        self.run(products, write);
    }

    /// Weight gradients of [`grouped`](Self::grouped): `dw[e] = dy[segment]ᵀ·x[segment]`, or `+=`; dy `[M,out]`,
    /// x `[M,in]`, dw `[E,out,in]`. An empty segment sets zero, or adds nothing.
    pub fn grouped_gradient<'a, T: Factor>(
        &self,
        dy: View<'a, T>,
        x: View<'a, T>,
        ends: &[usize],
        dw: &'a mut [f32],
        write: Write,
    ) {
        assert_eq!(dw.len(), ends.len() * dy.cols * x.cols, "grouped_gradient: dw must be [E, out, in]");
        let parts = dw.chunks_mut((dy.cols * x.cols).max(1));
        let products = segments(ends, dy.rows).zip(parts).map(|(rows, c)| {
            Multiplication::new(dy.slice(rows.start, rows.end).t(), x.slice(rows.start, rows.end).into(), c)
        });
        self.run(products.collect(), write);
    }

    /// Products whose sums are scaled every 128 of K: see [`Scales`].
    pub(crate) fn promoted(&self, products: Vec<Promoted>, write: Write) {
        let products = products.into_iter().map(|Promoted { a, b, scales, c }| {
            let (blocks, n) = (a.cols.div_ceil(PROMOTION), b.shape().1);
            let found = ((scales.a.rows, scales.a.cols), scales.b.len());
            assert!(found == ((a.rows, blocks), blocks * n), "promoted: scales {found:?} for {blocks} blocks, N = {n}");
            Multiplication { scales: Some(scales), ..Multiplication::new(a, b, c) }
        });
        self.run(products.collect(), write);
    }

    fn run<T: Factor>(&self, products: Vec<Multiplication<T>>, write: Write) {
        let steps = products.iter().map(Multiplication::steps);
        let (all, largest) = steps.fold((0, 0), |(all, largest), steps| (all + steps, steps.max(largest)));
        let each_task = |tasks: usize| all.div_ceil(tasks * self.pool.threads()).max(SERIAL / 8);
        if self.pool.threads() == 1 || all < SERIAL {
            products.into_iter().for_each(|product| self.run_parts(vec![product], write, None));
        } else if largest <= each_task(TASKS) {
            // whole products as tasks are small enough, and the thread that packs b then multiplies it from its own
            // cache
            let dealt = deal(products, self.pool.threads(), Multiplication::steps);
            self.pool.each(dealt, |product| self.run_parts(vec![product], write, None));
        } else {
            let tasks = if products.len() > 1 { TASKS_OF_GROUPED } else { TASKS };
            self.run_parts(products, write, Some(each_task(tasks)));
        }
    }

    /// Packs views where needed, then multiplies, in tasks of about `each_task` steps; without `each_task` on the
    /// calling thread only.
    fn run_parts<T: Factor>(&self, products: Vec<Multiplication<T>>, write: Write, each_task: Option<usize>) {
        let lines = products.iter().map(|product| product.lines_to_pack()).sum();
        let mut scratch = scratch_of(lines);
        let (mut rest, mut unpacked) = (&mut scratch[..lines], Vec::new());
        for product in &products {
            let lines = product.lines_to_pack();
            if let RightSide::View(view) = product.b
                && lines > 0
            {
                unpacked.extend(panels(rest.split_off_mut(..lines).expect("counted above"), view));
            }
        }
        self.each(each_task, unpacked, |panel| self.fill(panel));

        let (mut rest, mut tasks) = (&scratch[..lines], Vec::new());
        for product in products {
            let (cells, steps) = (product.a.cols.div_ceil(T::PER_CELL), product.steps());
            let b = product.place().unwrap_or_else(|| {
                let lines = rest.split_off(..product.lines_to_pack()).expect("counted above");
                ReadyB::Panels { lines, cells }
            });
            let Multiplication { a, b: _, mut c, scales, causal } = product;
            let (n, panels) = (c.cols(), c.cols().div_ceil(NR));
            let pieces = each_task.map_or(1, |each| steps.div_ceil(each).max(1));
            let (wide, high) = cut(pieces, self.pool.threads(), a.rows, panels);
            for rows in spans(a.rows, high) {
                let mut band = c.take_rows(rows.len());
                for panels in spans(panels, wide) {
                    let c = band.take_cols((panels.len() * NR).min(band.cols()));
                    tasks.push(Task { a, b, n, c, rows: rows.clone(), panels, scales, causal });
                }
            }
        }
        self.each(each_task, tasks, |task| self.task(task, write));
        SCRATCH.set(scratch);
    }

    fn fill<T: Factor>(&self, panel: Panel<T>) {
        wide(
            self.level,
            #[inline(always)]
            || panel.fill(self.level),
        )
    }

    fn task<T: Factor>(&self, task: Task<T>, write: Write) {
        wide(
            self.level,
            #[inline(always)]
            || match task.scales {
                Some(scales) => scaled::run(task, scales, self.level, write),
                None => task.run(self.level, write),
            },
        )
    }

    fn each<I: Send>(&self, each_task: Option<usize>, items: Vec<I>, work: impl Fn(I) + Sync) {
        match each_task {
            Some(_) => self.pool.each(items, work),
            None => items.into_iter().for_each(work),
        }
    }
}

impl<'a, T: Factor> Multiplication<'a, T> {
    /// Steps of all its chains together.
    fn steps(&self) -> usize {
        self.a.rows * self.c.cols() * self.a.cols.div_ceil(T::PER_CELL)
    }

    /// B, if a task can read it without packing.
    fn place(&self) -> Option<ReadyB<'a, T>> {
        match self.b {
            RightSide::Packed(b) | RightSide::Corner { b, .. } => {
                Some(ReadyB::Panels { lines: &b.lines, cells: b.k.div_ceil(T::PER_CELL) })
            }
            RightSide::View(_) if self.lines_to_pack() > 0 => None,
            RightSide::View(b) if b.rows == 0 => Some(ReadyB::Panels { lines: &[], cells: 0 }),
            RightSide::View(b) => Some(ReadyB::Rows(b)),
        }
    }

    /// Zero when B is packed, or read without a copy: with few rows of A packing would cost more than it saves.
    fn lines_to_pack(&self) -> usize {
        match self.b {
            RightSide::Packed(_) | RightSide::Corner { .. } => 0,
            RightSide::View(b) if T::PER_CELL == 1 && self.a.rows <= IN_PLACE && b.has_whole_vectors() => 0,
            RightSide::View(b) => panel_lines(b) * b.cols.div_ceil(NR),
        }
    }
}

impl<T: Factor> RightSide<'_, T> {
    /// `(k, n)`
    fn shape(&self) -> (usize, usize) {
        match self {
            RightSide::Packed(b) => (b.k, b.n),
            RightSide::Corner { b, k, n } => {
                assert!(
                    *k <= b.k && *n <= b.n.next_multiple_of(NR),
                    "multiply: a corner of [{k}, {n}] of [{}, {}]",
                    b.k,
                    b.n
                );
                (*k, *n)
            }
            RightSide::View(b) => (b.rows, b.cols),
        }
    }
}

/// Panels and rows per task for about `pieces` tasks.
///
/// It cuts rows first, down to a strip: then a thread mostly reads the rows of A that it wrote. Then it cuts columns,
/// and then rows again, unless tasks would get so few rows that reading B dominates. Rows are cut evenly and so that
/// each of `threads` gets the same number of tasks: tiles of fewer than [`MAX_ROWS`] rows cost less than an idle
/// thread.
fn cut(pieces: usize, threads: usize, rows: usize, panels: usize) -> (usize, usize) {
    let strips = pieces.min(rows / (STRIP * MAX_ROWS)).max(1);
    let across = pieces.div_ceil(strips).min(panels).max(1);
    let wide = (panels / across).max(1);
    let mut down = strips.max(pieces.div_ceil(across).min(rows.div_ceil(LOW)));
    if pieces > 1 {
        let even = (down..).find(|down| (down * panels.div_ceil(wide)).is_multiple_of(threads)).expect("a multiple");
        down = if even <= rows.div_ceil(LOW) { even } else { down };
    }
    (wide, rows.div_ceil(down).max(1))
}

/// Orders items so that each of `threads` equal runs has about the same weight: the heaviest first, dealt to the runs
/// back and forth. (The pool gives each thread one run, and everybody waits for the last item.)
fn deal<I>(mut items: Vec<I>, threads: usize, weight: impl Fn(&I) -> usize) -> Vec<I> {
    items.sort_by_key(|item| std::cmp::Reverse(weight(item)));
    let mut hands: Vec<_> = (0..threads).map(|_| Vec::new()).collect();
    for (i, item) in items.into_iter().enumerate() {
        let place = i % (2 * threads);
        hands[place.min(2 * threads - 1 - place)].push(item);
    }
    hands.into_iter().flatten().collect()
}

fn segments(ends: &[usize], rows: usize) -> impl Iterator<Item = Range<usize>> {
    assert_eq!(ends.last().copied().unwrap_or(0), rows, "grouped: the last segment must end at row M");
    (0..ends.len()).map(|e| (if e == 0 { 0 } else { ends[e - 1] })..ends[e])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_dealt_in_runs_of_about_equal_weight() {
        let dealt = deal(vec![5, 9, 1, 7, 3, 8, 2, 6], 2, |&weight| weight);
        assert_eq!(dealt, [9, 6, 5, 1, 8, 7, 3, 2]);
        let mut all = deal((0..10).collect(), 3, |&weight| weight);
        all.sort();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_product_is_cut_into_as_many_tasks_for_each_thread_and_few_rows_are_not_cut() {
        for (rows, panels) in [(2048, 4), (256, 3), (256, 11), (1408, 4), (512, 1), (96, 4)] {
            let (wide, high) = cut(2 * TASKS, 2, rows, panels);
            let (down, across) = (rows.div_ceil(high), panels.div_ceil(wide));
            assert!((down * across).is_multiple_of(2), "[{rows}, {panels} panels]: {down} by {across} tasks");
            let last = rows - (down - 1) * high;
            assert!(high - last < down, "[{rows}, {panels} panels]: {down} tasks of {high} rows, the last of {last}");
        }
        assert_eq!(cut(1, 2, 100, 5), (5, 100));
        assert_eq!(cut(8, 2, 1, 1), (1, 1));
        assert_eq!(cut(8, 2, 0, 1), (1, 1), "a segment may have no rows");
    }
}
