// Draws tokens from logits: the token that the CPU draws from the same logits, a function of seed and place.
#include "math.cuh"

struct Draw {
  double temperature, top_p;
  u64 seed, place;
  int row, top_k;
};

// The hash of ../src/random.rs.
DEVICE u64 mix(u64 x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
DEVICE double uniform(u64 seed, u64 stream, u64 index) {
  return (double)(mix(mix(mix(seed) ^ stream) ^ index) >> 11) / 9007199254740992.0;
}

// Whether token a stands before b: the heavier first, of equal weights the first of the vocabulary.
DEVICE bool is_before(const double* weights, u32 a, u32 b) {
  return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
}

// One block per draw. `weights` `[M, size]` and `order` `[M, size]` are working memory; size is the power of two that V
// fits into.
KERNEL(256) draw(
    const float* logits, const Draw* draws, double* weights, u32* order, u32* tokens, double* logp, int v, int size) {
  __shared__ float scratch[8];
  __shared__ double sums[8];
  Draw d = draws[blockIdx.x];
  const float* row = logits + (i64)d.row * v;
  weights += (i64)blockIdx.x * size;
  order += (i64)blockIdx.x * size;
  float largest = -3.402823466e+38f;
  for (int j = threadIdx.x; j < v; j += 256) largest = fmaxf(largest, row[j]);
  largest = block_max(largest, scratch);
  double temperature = d.temperature == 0.0 ? 1.0 : d.temperature, total = 0.0;
  for (int j = threadIdx.x; j < size; j += 256) {
    float e = j < v ? exp_below(row[j] - largest) : 0.f;
    double tempered = j < v ? exp_f64(((double)row[j] - (double)largest) / temperature) : 0.0;
    if (j < v) total += temperature == 1.0 ? (double)e : tempered;
    // a token whose exponential vanished stays out at any temperature; what is no token comes last
    double weight = temperature == 1.0 ? (double)e : e > 0.f ? exp_f64(ln_f64((double)e) / temperature) : 0.0;
    weights[j] = j < v ? weight : -1.0;
    order[j] = (u32)j;
  }
  total = block_sum(total, sums);
  __syncthreads();
  bool is_cut = d.top_p < 1.0 || (d.top_k > 0 && d.top_k < v);
  if (is_cut && d.temperature != 0.0) {
    for (int width = 2; width <= size; width *= 2)
      for (int apart = width / 2; apart > 0; apart /= 2) {
        for (int j = threadIdx.x; j < size; j += 256) {
          int other = j ^ apart;
          if (other < j) continue;
          u32 a = order[j], b = order[other];
          bool is_rising = (j & width) == 0;
          if (is_before(weights, b, a) == is_rising) {
            order[j] = b;
            order[other] = a;
          }
        }
        __syncthreads();
      }
  }
  if (threadIdx.x != 0) return;
  int id = 0;
  if (d.temperature == 0.0) {
    for (int j = 1; j < v; j++)
      if (weights[j] > weights[id]) id = j;
  } else {
    int kept = v;
    if (is_cut) {
      int limit = d.top_k > 0 && d.top_k < v ? d.top_k : v;
      double sum = 0.0, held = 0.0;
      for (int j = 0; j < limit; j++) sum += weights[order[j]];
      kept = 0;
      while (kept < limit && held < d.top_p * sum) held += weights[order[kept++]];
      kept = kept > 1 ? kept : 1;
    }
    double sum = 0.0, held = 0.0;
    for (int j = 0; j < kept; j++) sum += weights[order[j]];
    double at = uniform(d.seed, 0x5a3c, d.place) * sum;
    int last = is_cut ? (int)order[0] : 0;
    bool is_found = false;
    for (int j = 0; j < kept && !is_found; j++) {
      double weight = weights[order[j]];
      held += weight;
      if (weight > 0.0) last = (int)order[j];
      is_found = held > at;
      if (is_found) last = (int)order[j];
    }
    id = last;
  }
  tokens[blockIdx.x] = (u32)id;
  logp[blockIdx.x] = ((double)row[id] - (double)largest) / temperature - ln_f64(total);
}
