// What the attention kernels share: causal attention within packed documents, in tiles of 128 rows.
//
// Tiles are cut from the batch, not from documents: a tile may hold rows of many documents, and goes through them one
// after the other. Blocks of the other side (keys for a tile of queries, queries for a tile of keys) are cut from the
// start of the document. What a row adds up, and in which order, therefore depends on its document alone: blocks that
// are there for other rows of the tile add exact zeros to it. (A NaN or an infinity within a block does reach all rows
// whose tile reads the block.)
//
// Documents are given per row: starts[i] and limits[i], the first row of the document of row i and the first row after
// it; see `document_spans`.
#pragma once
#include "tiles.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// The rows of a tile that belong to one document.
struct Part {
  int first, last;    // rows of the tile: from `first`, before `last`
  int start, limit;   // of the document
  DEVICE Part(const u32* starts, const u32* limits, int row, int tile_end) : first(row) {
    start = (int)starts[row];
    limit = (int)limits[row];
    last = limit < tile_end ? limit : tile_end;
  }
  // Whether all of 64 rows from `row` belong to it.
  DEVICE bool has_all(int row) const { return first <= row && row + 64 <= last; }
  DEVICE bool has(int row) const { return first <= row && row < last; }
  // Its first row of 64 rows from `row`, and the row after its last one. It has none of them if first ≥ last.
  DEVICE int first_of(int row) const { return row > first ? row : first; }
  DEVICE int last_of(int row) const { return row + 64 < last ? row + 64 : last; }
};

// Bytes of `rows` rows of `columns` bf16 in shared memory: boxes of 64 columns, one behind the other.
DEVICE constexpr u32 bytes_of(int rows, int columns) { return (u32)rows * columns * 2; }

// Starts copies of rows `row`.. of one head: dims [columns, heads, N], boxes [64, 1, rows].
template <int COLUMNS> DEVICE void copy_rows(u8* to, int rows, const TensorMap* map, u64* arrived, int head, int row) {
#pragma unroll
  for (int i = 0; i < COLUMNS / 64; i++) copy_tile_3d(to + i * bytes_of(rows, 64), map, arrived, i * 64, head, row);
}

// d = a · bᵀ over DEPTH columns. a: 64 rows of a tile of A_ROWS, b: all B_ROWS of a tile.
template <int DEPTH, int A_ROWS, int B_ROWS, int COUNT>
DEVICE void scores(float (&d)[COUNT], const u8* a, const u8* b) {
  const u64 from_a = k_major(a), from_b = k_major(b);
#pragma unroll
  for (int i = 0; i < DEPTH / 16; i++) {
    wgmma_bf16<0, 0>(d, later(from_a, i / 4 * bytes_of(A_ROWS, 64) + i % 4 * 32),
                     later(from_b, i / 4 * bytes_of(B_ROWS, 64) + i % 4 * 32), i > 0);
  }
}

// d += p · b, p in registers, b: all ROWS of a tile.
template <int ROWS, int COUNT, int WORDS> DEVICE void weigh(float (&d)[COUNT], const u32 (&p)[WORDS], const u8* b) {
  static_assert(WORDS == ROWS / 4);
  const u64 from_b = mn_major(b, bytes_of(ROWS, 64));
#pragma unroll
  for (int i = 0; i < ROWS / 16; i++) wgmma_bf16<1>(d, p + 4 * i, later(from_b, i * 2048), 1);
}

// Accumulators as the A operand of the next product: both have the same place for an element.
template <int COUNT> DEVICE void pack(const float (&x)[COUNT], u32 (&packed)[COUNT / 2]) {
#pragma unroll
  for (int i = 0; i < COUNT / 2; i++) packed[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}

// Writes 2 · COUNT / 4 columns per row of rows `row` and `row + 8`, times `low` and `high`, where row < `end`.
template <int COUNT>
DEVICE void store_rows(const float (&d)[COUNT], float* to, i64 pitch, int row, int end, float low, float high) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (row + 8 * half >= end) continue;
    float* at = to + (row + 8 * half) * pitch + accumulator_column();
    const float factor = half ? high : low;
#pragma unroll
    for (int j = 0; j < COUNT / 4; j++)
      *(Pair*)(at + 8 * j) = Pair{d[4 * j + 2 * half] * factor, d[4 * j + 2 * half + 1] * factor};
  }
}
