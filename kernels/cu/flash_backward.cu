// Backward of flash_forward.cu, in three kernels without atomics: delta, then dk and dv, then dq.
//
// With p = exp(scale · q · kᵀ − lse) and delta = Σ_columns do · o by rows:
//   dv = pᵀ · do      ds = p ∘ (do · vᵀ − delta) · scale      dq = ds · k      dk = dsᵀ · q
//
//   q, k, v, starts, limits, lse     as in flash_forward.cu
//   o, d_o  F32 [N, H, V]            `flash_delta` writes do to d_o_low bf16 [N, H, V], and delta F32 [H, N]
//   dq F32 [N, H, QK]    dk F32 [N, G, QK]    dv F32 [N, G, V], all set
//
// Probabilities are computed again from lse, so that no memory grows with the square of a document. p and ds are
// rounded to bf16 as operands. A row of dk and dv adds its heads in order, and per head the blocks of queries from its
// document's start; a row of dq adds the blocks of keys in order.
//
// Maps, all bf16 with the 128-byte swizzle and zeros beyond the edges. A tile of flash_keys has 128 keys and reads Q
// queries at a time, 32 for 192/128 and 64 otherwise; a tile of flash_queries has 128 queries and reads 64 keys at a
// time:
//                       dims           strides          box for flash_keys   box for flash_queries
//   q                   [QK, H, N]     [QK, H·QK]       [64, 1, Q]           [64, 1, 128]
//   d_o (d_o_low)       [V, H, N]      [V, H·V]         [64, 1, Q]           [64, 1, 128]
//   k                   [QK, G, N]     [QK, G·QK]       [64, 1, 128]         [64, 1, 64]
//   v                   [V, G, N]      [V, G·V]         [64, 1, 128]         [64, 1, 64]
// Launch: flash_delta with a warp per row and head, 256 threads a block, 8 warps: grid ⌈N·H/8⌉. The others: any
// grid, best one block per multiprocessor; THREADS; KEYS_SHARED_… and QUERIES_SHARED_… bytes.
//
// NVRTC 13.0: 168 registers at entry, then 40 and 232 in flash_keys, 24 and 240 in flash_queries; no spills.
// Next for speed: for 192/128 blocks of 32 queries make the first two products wait for shared memory; with ds through
// shared memory, one kernel could compute both sides with five products instead of seven.
#include "attention.cuh"

constexpr int KEY_STAGES = 4;      // of queries, in flash_keys
constexpr int QUERY_STAGES = 3;    // of keys, in flash_queries
constexpr int QUERY_BLOCK = 64;    // keys per stage in flash_queries

// ---- delta

template <int V>
DEVICE void delta_of_rows(const float* o, const float* d_o, bf16* d_o_low, float* delta, int n, int heads) {
  const int work = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (work >= n * heads) return;  // whole warps leave together
  const int row = work / heads, head = work % heads;
  const i64 base = (i64)work * V;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < V; i += 64) {
    const i64 at = base + i + 2 * lane;
    const Pair x = *(const Pair*)(o + at), dx = *(const Pair*)(d_o + at);
    sum += x.x * dx.x + x.y * dx.y;
    *(u32*)(d_o_low + at) = pack_bf16(dx.x, dx.y);
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
  if (lane == 0) delta[(i64)head * n + row] = sum;
}

KERNEL(256) flash_delta_128(const float* o, const float* d_o, bf16* d_o_low, float* delta, int n, int heads) {
  delta_of_rows<128>(o, d_o, d_o_low, delta, n, heads);
}

KERNEL(256) flash_delta_64(const float* o, const float* d_o, bf16* d_o_low, float* delta, int n, int heads) {
  delta_of_rows<64>(o, d_o, d_o_low, delta, n, heads);
}

// ---- dk and dv

// Queries per stage: as many as accumulators leave registers for.
DEVICE constexpr int queries_for(int qk, int v) { return qk + v > 256 ? 32 : 64; }

template <int QK, int V> struct KeysSizes {
  static constexpr int Q = queries_for(QK, V);
  static constexpr u32 VALUES = bytes_of(TILE, QK);                       // where values begin; keys begin at 0
  static constexpr u32 QUERIES = VALUES + bytes_of(TILE, V);
  static constexpr u32 D_O = bytes_of(Q, QK);                             // where do begins in a stage
  static constexpr u32 STAGE = D_O + bytes_of(Q, V);
  static constexpr u32 ROWS = QUERIES + KEY_STAGES * STAGE;               // lse and delta of each stage
  static constexpr u32 BARRIERS = ROWS + KEY_STAGES * 2 * Q * 4;
  static constexpr u32 SHARED = BARRIERS + (2 + 2 * KEY_STAGES) * 8;
};
constexpr u32 KEYS_SHARED_192_128 = KeysSizes<192, 128>::SHARED;
constexpr u32 KEYS_SHARED_128_128 = KeysSizes<128, 128>::SHARED;
constexpr u32 KEYS_SHARED_64_64 = KeysSizes<64, 64>::SHARED;
static_assert(KEYS_SHARED_192_128 == 164944 && KEYS_SHARED_128_128 == 198736 && KEYS_SHARED_64_64 == 100432);

// The first block of queries that sees row `row` of its document.
DEVICE int first_block(const Part& part, int block) { return part.start + (part.first - part.start) / block * block; }

template <int QK, int V>
DEVICE void keys_side(const TensorMap* q, const TensorMap* k, const TensorMap* v, const TensorMap* d_o,
                      const u32* starts, const u32* limits, const float* lse, const float* delta, float* dk,
                      float* dv, int n, int heads, int kv_heads, float scale, u8* shared) {
  using S = KeysSizes<QK, V>;
  constexpr int Q = S::Q;
  u64 *kv_full = (u64*)(shared + S::BARRIERS), *kv_empty = kv_full + 1, *full = kv_full + 2, *empty = full + KEY_STAGES;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 & 3, lane = threadIdx.x & 31;
  const int tiles = (n + TILE - 1) / TILE, works = tiles * kv_heads, repeat = heads / kv_heads;
  if (threadIdx.x == 0) {
    mbarrier_init(kv_full, 1);
    mbarrier_init(kv_empty, MULTIPLIERS);
    init_ring<KEY_STAGES>(full, empty, 2);
  }
  __syncthreads();
  Ring<KEY_STAGES> ring;
  u32 kv_phase = 0;

  if (group == COPIER) {
    fewer_registers<40>();
    if (warp == 0 && lane == 0) {
      prefetch_map(q);
      prefetch_map(k);
      prefetch_map(v);
      prefetch_map(d_o);
    }
    // One thread starts copies. The second warp brings lse and delta, whose rows begin at any multiple of 4 bytes: too
    // few for the copy engine. They share the loops, since two of them need more registers than there are.
    if (warp > 1 || (warp == 0 && lane > 0)) return;
    for (int work = blockIdx.x; work < works; work += gridDim.x, kv_phase ^= 1) {
      const int kv_head = work % kv_heads, first = work / kv_heads * TILE;
      const int end = first + TILE < n ? first + TILE : n;
      if (warp == 0) {
        mbarrier_wait(kv_empty, kv_phase ^ 1);
        mbarrier_expect(kv_full, S::QUERIES);
        copy_rows<QK>(shared, TILE, k, kv_full, kv_head, first);
        copy_rows<V>(shared + S::VALUES, TILE, v, kv_full, kv_head, first);
      }
      for (int row = first; row < end;) {
        const Part part(starts, limits, row, end);
        for (int head = kv_head * repeat; head < (kv_head + 1) * repeat; head++) {
          for (int query = first_block(part, Q); query < part.limit; query += Q, ring.next()) {
            if (warp == 0) {
              u8* stage = shared + S::QUERIES + ring.stage * S::STAGE;
              mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
              mbarrier_expect(&full[ring.stage], S::STAGE);
              copy_rows<QK>(stage, Q, q, &full[ring.stage], head, query);
              copy_rows<V>(stage + S::D_O, Q, d_o, &full[ring.stage], head, query);
            } else {
              float* rows = (float*)(shared + S::ROWS) + ring.stage * 2 * Q + lane;
              float of_lse[Q / 32], of_delta[Q / 32];
#pragma unroll
              for (int i = 0; i < Q / 32; i++) {
                const int at = query + 32 * i + lane < n ? query + 32 * i + lane : n - 1;
                of_lse[i] = lse[(i64)head * n + at] * LOG2_E;
                of_delta[i] = delta[(i64)head * n + at];
              }
              mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
#pragma unroll
              for (int i = 0; i < Q / 32; i++) {
                rows[32 * i] = of_lse[i];
                rows[Q + 32 * i] = of_delta[i];
              }
              __syncwarp();
              if (lane == 0) mbarrier_arrive(&full[ring.stage]);
            }
          }
        }
        row = part.last;
      }
    }
  } else {
    more_registers<232>();
    const float factor = scale * LOG2_E;
    for (int work = blockIdx.x; work < works; work += gridDim.x, kv_phase ^= 1) {
      const int kv_head = work % kv_heads, first = work / kv_heads * TILE;
      const int end = first + TILE < n ? first + TILE : n, mine = first + group * 64;
      // rows are keys, columns queries
      float of_k[QK / 2], of_v[V / 2], s[Q / 2], ds[Q / 2];
      u32 p[Q / 4], low_ds[Q / 4];
      clear(of_k);
      clear(of_v);
      mbarrier_wait(kv_full, kv_phase);
      for (int row = first; row < end;) {
        const Part part(starts, limits, row, end);
        const int from = part.first_of(mine);
        const bool any = from < part.last_of(mine), all = part.has_all(mine);
        for (int head = 0; head < repeat; head++) {
          for (int query = first_block(part, Q); query < part.limit; query += Q, ring.next()) {
            const u8* stage = shared + S::QUERIES + ring.stage * S::STAGE;
            const u8 *keys = shared + computed_here(group) * bytes_of(64, 64), *values = keys + S::VALUES;
            const float* rows = (const float*)(shared + S::ROWS) + ring.stage * 2 * Q + accumulator_column();
            mbarrier_wait(&full[ring.stage], ring.phase);
            if (any && query + Q > from) {
              fence_all(s);
              fence_all(ds);
              wgmma_fence();
              scores<QK, TILE, Q>(s, keys, stage);
              scores<V, TILE, Q>(ds, values, stage + S::D_O);
              wgmma_commit();
              wgmma_wait<0>();
              fence_all(s);
              fence_all(ds);
              const bool whole = all && query >= mine + 63 && query + Q <= part.limit;
              const int own = mine + accumulator_row(computed_here(threadIdx.x));
              // the first query that sees the key, where the key is one of the document
              const int since = part.has(own) ? own : n, since_high = part.has(own + 8) ? own + 8 : n;
#pragma unroll
              for (int i = 0; i < Q / 2; i++) {
                const int column = i / 4 * 8 + i % 2, at = query + column + accumulator_column();
                float probability = fast_exp2(fmaf(s[i], factor, -rows[column]));
                if (!whole && (at < (i & 2 ? since_high : since) || at >= part.limit)) probability = 0;
                s[i] = probability;
                // beyond the document the gradient may be anything, an infinity too
                ds[i] = !whole && probability == 0 ? 0 : probability * (ds[i] - rows[Q + column]);
              }
              pack(s, p);
              pack(ds, low_ds);
              fence_all(of_k);
              fence_all(of_v);
              wgmma_fence();
              weigh<Q>(of_v, p, stage + S::D_O);
              weigh<Q>(of_k, low_ds, stage);
              wgmma_commit();
              wgmma_wait<0>();
              fence_all(of_k);
              fence_all(of_v);
            }
            __syncwarp();  // all lanes have read lse and delta
            if (lane == 0) mbarrier_arrive(&empty[ring.stage]);
          }
        }
        row = part.last;
      }
      if (lane == 0) mbarrier_arrive(kv_empty);
      const int own = mine + accumulator_row();
      store_rows(of_k, dk + kv_head * QK, (i64)kv_heads * QK, own, end, scale, scale);
      store_rows(of_v, dv + kv_head * V, (i64)kv_heads * V, own, end, 1, 1);
    }
  }
}

KERNEL(THREADS) flash_keys_192_128(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, TENSOR_MAP d_o, const u32* starts,
                                      const u32* limits, const float* lse, const float* delta, float* dk, float* dv,
                                      int n, int heads, int kv_heads, float scale) {
  DYNAMIC_SHARED(shared);
  keys_side<192, 128>(&q, &k, &v, &d_o, starts, limits, lse, delta, dk, dv, n, heads, kv_heads, scale, shared);
}

KERNEL(THREADS) flash_keys_128_128(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, TENSOR_MAP d_o, const u32* starts,
                                      const u32* limits, const float* lse, const float* delta, float* dk, float* dv,
                                      int n, int heads, int kv_heads, float scale) {
  DYNAMIC_SHARED(shared);
  keys_side<128, 128>(&q, &k, &v, &d_o, starts, limits, lse, delta, dk, dv, n, heads, kv_heads, scale, shared);
}

KERNEL(THREADS) flash_keys_64_64(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, TENSOR_MAP d_o, const u32* starts,
                                      const u32* limits, const float* lse, const float* delta, float* dk, float* dv,
                                      int n, int heads, int kv_heads, float scale) {
  DYNAMIC_SHARED(shared);
  keys_side<64, 64>(&q, &k, &v, &d_o, starts, limits, lse, delta, dk, dv, n, heads, kv_heads, scale, shared);
}

// ---- dq

template <int QK, int V> struct QueriesSizes {
  static constexpr u32 D_O = bytes_of(TILE, QK);                          // where do begins; queries begin at 0
  static constexpr u32 KEYS = D_O + bytes_of(TILE, V);
  static constexpr u32 VALUES = bytes_of(QUERY_BLOCK, QK);                // where values begin in a stage
  static constexpr u32 STAGE = VALUES + bytes_of(QUERY_BLOCK, V);
  static constexpr u32 BARRIERS = KEYS + QUERY_STAGES * STAGE;
  static constexpr u32 SHARED = BARRIERS + (2 + 2 * QUERY_STAGES) * 8;
};
constexpr u32 QUERIES_SHARED_192_128 = QueriesSizes<192, 128>::SHARED;
constexpr u32 QUERIES_SHARED_128_128 = QueriesSizes<128, 128>::SHARED;
constexpr u32 QUERIES_SHARED_64_64 = QueriesSizes<64, 64>::SHARED;
static_assert(QUERIES_SHARED_192_128 == 204864 && QUERIES_SHARED_128_128 == 163904 && QUERIES_SHARED_64_64 == 81984);

template <int QK, int V>
DEVICE void queries_side(const TensorMap* q, const TensorMap* k, const TensorMap* v, const TensorMap* d_o,
                         const u32* starts, const u32* limits, const float* lse, const float* delta, float* dq, int n,
                         int heads, int kv_heads, float scale, u8* shared) {
  using S = QueriesSizes<QK, V>;
  constexpr int B = QUERY_BLOCK;
  u64 *q_full = (u64*)(shared + S::BARRIERS), *q_empty = q_full + 1, *full = q_full + 2, *empty = full + QUERY_STAGES;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 & 3, lane = threadIdx.x & 31;
  const int tiles = (n + TILE - 1) / TILE, works = tiles * heads;
  if (threadIdx.x == 0) {
    mbarrier_init(q_full, 1);
    mbarrier_init(q_empty, MULTIPLIERS);
    init_ring<QUERY_STAGES>(full, empty, 1);
  }
  __syncthreads();
  Ring<QUERY_STAGES> ring;
  u32 q_phase = 0;

  if (group == COPIER) {
    fewer_registers<24>();
    if (warp == 0 && lane == 0) {
      prefetch_map(q);
      prefetch_map(k);
      prefetch_map(v);
      prefetch_map(d_o);
      for (int work = blockIdx.x; work < works; work += gridDim.x, q_phase ^= 1) {
        const int head = work % heads, first = (tiles - 1 - work / heads) * TILE, kv_head = head / (heads / kv_heads);
        const int end = first + TILE < n ? first + TILE : n;
        mbarrier_wait(q_empty, q_phase ^ 1);
        mbarrier_expect(q_full, S::KEYS);
        copy_rows<QK>(shared, TILE, q, q_full, head, first);
        copy_rows<V>(shared + S::D_O, TILE, d_o, q_full, head, first);
        for (int row = first; row < end;) {
          const Part part(starts, limits, row, end);
          for (int key = part.start; key < part.last; key += B, ring.next()) {
            u8* stage = shared + S::KEYS + ring.stage * S::STAGE;
            mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
            mbarrier_expect(&full[ring.stage], S::STAGE);
            copy_rows<QK>(stage, B, k, &full[ring.stage], kv_head, key);
            copy_rows<V>(stage + S::VALUES, B, v, &full[ring.stage], kv_head, key);
          }
          row = part.last;
        }
      }
    }
  } else {
    more_registers<240>();
    const float factor = scale * LOG2_E;
    const u8 *queries = shared + group * bytes_of(64, 64), *gradients = queries + S::D_O;
    for (int work = blockIdx.x; work < works; work += gridDim.x, q_phase ^= 1) {
      const int head = work % heads, first = (tiles - 1 - work / heads) * TILE;
      const int end = first + TILE < n ? first + TILE : n, mine = first + group * 64, own = mine + accumulator_row();
      const int at = own < n ? own : n - 1, at_high = own + 8 < n ? own + 8 : n - 1;
      const float lse_low = lse[(i64)head * n + at] * LOG2_E, lse_high = lse[(i64)head * n + at_high] * LOG2_E;
      const float delta_low = delta[(i64)head * n + at], delta_high = delta[(i64)head * n + at_high];
      float sum[QK / 2], s[B / 2], ds[B / 2];
      u32 low_ds[B / 4];
      clear(sum);
      mbarrier_wait(q_full, q_phase);
      for (int row = first; row < end;) {
        const Part part(starts, limits, row, end);
        const int last = part.last_of(mine);
        const bool any = part.first_of(mine) < last, all = part.has_all(mine);
        for (int key = part.start; key < part.last; key += B, ring.next()) {
          const u8* stage = shared + S::KEYS + ring.stage * S::STAGE;
          mbarrier_wait(&full[ring.stage], ring.phase);
          if (any && key < last) {
            fence_all(s);
            fence_all(ds);
            wgmma_fence();
            scores<QK, TILE, B>(s, queries, stage);
            scores<V, TILE, B>(ds, gradients, stage + S::VALUES);
            wgmma_commit();
            wgmma_wait<0>();
            fence_all(s);
            fence_all(ds);
            const bool whole = all && key + B <= mine + 1;
            const int below = part.has(own) ? own : -1, below_high = part.has(own + 8) ? own + 8 : -1;
#pragma unroll
            for (int i = 0; i < B / 2; i++) {
              const int column = key + i / 4 * 8 + accumulator_column() + i % 2;
              const float probability = fast_exp2(fmaf(s[i], factor, -(i & 2 ? lse_high : lse_low)));
              ds[i] = probability * (ds[i] - (i & 2 ? delta_high : delta_low));
              if (!whole && column > (i & 2 ? below_high : below)) ds[i] = 0;
            }
            pack(ds, low_ds);
            fence_all(sum);
            wgmma_fence();
            weigh<B>(sum, low_ds, stage);
            wgmma_commit();
            wgmma_wait<0>();
            fence_all(sum);
          }
          if (lane == 0) mbarrier_arrive(&empty[ring.stage]);
        }
        row = part.last;
      }
      if (lane == 0) mbarrier_arrive(q_empty);
      store_rows(sum, dq + head * QK, (i64)heads * QK, own, end, scale, scale);
    }
  }
}

KERNEL(THREADS) flash_queries_192_128(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, TENSOR_MAP d_o,
                                         const u32* starts, const u32* limits, const float* lse,
                                         const float* delta, float* dq, int n, int heads, int kv_heads,
                                         float scale) {
  DYNAMIC_SHARED(shared);
  queries_side<192, 128>(&q, &k, &v, &d_o, starts, limits, lse, delta, dq, n, heads, kv_heads, scale, shared);
}

KERNEL(THREADS) flash_queries_128_128(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, TENSOR_MAP d_o,
                                         const u32* starts, const u32* limits, const float* lse,
                                         const float* delta, float* dq, int n, int heads, int kv_heads,
                                         float scale) {
  DYNAMIC_SHARED(shared);
  queries_side<128, 128>(&q, &k, &v, &d_o, starts, limits, lse, delta, dq, n, heads, kv_heads, scale, shared);
}

KERNEL(THREADS) flash_queries_64_64(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, TENSOR_MAP d_o,
                                         const u32* starts, const u32* limits, const float* lse,
                                         const float* delta, float* dq, int n, int heads, int kv_heads,
                                         float scale) {
  DYNAMIC_SHARED(shared);
  queries_side<64, 64>(&q, &k, &v, &d_o, starts, limits, lse, delta, dq, n, heads, kv_heads, scale, shared);
}
