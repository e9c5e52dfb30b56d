// C = A · Bᵀ by expert, FP8: y = x · wᵀ, and dx = dy · w with the weights in their other orientation.
//
//   A  E4M3 [M, K], scales sa F32 [M, K/128]                    rows sorted by expert, see `RowTiles`
//   B  E4M3 [E, N, K], scales sb F32 [E, ⌈N/128⌉, K/128]
//   C  F32 [M, N], set, or added to where `add` is not 0; N is even, and C begins at a multiple of 8 bytes
//
// K is a multiple of 128: rows are padded with zeros. The tensor cores sum 128 products at a time, without the scales
// and with fewer than 24 bits; these sums are scaled and added in f32, as in DeepSeek-V3 (§3.3.2). A row of C depends
// on its own row of A and its expert's B only.
//
// Maps, all with the 128-byte swizzle and zeros beyond the edges:
//   a  bytes, dims [K, M], stride [K], box [128, 128]
//   b  bytes, dims [K, N, E], strides [K, N·K], box [128, 128, 1]; [128, 192, 1] for fp8_gemm_wide
// Launch: any grid, best one block per multiprocessor; THREADS; SHARED or SHARED_WIDE bytes.
//
// Tiles of 128×128 in 6 stages of 32 KiB; wide ones of 128×192 in 5 stages of 40 KiB give the same bits. L2 limits
// both: per byte read from it they do 128 and 154 FLOP, where the tensor cores at their peak need more than 250. Wide
// ones are for products with several tiles per multiprocessor. (The byte rate of L2 is assumed, 7 TB/s; nothing is
// measured yet.)
// NVRTC 13.0: 168 registers at entry, then 40 and 232; no spills, 4 QGMMA.64x192x32 or 64x128x32.
// Next for speed: pairs of blocks that share A by multicast (they have neighbouring columns, so one expert), and stores
// of one tile under the products of the next.
#include "tiles.cuh"

constexpr int BLOCK = 128;  // of K per stage, in bytes and elements
constexpr u32 A_BYTES = TILE * BLOCK;

template <int WIDTH> struct Sizes {
  static constexpr int STAGES = WIDTH > 128 ? 5 : 6;
  static constexpr u32 STAGE = A_BYTES + WIDTH * BLOCK;
  static constexpr u32 BARRIERS = STAGES * STAGE;               // where they begin
  static constexpr u32 EXPERTS = BARRIERS + 2 * STAGES * 8;     // where `RowTiles` begin
  static constexpr u32 SHARED = EXPERTS + EXPERTS_BYTES;
};
constexpr u32 SHARED = Sizes<128>::SHARED, SHARED_WIDE = Sizes<192>::SHARED;
static_assert(SHARED == 198768 && SHARED_WIDE == 206944 && SHARED_WIDE <= MOST_SHARED);

template <int WIDTH>
DEVICE void product(const TensorMap* a, const TensorMap* b, const float* sa, const float* sb, const u32* ends, float* c,
                    int m, int n, int k, int experts, int add, u8* shared) {
  using S = Sizes<WIDTH>;
  constexpr int COUNT = WIDTH / 2, PARTS = WIDTH / 64;  // accumulators; 64 columns share a scale of B
  u64 *full = (u64*)(shared + S::BARRIERS), *empty = full + S::STAGES;
  RowTiles rows(shared + S::EXPERTS, experts);
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 & 3, lane = threadIdx.x & 31;
  const int blocks = k / BLOCK, columns = (n + WIDTH - 1) / WIDTH, bands = (n + TILE - 1) / TILE;
  if (threadIdx.x < 32) rows.cut(ends, lane);
  if (threadIdx.x == 32) init_ring<S::STAGES>(full, empty, 1);
  __syncthreads();
  const int tiles = rows.count() * columns;
  Ring<S::STAGES> ring;

  if (group == COPIER) {
    fewer_registers<40>();
    if (warp == 0 && lane == 0) {
      prefetch_map(a);
      prefetch_map(b);
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Order at(tile, rows.count(), columns);
        rows.find(at.row);
        const int row = rows.row(at.row);
        for (int block = 0; block < blocks; block++, ring.next()) {
          u8* stage = shared + ring.stage * S::STAGE;
          mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
          mbarrier_expect(&full[ring.stage], S::STAGE);
          copy_tile_2d(stage, a, &full[ring.stage], block * BLOCK, row);
          copy_tile_3d(stage + A_BYTES, b, &full[ring.stage], block * BLOCK, at.column * WIDTH, rows.expert);
        }
      }
    }
  } else {
    more_registers<232>();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const Order at(tile, rows.count(), columns);
      rows.find(at.row);
      const int row = rows.row(at.row) + group * 64 + accumulator_row();
      // rows beyond the last have scales of the last one; they are not stored
      const float* low_scales = sa + (i64)(row < m ? row : m - 1) * blocks;
      const float* high_scales = sa + (i64)(row + 8 < m ? row + 8 : m - 1) * blocks;
      // A tile of 192 columns begins at a band of 128 or in its middle, and ends in the next band, if there is one.
      const int band = at.column * WIDTH / TILE, is_middle = at.column * WIDTH % TILE != 0;
      const float* b_scales = sb + ((i64)rows.expert * bands + band) * blocks;
      const int next_band = WIDTH > TILE && band + 1 < bands ? blocks : 0;
      float low = low_scales[0], high = high_scales[0], near = b_scales[0], far = b_scales[next_band];
      float part[COUNT], sum[COUNT];
      clear(sum);
      for (int block = 0; block < blocks; block++, ring.next()) {
        const u8* stage = shared + ring.stage * S::STAGE;
        const u64 a_tile = k_major(stage + group * 64 * BLOCK), b_tile = k_major(stage + A_BYTES);
        mbarrier_wait(&full[ring.stage], ring.phase);
        fence_all(part);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < BLOCK / 32; i++) wgmma_e4m3(part, later(a_tile, i * 32), later(b_tile, i * 32), i != 0);
        wgmma_commit();
        // scales of the next block, loaded under the product of this one
        float low_scale[PARTS], high_scale[PARTS];
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
          const float other = WIDTH == TILE || i == 0 || (i == 1 && !is_middle) ? near : far;
          low_scale[i] = low * other;
          high_scale[i] = high * other;
        }
        if (block + 1 < blocks) {
          low = low_scales[block + 1];
          high = high_scales[block + 1];
          near = b_scales[block + 1];
          if (WIDTH > TILE) far = b_scales[block + 1 + next_band];
        }
        wgmma_wait<0>();
        fence_all(part);
        if (lane == 0) mbarrier_arrive(&empty[ring.stage]);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
          sum[i] = fmaf((i & 2 ? high_scale : low_scale)[i / 32], part[i], sum[i]);
      }
      store(sum, c, row, rows.end(), at.column * WIDTH + accumulator_column(), n, add);
    }
  }
}

KERNEL(THREADS) fp8_gemm_wide(TENSOR_MAP a, TENSOR_MAP b, const float* sa, const float* sb, const u32* ends, float* c,
                              int m, int n, int k, int experts, int add) {
  DYNAMIC_SHARED(shared);
  product<192>(&a, &b, sa, sb, ends, c, m, n, k, experts, add, shared);
}

KERNEL(THREADS) fp8_gemm(TENSOR_MAP a, TENSOR_MAP b, const float* sa, const float* sb, const u32* ends, float* c, int m,
                         int n, int k, int experts, int add) {
  DYNAMIC_SHARED(shared);
  product<128>(&a, &b, sa, sb, ends, c, m, n, k, experts, add, shared);
}
