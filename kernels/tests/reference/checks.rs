//! One draw of each operation: its inputs, the call, and what is compared.

pub(crate) use super::transfers::{copy, download, download_beside, hold_back, upload};
use super::*;

const WRITES: [Write; 2] = [Write::Set, Write::Add];
const QUANTISER: Quantiser = Quantiser { tile: Tile::Row, role: Role::Activation, power_of_two: false };

pub(crate) fn gemm(d: &mut Trial) {
    let layout = d.pick(&[Layout::Nt, Layout::Nn, Layout::Tn]);
    let [m, n, k] = [60, 200, 500].map(|most| d.up_to(most));
    let (a, b) = match layout {
        Layout::Nt => ([m, k], [n, k]),
        Layout::Nn => ([m, k], [k, n]),
        Layout::Tn => ([k, m], [k, n]),
    };
    let (a, b, mut c) = (d.tensor(&a), d.tensor(&b), d.tensor(&[m, n]));
    d.device.gemm(layout, &a, &b, &mut c, d.pick(&WRITES));
    d.product("c", &c);
}

pub(crate) fn prepare(d: &mut Trial) {
    let [m, n, k] = [60, 200, 300].map(|most| d.up_to(most));
    let (a, b, mut c) = (d.tensor(&[m, k]), d.tensor(&[n, k]), d.tensor(&[m, n]));
    d.device.prepare(&b);
    d.device.gemm(Layout::Nt, &a, &b, &mut c, d.pick(&WRITES));
    d.product("c", &c);
}

pub(crate) fn grouped_gemm(d: &mut Trial) {
    let segments = d.segments(60).on(d.device);
    let [out, inner] = [100, 100].map(|most| d.up_to(most));
    let w = d.tensor(&[segments.count(), out, inner]);
    let (layout, k, n) = d.pick(&[(Layout::Nt, inner, out), (Layout::Nn, out, inner)]);
    let (a, mut c) = (d.tensor(&[segments.rows(), k]), d.tensor(&[segments.rows(), n]));
    if d.pick(&[true, false]) {
        d.device.prepare(&w);
    }
    d.device.grouped_gemm(layout, &a, &w, &segments, &mut c, d.pick(&WRITES));
    d.product("c", &c);
}

pub(crate) fn grouped_gradient(d: &mut Trial) {
    let segments = d.segments(60).on(d.device);
    let [out, inner] = [100, 100].map(|most| d.up_to(most));
    let (dy, x) = (d.tensor(&[segments.rows(), out]), d.tensor(&[segments.rows(), inner]));
    let mut dw = d.tensor(&[segments.count(), out, inner]);
    d.device.grouped_gradient(&dy, &x, &segments, &mut dw, d.pick(&WRITES));
    d.product("dw", &dw);
}

pub(crate) fn lower(d: &mut Trial) {
    let host = d.segments(200);
    let (n, cols, segments) = (host.rows(), d.up_to(300), host.on(d.device));
    let mut x = d.tensor(&[n, cols]);
    let special = [0.0, -0.0, 1e6, 1e-30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for _ in 0..d.up_to(4) - 1 {
        let (from, value) = (d.up_to((n * cols).max(1)) - 1, d.pick(&special));
        let len = d.up_to(2 * cols);
        x = d.changed(x, |x: &mut [f32]| x.iter_mut().skip(from).take(len).for_each(|x| *x = value));
    }
    let is_cut = d.pick(&[true, false]);
    let (segments, host) = (is_cut.then_some(&segments), is_cut.then_some(&host));
    for tile in [Tile::Row, Tile::Column, Tile::Block, Tile::Tensor] {
        let role = d.pick(&[Role::Activation, Role::Weight, Role::Gradient]);
        let how = Quantiser { tile, role, power_of_two: d.pick(&[true, false]) };
        let mut saturated = d.flag();
        match d.device.lower(&x, Some(how), segments, &mut saturated) {
            Operand::Fp8(lowered) => {
                assert_eq!(lowered.how, how);
                let (bytes, scales) = as_on_the_cpu(d, &lowered, [n, cols], host);
                d.same(&format!("bytes, {tile:?}"), bytes);
                d.same(&format!("scale, {tile:?}"), scales);
                d.same_tensor("saturated", &saturated);
            }
            Operand::Plain(_) => panic!("not quantised"),
        }
    }
    match d.device.lower(&x, None, segments, &mut d.flag()) {
        Operand::Plain(x) => {
            let (x, pitch) = (d.device.download(&x), x.cols());
            // a NaN stays a NaN; which one is the device's choice
            let bits = |x: &bf16| if x.is_nan() { u64::MAX } else { x.to_bits().into() };
            let bits = x.read::<bf16>().chunks(pitch).flat_map(|row| row[..cols].iter().map(bits));
            d.same("bf16", bits.collect::<Vec<u64>>());
        }
        Operand::Fp8(_) => panic!("quantised"),
    }
}

/// The bytes `[n, cols]` and the bits of the scales of an operand, whose layout may be the device's own: rows padded,
/// or transposed with the tokens of each segment padded to whole tiles, and room for more bands of scales than there
/// are.
fn as_on_the_cpu(d: &Trial, x: &Scaled, [n, cols]: [usize; 2], segments: Option<&Segments>) -> (Vec<u64>, Vec<u64>) {
    let whole = Segments::of_counts(&[n]);
    let segments = segments.filter(|_| x.how.tile != Tile::Tensor).unwrap_or(&whole);
    let is_turned = x.how.tile == Tile::Column && matches!(x.q.device(), Device::Cuda(_));
    let (q, pitch) = (d.device.download(&x.q), x.q.cols());
    let (q, mut bands, mut bytes) = (q.read::<fp8::E4m3>(), 0, Vec::new());
    for rows in segments.iter() {
        for (i, row) in rows.clone().enumerate() {
            let at = |j: usize| if is_turned { j * pitch + bands * fp8::TILE + i } else { row * pitch + j };
            bytes.extend((0..cols).map(|j| u64::from(q[at(j)].0)));
        }
        bands += rows.len().div_ceil(fp8::TILE);
    }
    let bands = match x.how.tile {
        Tile::Row => n,
        Tile::Tensor => 1,
        Tile::Column | Tile::Block => bands,
    };
    let scales = d.values(&x.scale)[..bands * x.scale.cols()].iter().map(|x| x.to_bits()).collect();
    (bytes, scales)
}

/// Both forms of a matrix of `cols` columns, as `lower` makes them of the rows of `segments`.
fn both_forms(
    d: &mut Trial,
    host: &Segments,
    cols: usize,
    lower: impl FnOnce(&mut Trial, [Quantiser; 2], Option<&Segments>, &mut Tensor) -> [Operand; 2],
) {
    let segments = host.on(d.device);
    let is_cut = d.pick(&[true, false]);
    let role = |d: &mut Trial| d.pick(&[Role::Activation, Role::Gradient]);
    let how =
        [Tile::Row, Tile::Column].map(|tile| Quantiser { tile, role: role(d), power_of_two: d.pick(&[true, false]) });
    let mut saturated = d.flag();
    for lowered in lower(d, how, is_cut.then_some(&segments), &mut saturated) {
        let Operand::Fp8(lowered) = lowered else { panic!("not quantised") };
        let (bytes, scales) = as_on_the_cpu(d, &lowered, [host.rows(), cols], is_cut.then_some(host));
        d.same("bytes", bytes);
        d.same("scale", scales);
    }
    d.same_tensor("saturated", &saturated);
}

pub(crate) fn lower_both(d: &mut Trial) {
    let (host, cols) = (d.segments(200), d.up_to(300));
    let x = d.tensor(&[host.rows(), cols]);
    let x = d.changed(x, |x: &mut [f32]| x.iter_mut().step_by(997).for_each(|x| *x = f32::INFINITY));
    both_forms(d, &host, cols, |d, how, segments, saturated| d.device.lower_both(&x, how, segments, saturated));
}

/// Widths of gates: of whole tiles, for which a device may have kernels of its own, and others.
fn gates(d: &mut Trial) -> usize {
    let any = d.up_to(300);
    d.pick(&[any, fp8::TILE, 2 * fp8::TILE])
}

/// With its first element replaced.
fn starting(d: &Trial, x: Tensor, value: f32) -> Tensor {
    d.changed(x, |x: &mut [f32]| x.iter_mut().take(1).for_each(|x| *x = value))
}

pub(crate) fn swiglu_lower(d: &mut Trial) {
    let (host, f) = (d.segments(200), gates(d));
    let mut h = d.tensor(&[host.rows(), 2 * f]);
    if d.pick(&[true, false]) {
        h = starting(d, h, f32::INFINITY);
    }
    both_forms(d, &host, f, |d, how, segments, saturated| d.device.swiglu_lower(&h, how, segments, saturated));
}

pub(crate) fn swiglu_backward_lower(d: &mut Trial) {
    let (host, f) = (d.segments(200), gates(d));
    let (mut h, mut dy) = (d.tensor(&[host.rows(), 2 * f]), d.tensor(&[host.rows(), f]));
    if d.pick(&[true, false]) {
        // the value's gradient is beyond f32, the gate's is not
        h = d.changed(starting(d, h, 1e5), |h: &mut [f32]| h.iter_mut().skip(f).take(1).for_each(|up| *up = 1e-30));
        dy = starting(d, dy, 3e38);
    }
    both_forms(d, &host, 2 * f, |d, how, segments, saturated| {
        d.device.swiglu_backward_lower(&h, &dy, how, segments, saturated)
    });
}

/// As it is, rounded to bf16, or in FP8 by one of `tiles`.
fn operand(
    d: &mut Trial,
    precision: usize,
    x: Tensor,
    tiles: &[Tile],
    role: Role,
    segments: Option<&Segments>,
) -> Operand {
    let how = Quantiser { tile: d.pick(tiles), role, power_of_two: d.pick(&[true, false]) };
    match precision {
        1 => Operand::Plain(x),
        2 => d.device.lower(&x, None, segments, &mut d.flag()),
        _ => d.device.lower(&x, Some(how), segments, &mut d.flag()),
    }
}

pub(crate) fn low_gemm(d: &mut Trial) {
    let segments = d.segments(150).on(d.device);
    let (n, [out, inner]) = (segments.rows(), [200, 300].map(|most| d.up_to(most)));
    let segments = d.pick(&[true, false]).then_some(&segments);
    let w = match segments {
        Some(segments) => d.tensor(&[segments.count(), out, inner]),
        None => d.tensor(&[out, inner]),
    };
    let (layout, k, cols) = d.pick(&[(Layout::Nt, inner, out), (Layout::Nn, out, inner)]);
    let (a, mut c, precision) = (d.tensor(&[n, k]), d.tensor(&[n, cols]), d.up_to(4));
    let a = operand(d, precision, a, &[Tile::Row, Tile::Block, Tile::Tensor], QUANTISER.role, segments);
    d.device.low_gemm(layout, &a, &w, segments, &mut c, d.pick(&WRITES));
    d.near("c", &c);
}

pub(crate) fn low_gradient(d: &mut Trial) {
    let segments = d.segments(150).on(d.device);
    let (n, [out, inner]) = (segments.rows(), [200, 200].map(|most| d.up_to(most)));
    let segments = d.pick(&[true, false]).then_some(&segments);
    let (dy, x, precision) = (d.tensor(&[n, out]), d.tensor(&[n, inner]), d.up_to(4));
    let tiles = [Tile::Column, Tile::Block, Tile::Tensor];
    let dy = operand(d, precision, dy, &tiles, Role::Gradient, segments);
    let x = operand(d, precision, x, &tiles, Role::Activation, segments);
    let mut dw = match segments {
        Some(segments) => d.tensor(&[segments.count(), out, inner]),
        None => d.tensor(&[out, inner]),
    };
    d.device.low_gradient(&dy, &x, segments, &mut dw, d.pick(&WRITES));
    d.near("dw", &dw);
}

pub(crate) fn rms_norm(d: &mut Trial) {
    let [n, cols] = [200, 500].map(|most| d.up_to(most));
    let (y, rstd) = d.device.rms_norm(&d.tensor(&[n, cols]), &d.tensor(&[cols]), 1e-6);
    d.near("y", &y);
    d.near("rstd", &rstd);
}

pub(crate) fn rms_norm_backward(d: &mut Trial) {
    let [n, cols] = [200, 500].map(|most| d.up_to(most));
    let (x, gain, dy, mut dgain) = (d.tensor(&[n, cols]), d.tensor(&[cols]), d.tensor(&[n, cols]), d.tensor(&[cols]));
    let (_, rstd) = d.device.rms_norm(&x, &gain, 1e-6);
    let dx = d.device.rms_norm_backward(&x, &rstd, &gain, &dy, &mut dgain);
    d.near("dx", &dx);
    d.near("dgain", &dgain);
}

pub(crate) fn add_rms_norm(d: &mut Trial) {
    let [n, cols] = [200, 500].map(|most| d.up_to(most));
    let (mut acc, x) = (d.tensor(&[n, cols]), d.tensor(&[n, cols]));
    let (y, rstd) = d.device.add_rms_norm(&mut acc, &x, &d.tensor(&[cols]), 1e-6);
    d.near("acc", &acc);
    d.near("y", &y);
    d.near("rstd", &rstd);
}

pub(crate) fn rms_norm_backward_add(d: &mut Trial) {
    let [n, cols] = [200, 500].map(|most| d.up_to(most));
    let [x, dy, beside] = [(); 3].map(|_| d.tensor(&[n, cols]));
    let (gain, mut dgain) = (d.tensor(&[cols]), d.tensor(&[cols]));
    let (_, rstd) = d.device.rms_norm(&x, &gain, 1e-6);
    let dx = d.device.rms_norm_backward_add(&x, &rstd, &gain, &dy, &mut dgain, &beside);
    d.near("dx", &dx);
    d.near("dgain", &dgain);
}

pub(crate) fn swiglu(d: &mut Trial) {
    let [n, f] = [200, 100].map(|most| d.up_to(most));
    let y = d.device.swiglu(&d.tensor(&[n, 2 * f]));
    d.near("y", &y);
}

pub(crate) fn swiglu_backward(d: &mut Trial) {
    let [n, f] = [200, 100].map(|most| d.up_to(most));
    let dh = d.device.swiglu_backward(&d.tensor(&[n, 2 * f]), &d.tensor(&[n, f]));
    d.near("dh", &dh);
}

pub(crate) fn rope(d: &mut Trial) {
    let [n, heads, half, offset, rest] = [100, 4, 20, 5, 5].map(|most| d.up_to(most));
    let frequencies: Vec<f32> = (0..half).map(|j| 0.9f32.powi(j as i32)).collect();
    let rope = Rope::new(&frequencies, 300, 1.2, d.pick(&[true, false]));
    let mut x = d.tensor(&[n, heads * (offset + 2 * half + rest)]);
    let positions = d.ids(n, 300);
    d.device.rope(&mut x, heads, offset, &rope.on(d.device), &positions, d.pick(&[true, false]));
    d.near("x", &x);
}

pub(crate) fn bias(d: &mut Trial) {
    let [n, cols] = [300, 150].map(|most| d.up_to(most));
    let mut y = d.tensor(&[n, cols]);
    d.device.bias(&mut y, &d.tensor(&[cols]));
    d.same_tensor("y", &y);
}

pub(crate) fn bias_backward(d: &mut Trial) {
    let [n, cols] = [600, 500].map(|most| d.up_to(most));
    let (dy, mut dbias) = (d.tensor(&[n, cols]), d.tensor(&[cols]));
    d.device.bias_backward(&dy, &mut dbias);
    d.near("dbias", &dbias);
}

pub(crate) fn scale(d: &mut Trial) {
    let shape = [300, 200].map(|most| d.up_to(most));
    let mut x = d.tensor(&shape);
    d.device.scale(&mut x, 1.0 / 0.7, d.pick(&[1.0, 3.0]));
    d.same_tensor("x", &x);
}

pub(crate) fn fill(d: &mut Trial) {
    let n = d.up_to(500);
    for dtype in [d.dtype, DType::U32, DType::Bf16] {
        let mut x = d.device.empty([n].into(), dtype);
        d.device.fill(&mut x, 3.0);
        d.same_tensor("x", &x);
    }
}

pub(crate) fn empty(d: &mut Trial) {
    let shape = [30, 20].map(|most| d.up_to(most));
    let x = d.device.empty(shape.into(), d.dtype);
    assert_eq!((x.shape().dims(), x.dtype()), (&shape[..], d.dtype));
    d.same("elements", [x.len() as u64]);
}

pub(crate) fn cast(d: &mut Trial) {
    let (n, dtype) = (d.up_to(300), d.pick(&[DType::F32, DType::F64, DType::Bf16]));
    let x = d.tensor(&[n]);
    d.same_tensor("x", &d.device.cast(&x, dtype));
    d.same_tensor("x of e4m3", &d.device.cast(&d.device.cast(&x, DType::E4m3), DType::F32));
}

pub(crate) fn collect(d: &mut Trial) {
    let [n, m] = [30, 20].map(|most| d.up_to(most));
    let (x, ids, sum) = (d.tensor(&[n, 2]), d.ids(m, 100), d.numbers(1));
    let all = d.device.collect(&[&x, &ids, &sum]);
    assert_eq!((all.len(), all.dtype()), (2 * n + m + 1, DType::F64));
    d.same_tensor("all", &all);
}

pub(crate) fn add(d: &mut Trial) {
    let shape = [300, 200].map(|most| d.up_to(most));
    let mut acc = d.tensor(&shape);
    d.device.add(&mut acc, &d.tensor(&shape));
    d.same_tensor("acc", &acc);
}

pub(crate) fn split(d: &mut Trial) {
    let [n, p, q] = [300, 90, 90].map(|most| d.up_to(most));
    let (a, b) = d.device.split(&d.tensor(&[n, p + q]), p);
    d.same_tensor("a", &a);
    d.same_tensor("b", &b);
}

pub(crate) fn join(d: &mut Trial) {
    let [n, p, q] = [300, 90, 90].map(|most| d.up_to(most));
    let x = d.device.join(&d.tensor(&[n, p]), &d.tensor(&[n, q]));
    d.same_tensor("x", &x);
}

fn attention_inputs(d: &mut Trial) -> (AttentionShape, Documents, [Tensor; 3]) {
    let [heads, nope, rope, value] = [3, 12, 6, 20].map(|most| d.up_to(most));
    let (mut s, documents) = (AttentionShape { heads, nope, rope, value, scale: 0.3 }, d.documents());
    let n = documents.rows();
    if n < 100 && d.pick(&[true, false]) {
        // wider than a block of threads
        s = AttentionShape { nope: nope + 128, value: value + 128, scale: 0.1, ..s };
    }
    let AttentionShape { heads, nope, rope, value, .. } = s;
    let inputs = [heads * (nope + rope), heads * (nope + value), rope].map(|cols| d.tensor(&[n, cols]));
    (s, documents, inputs)
}

pub(crate) fn attention(d: &mut Trial) {
    let (s, documents, [q, kv, k_rope]) = attention_inputs(d);
    let (o, _) = d.device.attention(&s, &q, &kv, &k_rope, &documents);
    d.near("o", &o);
}

pub(crate) fn attention_backward(d: &mut Trial) {
    let (s, documents, [q, kv, k_rope]) = attention_inputs(d);
    let (o, softmax) = d.device.attention(&s, &q, &kv, &k_rope, &documents);
    let d_o = d.tensor(o.shape().dims());
    let (dq, dkv, dk_rope) = d.device.attention_backward(&s, &q, &kv, &k_rope, &o, &softmax, &d_o, &documents);
    d.near("dq", &dq);
    d.near("dkv", &dkv);
    d.near("dk_rope", &dk_rope);
}

/// Rows of each request, the positions of its cache, those or more, and pages with room for them: of one position each,
/// of many, or one page for all, and sometimes a page that has none yet.
fn requests(d: &mut Trial, width: usize) -> Vec<(std::ops::Range<usize>, usize, Vec<Tensor>)> {
    let mut next = 0;
    let mut request = |d: &mut Trial| {
        let rows = next..next + d.up_to(70);
        next = rows.end;
        let positions = rows.len() + d.up_to(40) - 1;
        let some = d.up_to(50);
        let page_rows = d.pick(&[1, some, positions.div_ceil(2), positions, positions + 5, 16]);
        let pages = positions.div_ceil(page_rows) + d.up_to(2) - 1;
        let pages = (0..pages).map(|_| d.tensor(&[page_rows, width])).collect();
        (rows, positions, pages)
    };
    (0..d.up_to(4)).map(|_| request(d)).collect()
}

fn cached(requests: &[(std::ops::Range<usize>, usize, Vec<Tensor>)]) -> (usize, Vec<CachedRows<'_>>) {
    let count = requests.last().map_or(0, |(rows, ..)| rows.end);
    let rows = requests.iter().map(|(rows, length, pages)| CachedRows { rows: rows.clone(), pages, length: *length });
    (count, rows.collect())
}

pub(crate) fn append(d: &mut Trial) {
    let [n, p, q, at, rest] = [20, 10, 10, 10, 10].map(|most| d.up_to(most));
    let (a, b) = (d.tensor_f32(&[n, p]), d.tensor_f32(&[n, q]));
    let first = d.up_to(n) - 1;
    let mut page = d.tensor_f32(&[at + n + rest, p + q]);
    d.device.append(&mut page, at, &[&a, &b], first..n);
    d.same_tensor("page", &page);
}

pub(crate) fn latent_attention(d: &mut Trial) {
    let [heads, nope, rope, value, latent] = [3, 12, 6, 20, 20].map(|most| d.up_to(most));
    let s = AttentionShape { heads, nope, rope, value, scale: 0.1 };
    let requests = requests(d, latent + rope);
    let (n, requests) = cached(&requests);
    let (q, kv_b) = (d.tensor(&[n, heads * (nope + rope)]), d.tensor(&[heads * (nope + value), latent]));
    let o = d.device.latent_attention(&s, &q, &kv_b, &requests);
    d.near("o", &o);
}

fn grouped_shape(d: &mut Trial) -> GroupedShape {
    let [kv_heads, queries, dim] = [3, 4, 20].map(|most| d.up_to(most));
    GroupedShape { heads: kv_heads * queries, kv_heads, dim, scale: 0.3 }
}

fn grouped_inputs(d: &mut Trial) -> (GroupedShape, Documents, [Tensor; 3]) {
    let (s, documents) = (grouped_shape(d), d.documents());
    let n = documents.rows();
    let inputs = [s.heads, s.kv_heads, s.kv_heads].map(|heads| d.tensor(&[n, heads * s.dim]));
    (s, documents, inputs)
}

pub(crate) fn grouped_attention(d: &mut Trial) {
    let (s, documents, [q, k, v]) = grouped_inputs(d);
    let (o, _) = d.device.grouped_attention(&s, &q, &k, &v, &documents);
    d.near("o", &o);
}

pub(crate) fn grouped_attention_backward(d: &mut Trial) {
    let (s, documents, [q, k, v]) = grouped_inputs(d);
    let (o, softmax) = d.device.grouped_attention(&s, &q, &k, &v, &documents);
    let d_o = d.tensor(o.shape().dims());
    let (dq, dk, dv) = d.device.grouped_attention_backward(&s, &q, &k, &v, &o, &softmax, &d_o, &documents);
    d.near("dq", &dq);
    d.near("dk", &dk);
    d.near("dv", &dv);
}

pub(crate) fn cached_attention(d: &mut Trial) {
    let mut s = grouped_shape(d);
    if d.pick(&[true, false, false]) {
        s = GroupedShape { dim: s.dim + 128, scale: 0.1, ..s }; // wider than a block of threads
    }
    let requests = requests(d, 2 * s.kv_heads * s.dim);
    let (n, requests) = cached(&requests);
    let o = d.device.cached_attention(&s, &d.tensor(&[n, s.heads * s.dim]), &requests);
    d.near("o", &o);
}

pub(crate) fn embedding(d: &mut Trial) {
    let [n, v, cols] = [300, 100, 50].map(|most| d.up_to(most));
    let x = d.device.embedding(&d.ids(n, v), &d.tensor(&[v, cols]));
    d.same_tensor("x", &x);
}

pub(crate) fn embedding_backward(d: &mut Trial) {
    let [n, v, cols] = [300, 100, 500].map(|most| d.up_to(most));
    let mut dw = d.tensor(&[v, cols]);
    d.device.embedding_backward(&d.ids(n, v), &d.tensor(&[n, cols]), &mut dw);
    d.same_tensor("dw", &dw);
}

pub(crate) fn head(d: &mut Trial) {
    let [n, v, cols] = [100, 300, 40].map(|most| d.up_to(most));
    let (x, w, targets) = (d.tensor(&[n, cols]), d.tensor(&[v, cols]), d.ids(n, v));
    let head = d.device.head(&x, &w, &targets);
    d.near("logp", &head.logp);
    d.near("lse", &head.lse);
}

pub(crate) fn head_backward(d: &mut Trial) {
    let [n, v, cols] = [100, 300, 40].map(|most| d.up_to(most));
    let (x, w, targets, mut dw) = (d.tensor(&[n, cols]), d.tensor(&[v, cols]), d.ids(n, v), d.tensor(&[v, cols]));
    let head = d.device.head(&x, &w, &targets);
    let (dlogp, dlse) = (d.numbers(n), d.numbers(n));
    let dx = d.device.head_backward(head, &x, &w, &targets, &dlogp, &dlse, &mut dw);
    d.near("dx", &dx);
    d.near("dw", &dw);
}

pub(crate) fn draw(d: &mut Trial) {
    let [n, v] = [20, 700].map(|most| d.up_to(most));
    let mut logits = d.tensor_f32(&[n, v]);
    if d.pick(&[true, false]) {
        // few different ones: of equal tokens the first stands before the others
        logits = d.changed(logits, |x: &mut [f32]| x.iter_mut().for_each(|x| *x = x.round()));
    }
    let draws: Vec<Draw> = (0..d.up_to(40))
        .map(|place| Draw {
            row: d.up_to(n) - 1,
            temperature: d.pick(&[0.0, 1.0, 0.6, 1.7]),
            top_p: d.pick(&[1.0, 0.9, 0.2]),
            top_k: d.pick(&[0, 1, 7]),
            seed: d.up_to(1000) as u64,
            place: place as u64,
        })
        .collect();
    let (tokens, logp) = d.device.draw(&logits, &draws);
    d.same_tensor("tokens", &tokens);
    d.near("logp", &logp);
}

fn routed(d: &mut Trial) -> (Router, Routing) {
    let (expert_groups, largest) = (d.up_to(4), d.pick(&[1, 6, 60, 60]));
    let size = d.up_to(largest);
    let node_limit = d.up_to(expert_groups);
    let top_k = d.up_to((node_limit * size).min(6));
    let (normalise, experts) = (d.pick(&[true, false]), expert_groups * size);
    let router = Router { experts, expert_groups, node_limit, top_k, normalise, scale: 2.5 };
    let n = d.up_to(200);
    let (logits, bias) = match d.pick(&[true, false]) {
        true => (d.tensor(&[n, experts]), d.tensor(&[experts])),
        // few different scores: of equal ones the first experts are chosen
        false => {
            let levels = d.ids(n * experts, 5).reshape([n, experts]);
            (d.device.cast(&levels, d.dtype), d.device.zeros([experts], d.dtype))
        }
    };
    let routing = d.device.route(&router, &logits, &bias);
    (router, routing)
}

pub(crate) fn route(d: &mut Trial) {
    let (_, r) = routed(d);
    for (what, ids) in [("ids", &r.ids), ("tokens", &r.tokens), ("slots", &r.slots)] {
        d.same_tensor(what, ids);
    }
    d.same_tensor("segments", r.segments.ends());
    assert_eq!(r.segments.rows(), r.ids.len());
    let [ids, slots, tokens, ends] = [&r.ids, &r.slots, &r.tokens, r.segments.ends()].map(|x| d.values(x));
    for (choice, (&id, &slot)) in ids.iter().zip(&slots).enumerate() {
        let start = if id == 0.0 { 0.0 } else { ends[id as usize - 1] };
        let has_own = start <= slot && slot < ends[id as usize];
        assert!(has_own, "choice {choice} has its row among those of another expert");
        assert_eq!(tokens[slot as usize] as usize, choice / r.weights.cols());
    }
    d.same_tensor("scores", &r.scores);
    d.near("weights", &r.weights);
}

pub(crate) fn route_backward(d: &mut Trial) {
    let (router, r) = routed(d);
    let (dweights, dscores) = (d.tensor(r.weights.shape().dims()), d.tensor(r.scores.shape().dims()));
    // the one weight of a token is constant when normalised: roundings cannot be compared with a gradient of 0
    let dscores = (d.pick(&[true, false]) || router.top_k == 1).then_some(&dscores);
    let dlogits = d.device.route_backward(&router, &r, &dweights, dscores);
    d.near("dlogits", &dlogits);
}

pub(crate) fn balance(d: &mut Trial) {
    let (router, r) = routed(d);
    let (n, counted) = (r.weights.rows(), d.pick(&[Counted::Scores, Counted::Routes]));
    let cut = d.up_to(n) - 1;
    let bounds = DocumentBounds::of_lengths(&[cut, 0, n - cut]);
    let documents = d.pick(&[true, false]).then(|| Documents::new(d.device, bounds));
    let mut loss = d.numbers(1);
    let dscores = d.device.balance(&router, &r, counted, documents.as_ref(), 0.3, &mut loss);
    d.near_to("loss", &loss, 1000.0); // up to 200 tokens of 240 experts: 48,000 terms, of which √ is 219
    if router.top_k < router.experts {
        d.near("dscores", &dscores); // 0 if a token has all experts: roundings cannot be compared with that
    }
}

pub(crate) fn count(d: &mut Trial) {
    let segments = d.segments(60).on(d.device);
    let mut counts = d.ids(segments.count(), 9);
    d.device.count(&segments, &mut counts);
    d.same_tensor("counts", &counts);
}

pub(crate) fn balance_bias(d: &mut Trial) {
    let experts = d.up_to(20);
    let (mut bias, counts) = (d.tensor_f32(&[experts]), d.ids(experts, 4));
    d.device.balance_bias(&mut bias, &counts, 1e-3);
    d.same_tensor("bias", &bias);
}

pub(crate) fn gather(d: &mut Trial) {
    let [n, rows, cols] = [300, 400, 50].map(|most| d.up_to(most));
    let (x, rows) = (d.tensor(&[n, cols]), d.ids(rows, n));
    d.same_tensor("y", &d.device.gather(&x, &rows));
}

pub(crate) fn dispatch(d: &mut Trial) {
    let ((_, r), cols) = (routed(d), d.up_to(300));
    let x = d.tensor(&[r.weights.rows(), cols]);
    d.same_tensor("rows", &d.device.dispatch(&x, &r));
}

pub(crate) fn gather_backward(d: &mut Trial) {
    let ((_, r), cols) = (routed(d), d.up_to(300));
    let mut dx = d.tensor(&[r.weights.rows(), cols]);
    d.device.gather_backward(&d.tensor(&[r.tokens.len(), cols]), &r.slots, &mut dx);
    d.same_tensor("dx", &dx);
}

pub(crate) fn combine(d: &mut Trial) {
    let ((_, r), cols) = (routed(d), d.up_to(300));
    let mut y = d.tensor(&[r.weights.rows(), cols]);
    d.device.combine(&d.tensor(&[r.tokens.len(), cols]), &r, &mut y);
    d.near("y", &y);
}

pub(crate) fn combine_backward(d: &mut Trial) {
    let ((_, r), cols) = (routed(d), d.up_to(500));
    let (rows, dy) = (d.tensor(&[r.tokens.len(), cols]), d.tensor(&[r.weights.rows(), cols]));
    let (drows, dweights) = d.device.combine_backward(&rows, &r, &dy);
    d.near("drows", &drows);
    d.near("dweights", &dweights);
}

pub(crate) fn square_sum(d: &mut Trial) {
    let n = d.up_to(100_000);
    let mut sum = d.numbers(1);
    d.device.square_sum(&d.tensor(&[n]), &mut sum);
    d.near_to("sum", &sum, 1000.0); // up to 100,000 terms, of which √ is 316
}

pub(crate) fn total(d: &mut Trial) {
    let n = d.up_to(3000);
    let (x, mut sums) = (d.numbers(n), d.numbers(3));
    d.device.total(&x, d.pick(&[true, false]), &mut sums, 1);
    d.same_tensor("sums", &sums);
}

pub(crate) fn clip(d: &mut Trial) {
    let sum = d.numbers(1);
    let sum = d.values(&sum)[0].abs() * d.pick(&[0.1, 10.0]);
    let scale = d.device.clip(&d.device.numbers(&[sum]), 1.0);
    assert!(d.values(&scale)[0] <= 1.0);
    d.same_tensor("scale", &scale);
}

pub(crate) fn average(d: &mut Trial) {
    let n = d.up_to(50_000);
    let mut acc = d.tensor(&[n]);
    d.device.average(&mut acc, &d.tensor(&[n]), 0.9);
    d.near("acc", &acc);
}

pub(crate) fn adamw(d: &mut Trial) {
    let n = d.up_to(20_000);
    let (m, v) = (d.tensor(&[n]), d.tensor(&[n]));
    let v = match d.dtype {
        DType::F64 => d.changed(v, |v: &mut [f64]| v.iter_mut().for_each(|v| *v = v.abs())),
        _ => d.changed(v, |v: &mut [f32]| v.iter_mut().for_each(|v| *v = v.abs())),
    };
    adamw_step(d, m, v, ROUNDINGS);
}

pub(crate) fn adamw_step(d: &mut Trial, mut m: Tensor, mut v: Tensor, roundings_of_moments: f64) {
    let (mut w, dw, step) = (d.tensor(&[m.len()]), d.tensor(&[m.len()]), d.up_to(1000) as u64);
    let hyper = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, step };
    d.device.adamw(&hyper, &mut w, &dw, &d.device.numbers(&[0.5]), &mut m, &mut v);
    d.near("w", &w);
    d.near_to("m", &m, roundings_of_moments);
    d.near_to("v", &v, roundings_of_moments);
}

/// Moments are rounded to bf16, and a value on the edge may go either way: one step of bf16 is 2⁻⁸, or 2¹⁶
/// roundings of f32.
pub(crate) fn adamw_in_bf16(d: &mut Trial) {
    let n = d.up_to(3000);
    let (m, v) = (d.tensor(&[n]), d.tensor(&[n]));
    let v = d.changed(v, |v: &mut [f32]| v.iter_mut().for_each(|v| *v = v.abs()));
    let [m, v] = [m, v].map(|x| d.device.cast(&x, DType::Bf16));
    adamw_step(d, m, v, f64::from(1 << 16));
}
