//! AdamW, and the norm for gradient clipping.

use crate::backend::AdamW;
use crate::dtype::Real;
use crate::tensor::Tensor;

pub(super) fn square_sum(x: &Tensor) -> f64 {
    x.to_f64().iter().map(|x| x * x).sum()
}

/// `acc = keep·acc + (1 − keep)·x`
pub(super) fn average<T: Real>(acc: &mut Tensor, x: &Tensor, keep: f64) {
    for (acc, &x) in acc.write::<T>().iter_mut().zip(x.read::<T>()) {
        *acc = *acc * T::of(keep) + x * T::of(1.0 - keep);
    }
}

/// With g the scaled gradient and t the step:
///
/// ```text
/// m = β₁·m + (1 − β₁)·g     m̂ = m / (1 − β₁ᵗ)
/// v = β₂·v + (1 − β₂)·g²    v̂ = v / (1 − β₂ᵗ)
/// w −= lr·decay·w + lr·m̂ / (√v̂ + eps)
/// ```
pub(super) fn adamw<T: Real>(h: &AdamW, w: &mut Tensor, dw: &Tensor, scale: &Tensor, m: &mut Tensor, v: &mut Tensor) {
    let (mut first, mut second) = (m.to_f64(), v.to_f64());
    for (at, (w, dw)) in w.write::<T>().iter_mut().zip(dw.read::<T>()).enumerate() {
        let g = dw.f64() * scale.read::<f64>()[0];
        first[at] = h.beta1 * first[at] + (1.0 - h.beta1) * g;
        second[at] = h.beta2 * second[at] + (1.0 - h.beta2) * g * g;
        let m_hat = first[at] / (1.0 - h.beta1.powi(h.step as i32));
        let v_hat = second[at] / (1.0 - h.beta2.powi(h.step as i32));
        *w = T::of(w.f64() - h.lr * h.decay * w.f64() - h.lr * m_hat / (v_hat.sqrt() + h.eps));
    }
    let stored = |values: &[f64], like: &Tensor| Tensor::new(like.shape(), values).cast(like.dtype());
    (*m, *v) = (stored(&first, m), stored(&second, v));
}
