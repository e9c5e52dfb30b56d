// F32 to bf16 and to E4M3 with scales (../src/fp8.rs): the bytes and scales of the CPU, one pass over memory per tile.
//
// Rows of the results are padded with zeros to 128 bytes, so that products have no partial step along the contracted
// dim. Operands of a weight gradient are tiled along tokens and stored transposed, `[D, T]`, because the tensor cores
// take E4M3 only with the contracted dim contiguous; there the tokens of each segment begin at a multiple of 128, and
// the gap before it is zero.
#include "scales.cuh"

// Rounds `[N, D]` to bf16 rows of `pitch` elements.
KERNEL(256) round_rows(const float* x, bf16* y, i64 n, int d, int pitch) {
  EACH(i, n * pitch) {
    i64 row = i / pitch, j = i - row * pitch;
    y[i] = to_bf16(j < d ? x[row * d + j] : 0.f);
  }
}

// Scales per 1×128 of `[N, D]`; q has rows of `pitch` bytes. One warp per tile.
KERNEL(256) quantise_rows(
    const float* x, u8* q, float* scale, u32* saturated, i64 n, int d, int pitch, int role, int power) {
  int lane = threadIdx.x & 31, across = pitch / SIDE;
  i64 tile = ((i64)blockIdx.x * 256 + threadIdx.x) >> 5, row = tile / across;
  int first = (int)(tile - row * across) * SIDE + lane * 4;
  if (row >= n) return;
  float values[4];
  u32 largest = 0, any = 0;
  for (int i = 0; i < 4; i++) {
    values[i] = first + i < d ? x[row * d + first + i] : 0.f;
    u32 bits = magnitude(values[i]);
    any = bits > any ? bits : any;
    largest = finite(bits) > largest ? finite(bits) : largest;
  }
  largest = warp_largest(largest);
  float by = scale_of(largest, role, power);
  u32 packed = 0;
  for (int i = 0; i < 4; i++) packed |= (u32)to_e4m3(values[i] / by) << (8 * i);
  *(u32*)(q + row * pitch + first) = packed;
  if (lane == 0) scale[tile] = by;
  if (any >= INFINITE) atomicOr(saturated, 1u);
}

// Scales per 128×1 along tokens, q transposed: `[D, T]`, T tokens of which those of each segment begin at a multiple
// of 128. Block (b, j): tokens of band b, 64 columns from 64·j.
KERNEL(256) quantise_columns(
    const float* x, const u32* ends, int segments, u8* q, float* scale, u32* saturated, int d, i64 pitch, int role,
    int power) {
  constexpr int WIDTH = 64;
  __shared__ float values[SIDE][WIDTH + 1];
  __shared__ u32 largest[4][WIDTH];
  __shared__ Tile found;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  if (band.start == band.end) return;
  int column = blockIdx.y * WIDTH + threadIdx.x % WIDTH, part = threadIdx.x / WIDTH;
  u32 here = 0, any = 0;
  for (int i = part; i < SIDE; i += 4) {
    int row = band.start + i;
    float value = row < band.end && column < d ? x[(i64)row * d + column] : 0.f;
    u32 bits = magnitude(value);
    any = bits > any ? bits : any;
    here = finite(bits) > here ? finite(bits) : here;
    values[i][threadIdx.x % WIDTH] = value;
  }
  largest[part][threadIdx.x % WIDTH] = here;
  if (any >= INFINITE) atomicOr(saturated, 1u);
  __syncthreads();
  // four bytes of a column per thread: 32 threads write the 128 bytes of a column
  int lane = threadIdx.x & 31;
  for (int c = threadIdx.x >> 5; c < WIDTH && (int)blockIdx.y * WIDTH + c < d; c += 8) {
    u32 most = 0;
    for (int p = 0; p < 4; p++) most = largest[p][c] > most ? largest[p][c] : most;
    float by = scale_of(most, role, power);
    u32 packed = 0;
    for (int i = 0; i < 4; i++) packed |= (u32)to_e4m3(values[lane * 4 + i][c] / by) << (8 * i);
    i64 row = blockIdx.y * WIDTH + c;
    *(u32*)(q + row * pitch + (i64)blockIdx.x * SIDE + lane * 4) = packed;
    if (lane == 0) scale[(i64)blockIdx.x * d + row] = by;
  }
}

// Two forms at once: scales per 1×128 with rows `[N, pitch]`, and per 128×1 with columns transposed, `[D, to_pitch]`.
struct Both {
  u8* rows;
  float* row_scale;
  int row_role, row_power;
  u8* columns;
  float* column_scale;
  int column_role, column_power, d, pitch;
  i64 to_pitch;
};

// Magnitudes of the values that a thread has seen.
struct Magnitudes {
  u32 largest_finite = 0, largest = 0;
};
DEVICE void see(Magnitudes& seen, float value) {
  u32 bits = magnitude(value);
  seen.largest = bits > seen.largest ? bits : seen.largest;
  seen.largest_finite = finite(bits) > seen.largest_finite ? finite(bits) : seen.largest_finite;
}

// Writes both forms of the tile in shared memory: 128 rows of `BOTH_PITCH` values, columns from 128·at; then the
// largest finite magnitude of each column, by halves of the rows.
constexpr int BOTH_PITCH = SIDE + 1;  // of the tile's rows: neighbours of a column lie in different banks
constexpr int BOTH_SHARED = SIDE * BOTH_PITCH * 4 + 2 * SIDE * 4;  // 67072
DEVICE void write_both(const float* values, Tile band, int at, int across, const Both& to) {
  const u32* largest = (const u32*)(values + SIDE * BOTH_PITCH);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int i = warp; band.start + i < band.end && i < SIDE; i += 8) {
    const float* four = values + i * BOTH_PITCH + lane * 4;
    u32 most = 0;
    for (int k = 0; k < 4; k++) {
      u32 bits = finite(magnitude(four[k]));
      most = bits > most ? bits : most;
    }
    float by = scale_of(warp_largest(most), to.row_role, to.row_power);
    u32 packed = 0;
    for (int k = 0; k < 4; k++) packed |= (u32)to_e4m3(four[k] / by) << (8 * k);
    i64 row = band.start + i;
    *(u32*)(to.rows + row * to.pitch + at * SIDE + lane * 4) = packed;
    if (lane == 0) to.row_scale[row * across + at] = by;
  }
  for (int c = warp; c < SIDE && at * SIDE + c < to.d; c += 8) {
    u32 most = largest[c] > largest[SIDE + c] ? largest[c] : largest[SIDE + c];
    float by = scale_of(most, to.column_role, to.column_power);
    u32 packed = 0;
    for (int k = 0; k < 4; k++) packed |= (u32)to_e4m3(values[(lane * 4 + k) * BOTH_PITCH + c] / by) << (8 * k);
    i64 row = (i64)at * SIDE + c;
    *(u32*)(to.columns + row * to.to_pitch + (i64)blockIdx.x * SIDE + lane * 4) = packed;
    if (lane == 0) to.column_scale[(i64)blockIdx.x * to.d + row] = by;
  }
}

// Makes the tile of which `value(row, column)` is an element, and writes both forms of it. Block (b, j): tokens of band
// b, 128 columns from 128·j. `values`: `BOTH_SHARED` bytes of shared memory.
template <class Value>
DEVICE void make_both(float* values, Tile band, u32* saturated, const Both& to, const Value& value) {
  u32* largest = (u32*)(values + SIDE * BOTH_PITCH);
  int own = threadIdx.x % SIDE, half = threadIdx.x / SIDE, column = blockIdx.y * SIDE + own;
  Magnitudes seen;
  for (int i = half; i < SIDE; i += 2) {
    int row = band.start + i;
    float element = row < band.end && column < to.d ? value((i64)row, column) : 0.f;
    see(seen, element);
    values[i * BOTH_PITCH + own] = element;
  }
  largest[half * SIDE + own] = seen.largest_finite;
  if (seen.largest >= INFINITE) atomicOr(saturated, 1u);
  __syncthreads();
  write_both(values, band, blockIdx.y, gridDim.y, to);
}

// Of x, read once.
KERNEL(256) quantise_both(
    const float* x, const u32* ends, int segments, u8* rows, float* row_scale, int row_role, int row_power, u8* columns,
    float* column_scale, int column_role, int column_power, u32* saturated, int d, int pitch, i64 to_pitch) {
  DYNAMIC_SHARED(shared);
  __shared__ Tile found;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  if (band.start == band.end) return;
  Both to = {rows,        row_scale,    row_role, row_power, columns, column_scale,
             column_role, column_power, d,        pitch,     to_pitch};
  make_both((float*)shared, band, saturated, to, [=](i64 row, int column) { return x[row * d + column]; });
}

// Of SwiGLU of h `[N, 2D]`, which is read once.
KERNEL(256) quantise_gated(
    const float* h, const u32* ends, int segments, u8* rows, float* row_scale, int row_role, int row_power, u8* columns,
    float* column_scale, int column_role, int column_power, u32* saturated, int d, int pitch, i64 to_pitch) {
  DYNAMIC_SHARED(shared);
  __shared__ Tile found;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  if (band.start == band.end) return;
  Both to = {rows,        row_scale,    row_role, row_power, columns, column_scale,
             column_role, column_power, d,        pitch,     to_pitch};
  make_both((float*)shared, band, saturated, to, [=](i64 row, int column) {
    return gated(h[row * 2 * d + column], h[row * 2 * d + d + column]);
  });
}

// Of the gradient of SwiGLU's input h `[N, 2F]`, for dy `[N, F]`; both are read once. D = 2F, F a multiple of 128.
// Block (b, j): tokens of band b, 128 gates from 128·j, and their values F columns on, which wait in registers.
KERNEL(256) quantise_gated_gradient(
    const float* h, const float* dy, const u32* ends, int segments, u8* rows, float* row_scale, int row_role,
    int row_power, u8* columns, float* column_scale, int column_role, int column_power, u32* saturated, int f,
    int pitch, i64 to_pitch) {
  DYNAMIC_SHARED(shared);
  __shared__ Tile found;
  float* values = (float*)shared;
  u32* largest = (u32*)(values + SIDE * BOTH_PITCH);
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  if (band.start == band.end) return;
  int own = threadIdx.x % SIDE, half = threadIdx.x / SIDE, column = blockIdx.y * SIDE + own;
  Magnitudes of_gates, of_ups;
  float ups[SIDE / 2];
#pragma unroll
  for (int k = 0; k < SIDE / 2; k++) {
    int row = band.start + half + 2 * k;
    Gated d = {0.f, 0.f};
    if (row < band.end) {
      i64 at = (i64)row * 2 * f + column;
      d = gated_gradient(h[at], h[at + f], dy[(i64)row * f + column]);
    }
    see(of_gates, d.gate);
    see(of_ups, d.up);
    values[(half + 2 * k) * BOTH_PITCH + own] = d.gate;
    ups[k] = d.up;
  }
  largest[half * SIDE + own] = of_gates.largest_finite;
  if (of_gates.largest >= INFINITE || of_ups.largest >= INFINITE) atomicOr(saturated, 1u);
  __syncthreads();
  Both to = {rows,        row_scale,    row_role, row_power, columns, column_scale,
             column_role, column_power, 2 * f,    pitch,     to_pitch};
  write_both(values, band, blockIdx.y, 2 * gridDim.y, to);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < SIDE / 2; k++) values[(half + 2 * k) * BOTH_PITCH + own] = ups[k];
  largest[half * SIDE + own] = of_ups.largest_finite;
  __syncthreads();
  write_both(values, band, gridDim.y + blockIdx.y, 2 * gridDim.y, to);
}

// By scales per 128×128 tile, cut at the ends of segments: `scale[band, ⌈D/128⌉]`, rows of `pitch` bytes.
// x is read once. Block (b, j): rows of band b, 128 columns from 128·j. Dynamic shared memory: the tile, 64 KiB.
KERNEL(256) quantise_blocks(
    const float* x, const u32* ends, int segments, u8* q, float* scale, u32* saturated, int d, int pitch, int role,
    int power) {
  DYNAMIC_SHARED(shared);
  __shared__ u32 scratch[8];
  __shared__ Tile found;
  float* values = (float*)shared;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  int own = threadIdx.x % SIDE, column = blockIdx.y * SIDE + own, rows = band.end - band.start;
  Magnitudes seen;
  for (int i = threadIdx.x / SIDE; i < rows; i += 2) {
    float value = column < d ? x[(i64)(band.start + i) * d + column] : 0.f;
    see(seen, value);
    values[i * SIDE + own] = value;
  }
  if (seen.largest >= INFINITE) atomicOr(saturated, 1u);
  u32 most = warp_largest(seen.largest_finite);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  if (lane == 0) scratch[warp] = most;
  __syncthreads();
  for (int w = 0; w < 8; w++) most = scratch[w] > most ? scratch[w] : most;
  float by = scale_of(most, role, power);
  if (threadIdx.x == 0) scale[(i64)blockIdx.x * gridDim.y + blockIdx.y] = by;
  for (int i = warp; i < rows; i += 8) {
    u32 packed = 0;
    for (int k = 0; k < 4; k++) packed |= (u32)to_e4m3(values[i * SIDE + lane * 4 + k] / by) << (8 * k);
    *(u32*)(q + (i64)(band.start + i) * pitch + blockIdx.y * SIDE + lane * 4) = packed;
  }
}

// The largest finite magnitude of 128×128 tiles, as bits: `largest[band, ⌈D/128⌉]`.
KERNEL(256) tile_maxima(
    const float* x, const u32* ends, int segments, u32* largest, u32* saturated, int d) {
  __shared__ u32 scratch[8];
  __shared__ Tile found;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  if (band.start == band.end) return;
  int column = blockIdx.y * SIDE + threadIdx.x % SIDE;
  u32 here = 0, any = 0;
  for (int row = band.start + threadIdx.x / SIDE; row < band.end; row += 2) {
    u32 bits = column < d ? magnitude(x[(i64)row * d + column]) : 0;
    any = bits > any ? bits : any;
    here = finite(bits) > here ? finite(bits) : here;
  }
  if (any >= INFINITE) atomicOr(saturated, 1u);
  here = warp_largest(here);
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = here;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < 8; w++) here = scratch[w] > here ? scratch[w] : here;
  largest[(i64)blockIdx.x * gridDim.y + blockIdx.y] = here;
}

// One scale for all `tiles` of a matrix, from their magnitudes. Block m has matrix m.
KERNEL(256) scales_of(const u32* largest, float* scale, i64 tiles, int role, int power) {
  __shared__ u32 scratch[8];
  i64 first = blockIdx.x * tiles;
  u32 most = 0;
  for (i64 i = threadIdx.x; i < tiles; i += 256) most = largest[first + i] > most ? largest[first + i] : most;
  most = warp_largest(most);
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = most;
  __syncthreads();
  for (int w = 0; w < 8; w++) most = scratch[w] > most ? scratch[w] : most;
  float by = scale_of(most, role, power);
  for (i64 i = threadIdx.x; i < tiles; i += 256) scale[first + i] = by;
}

// E4M3 rows of `pitch` bytes by scales that are known, one per 128×128 tile.
KERNEL(256) quantise_tiles(
    const float* x, const u32* ends, int segments, const float* scale, u8* q, int d, int pitch) {
  __shared__ Tile found;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  int first = blockIdx.y * SIDE + (threadIdx.x & 31) * 4;
  float by = scale[(i64)blockIdx.x * gridDim.y + blockIdx.y];
  for (int row = band.start + (threadIdx.x >> 5); row < band.end; row += 8) {
    u32 packed = 0;
    for (int i = 0; i < 4; i++) {
      float value = first + i < d ? x[(i64)row * d + first + i] : 0.f;
      packed |= (u32)to_e4m3(value / by) << (8 * i);
    }
    *(u32*)(q + (i64)row * pitch + first) = packed;
  }
}

// A matrix of 1- or 2-byte elements transposed, `[rows, cols]` with `pitch` to `[cols, rows]` with `to_pitch`, zeros in
// the padding; block z has matrix z.
template <class T>
DEVICE void transpose(T (&tile)[32][33], const T* x, T* y, int rows, int cols, i64 pitch, i64 to_pitch) {
  int column = blockIdx.x * 32 + (threadIdx.x & 31), row = blockIdx.y * 32 + (threadIdx.x & 31);
  x += (i64)blockIdx.z * rows * pitch;
  y += (i64)blockIdx.z * cols * to_pitch;
  for (int i = threadIdx.x >> 5; i < 32; i += 8) {
    int from = blockIdx.y * 32 + i;
    tile[i][threadIdx.x & 31] = from < rows && column < cols ? x[from * pitch + column] : T{0};
  }
  __syncthreads();
  for (int i = threadIdx.x >> 5; i < 32; i += 8) {
    int to = blockIdx.x * 32 + i;
    if (to < cols && row < to_pitch) y[to * to_pitch + row] = tile[threadIdx.x & 31][i];
  }
}
KERNEL(256) transpose_1(const u8* x, u8* y, int rows, int cols, i64 pitch, i64 to_pitch) {
  __shared__ u8 tile[32][33];
  transpose(tile, x, y, rows, cols, pitch, to_pitch);
}
KERNEL(256) transpose_2(const u16* x, u16* y, int rows, int cols, i64 pitch, i64 to_pitch) {
  __shared__ u16 tile[32][33];
  transpose(tile, x, y, rows, cols, pitch, to_pitch);
}

// `[rows, cols]` of floats transposed; block z has matrix z.
KERNEL(256) transpose_scales(const float* x, float* y, int rows, int cols) {
  i64 at = (i64)blockIdx.z * rows * cols;
  EACH(i, rows * cols) {
    i64 row = i / cols, col = i - row * cols;
    y[at + col * rows + row] = x[at + i];
  }
}

// An operand `[N, D]` with scales along rows, as one transposed along tokens. Block (b, j): band b, 32 columns.
KERNEL(256) transpose_tokens(
    const u8* x, const u32* ends, int segments, u8* y, int d, int pitch, i64 to_pitch) {
  __shared__ u8 tile[SIDE][33];
  __shared__ Tile found;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  if (band.start == band.end) return;
  int column = blockIdx.y * 32 + (threadIdx.x & 31);
  for (int i = threadIdx.x >> 5; i < SIDE; i += 8) {
    int row = band.start + i;
    tile[i][threadIdx.x & 31] = row < band.end && column < d ? x[(i64)row * pitch + column] : 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * SIDE; i += 256) {
    int to = blockIdx.y * 32 + i / SIDE;
    if (to < d) y[to * to_pitch + (i64)blockIdx.x * SIDE + i % SIDE] = tile[i % SIDE][i / SIDE];
  }
}

// The scale of each (row, 128 columns) from scales by bands of 128 rows and tiles of 128 columns (`across` of them).
KERNEL(256) scales_by_rows(
    const float* scale, const u32* ends, int segments, float* by_rows, int across) {
  __shared__ Tile found;
  Tile band = tile_of_block(found, ends, segments, blockIdx.x, SIDE);
  for (int i = threadIdx.x; i < (band.end - band.start) * across; i += 256)
    by_rows[(i64)band.start * across + i] = scale[(i64)blockIdx.x * across + i % across];
}

// The scale of each (band, column), from scales by tiles of 128 columns, or with `whole` from one for all.
KERNEL(256) scales_by_columns(const float* scale, float* by_columns, i64 bands, int d, int across, int whole) {
  EACH(i, bands * d) {
    i64 band = i / d, j = i - band * d;
    by_columns[i] = whole ? scale[0] : scale[band * across + j / SIDE];
  }
}
