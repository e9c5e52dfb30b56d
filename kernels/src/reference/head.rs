//! The output projection with softmax.

use super::products;
use crate::backend::{Layout, Write};
use crate::dtype::Real;
use crate::math;
use crate::tensor::Tensor;

fn logits<T: Real>(x: &Tensor, w: &Tensor) -> Vec<Vec<f64>> {
    let mut logits = Tensor::zeros([x.rows(), w.rows()], T::DTYPE);
    products::gemm::<T>(Layout::Nt, x, w, &mut logits, Write::Set);
    logits.to_f64().chunks(w.rows()).map(<[f64]>::to_vec).collect()
}

fn lse(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    max + math::ln(logits.iter().map(|z| math::exp(z - max)).sum())
}

/// Returns `logp = logit(target) − lse` and `lse = log Σ exp(logits)`.
pub(super) fn head<T: Real>(x: &Tensor, w: &Tensor, targets: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let logits = logits::<T>(x, w);
    logits.iter().zip(targets).map(|(z, &target)| (z[target as usize] - lse(z), lse(z))).unzip()
}

/// `dlogits = dlogp·(onehot − softmax) + dlse·softmax`; `dx = dlogits·w`, `dw += dlogitsᵀ·x`
pub(super) fn head_backward<T: Real>(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    dlogp: &[f64],
    dlse: &[f64],
    dw: &mut Tensor,
) -> Tensor {
    let mut dlogits = Vec::new();
    for (i, z) in logits::<T>(x, w).iter().enumerate() {
        for (j, &logit) in z.iter().enumerate() {
            let (softmax, onehot) = (math::exp(logit - lse(z)), f64::from(j == targets[i] as usize));
            dlogits.push(T::of(dlogp[i] * (onehot - softmax) + dlse[i] * softmax));
        }
    }
    let (dlogits, mut dx) = (Tensor::new([x.rows(), w.rows()], &dlogits), Tensor::zeros(x.shape(), T::DTYPE));
    products::gemm::<T>(Layout::Nn, &dlogits, w, &mut dx, Write::Set);
    products::gemm::<T>(Layout::Tn, &dlogits, x, dw, Write::Add);
    dx
}
