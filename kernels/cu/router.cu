// The choice of experts, the order in which rows are dispatched to them, and the balance loss. Letters: N tokens, E
// experts, K experts per token.
#include "math.cuh"

constexpr float LOWEST = -3.402823466e+38f;
constexpr int WARPS = 8;  // tokens per block in the kernels that have a warp per token
constexpr int CHOICES = 256;  // choices per block when rows are sorted

// The largest of `values[0..count]`, of equal ones the first; in every thread of the warp.
DEVICE int best(const float* values, int count) {
  int lane = threadIdx.x & 31, at = 0x7fffffff;
  float largest = 0.f;
  for (int i = lane; i < count; i += 32)
    if (at == 0x7fffffff || values[i] > largest) { largest = values[i]; at = i; }
  for (int o = 16; o; o >>= 1) {
    float other = __shfl_xor_sync(0xffffffffu, largest, o);
    int other_at = __shfl_xor_sync(0xffffffffu, at, o);
    bool is_better = other_at != 0x7fffffff &&
        (at == 0x7fffffff || other > largest || (other == largest && other_at < at));
    if (is_better) { largest = other; at = other_at; }
  }
  return at;
}

// One warp per token; dynamic shared memory: E + 8·2·(E + groups + K) numbers of 4 bytes.
KERNEL(256) route(
    const float* logits, const float* bias, float* scores, float* weights, u32* ids, int n, int e, int k, int groups,
    int limit, int normalise, float scale) {
  DYNAMIC_SHARED(shared);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, size = e / groups;
  float *of_bias = (float*)shared, *score_of = of_bias + e + warp * 2 * (e + groups + k), *chosen = score_of + e;
  float *of_group = chosen + e, *weight_of = of_group + groups;
  u32 *is_kept = (u32*)(weight_of + k), *id_of = is_kept + groups;
  i64 token = (i64)blockIdx.x * WARPS + warp;
  for (int j = threadIdx.x; j < e; j += 256) of_bias[j] = bias[j];
  __syncthreads();
  if (token >= n) return;
  for (int j = lane; j < e; j += 32) {
    float score = sigmoid(logits[token * e + j]);
    scores[token * e + j] = score_of[j] = score;
    chosen[j] = score + of_bias[j];
  }
  __syncwarp();
  if (limit < groups) {
    for (int g = lane; g < groups; g += 32) {
      float first = LOWEST, second = LOWEST;
      for (int j = g * size; j < (g + 1) * size; j++) {
        float value = chosen[j];
        if (value > first) { second = first; first = value; }
        else if (value > second) second = value;
      }
      of_group[g] = size > 1 ? first + second : first;
    }
    __syncwarp();
    for (int g = lane; g < groups; g += 32) is_kept[g] = 0;
    __syncwarp();
    for (int i = 0; i < limit; i++) {
      int kept = best(of_group, groups);
      __syncwarp();
      if (lane == 0) {
        of_group[kept] = LOWEST;
        is_kept[kept] = 1;
      }
      __syncwarp();
    }
    for (int j = lane; j < e; j += 32)
      if (!is_kept[j / size]) chosen[j] = LOWEST;
    __syncwarp();
  }
  float sum = 0.f;
  for (int i = 0; i < k; i++) {
    int expert = best(chosen, e);
    float score = score_of[expert];
    sum += score;
    __syncwarp();
    if (lane == 0) {
      chosen[expert] = LOWEST;
      id_of[i] = (u32)expert;
      weight_of[i] = score;
    }
    __syncwarp();
  }
  sum += 1e-20f;
  for (int i = lane; i < k; i += 32) {
    ids[token * k + i] = id_of[i];
    weights[token * k + i] = (normalise ? weight_of[i] / sum : weight_of[i]) * scale;
  }
}

// How often each expert is named among the block's 256 choices: `counts[block, E]`. Choices are taken modulo E, so that
// ids of a vocabulary are sorted into E buckets. Dynamic shared memory: E u32.
KERNEL(256) count_choices(const u32* ids, u32* counts, i64 choices, int e) {
  DYNAMIC_SHARED(shared);
  u32* count = (u32*)shared;
  for (int j = threadIdx.x; j < e; j += CHOICES) count[j] = 0;
  __syncthreads();
  i64 choice = (i64)blockIdx.x * CHOICES + threadIdx.x;
  if (choice < choices) atomicAdd(&count[ids[choice] % e], 1u);
  __syncthreads();
  for (int j = threadIdx.x; j < e; j += CHOICES) counts[(i64)blockIdx.x * e + j] = count[j];
}

// Turns counts into the first row of each (block, expert), and writes where segments end. One block; dynamic shared
// memory: E u32.
KERNEL(256) first_rows(u32* counts, u32* ends, int blocks, int e) {
  DYNAMIC_SHARED(shared);
  u32* of_expert = (u32*)shared;
  for (int j = threadIdx.x; j < e; j += 256) {
    u32 sum = 0;
    for (int b = 0; b < blocks; b++) sum += counts[(i64)b * e + j];
    of_expert[j] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    u32 end = 0;
    for (int j = 0; j < e; j++) {
      u32 start = end;
      end += of_expert[j];
      of_expert[j] = start;
      ends[j] = end;
    }
  }
  __syncthreads();
  for (int j = threadIdx.x; j < e; j += 256) {
    u32 row = of_expert[j];
    for (int b = 0; b < blocks; b++) {
      u32 count = counts[(i64)b * e + j];
      counts[(i64)b * e + j] = row;
      row += count;
    }
  }
}

// The dispatched row of each choice, and its token.
KERNEL(256) place_rows(const u32* ids, const u32* first, u32* tokens, u32* slots, i64 choices, int e, int k) {
  __shared__ u32 of_block[CHOICES];
  i64 choice = (i64)blockIdx.x * CHOICES + threadIdx.x;
  u32 expert = choice < choices ? ids[choice] % e : 0xffffffffu;
  of_block[threadIdx.x] = expert;
  __syncthreads();
  if (choice >= choices) return;
  u32 row = first[(i64)blockIdx.x * e + expert];
  for (int i = 0; i < (int)threadIdx.x; i++) row += of_block[i] == expert;
  slots[choice] = row;
  tokens[row] = (u32)(choice / k);
}

// One warp per token. `dscores` may be null. Dynamic shared memory: 8·(E + 2·K) numbers of 4 bytes.
KERNEL(256) route_backward(
    const float* scores, const u32* ids, const float* dweights, const float* dscores, float* dlogits, int n, int e,
    int k, int normalise, float scale) {
  DYNAMIC_SHARED(shared);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  float *score_of = (float*)shared + warp * (e + 2 * k), *dweight_of = score_of + e;
  u32* id_of = (u32*)(dweight_of + k);
  i64 token = (i64)blockIdx.x * WARPS + warp;
  if (token >= n) return;
  for (int j = lane; j < e; j += 32) score_of[j] = scores[token * e + j];
  for (int i = lane; i < k; i += 32) {
    dweight_of[i] = dweights[token * k + i];
    id_of[i] = ids[token * k + i];
  }
  __syncwarp();
  float sum = 0.f, mean = 0.f;
  for (int i = 0; i < k; i++) {
    float score = score_of[id_of[i]];
    sum += score;
    mean += dweight_of[i] * score;
  }
  sum += 1e-20f;
  mean = mean / sum;
  for (int j = lane; j < e; j += 32) {
    float d = dscores ? dscores[token * e + j] : 0.f, score = score_of[j];
    for (int i = 0; i < k; i++)
      if (id_of[i] == (u32)j) {
        float dw = dweight_of[i];
        d += normalise ? (dw - mean) * scale / sum : dw * scale;
      }
    dlogits[token * e + j] = d * (score * (1.f - score));
  }
}

KERNEL(256) count(const u32* ends, u32* counts, int e) {
  EACH(i, e) counts[i] += ends[i] - (i ? ends[i - 1] : 0);
}

KERNEL(256) balance_bias(float* bias, const u32* counts, float speed, int e) {
  u64 total = 0;
  for (int i = 0; i < e; i++) total += counts[i];
  EACH(i, e) {
    u64 load = (u64)counts[i] * e;
    bias[i] += total > load ? speed : total < load ? -speed : 0.f;
  }
}

// Tokens per block of the balance loss: fixed, so that the order of the sum is too.
constexpr int TOKENS = 32;

// Over 32 tokens of a document: how often each expert counts, and the sum of its shares of the scores. Block (i, d) has
// part i of document d; `ends` null: all rows are one document. Dynamic shared memory: 32·(E + K) numbers of 4 bytes.
// `counted`: 0 the K highest scores, 1 the experts that tokens were sent to.
KERNEL(256) balance_partial(
    const float* scores, const u32* ids, const u32* ends, double* shares, double* counts, int n, int e, int k,
    int counted, int parts) {
  DYNAMIC_SHARED(shared);
  __shared__ double sums[TOKENS];
  __shared__ Bounds found;
  float* score_of = (float*)shared;
  u32* id_of = (u32*)(score_of + TOKENS * e);
  int document = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  Bounds rows = bounds_of_block(found, ends, document, n);
  int first = rows.start + blockIdx.x * TOKENS, here = rows.end - first < TOKENS ? rows.end - first : TOKENS;
  for (int t = warp; t < here; t += WARPS) {
    double sum = 0.0;
    for (int j = lane; j < e; j += 32) {
      float score = score_of[t * e + j] = scores[(i64)(first + t) * e + j];
      sum += score;
    }
    sum = warp_sum(sum) + 1e-20;
    if (lane == 0) sums[t] = sum;
  }
  if (counted == 1)
    for (int i = threadIdx.x; i < here * k; i += 256) id_of[i] = ids[(i64)first * k + i];
  __syncthreads();
  i64 at = ((i64)document * parts + blockIdx.x) * e;
  for (int expert = threadIdx.x; expert < e; expert += 256) {
    double share = 0.0, count = 0.0;
    for (int t = 0; t < here; t++) {
      const float* row = score_of + t * e;
      float score = row[expert];
      share += score / sums[t];
      bool counts_here = false;
      if (counted == 1) {
        for (int i = 0; i < k; i++) counts_here |= id_of[t * k + i] == (u32)expert;
      } else {
        int before = 0;
        for (int j = 0; j < e; j++) before += row[j] > score || (row[j] == score && j < expert);
        counts_here = before < k;
      }
      count += counts_here ? 1.0 : 0.0;
    }
    shares[at + expert] = share;
    counts[at + expert] = count;
  }
}

// One block per document: f of its experts into the first part of `counts`, and its loss.
KERNEL(256) balance_total(
    const double* shares, double* counts, const u32* ends, double* losses, int n, int e, int k, int parts,
    double weight) {
  __shared__ double scratch[8];
  __shared__ Bounds found;
  int document = blockIdx.x;
  Bounds rows = bounds_of_block(found, ends, document, n);
  double tokens = rows.end - rows.start, loss = 0.0;
  for (int expert = threadIdx.x; expert < e; expert += 256) {
    i64 at = (i64)document * parts * e + expert;
    double share = 0.0, count = 0.0;
    for (int part = 0; part * TOKENS < rows.end - rows.start; part++) {
      share += shares[at + (i64)part * e];
      count += counts[at + (i64)part * e];
    }
    double f = tokens > 0 ? count * (double)e / ((double)k * tokens) : 0.0;
    counts[at] = f;
    loss += tokens > 0 ? f * share / tokens : 0.0;
  }
  loss = block_sum(loss, scratch);
  if (threadIdx.x == 0) losses[document] = weight * loss;
}

// dscores of part i of document d in block (i, d), a warp per token. Dynamic shared memory: E doubles and 8·E floats.
KERNEL(256) balance_gradient(
    const float* scores, const double* counts, const u32* ends, float* dscores, int n, int e, int parts,
    double weight) {
  DYNAMIC_SHARED(shared);
  __shared__ Bounds found;
  int document = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  double* f = (double*)shared;
  float* score_of = (float*)(f + e) + warp * e;
  Bounds rows = bounds_of_block(found, ends, document, n);
  int first = rows.start + blockIdx.x * TOKENS, last = first + TOKENS < rows.end ? first + TOKENS : rows.end;
  if (first >= last) return;
  for (int j = threadIdx.x; j < e; j += 256) f[j] = counts[(i64)document * parts * e + j];
  __syncthreads();
  for (i64 t = first + warp; t < last; t += WARPS) {
    double sum = 0.0, mean = 0.0;
    for (int j = lane; j < e; j += 32) {
      double score = score_of[j] = scores[t * e + j];
      sum += score;
      mean += f[j] * score;
    }
    sum = warp_sum(sum) + 1e-20;
    mean = warp_sum(mean) / sum;
    for (int j = lane; j < e; j += 32)
      dscores[t * e + j] = (float)(weight * (f[j] - mean) / sum / (double)(rows.end - rows.start));
  }
}
