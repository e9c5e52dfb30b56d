//! The coarse operations a device provides.
//!
//! Used as `&dyn Backend`: a call is microseconds of work or more, so dynamic dispatch costs nothing and models need no
//! type parameter. Operations do not return `Result`: a wrong shape panics with operation, expected and found.
//!
//! No operation makes the host wait: what it gives are tensors of its device, sums and counts included. Only
//! [`download`](Backend::download) waits; [`download_beside`](Backend::download_beside) lets another thread do so.
//!
//! Letters: N rows (tokens), D width, F expert width, H heads, d width of a head, E experts, K experts per token,
//! R dispatched rows, V vocabulary. The heads of a row are neighbours: `[N, H·d]`.

use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser};
use crate::math;
use crate::segments::Segments;
use crate::spans::spans;
use crate::tensor::{Shape, Tensor};
use std::ops::Range;

/// Which operand of a product is transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[M, K]·[N, K]ᵀ`: forward of a linear layer.
    Nt,
    /// `[M, N]·[N, K]`: gradient of its input.
    Nn,
    /// `[M, N]ᵀ·[M, K]`: gradient of its weight.
    Tn,
}

/// What a product does with the values that C holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `C = A·B`
    Set,
    /// `C += A·B`. The sum continues from C, so a gradient added in two parts of a batch has the bits of the whole
    /// batch. (In bf16 the first part must have an even number of rows: bf16 is summed in pairs.)
    Add,
}

/// Shape of multi-head latent attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub heads: usize,
    /// Widths per head: of the part of queries and keys without position, of the part with rotary position, of values.
    pub nope: usize,
    pub rope: usize,
    pub value: usize,
    /// Factor of the scores before the softmax.
    pub scale: f64,
}

/// Shape of grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupedShape {
    pub heads: usize,
    /// Divides `heads`; each is read by `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Width of a head: of queries, keys and values.
    pub dim: usize,
    /// Factor of the scores before the softmax.
    pub scale: f64,
}

impl GroupedShape {
    /// Query heads per key-value head.
    pub(crate) fn queries_per_kv_head(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Tables of cosines and sines for rotary position embedding (Su et al. 2021).
#[derive(Clone, Debug)]
pub struct Rope {
    /// Rotated elements per head, even.
    pub dim: usize,
    /// Elements 2j and 2j + 1 are a pair; otherwise j and j + dim/2.
    pub is_interleaved: bool,
    /// F32 `[positions, dim/2]`, multiplied by the attention factor; `sin` too.
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rope {
    /// On the host. `frequencies`: radians per position, `[dim/2]`. An angle is rounded to f32, as in the code that
    /// published checkpoints were trained with.
    pub fn new(frequencies: &[f32], positions: usize, factor: f64, is_interleaved: bool) -> Self {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| {
                let (sin, cos) = math::sin_cos(angle);
                ((sin * factor) as f32, (cos * factor) as f32)
            })
            .unzip();
        let [sin, cos] = [sin, cos].map(|table| Tensor::new([positions, frequencies.len()], &table));
        Self { dim: 2 * frequencies.len(), is_interleaved, cos, sin }
    }

    /// A copy on the device of `backend`.
    pub fn on(&self, backend: &dyn Backend) -> Self {
        Self { cos: backend.upload(&self.cos), sin: backend.upload(&self.sin), ..*self }
    }

    pub fn positions(&self) -> usize {
        self.cos.rows()
    }
}

/// How experts are chosen (DeepSeek-V3, §2.1.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    pub experts: usize,
    /// The experts stand in this many groups of equal size.
    pub expert_groups: usize,
    /// How many expert groups a token may use.
    pub node_limit: usize,
    pub top_k: usize,
    /// Weights of a token are divided by their sum, then multiplied by `scale`.
    pub normalise: bool,
    pub scale: f64,
}

/// The experts that one layer chose for N tokens, and the order in which the tokens are dispatched to them.
#[derive(Clone, Debug)]
pub struct Routing {
    /// U32 `[N, K]`, best first.
    pub ids: Tensor,
    /// `[N, K]`
    pub weights: Tensor,
    /// Sigmoid of the logits, `[N, E]`.
    pub scores: Tensor,
    /// Dispatched rows of each expert.
    pub segments: Segments,
    /// Token of each dispatched row, U32 `[R]`.
    pub tokens: Tensor,
    /// Dispatched row of each (token, choice), U32 `[N, K]`.
    pub slots: Tensor,
}

impl Routing {
    /// On the host: sorts the choices by expert, tokens in order within each.
    pub(crate) fn new(ids: Tensor, weights: Tensor, scores: Tensor, experts: usize) -> Self {
        let (shape, of_choices) = (ids.shape(), ids.read::<u32>());
        let top_k = weights.cols();
        let mut counts = vec![0; experts];
        of_choices.iter().for_each(|&e| counts[e as usize] += 1);
        let segments = Segments::of_counts(&counts);
        let mut next: Vec<usize> = segments.iter().map(|rows| rows.start).collect();
        let (mut tokens, mut slots) = (Tensor::empty([ids.len()], DType::U32), Tensor::empty(shape, DType::U32));
        let (of_rows, of_slots) = (tokens.write::<u32>(), slots.write::<u32>());
        for (i, &e) in of_choices.iter().enumerate() {
            let row = next[e as usize];
            next[e as usize] += 1;
            of_rows[row] = (i / top_k) as u32;
            of_slots[i] = row as u32;
        }
        Self { ids, weights, scores, segments, tokens, slots }
    }
}

/// What objectives see of the logits `[N, V]` of the output projection.
#[derive(Debug)]
pub struct Head {
    /// log p(target), F64 `[N]`.
    pub logp: Tensor,
    /// log Σ exp(logits), F64 `[N]`.
    pub lse: Tensor,
    /// exp(logits − max), and per row one over its sum (F64). None when they were too large to keep: backward
    /// computes them again.
    pub(crate) kept: Option<(Tensor, Tensor)>,
}

/// What attention's forward keeps of the softmax for backward. Each device has its own format.
#[derive(Debug)]
pub struct Softmax(pub(crate) Tensor);

/// Rows of one request in generation.
#[derive(Debug)]
pub struct CachedRows<'a> {
    /// Its rows of q, which stand at the last positions of the cache. Requests follow each other in the order of their
    /// rows.
    pub rows: Range<usize>,
    /// The cache, in order. All pages are F32 `[page rows, latent + rope]`: normed latents and rotated keys; or
    /// `[page rows, 2·kv_heads·d]`: rotated keys, and values. Position p is row `p % page rows` of page
    /// `p / page rows`.
    pub pages: &'a [Tensor],
    /// Positions in them, those of `rows` included. What lies behind them is not read.
    pub length: usize,
}

impl CachedRows<'_> {
    /// Panics unless the pages are all of one shape, `width` wide, and have `length` positions, of which those of
    /// `rows` are the last. `operation` is named in the message.
    pub(crate) fn check(&self, operation: &str, width: usize) {
        let Self { rows, pages, length } = self;
        let (count, page_rows) = (rows.len(), self.page_rows());
        assert!(count <= *length, "{operation}: {count} rows, {length} positions");
        pages.iter().for_each(|page| page.expect(operation, [page_rows, width]));
        let room = pages.len() * page_rows;
        assert!(*length <= room, "{operation}: {length} positions in pages of {room} rows together");
    }

    /// Rows of each page.
    pub(crate) fn page_rows(&self) -> usize {
        self.pages.first().map_or(0, Tensor::rows)
    }

    /// The positions of each page that has some.
    pub(crate) fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        spans(self.length, self.page_rows().max(1))
    }

    /// What each page holds: its positions, row after row. Panics as [`check`](Self::check), and unless the memory of
    /// the pages can be read here.
    pub(crate) fn read(&self, operation: &str, width: usize) -> Vec<&[f32]> {
        self.check(operation, width);
        self.pages.iter().zip(self.spans()).map(|(page, held)| &page.read::<f32>()[..held.len() * width]).collect()
    }
}

/// How one token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Of the logits.
    pub row: usize,
    /// 0 takes the most probable token.
    pub temperature: f64,
    /// Draw from the smallest set of tokens that holds this share of the probability.
    pub top_p: f64,
    /// Draw from this many most probable tokens; 0 from all.
    pub top_k: usize,
    pub seed: u64,
    /// Of the token in its completion.
    pub place: u64,
}

/// Hyperparameters of one step of AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub decay: f64,
    /// 1-based.
    pub step: u64,
}

/// How a token's routes are counted in a balance loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counted {
    /// The K experts with the highest scores: the correction bias has no part (DeepSeek-V3, eq. 18).
    #[default]
    Scores,
    /// The experts that the token was sent to.
    Routes,
}

/// Operations that may do two things in one pass, for a device that does one after the other.
macro_rules! in_two_passes {
    (norm) => {
        fn add_rms_norm(&self, acc: &mut Tensor, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor) {
            self.add(acc, x);
            self.rms_norm(acc, gain, eps)
        }

        fn rms_norm_backward_add(
            &self,
            x: &Tensor,
            rstd: &Tensor,
            gain: &Tensor,
            dy: &Tensor,
            dgain: &mut Tensor,
            beside: &Tensor,
        ) -> Tensor {
            let mut dx = self.rms_norm_backward(x, rstd, gain, dy, dgain);
            self.add(&mut dx, beside);
            dx
        }
    };
    (swiglu) => {
        fn swiglu_lower(
            &self,
            h: &Tensor,
            how: [Quantiser; 2],
            segments: Option<&Segments>,
            saturated: &mut Tensor,
        ) -> [Operand; 2] {
            self.lower_both(&self.swiglu(h), how, segments, saturated)
        }

        fn swiglu_backward_lower(
            &self,
            h: &Tensor,
            dy: &Tensor,
            how: [Quantiser; 2],
            segments: Option<&Segments>,
            saturated: &mut Tensor,
        ) -> [Operand; 2] {
            self.lower_both(&self.swiglu_backward(h, dy), how, segments, saturated)
        }
    };
}
pub(crate) use in_two_passes;

/// The one table of operations: calls the macro `$then` with it. [`Backend`] is made of it, and so are the adapters
/// that pass every operation on.
macro_rules! operations {
    ($then:ident) => { $then! {
        /// Memory on the device with unspecified contents.
        fn empty(&self, shape: Shape, dtype: DType) -> Tensor;
        /// A copy of a host tensor on the device; a clone of one that is there. What is uploaded is not written again;
        /// the host need not wait.
        fn upload(&self, x: &Tensor) -> Tensor;
        /// A copy on the host. **Waits** until the device has computed it.
        fn download(&self, x: &Tensor) -> Tensor;
        /// Copies on the host of what the tensors hold now, made while the device goes on; the host does not wait.
        /// Until [`hold_back`](Self::hold_back) nobody may write the tensors.
        fn download_beside(&self, tensors: &[&Tensor]) -> Downloads;
        /// The device runs what it is asked for from now on behind the copies. The host does not wait.
        fn hold_back(&self, copied: &Copied);
        /// A copy on the device, with memory of its own.
        fn copy(&self, x: &Tensor) -> Tensor;
        /// In another element type, rounded to nearest even; may share memory when the type is the same.
        fn cast(&self, x: &Tensor, dtype: DType) -> Tensor;
        /// All elements of `parts` as F64, one part after the other: what a step tells the host, in one download.
        fn collect(&self, parts: &[&Tensor]) -> Tensor;

        /// `c = op(a)·op(b)` or `c += …`. Dims of a and b but the last are folded.
        fn gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, c: &mut Tensor, write: Write);
        /// Multiplies the rows of segment e of `a` by `w[e]` of `[E, out, in]`. Layout `Nt` or `Nn`.
        fn grouped_gemm(
            &self,
            layout: Layout,
            a: &Tensor,
            w: &Tensor,
            segments: &Segments,
            c: &mut Tensor,
            write: Write,
        );
        /// `dw[e] = dyᵀ·x` over the rows of segment e, or `+=`. A segment without rows sets zero, or adds nothing.
        fn grouped_gradient(&self, dy: &Tensor, x: &Tensor, segments: &Segments, dw: &mut Tensor, write: Write);
        /// A hint that `w` will be the weight of many products, so packing it once pays.
        fn prepare(&self, w: &Tensor);

        /// Lowers an F32 operand: to FP8, or, without a quantiser, to bf16. A tile never spans two segments, except
        /// [`Tile::Tensor`](crate::fp8::Tile::Tensor), which has one scale for all of them. `saturated`, U32 `[1]`,
        /// becomes 1 when an infinite or NaN value was quantised, and is left alone otherwise.
        fn lower(
            &self,
            x: &Tensor,
            how: Option<Quantiser>,
            segments: Option<&Segments>,
            saturated: &mut Tensor,
        ) -> Operand;
        /// Two forms of one operand, as `lower` gives each: for two products that sum over different dims. A device may
        /// read x once for both.
        fn lower_both(
            &self,
            x: &Tensor,
            how: [Quantiser; 2],
            segments: Option<&Segments>,
            saturated: &mut Tensor,
        ) -> [Operand; 2];
        /// As `gemm` and `grouped_gemm`, `Nt` or `Nn`, in the precision of a; a was lowered with the same segments. The
        /// weight, F32 when a is lowered, is lowered with it: to bf16, or to FP8 by blocks (as a whole per expert when
        /// a is). That is kept until the weight is written.
        fn low_gemm(
            &self,
            layout: Layout,
            a: &Operand,
            w: &Tensor,
            segments: Option<&Segments>,
            c: &mut Tensor,
            write: Write,
        );
        /// `dw = dyᵀ·x`, or `+=`, or the same per segment. FP8 operands have scales along rows: `Column`, `Block` or
        /// `Tensor`.
        fn low_gradient(&self, dy: &Operand, x: &Operand, segments: Option<&Segments>, dw: &mut Tensor, write: Write);

        /// `y = x · rstd · gain`, `rstd = (mean(x²) + eps)^-½` (Zhang and Sennrich 2019). Returns y and rstd `[N]`.
        fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor);
        /// Returns dx; `dgain += Σ_rows dy · x · rstd`.
        fn rms_norm_backward(
            &self,
            x: &Tensor,
            rstd: &Tensor,
            gain: &Tensor,
            dy: &Tensor,
            dgain: &mut Tensor,
        ) -> Tensor;
        /// `acc += x`, and what `rms_norm` gives of the sum.
        fn add_rms_norm(&self, acc: &mut Tensor, x: &Tensor, gain: &Tensor, eps: f64) -> (Tensor, Tensor);
        /// What `rms_norm_backward` gives, plus `beside`.
        fn rms_norm_backward_add(
            &self,
            x: &Tensor,
            rstd: &Tensor,
            gain: &Tensor,
            dy: &Tensor,
            dgain: &mut Tensor,
            beside: &Tensor,
        ) -> Tensor;
        /// `[N, 2F] → [N, F]`: silu(gate) · up, gate first.
        fn swiglu(&self, h: &Tensor) -> Tensor;
        fn swiglu_backward(&self, h: &Tensor, dy: &Tensor) -> Tensor;
        /// `lower_both` of `swiglu(h)`. A device may do without the values between.
        fn swiglu_lower(
            &self,
            h: &Tensor,
            how: [Quantiser; 2],
            segments: Option<&Segments>,
            saturated: &mut Tensor,
        ) -> [Operand; 2];
        /// `lower_both` of `swiglu_backward(h, dy)`, the same way.
        fn swiglu_backward_lower(
            &self,
            h: &Tensor,
            dy: &Tensor,
            how: [Quantiser; 2],
            segments: Option<&Segments>,
            saturated: &mut Tensor,
        ) -> [Operand; 2];
        /// Rotates `x[.., head·stride + offset ..][..dim]` of every head, in place; backward rotates by the opposite
        /// angle.
        fn rope(&self, x: &mut Tensor, heads: usize, offset: usize, rope: &Rope, positions: &Tensor, is_backward: bool);
        /// `y[i] += bias` for every row.
        fn bias(&self, y: &mut Tensor, bias: &Tensor);
        /// `dbias += Σ_rows dy`
        fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor);
        /// `x = x · by / over`
        fn scale(&self, x: &mut Tensor, by: f64, over: f64);
        /// Every element becomes `value`.
        fn fill(&self, x: &mut Tensor, value: f64);
        /// `acc += x`
        fn add(&self, acc: &mut Tensor, x: &Tensor);
        /// Columns `..at` and `at..`.
        fn split(&self, x: &Tensor, at: usize) -> (Tensor, Tensor);
        /// The inverse of `split`.
        fn join(&self, a: &Tensor, b: &Tensor) -> Tensor;

        /// Causal attention within documents. q `[N, H·(nope + rope)]`, kv `[N, H·(nope + value)]`, k_rope
        /// `[N, rope]` shared by all heads. Returns o `[N, H·value]`.
        fn attention(
            &self,
            shape: &AttentionShape,
            q: &Tensor,
            kv: &Tensor,
            k_rope: &Tensor,
            documents: &Documents,
        ) -> (Tensor, Softmax);
        /// Returns dq, dkv, dk_rope.
        #[allow(clippy::too_many_arguments)]
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
        ) -> (Tensor, Tensor, Tensor);
        /// Writes rows `rows` of `parts`, side by side, to `page` from row `at` on: what generation remembers. Rows
        /// before and behind keep what they hold.
        fn append(&self, page: &mut Tensor, at: usize, parts: &[&Tensor], rows: Range<usize>);
        /// The same attention for generation, from cached latents; `kv_b` is `[H·(nope + value), latent]`.
        fn latent_attention(
            &self,
            shape: &AttentionShape,
            q: &Tensor,
            kv_b: &Tensor,
            requests: &[CachedRows],
        ) -> Tensor;

        /// Causal grouped-query attention within documents. q `[N, H·d]`, k and v `[N, G·d]` for G key-value heads.
        /// Returns o `[N, H·d]`.
        fn grouped_attention(
            &self,
            shape: &GroupedShape,
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            documents: &Documents,
        ) -> (Tensor, Softmax);
        /// Returns dq, dk, dv.
        #[allow(clippy::too_many_arguments)]
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
        ) -> (Tensor, Tensor, Tensor);
        /// The same attention for generation, from cached keys and values.
        fn cached_attention(&self, shape: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor;

        /// Rows `ids` (U32) of w.
        fn embedding(&self, ids: &Tensor, w: &Tensor) -> Tensor;
        /// `dw[ids[i]] += dx[i]`, i in order.
        fn embedding_backward(&self, ids: &Tensor, dx: &Tensor, dw: &mut Tensor);
        /// x `[N, D]`, w `[V, D]`, targets U32 `[N]`.
        fn head(&self, x: &Tensor, w: &Tensor, targets: &Tensor) -> Head;
        /// `dlogits = dlogp·(onehot − softmax) + dlse·softmax`, dlogp and dlse F64 `[N]`. Returns dx;
        /// `dw += dlogitsᵀ·x`.
        #[allow(clippy::too_many_arguments)]
        fn head_backward(
            &self,
            head: Head,
            x: &Tensor,
            w: &Tensor,
            targets: &Tensor,
            dlogp: &Tensor,
            dlse: &Tensor,
            dw: &mut Tensor,
        ) -> Tensor;

        /// Draws tokens from rows of logits `[N, V]`, each a function of its row, seed and place. Returns the tokens,
        /// U32 `[M]`, and their log-probabilities, F64 `[M]`: under the distribution at the draw's temperature (1 where
        /// it is 0), whatever `top_p` and `top_k` cut off.
        fn draw(&self, logits: &Tensor, draws: &[Draw]) -> (Tensor, Tensor);

        /// logits `[N, E]`, bias `[E]`. The bias affects which experts are chosen and nothing else.
        fn route(&self, router: &Router, logits: &Tensor, bias: &Tensor) -> Routing;
        /// Returns dlogits. `dscores` `[N, E]` is added to the gradient that the scores get from the weights.
        fn route_backward(&self, router: &Router, r: &Routing, dweights: &Tensor, dscores: Option<&Tensor>) -> Tensor;
        /// A balance loss of a router (see `Balance` of the model): with f_e = E/(K·T) times how often expert e
        /// counts among T tokens, and P_e the mean of its share of a token's scores,
        /// `loss += weight·Σ_e f_e·P_e`, for each document on its own, or for all rows together without `documents`.
        /// loss is F64 `[1]`. Returns dscores `[N, E]`; f has no gradient.
        fn balance(
            &self,
            router: &Router,
            r: &Routing,
            counted: Counted,
            documents: Option<&Documents>,
            weight: f64,
            loss: &mut Tensor,
        ) -> Tensor;
        /// `counts[e] += ` rows of segment e; counts U32 `[E]`.
        fn count(&self, segments: &Segments, counts: &mut Tensor);
        /// The rule that moves a router's correction bias (Wang et al. 2024):
        /// `bias[e] += speed · sign(mean − counts[e])`.
        fn balance_bias(&self, bias: &mut Tensor, counts: &Tensor, speed: f64);
        /// Rows `rows` (U32) of x, in that order.
        fn gather(&self, x: &Tensor, rows: &Tensor) -> Tensor;
        /// The row of x of each choice: rows `r.tokens` of x.
        fn dispatch(&self, x: &Tensor, r: &Routing) -> Tensor;
        /// `dx[t] += Σ_k drows[slots[t, k]]`, k in order.
        fn gather_backward(&self, drows: &Tensor, slots: &Tensor, dx: &mut Tensor);
        /// `y[t] += Σ_k weights[t, k] · rows[slots[t, k]]`, k in order.
        fn combine(&self, rows: &Tensor, r: &Routing, y: &mut Tensor);
        /// Returns drows and dweights.
        fn combine_backward(&self, rows: &Tensor, r: &Routing, dy: &Tensor) -> (Tensor, Tensor);

        /// `sum[0] += Σ x²`, in f64, in one fixed order; sum is F64 `[1]`.
        fn square_sum(&self, x: &Tensor, sum: &mut Tensor);
        /// `sums[at] = Σ x`, or `Σ x²`, in order; x and sums are F64.
        fn total(&self, x: &Tensor, is_squared: bool, sums: &mut Tensor, at: usize);
        /// What gradients are multiplied by so that their norm √square_sum is at most `most`: F64 `[1]`.
        fn clip(&self, square_sum: &Tensor, most: f64) -> Tensor;
        /// `acc = keep·acc + (1 − keep)·x`
        fn average(&self, acc: &mut Tensor, x: &Tensor, keep: f64);
        /// The gradient is dw times `scale`, F64 `[1]`. m and v may be bf16: they are then rounded to nearest even
        /// after the step; w is updated with the unrounded values.
        fn adamw(&self, hyper: &AdamW, w: &mut Tensor, dw: &Tensor, scale: &Tensor, m: &mut Tensor, v: &mut Tensor);
    } };
}
pub(crate) use operations;

macro_rules! backend {
    ($($(#[$meta:meta])* fn $name:ident(&self $(, $arg:ident: $type:ty)* $(,)?) $(-> $result:ty)?;)*) => {
        pub trait Backend: Send + Sync {
            $($(#[$meta])* fn $name(&self $(, $arg: $type)*) $(-> $result)?;)*
        }

        /// Names of the operations, in the order of the table.
        pub const OPERATIONS: &[&str] = &[$(stringify!($name)),*];
    };
}

operations!(backend);

impl dyn Backend + '_ {
    pub fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let mut x = self.empty(shape.into(), dtype);
        self.fill(&mut x, 0.0);
        x
    }

    /// U32 on the device.
    pub fn ids(&self, ids: &[u32]) -> Tensor {
        self.upload(&Tensor::new([ids.len()], ids))
    }

    /// F64 on the device.
    pub fn numbers(&self, values: &[f64]) -> Tensor {
        self.upload(&Tensor::new([values.len()], values))
    }
}
