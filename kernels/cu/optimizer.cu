// AdamW, norms, and the small sums of a step.
#include "scales.cuh"

// Elements per partial sum: fixed, so that the order of a sum is too.
constexpr int BLOCK = 1 << 14;

KERNEL(256) square_sum_partial(const float* x, double* partial, i64 n) {
  __shared__ double scratch[8];
  i64 first = (i64)blockIdx.x * BLOCK;
  double sum = 0.0;
  for (int j = threadIdx.x; j < BLOCK && first + j < n; j += 256) {
    double value = x[first + j];
    sum += value * value;
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// `sums[at] = Σ x`, or `Σ x²`; or, with `adds`, `+=`. One block; one thread adds, in order.
KERNEL(256) total(const double* x, int squared, double* sums, i64 at, int adds, i64 n) {
  __shared__ double values[256];
  double sum = 0.0;
  for (i64 first = 0; first < n; first += 256) {
    i64 i = first + threadIdx.x;
    values[threadIdx.x] = i < n ? x[i] : 0.0;
    __syncthreads();
    if (threadIdx.x == 0)
      for (int j = 0; j < 256 && first + j < n; j++) sum += squared ? values[j] * values[j] : values[j];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[at] = adds ? sums[at] + sum : sum;
}

KERNEL(32) clip(const double* square_sum, double most, double* factor) {
  if (threadIdx.x != 0) return;
  double by = most / (sqrt(square_sum[0]) + 1e-6);
  factor[0] = by < 1.0 ? by : 1.0;
}

KERNEL(256) average(float* acc, const float* x, float keep, float rest, i64 n) {
  EACH(i, n) acc[i] = acc[i] * keep + x[i] * rest;
}

// The hyperparameters of a step, as factors.
struct Factors {
  float keep, rate, correction, beta1, rest1, beta2, rest2, eps;
};

// One weight's step; returns it. Moments are F32, or with `stored_bf16` bf16, rounded after the step.
DEVICE float step_of(
    float* w, const float* dw, float factor, void* m, void* v, int stored_bf16, const Factors& f, i64 i) {
  float g = dw[i] * factor;
  float first = stored_bf16 ? to_float(((bf16*)m)[i]) : ((float*)m)[i];
  float second = stored_bf16 ? to_float(((bf16*)v)[i]) : ((float*)v)[i];
  first = first * f.beta1 + g * f.rest1;
  second = second * f.beta2 + g * g * f.rest2;
  float stepped = w[i] * f.keep - f.rate * first / (sqrtf(second) * f.correction + f.eps);
  w[i] = stepped;
  if (stored_bf16) {
    ((bf16*)m)[i] = to_bf16(first);
    ((bf16*)v)[i] = to_bf16(second);
  } else {
    ((float*)m)[i] = first;
    ((float*)v)[i] = second;
  }
  return stepped;
}

KERNEL(256) adamw(
    float* w, const float* dw, const double* scale, void* m, void* v, int stored_bf16, float keep, float rate,
    float correction, float beta1, float rest1, float beta2, float rest2, float eps, i64 n) {
  float factor = (float)scale[0];
  Factors factors = {keep, rate, correction, beta1, rest1, beta2, rest2, eps};
  EACH(i, n) step_of(w, dw, factor, m, v, stored_bf16, factors, i);
}

// The same for matrices `[out, in]` that are also kept in FP8 by tiles of 128×128, for both products that read them: q
// `[out, pitch]` with scales `[bands, across]`, and transposed, `[in, to_pitch]` with scales `[across, bands]`. Block
// (m·bands + b, j): band b and tile column j of matrix m.
constexpr int TILE_PITCH = SIDE + 1;  // neighbours of a column lie in different banks
KERNEL(256) adamw_fp8(
    float* w, const float* dw, const double* scale, void* m, void* v, int stored_bf16, float keep, float rate,
    float correction, float beta1, float rest1, float beta2, float rest2, float eps, int out, int in, int bands,
    int power, u8* q, float* scales, int pitch, u8* turned, float* turned_scales, int to_pitch) {
  DYNAMIC_SHARED(shared);  // SIDE · TILE_PITCH floats
  __shared__ u32 scratch[8];
  float* values = (float*)shared;
  float factor = (float)scale[0];
  Factors factors = {keep, rate, correction, beta1, rest1, beta2, rest2, eps};
  i64 matrix = blockIdx.x / bands;
  int band = blockIdx.x % bands, first = band * SIDE, own = threadIdx.x % SIDE, column = blockIdx.y * SIDE + own;
  u32 most = 0;
  for (int i = threadIdx.x / SIDE; i < SIDE; i += 2) {
    float value = 0.f;
    if (first + i < out && column < in)
      value = step_of(w, dw, factor, m, v, stored_bf16, factors, (matrix * out + first + i) * in + column);
    u32 bits = finite(magnitude(value));
    most = bits > most ? bits : most;
    values[i * TILE_PITCH + own] = value;
  }
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  most = warp_largest(most);
  if (lane == 0) scratch[warp] = most;
  __syncthreads();
  for (int i = 0; i < 8; i++) most = scratch[i] > most ? scratch[i] : most;
  float by = scale_of(most, 1, power);
  if (threadIdx.x == 0) {
    scales[(i64)blockIdx.x * gridDim.y + blockIdx.y] = by;
    turned_scales[(matrix * gridDim.y + blockIdx.y) * bands + band] = by;
  }
  for (int i = warp; i < SIDE && first + i < out; i += 8) {
    u32 packed = 0;
    for (int k = 0; k < 4; k++) packed |= (u32)to_e4m3(values[i * TILE_PITCH + lane * 4 + k] / by) << (8 * k);
    *(u32*)(q + (matrix * out + first + i) * pitch + blockIdx.y * SIDE + lane * 4) = packed;
  }
  for (int c = warp; c < SIDE && (int)blockIdx.y * SIDE + c < in; c += 8) {
    u32 packed = 0;
    for (int k = 0; k < 4; k++) packed |= (u32)to_e4m3(values[(lane * 4 + k) * TILE_PITCH + c] / by) << (8 * k);
    *(u32*)(turned + (matrix * in + (i64)blockIdx.y * SIDE + c) * to_pitch + first + lane * 4) = packed;
  }
}
