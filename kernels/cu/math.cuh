// The functions of ../src/math.rs with the same bits, sums over a block, and loops over elements. Compiled without
// contraction of a·b + c, so that every rounding is where the code has it.
#pragma once
#include "device.cuh"

// Every i below n, over the whole grid.
#define EACH(i, n) \
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)

// The places of a matrix, for blocks of 256 threads: neighbours have neighbouring columns, 2ˡ threads a row of d
// columns, where l = row_threads(d), so narrow rows stand side by side. Nothing is divided: a division of 64-bit
// numbers for each element takes longer than its way from memory.
DEVICE int row_threads(int d) {
  int l = 8;
  while (l > 0 && 1 << (l - 1) >= d) l--;
  return l;
}
#define EACH_ROW(row, n, l) \
  for (i64 row = (i64)blockIdx.x * (256 >> l) + (threadIdx.x >> l); row < (n); row += (i64)gridDim.x * (256 >> l))
#define EACH_COLUMN(j, d, l) for (int j = threadIdx.x & ((1 << l) - 1); j < (d); j += 1 << l)

// `x[row]`, asked for once by the threads of a warp that have this row of EACH_ROW.
template <class T> DEVICE T of_row(const T* x, i64 row, int l) {
  int threads = l < 5 ? 1 << l : 32, lane = threadIdx.x & 31, first = lane & ~(threads - 1);
  u32 mask = threads == 32 ? 0xffffffffu : ((1u << threads) - 1) << first;
  return __shfl_sync(mask, lane == first ? x[row] : T(0), 0, threads);
}

DEVICE float exp_below(float x) {
  const float round = 12582912.f + 127.f;
  float clamped = x < -87.3f ? -87.3f : x;
  float shifted = fmaf(clamped, 1.44269504088896340736f, round);
  float n = shifted - round;
  float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, clamped));
  float p = 1.9875691e-4f;
  p = fmaf(p, r, 1.3982e-3f);
  p = fmaf(p, r, 8.333452e-3f);
  p = fmaf(p, r, 4.1665796e-2f);
  p = fmaf(p, r, 1.6666665e-1f);
  p = fmaf(p, r, 0.5f);
  float y = fmaf(p, r * r, r) + 1.f;
  y = y * __uint_as_float(__float_as_uint(shifted) << 23);
  return x < -87.3f ? 0.f : y;
}

DEVICE float sigmoid(float x) { return 1.f / (1.f + exp_below(x < -88.f ? 88.f : -x)); }

// SwiGLU of one pair, and the gradients of the pair.
DEVICE float gated(float gate, float up) { return gate * sigmoid(gate) * up; }
struct Gated {
  float gate, up;
};
DEVICE Gated gated_gradient(float gate, float up, float d) {
  float s = sigmoid(gate);
  return {d * up * s * (1.f + gate * (1.f - s)), d * gate * s};
}

DEVICE double power_of_two(i64 n) { return __longlong_as_double((i64)((u64)(n + 1023) << 52)); }

DEVICE double exp_f64(double x) {
  const double round = 6755399441055744.0;
  double clamped = x < -708.0 ? -708.0 : x > 709.5 ? 709.5 : x;
  double n = (clamped * 1.44269504088896340736 + round) - round;
  double r = clamped - n * 0.6931471803691238 - n * 1.9082149292705877e-10;
  double p = 1.0;
  for (int k = 14; k >= 1; k--) p = p * r * (1.0 / k) + 1.0;
  i64 whole = (i64)n, half = whole >> 1;
  double y = p * power_of_two(half) * power_of_two(whole - half);
  y = x < -708.0 ? 0.0 : y;
  y = x > 709.78 ? __longlong_as_double(0x7ff0000000000000LL) : y;
  return x != x ? x : y;
}

DEVICE double ln_of_parts(double x, int e) {
  u64 bits = (u64)__double_as_longlong(x);
  e += (int)(bits >> 52) - 1023;
  double m = __longlong_as_double((i64)((bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL));
  if (m > 1.41421356237309504880) { m = m * 0.5; e += 1; }
  double s = (m - 1.0) / (m + 1.0), z = s * s, p = 0.0;
  for (int k = 12; k >= 0; k--) p = p * z + 1.0 / (2 * k + 1);
  return e * 0.6931471803691238 + (2.0 * s * p + e * 1.9082149292705877e-10);
}

DEVICE double ln_f64(double x) {
  if (x == 0.0) return __longlong_as_double((i64)0xfff0000000000000ULL);
  if (x < 0.0) return __longlong_as_double(0x7ff8000000000000LL);
  if (x < 2.2250738585072014e-308) return ln_of_parts(x * 18014398509481984.0, -54);
  return x < __longlong_as_double(0x7ff0000000000000LL) ? ln_of_parts(x, 0) : x;
}

DEVICE float from_e4m3(u8 q) {
  u32 e = (q >> 3) & 15, m = q & 7;
  if (e == 15 && m == 7) return __uint_as_float(0x7fc00000);
  float x = e ? __uint_as_float((e + 120) << 23 | m << 20) : (float)m * 0.001953125f;
  return q & 128 ? -x : x;
}

// Sum over the 32 threads of a warp, in every thread.
template <class T> DEVICE T warp_sum(T x) {
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

DEVICE float warp_max(float x) {
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}

// Sum over the block, in every thread; `scratch` has a place for each warp and may be used again at once. The order of
// the sum depends on the size of the block alone.
template <class T> DEVICE T block_sum(T x, T* scratch) {
  int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) scratch[warp] = x;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < warps; w++) sum += scratch[w];
  __syncthreads();
  return sum;
}

DEVICE float block_max(float x, float* scratch) {
  int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_max(x);
  if ((threadIdx.x & 31) == 0) scratch[warp] = x;
  __syncthreads();
  float largest = scratch[0];
  for (int w = 1; w < warps; w++) largest = fmaxf(largest, scratch[w]);
  __syncthreads();
  return largest;
}

// The part of the rows that belongs to one segment: tiles of `height` rows are numbered segment by segment, and none
// spans two.
struct Tile {
  int segment, index;  // in its segment
  int start, end;      // its rows; start == end when there is no such tile
};
DEVICE Tile tile_of(const u32* ends, int segments, int number, int height) {
  int first = 0, before = 0;
  for (int e = 0; e < segments; e++) {
    int end = (int)ends[e], tiles = (end - before + height - 1) / height;
    if (number < first + tiles) {
      int start = before + (number - first) * height;
      return Tile{e, number - first, start, start + height < end ? start + height : end};
    }
    first += tiles;
    before = end;
  }
  return Tile{-1, 0, 0, 0};
}

// The same for the whole block: one thread looks, so that the ends are read once. `shared` is written before it returns
// and must not be written again.
DEVICE Tile tile_of_block(Tile& shared, const u32* ends, int segments, int number, int height) {
  if (threadIdx.x == 0) shared = tile_of(ends, segments, number, height);
  __syncthreads();
  return shared;
}
