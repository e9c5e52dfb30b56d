//! The CPU: the specification of every operation, and the device of the quickstart.
//!
//! Small operations are loops one can check by eye, cut over rows into tasks for the threads, and compiled for each CPU level
//! ([`wide`]). The bits depend on neither: a row is computed alone, and sums over rows go by fixed blocks.

mod attention;
mod grouped;
mod head;
mod latent;
mod one_head;
mod optimizer;
mod precision;
mod quantise;
mod router;
mod rows;

use crate::backend::*;
use crate::fp8::{Operand, Quantiser};
use crate::gemm::{Gemm, Level, View, wide};
use crate::memory::Block;
use crate::{DType, Documents, Element, Real, Segments, Tensor, Write};

/// Lanes of the widest vector.
const LANES: usize = 16;
/// Element operations below which waking a thread costs more than it brings.
const SERIAL: usize = 1 << 15;

pub struct Cpu {
    gemm: Gemm,
}

/// Runs `$body` with `$T` the element type of `$tensor`.
macro_rules! real {
    ($tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype() {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            other => panic!("cpu: no operation computes in {other:?}"),
        }
    };
}

impl Cpu {
    /// `threads` counts the caller; 0 takes what the machine has.
    pub fn new(threads: usize) -> Self {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { gemm: Gemm::new(if threads == 0 { available() } else { threads }) }
    }

    /// The same on another CPU level, for tests.
    pub fn at(self, level: Level) -> Self {
        Self { gemm: self.gemm.at(level) }
    }

    pub fn threads(&self) -> usize {
        self.gemm.pool().threads()
    }

    /// Rows per task when a row costs `cost` element operations.
    fn step(&self, rows: usize, cost: usize) -> usize {
        if rows * cost < SERIAL { rows.max(1) } else { rows.div_ceil(4 * self.threads()).max(1) }
    }

    /// Calls `work` for each of `tasks`, compiled for this CPU.
    fn each<I: Send>(&self, tasks: Vec<I>, work: impl Fn(I) + Sync) {
        let level = self.gemm.level();
        self.gemm.pool().each(tasks, |task| {
            wide(
                level,
                #[inline(always)]
                || work(task),
            )
        });
    }
}

/// Σ a·b in sixteen interleaved sums that are then folded: one order for every vector width.
#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    if !a.1.is_empty() {
        let (a, b) = (filled(a.1), filled(b.1));
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    fold(sums)
}

/// The rest of a row as a vector of its own that ends in zeros. (An array that is indexed by what is not known when compiled lies in memory,
/// and sums that wait for memory take 20 cycles each.)
#[inline(always)]
fn filled<T: Real>(rest: &[T]) -> [T; LANES] {
    /// Out of the way of the loops beside it.
    #[cold]
    #[inline(never)]
    fn copied<T: Real>(rest: &[T]) -> [T; LANES] {
        let mut lanes = [T::ZERO; LANES];
        lanes[..rest.len()].copy_from_slice(rest);
        lanes
    }
    match rest.as_array::<8>() {
        Some(half) => std::array::from_fn(|lane| if lane < 8 { half[lane] } else { T::ZERO }),
        None => copied(rest),
    }
}

/// The second half of a vector joined to the first, until one lane is left.
#[inline(always)]
fn halves<T: Real>(x: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let x: [T; 8] = std::array::from_fn(|lane| join(x[lane], x[lane + 8]));
    let x: [T; 4] = std::array::from_fn(|lane| join(x[lane], x[lane + 4]));
    join(join(x[0], x[2]), join(x[1], x[3]))
}

#[inline(always)]
fn fold<T: Real>(sums: [T; LANES]) -> T {
    halves(sums, |a, b| a + b)
}

/// Elements of a row of working memory: whole vectors, so that loops over it have no rest.
fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// `to = from`: of the widths that heads have, without a call.
#[inline(always)]
fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    macro_rules! widths {
        ($($width:literal)*) => {
            match to.len() {
                $($width => {
                    let to: &mut [T; $width] = to.try_into().expect("matched");
                    *to = *from.as_array().expect("copy: as long as `to`");
                })*
                _ => to.copy_from_slice(from),
            }
        };
    }
    widths!(8 16 24 32 48 64 96 128)
}

/// Turns the first `seen` scores of a row into exp(score·scale − max) in place, and the rest into 0; returns the maximum of score·scale
/// and the sum. The scale is positive.
#[inline(always)]
fn exp_row<T: Real>(row: &mut [T], seen: usize, scale: T) -> (T, T) {
    let max = max_of(row, seen) * scale;
    (max, exp_from(row, seen, scale, max))
}

/// The largest of the first `seen` elements.
#[inline(always)]
fn max_of<T: Real>(row: &[T], seen: usize) -> T {
    let (whole, rest) = row.split_at(seen / LANES * LANES);
    let (whole, count) = (whole.as_chunks::<LANES>().0, seen % LANES);
    let last = rest.first_chunk().copied().unwrap_or_else(|| filled(rest));
    let mut largest = [T::LOWEST; LANES];
    for chunk in whole {
        for lane in 0..LANES {
            largest[lane] = if chunk[lane] > largest[lane] { chunk[lane] } else { largest[lane] };
        }
    }
    for lane in 0..LANES {
        let x = if lane < count { last[lane] } else { T::LOWEST };
        largest[lane] = if x > largest[lane] { x } else { largest[lane] };
    }
    halves(largest, |a, b| if b > a { b } else { a })
}

/// [`exp_row`] with the maximum known; returns the sum.
#[inline(always)]
fn exp_from<T: Real>(row: &mut [T], seen: usize, scale: T, max: T) -> T {
    let (whole, rest) = row.split_at_mut(seen / LANES * LANES);
    let (whole, count) = (whole.as_chunks_mut::<LANES>().0, seen % LANES);
    // what is left of the seen, as a vector: where the row has room for one, or in a copy
    let has_room = rest.len() >= LANES;
    let mut short = if has_room { [T::ZERO; LANES] } else { filled(rest) };
    let (last, hidden) = match has_room {
        true => rest.split_first_chunk_mut().expect("has room"),
        false => (&mut short, &mut [][..]),
    };
    hidden.fill(T::ZERO);

    let mut sums = [T::ZERO; LANES];
    for chunk in whole {
        for lane in 0..LANES {
            chunk[lane] = chunk[lane].mul_add(scale, -max).exp_below();
            sums[lane] += chunk[lane];
        }
    }
    for lane in 0..LANES {
        let x = last[lane].mul_add(scale, -max).exp_below();
        last[lane] = if lane < count { x } else { T::ZERO };
        sums[lane] += last[lane];
    }
    if !has_room {
        rest.copy_from_slice(&short[..rest.len()]);
    }
    fold(sums)
}

/// Working memory of a task, from the arena; contents unspecified.
struct Scratch<T: Element>(Block<T>);

impl<T: Element> Scratch<T> {
    fn new(len: usize) -> Self {
        Self(T::arena().take(len, T::POISON))
    }
}

impl<T: Element> Drop for Scratch<T> {
    fn drop(&mut self) {
        T::arena().give(std::mem::take(&mut self.0));
    }
}

impl Backend for Cpu {
    fn gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, c: &mut Tensor, write: Write) {
        let (shape, dims) = match layout {
            Layout::Nt => ([a.rows(), b.rows()], [a.cols(), b.cols()]),
            Layout::Nn => ([a.rows(), b.cols()], [a.cols(), b.rows()]),
            Layout::Tn => ([a.cols(), b.cols()], [a.rows(), b.rows()]),
        };
        assert!(dims[0] == dims[1], "gemm {layout:?}: a is {:?}, b is {:?}", a.shape(), b.shape());
        assert!([c.rows(), c.cols()] == shape, "gemm {layout:?}: expected c {shape:?}, found {:?}", c.shape());
        real!(a, T => match (layout, b.packed()) {
            (Layout::Nt, Some([packed])) => T::multiply_packed(&self.gemm, a.view(), packed, c.write(), write),
            (Layout::Nt, _) => T::multiply(&self.gemm, a.view(), b.view::<T>().t(), c.write(), write),
            (Layout::Nn, _) => T::multiply(&self.gemm, a.view(), b.view(), c.write(), write),
            (Layout::Tn, _) => T::multiply(&self.gemm, a.view::<T>().t(), b.view(), c.write(), write),
        });
    }

    fn grouped_gemm(&self, layout: Layout, a: &Tensor, w: &Tensor, segments: &Segments, c: &mut Tensor, write: Write) {
        let [experts, out, inner] = w.dims("grouped_gemm: w");
        let (k, n) = if layout == Layout::Nt { (inner, out) } else { (out, inner) };
        assert!(layout != Layout::Tn, "grouped_gemm: Tn is grouped_gradient");
        assert!(experts == segments.count(), "grouped_gemm: {experts} weights, {} segments", segments.count());
        a.expect("grouped_gemm: a", [segments.rows(), k]);
        c.expect("grouped_gemm: c", [segments.rows(), n]);
        real!(a, T => {
            if let (Layout::Nt, Some(packed)) = (layout, w.packed()) {
                return T::grouped_packed(&self.gemm, a.view(), segments.ends(), packed, c.write(), write);
            }
            let view = |w| if layout == Layout::Nt { View::new(w, out, inner).t() } else { View::new(w, out, inner) };
            let b: Vec<View<T>> = w.read::<T>().chunks_exact(out * inner).map(view).collect();
            T::grouped(&self.gemm, a.view(), segments.ends(), &b, c.write(), write);
        });
    }

    fn grouped_gradient(&self, dy: &Tensor, x: &Tensor, segments: &Segments, dw: &mut Tensor, write: Write) {
        dw.expect("grouped_gradient: dw", [segments.count(), dy.cols(), x.cols()]);
        let ends = segments.ends();
        real!(dy, T => T::grouped_gradient(&self.gemm, dy.view(), x.view(), ends, dw.write(), write));
    }

    fn prepare(&self, w: &Tensor) {
        w.keep_packed(&self.gemm);
    }

    fn lower(&self, x: &Tensor, how: Option<Quantiser>, segments: Option<&Segments>) -> Operand {
        precision::lower(self, x, how, segments)
    }

    fn low_gemm(
        &self,
        layout: Layout,
        a: &Operand,
        w: &Tensor,
        segments: Option<&Segments>,
        c: &mut Tensor,
        write: Write,
    ) {
        precision::gemm(self, layout, a, w, segments, c, write);
    }

    fn low_gradient(&self, dy: &Operand, x: &Operand, segments: Option<&Segments>, dw: &mut Tensor, write: Write) {
        precision::gradient(self, dy, x, segments, dw, write);
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
        real!(x, T => rows::rms_norm::<T>(self, x, gain, eps))
    }

    fn rms_norm_backward(&self, x: &Tensor, rstd: &Tensor, gain: &Tensor, dy: &Tensor, dgain: &mut Tensor) -> Tensor {
        real!(x, T => rows::rms_norm_backward::<T>(self, x, rstd, gain, dy, dgain))
    }

    fn swiglu(&self, h: &Tensor) -> Tensor {
        real!(h, T => rows::swiglu::<T>(self, h))
    }

    fn swiglu_backward(&self, h: &Tensor, dy: &Tensor) -> Tensor {
        real!(h, T => rows::swiglu_backward::<T>(self, h, dy))
    }

    fn rope(&self, x: &mut Tensor, heads: usize, offset: usize, rope: &Rope, positions: &[u32], is_backward: bool) {
        real!(x, T => rows::rope::<T>(self, x, heads, offset, rope, positions, is_backward))
    }

    fn bias(&self, y: &mut Tensor, bias: &Tensor) {
        real!(bias, T => rows::bias::<T>(self, y, bias))
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) {
        real!(dy, T => rows::bias_backward::<T>(self, dy, dbias))
    }

    fn add(&self, acc: &mut Tensor, x: &Tensor) {
        real!(x, T => rows::add::<T>(self, acc, x))
    }

    fn split(&self, x: &Tensor, at: usize) -> (Tensor, Tensor) {
        real!(x, T => rows::split::<T>(self, x, at))
    }

    fn join(&self, a: &Tensor, b: &Tensor) -> Tensor {
        real!(a, T => rows::join::<T>(self, a, b))
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        real!(q, T => attention::forward::<T>(self, shape, q, kv, k_rope, documents))
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        o: &Tensor,
        softmax: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        real!(q, T => attention::backward::<T>(self, shape, q, kv, k_rope, o, softmax, d_o, documents))
    }

    fn latent_attention(&self, shape: &AttentionShape, q: &Tensor, kv_b: &Tensor, requests: &[CachedRows]) -> Tensor {
        latent::attention(self, shape, q, kv_b, requests)
    }

    fn grouped_attention(
        &self,
        shape: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        real!(q, T => grouped::forward::<T>(self, shape, q, k, v, documents))
    }

    fn grouped_attention_backward(
        &self,
        shape: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        softmax: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        real!(q, T => grouped::backward::<T>(self, shape, q, k, v, o, softmax, d_o, documents))
    }

    fn cached_attention(&self, shape: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor {
        grouped::cached(self, shape, q, requests)
    }

    fn embedding(&self, ids: &[u32], w: &Tensor) -> Tensor {
        real!(w, T => rows::gather::<T>(self, w, ids))
    }

    fn embedding_backward(&self, ids: &[u32], dx: &Tensor, dw: &mut Tensor) {
        real!(dx, T => rows::embedding_backward::<T>(ids, dx, dw))
    }

    fn head(&self, x: &Tensor, w: &Tensor, targets: &[u32]) -> Head {
        real!(x, T => head::forward::<T>(self, x, w, targets))
    }

    fn head_backward(
        &self,
        head: Head,
        x: &Tensor,
        w: &Tensor,
        targets: &[u32],
        dlogp: &[f64],
        dlse: &[f64],
        dw: &mut Tensor,
    ) -> Tensor {
        real!(x, T => head::backward::<T>(self, head, x, w, targets, dlogp, dlse, dw))
    }

    fn softmax(&self, logits: &mut Tensor) -> (Vec<f64>, Vec<f64>) {
        real!(logits, T => head::rows::<T>(self, logits))
    }

    fn route(&self, router: &Router, logits: &Tensor, bias: &Tensor) -> Routing {
        real!(logits, T => router::route::<T>(self, router, logits, bias))
    }

    fn route_backward(&self, router: &Router, r: &Routing, dweights: &Tensor, dscores: Option<&Tensor>) -> Tensor {
        real!(dweights, T => router::route_backward::<T>(self, router, r, dweights, dscores))
    }

    fn gather(&self, x: &Tensor, rows: &[u32]) -> Tensor {
        real!(x, T => rows::gather::<T>(self, x, rows))
    }

    fn gather_backward(&self, drows: &Tensor, slots: &[u32], dx: &mut Tensor) {
        real!(drows, T => router::gather_backward::<T>(self, drows, slots, dx))
    }

    fn combine(&self, rows: &Tensor, r: &Routing, y: &mut Tensor) {
        real!(rows, T => router::combine::<T>(self, rows, r, y))
    }

    fn combine_backward(&self, rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor) {
        real!(rows, T => router::combine_backward::<T>(self, rows, r, dy))
    }

    fn square_sum(&self, x: &Tensor) -> f64 {
        real!(x, T => optimizer::square_sum::<T>(self, x))
    }

    fn average(&self, acc: &mut Tensor, x: &Tensor, keep: f64) {
        real!(x, T => optimizer::average::<T>(self, acc, x, keep));
    }

    fn adamw(&self, hyper: &AdamW, w: &mut Tensor, dw: &Tensor, m: &mut Tensor, v: &mut Tensor) {
        if m.dtype() == DType::Bf16 {
            return optimizer::adamw::<f32, half::bf16>(self, hyper, w, dw, m, v);
        }
        real!(dw, T => optimizer::adamw::<T, T>(self, hyper, w, dw, m, v))
    }
}
