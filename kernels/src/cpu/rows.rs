//! Operations on rows: norm, SwiGLU, rotation, and copying rows.

use super::device::Cpu;
use super::vectors::{dot, vectors};
use crate::backend::Rope;
use crate::dtype::Real;
use crate::tensor::Tensor;
use std::ops::Range;

/// Rows per partial sum of a gain's or bias's gradient: fixed, so that the sum's order does not depend on the threads.
const BLOCK: usize = 128;

pub(super) fn rms_norm<T: Real>(cpu: &Cpu, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let (n, d) = (x.rows(), x.cols());
    gain.expect("rms_norm: gain", [d]);
    let (mut y, mut rstd) = (Tensor::empty([n, d], T::DTYPE), Tensor::empty([n], T::DTYPE));
    let (x, gain, step) = (x.read::<T>(), gain.read::<T>(), cpu.step(n, d));
    let out = y.write::<T>().chunks_mut(step * d).zip(rstd.write::<T>().chunks_mut(step));
    let tasks = x.chunks(step * d).zip(out).collect();
    let (count, eps) = (T::of(d as f64), T::of(eps));
    cpu.each(
        tasks,
        #[inline(always)]
        |(x, (y, rstd))| {
            for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
                *rstd = T::ONE / (dot(x, x) / count + eps).sqrt();
                vectors([x, gain], [y], |[x, gain], _| [x * *rstd * gain]);
            }
        },
    );
    (y, rstd)
}

/// With c = Σ_j dy·gain·x · rstd³ / D: `dx = dy·gain·rstd − x·c`.
pub(super) fn rms_norm_backward<T: Real>(
    cpu: &Cpu,
    x: &Tensor,
    rstd: &Tensor,
    gain: &Tensor,
    dy: &Tensor,
    dgain: &mut Tensor,
) -> Tensor {
    let (n, d) = (x.rows(), x.cols());
    dy.expect("rms_norm_backward: dy", x.shape());
    let mut dx = Tensor::empty(x.shape(), T::DTYPE);
    let mut partial = Tensor::empty([n.div_ceil(BLOCK), d], T::DTYPE);
    let gain = gain.read::<T>();
    let read =
        x.read::<T>().chunks(BLOCK * d).zip(dy.read::<T>().chunks(BLOCK * d)).zip(rstd.read::<T>().chunks(BLOCK));
    let tasks = read.zip(dx.write::<T>().chunks_mut(BLOCK * d)).zip(partial.write::<T>().chunks_mut(d)).collect();
    let count = T::of(d as f64);
    cpu.each(
        tasks,
        #[inline(always)]
        |((((x, dy), rstd), dx), dgain)| {
            dgain.fill(T::ZERO);
            for (((x, dy), dx), &rstd) in
                x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rstd)
            {
                vectors([dy, gain], [dx], |[dy, gain], _| [dy * gain]);
                let c = dot(dx, x) * rstd * rstd * rstd / count;
                vectors([x, dy], [dgain, dx], |[x, dy], [dgain, dx]| [dgain + dy * x * rstd, dx * rstd - x * c]);
            }
        },
    );
    let dgain = dgain.write::<T>();
    for part in partial.read::<T>().chunks_exact(d) {
        dgain.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
    }
    dx
}

pub(super) fn swiglu<T: Real>(cpu: &Cpu, h: &Tensor) -> Tensor {
    let (n, f) = (h.rows(), h.cols() / 2);
    let mut y = Tensor::empty([n, f], T::DTYPE);
    let step = cpu.step(n, 8 * f);
    let tasks = h.read::<T>().chunks(step * 2 * f).zip(y.write::<T>().chunks_mut(step * f)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(h, y)| {
            for (h, y) in h.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
                let (gate, up) = h.split_at(f);
                vectors([gate, up], [y], |[gate, up], _| [gate * gate.sigmoid() * up]);
            }
        },
    );
    y
}

pub(super) fn swiglu_backward<T: Real>(cpu: &Cpu, h: &Tensor, dy: &Tensor) -> Tensor {
    let (n, f) = (h.rows(), h.cols() / 2);
    dy.expect("swiglu_backward: dy", [n, f]);
    let mut dh = Tensor::empty(h.shape(), T::DTYPE);
    let step = cpu.step(n, 8 * f);
    let read = h.read::<T>().chunks(step * 2 * f).zip(dy.read::<T>().chunks(step * f));
    let tasks = read.zip(dh.write::<T>().chunks_mut(step * 2 * f)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |((h, dy), dh)| {
            for ((h, dy), dh) in h.chunks_exact(2 * f).zip(dy.chunks_exact(f)).zip(dh.chunks_exact_mut(2 * f)) {
                let ((gate, up), (dgate, dup)) = (h.split_at(f), dh.split_at_mut(f));
                vectors([gate, up, dy], [dgate, dup], |[gate, up, dy], _| {
                    let s = gate.sigmoid();
                    [dy * up * s * (T::ONE + gate * (T::ONE - s)), dy * gate * s]
                });
            }
        },
    );
    dh
}

pub(super) fn rope<T: Real>(
    cpu: &Cpu,
    x: &mut Tensor,
    heads: usize,
    offset: usize,
    rope: &Rope,
    positions: &Tensor,
    is_backward: bool,
) {
    let (n, width, positions) = (x.rows(), x.cols(), positions.read::<u32>());
    let (cosines_of, sines_of) = (rope.cos.read::<f32>(), rope.sin.read::<f32>());
    let (stride, half) = (width / heads, rope.dim / 2);
    assert!(stride * heads == width && offset + rope.dim <= stride, "rope: {heads} heads in {width} columns");
    assert!(positions.len() == n, "rope: {} positions for {n} rows", positions.len());
    let last = positions.iter().max().map_or(0, |&p| p as usize + 1);
    assert!(last <= rope.positions(), "rope: position {last} of a table of {}", rope.positions());
    let step = cpu.step(n, 4 * heads * rope.dim);
    let tasks = x.write::<T>().chunks_mut(step * width).zip(positions.chunks(step)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(x, positions): (&mut [T], &[u32])| {
            // per element of a head: the factor of itself, and the factor of its partner
            let (mut cosines, mut sines) = (vec![T::ZERO; rope.dim], vec![T::ZERO; rope.dim]);
            for (x, &position) in x.chunks_exact_mut(width).zip(positions) {
                let at = position as usize * half;
                for j in 0..half {
                    let (a, b) = if rope.is_interleaved { (2 * j, 2 * j + 1) } else { (j, j + half) };
                    let (cos, sin) = (T::of(cosines_of[at + j].into()), T::of(sines_of[at + j].into()));
                    let sin = if is_backward { -sin } else { sin };
                    (cosines[a], cosines[b], sines[a], sines[b]) = (cos, cos, -sin, sin);
                }
                for head in x.chunks_exact_mut(stride) {
                    let x = &mut head[offset..offset + rope.dim];
                    if rope.is_interleaved {
                        let pairs = cosines.as_chunks::<2>().0.iter().zip(sines.as_chunks::<2>().0);
                        for (x, (cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                            *x = [x[0] * cos[0] + x[1] * sin[0], x[1] * cos[1] + x[0] * sin[1]];
                        }
                    } else {
                        let ((first, second), sin) = (x.split_at_mut(half), &sines[half..]);
                        vectors([&cosines[..half], sin], [first, second], |[cos, sin], [a, b]| {
                            [a * cos - b * sin, b * cos + a * sin]
                        });
                    }
                }
            }
        },
    );
}

pub(super) fn bias<T: Real>(cpu: &Cpu, y: &mut Tensor, bias: &Tensor) {
    let (n, d) = (y.rows(), y.cols());
    bias.expect("bias: bias", [d]);
    let (bias, step) = (bias.read::<T>(), cpu.step(n, d));
    cpu.each(
        y.write::<T>().chunks_mut(step * d).collect(),
        #[inline(always)]
        |y: &mut [T]| y.chunks_exact_mut(d).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, &bias)| *y += bias)),
    );
}

pub(super) fn bias_backward<T: Real>(cpu: &Cpu, dy: &Tensor, dbias: &mut Tensor) {
    let (n, d) = (dy.rows(), dy.cols());
    dbias.expect("bias_backward: dbias", [d]);
    let mut partial = Tensor::empty([n.div_ceil(BLOCK), d], T::DTYPE);
    let tasks = dy.read::<T>().chunks(BLOCK * d).zip(partial.write::<T>().chunks_mut(d)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(dy, sum): (&[T], &mut [T])| {
            sum.fill(T::ZERO);
            dy.chunks_exact(d).for_each(|dy| sum.iter_mut().zip(dy).for_each(|(sum, &dy)| *sum += dy));
        },
    );
    let dbias = dbias.write::<T>();
    for part in partial.read::<T>().chunks_exact(d) {
        dbias.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
    }
}

pub(super) fn scale<T: Real>(cpu: &Cpu, x: &mut Tensor, by: f64, over: f64) {
    let (step, by, over) = (cpu.step(x.len(), 1), T::of(by), T::of(over));
    let tasks = x.write::<T>().chunks_mut(step).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |x: &mut [T]| x.iter_mut().for_each(|x| *x = *x * by / over),
    );
}

pub(super) fn add<T: Real>(cpu: &Cpu, acc: &mut Tensor, x: &Tensor) {
    acc.expect("add: acc", x.shape());
    let step = cpu.step(x.len(), 1);
    let tasks = acc.write::<T>().chunks_mut(step).zip(x.read::<T>().chunks(step)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(acc, x): (&mut [T], &[T])| acc.iter_mut().zip(x).for_each(|(acc, &x)| *acc += x),
    );
}

pub(super) fn split<T: Real>(cpu: &Cpu, x: &Tensor, at: usize) -> (Tensor, Tensor) {
    let (n, d) = (x.rows(), x.cols());
    let (mut a, mut b) = (Tensor::empty([n, at], T::DTYPE), Tensor::empty([n, d - at], T::DTYPE));
    let step = cpu.step(n, d);
    let out = a.write::<T>().chunks_mut(step * at).zip(b.write::<T>().chunks_mut(step * (d - at)));
    cpu.each(
        x.read::<T>().chunks(step * d).zip(out).collect(),
        #[inline(always)]
        |(x, (a, b)): (&[T], (&mut [T], &mut [T]))| {
            for (x, (a, b)) in x.chunks_exact(d).zip(a.chunks_exact_mut(at).zip(b.chunks_exact_mut(d - at))) {
                a.copy_from_slice(&x[..at]);
                b.copy_from_slice(&x[at..]);
            }
        },
    );
    (a, b)
}

pub(super) fn join<T: Real>(cpu: &Cpu, a: &Tensor, b: &Tensor) -> Tensor {
    let (n, p, q) = (a.rows(), a.cols(), b.cols());
    assert!(b.rows() == n, "join: {n} and {} rows", b.rows());
    let mut x = Tensor::empty([n, p + q], T::DTYPE);
    let step = cpu.step(n, p + q);
    let parts = a.read::<T>().chunks(step * p).zip(b.read::<T>().chunks(step * q));
    cpu.each(
        x.write::<T>().chunks_mut(step * (p + q)).zip(parts).collect(),
        #[inline(always)]
        |(x, (a, b)): (&mut [T], (&[T], &[T]))| {
            for (x, (a, b)) in x.chunks_exact_mut(p + q).zip(a.chunks_exact(p).zip(b.chunks_exact(q))) {
                x[..p].copy_from_slice(a);
                x[p..].copy_from_slice(b);
            }
        },
    );
    x
}

pub(super) fn gather<T: Real>(cpu: &Cpu, x: &Tensor, rows: &Tensor) -> Tensor {
    let (n, d, rows) = (x.rows(), x.cols(), rows.read::<u32>());
    let mut y = Tensor::empty([rows.len(), d], T::DTYPE);
    let (x, step) = (x.read::<T>(), cpu.step(rows.len(), d));
    let tasks = y.write::<T>().chunks_mut(step * d).zip(rows.chunks(step)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(y, rows): (&mut [T], &[u32])| {
            for (y, &row) in y.chunks_exact_mut(d).zip(rows) {
                assert!((row as usize) < n, "gather: row {row} of {n}");
                y.copy_from_slice(&x[row as usize * d..][..d]);
            }
        },
    );
    y
}

pub(super) fn embedding_backward<T: Real>(ids: &Tensor, dx: &Tensor, dw: &mut Tensor) {
    let (d, ids) = (dx.cols(), ids.read::<u32>());
    assert!(dw.cols() == d && dx.rows() == ids.len(), "embedding_backward: dx {:?}, dw {:?}", dx.shape(), dw.shape());
    let dw = dw.write::<T>();
    for (dx, &id) in dx.read::<T>().chunks_exact(d).zip(ids) {
        dw[id as usize * d..][..d].iter_mut().zip(dx).for_each(|(dw, &dx)| *dw += dx);
    }
}

pub(super) fn append(page: &mut Tensor, at: usize, parts: &[&Tensor], rows: Range<usize>) {
    let (room, width) = (page.rows(), page.cols());
    let found: usize = parts.iter().map(|part| part.cols()).sum();
    assert!(found == width, "append: parts of {found} columns to a page of {width}");
    assert!(at + rows.len() <= room, "append: {} rows from {at} on to a page of {room}", rows.len());
    let page = &mut page.write::<f32>()[at * width..][..rows.len() * width];
    let mut first = 0;
    for part in parts {
        let (cols, part) = (part.cols(), part.read::<f32>());
        let read = part[rows.start * cols..rows.end * cols].chunks_exact(cols.max(1));
        for (out, read) in page.chunks_exact_mut(width).zip(read) {
            out[first..first + cols].copy_from_slice(read);
        }
        first += cols;
    }
}
