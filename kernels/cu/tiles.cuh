// What the tensor-core products share: the ring of tiles that the copy engine fills, tiles of rows that never span two
// experts, and how accumulators become rows of F32.
//
// Every product runs in blocks of 384 threads: two warpgroups that multiply, 64 rows of a tile each, and one that only
// starts copies. The third needs few registers and gives them to the others.
#pragma once
#include "device.cuh"

constexpr int TILE = 128;              // rows of a tile; also what shares an FP8 scale
constexpr int THREADS = 384;           // of a block
constexpr int MULTIPLIERS = 8;         // warps that multiply
constexpr int COPIER = 2;              // warpgroup that starts copies
constexpr u32 MOST_SHARED = 232448;    // bytes a block may have
constexpr int MOST_EXPERTS = 256;
constexpr u32 EXPERTS_BYTES = 2064;    // of `RowTiles` in shared memory

// Position in a ring of `STAGES` stages. `phase` flips with each round: who fills waits for `phase ^ 1` of the barrier
// "empty", who reads for `phase` of the barrier "full".
template <int STAGES> struct Ring {
  u32 stage = 0, phase = 0;
  DEVICE void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Each "full" barrier takes one arrival per warp that fills, each "empty" one per warp that multiplies.
template <int STAGES> DEVICE void init_ring(u64* full, u64* empty, u32 fillers) {
  for (int i = 0; i < STAGES; i++) {
    mbarrier_init(&full[i], fillers);
    mbarrier_init(&empty[i], MULTIPLIERS);
  }
  fence_mbarrier_init();
}

// Rows sorted by expert, cut into tiles of 128 rows from the start of each expert: expert e has rows start[e] to
// start[e + 1], in the tiles before[e] to before[e + 1].
struct RowTiles {
  u32 *start, *before;  // [experts + 1], in shared memory
  int experts;
  int expert = 0;  // of the tile asked for last

  DEVICE RowTiles(u8* shared, int experts)
      : start((u32*)shared), before((u32*)shared + MOST_EXPERTS + 1), experts(experts) {}

  // One warp reads the ends [experts]; the others must wait for it.
  DEVICE void cut(const u32* ends, int lane) {
    u32 tiles = 0;
    for (int first = 0; first < experts; first += 32) {
      const int e = first + lane;
      const u32 begin = e > 0 && e < experts ? ends[e - 1] : 0, end = e < experts ? ends[e] : begin;
      const u32 count = (end - begin + TILE - 1) / TILE;
      u32 sum = count;
      for (int d = 1; d < 32; d *= 2) {
        const u32 other = __shfl_sync(0xffffffff, sum, lane < d ? lane : lane - d);
        if (lane >= d) sum += other;
      }
      if (e < experts) {
        start[e] = begin;
        before[e] = tiles + sum - count;
      }
      if (e == experts - 1) start[experts] = end;
      tiles += __shfl_sync(0xffffffff, sum, 31);
    }
    if (lane == 0) before[experts] = tiles;
  }

  DEVICE int count() const { return (int)before[experts]; }

  // Finds the expert of a tile. Neighbouring tiles are asked for one after the other, so it is near the last one.
  DEVICE void find(int tile) {
    while ((u32)tile < before[expert]) expert--;
    while ((u32)tile >= before[expert + 1]) expert++;
  }
  DEVICE int row(int tile) const { return (int)(start[expert] + ((u32)tile - before[expert]) * TILE); }
  DEVICE int end() const { return (int)start[expert + 1]; }
};

// The order of a product's tiles: bands of 8 tiles of rows, within a band column after column. The tiles that run at
// the same time, one per multiprocessor, then form a rectangle, and read its few rows of A and B from L2.
struct Order {
  static constexpr int BAND = 8;
  int row, column;
  DEVICE Order(int tile, int rows, int columns) {
    const int band = tile / (BAND * columns), first = band * BAND, rest = tile - first * columns;
    const int height = rows - first < BAND ? rows - first : BAND;
    row = first + rest % height;
    column = rest / height;
  }
};

// A tile of a weight gradient: its expert, first row and first column. Tiles of one expert stand side by side.
struct Place {
  int expert, row, column;
  DEVICE Place(int tile, int rows, int columns, int width) {
    expert = tile / (rows * columns);
    const Order at(tile - expert * rows * columns, rows, columns);
    row = at.row * TILE;
    column = at.column * width;
  }
};

// The place of a thread's accumulators in the 64 rows of its warpgroup: d[4·j + e] is column 8·j + 2·(lane % 4) + e
// of row `accumulator_row()`, d[4·j + 2 + e] of the row 8 further down.
DEVICE int accumulator_row(u32 thread) { return (int)(thread >> 5 & 3) * 16 + (int)(thread & 31) / 4; }
DEVICE int accumulator_row() { return accumulator_row(threadIdx.x); }
DEVICE int accumulator_column() { return (int)(threadIdx.x & 3) * 2; }

template <int COUNT> DEVICE void fence_all(float (&x)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) fence_operand(x[i]);
}
template <int COUNT> DEVICE void clear(float (&x)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = 0;
}

struct alignas(8) Pair { float x, y; };

// c[row, column..] = or += two rows of accumulators, `row` and `row + 8`, as far as `end` and `columns` reach;
// `columns` is even. Four threads write 32 neighbouring bytes, a whole sector of L2.
template <int COUNT>
DEVICE void store(const float (&d)[COUNT], float* c, int row, int end, int column, int columns, int add) {
  float* to[2] = {c + (i64)row * columns + column, c + (i64)(row + 8) * columns + column};
  // The compiler loads nothing ahead of a store that may overlap it: so what is added to is loaded 16 pairs of a row
  // at a time, and a tile waits for memory once or twice instead of for each pair.
  constexpr int PAIRS = COUNT / 4, BATCH = 16;
#pragma unroll
  for (int first = 0; first < PAIRS; first += BATCH) {
    Pair old[2][BATCH];
#pragma unroll
    for (int i = 0; i < 2 * BATCH; i++) {
      const int half = i / BATCH, j = first + i % BATCH;
      const bool inside = j < PAIRS && column + 8 * j < columns && row + 8 * half < end;
      old[half][i % BATCH] = add && inside ? *(const Pair*)(to[half] + 8 * j) : Pair{0, 0};
    }
#pragma unroll
    for (int i = 0; i < 2 * BATCH; i++) {
      const int half = i / BATCH, j = first + i % BATCH;
      if (j >= PAIRS || column + 8 * j >= columns || row + 8 * half >= end) continue;
      Pair sum = old[half][i % BATCH];
      sum.x = add ? sum.x + d[4 * j + 2 * half] : d[4 * j + 2 * half];
      sum.y = add ? sum.y + d[4 * j + 2 * half + 1] : d[4 * j + 2 * half + 1];
      *(Pair*)(to[half] + 8 * j) = sum;
    }
  }
}
