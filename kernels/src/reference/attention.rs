//! Causal attention: every form is [`attend`] on the queries, keys and values of one head.

use crate::backend::{AttentionShape, CachedRows, GroupedShape};
use crate::document_bounds::Documents;
use crate::dtype::{DType, Real};
use crate::tensor::Tensor;
use std::ops::Range;

/// Rows of one head.
type Rows<T> = Vec<Vec<T>>;

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::ZERO, |sum, (&a, &b)| sum + a * b)
}

/// Columns `first..first + cols` of some rows of a matrix.
fn part<T: Real>(x: &Tensor, rows: Range<usize>, first: usize, cols: usize) -> Rows<T> {
    let width = x.cols();
    rows.map(|row| x.read::<T>()[row * width + first..][..cols].to_vec()).collect()
}

/// The same columns, written.
fn put<T: Real>(x: &mut Tensor, first_row: usize, first: usize, part: &[Vec<T>]) {
    let width = x.cols();
    for (i, row) in part.iter().enumerate() {
        x.write::<T>()[(first_row + i) * width + first..][..row.len()].copy_from_slice(row);
    }
}

/// `p_ij = exp(s_ij) / Σ_j exp(s_ij)` of `s_ij = scale·q_i·k_j`, over the keys that query i sees: up to its own
/// position. The queries stand at the last positions.
fn probabilities<T: Real>(q: &Rows<T>, k: &Rows<T>, scale: T) -> Rows<T> {
    let before = k.len() - q.len();
    let row = |i: usize| {
        let scores: Vec<T> = k[..=before + i].iter().map(|k| scale * dot(&q[i], k)).collect();
        let max = scores.iter().fold(T::LOWEST, |max, &s| if s > max { s } else { max });
        let exp: Vec<T> = scores.iter().map(|&s| (s - max).exp_below()).collect();
        let total = exp.iter().fold(T::ZERO, |sum, &e| sum + e);
        exp.iter().map(|&e| e / total).collect()
    };
    (0..q.len()).map(row).collect()
}

/// `o_i = Σ_j p_ij·v_j`
fn attend<T: Real>(q: &Rows<T>, k: &Rows<T>, v: &Rows<T>, scale: T) -> Rows<T> {
    let p = probabilities(q, k, scale);
    let sum = |p: &Vec<T>, c: usize| p.iter().zip(v).fold(T::ZERO, |sum, (&p, v)| sum + p * v[c]);
    p.iter().map(|p| (0..v[0].len()).map(|c| sum(p, c)).collect()).collect()
}

/// `dv_j = Σ_i p_ij·do_i`, `ds_ij = p_ij·(do_i·v_j − Σ_l p_il·do_i·v_l)`, `dq_i = scale·Σ_j ds_ij·k_j`,
/// `dk_j = scale·Σ_i ds_ij·q_i`
fn attend_backward<T: Real>(q: &Rows<T>, k: &Rows<T>, v: &Rows<T>, scale: T, d_o: &Rows<T>) -> [Rows<T>; 3] {
    let zeros = |x: &Rows<T>| -> Rows<T> { x.iter().map(|row| vec![T::ZERO; row.len()]).collect() };
    let (mut dq, mut dk, mut dv) = (zeros(q), zeros(k), zeros(v));
    for (i, p) in probabilities(q, k, scale).iter().enumerate() {
        let dp: Vec<T> = v.iter().take(p.len()).map(|v| dot(&d_o[i], v)).collect();
        let mean = dot(p, &dp);
        for j in 0..p.len() {
            let ds = scale * p[j] * (dp[j] - mean);
            dv[j].iter_mut().zip(&d_o[i]).for_each(|(dv, &d_o)| *dv += p[j] * d_o);
            dq[i].iter_mut().zip(&k[j]).for_each(|(dq, &k)| *dq += ds * k);
            dk[j].iter_mut().zip(&q[i]).for_each(|(dk, &q)| *dk += ds * q);
        }
    }
    [dq, dk, dv]
}

/// Queries, keys and values of one head of multi-head latent attention: the rotary part of a key is shared by all
/// heads.
fn latent_head<T: Real>(
    s: &AttentionShape,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    rows: &Range<usize>,
    head: usize,
) -> [Rows<T>; 3] {
    let (qk, width) = (s.nope + s.rope, s.nope + s.value);
    let mut k = part(kv, rows.clone(), head * width, s.nope);
    let shared = part(k_rope, rows.clone(), 0, s.rope);
    k.iter_mut().zip(&shared).for_each(|(k, shared)| k.extend(shared));
    [part(q, rows.clone(), head * qk, qk), k, part(kv, rows.clone(), head * width + s.nope, s.value)]
}

pub(super) fn attention<T: Real>(
    s: &AttentionShape,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    documents: &Documents,
) -> Tensor {
    let mut o = Tensor::zeros([q.rows(), s.heads * s.value], T::DTYPE);
    for (rows, head) in documents.iter().flat_map(|rows| (0..s.heads).map(move |head| (rows.clone(), head))) {
        let [q, k, v] = latent_head::<T>(s, q, kv, k_rope, &rows, head);
        put(&mut o, rows.start, head * s.value, &attend(&q, &k, &v, T::of(s.scale)));
    }
    o
}

pub(super) fn attention_backward<T: Real>(
    s: &AttentionShape,
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    d_o: &Tensor,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    let [mut dq, mut dkv, mut dk_rope] = [q, kv, k_rope].map(|x| Tensor::zeros(x.shape(), T::DTYPE));
    for (rows, head) in documents.iter().flat_map(|rows| (0..s.heads).map(move |head| (rows.clone(), head))) {
        let [q, k, v] = latent_head::<T>(s, q, kv, k_rope, &rows, head);
        let d_o = part(d_o, rows.clone(), head * s.value, s.value);
        let [of_q, of_k, of_v] = attend_backward(&q, &k, &v, T::of(s.scale), &d_o);
        put(&mut dq, rows.start, head * (s.nope + s.rope), &of_q);
        for (i, (of_k, of_v)) in of_k.iter().zip(of_v).enumerate() {
            let (own, shared) = of_k.split_at(s.nope);
            put(&mut dkv, rows.start + i, head * (s.nope + s.value), &[[own, &of_v].concat()]);
            let sum = &mut dk_rope.write::<T>()[(rows.start + i) * s.rope..][..s.rope];
            sum.iter_mut().zip(shared).for_each(|(sum, &dk)| *sum += dk);
        }
    }
    (dq, dkv, dk_rope)
}

/// The cached positions, in order: position p is row `p % page rows` of page `p / page rows`.
fn positions(request: &CachedRows) -> Rows<f64> {
    let of = |position: usize| {
        let rows = request.pages[0].rows();
        let (page, row) = (&request.pages[position / rows], position % rows);
        page.read::<f32>()[row * page.cols()..][..page.cols()].iter().map(|&x| x.into()).collect()
    };
    (0..request.length).map(of).collect()
}

/// Keys and values are those of training, made from the cached latents: `[k | v] = kv_b·latent` per head.
pub(super) fn latent_attention(s: &AttentionShape, q: &Tensor, kv_b: &Tensor, requests: &[CachedRows]) -> Tensor {
    let (latent, qk, width) = (kv_b.cols(), s.nope + s.rope, s.nope + s.value);
    let (q, kv_b) = (q.cast(DType::F64), kv_b.cast(DType::F64));
    let mut o = Tensor::zeros([q.rows(), s.heads * s.value], DType::F64);
    for (request, head) in requests.iter().flat_map(|r| (0..s.heads).map(move |head| (r, head))) {
        let rows = &request.rows;
        let up = part::<f64>(&kv_b, head * width..(head + 1) * width, 0, latent);
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for position in positions(request) {
            let (latent, rope) = position.split_at(latent);
            let kv: Vec<f64> = up.iter().map(|up| dot(up, latent)).collect();
            k.push([&kv[..s.nope], rope].concat());
            v.push(kv[s.nope..].to_vec());
        }
        put(&mut o, rows.start, head * s.value, &attend(&part(&q, rows.clone(), head * qk, qk), &k, &v, s.scale));
    }
    o.cast(DType::F32)
}

/// Queries, keys and values of one head of grouped-query attention.
fn grouped_head<T: Real>(s: &GroupedShape, [q, k, v]: [&Tensor; 3], rows: &Range<usize>, head: usize) -> [Rows<T>; 3] {
    let column = head / (s.heads / s.kv_heads) * s.dim;
    [(q, head * s.dim), (k, column), (v, column)].map(|(x, first)| part(x, rows.clone(), first, s.dim))
}

pub(super) fn grouped_attention<T: Real>(
    s: &GroupedShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
) -> Tensor {
    let mut o = Tensor::zeros(q.shape(), T::DTYPE);
    for (rows, head) in documents.iter().flat_map(|rows| (0..s.heads).map(move |head| (rows.clone(), head))) {
        let [q, k, v] = grouped_head::<T>(s, [q, k, v], &rows, head);
        put(&mut o, rows.start, head * s.dim, &attend(&q, &k, &v, T::of(s.scale)));
    }
    o
}

/// Gradients of a key-value head are the sum over the query heads that read it.
pub(super) fn grouped_attention_backward<T: Real>(
    s: &GroupedShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_o: &Tensor,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Tensor::zeros(x.shape(), T::DTYPE));
    for (rows, head) in documents.iter().flat_map(|rows| (0..s.heads).map(move |head| (rows.clone(), head))) {
        let [q, k, v] = grouped_head::<T>(s, [q, k, v], &rows, head);
        let d_o = part(d_o, rows.clone(), head * s.dim, s.dim);
        let [of_q, of_k, of_v] = attend_backward(&q, &k, &v, T::of(s.scale), &d_o);
        put(&mut dq, rows.start, head * s.dim, &of_q);
        let column = head / (s.heads / s.kv_heads) * s.dim;
        for (sum, of_head) in [(&mut dk, of_k), (&mut dv, of_v)] {
            let mut before = part::<T>(sum, rows.clone(), column, s.dim);
            for (before, of_head) in before.iter_mut().flatten().zip(of_head.iter().flatten()) {
                *before += *of_head;
            }
            put(sum, rows.start, column, &before);
        }
    }
    (dq, dk, dv)
}

pub(super) fn cached_attention(s: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor {
    let (q, width) = (q.cast(DType::F64), s.kv_heads * s.dim);
    let mut o = Tensor::zeros(q.shape(), DType::F64);
    for (request, head) in requests.iter().flat_map(|r| (0..s.heads).map(move |head| (r, head))) {
        let column = head / (s.heads / s.kv_heads) * s.dim;
        let [k, v] = [column, width + column]
            .map(|first| positions(request).iter().map(|row| row[first..first + s.dim].to_vec()).collect());
        let q = part(&q, request.rows.clone(), head * s.dim, s.dim);
        put(&mut o, request.rows.start, head * s.dim, &attend(&q, &k, &v, s.scale));
    }
    o.cast(DType::F32)
}
