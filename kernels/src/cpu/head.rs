//! The output projection, softmax and log-probability, by blocks of rows: the logits `[N, V]` need not all be in memory
//! at once.
//!
//! Small exp(logits − max) are kept for backward. Large ones are computed again by the same products and loops, with
//! the same bits.

use super::device::Cpu;
use super::gemm::View;
use super::products::{Products, transposed};
use super::vectors::exp_row;
use crate::backend::Head;
use crate::backend::Write;
use crate::dtype::{DType, Real};
use crate::tensor::Tensor;

/// Logits per block, and logits that are kept at most.
const BLOCK: usize = 1 << 22;
const KEPT: usize = 1 << 24;

/// Whether the exponentials of `[n, v]` logits are kept for backward.
pub(crate) fn keeps_logits(n: usize, v: usize) -> bool {
    n * v <= KEPT
}

/// Turns logits into exp(logit − max); writes log p(target), lse, and 1/Σexp.
fn softmax<T: Real>(cpu: &Cpu, logits: &mut [T], vocabulary: usize, targets: &[u32], out: [&mut [f64]; 3]) {
    let step = cpu.step(targets.len(), 4 * vocabulary);
    let [logp, lse, inverse] = out;
    let out = logp.chunks_mut(step).zip(lse.chunks_mut(step)).zip(inverse.chunks_mut(step));
    let tasks = logits.chunks_mut(step * vocabulary).zip(targets.chunks(step)).zip(out).collect();
    cpu.each(
        tasks,
        #[inline(always)]
        |((logits, targets), ((logp, lse), inverse))| {
            let rows = logits.chunks_exact_mut(vocabulary).zip(targets);
            for ((row, &target), ((logp, lse), inverse)) in rows.zip(logp.iter_mut().zip(lse).zip(inverse)) {
                let logit = row[target as usize].f64();
                let (max, sum) = exp_row(row, row.len(), T::ONE);
                *lse = max.f64() + crate::math::ln(sum.f64());
                *logp = logit - *lse;
                *inverse = 1.0 / sum.f64();
            }
        },
    );
}

fn check(x: &Tensor, w: &Tensor, targets: &Tensor) -> [usize; 3] {
    let ([n, d], [v, inner]) = (x.dims("head: x"), w.dims("head: w"));
    assert!(d == inner && targets.len() == n, "head: x [{n}, {d}], w [{v}, {inner}], {} targets", targets.len());
    [n, d, v]
}

fn logits<T: Products>(cpu: &Cpu, x: &[T], w: &Tensor, out: &mut [T]) {
    let x = View::new(x, out.len() / w.rows(), w.cols());
    T::multiply(&cpu.gemm, x, transposed::<T>(w), out, Write::Set);
}

pub(super) fn forward<T: Products>(cpu: &Cpu, x: &Tensor, w: &Tensor, targets: &Tensor) -> Head {
    let [n, d, v] = check(x, w, targets);
    let [mut logp, mut lse, mut inverse] = [(); 3].map(|()| Tensor::empty([n], DType::F64));
    let targets = targets.read::<u32>();
    let keeps = keeps_logits(n, v);
    let block = if keeps { n.max(1) } else { (BLOCK / v).max(1) };
    let mut memory = Tensor::empty([block.min(n), v], T::DTYPE);
    for first in (0..n).step_by(block) {
        let rows = first..(first + block).min(n);
        let z = &mut memory.write::<T>()[..rows.len() * v];
        logits(cpu, &x.read::<T>()[rows.start * d..rows.end * d], w, z);
        let out = [&mut logp, &mut lse, &mut inverse].map(|out| &mut out.write::<f64>()[rows.clone()]);
        softmax(cpu, z, v, &targets[rows], out);
    }
    Head { logp, lse, kept: keeps.then_some((memory, inverse)) }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward<T: Products>(
    cpu: &Cpu,
    head: Head,
    x: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    dlogp: &Tensor,
    dlse: &Tensor,
    dw: &mut Tensor,
) -> Tensor {
    let [n, d, v] = check(x, w, targets);
    dw.expect("head_backward: dw", [v, d]);
    assert!(dlogp.len() == n && dlse.len() == n, "head_backward: {} and {} of {n} rows", dlogp.len(), dlse.len());
    let (targets, dlogp, dlse) = (targets.read::<u32>(), dlogp.read::<f64>(), dlse.read::<f64>());
    let mut dx = Tensor::empty([n, d], T::DTYPE);
    let (mut kept, mut inverse) = match head.kept {
        Some((kept, inverse)) => (Some(kept), inverse),
        None => (None, Tensor::empty([n], DType::F64)),
    };
    let block = if kept.is_some() { n.max(1) } else { (BLOCK / v).max(1) };
    for first in (0..n).step_by(block) {
        let rows = first..(first + block).min(n);
        let x = &x.read::<T>()[rows.start * d..rows.end * d];
        let mut dlogits = kept.take().unwrap_or_else(|| {
            let mut z = Tensor::empty([rows.len(), v], T::DTYPE);
            logits(cpu, x, w, z.write::<T>());
            let (mut logp, mut lse) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
            let inverse = &mut inverse.write::<f64>()[rows.clone()];
            softmax(cpu, z.write::<T>(), v, &targets[rows.clone()], [&mut logp, &mut lse, inverse]);
            z
        });
        let (step, inverse) = (cpu.step(rows.len(), v), inverse.read::<f64>());
        let tasks = dlogits.write::<T>().chunks_mut(step * v).enumerate().collect();
        cpu.each(
            tasks,
            #[inline(always)]
            |(task, z): (usize, &mut [T])| {
                for (i, z) in z.chunks_exact_mut(v).enumerate() {
                    let row = rows.start + task * step + i;
                    let factor = T::of((dlse[row] - dlogp[row]) * inverse[row]);
                    z.iter_mut().for_each(|z| *z *= factor);
                    z[targets[row] as usize] += T::of(dlogp[row]);
                }
            },
        );
        let view = dlogits.view::<T>();
        T::multiply(&cpu.gemm, view, w.view().into(), &mut dx.write::<T>()[rows.start * d..rows.end * d], Write::Set);
        let x = View::new(x, rows.len(), d);
        T::multiply(&cpu.gemm, view.t(), x.into(), dw.write(), Write::Add);
    }
    dx
}
