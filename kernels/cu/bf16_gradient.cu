// dw = dyᵀ · x by expert, bf16 with sums in f32.
//
//   dy  bf16 [M, O]      rows are tokens, sorted by expert: expert e has rows start[e] to start[e + 1] of `RowTiles`
//   x   bf16 [M, I]
//   dw  F32 [E, O, I], set, or added to where `add` is not 0; without tokens 0, or left alone
//
// Both operands are read as they are, MN-major. An expert's tokens are summed in order, 64 to a stage; in its last
// stage the tokens of the next expert are overwritten with zeros, so that not even an infinity among them has an
// effect.
//
// Maps, both with the 128-byte swizzle and zeros beyond the edges; the pitch of rows is a multiple of 8 elements:
//   dy  bf16, dims [O, M], stride [pitch of dy], box [64, 64]
//   x   bf16, dims [I, M], stride [pitch of x], box [64, 64]
// Launch: any grid, best one block per multiprocessor; THREADS; SHARED or SHARED_WIDE bytes. I is even, and dw begins
// at a multiple of 8 bytes.
//
// Tiles of 128×128 in 6 stages of 32 KiB; wide ones of 128×256 in 4 stages of 48 KiB give the same bits. See
// bf16_gemm.cu for when which is better.
// NVRTC 13.0: 168 registers at entry, then 40 and 232; no spills, HGMMA.64x256x16 or 64x128x16.
// Next for speed: pairs of blocks that share x by multicast; experts with many tokens first, so that blocks finish
// together.
#include "tiles.cuh"

constexpr int BLOCK = 64;                       // of tokens per stage
constexpr u32 BOX_BYTES = 64 * BLOCK * 2;       // 64 columns of a stage
constexpr int DY_BOXES = TILE / 64;

template <int WIDTH> struct Sizes {
  static constexpr int STAGES = WIDTH > 128 ? 4 : 6;
  static constexpr int BOXES = DY_BOXES + WIDTH / 64;           // of dy, then of x
  static constexpr u32 STAGE = BOXES * BOX_BYTES;
  static constexpr u32 BARRIERS = STAGES * STAGE;               // where they begin
  static constexpr u32 EXPERTS = BARRIERS + 2 * STAGES * 8;     // where `RowTiles` begin
  static constexpr u32 SHARED = EXPERTS + EXPERTS_BYTES;
};
constexpr u32 SHARED = Sizes<128>::SHARED, SHARED_WIDE = Sizes<256>::SHARED;
static_assert(SHARED == 198768 && SHARED_WIDE == 198736 && SHARED_WIDE <= MOST_SHARED);

// Overwrites the tokens from `count` on in all boxes with zeros, by all threads that multiply.
template <int BOXES> DEVICE void clear_tokens(u8* stage, int count) {
  const int words = (BLOCK - count) * 128 / 4;  // a token has 128 bytes in each box, whatever the swizzle
  for (int box = 0; box < BOXES; box++) {
    u32* from = (u32*)(stage + box * BOX_BYTES + count * 128);
    for (int i = threadIdx.x; i < words; i += 256) from[i] = 0;
  }
  fence_async();
  named_barrier(1, 256);
}

template <int WIDTH>
DEVICE void gradient(const TensorMap* dy, const TensorMap* x, const u32* ends, float* dw, int out, int in, int experts,
                     int add, u8* shared) {
  using S = Sizes<WIDTH>;
  u64 *full = (u64*)(shared + S::BARRIERS), *empty = full + S::STAGES;
  RowTiles tokens(shared + S::EXPERTS, experts);
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 & 3, lane = threadIdx.x & 31;
  const int rows = (out + TILE - 1) / TILE, columns = (in + WIDTH - 1) / WIDTH, tiles = experts * rows * columns;
  if (threadIdx.x < 32) tokens.cut(ends, lane);
  if (threadIdx.x == 32) init_ring<S::STAGES>(full, empty, 1);
  __syncthreads();
  Ring<S::STAGES> ring;

  if (group == COPIER) {
    fewer_registers<40>();
    if (warp == 0 && lane == 0) {
      prefetch_map(dy);
      prefetch_map(x);
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place at(tile, rows, columns, WIDTH);
        const int end = (int)tokens.start[at.expert + 1];
        for (int token = (int)tokens.start[at.expert]; token < end; token += BLOCK, ring.next()) {
          u8* to = shared + ring.stage * S::STAGE;
          u64* arrived = &full[ring.stage];
          mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
          mbarrier_expect(arrived, S::STAGE);
#pragma unroll
          for (int i = 0; i < S::BOXES; i++, to += BOX_BYTES) {
            if (i < DY_BOXES) copy_tile_2d(to, dy, arrived, at.row + 64 * i, token);
            else copy_tile_2d(to, x, arrived, at.column + 64 * (i - DY_BOXES), token);
          }
        }
      }
    }
  } else {
    more_registers<232>();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const Place at(tile, rows, columns, WIDTH);
      const int start = (int)tokens.start[at.expert], end = (int)tokens.start[at.expert + 1];
      if (start == end && add) continue;
      float sum[WIDTH / 2];
      if (start == end) clear(sum);
      u32 previous = 0;  // stage of the product that is still running
      for (int token = start; token < end; token += BLOCK, ring.next()) {
        u8* stage = shared + ring.stage * S::STAGE;
        const u64 a_tile = mn_major(stage + group * BOX_BYTES, BOX_BYTES);
        const u64 b_tile = mn_major(stage + DY_BOXES * BOX_BYTES, BOX_BYTES);
        mbarrier_wait(&full[ring.stage], ring.phase);
        if (end - token < BLOCK) clear_tokens<S::BOXES>(stage, end - token);
        fence_all(sum);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < BLOCK / 16; i++)
          wgmma_bf16<1, 1>(sum, later(a_tile, i * 2048), later(b_tile, i * 2048), token > start || i > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (token > start && lane == 0) mbarrier_arrive(&empty[previous]);
        previous = ring.stage;
      }
      wgmma_wait<0>();
      fence_all(sum);
      if (start < end && lane == 0) mbarrier_arrive(&empty[previous]);
      float* c = dw + (i64)at.expert * out * in;
      store(sum, c, at.row + group * 64 + accumulator_row(), out, at.column + accumulator_column(), in, add);
    }
  }
}

KERNEL(THREADS) bf16_gradient_wide(TENSOR_MAP dy, TENSOR_MAP x, const u32* ends, float* dw, int out, int in,
                                   int experts, int add) {
  DYNAMIC_SHARED(shared);
  gradient<256>(&dy, &x, ends, dw, out, in, experts, add, shared);
}

KERNEL(THREADS) bf16_gradient(TENSOR_MAP dy, TENSOR_MAP x, const u32* ends, float* dw, int out, int in, int experts,
                              int add) {
  DYNAMIC_SHARED(shared);
  gradient<128>(&dy, &x, ends, dw, out, in, experts, add, shared);
}
