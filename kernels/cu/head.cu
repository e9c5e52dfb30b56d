// Softmax of the output projection: rows of logits `[rows, V]`.
#include "math.cuh"

// One block per row, which is read once: log p(target), log Σ exp. Sums of exponentials in f64; those of a thread are
// relative to the largest of its logits so far.
KERNEL(256) log_probabilities(const float* logits, const u32* targets, double* logp, double* lse, int v) {
  __shared__ float scratch[8];
  __shared__ double sums[8];
  const float* row = logits + (i64)blockIdx.x * v;
  float own = -3.402823466e+38f;
  double sum = 0.0;
  for (int j = threadIdx.x; j < v; j += 256) {
    float logit = row[j];
    if (logit > own) {
      sum *= exp_f64((double)own - (double)logit);
      own = logit;
    }
    sum += (double)exp_below(logit - own);
  }
  float largest = block_max(own, scratch);
  sum = block_sum(sum * exp_f64((double)own - (double)largest), sums);
  if (threadIdx.x == 0) {
    double total = (double)largest + ln_f64(sum);
    lse[blockIdx.x] = total;
    logp[blockIdx.x] = (double)row[targets[blockIdx.x]] - total;
  }
}

// What the gradient of a row's logits is made of: `dlogp·(onehot − softmax) + dlse·softmax`.
struct Row {
  double lse, dlogp, dlse;
  u32 target;
  DEVICE float gradient(float logit, int j) const {
    double softmax = (double)exp_below((float)((double)logit - lse));
    double onehot = target == (u32)j ? 1.0 : 0.0;
    return (float)(dlogp * (onehot - softmax) + dlse * softmax);
  }
};

// Turns logits into their gradients.
KERNEL(256) logits_gradient(
    float* logits, const u32* targets, const double* lse, const double* dlogp, const double* dlse, i64 rows, int v) {
  int l = row_threads(v);
  EACH_ROW(row, rows, l) {
    Row of = {of_row(lse, row, l), of_row(dlogp, row, l), of_row(dlse, row, l), of_row(targets, row, l)};
    EACH_COLUMN(j, v, l) logits[row * v + j] = of.gradient(logits[row * v + j], j);
  }
}

// The same gradients in bf16, rows padded with zeros to `pitch`, for the tensor cores.
KERNEL(256) logits_gradient_bf16(
    const float* logits, const u32* targets, const double* lse, const double* dlogp, const double* dlse, bf16* dlogits,
    i64 rows, int v, int pitch) {
  int l = row_threads(pitch);
  EACH_ROW(row, rows, l) {
    Row of = {of_row(lse, row, l), of_row(dlogp, row, l), of_row(dlse, row, l), of_row(targets, row, l)};
    EACH_COLUMN(j, pitch, l) dlogits[row * pitch + j] = to_bf16(j < v ? of.gradient(logits[row * v + j], j) : 0.f);
  }
}
