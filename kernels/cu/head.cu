// Softmax of the output projection: rows of logits `[rows, V]`.
#include "math.cuh"

// One block per row: log p(target), log Σ exp. Sums of exponentials in f64.
KERNEL(256) log_probabilities(const float* logits, const u32* targets, double* logp, double* lse, int v) {
  __shared__ float scratch[8];
  __shared__ double sums[8];
  const float* row = logits + (i64)blockIdx.x * v;
  float largest = -3.402823466e+38f;
  for (int j = threadIdx.x; j < v; j += 256) largest = fmaxf(largest, row[j]);
  largest = block_max(largest, scratch);
  double sum = 0.0;
  for (int j = threadIdx.x; j < v; j += 256) sum += (double)exp_below(row[j] - largest);
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) {
    double total = (double)largest + ln_f64(sum);
    lse[blockIdx.x] = total;
    logp[blockIdx.x] = (double)row[targets[blockIdx.x]] - total;
  }
}

// The same gradients in bf16, rows padded with zeros to `pitch`, for the tensor cores.
KERNEL(256) logits_gradient_bf16(
    const float* logits, const u32* targets, const double* lse, const double* dlogp, const double* dlse, bf16* dlogits,
    i64 rows, int v, int pitch) {
  EACH(i, rows * pitch) {
    i64 row = i / pitch, j = i - row * pitch;
    float d = 0.f;
    if (j < v) {
      double softmax = (double)exp_below((float)((double)logits[row * v + j] - lse[row]));
      double onehot = targets[row] == (u32)j ? 1.0 : 0.0;
      d = (float)(dlogp[row] * (onehot - softmax) + dlse[row] * softmax);
    }
    dlogits[i] = to_bf16(d);
  }
}

// Turns logits into their gradients: `dlogp·(onehot − softmax) + dlse·softmax`.
KERNEL(256) logits_gradient(
    float* logits, const u32* targets, const double* lse, const double* dlogp, const double* dlse, i64 rows, int v) {
  EACH(i, rows * v) {
    i64 row = i / v;
    double softmax = (double)exp_below((float)((double)logits[i] - lse[row]));
    double onehot = targets[row] == (u32)(i - row * v) ? 1.0 : 0.0;
    logits[i] = (float)(dlogp[row] * (onehot - softmax) + dlse[row] * softmax);
  }
}
