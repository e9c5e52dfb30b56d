//! A borrowed matrix, read through strides. Transposing only swaps the strides, so NT, NN and TN are one product.

use crate::prefetch::prefetch_run;

/// `[rows, cols]`, element (i, j) at `data[i * row_stride + j * col_stride]`; one of the strides is 1.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: Copy> View<'a, T> {
    /// Row-major and contiguous.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "view: {} elements for a matrix of [{rows}, {cols}]", data.len());
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Row-major with `stride` elements from one row to the next.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        let needed = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(
            cols <= stride && data.len() >= needed,
            "view: {} elements for [{rows}, {cols}] by {stride}",
            data.len()
        );
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Rows `start..end`.
    pub fn slice(self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.rows, "view: rows {start}..{end} of {}", self.rows);
        let data = &self.data[(start * self.row_stride).min(self.data.len())..];
        Self { data, rows: end - start, ..self }
    }

    pub fn at(&self, i: usize, j: usize) -> T {
        self.data[i * self.row_stride + j * self.col_stride]
    }

    /// `len` neighbours along the contiguous direction, from (i, j).
    pub(crate) fn run(&self, i: usize, j: usize, len: usize) -> &'a [T] {
        let start = i * self.row_stride + j * self.col_stride;
        &self.data[start..start + len]
    }

    /// Prefetches a run.
    pub(crate) fn prefetch(&self, i: usize, j: usize, len: usize) {
        prefetch_run(self.data.as_ptr().wrapping_add(i * self.row_stride + j * self.col_stride), len);
    }

    /// Address of (i, j) and the strides of rows and columns, for a kernel that reads `[rows, cols]` from there without
    /// a copy.
    pub(crate) fn in_place(&self, i: usize, j: usize, rows: usize, cols: usize) -> Option<(*const T, [usize; 2])> {
        let strides = [self.row_stride, self.col_stride];
        if rows == 0 || cols == 0 {
            return None;
        }
        let at = |i: usize, j: usize| i * strides[0] + j * strides[1];
        let all = &self.data[at(i, j)..=at(i + rows - 1, j + cols - 1)];
        Some((all.as_ptr(), strides))
    }

    /// Address of (i, j) and the stride of rows, for a kernel that reads `width` elements of each of `rows` rows from
    /// there.
    pub(crate) fn row_run(&self, i: usize, j: usize, rows: usize, width: usize) -> (*const T, usize) {
        let all = &self.data[i * self.row_stride + j..(i + rows.max(1) - 1) * self.row_stride + j + width];
        (all.as_ptr(), self.row_stride)
    }

    /// Whether a kernel can read rows in vectors of 16 elements without a copy: the last vector of the last row ends
    /// inside the memory, and the stride is no multiple of 4096 bytes, which would put all rows into the same set of
    /// the cache.
    pub(crate) fn has_whole_vectors(&self) -> bool {
        let width = self.cols.next_multiple_of(16);
        self.col_stride == 1
            && self.rows > 0
            && (self.rows - 1) * self.row_stride + width <= self.data.len()
            && !(self.row_stride * size_of::<T>()).is_multiple_of(4096)
    }

    /// The same with rows extended to whole vectors of 16, where the memory allows it: products are faster without a
    /// partial vector. The added columns hold arbitrary values.
    pub(crate) fn whole_vectors(self) -> Self {
        if self.has_whole_vectors() { Self { cols: self.cols.next_multiple_of(16), ..self } } else { self }
    }

    /// Whether rows are contiguous; otherwise columns are.
    pub(crate) fn is_row_major(&self) -> bool {
        self.col_stride == 1
    }
}
