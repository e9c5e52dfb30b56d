//! Operations on rows: norm, SwiGLU, rotation, and copying rows.

use crate::backend::Rope;
use crate::dtype::Real;
use crate::tensor::Tensor;
use std::ops::Range;

/// `[N, D]` by its elements.
fn fill<T: Real>([n, d]: [usize; 2], of: impl Fn(usize, usize) -> T) -> Tensor {
    Tensor::new([n, d], &(0..n * d).map(|at| of(at / d, at % d)).collect::<Vec<T>>())
}

/// Σ f(0) + … + f(n − 1)
pub(super) fn sum<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    (0..n).fold(T::ZERO, |sum, i| sum + f(i))
}

/// `rstd = (mean(x²) + eps)^-½`, `y = x · rstd · gain`
pub(super) fn rms_norm<T: Real>(x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let (n, d, x, gain) = (x.rows(), x.cols(), x.read::<T>(), gain.read::<T>());
    let mean = |i: usize| sum(d, |j| x[i * d + j] * x[i * d + j]) / T::of(d as f64);
    let rstd: Vec<T> = (0..n).map(|i| T::ONE / (mean(i) + T::of(eps)).sqrt()).collect();
    (fill([n, d], |i, j| x[i * d + j] * rstd[i] * gain[j]), Tensor::new([n], &rstd))
}

/// `dgain_j += Σ_i dy_ij · x_ij · rstd_i`;
/// `dx_ij = rstd_i·(dy_ij·gain_j − x_ij · rstd_i² · Σ_k dy_ik·gain_k·x_ik / D)`
pub(super) fn rms_norm_backward<T: Real>(
    x: &Tensor,
    rstd: &Tensor,
    gain: &Tensor,
    dy: &Tensor,
    dgain: &mut Tensor,
) -> Tensor {
    let (n, d, x, rstd) = (x.rows(), x.cols(), x.read::<T>(), rstd.read::<T>());
    let (gain, dy) = (gain.read::<T>(), dy.read::<T>());
    for (j, dgain) in dgain.write::<T>().iter_mut().enumerate() {
        *dgain += sum(n, |i| dy[i * d + j] * x[i * d + j] * rstd[i]);
    }
    fill([n, d], |i, j| {
        let mean = sum(d, |k| dy[i * d + k] * gain[k] * x[i * d + k]) / T::of(d as f64);
        rstd[i] * (dy[i * d + j] * gain[j] - x[i * d + j] * rstd[i] * rstd[i] * mean)
    })
}

/// `y = g·σ(g) · u` of `h = [g | u]`
pub(super) fn swiglu<T: Real>(h: &Tensor) -> Tensor {
    let (n, f, h) = (h.rows(), h.cols() / 2, h.read::<T>());
    fill([n, f], |i, j| {
        let (gate, up) = (h[i * 2 * f + j], h[i * 2 * f + f + j]);
        gate * gate.sigmoid() * up
    })
}

/// `dg = dy·u·σ·(1 + g·(1 − σ))`, `du = dy·g·σ`
pub(super) fn swiglu_backward<T: Real>(h: &Tensor, dy: &Tensor) -> Tensor {
    let (n, f, h, dy) = (h.rows(), h.cols() / 2, h.read::<T>(), dy.read::<T>());
    fill([n, 2 * f], |i, j| {
        let (gate, up, dy) = (h[i * 2 * f + j % f], h[i * 2 * f + f + j % f], dy[i * f + j % f]);
        let s = gate.sigmoid();
        if j < f { dy * up * s * (T::ONE + gate * (T::ONE - s)) } else { dy * gate * s }
    })
}

/// Every pair (a, b) of a head turns by its position's angle: `(a·cos − b·sin, b·cos + a·sin)`; backward by the
/// opposite angle.
pub(super) fn rope<T: Real>(
    x: &mut Tensor,
    heads: usize,
    offset: usize,
    rope: &Rope,
    positions: &[u32],
    is_backward: bool,
) {
    let (width, half) = (x.cols(), rope.dim / 2);
    let x = x.write::<T>();
    for (i, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let first = i * width + head * (width / heads) + offset;
            for j in 0..half {
                let at = position as usize * half + j;
                let (cos, sin) = (T::of(rope.cos.read::<f32>()[at].into()), T::of(rope.sin.read::<f32>()[at].into()));
                let sin = if is_backward { -sin } else { sin };
                let pair = if rope.is_interleaved { [2 * j, 2 * j + 1] } else { [j, j + half] };
                let [a, b] = pair.map(|at| x[first + at]);
                x[first + pair[0]] = a * cos - b * sin;
                x[first + pair[1]] = b * cos + a * sin;
            }
        }
    }
}

pub(super) fn bias<T: Real>(y: &mut Tensor, bias: &Tensor) {
    let d = y.cols();
    for (at, y) in y.write::<T>().iter_mut().enumerate() {
        *y += bias.read::<T>()[at % d];
    }
}

pub(super) fn bias_backward<T: Real>(dy: &Tensor, dbias: &mut Tensor) {
    let (n, d, dy) = (dy.rows(), dy.cols(), dy.read::<T>());
    for (j, dbias) in dbias.write::<T>().iter_mut().enumerate() {
        *dbias += sum(n, |i| dy[i * d + j]);
    }
}

pub(super) fn scale<T: Real>(x: &mut Tensor, by: f64, over: f64) {
    x.write::<T>().iter_mut().for_each(|x| *x = *x * T::of(by) / T::of(over));
}

pub(super) fn add<T: Real>(acc: &mut Tensor, x: &Tensor) {
    for (acc, &x) in acc.write::<T>().iter_mut().zip(x.read::<T>()) {
        *acc += x;
    }
}

pub(super) fn split<T: Real>(x: &Tensor, at: usize) -> (Tensor, Tensor) {
    let (n, d, x) = (x.rows(), x.cols(), x.read::<T>());
    (fill([n, at], |i, j| x[i * d + j]), fill([n, d - at], |i, j| x[i * d + at + j]))
}

pub(super) fn join<T: Real>(a: &Tensor, b: &Tensor) -> Tensor {
    let (n, p, q, a, b) = (a.rows(), a.cols(), b.cols(), a.read::<T>(), b.read::<T>());
    fill([n, p + q], |i, j| if j < p { a[i * p + j] } else { b[i * q + j - p] })
}

/// Rows `rows` of x, in that order.
pub(super) fn gather<T: Real>(x: &Tensor, rows: &[u32]) -> Tensor {
    let (d, x) = (x.cols(), x.read::<T>());
    fill([rows.len(), d], |i, j| x[rows[i] as usize * d + j])
}

pub(super) fn embedding_backward<T: Real>(ids: &[u32], dx: &Tensor, dw: &mut Tensor) {
    let (d, dx, dw) = (dx.cols(), dx.read::<T>(), dw.write::<T>());
    for (i, &id) in ids.iter().enumerate() {
        for j in 0..d {
            dw[id as usize * d + j] += dx[i * d + j];
        }
    }
}

/// `page[at + i] = [parts[0][rows[i]] | parts[1][rows[i]] | …]`
pub(super) fn append(page: &mut Tensor, at: usize, parts: &[&Tensor], rows: Range<usize>) {
    let width = page.cols();
    for (i, row) in rows.enumerate() {
        let values = parts.iter().flat_map(|part| &part.read::<f32>()[row * part.cols()..][..part.cols()]);
        for (j, value) in values.enumerate() {
            page.write::<f32>()[(at + i) * width + j] = *value;
        }
    }
}
