// AdamW, norms, and the small sums of a step.
#include "math.cuh"

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

// Moments are F32, or with `stored_bf16` bf16, rounded after the step.
KERNEL(256) adamw(
    float* w, const float* dw, const double* scale, void* m, void* v, int stored_bf16, float keep, float rate,
    float correction, float beta1, float rest1, float beta2, float rest2, float eps, i64 n) {
  float factor = (float)scale[0];
  EACH(i, n) {
    float g = dw[i] * factor;
    float first = stored_bf16 ? to_float(((bf16*)m)[i]) : ((float*)m)[i];
    float second = stored_bf16 ? to_float(((bf16*)v)[i]) : ((float*)v)[i];
    first = first * beta1 + g * rest1;
    second = second * beta2 + g * g * rest2;
    w[i] = w[i] * keep - rate * first / (sqrtf(second) * correction + eps);
    if (stored_bf16) {
      ((bf16*)m)[i] = to_bf16(first);
      ((bf16*)v)[i] = to_bf16(second);
    } else {
      ((float*)m)[i] = first;
      ((float*)v)[i] = second;
    }
  }
}
