// dw = dyᵀ · x by expert, FP8: both operands have scales along tokens.
//
//   dy  E4M3 [O, T], scales s_dy F32 [T/128, O]      transposed by the quantiser; each expert's tokens begin at a
//   x   E4M3 [I, T], scales s_x  F32 [T/128, I]      multiple of 128 of T, and zeros follow them up to the next one
//   dw  F32 [E, O, I], set, or added to where `add` is not 0; without tokens 0, or left alone
//
// Blocks of 128 tokens stand without gaps: expert e has blocks before[e] to before[e + 1] of `RowTiles`. T, the pitch,
// is at least 128 times their number; ⌈M/128⌉ + E blocks always suffice. Blocks behind the last one are not read.
//
// Maps, both with the 128-byte swizzle and zeros beyond the edges:
//   dy  bytes, dims [T, O], stride [T], box [128, 128]
//   x   bytes, dims [T, I], stride [T], box [128, 128]; [128, 192] for fp8_gradient_wide
// Launch: any grid, best one block per multiprocessor; THREADS; SHARED or SHARED_WIDE bytes. I is even, and dw begins
// at a multiple of 8 bytes.
//
// Tiles of 128×128 in 6 stages of 33 KiB; wide ones of 128×192 in 5 stages of 41 KiB give the same bits. See
// fp8_gemm.cu for when which is better.
// NVRTC 13.0: 168 registers at entry, then 40 and 232; no spills, 4 QGMMA.64x192x32 or 64x128x32.
// Next for speed: a tile needs two multiplications per sum, since both scales vary within it; scales of x that are
// powers of two could be folded into the exponents. Experts with many tokens should come first, so that blocks finish
// together.
#include "tiles.cuh"

constexpr int BLOCK = 128;  // of tokens per stage
constexpr u32 DY_BYTES = TILE * BLOCK;

template <int WIDTH> struct Sizes {
  static constexpr int STAGES = WIDTH > 128 ? 5 : 6;
  static constexpr u32 STAGE = DY_BYTES + WIDTH * BLOCK;
  static constexpr u32 SCALES = STAGES * STAGE;                 // where those of the stages begin: of dy, then of x
  static constexpr u32 SCALES_STAGE = (TILE + WIDTH) * 4;
  static constexpr u32 BARRIERS = SCALES + STAGES * SCALES_STAGE;
  static constexpr u32 EXPERTS = BARRIERS + 2 * STAGES * 8;     // where `RowTiles` begin
  static constexpr u32 SHARED = EXPERTS + EXPERTS_BYTES;
};
constexpr u32 SHARED = Sizes<128>::SHARED, SHARED_WIDE = Sizes<192>::SHARED;
static_assert(SHARED == 204912 && SHARED_WIDE == 213344 && SHARED_WIDE <= MOST_SHARED);

// COUNT · 32 scales of a block from `first`, lane by lane; 0 beyond the last.
template <int COUNT> struct LaneScales {
  float of[COUNT];
  DEVICE void load(const float* scales, int first, int count, int lane) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) of[i] = first + lane + 32 * i < count ? scales[first + lane + 32 * i] : 0;
  }
  DEVICE void keep(float* shared, int lane) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) shared[lane + 32 * i] = of[i];
  }
};

template <int WIDTH>
DEVICE void gradient(const TensorMap* dy, const TensorMap* x, const float* s_dy, const float* s_x, const u32* ends,
                     float* dw, int out, int in, int experts, int add, u8* shared) {
  using S = Sizes<WIDTH>;
  constexpr int COUNT = WIDTH / 2;  // accumulators
  u64 *full = (u64*)(shared + S::BARRIERS), *empty = full + S::STAGES;
  RowTiles tokens(shared + S::EXPERTS, experts);
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 & 3, lane = threadIdx.x & 31;
  const int rows = (out + TILE - 1) / TILE, columns = (in + WIDTH - 1) / WIDTH, tiles = experts * rows * columns;
  if (threadIdx.x < 32) tokens.cut(ends, lane);
  if (threadIdx.x == 32) init_ring<S::STAGES>(full, empty, 2);
  __syncthreads();
  Ring<S::STAGES> ring;

  if (group == COPIER) {
    fewer_registers<40>();
    if (warp == 0 && lane == 0) {
      prefetch_map(dy);
      prefetch_map(x);
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place at(tile, rows, columns, WIDTH);
        const int last = (int)tokens.before[at.expert + 1];
        for (int block = (int)tokens.before[at.expert]; block < last; block++, ring.next()) {
          u8* stage = shared + ring.stage * S::STAGE;
          mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
          mbarrier_expect(&full[ring.stage], S::STAGE);
          copy_tile_2d(stage, dy, &full[ring.stage], block * BLOCK, at.row);
          copy_tile_2d(stage + DY_BYTES, x, &full[ring.stage], block * BLOCK, at.column);
        }
      }
    } else if (warp == 1) {
      // rows of scales begin at any multiple of 4 bytes, too few for the copy engine
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place at(tile, rows, columns, WIDTH);
        const int first = (int)tokens.before[at.expert], last = (int)tokens.before[at.expert + 1];
        LaneScales<TILE / 32> of_dy;
        LaneScales<WIDTH / 32> of_x;
        if (first < last) {
          of_dy.load(s_dy + (i64)first * out, at.row, out, lane);
          of_x.load(s_x + (i64)first * in, at.column, in, lane);
        }
        for (int block = first; block < last; block++, ring.next()) {
          float* scales = (float*)(shared + S::SCALES + ring.stage * S::SCALES_STAGE);
          mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
          of_dy.keep(scales, lane);
          of_x.keep(scales + TILE, lane);
          __syncwarp();
          if (lane == 0) mbarrier_arrive(&full[ring.stage]);
          if (block + 1 < last) {
            of_dy.load(s_dy + (i64)(block + 1) * out, at.row, out, lane);
            of_x.load(s_x + (i64)(block + 1) * in, at.column, in, lane);
          }
        }
      }
    }
  } else {
    more_registers<232>();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const Place at(tile, rows, columns, WIDTH);
      const int first = (int)tokens.before[at.expert], last = (int)tokens.before[at.expert + 1];
      if (first == last && add) continue;
      float part[COUNT], sum[COUNT];
      clear(sum);
      for (int block = first; block < last; block++, ring.next()) {
        const u8* stage = shared + ring.stage * S::STAGE;
        const float* scales = (const float*)(shared + S::SCALES + ring.stage * S::SCALES_STAGE);
        const u64 a_tile = k_major(stage + group * 64 * BLOCK), b_tile = k_major(stage + DY_BYTES);
        mbarrier_wait(&full[ring.stage], ring.phase);
        fence_all(part);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < BLOCK / 32; i++) wgmma_e4m3(part, later(a_tile, i * 32), later(b_tile, i * 32), i != 0);
        wgmma_commit();
        const float low = scales[group * 64 + accumulator_row()], high = scales[group * 64 + accumulator_row() + 8];
        wgmma_wait<0>();
        fence_all(part);
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
          const Pair other = *(const Pair*)&scales[TILE + 8 * j + accumulator_column()];
          sum[4 * j] = fmaf(low * other.x, part[4 * j], sum[4 * j]);
          sum[4 * j + 1] = fmaf(low * other.y, part[4 * j + 1], sum[4 * j + 1]);
          sum[4 * j + 2] = fmaf(high * other.x, part[4 * j + 2], sum[4 * j + 2]);
          sum[4 * j + 3] = fmaf(high * other.y, part[4 * j + 3], sum[4 * j + 3]);
        }
        __syncwarp();  // all lanes have read the scales
        if (lane == 0) mbarrier_arrive(&empty[ring.stage]);
      }
      float* c = dw + (i64)at.expert * out * in;
      store(sum, c, at.row + group * 64 + accumulator_row(), out, at.column + accumulator_column(), in, add);
    }
  }
}

KERNEL(THREADS) fp8_gradient_wide(TENSOR_MAP dy, TENSOR_MAP x, const float* s_dy, const float* s_x, const u32* ends,
                                  float* dw, int out, int in, int experts, int add) {
  DYNAMIC_SHARED(shared);
  gradient<192>(&dy, &x, s_dy, s_x, ends, dw, out, in, experts, add, shared);
}

KERNEL(THREADS) fp8_gradient(TENSOR_MAP dy, TENSOR_MAP x, const float* s_dy, const float* s_x, const u32* ends,
                             float* dw, int out, int in, int experts, int add) {
  DYNAMIC_SHARED(shared);
  gradient<128>(&dy, &x, s_dy, s_x, ends, dw, out, in, experts, add, shared);
}
