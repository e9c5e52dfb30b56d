//! Products in f32, and in f64 for gradient checks.

use super::device::Cpu;
use super::gemm::{PackedB, View};
use super::products::{Products, transposed};
use crate::backend::{Layout, Write};
use crate::dtype::DType;
use crate::segments::Segments;
use crate::tensor::Tensor;

pub(super) fn gemm<T: Products>(cpu: &Cpu, layout: Layout, a: &Tensor, b: &Tensor, c: &mut Tensor, write: Write) {
    let (shape, dims) = match layout {
        Layout::Nt => ([a.rows(), b.rows()], [a.cols(), b.cols()]),
        Layout::Nn => ([a.rows(), b.cols()], [a.cols(), b.rows()]),
        Layout::Tn => ([a.cols(), b.cols()], [a.rows(), b.rows()]),
    };
    assert!(dims[0] == dims[1], "gemm {layout:?}: a is {:?}, b is {:?}", a.shape(), b.shape());
    assert!([c.rows(), c.cols()] == shape, "gemm {layout:?}: expected c {shape:?}, found {:?}", c.shape());
    let (a, b) = match layout {
        Layout::Nt => (a.view(), transposed::<T>(b)),
        Layout::Nn => (a.view(), b.view().into()),
        Layout::Tn => (a.view().t(), b.view().into()),
    };
    T::multiply(&cpu.gemm, a, b, c.write(), write);
}

pub(super) fn grouped_gemm<T: Products>(
    cpu: &Cpu,
    layout: Layout,
    a: &Tensor,
    w: &Tensor,
    segments: &Segments,
    c: &mut Tensor,
    write: Write,
) {
    let [experts, out, inner] = w.dims("grouped_gemm: w");
    let (k, n) = if layout == Layout::Nt { (inner, out) } else { (out, inner) };
    assert!(layout != Layout::Tn, "grouped_gemm: Tn is grouped_gradient");
    assert!(experts == segments.count(), "grouped_gemm: {experts} weights, {} segments", segments.count());
    a.expect("grouped_gemm: a", [segments.rows(), k]);
    c.expect("grouped_gemm: c", [segments.rows(), n]);
    let matrices = w.read::<T>().chunks_exact((out * inner).max(1)).map(|w| View::new(w, out, inner));
    let b = match layout {
        Layout::Nt => T::packed(w).unwrap_or_else(|| matrices.map(|w| w.t().into()).collect()),
        _ => matrices.map(T::Right::from).collect(),
    };
    T::grouped(&cpu.gemm, a.view(), &segments.host_ends(), &b, c.write(), write);
}

pub(super) fn grouped_gradient<T: Products>(
    cpu: &Cpu,
    dy: &Tensor,
    x: &Tensor,
    segments: &Segments,
    dw: &mut Tensor,
    write: Write,
) {
    dw.expect("grouped_gradient: dw", [segments.count(), dy.cols(), x.cols()]);
    T::grouped_gradient(&cpu.gemm, dy.view(), x.view(), &segments.host_ends(), dw.write(), write);
}

/// Packs an F32 weight `[.., out, in]` for products `x·wᵀ`, one matrix per leading index. Costs the weight's size
/// again.
pub(super) fn prepare(cpu: &Cpu, w: &Tensor) {
    let dims = w.shape();
    let &[.., out, inner] = dims.dims() else { return };
    if w.dtype() != DType::F32 {
        return;
    }
    w.keep(|| {
        let pack = |w: &[f32]| {
            let mut packed = PackedB::empty();
            cpu.gemm.pack(&mut packed, View::new(w, out, inner).t());
            packed
        };
        w.read::<f32>().chunks_exact((out * inner).max(1)).map(pack).collect::<Vec<PackedB<f32>>>()
    });
}
