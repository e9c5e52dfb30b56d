//! Causal attention: of training, and of generation from caches.

use super::device::Cuda;
use super::launch::{Arg, int, long};
use super::products::Strided;
use super::rows::expect_f32;
use crate::backend::{AttentionShape, CachedRows, GroupedShape, Softmax, Write};
use crate::document_bounds::Documents;
use crate::dtype::DType;
use crate::tensor::Tensor;

/// Heads of one key that a block serves in generation.
const TOGETHER: usize = 8;

/// As in `../../cu/attention.cu`, with the static shared memory of `attention_latent`.
const LATENT_KEYS: usize = 32;
const LATENT_STATIC: usize = 4 << 10;

/// Where the elements of one operand lie: row i of head h at `address + i·row + h·head`.
#[derive(Clone, Copy, Debug)]
struct Rows {
    address: u64,
    row: usize,
    head: usize,
}

/// The queries, keys and values of every head, whatever the form of attention.
#[derive(Clone, Copy, Debug)]
struct Heads {
    q: Rows,
    /// Keys: `own` elements, and `shared` more from another place.
    k: Rows,
    k_shared: Rows,
    v: Rows,
    own: usize,
    shared: usize,
    value: usize,
    heads: usize,
    kv_heads: usize,
    scale: f64,
}

impl Heads {
    fn strides(&self) -> [Arg; 8] {
        let [q, k, s, v] = [self.q, self.k, self.k_shared, self.v].map(|x| [long(x.row), long(x.head)]);
        [q[0], q[1], k[0], k[1], s[0], s[1], v[0], v[1]]
    }

    fn shape(&self) -> [Arg; 6] {
        let widths = [self.own, self.shared, self.value, self.heads, self.heads / self.kv_heads].map(int);
        [widths[0], widths[1], widths[2], widths[3], widths[4], Arg::Float(self.scale as f32)]
    }

    fn addresses(&self) -> [Arg; 4] {
        [self.q, self.k, self.k_shared, self.v].map(|x| Arg::Address(x.address))
    }
}

/// Queries, and where a row of a page has the keys and values of their heads, in elements: keys of the key-value head g
/// at `g·k_head`, values at `v_first + g·v_head`.
#[derive(Clone, Copy, Debug)]
struct CachedHeads {
    q: Rows,
    page_row: usize,
    k_head: usize,
    v_first: usize,
    v_head: usize,
    /// Of a query and a key, and of a value.
    width: usize,
    value: usize,
    heads: usize,
    queries_per_key: usize,
    scale: f64,
}

/// What backward needs beside the operands.
pub(super) struct Seen<'a> {
    pub o: &'a Tensor,
    pub softmax: &'a Softmax,
    pub d_o: &'a Tensor,
}

impl Cuda {
    fn rows(&self, x: &Tensor, first: usize, row: usize, head: usize) -> Rows {
        expect_f32("attention", x);
        Rows { address: x.address(self.place()) + 4 * first as u64, row, head }
    }

    fn latent_heads(&self, s: &AttentionShape, q: &Tensor, kv: &Tensor, k_rope: &Tensor) -> Heads {
        let (n, qk, width) = (q.rows(), s.nope + s.rope, s.nope + s.value);
        q.expect("attention: q", [n, s.heads * qk]);
        kv.expect("attention: kv", [n, s.heads * width]);
        k_rope.expect("attention: k_rope", [n, s.rope]);
        Heads {
            q: self.rows(q, 0, s.heads * qk, qk),
            k: self.rows(kv, 0, s.heads * width, width),
            k_shared: self.rows(k_rope, 0, s.rope, 0),
            v: self.rows(kv, s.nope, s.heads * width, width),
            own: s.nope,
            shared: s.rope,
            value: s.value,
            heads: s.heads,
            kv_heads: s.heads,
            scale: s.scale,
        }
    }

    fn grouped_heads(&self, s: &GroupedShape, q: &Tensor, k: &Tensor, v: &Tensor) -> Heads {
        let (n, width) = (q.rows(), s.kv_heads * s.dim);
        q.expect("grouped_attention: q", [n, s.heads * s.dim]);
        k.expect("grouped_attention: k", [n, width]);
        v.expect("grouped_attention: v", [n, width]);
        let k = self.rows(k, 0, width, s.dim);
        Heads {
            q: self.rows(q, 0, s.heads * s.dim, s.dim),
            k,
            k_shared: k,
            v: self.rows(v, 0, width, s.dim),
            own: s.dim,
            shared: 0,
            value: s.dim,
            heads: s.heads,
            kv_heads: s.kv_heads,
            scale: s.scale,
        }
    }

    /// o `[N, H·value]`, and the log-sum-exp of the scores, F32 `[H, N]`.
    fn attend(&self, h: &Heads, documents: &Documents) -> (Tensor, Softmax) {
        let n = documents.rows();
        let mut o = self.make([n, h.heads * h.value], DType::F32);
        let mut lse = self.make([h.heads, n], DType::F32);
        let mut args = h.addresses().to_vec();
        args.extend([self.read(documents.positions()), self.write(&mut o), self.write(&mut lse)]);
        args.extend(h.strides().into_iter().chain(h.shape()));
        let shared = 4 * (h.own + h.shared + h.value);
        self.launch("attention_forward", [n, h.heads, 1], shared, &args);
        (o, Softmax(lse))
    }

    /// Writes dq `[N, H, own + shared]`, dk `[N, G, own + shared]`, and dv in the layout of `dv`.
    fn attend_backward(
        &self,
        h: &Heads,
        documents: &Documents,
        seen: &Seen,
        dq: &mut Tensor,
        dk: &mut Tensor,
        dv: Rows,
    ) {
        let (n, width) = (documents.rows(), h.own + h.shared);
        seen.d_o.expect("attention_backward: d_o", seen.o.shape());
        let mut means = self.make([h.heads, n], DType::F32);
        let args = [self.read(seen.o), self.read(seen.d_o), self.write(&mut means), int(n), int(h.heads), int(h.value)];
        self.launch("attention_means", [(n * h.heads).div_ceil(4), 1, 1], 0, &args);
        let (lse, means, d_o) = (self.read(&seen.softmax.0), self.read(&means), self.read(seen.d_o));

        let mut args = h.addresses().to_vec();
        args.extend([self.read(documents.positions()), lse, means, d_o, self.write(dq)]);
        args.extend(h.strides().into_iter().chain(h.shape()));
        self.launch("attention_dq", [n, h.heads, 1], 4 * (2 * width + h.value), &args);

        let mut args = h.addresses().to_vec();
        args.extend([self.read(documents.positions()), self.read(documents.ends()), int(documents.count())]);
        args.extend([lse, means, d_o, self.write(dk), Arg::Address(dv.address)]);
        args.extend(h.strides().into_iter().chain([long(dv.row), long(dv.head)]).chain(h.shape()));
        self.launch("attention_dkv", [n, h.kv_heads, 1], 8 * (width + h.value), &args);
    }

    pub(super) fn attention_of(
        &self,
        s: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        let heads = self.latent_heads(s, q, kv, k_rope);
        match self.packed_latent(s, q, kv, k_rope, documents) {
            Some(packed) => self.flash_forward(&packed),
            None => self.attend(&heads, documents),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn attention_gradient(
        &self,
        s: &AttentionShape,
        q: &Tensor,
        kv: &Tensor,
        k_rope: &Tensor,
        o: &Tensor,
        softmax: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        let (n, width) = (q.rows(), s.nope + s.value);
        let (heads, seen) = (self.latent_heads(s, q, kv, k_rope), Seen { o, softmax, d_o });
        let (mut dkv, mut d_rope) = (self.like(kv), self.like(k_rope));
        let (dq, dk) = match self.packed_latent(s, q, kv, k_rope, documents) {
            Some(packed) => {
                let [dq, dk, dv] = self.flash_backward(&packed, &seen);
                let widths = [s.heads, s.nope, s.value].map(int);
                let args = [self.read(&dv), self.write(&mut dkv), long(n)];
                self.each("place_dv", dv.len(), &args.into_iter().chain(widths).collect::<Vec<_>>());
                (dq, dk)
            }
            None => {
                let mut dq = self.like(q);
                let mut dk = self.make([n, s.heads * (s.nope + s.rope)], DType::F32);
                let address = dkv.address_to_write(self.place()) + 4 * s.nope as u64;
                let dv = Rows { address, row: s.heads * width, head: width };
                self.attend_backward(&heads, documents, &seen, &mut dq, &mut dk, dv);
                (dq, dk)
            }
        };
        let widths = [s.heads, s.nope, s.rope, s.value].map(int);
        let args = [self.read(&dk), self.write(&mut dkv), self.write(&mut d_rope), long(n)];
        let args: Vec<Arg> = args.into_iter().chain(widths).collect();
        self.each("split_dk", n * (s.nope + s.rope), &args);
        (dq, dkv, d_rope)
    }

    pub(super) fn grouped_attention_of(
        &self,
        s: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Softmax) {
        let heads = self.grouped_heads(s, q, k, v);
        match self.packed_grouped(s, [q, k, v], documents) {
            Some(packed) => self.flash_forward(&packed),
            None => self.attend(&heads, documents),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn grouped_attention_gradient(
        &self,
        s: &GroupedShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        softmax: &Softmax,
        d_o: &Tensor,
        documents: &Documents,
    ) -> (Tensor, Tensor, Tensor) {
        let (heads, seen) = (self.grouped_heads(s, q, k, v), Seen { o, softmax, d_o });
        if let Some(packed) = self.packed_grouped(s, [q, k, v], documents) {
            let [dq, dk, dv] = self.flash_backward(&packed, &seen);
            return (dq, dk, dv);
        }
        let (mut dq, mut dk, mut dv) = (self.like(q), self.like(k), self.like(v));
        let rows = Rows { address: dv.address_to_write(self.place()), row: s.kv_heads * s.dim, head: s.dim };
        self.attend_backward(&heads, documents, &seen, &mut dq, &mut dk, rows);
        (dq, dk, dv)
    }

    /// Attention over caches: each row of queries reads the pages of its request. Writes o `[N, H·value]`.
    fn attend_cached(&self, h: &CachedHeads, requests: &[CachedRows], o: &mut Tensor) {
        let (n, width) = (o.rows(), h.page_row);
        let (mut next, mut addresses, mut words) = (0, Vec::new(), Vec::new());
        for request in requests {
            let rows = &request.rows;
            assert!(rows.start == next, "attention of caches: rows {rows:?} after row {next}");
            request.check("attention of caches", width);
            next = rows.end;
            words.extend([rows.start, rows.len(), request.length, request.page_rows(), addresses.len()]);
            let held = request.pages.iter().zip(request.spans());
            addresses.extend(held.map(|(page, _)| page.address(self.place())));
        }
        assert!(next == n, "attention of caches: requests have {next} of {n} rows");
        // one upload: the addresses of all pages, and the requests as `struct Request` of `../../cu/attention.cu`
        let table: Vec<u32> = addresses.iter().flat_map(|&address| [address as u32, (address >> 32) as u32]).collect();
        let behind = 4 * table.len() as u64;
        let table = self.upload_bytes(&[table, words.into_iter().map(|word| word as u32).collect()].concat());
        let pages = table.address(self.place());
        let mut args = vec![Arg::Address(h.q.address), Arg::Address(pages), Arg::Address(pages + behind)];
        args.extend([int(requests.len()), self.write(o), long(h.q.row), long(h.q.head), long(width)]);
        args.extend([h.k_head, h.v_first, h.v_head, h.width, h.value, h.heads, h.queries_per_key].map(int));
        args.push(Arg::Float(h.scale as f32));
        if let Some((together, shared)) = self.latents_together(h) {
            let of_head = args.split_off(8);
            args.extend([h.width, h.value, h.heads, together].map(int));
            args.extend(of_head.last());
            return self.launch("attention_latent", [n, h.heads.div_ceil(together), 1], shared, &args);
        }
        let (kv_heads, parts) = (h.heads / h.queries_per_key, h.queries_per_key.div_ceil(TOGETHER));
        let queries = h.queries_per_key.min(TOGETHER);
        self.launch("attention_cached", [n, kv_heads * parts, 1], 4 * queries * (h.width + h.value), &args);
    }

    /// How many heads a block of `attention_latent` serves, with the bytes of shared memory that it takes: where all
    /// heads read one key whose beginning is the value, and shared memory holds a block of keys.
    fn latents_together(&self, h: &CachedHeads) -> Option<(usize, usize)> {
        if h.queries_per_key != h.heads || h.v_first != 0 || h.value > h.width {
            return None;
        }
        let bytes = |heads: usize| 4 * (heads.min(h.heads) * (h.width + h.value) + LATENT_KEYS * (h.width | 1));
        let fits = |&heads: &usize| bytes(heads) + LATENT_STATIC <= self.found().shared_memory();
        [16, 8, 4, 2, 1].into_iter().find(fits).map(|heads| (heads, bytes(heads)))
    }

    pub(super) fn latent_attention_of(
        &self,
        s: &AttentionShape,
        q: &Tensor,
        kv_b: &Tensor,
        requests: &[CachedRows],
    ) -> Tensor {
        let (n, qk, kv, latent) = (q.rows(), s.nope + s.rope, s.nope + s.value, kv_b.cols());
        let width = latent + s.rope;
        q.expect("latent_attention: q", [n, s.heads * qk]);
        kv_b.expect("latent_attention: kv_b", [s.heads * kv, latent]);
        // queries multiplied by the key half of kv_b, [N, H, latent + rope]
        let mut absorbed = self.make([n, s.heads * width], DType::F32);
        let to =
            Strided { address: absorbed.address_to_write(self.place()), row: s.heads * width, col: 1, next: width };
        let up = self.strided(kv_b, 0, latent, kv * latent);
        self.multiply(self.strided(q, 0, s.heads * qk, qk), up, to, [n, latent, s.nope], s.heads, Write::Set);
        for (offset, head) in (0..s.heads).map(|head| (head * width + latent, head)) {
            let from = q.address(self.place()) + 4 * (head * qk + s.nope) as u64;
            let args = [
                Arg::Address(from),
                long(s.heads * qk),
                Arg::Address(to.address + 4 * offset as u64),
                long(s.heads * width),
                long(n),
                int(s.rope),
            ];
            self.each("copy_columns", n * s.rope, &args);
        }
        let mut seen = self.make([n, s.heads * latent], DType::F32);
        let heads = CachedHeads {
            q: self.rows(&absorbed, 0, s.heads * width, width),
            page_row: width,
            k_head: 0,
            v_first: 0,
            v_head: 0,
            width,
            value: latent,
            heads: s.heads,
            queries_per_key: s.heads,
            scale: s.scale,
        };
        self.attend_cached(&heads, requests, &mut seen);
        let mut o = self.make([n, s.heads * s.value], DType::F32);
        let to = Strided { address: o.address_to_write(self.place()), row: s.heads * s.value, col: 1, next: s.value };
        let down = self.strided(kv_b, s.nope * latent, latent, kv * latent).t();
        let from = self.strided(&seen, 0, s.heads * latent, latent);
        self.multiply(from, down, to, [n, s.value, latent], s.heads, Write::Set);
        o
    }

    pub(super) fn cached_attention_of(&self, s: &GroupedShape, q: &Tensor, requests: &[CachedRows]) -> Tensor {
        q.expect("cached_attention: q", [q.rows(), s.heads * s.dim]);
        let heads = CachedHeads {
            q: self.rows(q, 0, s.heads * s.dim, s.dim),
            page_row: 2 * s.kv_heads * s.dim,
            k_head: s.dim,
            v_first: s.kv_heads * s.dim,
            v_head: s.dim,
            width: s.dim,
            value: s.dim,
            heads: s.heads,
            queries_per_key: s.queries_per_kv_head(),
            scale: s.scale,
        };
        let mut o = self.like(q);
        self.attend_cached(&heads, requests, &mut o);
        o
    }
}
