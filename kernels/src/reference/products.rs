//! Products, and the lower precisions of their operands.

use crate::backend::{Layout, Write};
use crate::dtype::{DType, Real};
use crate::fp8::{E4m3, MAX, Operand, Quantiser, Role, Scaled, Tile};
use crate::segments::Segments;
use crate::tensor::Tensor;
use std::ops::Range;

/// `[M, N]` of `c = 0`, or what c holds when adding, then `c = a[i, k]·b[k, j] + c` with one rounding, for k in
/// ascending order.
fn multiply<T: Real>(
    c: &mut [T],
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> T,
    b: impl Fn(usize, usize) -> T,
    write: Write,
) {
    for i in 0..m {
        for j in 0..n {
            let start = if write == Write::Add { c[i * n + j] } else { T::ZERO };
            c[i * n + j] = (0..k).fold(start, |c, k| a(i, k).mul_add(b(k, j), c));
        }
    }
}

pub(super) fn gemm<T: Real>(layout: Layout, a: &Tensor, b: &Tensor, c: &mut Tensor, write: Write) {
    let (a_cols, b_cols) = (a.cols(), b.cols());
    let dims = match layout {
        Layout::Nt => [a.rows(), b.rows(), a_cols],
        Layout::Nn => [a.rows(), b_cols, a_cols],
        Layout::Tn => [a_cols, b_cols, a.rows()],
    };
    let (a, b) = (a.read::<T>(), b.read::<T>());
    let a = |i: usize, k: usize| if layout == Layout::Tn { a[k * a_cols + i] } else { a[i * a_cols + k] };
    let b = |k: usize, j: usize| if layout == Layout::Nt { b[j * b_cols + k] } else { b[k * b_cols + j] };
    multiply(c.write(), dims, a, b, write);
}

/// Rows of a matrix as a matrix of their own.
fn slice<T: Real>(x: &Tensor, rows: Range<usize>) -> Tensor {
    let (len, cols) = (rows.len(), x.cols());
    Tensor::new([len, cols], &x.read::<T>()[rows.start * cols..][..len * cols])
}

pub(super) fn grouped_gemm<T: Real>(
    layout: Layout,
    a: &Tensor,
    w: &Tensor,
    segments: &Segments,
    c: &mut Tensor,
    write: Write,
) {
    let [_, out, _] = w.dims("grouped_gemm: w");
    for (e, rows) in segments.iter().enumerate() {
        let mut c_of_rows = slice::<T>(c, rows.clone());
        let w = slice::<T>(w, e * out..(e + 1) * out);
        gemm::<T>(layout, &slice::<T>(a, rows.clone()), &w, &mut c_of_rows, write);
        let n = c.cols();
        c.write::<T>()[rows.start * n..rows.end * n].copy_from_slice(c_of_rows.read());
    }
}

pub(super) fn grouped_gradient<T: Real>(dy: &Tensor, x: &Tensor, segments: &Segments, dw: &mut Tensor, write: Write) {
    let out = dy.cols();
    for (e, rows) in segments.iter().enumerate() {
        let mut dw_of_expert = slice::<T>(dw, e * out..(e + 1) * out);
        let (dy, x) = (slice::<T>(dy, rows.clone()), slice::<T>(x, rows));
        gemm::<T>(Layout::Tn, &dy, &x, &mut dw_of_expert, write);
        let size = dw_of_expert.len();
        dw.write::<T>()[e * size..][..size].copy_from_slice(dw_of_expert.read());
    }
}

pub(super) fn lower(
    x: &Tensor,
    how: Option<Quantiser>,
    segments: Option<&Segments>,
    saturated: &mut Tensor,
) -> Operand {
    let Some(how) = how else { return Operand::Plain(x.cast(DType::Bf16)) };
    if !x.read::<f32>().iter().all(|x| x.is_finite()) {
        saturated.write::<u32>()[0] = 1;
    }
    Operand::Fp8(quantise(x, how, segments))
}

/// Tile by tile: the largest finite magnitude gives the scale, `x / scale` the bytes.
fn quantise(x: &Tensor, how: Quantiser, segments: Option<&Segments>) -> Scaled {
    let segments = segments.filter(|_| how.tile != Tile::Tensor); // a tensor has one scale, whatever its segments
    let (n, d, x) = (x.rows(), x.cols(), x.read::<f32>());
    let (bands, width) = (how.tile.bands(n, segments), how.tile.width(d));
    let (mut q, mut scales) = (vec![E4m3(0); n * d], Vec::new());
    for rows in &bands {
        for left in (0..d).step_by(width) {
            let tile = || rows.clone().flat_map(|i| (left..d.min(left + width)).map(move |j| i * d + j));
            let amax = tile().map(|at| x[at].abs()).filter(|x| x.is_finite()).fold(0.0, f32::max);
            let scale = scale(how, amax);
            tile().for_each(|at| q[at] = E4m3::from_f32(x[at] / scale));
            scales.push(scale);
        }
    }
    Scaled { q: Tensor::new([n, d], &q), scale: Tensor::new([bands.len(), d.div_ceil(width)], &scales), how }
}

fn scale(how: Quantiser, amax: f32) -> f32 {
    let floor = if how.role == Role::Activation { 1e-4 } else { MAX * 2f32.powi(-126) };
    let scale = amax.max(floor) / MAX;
    match how.role {
        Role::Weight if amax == 0.0 => 1.0,
        _ if how.power_of_two => 2f32.powi(f64::from(scale).log2().ceil() as i32),
        _ => scale,
    }
}

/// What an operand stands for, as F64.
fn values(x: &Operand, segments: Option<&Segments>) -> Tensor {
    match x {
        Operand::Plain(x) => x.cast(DType::F64),
        Operand::Fp8(x) => x.dequantised(segments.filter(|_| x.how.tile != Tile::Tensor)).cast(DType::F64),
    }
}

/// The weight in the precision of `a`, as F64: rounded to bf16, or quantised by blocks, or as a whole per expert when a
/// is.
fn weight(a: &Operand, w: &Tensor, experts: usize) -> Tensor {
    let rows = Segments::of_counts(&vec![w.rows() / experts; experts]);
    let values = match a {
        Operand::Plain(a) if a.dtype() == DType::Bf16 => w.cast(DType::Bf16),
        Operand::Plain(_) => w.clone(),
        Operand::Fp8(a) if a.how.tile == Tile::Tensor => {
            let one = |rows: Range<usize>| {
                let how = Quantiser { role: Role::Weight, ..a.how };
                quantise(&slice::<f32>(w, rows), how, None).dequantised(None).to_f32()
            };
            Tensor::new([w.rows(), w.cols()], &rows.iter().flat_map(one).collect::<Vec<f32>>())
        }
        Operand::Fp8(a) => {
            let how = Quantiser { tile: Tile::Block, role: Role::Weight, ..a.how };
            quantise(w, how, Some(&rows)).dequantised(Some(&rows))
        }
    };
    values.cast(DType::F64).reshape(w.shape())
}

/// The sums are exact enough not to need a scale taken out: they are f64.
pub(super) fn low_gemm(
    layout: Layout,
    a: &Operand,
    w: &Tensor,
    segments: Option<&Segments>,
    c: &mut Tensor,
    write: Write,
) {
    let experts = segments.map_or(1, Segments::count);
    let (a, w, mut sum) = (values(a, segments), weight(a, w, experts), c.cast(DType::F64).copy());
    match segments {
        Some(segments) => grouped_gemm::<f64>(layout, &a, &w, segments, &mut sum, write),
        None => gemm::<f64>(layout, &a, &w, &mut sum, write),
    }
    *c = sum.cast(c.dtype());
}

pub(super) fn low_gradient(dy: &Operand, x: &Operand, segments: Option<&Segments>, dw: &mut Tensor, write: Write) {
    let (dy, x, mut sum) = (values(dy, segments), values(x, segments), dw.cast(DType::F64).copy());
    match segments {
        Some(segments) => grouped_gradient::<f64>(&dy, &x, segments, &mut sum, write),
        None => gemm::<f64>(Layout::Tn, &dy, &x, &mut sum, write),
    }
    *dw = sum.cast(dw.dtype());
}
