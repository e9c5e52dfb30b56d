//! Attention of training on the tensor cores of Hopper, in bf16, for the head widths that have kernels: 192 and 128 (of
//! queries and keys, and of values), 128 and 128, 64 and 64.

use super::attention::Seen;
use super::device::Cuda;
use super::launch::{Arg, int, long};
use super::tensor_cores::Boxes;
use crate::backend::{AttentionShape, GroupedShape, Softmax};
use crate::document_bounds::Documents;
use crate::dtype::DType;
use crate::tensor::Tensor;

/// The kernels of one pair of widths, with their dynamic shared memory.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    forward: (&'static str, usize),
    delta: &'static str,
    keys: (&'static str, usize),
    queries: (&'static str, usize),
    /// Queries per step of `keys`.
    queries_per_step: u32,
}

fn kernels(qk: usize, value: usize) -> Option<Kernels> {
    match (qk, value) {
        (192, 128) => Some(Kernels {
            forward: ("flash_forward_192_128", 213_072),
            delta: "flash_delta_128",
            keys: ("flash_keys_192_128", 164_944),
            queries: ("flash_queries_192_128", 204_864),
            queries_per_step: 32,
        }),
        (128, 128) => Some(Kernels {
            forward: ("flash_forward_128_128", 163_920),
            delta: "flash_delta_128",
            keys: ("flash_keys_128_128", 198_736),
            queries: ("flash_queries_128_128", 163_904),
            queries_per_step: 64,
        }),
        (64, 64) => Some(Kernels {
            forward: ("flash_forward_64_64", 82_000),
            delta: "flash_delta_64",
            keys: ("flash_keys_64_64", 100_432),
            queries: ("flash_queries_64_64", 81_984),
            queries_per_step: 64,
        }),
        _ => None,
    }
}

/// bf16 `[N, H, QK]`, `[N, G, QK]`, `[N, G, V]`.
pub(super) struct Packed {
    kernels: Kernels,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: usize,
    kv_heads: usize,
    scale: f64,
    /// U32 `[N]`: the first row of each row's document, and the first row behind it.
    starts: Tensor,
    limits: Tensor,
}

impl Cuda {
    fn flash(&self, qk: usize, value: usize) -> Option<Kernels> {
        kernels(qk, value).filter(|_| self.is_low() && self.found().is_sm90())
    }

    /// bf16 with the same shape.
    fn rounded(&self, x: &Tensor, width: usize) -> Tensor {
        let (n, cols) = (x.rows(), x.cols());
        let mut y = self.make([n, cols / width, width], DType::Bf16);
        self.each("round_rows", n * cols, &[self.read(x), self.write(&mut y), long(n), int(cols), int(cols)]);
        y
    }

    /// Of each row: the first row of its document, and the first row behind it.
    fn spans(&self, documents: &Documents) -> (Tensor, Tensor) {
        let n = documents.rows();
        let (mut starts, mut limits) = (self.make([n], DType::U32), self.make([n], DType::U32));
        let args = [self.read(documents.ends()), self.write(&mut starts), self.write(&mut limits)];
        self.launch("document_spans", [documents.count(), 1, 1], 0, &args);
        (starts, limits)
    }

    /// Multi-head latent attention's operands, if the tensor cores have a kernel for them.
    pub(super) fn packed_latent(
        &self,
        s: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        documents: &Documents,
    ) -> Option<Packed> {
        let (n, qk) = (q.rows(), s.nope + s.rope);
        let kernels = self.flash(qk, s.value).filter(|_| n > 0)?;
        let mut k = self.make([n, s.heads, qk], DType::Bf16);
        let mut v = self.make([n, s.heads, s.value], DType::Bf16);
        let widths = [s.heads, s.nope, s.rope, s.value].map(int);
        let args = [self.read(kv), self.read(k_rope), self.write(&mut k), self.write(&mut v), long(n)];
        let args: Vec<Arg> = args.into_iter().chain(widths).collect();
        self.each_row("pack_keys", [n, s.heads * (s.nope + s.value) + s.rope], &args);
        let (starts, limits) = self.spans(documents);
        let (heads, kv_heads, scale) = (s.heads, s.heads, s.scale);
        Some(Packed { kernels, q: self.rounded(q, qk), k, v, heads, kv_heads, scale, starts, limits })
    }

    /// The same for grouped-query attention.
    pub(super) fn packed_grouped(
        &self,
        s: &GroupedShape,
        [q, k, v]: [&Tensor; 3],
        documents: &Documents,
    ) -> Option<Packed> {
        let kernels = self.flash(s.dim, s.dim).filter(|_| q.rows() > 0)?;
        let [q, k, v] = [q, k, v].map(|x| self.rounded(x, s.dim));
        let (starts, limits) = self.spans(documents);
        let (heads, kv_heads, scale) = (s.heads, s.kv_heads, s.scale);
        Some(Packed { kernels, q, k, v, heads, kv_heads, scale, starts, limits })
    }

    fn sizes_of(&self, p: &Packed) -> [Arg; 4] {
        [int(p.q.shape().dims()[0]), int(p.heads), int(p.kv_heads), Arg::Float(p.scale as f32)]
    }

    /// o F32 `[N, H·V]`, and the log-sum-exp of the scores, F32 `[H, N]`.
    pub(super) fn flash_forward(&self, p: &Packed) -> (Tensor, Softmax) {
        let (n, value) = (p.q.shape().dims()[0], p.v.cols());
        let (mut o, mut lse) = (self.make([n, p.heads * value], DType::F32), self.make([p.heads, n], DType::F32));
        let whole = |x: &Tensor| self.map_heads(x, Boxes { columns: 64, rows: 128 });
        let args = [whole(&p.q), whole(&p.k), whole(&p.v), self.read(&p.starts), self.read(&p.limits)];
        let args = args.into_iter().chain([self.write(&mut o), self.write(&mut lse)]).chain(self.sizes_of(p));
        let (kernel, shared) = p.kernels.forward;
        self.persistent(kernel, shared, &args.collect::<Vec<_>>());
        (o, Softmax(lse))
    }

    /// dq `[N, H·QK]`, dk `[N, G·QK]`, dv `[N, G·V]`, in F32.
    pub(super) fn flash_backward(&self, p: &Packed, seen: &Seen) -> [Tensor; 3] {
        let [n, _, qk] = p.q.dims("attention_backward: q");
        let value = p.v.cols();
        let mut d_o = self.make([n, p.heads, value], DType::Bf16);
        let mut delta = self.make([p.heads, n], DType::F32);
        let args = [
            self.read(seen.o),
            self.read(seen.d_o),
            self.write(&mut d_o),
            self.write(&mut delta),
            int(n),
            int(p.heads),
        ];
        self.launch(p.kernels.delta, [(n * p.heads).div_ceil(8), 1, 1], 0, &args);

        let maps = |queries: u32, keys: u32| {
            let of = |x: &Tensor, rows| self.map_heads(x, Boxes { columns: 64, rows });
            [of(&p.q, queries), of(&p.k, keys), of(&p.v, keys), of(&d_o, queries)]
        };
        let known = [&p.starts, &p.limits, &seen.softmax.0, &delta].map(|x| self.read(x));
        let (mut dk, mut dv) =
            (self.make([n, p.kv_heads * qk], DType::F32), self.make([n, p.kv_heads * value], DType::F32));
        let results = [self.write(&mut dk), self.write(&mut dv)];
        let args = maps(p.kernels.queries_per_step, 128).into_iter().chain(known).chain(results);
        let (kernel, shared) = p.kernels.keys;
        self.persistent(kernel, shared, &args.chain(self.sizes_of(p)).collect::<Vec<_>>());

        let mut dq = self.make([n, p.heads * qk], DType::F32);
        let result = [self.write(&mut dq)];
        let args = maps(128, 64).into_iter().chain(known).chain(result).chain(self.sizes_of(p));
        let (kernel, shared) = p.kernels.queries;
        self.persistent(kernel, shared, &args.collect::<Vec<_>>());
        [dq, dk, dv]
    }
}
