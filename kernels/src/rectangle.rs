//! A part of a matrix that one task writes while other tasks write the rest of it.
//!
//! The standard library cuts a slice into disjoint slices, but it cannot cut a matrix between two columns: the elements
//! of a column do not lie side by side. A [`Rectangle`] can be cut both ways. A cut moves its rows or columns out, so
//! no two rectangles ever share an element, and safe code cannot make two tasks write the same place.

use crate::prefetch::prefetch_run;
use std::marker::PhantomData;
use std::ops::Range;

/// `[rows, cols]` elements that nobody else can reach, `stride` elements from one row to the next.
pub(crate) struct Rectangle<'a, T> {
    first: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a rectangle is an exclusive borrow of its elements, as `&mut [T]` is.
unsafe impl<T: Send> Send for Rectangle<'_, T> {}

impl<'a, T> Rectangle<'a, T> {
    /// The first `cols` of every `stride` elements, `rows` times.
    pub(crate) fn new(matrix: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        let needed = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(
            cols <= stride && needed <= matrix.len(),
            "rectangle: {} elements for [{rows}, {cols}] by {stride}",
            matrix.len()
        );
        Self { first: matrix.as_mut_ptr(), rows, cols, stride, matrix: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Cuts off the first `count` rows and returns them.
    pub(crate) fn take_rows(&mut self, count: usize) -> Self {
        assert!(count <= self.rows, "rectangle: {count} of {} rows", self.rows);
        let taken = Self { rows: count, ..*self };
        // wrapping: with no rows left this may point past the matrix, and is never read
        (self.first, self.rows) = (self.first.wrapping_add(count * self.stride), self.rows - count);
        taken
    }

    /// Cuts off the first `count` columns and returns them.
    pub(crate) fn take_cols(&mut self, count: usize) -> Self {
        assert!(count <= self.cols, "rectangle: {count} of {} columns", self.cols);
        let taken = Self { cols: count, ..*self };
        (self.first, self.cols) = (self.first.wrapping_add(count), self.cols - count);
        taken
    }

    /// One rectangle for each of `bands`, which are ranges of rows in ascending order.
    pub(crate) fn bands(mut self, bands: impl Iterator<Item = Range<usize>>) -> impl Iterator<Item = Self> {
        let mut next = 0;
        bands.map(move |band| {
            assert!(next <= band.start && band.start <= band.end, "rectangle: rows {band:?} after row {next}");
            self.take_rows(band.start - next); // rows of nobody
            next = band.end;
            self.take_rows(band.len())
        })
    }

    /// `count` rectangles of neighbouring columns, equally wide.
    pub(crate) fn columns(mut self, count: usize) -> impl Iterator<Item = Self> {
        let width = self.cols / count;
        assert!(width * count == self.cols, "rectangle: {} columns in {count} parts", self.cols);
        (0..count).map(move |_| self.take_cols(width))
    }

    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "rectangle: row {row} of {}", self.rows);
        // SAFETY: `new` checked that the row lies inside the matrix, which 'a keeps alive; no other rectangle has these
        // elements.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.cols) }
    }

    /// Address of an element, from which the rest of the rectangle can be reached by [`stride`](Self::stride).
    pub(crate) fn address(&mut self, row: usize, col: usize) -> *mut T {
        assert!(row < self.rows && col < self.cols, "rectangle: ({row}, {col}) of [{}, {}]", self.rows, self.cols);
        // SAFETY: as for `row`.
        unsafe { self.first.add(row * self.stride + col) }
    }

    /// Prefetches rows that will be written soon; rows past the last are allowed.
    pub(crate) fn prefetch(&self, rows: Range<usize>) {
        rows.for_each(|row| prefetch_run(self.first.wrapping_add(row * self.stride), self.cols));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_and_columns_cover_a_matrix_once() {
        let mut matrix = vec![0; 5 * 8];
        let whole = Rectangle::new(&mut matrix, 5, 6, 8);
        let parts: Vec<_> = whole.bands([0..2, 2..2, 3..5].into_iter()).flat_map(|band| band.columns(3)).collect();
        std::thread::scope(|scope| {
            for (i, mut part) in parts.into_iter().enumerate() {
                drop(scope.spawn(move || (0..part.rows()).for_each(|row| part.row(row).fill(i + 1))));
            }
        });
        let (first, last) = ([1, 1, 2, 2, 3, 3, 0, 0], [7, 7, 8, 8, 9, 9, 0, 0]);
        assert_eq!(matrix, [first, first, [0; 8], last, last].concat());
    }

    #[test]
    #[should_panic(expected = "rows 1..3 after row 2")]
    fn bands_that_overlap_are_refused() {
        Rectangle::new(&mut [0; 12], 4, 3, 3).bands([0..2, 1..3].into_iter()).for_each(drop);
    }

    #[test]
    #[should_panic(expected = "11 elements for [4, 3] by 3")]
    fn a_rectangle_larger_than_its_matrix_is_refused() {
        Rectangle::new(&mut [0; 11], 4, 3, 3);
    }
}
