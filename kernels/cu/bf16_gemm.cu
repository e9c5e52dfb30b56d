// C = A · Bᵀ (bf16_gemm) or A · B (bf16_gemm_nn) by expert, bf16 with sums in f32: y = x · wᵀ and dx = dy · w
// with the same weights.
//
//   A  bf16 [M, K]                                        rows sorted by expert, see `RowTiles`
//   B  bf16 [E, N, K], or [E, K, N] for bf16_gemm_nn
//   C  F32 [M, N], set, or added to where `add` is not 0; N is even, and C begins at a multiple of 8 bytes
//
// K is a multiple of 64: rows of A are padded with zeros, and B reads zero beyond its last k (its pad, or the map's
// edge). All of K is summed in one accumulator in the same order: a row of C depends on its own row of A and its
// expert's B only.
//
// Maps, all with the 128-byte swizzle and zeros beyond the edges; the pitch of rows is a multiple of 8 elements. WIDTH
// is 128, or 256 for the wide kernels:
//   a  bf16, dims [K, M], stride [pitch of A], box [64, 128]
//   b  bf16, dims [K, N, E], strides [pitch of B, N · pitch], box [64, WIDTH, 1]
//   b  of bf16_gemm_nn: dims [N, its own K, E], strides [pitch, its own K · pitch], box [64, 64, 1]
// Launch: any grid, best one block per multiprocessor; THREADS; SHARED or SHARED_WIDE bytes.
//
// Tiles of 128×128 in 6 stages of 32 KiB; wide ones of 128×256 in 4 stages of 48 KiB give the same bits. L2 limits
// both: per byte read from it they do 64 and 85 FLOP. Wide ones are for products with several tiles per multiprocessor.
// NVRTC 13.0: 168 registers at entry, then 40 and 232; no spills, HGMMA.64x256x16 or 64x128x16.
// Next for speed: pairs of blocks that share B by multicast, stores of one tile under the products of the next.
#include "tiles.cuh"

constexpr int BLOCK = 64;  // of K per stage: 128 bytes
constexpr u32 A_BYTES = TILE * BLOCK * 2;
constexpr u32 BOX_BYTES = 64 * BLOCK * 2;  // of a B of [E, K, N]

template <int WIDTH> struct Sizes {
  static constexpr int STAGES = WIDTH > 128 ? 4 : 6;
  static constexpr u32 STAGE = A_BYTES + WIDTH * BLOCK * 2;
  static constexpr u32 BARRIERS = STAGES * STAGE;               // where they begin
  static constexpr u32 EXPERTS = BARRIERS + 2 * STAGES * 8;     // where `RowTiles` begin
  static constexpr u32 SHARED = EXPERTS + EXPERTS_BYTES;
};
constexpr u32 SHARED = Sizes<128>::SHARED, SHARED_WIDE = Sizes<256>::SHARED;
static_assert(SHARED == 198768 && SHARED_WIDE == 198736 && SHARED_WIDE <= MOST_SHARED);

// `B_MN` is 1 for a B of [E, K, N].
template <int WIDTH, int B_MN>
DEVICE void product(const TensorMap* a, const TensorMap* b, const u32* ends, float* c, int n, int k, int experts,
                    int add, u8* shared) {
  using S = Sizes<WIDTH>;
  u64 *full = (u64*)(shared + S::BARRIERS), *empty = full + S::STAGES;
  RowTiles rows(shared + S::EXPERTS, experts);
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 & 3, lane = threadIdx.x & 31;
  const int blocks = k / BLOCK, columns = (n + WIDTH - 1) / WIDTH;
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
        const int row = rows.row(at.row), column = at.column * WIDTH;
        for (int block = 0; block < blocks; block++, ring.next()) {
          u8 *to_a = shared + ring.stage * S::STAGE, *to_b = to_a + A_BYTES;
          u64* arrived = &full[ring.stage];
          mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
          mbarrier_expect(arrived, S::STAGE);
          copy_tile_2d(to_a, a, arrived, block * BLOCK, row);
          if (B_MN) {  // a row of a box has 64 columns
#pragma unroll
            for (int i = 0; i < WIDTH / 64; i++)
              copy_tile_3d(to_b + i * BOX_BYTES, b, arrived, column + 64 * i, block * BLOCK, rows.expert);
          } else {
            copy_tile_3d(to_b, b, arrived, block * BLOCK, column, rows.expert);
          }
        }
      }
    }
  } else {
    more_registers<232>();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const Order at(tile, rows.count(), columns);
      rows.find(at.row);
      float sum[WIDTH / 2];
      u32 previous = 0;  // stage of the product that is still running
      for (int block = 0; block < blocks; block++, ring.next()) {
        const u8* stage = shared + ring.stage * S::STAGE;
        const u64 a_tile = k_major(stage + group * 64 * BLOCK * 2);
        const u64 b_tile = B_MN ? mn_major(stage + A_BYTES, BOX_BYTES) : k_major(stage + A_BYTES);
        mbarrier_wait(&full[ring.stage], ring.phase);
        fence_all(sum);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < BLOCK / 16; i++)
          wgmma_bf16<0, B_MN>(sum, later(a_tile, i * 32), later(b_tile, i * (B_MN ? 2048 : 32)), block + i != 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (block > 0 && lane == 0) mbarrier_arrive(&empty[previous]);
        previous = ring.stage;
      }
      wgmma_wait<0>();
      fence_all(sum);
      if (lane == 0) mbarrier_arrive(&empty[previous]);
      const int row = rows.row(at.row) + group * 64 + accumulator_row();
      store(sum, c, row, rows.end(), at.column * WIDTH + accumulator_column(), n, add);
    }
  }
}

KERNEL(THREADS) bf16_gemm_wide(
    TENSOR_MAP a, TENSOR_MAP b, const u32* ends, float* c, int n, int k, int experts, int add) {
  DYNAMIC_SHARED(shared);
  product<256, 0>(&a, &b, ends, c, n, k, experts, add, shared);
}

KERNEL(THREADS) bf16_gemm_nn_wide(
    TENSOR_MAP a, TENSOR_MAP b, const u32* ends, float* c, int n, int k, int experts, int add) {
  DYNAMIC_SHARED(shared);
  product<256, 1>(&a, &b, ends, c, n, k, experts, add, shared);
}

KERNEL(THREADS) bf16_gemm(
    TENSOR_MAP a, TENSOR_MAP b, const u32* ends, float* c, int n, int k, int experts, int add) {
  DYNAMIC_SHARED(shared);
  product<128, 0>(&a, &b, ends, c, n, k, experts, add, shared);
}

KERNEL(THREADS) bf16_gemm_nn(
    TENSOR_MAP a, TENSOR_MAP b, const u32* ends, float* c, int n, int k, int experts, int add) {
  DYNAMIC_SHARED(shared);
  product<128, 1>(&a, &b, ends, c, n, k, experts, add, shared);
}
