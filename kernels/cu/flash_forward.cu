// o = softmax(scale · q · kᵀ) · v, causal within documents (Dao 2023; Shah et al. 2024).
//
//   q  bf16 [N, H, QK]    k bf16 [N, G, QK]    v bf16 [N, G, V]     G divides H: H / G heads share keys and values
//   o  F32 [N, H, V]      lse F32 [H, N], the logarithm of Σ exp(score)
//   starts, limits  U32 [N]: see attention.cuh. N rows in all, every row in a document.
//
// Scores and sums are f32; probabilities are rounded to bf16 for the second product, as are all inputs. They are
// relative to the largest score so far, which a row follows block by block.
//
// Maps, all with the 128-byte swizzle and zeros beyond the edges:
//   q  bf16, dims [QK, H, N], strides [QK, H·QK], box [64, 1, 128]
//   k  bf16, dims [QK, G, N], strides [QK, G·QK], box [64, 1, 128]
//   v  bf16, dims [V, G, N], strides [V, G·V], box [64, 1, 128]
// Launch: any grid, best one block per multiprocessor; THREADS; Sizes<QK, V>::SHARED bytes.
//
// A block takes 128 queries of one head, 128 keys at a time, in two stages; late tiles, which see most keys, come
// first.
// NVRTC 13.0: 168 registers at entry, then 24 and 240; no spills, HGMMA.64x128x16 and 64x64x16.
// Next for speed: turns between the two warpgroups, so that one multiplies while the other computes exponentials;
// probabilities of one block under the scores of the next.
#include "attention.cuh"

constexpr int KEYS = 128;  // per stage
constexpr int STAGES = 2;

template <int QK, int V> struct Sizes {
  static constexpr u32 K = bytes_of(TILE, QK);                 // where keys begin; queries begin at 0
  static constexpr u32 K_STAGE = bytes_of(KEYS, QK), V_STAGE = bytes_of(KEYS, V);
  static constexpr u32 VALUES = K + STAGES * K_STAGE;          // where values begin
  static constexpr u32 BARRIERS = VALUES + STAGES * V_STAGE;
  static constexpr u32 SHARED = BARRIERS + (2 + 4 * STAGES) * 8;
};
constexpr u32 SHARED_192_128 = Sizes<192, 128>::SHARED;
constexpr u32 SHARED_128_128 = Sizes<128, 128>::SHARED;
constexpr u32 SHARED_64_64 = Sizes<64, 64>::SHARED;
static_assert(SHARED_192_128 == 213072 && SHARED_128_128 == 163920 && SHARED_64_64 == 82000);

// starts[i] and limits[i] of every row, from the documents' ends; documents may be empty. Once per batch. Block d has
// document d.
KERNEL(256) document_spans(const u32* ends, u32* starts, u32* limits) {
  __shared__ Bounds found;
  const Bounds rows = bounds_of_block(found, ends, blockIdx.x, 0);
  for (int row = rows.start + threadIdx.x; row < rows.end; row += 256) {
    starts[row] = rows.start;
    limits[row] = rows.end;
  }
}

// A row's scores so far.
struct Running {
  float largest, sum;  // of this thread's columns only; `largest` of the whole row
  // Takes the row's next scores: makes them probabilities relative to the largest score. Returns what earlier sums
  // must be multiplied with. `half` 0 is the thread's upper row.
  template <int COUNT> DEVICE float take(float (&s)[COUNT], int half, float factor) {
    float most = largest;
#pragma unroll
    for (int j = 0; j < COUNT / 4; j++) most = fmaxf(most, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
    most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
    // without a visible key so far, all scores are −∞: relative to 0 their probabilities are 0 and not NaN
    const float base = most == minus_infinity() ? 0 : most, scaled = base * factor;
    const float shrink = fast_exp2((largest - base) * factor);
    largest = most;
    sum *= shrink;
#pragma unroll
    for (int j = 0; j < COUNT / 4; j++) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; e++) {
        s[4 * j + e] = fast_exp2(fmaf(s[4 * j + e], factor, -scaled));
        sum += s[4 * j + e];
      }
    }
    return shrink;
  }
  DEVICE float total() const {
    float all = sum;
    all += __shfl_xor_sync(0xffffffff, all, 1);
    return all + __shfl_xor_sync(0xffffffff, all, 2);
  }
};

template <int QK, int V>
DEVICE void forward(const TensorMap* q, const TensorMap* k, const TensorMap* v, const u32* starts, const u32* limits,
                    float* o, float* lse, int n, int heads, int kv_heads, float scale, u8* shared) {
  using S = Sizes<QK, V>;
  u64 *q_full = (u64*)(shared + S::BARRIERS), *q_empty = q_full + 1, *k_full = q_full + 2, *k_empty = k_full + STAGES;
  u64 *v_full = k_empty + STAGES, *v_empty = v_full + STAGES;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 & 3, lane = threadIdx.x & 31;
  const int tiles = (n + TILE - 1) / TILE, works = tiles * heads;
  if (threadIdx.x == 0) {
    mbarrier_init(q_full, 1);
    mbarrier_init(q_empty, MULTIPLIERS);
    init_ring<STAGES>(k_full, k_empty, 1);
    init_ring<STAGES>(v_full, v_empty, 1);
  }
  __syncthreads();
  Ring<STAGES> ring;
  u32 q_phase = 0;

  if (group == COPIER) {
    fewer_registers<24>();
    if (warp == 0 && lane == 0) {
      prefetch_map(q);
      prefetch_map(k);
      prefetch_map(v);
      for (int work = blockIdx.x; work < works; work += gridDim.x, q_phase ^= 1) {
        const int head = work % heads, first = (tiles - 1 - work / heads) * TILE, kv_head = head / (heads / kv_heads);
        const int end = first + TILE < n ? first + TILE : n;
        mbarrier_wait(q_empty, q_phase ^ 1);
        mbarrier_expect(q_full, S::K);
        copy_rows<QK>(shared, TILE, q, q_full, head, first);
        for (int row = first; row < end;) {
          const Part part(starts, limits, row, end);
          for (int key = part.start; key < part.last; key += KEYS, ring.next()) {
            mbarrier_wait(&k_empty[ring.stage], ring.phase ^ 1);
            mbarrier_expect(&k_full[ring.stage], S::K_STAGE);
            copy_rows<QK>(shared + S::K + ring.stage * S::K_STAGE, KEYS, k, &k_full[ring.stage], kv_head, key);
            mbarrier_wait(&v_empty[ring.stage], ring.phase ^ 1);
            mbarrier_expect(&v_full[ring.stage], S::V_STAGE);
            copy_rows<V>(shared + S::VALUES + ring.stage * S::V_STAGE, KEYS, v, &v_full[ring.stage], kv_head, key);
          }
          row = part.last;
        }
      }
    }
  } else {
    more_registers<240>();
    const float factor = scale * LOG2_E;
    const u8* queries = shared + group * bytes_of(64, 64);  // this warpgroup's rows of each box
    for (int work = blockIdx.x; work < works; work += gridDim.x, q_phase ^= 1) {
      const int head = work % heads, first = (tiles - 1 - work / heads) * TILE;
      const int end = first + TILE < n ? first + TILE : n, mine = first + group * 64, own = mine + accumulator_row();
      float sum[V / 2], s[KEYS / 2];
      u32 p[KEYS / 4], previous = 0;  // stage of the values that are still being read
      bool is_first = true;
      clear(sum);
      Running low{minus_infinity(), 0}, high{minus_infinity(), 0};
      mbarrier_wait(q_full, q_phase);
      for (int row = first; row < end;) {
        const Part part(starts, limits, row, end);
        for (int key = part.start; key < part.last; key += KEYS, ring.next()) {
          const int last = part.last_of(mine);
          const bool sees = part.first_of(mine) < last && key < last;
          mbarrier_wait(&k_full[ring.stage], ring.phase);
          if (sees) {
            fence_all(s);
            wgmma_fence();
            scores<QK, TILE, KEYS>(s, queries, shared + S::K + ring.stage * S::K_STAGE);
            wgmma_commit();
          }
          wgmma_wait<0>();  // for these scores, and for the sum over the block before
          fence_all(s);
          fence_all(sum);
          if (lane == 0) {
            mbarrier_arrive(&k_empty[ring.stage]);
            if (!is_first) mbarrier_arrive(&v_empty[previous]);
          }
          if (sees) {
            if (!part.has_all(mine) || key + KEYS > mine + 1) {
              const int below = part.has(own) ? own : -1, below_high = part.has(own + 8) ? own + 8 : -1;
#pragma unroll
              for (int i = 0; i < KEYS / 2; i++) {
                const int column = key + i / 4 * 8 + accumulator_column() + i % 2;
                if (column > (i & 2 ? below_high : below)) s[i] = minus_infinity();
              }
            }
            const float shrink = low.take(s, 0, factor), shrink_high = high.take(s, 1, factor);
            pack(s, p);
#pragma unroll
            for (int i = 0; i < V / 2; i++) sum[i] *= i & 2 ? shrink_high : shrink;
          }
          mbarrier_wait(&v_full[ring.stage], ring.phase);
          if (sees) {
            fence_all(sum);
            wgmma_fence();
            weigh<KEYS>(sum, p, shared + S::VALUES + ring.stage * S::V_STAGE);
            wgmma_commit();
          }
          previous = ring.stage;
          is_first = false;
        }
        row = part.last;
      }
      wgmma_wait<0>();
      fence_all(sum);
      if (lane == 0) {
        mbarrier_arrive(&v_empty[previous]);
        mbarrier_arrive(q_empty);
      }
      const float total = low.total(), total_high = high.total();
      store_rows(sum, o + head * V, (i64)heads * V, own, end, 1 / total, 1 / total_high);
      if ((lane & 3) == 0) {
        float* to = lse + (i64)head * n;
        if (own < end) to[own] = low.largest * scale + logf(total);
        if (own + 8 < end) to[own + 8] = high.largest * scale + logf(total_high);
      }
    }
  }
}

KERNEL(THREADS) flash_forward_192_128(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, const u32* starts,
                                         const u32* limits, float* o, float* lse, int n, int heads, int kv_heads,
                                         float scale) {
  DYNAMIC_SHARED(shared);
  forward<192, 128>(&q, &k, &v, starts, limits, o, lse, n, heads, kv_heads, scale, shared);
}

KERNEL(THREADS) flash_forward_128_128(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, const u32* starts,
                                         const u32* limits, float* o, float* lse, int n, int heads, int kv_heads,
                                         float scale) {
  DYNAMIC_SHARED(shared);
  forward<128, 128>(&q, &k, &v, starts, limits, o, lse, n, heads, kv_heads, scale, shared);
}

KERNEL(THREADS) flash_forward_64_64(TENSOR_MAP q, TENSOR_MAP k, TENSOR_MAP v, const u32* starts,
                                         const u32* limits, float* o, float* lse, int n, int heads, int kv_heads,
                                         float scale) {
  DYNAMIC_SHARED(shared);
  forward<64, 64>(&q, &k, &v, starts, limits, o, lse, n, heads, kv_heads, scale, shared);
}
