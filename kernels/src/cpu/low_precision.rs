//! Products in lower precision: bf16, and FP8 with exact products, sums in f32 and a scale per 128 terms.

use super::device::Cpu;
use super::gemm::{Promoted, Scales, View};
use super::lowered::{Lowered, Lowering, Matrix, Side};
use super::quantise;
use crate::backend::{Layout, Write};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser, Role, Scaled, TILE, Tile};
use crate::segments::Segments;
use crate::tensor::Tensor;
use half::bf16;
use std::sync::Arc;

/// See [`Backend::low_gemm`](crate::Backend::low_gemm).
pub(super) fn gemm(
    cpu: &Cpu,
    layout: Layout,
    a: &Operand,
    w: &Tensor,
    segments: Option<&Segments>,
    c: &mut Tensor,
    write: Write,
) {
    let (dims, inner) = (w.shape(), w.cols());
    let experts = if segments.is_some() { dims.dims()[0] } else { 1 };
    let out = w.rows() / experts;
    let (k, n) = match layout {
        Layout::Nt => (inner, out),
        Layout::Nn => (out, inner),
        Layout::Tn => panic!("low_gemm: Tn is low_gradient"),
    };
    let (rows, lowering) = match a {
        Operand::Plain(a) => (a, Lowering::Bf16),
        Operand::Fp8(a) => {
            let tile = if a.how.tile == Tile::Tensor { Tile::Tensor } else { Tile::Block };
            (&a.q, Lowering::Fp8(Quantiser { tile, role: Role::Weight, ..a.how }))
        }
    };
    let m = rows.rows();
    rows.expect("low_gemm: a", [m, k]);
    c.expect("low_gemm: c", [m, n]);
    let whole = Segments::of_counts(&[m]);
    let ends = segments.unwrap_or(&whole);
    assert!(ends.rows() == m && ends.count() == experts, "low_gemm: {experts} weights of {m} rows, {ends:?}");
    let lowered = lowered(cpu, w, lowering, experts);
    let sides: Vec<&Side> = lowered.matrices.iter().map(|w| if layout == Layout::Nt { &w.nt } else { &w.nn }).collect();
    match a {
        Operand::Plain(a) => {
            let packed: Vec<_> = sides.iter().map(|side| (&side.packed).into()).collect();
            cpu.gemm.grouped(a.view::<bf16>(), &ends.host_ends(), &packed, c.write(), write);
        }
        Operand::Fp8(a) => {
            let (values, scale, blocks) = (quantise::decode(cpu, &a.q), row_scales(a, segments), k.div_ceil(TILE));
            let (values, mut rest, mut products) = (values.view::<bf16>(), c.write::<f32>(), Vec::new());
            for (rows, side) in ends.iter().zip(sides) {
                let (len, first) = (rows.len(), rows.start * blocks);
                let scales = Scales { a: View::new(&scale[first..][..len * blocks], len, blocks), b: &side.scale };
                let c = rest.split_off_mut(..len * n).expect("c was checked above");
                let a = values.slice(rows.start, rows.end);
                products.push(Promoted { a, b: (&side.packed).into(), scales, c });
            }
            cpu.gemm.promoted(products, write);
        }
    }
}

/// See [`Backend::low_gradient`](crate::Backend::low_gradient).
pub(super) fn gradient(
    cpu: &Cpu,
    dy: &Operand,
    x: &Operand,
    segments: Option<&Segments>,
    dw: &mut Tensor,
    write: Write,
) {
    let rows = |operand: &Operand| match operand {
        Operand::Plain(x) => (x.rows(), x.cols()),
        Operand::Fp8(x) => (x.q.rows(), x.q.cols()),
    };
    let ((n, out), (also_n, inner)) = (rows(dy), rows(x));
    let whole = Segments::of_counts(&[n]);
    let ends = segments.unwrap_or(&whole);
    assert!(n == also_n && ends.rows() == n, "low_gradient: dy has {n} rows, x {also_n}, {ends:?}");
    let size = out * inner;
    assert!(dw.len() == ends.count() * size, "low_gradient: {:?} for [{out}, {inner}], {ends:?}", dw.shape());
    match (dy, x) {
        (Operand::Plain(dy), Operand::Plain(x)) => {
            let (dy, x) = (dy.view::<bf16>(), x.view::<bf16>());
            cpu.gemm.grouped_gradient(dy, x, &ends.host_ends(), dw.write(), write);
        }
        (Operand::Fp8(dy), Operand::Fp8(x)) => {
            let (a_scale, b_scale) = (column_scales(dy, segments), column_scales(x, segments));
            let (a, b) = (quantise::decode(cpu, &dy.q), quantise::decode(cpu, &x.q));
            let (a, b) = (a.view::<bf16>(), b.view::<bf16>());
            let (mut first, mut products) = (0, Vec::new());
            for (rows, c) in ends.iter().zip(dw.write::<f32>().chunks_mut(size.max(1))) {
                let blocks = rows.len().div_ceil(TILE);
                let scale = View::new(&a_scale[first * out..][..blocks * out], blocks, out).t();
                let scales = Scales { a: scale, b: &b_scale[first * inner..][..blocks * inner] };
                first += blocks;
                let (a, b) = (a.slice(rows.start, rows.end).t(), b.slice(rows.start, rows.end));
                products.push(Promoted { a, b: b.into(), scales, c });
            }
            cpu.gemm.promoted(products, write);
        }
        _ => panic!("low_gradient: expected dy and x in one precision, found {dy:?} and {x:?}"),
    }
}

/// `[M, ⌈K/128⌉]`, for a product over columns.
fn row_scales(x: &Scaled, segments: Option<&Segments>) -> Vec<f32> {
    let (scale, across, blocks) = (x.scale.read::<f32>(), x.scale.cols(), x.q.cols().div_ceil(TILE));
    assert!(x.how.tile != Tile::Column, "low_gemm: expected scales along rows of a, found tiles {:?}", x.how.tile);
    let mut all = Vec::with_capacity(x.q.rows() * blocks);
    for (band, rows) in x.how.tile.bands(x.q.rows(), segments_of(x, segments)).into_iter().enumerate() {
        let scale = &scale[band * across..][..across];
        for _ in rows {
            all.extend((0..blocks).map(|b| scale[b.min(across - 1)]));
        }
    }
    all
}

/// `[blocks of 128 rows, cut at segments; D]`, for a product over rows.
fn column_scales(x: &Scaled, segments: Option<&Segments>) -> Vec<f32> {
    let (scale, across, cols) = (x.scale.read::<f32>(), x.scale.cols(), x.q.cols());
    let width = x.how.tile.width(cols);
    assert!(x.how.tile != Tile::Row, "low_gradient: expected scales along columns, found tiles {:?}", x.how.tile);
    let bands = Tile::Column.bands(x.q.rows(), segments);
    let one = x.how.tile == Tile::Tensor;
    (0..bands.len())
        .flat_map(|band| {
            let scale = &scale[if one { 0 } else { band * across }..][..across];
            (0..cols).map(move |j| scale[j / width])
        })
        .collect()
}

/// The segments that cut the tiles of x: one scale for the whole tensor ignores segments.
fn segments_of<'a>(x: &Scaled, segments: Option<&'a Segments>) -> Option<&'a Segments> {
    segments.filter(|_| x.how.tile != Tile::Tensor)
}

/// Lowers `w`, and keeps the result until `w` is written.
fn lowered(cpu: &Cpu, w: &Tensor, lowering: Lowering, experts: usize) -> Arc<Lowered> {
    let make = |old: Option<Lowered>| {
        let mut matrices = old.map_or_else(Vec::new, |old| old.matrices);
        matrices.resize_with(experts, Matrix::default);
        let (out, inner) = (w.rows() / experts, w.cols());
        let values = match lowering {
            Lowering::Bf16 => quantise::round(cpu, w),
            Lowering::Fp8(how) => {
                let rows = Segments::of_counts(&vec![out; experts]);
                let (scaled, _) = quantise::quantise(cpu, w, how, Some(&rows));
                let (scale, across) = (scaled.scale.read::<f32>(), scaled.scale.cols());
                let height = if how.tile == Tile::Tensor { out.max(1) } else { TILE };
                let (bands, width) = (out.div_ceil(height), how.tile.width(inner));
                for (matrix, scale) in matrices.iter_mut().zip(scale.chunks_exact(bands * across)) {
                    let at = |i: usize, j: usize| scale[i / height * across + j / width];
                    let blocks = |len: usize| (0..len).step_by(TILE);
                    matrix.nt.scale.clear();
                    matrix.nt.scale.extend(blocks(inner).flat_map(|j| (0..out).map(move |i| at(i, j))));
                    matrix.nn.scale.clear();
                    matrix.nn.scale.extend(blocks(out).flat_map(|i| (0..inner).map(move |j| at(i, j))));
                }
                quantise::decode(cpu, &scaled.q)
            }
        };
        let pieces = values.read::<bf16>().chunks_exact((out * inner).max(1));
        let sides = matrices.iter_mut().zip(pieces).flat_map(|(matrix, values)| {
            let view = View::new(values, out, inner);
            [(&mut matrix.nt.packed, view.t()), (&mut matrix.nn.packed, view)]
        });
        cpu.gemm.pack_all(sides);
        Lowered { lowering, matrices }
    };
    w.derive(|lowered| lowered.lowering == lowering, make)
}

/// See [`Backend::lower`](crate::Backend::lower).
pub(super) fn lower(
    cpu: &Cpu,
    x: &Tensor,
    how: Option<Quantiser>,
    segments: Option<&Segments>,
    saturated: &mut Tensor,
) -> Operand {
    assert!(x.dtype() == DType::F32, "lower: expected F32, found {:?}", x.dtype());
    match how {
        None => Operand::Plain(quantise::round(cpu, x)),
        Some(how) => {
            let segments = segments.filter(|_| how.tile != Tile::Tensor);
            let (scaled, is_finite) = quantise::quantise(cpu, x, how, segments);
            if !is_finite {
                saturated.write::<u32>()[0] = 1;
            }
            Operand::Fp8(scaled)
        }
    }
}
