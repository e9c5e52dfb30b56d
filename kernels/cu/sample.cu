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

// The tokens of a row. The block keeps the first `held` logits; the others are read again.
struct Tokens {
  const float *row, *kept;
  int held;
  float largest;
  double temperature;
  DEVICE float logit(int j) const { return j < held ? kept[j] : row[j]; }
  // exp(logit − largest)
  DEVICE float exponential(int j) const { return exp_below(logit(j) - largest); }
  // a token whose exponential vanished stays out at any temperature
  DEVICE double weight(float e) const {
    return temperature == 1.0 ? (double)e : e > 0.f ? exp_f64(ln_f64((double)e) / temperature) : 0.0;
  }
  DEVICE double tempered(int j, float e) const {
    return temperature == 1.0 ? (double)e : exp_f64(((double)logit(j) - (double)largest) / temperature);
  }
};

constexpr int CHUNK = 256;  // tokens whose weights one thread adds while the others compute the next ones'

// Adds all weights in the order of the vocabulary, as the CPU does; returns the drawn token in thread 0. `ends` has
// room for the sum behind each chunk, `weights` for two chunks; `passed` and `found` are the block's. `total` becomes
// this thread's part of the sum for the log-probability.
DEVICE int draw_from_all(
    const Tokens& tokens, const Draw& d, int v, double* weights, double* ends, double& passed, int& found,
    double& total) {
  double sum = 0.0, best = -1.0;
  int id = 0, last = 0, chunks = (v + CHUNK - 1) / CHUNK;
  for (int chunk = 0; chunk < chunks; chunk++) {
    double* of_chunk = weights + (chunk & 1) * CHUNK;
    int first = chunk * CHUNK, count = v - first < CHUNK ? v - first : CHUNK;
    for (int j = threadIdx.x; j < count; j += 256) {
      float e = tokens.exponential(first + j);
      total += tokens.tempered(first + j, e);
      of_chunk[j] = tokens.weight(e);
    }
    __syncthreads();  // the chunk before is added too: its place is free
    if (threadIdx.x == 0) {
      for (int j = 0; j < count; j++) {
        double weight = of_chunk[j];
        sum += weight;
        if (weight > best) {
          best = weight;
          id = first + j;
        }
        if (weight > 0.0) last = first + j;
      }
      ends[chunk] = sum;
    }
  }
  if (d.temperature == 0.0) return id;
  if (threadIdx.x == 0) {
    passed = uniform(d.seed, 0x5a3c, d.place) * sum;
    for (found = 0; found < chunks && !(ends[found] > passed); found++) continue;
  }
  __syncthreads();
  if (found == chunks) return last;
  int first = found * CHUNK, count = v - first < CHUNK ? v - first : CHUNK;
  for (int j = threadIdx.x; j < count; j += 256) weights[j] = tokens.weight(tokens.exponential(first + j));
  __syncthreads();
  double held = threadIdx.x == 0 && found > 0 ? ends[found - 1] : 0.0;
  int j = -1;
  while (threadIdx.x == 0 && !(held > passed)) held += weights[++j];
  return first + j;
}

// The same from the heaviest tokens alone. `weights` and `order` are in memory, with `size` places.
DEVICE int draw_from_heaviest(
    const Tokens& tokens, const Draw& d, int v, int size, double* weights, u32* order, double& total) {
  for (int j = threadIdx.x; j < size; j += 256) {
    float e = j < v ? tokens.exponential(j) : 0.f;
    if (j < v) total += tokens.tempered(j, e);
    weights[j] = j < v ? tokens.weight(e) : -1.0;  // what is no token comes last
    order[j] = (u32)j;
  }
  __syncthreads();
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
  if (threadIdx.x != 0) return 0;
  int limit = d.top_k > 0 && d.top_k < v ? d.top_k : v, kept = 0;
  double sum = 0.0, held = 0.0;
  for (int j = 0; j < limit; j++) sum += weights[order[j]];
  while (kept < limit && held < d.top_p * sum) held += weights[order[kept++]];
  kept = kept > 1 ? kept : 1;
  sum = 0.0;
  for (int j = 0; j < kept; j++) sum += weights[order[j]];
  double at = uniform(d.seed, 0x5a3c, d.place) * sum;
  held = 0.0;
  int last = (int)order[0];
  for (int j = 0; j < kept; j++) {
    double weight = weights[order[j]];
    held += weight;
    if (weight > 0.0) last = (int)order[j];
    if (held > at) return (int)order[j];
  }
  return last;
}

// One block per draw. `weights` `[M, size]` and `order` `[M, size]` are working memory for draws from the heaviest
// tokens; size is the power of two that V fits into. Dynamic shared memory: a double for each chunk, `held` floats.
KERNEL(256) draw(
    const float* logits, const Draw* draws, double* weights, u32* order, u32* tokens, double* logp, int v, int size,
    int held) {
  DYNAMIC_SHARED(shared);
  __shared__ float scratch[8];
  __shared__ double sums[8], of_chunks[2 * CHUNK], passed;
  __shared__ int found;
  __shared__ Draw d;
  if (threadIdx.x == 0) d = draws[blockIdx.x];
  __syncthreads();
  const float* row = logits + (i64)d.row * v;
  double* ends = (double*)shared;
  float *kept = (float*)(ends + (v + CHUNK - 1) / CHUNK), largest = -3.402823466e+38f;
  for (int j = threadIdx.x; j < v; j += 256) {
    float logit = row[j];
    if (j < held) kept[j] = logit;
    largest = fmaxf(largest, logit);
  }
  largest = block_max(largest, scratch);
  double temperature = d.temperature == 0.0 ? 1.0 : d.temperature, total = 0.0;
  Tokens all{row, kept, held, largest, temperature};
  bool is_cut = d.temperature != 0.0 && (d.top_p < 1.0 || (d.top_k > 0 && d.top_k < v));
  weights += (i64)blockIdx.x * size;
  order += (i64)blockIdx.x * size;
  int id = is_cut ? draw_from_heaviest(all, d, v, size, weights, order, total)
                  : draw_from_all(all, d, v, of_chunks, ends, passed, found, total);
  total = block_sum(total, sums);
  if (threadIdx.x != 0) return;
  tokens[blockIdx.x] = (u32)id;
  logp[blockIdx.x] = ((double)all.logit(id) - (double)largest) / temperature - ln_f64(total);
}
