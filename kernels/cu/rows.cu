// Operations on rows: norm, SwiGLU, rotation, and copies. Letters: N rows, D columns.
#include "math.cuh"

// How many rows one block sums for a gradient of a gain or a bias: fixed, so that the order of the sum is too.
constexpr int ROWS_PER_BLOCK = 64;

// A block takes row after row, so that it reads the gain once; dynamic shared memory: 2·D floats, of which each thread
// has its own. With `more`, x becomes x + more first.
KERNEL(256) rms_norm(
    float* x, const float* more, const float* gain, float* y, float* rstd, int n, int d, float eps) {
  DYNAMIC_SHARED(shared);
  __shared__ float scratch[8];
  float *row = (float*)shared, *kept_gain = row + d;
  for (int j = threadIdx.x; j < d; j += 256) kept_gain[j] = gain[j];
  for (int i = blockIdx.x; i < n; i += gridDim.x) {
    float* from = x + (i64)i * d;
    float squares = 0.f;
    for (int j = threadIdx.x; j < d; j += 256) {
      float value = from[j];
      if (more) from[j] = value = value + more[(i64)i * d + j];
      row[j] = value;
      squares += value * value;
    }
    float factor = 1.f / sqrtf(block_sum(squares, scratch) / (float)d + eps);
    if (threadIdx.x == 0) rstd[i] = factor;
    float* to = y + (i64)i * d;
    for (int j = threadIdx.x; j < d; j += 256) to[j] = row[j] * factor * kept_gain[j];
  }
}

// One block per 64 rows. Writes dx, and the block's part of the gain's gradient to `partial[block, D]`. Dynamic shared
// memory: 3·D floats, and D more where the gain is kept there instead of read for each row; each thread has its own.
// With `beside`, that is added to dx.
KERNEL(256) rms_norm_backward(
    const float* x, const float* rstd, const float* gain, const float* dy, const float* beside, float* dx,
    float* partial, int n, int d, int keeps_gain) {
  DYNAMIC_SHARED(shared);
  __shared__ float scratch[8], factors[ROWS_PER_BLOCK];
  float *row = (float*)shared, *of_y = row + d, *sum = of_y + d, *kept_gain = sum + d;
  for (int j = threadIdx.x; j < d; j += 256) {
    sum[j] = 0.f;
    if (keeps_gain) kept_gain[j] = gain[j];
  }
  const float* of_gain = keeps_gain ? kept_gain : gain;
  int first = blockIdx.x * ROWS_PER_BLOCK, last = first + ROWS_PER_BLOCK < n ? first + ROWS_PER_BLOCK : n;
  if (first + (int)threadIdx.x < last) factors[threadIdx.x] = rstd[first + threadIdx.x];
  __syncthreads();
  for (int i = first; i < last; i++) {
    float factor = factors[i - first], dot = 0.f;
    for (int j = threadIdx.x; j < d; j += 256) {
      float value = x[(i64)i * d + j], gradient = dy[(i64)i * d + j];
      row[j] = value;
      sum[j] += gradient * value * factor;
      of_y[j] = gradient * of_gain[j];
      dot += of_y[j] * value;
    }
    float mean = block_sum(dot, scratch) / (float)d;
    for (int j = threadIdx.x; j < d; j += 256) {
      float value = factor * (of_y[j] - row[j] * factor * factor * mean);
      dx[(i64)i * d + j] = beside ? value + beside[(i64)i * d + j] : value;
    }
  }
  for (int j = threadIdx.x; j < d; j += 256) partial[(i64)blockIdx.x * d + j] = sum[j];
}

// The block's part of a bias's gradient, over 64 rows.
KERNEL(256) sum_rows_partial(const float* dy, float* partial, int n, int d) {
  int j = blockIdx.y * 256 + threadIdx.x;
  if (j >= d) return;
  int first = blockIdx.x * ROWS_PER_BLOCK, last = first + ROWS_PER_BLOCK < n ? first + ROWS_PER_BLOCK : n;
  float sum = 0.f;
  for (int i = first; i < last; i++) sum += dy[(i64)i * d + j];
  partial[(i64)blockIdx.x * d + j] = sum;
}

// `acc[j] += Σ_i partial[i, j]`, i in order.
KERNEL(256) add_partial_sums(const float* partial, float* acc, int parts, int d) {
  int j = blockIdx.x * 256 + threadIdx.x;
  if (j >= d) return;
  float sum = 0.f;
  for (int i = 0; i < parts; i++) sum += partial[(i64)i * d + j];
  acc[j] += sum;
}

KERNEL(256) swiglu(const float* h, float* y, i64 n, int f) {
  int l = row_threads(f);
  EACH_ROW(row, n, l) {
    const float* from = h + row * 2 * f;
    EACH_COLUMN(j, f, l) y[row * f + j] = gated(from[j], from[f + j]);
  }
}

KERNEL(256) swiglu_backward(const float* h, const float* dy, float* dh, i64 n, int f) {
  int l = row_threads(f);
  EACH_ROW(row, n, l) {
    const float* from = h + row * 2 * f;
    float* to = dh + row * 2 * f;
    EACH_COLUMN(j, f, l) {
      Gated d = gated_gradient(from[j], from[f + j], dy[row * f + j]);
      to[j] = d.gate;
      to[f + j] = d.up;
    }
  }
}

// `backward` turns by the opposite angle. A thread's angle serves all heads.
KERNEL(256) rope(
    float* x, const float* cosines, const float* sines, const u32* positions, i64 n, int width, int heads, int offset,
    int half, int interleaved, int backward) {
  int l = row_threads(half), head_width = width / heads;
  EACH_ROW(row, n, l) {
    i64 angles = (i64)of_row(positions, row, l) * half;
    EACH_COLUMN(j, half, l) {
      float cosine = cosines[angles + j], sine = backward ? -sines[angles + j] : sines[angles + j];
      float* first = x + row * width + offset + (interleaved ? 2 * j : j);
      for (int head = 0; head < heads; head++) {
        float *a = first + head * head_width, *b = a + (interleaved ? 1 : half), u = *a, v = *b;
        *a = u * cosine - v * sine;
        *b = v * cosine + u * sine;
      }
    }
  }
}

// A thread reads the bias of a column once for all its rows.
KERNEL(256) bias(float* y, const float* bias, i64 n, int d) {
  int l = row_threads(d);
  EACH_COLUMN(j, d, l) {
    float of_column = bias[j];
    EACH_ROW(row, n, l) y[row * d + j] += of_column;
  }
}

KERNEL(256) scale(float* x, float by, float over, i64 n) {
  EACH(i, n) x[i] = x[i] * by / over;
}

// For log-probabilities and their gradients.
KERNEL(256) scale_f64(double* x, double by, double over, i64 n) {
  EACH(i, n) x[i] = x[i] * by / over;
}

KERNEL(256) add_f64(double* acc, const double* x, i64 n) {
  EACH(i, n) acc[i] += x[i];
}

KERNEL(256) add(float* acc, const float* x, i64 n) {
  EACH(i, n) acc[i] += x[i];
}

// Elements of `bytes` 1, 2, 4 or 8.
KERNEL(256) fill(void* x, u64 value, int bytes, i64 n) {
  EACH(i, n) {
    if (bytes == 1) ((u8*)x)[i] = (u8)value;
    if (bytes == 2) ((u16*)x)[i] = (u16)value;
    if (bytes == 4) ((u32*)x)[i] = (u32)value;
    if (bytes == 8) ((u64*)x)[i] = value;
  }
}

// Element types by the numbers of `Type` in ../src/cuda/memory.rs.
enum Type { F32 = 0, F64 = 1, BF16 = 2, E4M3 = 3, U32 = 4 };

KERNEL(256) cast(const void* x, int from, void* y, int to, i64 n) {
  EACH(i, n) {
    double value = 0.0;
    if (from == F32) value = ((const float*)x)[i];
    if (from == F64) value = ((const double*)x)[i];
    if (from == BF16) value = to_float(((const bf16*)x)[i]);
    if (from == E4M3) value = from_e4m3(((const u8*)x)[i]);
    if (from == U32) value = ((const u32*)x)[i];
    if (to == F32) ((float*)y)[i] = (float)value;
    if (to == F64) ((double*)y)[i] = value;
    if (to == BF16) ((bf16*)y)[i] = to_bf16((float)value);
    if (to == E4M3) ((u8*)y)[i] = to_e4m3((float)value);
    if (to == U32) ((u32*)y)[i] = (u32)value;
  }
}

// `[rows, cols]` from a matrix `from_width` wide to one `to_width` wide.
KERNEL(256) copy_columns(const float* x, i64 from_width, float* y, i64 to_width, i64 rows, int cols) {
  int l = row_threads(cols);
  EACH_ROW(row, rows, l) EACH_COLUMN(j, cols, l) y[row * to_width + j] = x[row * from_width + j];
}

// Rows `rows` of x.
KERNEL(256) gather(const float* x, const u32* rows, float* y, i64 n, int d) {
  int l = row_threads(d);
  EACH_ROW(row, n, l) {
    const float* from = x + (i64)of_row(rows, row, l) * d;
    EACH_COLUMN(j, d, l) y[row * d + j] = from[j];
  }
}

// `dw[ids[i]] += dx[i]`, i in order. Block (b, j): columns from 256·j of the ids of bucket b, whose rows are
// `order[ends[b - 1]..ends[b]]`, 256 at a time; the first row of an id adds those behind it.
KERNEL(256) embedding_backward(
    const u32* ids, const u32* order, const u32* ends, const float* dx, float* dw, int d) {
  __shared__ u32 row_of[256], id_of[256], next_of[256], is_first[256];
  __shared__ Bounds found;
  Bounds bucket = bounds_of_block(found, ends, blockIdx.x, 0);
  int j = blockIdx.y * 256 + threadIdx.x;
  for (int start = bucket.start; start < bucket.end; start += 256) {
    int here = bucket.end - start < 256 ? bucket.end - start : 256, own = threadIdx.x;
    if (own < here) {
      row_of[own] = order[start + own];
      id_of[own] = ids[row_of[own]];
    }
    __syncthreads();
    if (own < here) {
      u32 next = 256, first = 1;
      for (int at = here - 1; at >= 0; at--) {
        if (at == own || id_of[at] != id_of[own]) continue;
        if (at > own) next = at;
        else first = 0;
      }
      next_of[own] = next;
      is_first[own] = first;
    }
    __syncthreads();
    for (int at = 0; at < here && j < d; at++) {
      if (!is_first[at]) continue;
      float sum = dw[(i64)id_of[at] * d + j];
      for (u32 i = at; i < 256; i = next_of[i]) sum += dx[(i64)row_of[i] * d + j];
      dw[(i64)id_of[at] * d + j] = sum;
    }
    __syncthreads();
  }
}

// Rows of tokens that have K choices each: a warp has a token, and of 128 columns four a lane, so that it asks for the
// place of a choice once for all of them.
constexpr int COLUMNS = 4;
#define EACH_TOKEN(token, n) \
  for (i64 token = (i64)blockIdx.x * 8 + (threadIdx.x >> 5); token < (n); token += (i64)gridDim.x * 8)
#define EACH_COLUMNS(first, d) for (int first = threadIdx.x & 31; first < ((d) + 127) / 128 * 128; first += 128)

// Calls `visit(slot, weight)` for the k choices of a token, in order, in every lane. Without weights they are 1.
template <class Visit>
DEVICE void each_choice(const u32* slots, const float* weights, i64 token, int k, const Visit& visit) {
  int lane = threadIdx.x & 31;
  for (int start = 0; start < k; start += 32) {
    int here = k - start < 32 ? k - start : 32;
    u32 slot = lane < here ? slots[token * k + start + lane] : 0;
    float weight = weights && lane < here ? weights[token * k + start + lane] : 1.f;
    for (int i = 0; i < here; i++)
      visit((i64)__shfl_sync(0xffffffffu, slot, i), __shfl_sync(0xffffffffu, weight, i));
  }
}

// `y[t] += Σ_k weight·rows[slot]`, k in order.
DEVICE void add_choices(
    const float* rows, const u32* slots, const float* weights, float* y, i64 n, int d, int k) {
  EACH_TOKEN(token, n) EACH_COLUMNS(first, d) {
    float sum[COLUMNS];
    for (int i = 0; i < COLUMNS; i++) sum[i] = first + 32 * i < d ? y[token * d + first + 32 * i] : 0.f;
    each_choice(slots, weights, token, k, [&](i64 slot, float weight) {
      for (int i = 0; i < COLUMNS; i++)
        if (first + 32 * i < d) sum[i] += weight * rows[slot * d + first + 32 * i];
    });
    for (int i = 0; i < COLUMNS; i++)
      if (first + 32 * i < d) y[token * d + first + 32 * i] = sum[i];
  }
}

// `rows[slots[t, k]] = x[t]`: x is read once.
KERNEL(256) dispatch(const float* x, const u32* slots, float* rows, i64 n, int d, int k) {
  EACH_TOKEN(token, n) EACH_COLUMNS(first, d) {
    float values[COLUMNS];
    for (int i = 0; i < COLUMNS; i++) values[i] = first + 32 * i < d ? x[token * d + first + 32 * i] : 0.f;
    each_choice(slots, nullptr, token, k, [&](i64 slot, float) {
      for (int i = 0; i < COLUMNS; i++)
        if (first + 32 * i < d) rows[slot * d + first + 32 * i] = values[i];
    });
  }
}

// `dx[t] += Σ_k drows[slots[t, k]]`, k in order.
KERNEL(256) gather_backward(const float* drows, const u32* slots, float* dx, i64 n, int d, int k) {
  add_choices(drows, slots, nullptr, dx, n, d, k);
}

// `y[t] += Σ_k weights[t, k]·rows[slots[t, k]]`, k in order.
KERNEL(256) combine(const float* rows, const u32* slots, const float* weights, float* y, i64 n, int d, int k) {
  add_choices(rows, slots, weights, y, n, d, k);
}

// One block per token: `drows[slot] = weight·dy[t]`, `dweight = dy[t]·rows[slot]`. Dynamic shared memory: D floats,
// of which each thread has its own, and 2·K numbers of 4 bytes.
KERNEL(256) combine_backward(
    const float* rows, const u32* slots, const float* weights, const float* dy, float* drows, float* dweights, int d,
    int k) {
  DYNAMIC_SHARED(shared);
  __shared__ float scratch[8];
  float *gradient = (float*)shared, *weight_of = gradient + d;
  u32* slot_of = (u32*)(weight_of + k);
  i64 token = blockIdx.x;
  for (int j = threadIdx.x; j < d; j += 256) gradient[j] = dy[token * d + j];
  for (int i = threadIdx.x; i < k; i += 256) {
    weight_of[i] = weights[token * k + i];
    slot_of[i] = slots[token * k + i];
  }
  __syncthreads();
  for (int i = 0; i < k; i++) {
    i64 slot = slot_of[i];
    float weight = weight_of[i], dot = 0.f;
    for (int j = threadIdx.x; j < d; j += 256) {
      dot += gradient[j] * rows[slot * d + j];
      drows[slot * d + j] = weight * gradient[j];
    }
    dot = block_sum(dot, scratch);
    if (threadIdx.x == 0) dweights[token * k + i] = dot;
  }
}
