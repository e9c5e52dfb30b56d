// Products on any GPU: F32 with one fused multiply-add per term in ascending order (the order of the CPU, so the bits
// are its bits), and lower precisions without tensor cores, for GPUs that have no kernel of their own.
#include "math.cuh"

constexpr int SIDE = 64, DEPTH = 16;  // a block computes 64×64 of C, 16 terms at a time; a thread 4×4

struct Shared {
  float a[DEPTH][SIDE + 4], b[DEPTH][SIDE + 4];
};

// Adds terms `from..to` of rows and columns of the block's tile to `sum`. `a(i, k)` and `b(k, j)` give elements, i and
// j counted in the tile, zero outside of the matrices.
template <class A, class B>
DEVICE void multiply(Shared& shared, A a, B b, i64 from, i64 to, float (&sum)[4][4]) {
  int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  for (i64 first = from; first < to; first += DEPTH) {
    for (int at = threadIdx.x; at < SIDE * DEPTH; at += 256) {
      int i = at / DEPTH, k = at % DEPTH;
      shared.a[k][i] = first + k < to ? a(i, first + k) : 0.f;
      shared.b[k][i] = first + k < to ? b(first + k, i) : 0.f;
    }
    __syncthreads();
    int depth = to - first < DEPTH ? (int)(to - first) : DEPTH;
    for (int k = 0; k < depth; k++)
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(shared.a[k][row + i], shared.b[k][column + j], sum[i][j]);
    __syncthreads();
  }
}

// What C holds, when adding.
DEVICE void start(float (&sum)[4][4], const float* c, i64 width, int rows, int cols, int add) {
  int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++)
      sum[i][j] = add && row + i < rows && column + j < cols ? c[(row + i) * width + column + j] : 0.f;
}

DEVICE void store(const float (&sum)[4][4], float* c, i64 width, int rows, int cols) {
  int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++)
      if (row + i < rows && column + j < cols) c[(row + i) * width + column + j] = sum[i][j];
}

// `C[M, N] = A·B`, or `+=`, for each of gridDim.z matrices; A(i, k) at `a + i·a_row + k·a_col`, and B(k, j) alike.
KERNEL(256) gemm(
    const float* a, const float* b, float* c, int m, int n, int k, i64 a_row, i64 a_col, i64 b_row, i64 b_col,
    i64 c_row, i64 a_next, i64 b_next, i64 c_next, int add) {
  __shared__ Shared shared;
  int i0 = blockIdx.y * SIDE, j0 = blockIdx.x * SIDE;
  a += blockIdx.z * a_next;
  b += blockIdx.z * b_next;
  c += blockIdx.z * c_next + i0 * c_row + j0;
  float sum[4][4];
  start(sum, c, c_row, m - i0, n - j0, add);
  multiply(
      shared, [&](int i, i64 t) { return i0 + i < m ? a[(i0 + i) * a_row + t * a_col] : 0.f; },
      [&](i64 t, int j) { return j0 + j < n ? b[t * b_row + (j0 + j) * b_col] : 0.f; }, 0, k, sum);
  store(sum, c, c_row, m - i0, n - j0);
}

// The rows of segment e times `w[e]`: B(k, j) at `w + e·w_next + k·w_row + j·w_col`. Block y has a tile of 64 rows.
KERNEL(256) grouped_gemm(
    const float* a, const float* w, float* c, const u32* ends, int segments, int n, int k, i64 w_next, i64 w_row,
    i64 w_col, int add) {
  __shared__ Shared shared;
  __shared__ Tile found;
  Tile tile = tile_of_block(found, ends, segments, blockIdx.y, SIDE);
  if (tile.start == tile.end) return;
  int rows = tile.end - tile.start, j0 = blockIdx.x * SIDE;
  a += (i64)tile.start * k;
  w += tile.segment * w_next;
  c += (i64)tile.start * n + j0;
  float sum[4][4];
  start(sum, c, n, rows, n - j0, add);
  multiply(
      shared, [&](int i, i64 t) { return i < rows ? a[(i64)i * k + t] : 0.f; },
      [&](i64 t, int j) { return j0 + j < n ? w[t * w_row + (j0 + j) * w_col] : 0.f; }, 0, k, sum);
  store(sum, c, n, rows, n - j0);
}

// `dw[e] = dyᵀ·x` over the rows of segment e, or `+=`; block z has segment z.
KERNEL(256) grouped_gradient(
    const float* dy, const float* x, float* dw, const u32* ends, int out, int inner, int add) {
  __shared__ Shared shared;
  int i0 = blockIdx.y * SIDE, j0 = blockIdx.x * SIDE, e = blockIdx.z;
  i64 from = e ? ends[e - 1] : 0, to = ends[e];
  float* c = dw + (i64)e * out * inner + (i64)i0 * inner + j0;
  float sum[4][4];
  start(sum, c, inner, out - i0, inner - j0, add);
  multiply(
      shared, [&](int i, i64 t) { return i0 + i < out ? dy[t * out + i0 + i] : 0.f; },
      [&](i64 t, int j) { return j0 + j < inner ? x[t * inner + j0 + j] : 0.f; }, from, to, sum);
  store(sum, c, inner, out - i0, inner - j0);
}

// bf16, `a [M, pitch]` and `b [E, N, pitch]`; without tensor cores.
KERNEL(256) any_bf16_gemm(
    const bf16* a, const bf16* b, float* c, const u32* ends, int segments, int n, int pitch, int add) {
  __shared__ Shared shared;
  __shared__ Tile found;
  Tile tile = tile_of_block(found, ends, segments, blockIdx.y, SIDE);
  if (tile.start == tile.end) return;
  int rows = tile.end - tile.start, j0 = blockIdx.x * SIDE;
  a += (i64)tile.start * pitch;
  b += (i64)tile.segment * n * pitch;
  c += (i64)tile.start * n + j0;
  float sum[4][4];
  start(sum, c, n, rows, n - j0, add);
  multiply(
      shared, [&](int i, i64 t) { return i < rows ? to_float(a[(i64)i * pitch + t]) : 0.f; },
      [&](i64 t, int j) { return j0 + j < n ? to_float(b[(i64)(j0 + j) * pitch + t]) : 0.f; }, 0, pitch, sum);
  store(sum, c, n, rows, n - j0);
}

// bf16, `dy [M, dy_pitch]` and `x [M, x_pitch]`; block z has segment z.
KERNEL(256) any_bf16_gradient(
    const bf16* dy, const bf16* x, float* dw, const u32* ends, int out, int inner, int dy_pitch, int x_pitch, int add) {
  __shared__ Shared shared;
  int i0 = blockIdx.y * SIDE, j0 = blockIdx.x * SIDE, e = blockIdx.z;
  i64 from = e ? ends[e - 1] : 0, to = ends[e];
  float* c = dw + (i64)e * out * inner + (i64)i0 * inner + j0;
  float sum[4][4];
  start(sum, c, inner, out - i0, inner - j0, add);
  multiply(
      shared, [&](int i, i64 t) { return i0 + i < out ? to_float(dy[t * dy_pitch + i0 + i]) : 0.f; },
      [&](i64 t, int j) { return j0 + j < inner ? to_float(x[t * x_pitch + j0 + j]) : 0.f; }, from, to, sum);
  store(sum, c, inner, out - i0, inner - j0);
}

// Adds `part`, the sum of 128 terms, times the scales of its rows and columns.
template <class A, class B>
DEVICE void promote(float (&sum)[4][4], const float (&part)[4][4], A a_scale, B b_scale) {
  int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) sum[i][j] += part[i][j] * (a_scale(row + i) * b_scale(column + j));
}

// E4M3, `a [M, pitch]` with scales `[M, pitch/128]`, `b [E, N, pitch]` with scales `[E, ⌈N/128⌉, pitch/128]`.
KERNEL(256) any_fp8_gemm(
    const u8* a, const float* a_scale, const u8* b, const float* b_scale, float* c, const u32* ends, int segments,
    int n, int pitch, int add) {
  __shared__ Shared shared;
  __shared__ Tile found;
  Tile tile = tile_of_block(found, ends, segments, blockIdx.y, SIDE);
  if (tile.start == tile.end) return;
  int rows = tile.end - tile.start, j0 = blockIdx.x * SIDE, blocks = pitch / 128;
  a += (i64)tile.start * pitch;
  a_scale += (i64)tile.start * blocks;
  b += (i64)tile.segment * n * pitch;
  b_scale += ((i64)tile.segment * ((n + 127) / 128) + j0 / 128) * blocks;
  c += (i64)tile.start * n + j0;
  float sum[4][4];
  start(sum, c, n, rows, n - j0, add);
  for (int block = 0; block < blocks; block++) {
    float part[4][4] = {};
    multiply(
        shared, [&](int i, i64 t) { return i < rows ? from_e4m3(a[(i64)i * pitch + t]) : 0.f; },
        [&](i64 t, int j) { return j0 + j < n ? from_e4m3(b[(i64)(j0 + j) * pitch + t]) : 0.f; }, block * 128,
        block * 128 + 128, part);
    promote(
        sum, part, [&](int i) { return i < rows ? a_scale[(i64)i * blocks + block] : 0.f; },
        [&](int) { return b_scale[block]; });
  }
  store(sum, c, n, rows, n - j0);
}

// E4M3 transposed along tokens, `dy [O, pitch]` and `x [I, pitch]` with scales `[bands, O]` and `[bands, I]`.
KERNEL(256) any_fp8_gradient(
    const u8* dy, const float* dy_scale, const u8* x, const float* x_scale, float* dw, const u32* ends, int out,
    int inner, i64 pitch, int add) {
  __shared__ Shared shared;
  int i0 = blockIdx.y * SIDE, j0 = blockIdx.x * SIDE, e = blockIdx.z, first = 0, bands = 0;
  for (int s = 0; s <= e; s++) {
    first += bands;
    bands = ((int)(ends[s] - (s ? ends[s - 1] : 0)) + 127) / 128;
  }
  float* c = dw + (i64)e * out * inner + (i64)i0 * inner + j0;
  float sum[4][4];
  start(sum, c, inner, out - i0, inner - j0, add);
  for (i64 band = first; band < first + bands; band++) {
    float part[4][4] = {};
    multiply(
        shared, [&](int i, i64 t) { return i0 + i < out ? from_e4m3(dy[(i0 + i) * pitch + t]) : 0.f; },
        [&](i64 t, int j) { return j0 + j < inner ? from_e4m3(x[(j0 + j) * pitch + t]) : 0.f; }, band * 128,
        band * 128 + 128, part);
    promote(
        sum, part, [&](int i) { return i0 + i < out ? dy_scale[band * out + i0 + i] : 0.f; },
        [&](int j) { return j0 + j < inner ? x_scale[band * inner + j0 + j] : 0.f; });
  }
  store(sum, c, inner, out - i0, inner - j0);
}
