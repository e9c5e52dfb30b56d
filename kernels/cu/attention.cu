// Causal attention on any GPU, in F32: one block per query, or per key, and head. Long products have kernels of their
// own where the GPU has tensor cores; these serve head widths that those do not have, and generation.
//
// A row's sums go over keys in blocks of 128, counted from the start of its document, so its bits do not depend on what
// stands beside the document.
#include "math.cuh"

constexpr int KEYS = 128;  // keys, or queries, per step

// Where the elements of one operand lie: row i of head h at `data + i·row + h·head`.
struct Rows {
  const float* data;
  i64 row, head;
};

// Queries and keys of `own` elements of their own and `shared` more, which may be the same for all heads; values.
struct Heads {
  Rows q, k, k_shared, v;
  int own, shared, value;
  int heads, queries_per_key;  // neighbouring query heads that read one head of keys and values
  float scale;
};

// Keys `first..` of training: neighbouring rows of the operands.
struct Document {
  const Heads& h;
  i64 first;
  int kv_head;
  DEVICE const float* at(const Rows& rows, int key) const {
    return rows.data + (first + key) * rows.row + kv_head * rows.head;
  }
  DEVICE const float* own(int key) const { return at(h.k, key); }
  DEVICE const float* shared(int key) const { return at(h.k_shared, key); }
  DEVICE const float* value(int key) const { return at(h.v, key); }
  DEVICE i64 value_row() const { return h.v.row; }
  // How many of `count` keys from `key` on have values `value_row()` apart.
  DEVICE int run(int key, int count) const { return count; }
};

// Keys of generation: the rows of pages. `k` and `v` are where a row has the key and the value of the head.
struct Cache {
  const float* const* pages;
  int page_rows;
  i64 row;
  int k, v;
  DEVICE const float* at(int key) const {
    int page = key / page_rows;
    return pages[page] + (key - page * page_rows) * row;
  }
  DEVICE const float* own(int key) const { return at(key) + k; }
  DEVICE const float* shared(int key) const { return at(key); }
  DEVICE const float* value(int key) const { return at(key) + v; }
  DEVICE i64 value_row() const { return row; }
  DEVICE int run(int key, int count) const {
    int left = page_rows - key % page_rows;
    return left < count ? left : count;
  }
};

DEVICE float score(const Heads& h, const float* q, const float* own, const float* shared) {
  float sum = 0.f;
  for (int c = 0; c < h.own; c++) sum = fmaf(q[c], own[c], sum);
  for (int c = 0; c < h.shared; c++) sum = fmaf(q[h.own + c], shared[c], sum);
  return sum * h.scale;
}

// `queries` queries, Q at most, over the same `count` keys, each of which is read once for all of them; query i at
// `query + i·next`, its output at `o + i·value`. Returns the log-sum-exp of the first in every thread. Dynamic shared
// memory: own + shared + value floats for each query; scratch of 4 and p of Q·128 floats.
template <int Q, class Keys>
DEVICE float attend(
    const Heads& h, const float* query, i64 next, int queries, const Keys& keys, int count, float* o, float* q,
    float* scratch, float* p) {
  const float lowest = -3.402823466e+38f;
  int width = h.own + h.shared;
  float *sum = q + queries * width, largest[Q], total[Q], keep[Q];
  const float* of[Q];  // a query; beyond the last one the first again, whose results are ignored
#pragma unroll
  for (int i = 0; i < Q; i++) {
    of[i] = q + (i < queries ? i : 0) * width;
    largest[i] = lowest;
    total[i] = 0.f;
  }
  for (int i = 0; i < queries; i++) {
    for (int c = threadIdx.x; c < width; c += KEYS) q[i * width + c] = query[i * next + c];
    for (int c = threadIdx.x; c < h.value; c += KEYS) sum[i * h.value + c] = 0.f;
  }
  __syncthreads();
  for (int start = 0; start < count; start += KEYS) {
    int key = start + threadIdx.x;
    float s[Q] = {};
    if (key < count) {
      const float *own = keys.own(key), *shared = keys.shared(key);
      for (int c = 0; c < h.own; c++) {
        float element = own[c];
#pragma unroll
        for (int i = 0; i < Q; i++) s[i] = fmaf(of[i][c], element, s[i]);
      }
      for (int c = 0; c < h.shared; c++) {
        float element = shared[c];
#pragma unroll
        for (int i = 0; i < Q; i++) s[i] = fmaf(of[i][h.own + c], element, s[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < Q; i++) {
      if (i >= queries) continue;
      float own = key < count ? s[i] * h.scale : lowest, most = fmaxf(largest[i], block_max(own, scratch));
      float e = key < count ? exp_below(own - most) : 0.f;
      keep[i] = exp_below(largest[i] - most);
      p[i * KEYS + threadIdx.x] = e;
      total[i] = total[i] * keep[i] + block_sum(e, scratch);
      largest[i] = most;
    }
    int here = count - start < KEYS ? count - start : KEYS;
    for (int c = threadIdx.x; c < h.value; c += KEYS) {
      float value[Q];
#pragma unroll
      for (int i = 0; i < Q; i++) value[i] = i < queries ? sum[i * h.value + c] * keep[i] : 0.f;
      for (int j = 0; j < here;) {
        const float* v = keys.value(start + j) + c;
        int end = j + keys.run(start + j, here - j);
        for (; j < end; j++, v += keys.value_row()) {
          float element = *v;
#pragma unroll
          for (int i = 0; i < Q; i++) value[i] = fmaf(p[(i < queries ? i : 0) * KEYS + j], element, value[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < Q; i++)
        if (i < queries) sum[i * h.value + c] = value[i];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < Q; i++)
    if (i < queries)
      for (int c = threadIdx.x; c < h.value; c += KEYS) o[i * h.value + c] = sum[i * h.value + c] / total[i];
  return largest[0] + (float)ln_f64((double)total[0]);
}

// Block (i, h): row i, head h. lse is `[H, N]`.
KERNEL(128) attention_forward(
    const float* q, const float* k, const float* k_shared, const float* v, const u32* positions, float* o, float* lse,
    i64 q_row, i64 q_head, i64 k_row, i64 k_head, i64 shared_row, i64 shared_head, i64 v_row, i64 v_head, int own,
    int shared_width, int value, int heads, int queries_per_key, float scale) {
  DYNAMIC_SHARED(shared);
  __shared__ float scratch[4], p[KEYS];
  Heads h{{q, q_row, q_head}, {k, k_row, k_head}, {k_shared, shared_row, shared_head}, {v, v_row, v_head}, own,
          shared_width, value, heads, queries_per_key, scale};
  i64 row = blockIdx.x;
  int head = blockIdx.y, position = (int)positions[row];
  Document keys{h, row - position, head / queries_per_key};
  float of_row = attend<1>(h, q + row * q_row + head * q_head, 0, 1, keys, position + 1,
                           o + (row * heads + head) * value, (float*)shared, scratch, p);
  if (threadIdx.x == 0) lse[(i64)head * gridDim.x + row] = of_row;
}

// `means[h, i] = Σ_c do·o`. One warp per (row, head).
KERNEL(128) attention_means(const float* o, const float* d_o, float* means, int n, int heads, int value) {
  i64 at = (i64)blockIdx.x * 4 + (threadIdx.x >> 5);
  if (at >= (i64)n * heads) return;
  float sum = 0.f;
  for (int c = threadIdx.x & 31; c < value; c += 32) sum += o[at * value + c] * d_o[at * value + c];
  sum = warp_sum(sum);
  i64 row = at / heads, head = at - row * heads;
  if ((threadIdx.x & 31) == 0) means[head * n + row] = sum;
}

// Block (i, h): the gradient of a query. Dynamic shared memory: 2·(own + shared) + value floats.
KERNEL(128) attention_dq(
    const float* q, const float* k, const float* k_shared, const float* v, const u32* positions, const float* lse,
    const float* means, const float* d_o, float* dq, i64 q_row, i64 q_head, i64 k_row, i64 k_head, i64 shared_row,
    i64 shared_head, i64 v_row, i64 v_head, int own, int shared_width, int value, int heads, int queries_per_key,
    float scale) {
  DYNAMIC_SHARED(shared);
  __shared__ float ds[KEYS];
  Heads h{{q, q_row, q_head}, {k, k_row, k_head}, {k_shared, shared_row, shared_head}, {v, v_row, v_head}, own,
          shared_width, value, heads, queries_per_key, scale};
  int width = own + shared_width, head = blockIdx.y, kv_head = head / queries_per_key;
  float *query = (float*)shared, *sum = query + width, *gradient = sum + width;
  i64 row = blockIdx.x, first = row - positions[row];
  int count = (int)positions[row] + 1;
  for (int c = threadIdx.x; c < width; c += KEYS) {
    query[c] = q[row * q_row + head * q_head + c];
    sum[c] = 0.f;
  }
  for (int c = threadIdx.x; c < value; c += KEYS) gradient[c] = d_o[(row * heads + head) * value + c];
  float of_row = lse[(i64)head * gridDim.x + row], mean = means[(i64)head * gridDim.x + row];
  Document keys{h, first, kv_head};
  __syncthreads();
  for (int start = 0; start < count; start += KEYS) {
    int key = start + threadIdx.x;
    ds[threadIdx.x] = 0.f;
    if (key < count) {
      float p = exp_below(score(h, query, keys.own(key), keys.shared(key)) - of_row), dp = 0.f;
      const float* of_key = keys.value(key);
      for (int c = 0; c < value; c++) dp = fmaf(gradient[c], of_key[c], dp);
      ds[threadIdx.x] = p * (dp - mean) * scale;
    }
    __syncthreads();
    int here = count - start < KEYS ? count - start : KEYS;
    for (int c = threadIdx.x; c < width; c += KEYS) {
      float d = sum[c];
      for (int j = 0; j < here; j++) {
        i64 at = first + start + j;
        float element = c < own ? k[at * k_row + kv_head * k_head + c]
                                : k_shared[at * shared_row + kv_head * shared_head + c - own];
        d = fmaf(ds[j], element, d);
      }
      sum[c] = d;
    }
    __syncthreads();
  }
  for (int c = threadIdx.x; c < width; c += KEYS) dq[row * q_row + head * q_head + c] = sum[c];
}

// Block (j, g): the gradients of a key and a value, over all queries of its document that see it, of all query heads
// that read it. dk is `[N, G, own + shared]`, dv at `dv + j·dv_row + g·dv_head`; `last` is the end of each row's
// document. Dynamic shared memory: 2·(own + shared) + 2·value floats.
KERNEL(128) attention_dkv(
    const float* q, const float* k, const float* k_shared, const float* v, const u32* positions, const u32* ends,
    int documents, const float* lse, const float* means, const float* d_o, float* dk, float* dv, i64 q_row, i64 q_head,
    i64 k_row, i64 k_head, i64 shared_row, i64 shared_head, i64 v_row, i64 v_head, i64 dv_row, i64 dv_head, int own,
    int shared_width, int value, int heads, int queries_per_key, float scale) {
  DYNAMIC_SHARED(shared);
  __shared__ float ps[KEYS], ds[KEYS];
  int width = own + shared_width, kv_head = blockIdx.y, n = gridDim.x;
  float *key = (float*)shared, *of_key = key + width, *dk_sum = of_key + value, *dv_sum = dk_sum + width;
  i64 row = blockIdx.x;
  int end = 0;
  for (int document = 0; document < documents && end <= row; document++) end = (int)ends[document];
  for (int c = threadIdx.x; c < width; c += KEYS) {
    key[c] = c < own ? k[row * k_row + kv_head * k_head + c]
                     : k_shared[row * shared_row + kv_head * shared_head + c - own];
    dk_sum[c] = 0.f;
  }
  for (int c = threadIdx.x; c < value; c += KEYS) {
    of_key[c] = v[row * v_row + kv_head * v_head + c];
    dv_sum[c] = 0.f;
  }
  __syncthreads();
  // queries in blocks counted from the start of the document, as the keys are
  i64 document_start = row - positions[row], from = document_start + positions[row] / KEYS * KEYS;
  for (int head = kv_head * queries_per_key; head < (kv_head + 1) * queries_per_key; head++) {
    for (i64 start = from; start < end; start += KEYS) {
      i64 i = start + threadIdx.x;
      ps[threadIdx.x] = ds[threadIdx.x] = 0.f;
      if (i >= row && i < end) {
        const float *query = q + i * q_row + head * q_head, *gradient = d_o + (i * heads + head) * value;
        float s = 0.f, dp = 0.f;
        for (int c = 0; c < width; c++) s = fmaf(query[c], key[c], s);
        for (int c = 0; c < value; c++) dp = fmaf(gradient[c], of_key[c], dp);
        float p = exp_below(s * scale - lse[(i64)head * n + i]);
        ps[threadIdx.x] = p;
        ds[threadIdx.x] = p * (dp - means[(i64)head * n + i]) * scale;
      }
      __syncthreads();
      int here = end - start < KEYS ? (int)(end - start) : KEYS;
      for (int c = threadIdx.x; c < width + value; c += KEYS) {
        bool is_key = c < width;
        float d = is_key ? dk_sum[c] : dv_sum[c - width];
        for (int j = 0; j < here; j++)
          d = is_key ? fmaf(ds[j], q[(start + j) * q_row + head * q_head + c], d)
                     : fmaf(ps[j], d_o[((start + j) * heads + head) * value + c - width], d);
        if (is_key) dk_sum[c] = d; else dv_sum[c - width] = d;
      }
      __syncthreads();
    }
  }
  for (int c = threadIdx.x; c < width; c += KEYS) dk[(row * gridDim.y + kv_head) * width + c] = dk_sum[c];
  for (int c = threadIdx.x; c < value; c += KEYS) dv[row * dv_row + kv_head * dv_head + c] = dv_sum[c];
}

// From dk `[N, H, nope + rope]`: the part of each head into dkv `[N, H, nope + value]`, and the sum over heads, in
// order, of the rest into d_rope `[N, rope]`.
KERNEL(256) split_dk(const float* dk, float* dkv, float* d_rope, i64 n, int heads, int nope, int rope, int value) {
  int width = nope + rope;
  EACH(i, n * width) {
    i64 row = i / width, c = i - row * width;
    float sum = 0.f;
    for (int head = 0; head < heads; head++) {
      float d = dk[(row * heads + head) * width + c];
      if (c < nope) dkv[(row * heads + head) * (nope + value) + c] = d;
      else sum += d;
    }
    if (c >= nope) d_rope[row * rope + c - nope] = sum;
  }
}

// Keys and values in bf16 for the tensor cores: k `[N, H, nope + rope]` with the shared part behind each head's own,
// and v `[N, H, value]`, from kv `[N, H, nope + value]` and k_rope `[N, rope]`, both read once.
KERNEL(256) pack_keys(
    const float* kv, const float* k_rope, bf16* k, bf16* v, i64 n, int heads, int nope, int rope, int value) {
  int width = nope + value, own = heads * width, l = row_threads(own + rope);
  EACH_ROW(row, n, l) {
    bf16 *of_k = k + row * heads * (nope + rope), *of_v = v + row * heads * value;
    EACH_COLUMN(j, own + rope, l) {
      if (j < own) {
        int head = j / width, c = j - head * width;
        bf16 rounded = to_bf16(kv[row * own + j]);
        if (c < nope) of_k[head * (nope + rope) + c] = rounded;
        else of_v[head * value + c - nope] = rounded;
      } else {
        bf16 rounded = to_bf16(k_rope[row * rope + j - own]);
        for (int head = 0; head < heads; head++) of_k[head * (nope + rope) + nope + j - own] = rounded;
      }
    }
  }
}

// Values' gradients `[N, H, value]` into dkv `[N, H, nope + value]`.
KERNEL(256) place_dv(const float* dv, float* dkv, i64 n, int heads, int nope, int value) {
  EACH(i, n * heads * value) {
    i64 at = i / value;
    dkv[at * (nope + value) + nope + (i - at * value)] = dv[i];
  }
}

// One request of generation: its rows of q, which stand at the last of `length` positions of its cache. Position p is
// row `p % page_rows` of page `p / page_rows`; `page` is the first of its pages in the table of addresses.
struct Request {
  int first, rows, length, page_rows, page;
};

// Attention over caches. Keys of head h at column `k_head·(h / queries_per_key)` of a page's rows, values at
// `v_first + v_head·(h / queries_per_key)`; o is `[N, H, value]`. Block (i, g): row i, of each head of keys up to
// TOGETHER heads that read it.
constexpr int TOGETHER = 8;
KERNEL(128) attention_cached(
    const float* q, const float* const* pages, const Request* requests, int count, float* o, i64 q_row, i64 q_head,
    i64 page_row, int k_head, int v_first, int v_head, int width, int value, int heads, int queries_per_key,
    float scale) {
  DYNAMIC_SHARED(shared);
  __shared__ float scratch[4], p[TOGETHER * KEYS];
  int parts = (queries_per_key + TOGETHER - 1) / TOGETHER, kv_head = blockIdx.y / parts;
  int first = blockIdx.y % parts * TOGETHER, head = kv_head * queries_per_key + first;
  int queries = queries_per_key - first < TOGETHER ? queries_per_key - first : TOGETHER, row = blockIdx.x, at = 0;
  while (at + 1 < count && row >= requests[at].first + requests[at].rows) at++;
  Request r = requests[at];
  Heads h{{}, {}, {}, {}, width, 0, value, heads, queries_per_key, scale};  // `keys` says where rows are
  Cache keys{pages + r.page, r.page_rows, page_row, kv_head * k_head, v_first + kv_head * v_head};
  int seen = r.length - r.rows + (row - r.first) + 1;
  attend<TOGETHER>(h, q + row * q_row + head * q_head, q_head, queries, keys, seen,
                   o + ((i64)row * heads + head) * value, (float*)shared, scratch, p);
}

// Attention over caches of latents: all heads read one key, whose first `value` elements are the value. Block (i, g):
// row i, `together` heads. Keys come to shared memory in blocks of LATENT_KEYS, for the scores and as values, so that
// each is read once. A warp has the heads of its number, modulo warps. Dynamic shared memory: width + value floats for
// each head, and LATENT_KEYS·(width | 1).
constexpr int LATENT_HEADS = 16, LATENT_KEYS = 32, LATENT_WARPS = 8;
KERNEL(256) attention_latent(
    const float* q, const float* const* pages, const Request* requests, int count, float* o, i64 q_row, i64 q_head,
    i64 page_row, int width, int value, int heads, int together, float scale) {
  DYNAMIC_SHARED(shared);
  __shared__ float p[LATENT_HEADS * LATENT_KEYS], keep[LATENT_HEADS], totals[LATENT_HEADS];
  __shared__ const float* places[2][LATENT_KEYS];  // of the keys of this block of keys and the next one
  __shared__ Request r;
  const float lowest = -3.402823466e+38f;
  int first = blockIdx.y * together, row = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int queries = heads - first < together ? heads - first : together;
  if (threadIdx.x == 0) {
    int at = 0;
    while (at + 1 < count && row >= requests[at].first + requests[at].rows) at++;
    r = requests[at];
  }
  __syncthreads();
  Cache keys{pages + r.page, r.page_rows, page_row, 0, 0};
  int seen = r.length - r.rows + (row - r.first) + 1;
  int pitch = width | 1;  // odd: lanes read one element of 32 keys from 32 banks
  float *query = (float*)shared, *sum = query + queries * width, *staged = sum + queries * value;
  q += row * q_row + first * q_head;
  for (int i = 0; i < queries; i++) {
    for (int c = threadIdx.x; c < width; c += 256) query[i * width + c] = q[i * q_head + c];
    for (int c = threadIdx.x; c < value; c += 256) sum[i * value + c] = 0.f;
  }
  if (threadIdx.x < LATENT_KEYS && threadIdx.x < seen) places[0][threadIdx.x] = keys.at(threadIdx.x);
  __syncthreads();
  float largest[2] = {lowest, lowest}, total[2] = {0.f, 0.f};
  for (int start = 0, now = 0; start < seen; start += LATENT_KEYS, now ^= 1) {
    int here = seen - start < LATENT_KEYS ? seen - start : LATENT_KEYS;
    for (int j = warp; j < here; j += LATENT_WARPS) {
      const float* key = places[now][j];
#pragma unroll 8
      for (int c = lane; c < width; c += 32) staged[j * pitch + c] = key[c];
    }
    int next = start + LATENT_KEYS + (int)threadIdx.x;
    if (threadIdx.x < LATENT_KEYS && next < seen) places[now ^ 1][threadIdx.x] = keys.at(next);
    __syncthreads();
    float s[2] = {0.f, 0.f};
    const float* of[2] = {query + (warp < queries ? warp : 0) * width,
                          query + (warp + LATENT_WARPS < queries ? warp + LATENT_WARPS : 0) * width};
    if (lane < here && warp < queries) {
      for (int c = 0; c < width; c++) {
        float element = staged[lane * pitch + c];
        s[0] = fmaf(of[0][c], element, s[0]);
        s[1] = fmaf(of[1][c], element, s[1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int head = warp + i * LATENT_WARPS;
      if (head >= queries) continue;  // whole warps
      float own = lane < here ? s[i] * scale : lowest, most = fmaxf(largest[i], warp_max(own));
      float e = lane < here ? exp_below(own - most) : 0.f, kept = exp_below(largest[i] - most);
      total[i] = total[i] * kept + warp_sum(e);
      largest[i] = most;
      p[head * LATENT_KEYS + lane] = e;
      if (lane == 0) keep[head] = kept;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < value; c += 256) {
      float of_head[LATENT_HEADS];
#pragma unroll
      for (int i = 0; i < LATENT_HEADS; i++) of_head[i] = i < queries ? sum[i * value + c] * keep[i] : 0.f;
      for (int j = 0; j < here; j++) {
        float element = staged[j * pitch + c];
#pragma unroll
        for (int i = 0; i < LATENT_HEADS; i++)
          of_head[i] = fmaf(p[(i < queries ? i : 0) * LATENT_KEYS + j], element, of_head[i]);
      }
#pragma unroll
      for (int i = 0; i < LATENT_HEADS; i++)
        if (i < queries) sum[i * value + c] = of_head[i];
    }
    __syncthreads();  // the keys and their weights are read
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (lane == 0 && warp + i * LATENT_WARPS < queries) totals[warp + i * LATENT_WARPS] = total[i];
  __syncthreads();
  o += ((i64)row * heads + first) * value;
  for (int i = 0; i < queries; i++)
    for (int c = threadIdx.x; c < value; c += 256) o[i * value + c] = sum[i * value + c] / totals[i];
}
