//! AdamW, and the norm for gradient clipping.

use super::device::Cpu;
use super::vectors::fold;
use crate::backend::AdamW;
use crate::dtype::{Element, Real};
use crate::math::power;
use crate::tensor::Tensor;
use half::bf16;

/// Elements per partial sum: fixed, so that the sum's order does not depend on the threads.
const BLOCK: usize = 1 << 14;

pub(super) fn square_sum<T: Real>(cpu: &Cpu, x: &Tensor) -> f64 {
    let mut partial = vec![0.0; x.len().div_ceil(BLOCK)];
    let tasks: Vec<_> = x.read::<T>().chunks(BLOCK).zip(&mut partial).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(x, partial): (&[T], &mut f64)| {
            let mut sums = [0.0; 16];
            let (whole, rest) = x.as_chunks::<16>();
            for lanes in whole {
                for lane in 0..16 {
                    sums[lane] += lanes[lane].f64() * lanes[lane].f64();
                }
            }
            rest.iter().zip(&mut sums).for_each(|(x, sum)| *sum += x.f64() * x.f64());
            *partial = fold(sums);
        },
    );
    partial.iter().sum()
}

pub(super) fn total(x: &Tensor, is_squared: bool, sums: &mut Tensor, at: usize) {
    let of = |x: &f64| if is_squared { x * x } else { *x };
    sums.write::<f64>()[at] = x.read::<f64>().iter().map(of).sum();
}

pub(super) fn clip(square_sum: &Tensor, most: f64) -> Tensor {
    let norm = square_sum.read::<f64>()[0].sqrt();
    Tensor::new([1], &[(most / (norm + 1e-6)).min(1.0)])
}

/// Elements of w, dw, m and v of one task.
type Slices<'a, T, M> = ((&'a mut [T], &'a [T]), (&'a mut [M], &'a mut [M]));

/// The element type that stores a moment between steps.
pub(super) trait Moment<T>: Element {
    fn load(self) -> T;
    fn store(x: T) -> Self;
}

impl<T: Real> Moment<T> for T {
    #[inline(always)]
    fn load(self) -> T {
        self
    }
    #[inline(always)]
    fn store(x: T) -> T {
        x
    }
}

impl Moment<f32> for bf16 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// To nearest even; moments are finite.
    #[inline(always)]
    fn store(x: f32) -> Self {
        let bits = x.to_bits();
        bf16::from_bits(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }
}

/// `w −= lr·decay·w; m, v` decay towards g and g²; `w −= lr·m̂ / (√v̂ + eps)`, in this order.
pub(super) fn adamw<T: Real, M: Moment<T>>(
    cpu: &Cpu,
    h: &AdamW,
    w: &mut Tensor,
    dw: &Tensor,
    scale: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
) {
    for x in [&*w, &*m, &*v] {
        x.expect("adamw", dw.shape());
    }
    let keep = T::of(1.0 - h.lr * h.decay);
    let rate = T::of(h.lr / (1.0 - power(h.beta1, h.step)));
    let correction = T::of(1.0 / (1.0 - power(h.beta2, h.step)).sqrt());
    let (beta1, beta2, eps) = (T::of(h.beta1), T::of(h.beta2), T::of(h.eps));
    let (rest1, rest2, scale) = (T::of(1.0 - h.beta1), T::of(1.0 - h.beta2), T::of(scale.read::<f64>()[0]));
    let step = cpu.step(dw.len(), 4);
    let moments = m.write::<M>().chunks_mut(step).zip(v.write::<M>().chunks_mut(step));
    let tasks = w.write::<T>().chunks_mut(step).zip(dw.read::<T>().chunks(step)).zip(moments).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |((w, dw), (m, v)): Slices<T, M>| {
            for ((w, &dw), (m, v)) in w.iter_mut().zip(dw).zip(m.iter_mut().zip(v)) {
                let g = dw * scale;
                let first = m.load() * beta1 + g * rest1;
                let second = v.load() * beta2 + g * g * rest2;
                *w = *w * keep - rate * first / (second.sqrt() * correction + eps);
                (*m, *v) = (M::store(first), M::store(second));
            }
        },
    );
}

pub(super) fn average<T: Real>(cpu: &Cpu, acc: &mut Tensor, x: &Tensor, keep: f64) {
    acc.expect("average", x.shape());
    let (keep, rest, step) = (T::of(keep), T::of(1.0 - keep), cpu.step(x.len(), 1));
    let tasks = acc.write::<T>().chunks_mut(step).zip(x.read::<T>().chunks(step)).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |(acc, x): (&mut [T], &[T])| acc.iter_mut().zip(x).for_each(|(acc, &x)| *acc = *acc * keep + x * rest),
    );
}
