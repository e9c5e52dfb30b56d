// Tensor-core kernels on the CPU, against f64. Linked with the library that build.sh makes, as check.cpp is:
//
//   ../build.sh OUT && g++ -std=c++17 -O2 cores.cpp OUT/libcuda.so.1 -Wl,-rpath,OUT -o OUT/cores
//   OUT/cores [part of a test's name]
//
// Memory has exact sizes and outputs begin unwritten, which the simulator watches. Every case runs several times, each
// under a seed of its own (the simulator counts launches) and with 1 to 3 blocks, which must agree to the last bit.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize();
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, u32, u32, u32, u32, u32, u32, u32, void*, void**, void**);
int cuMemAlloc_v2(u64*, size_t);
int cuMemFree_v2(u64);
int cuMemcpyHtoD_v2(u64, const void*, size_t);
int cuMemcpyDtoH_v2(void*, u64, size_t);
int cuTensorMapEncodeTiled(void*, int, u32, u64, const u64*, const u64*, const u32*, const u32*, int, int, int, int);
}

// ---- the driver
void must(int result, const char* call) {
  if (!result) return;
  printf("%s: error %d\n", call, result);
  exit(1);
}
#define MUST(call) must(call, #call)

template <class T> struct Device {  // memory on the device; what is not uploaded is unwritten
  u64 address = 0;
  size_t len;
  explicit Device(size_t len) : len(len) { MUST(cuMemAlloc_v2(&address, std::max<size_t>(len * sizeof(T), 1))); }
  explicit Device(const std::vector<T>& x) : Device(x.size()) { upload(x); }
  Device(const Device&) = delete;
  ~Device() { cuMemFree_v2(address); }
  void upload(const std::vector<T>& x) {
    if (len) MUST(cuMemcpyHtoD_v2(address, x.data(), len * sizeof(T)));
  }
  std::vector<T> download() const {
    std::vector<T> x(len);
    if (len) MUST(cuMemcpyDtoH_v2(x.data(), address, len * sizeof(T)));
    return x;
  }
};

struct alignas(128) Map {
  u64 opaque[16];
};
enum Type { BYTES = 0, BF16 = 9 };
Map map_of(u64 address, Type type, std::vector<u64> dims, std::vector<u64> strides, std::vector<u32> box) {
  Map map{};
  const u32 steps[] = {1, 1, 1};
  const int swizzle_128 = 3;
  MUST(cuTensorMapEncodeTiled(&map, type, (u32)dims.size(), address, dims.data(), strides.data(), box.data(), steps, 0,
                              swizzle_128, 0, 0));
  return map;
}

struct Launch {
  u32 grid, threads, shared;
};
template <class... T> void run(const char* name, Launch launch, T... parameters) {
  void *module, *function;
  MUST(cuModuleLoadData(&module, "\x7f" "ELF"));
  MUST(cuModuleGetFunction(&function, module, name));
  if (launch.shared) MUST(cuFuncSetAttribute(function, 8, (int)launch.shared));
  void* list[] = {&parameters..., nullptr};
  const int error =
      cuLaunchKernel(function, launch.grid, 1, 1, launch.threads, 1, 1, launch.shared, nullptr, list, nullptr);
  if (error || cuCtxSynchronize()) {
    printf("%s: a launch failed\n", name);
    exit(1);
  }
}
const u32 THREADS = 384;

// ---- number formats
struct bf16 {
  u16 bits;
};
float to_float(bf16 x) {
  const u32 wide = (u32)x.bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
bf16 to_bf16(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bf16{(u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
float e4m3(u8 x) {
  const int exponent = x >> 3 & 15, mantissa = x & 7;
  const float size = exponent ? ldexpf(1 + mantissa / 8.f, exponent - 7) : ldexpf((float)mantissa, -9);
  return x & 128 ? -size : size;
}

// ---- data
static u64 random_state = 1;
u32 random_bits() {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return (u32)(random_state >> 32);
}
double random_unit() { return random_bits() / 2147483648.0 - 1; }  // in -1..1

struct Error {  // relative to the largest reference; a gradient that cancels to zero counts as 1e-3
  double worst = 0, largest = 0;
  void add(double got, double expected) {
    if (!(std::fabs(got - expected) <= 1e30)) worst = INFINITY;
    worst = std::max(worst, std::fabs(got - expected));
    largest = std::max(largest, std::fabs(expected));
  }
  double relative() const { return worst / std::max(largest, 1e-3); }
};
static double worst_of_test = 0;
void expect(const char* name, const Error& error, double tolerance) {
  worst_of_test = std::max(worst_of_test, error.relative());
  if (error.relative() <= tolerance) return;
  printf("%s: off by %.3g of %.3g\n", name, error.worst, error.largest);
  exit(1);
}
typedef std::vector<float> Floats;
void expect_same(const char* name, const Floats& a, const Floats& b) {
  for (size_t i = 0; i < a.size(); i++) {
    if (memcmp(&a[i], &b[i], 4) == 0) continue;
    printf("%s: element %zu differs between runs: %g, %g\n", name, i, a[i], b[i]);
    exit(1);
  }
}
std::vector<u32> ends_of(const std::vector<int>& counts) {
  std::vector<u32> ends;
  u32 sum = 0;
  for (int count : counts) ends.push_back(sum += count);
  return ends;
}
int up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
const u32 GRIDS[] = {1, 2, 3};

u8 random_e4m3() {
  const u8 x = (u8)random_bits();
  return (x & 127) == 127 ? 0 : x;
}
float random_scale() { return (float)std::exp2(4 * random_unit()); }

// Runs `run(grid, wide, c)` with three grids, and the kernel of wide tiles with two, on unwritten memory or, where
// `add`, on `old`.
template <class Run> Floats several(const char* name, const Floats& old, int add, Run run) {
  Floats first;
  for (int i = 0; i < 5; i++) {
    Device<float> c(old.size());
    if (add) c.upload(old);
    run(GRIDS[i % 3], i >= 3, c.address);
    if (i == 0) first = c.download();
    else expect_same(name, first, c.download());
  }
  return first;
}
Floats random_floats(size_t len, double size = 1) {
  Floats x(len);
  for (float& x : x) x = (float)(random_unit() * size);
  return x;
}

// Rows of a product alone, without the rows behind them, have the same bits.
template <class Product>
void expect_rows_alone(const char* name, const Floats& c, const Floats& old, int add, int rows, int n,
                       Product product) {
  Floats first(c.begin(), c.begin() + (size_t)rows * n);
  Device<float> own(first.size());
  if (add) own.upload(Floats(old.begin(), old.begin() + first.size()));
  product(rows, 1, false, own.address);
  expect_same(name, first, own.download());
}

// ---- tests
void fp8_gemm_case(const std::vector<int>& counts, int n, int k_real, int add) {
  const std::vector<u32> ends = ends_of(counts);
  const int experts = (int)counts.size(), m = (int)ends.back(), k = up(k_real, 128), blocks = k / 128;
  const int bands = (n + 127) / 128;
  std::vector<u8> a((size_t)m * k), b((size_t)experts * n * k);
  for (size_t i = 0; i < a.size(); i++) a[i] = (int)(i % k) < k_real ? random_e4m3() : 0;
  for (size_t i = 0; i < b.size(); i++) b[i] = (int)(i % k) < k_real ? random_e4m3() : 0;
  Floats sa((size_t)m * blocks), sb((size_t)experts * bands * blocks);
  for (float& x : sa) x = random_scale();
  for (float& x : sb) x = random_scale();
  const Floats old = random_floats((size_t)m * n, 1e5);
  const Device<u8> da(a), db(b);
  const Device<float> dsa(sa), dsb(sb);
  // of the first `rows` rows
  auto product = [&](int rows, u32 grid, bool wide, u64 c) {
    std::vector<u32> clipped = ends;
    for (u32& end : clipped) end = std::min(end, (u32)rows);
    const Device<u32> dends(clipped);
    const Map a_map = map_of(da.address, BYTES, {(u64)k, (u64)rows}, {(u64)k}, {128, 128});
    const Map b_map = map_of(db.address, BYTES, {(u64)k, (u64)n, (u64)experts}, {(u64)k, (u64)n * k},
                             {128, wide ? 192u : 128u, 1});
    run(wide ? "fp8_gemm_wide" : "fp8_gemm", {grid, THREADS, wide ? 206944u : 198768u}, a_map, b_map, dsa.address,
        dsb.address, dends.address, c, rows, n, k, experts, add);
  };
  const Floats c =
      several("fp8_gemm", old, add, [&](u32 grid, bool wide, u64 c) { product(m, grid, wide, c); });
  if (m > 2) expect_rows_alone("fp8_gemm", c, old, add, m / 2, n, product);
  Error error;
  int row = 0;
  for (int e = 0; e < experts; e++) {
    for (; row < (int)ends[e]; row++) {
      for (int j = 0; j < n; j++) {
        double sum = add ? old[(size_t)row * n + j] : 0;
        for (int block = 0; block < blocks; block++) {
          double part = 0;
          for (int i = block * 128; i < block * 128 + 128; i++)
            part += (double)e4m3(a[(size_t)row * k + i]) * e4m3(b[((size_t)e * n + j) * k + i]);
          sum += part * sa[(size_t)row * blocks + block] * sb[((size_t)e * bands + j / 128) * blocks + block];
        }
        error.add(c[(size_t)row * n + j], sum);
      }
    }
  }
  expect("fp8_gemm", error, 1e-6);
}
void fp8_gemm_test() {
  fp8_gemm_case({1}, 2, 128, 0);
  fp8_gemm_case({200}, 264, 896, 0);
  fp8_gemm_case({129}, 134, 300, 1);
  fp8_gemm_case({3, 0, 130, 128, 1}, 136, 256, 0);
  fp8_gemm_case({0, 0, 1, 70, 0}, 78, 128, 1);
  fp8_gemm_case({140, 5}, 520, 256, 0);
  fp8_gemm_case({20}, 384, 128, 0);
  std::vector<int> many(256);  // as many experts as a kernel takes
  for (int e = 0; e < 256; e++) many[e] = e % 7 == 0 ? 1 : e == 100 ? 129 : 0;
  fp8_gemm_case(many, 8, 128, 0);
}

void fp8_gradient_case(const std::vector<int>& counts, int out, int in, int add) {
  const std::vector<u32> ends = ends_of(counts);
  const int experts = (int)counts.size(), bound = ((int)ends.back() + 127) / 128 + experts, pitch = bound * 128;
  // what lies behind the last block of tokens is NaN: it must not be read into a result
  std::vector<u8> dy((size_t)out * pitch, 127), x((size_t)in * pitch, 127);
  Floats s_dy((size_t)bound * out, NAN), s_x((size_t)bound * in, NAN);
  std::vector<int> before{0};
  for (int count : counts) before.push_back(before.back() + (count + 127) / 128);
  for (int e = 0; e < experts; e++) {
    for (int t = before[e] * 128; t < before[e + 1] * 128; t++) {
      const bool token = t - before[e] * 128 < counts[e];
      for (int i = 0; i < out; i++) dy[(size_t)i * pitch + t] = token ? random_e4m3() : 0;
      for (int i = 0; i < in; i++) x[(size_t)i * pitch + t] = token ? random_e4m3() : 0;
    }
  }
  for (int i = 0; i < before.back() * out; i++) s_dy[i] = random_scale();
  for (int i = 0; i < before.back() * in; i++) s_x[i] = random_scale();
  const Floats old = random_floats((size_t)experts * out * in, 1e5);
  const Device<u8> d_dy(dy), d_x(x);
  const Device<float> d_s_dy(s_dy), d_s_x(s_x);
  const Device<u32> dends(ends);
  const Map dy_map = map_of(d_dy.address, BYTES, {(u64)pitch, (u64)out}, {(u64)pitch}, {128, 128});
  const Floats dw = several("fp8_gradient", old, add, [&](u32 grid, bool wide, u64 dw) {
    const Map x_map = map_of(d_x.address, BYTES, {(u64)pitch, (u64)in}, {(u64)pitch}, {128, wide ? 192u : 128u});
    run(wide ? "fp8_gradient_wide" : "fp8_gradient", {grid, THREADS, wide ? 213344u : 204912u}, dy_map, x_map,
        d_s_dy.address, d_s_x.address, dends.address, dw, out, in, experts, add);
  });
  Error error;
  for (int e = 0; e < experts; e++) {
    for (int i = 0; i < out; i++) {
      for (int j = 0; j < in; j++) {
        const size_t at = ((size_t)e * out + i) * in + j;
        double sum = add ? old[at] : 0;
        for (int t = before[e] * 128; t < before[e + 1] * 128; t++)
          sum += (double)e4m3(dy[(size_t)i * pitch + t]) * s_dy[(size_t)(t / 128) * out + i] *
                 e4m3(x[(size_t)j * pitch + t]) * s_x[(size_t)(t / 128) * in + j];
        error.add(dw[at], sum);
      }
    }
  }
  expect("fp8_gradient", error, 1e-6);
}
void fp8_gradient_test() {
  fp8_gradient_case({1}, 1, 2, 0);
  fp8_gradient_case({300}, 200, 136, 0);
  fp8_gradient_case({3, 0, 130, 128, 1}, 130, 78, 0);
  fp8_gradient_case({0, 0, 129, 0, 257}, 65, 264, 1);
  fp8_gradient_case({0}, 5, 6, 0);
  fp8_gradient_case({200, 40}, 140, 400, 0);
}

// bf16 numbers in rows of `cols`, padded with zeros to `pitch`.
std::vector<bf16> random_bf16(size_t rows, int cols, int pitch) {
  std::vector<bf16> x(rows * pitch);
  for (size_t i = 0; i < x.size(); i++) x[i] = to_bf16((int)(i % pitch) < cols ? (float)random_unit() : 0);
  return x;
}

void bf16_gemm_case(const std::vector<int>& counts, int n, int k_real, int nn, int add) {
  const std::vector<u32> ends = ends_of(counts);
  const int experts = (int)counts.size(), m = (int)ends.back(), k = up(k_real, 64);
  const int b_rows = nn ? k_real : n, b_cols = nn ? n : k_real, b_pitch = up(b_cols, 64);
  const std::vector<bf16> a = random_bf16(m, k_real, k), b = random_bf16((size_t)experts * b_rows, b_cols, b_pitch);
  const Floats old = random_floats((size_t)m * n);
  const Device<bf16> da(a), db(b);
  auto product = [&](int rows, u32 grid, bool wide, u64 c) {
    std::vector<u32> clipped = ends;
    for (u32& end : clipped) end = std::min(end, (u32)rows);
    const Device<u32> dends(clipped);
    const Map a_map = map_of(da.address, BF16, {(u64)k, (u64)rows}, {(u64)k * 2}, {64, 128});
    const Map b_map = map_of(db.address, BF16, {(u64)b_cols, (u64)b_rows, (u64)experts},
                             {(u64)b_pitch * 2, (u64)b_rows * b_pitch * 2}, {64, nn ? 64u : wide ? 256u : 128u, 1});
    const std::string name = std::string("bf16_gemm") + (nn ? "_nn" : "") + (wide ? "_wide" : "");
    run(name.c_str(), {grid, THREADS, wide ? 198736u : 198768u}, a_map, b_map, dends.address, c, n, k, experts, add);
  };
  const Floats c =
      several("bf16_gemm", old, add, [&](u32 grid, bool wide, u64 c) { product(m, grid, wide, c); });
  if (m > 2) expect_rows_alone("bf16_gemm", c, old, add, m / 2, n, product);
  Error error;
  int row = 0;
  for (int e = 0; e < experts; e++) {
    for (; row < (int)ends[e]; row++) {
      for (int j = 0; j < n; j++) {
        double sum = add ? old[(size_t)row * n + j] : 0;
        for (int i = 0; i < k_real; i++) {
          const size_t at = nn ? ((size_t)e * k_real + i) * b_pitch + j : ((size_t)e * n + j) * b_pitch + i;
          sum += (double)to_float(a[(size_t)row * k + i]) * to_float(b[at]);
        }
        error.add(c[(size_t)row * n + j], sum);
      }
    }
  }
  expect("bf16_gemm", error, 1e-6);
}
void bf16_gemm_test() {
  for (int nn = 0; nn < 2; nn++) {
    bf16_gemm_case({1}, 2, 64, nn, 0);
    bf16_gemm_case({200}, 264, 896, nn, 0);
    bf16_gemm_case({129}, 134, 100, nn, 1);
    bf16_gemm_case({3, 0, 130, 128, 1}, 136, 250, nn, 0);
    bf16_gemm_case({0, 0, 1, 70, 0}, 78, 60, nn, 1);
    bf16_gemm_case({140, 5}, 600, 192, nn, 0);
  }
}

void bf16_gradient_case(const std::vector<int>& counts, int out, int in, int add) {
  const std::vector<u32> ends = ends_of(counts);
  const int experts = (int)counts.size(), m = (int)ends.back(), dy_pitch = up(out, 64), x_pitch = up(in, 64);
  std::vector<bf16> dy = random_bf16(m, out, dy_pitch), x = random_bf16(m, in, x_pitch);
  // an infinity and a NaN in the last expert's first token affect that expert only
  const int infected = counts.back() > 0 && experts > 1 ? experts - 1 : experts;
  if (infected < experts) {
    for (int i = 0; i < out; i++) dy[(size_t)ends[infected - 1] * dy_pitch + i].bits = 0x7f80;
    for (int i = 0; i < in; i++) x[(size_t)ends[infected - 1] * x_pitch + i].bits = 0x7fc0;
  }
  const Floats old = random_floats((size_t)experts * out * in);
  const Device<bf16> d_dy(dy), d_x(x);
  const Device<u32> dends(ends);
  const u64 rows = std::max(m, 1);
  const Map dy_map = map_of(d_dy.address, BF16, {(u64)out, rows}, {(u64)dy_pitch * 2}, {64, 64});
  const Map x_map = map_of(d_x.address, BF16, {(u64)in, rows}, {(u64)x_pitch * 2}, {64, 64});
  const Floats dw = several("bf16_gradient", old, add, [&](u32 grid, bool wide, u64 dw) {
    run(wide ? "bf16_gradient_wide" : "bf16_gradient", {grid, THREADS, wide ? 198736u : 198768u}, dy_map, x_map,
        dends.address, dw, out, in, experts, add);
  });
  Error error;
  for (int e = 0; e < infected; e++) {
    for (int i = 0; i < out; i++) {
      for (int j = 0; j < in; j++) {
        const size_t at = ((size_t)e * out + i) * in + j;
        double sum = add ? old[at] : 0;
        for (size_t t = e ? ends[e - 1] : 0; t < ends[e]; t++)
          sum += (double)to_float(dy[t * dy_pitch + i]) * to_float(x[t * x_pitch + j]);
        error.add(dw[at], sum);
      }
    }
  }
  expect("bf16_gradient", error, 1e-6);
}
void bf16_gradient_test() {
  bf16_gradient_case({1}, 1, 2, 0);
  bf16_gradient_case({300}, 200, 136, 0);
  bf16_gradient_case({3, 0, 130, 64, 1}, 130, 78, 0);
  bf16_gradient_case({0, 0, 129, 0, 257}, 65, 264, 1);
  bf16_gradient_case({0}, 5, 6, 0);
  bf16_gradient_case({100, 40}, 140, 600, 0);
  bf16_gradient_case({70, 0, 300, 0, 330}, 66, 50, 0);
}

// ---- attention
struct Documents {
  std::vector<u32> ends, starts, limits;
  explicit Documents(const std::vector<int>& lengths) {
    u32 start = 0;
    for (int length : lengths) {
      for (int i = 0; i < length; i++) {
        starts.push_back(start);
        limits.push_back(start + length);
      }
      ends.push_back(start += length);
    }
  }
  int rows() const { return (int)starts.size(); }
};
struct Heads {
  int heads, kv_heads, qk, v;
  std::string suffix() const { return std::to_string(qk) + "_" + std::to_string(v); }
  u32 one_of(u32 at_192, u32 at_128, u32 at_64) const { return qk == 192 ? at_192 : qk == 128 ? at_128 : at_64; }
};
// [N, heads, columns], with boxes of `rows` rows.
Map heads_map(u64 x, int n, int heads, int columns, u32 rows) {
  return map_of(x, BF16, {(u64)columns, (u64)heads, (u64)n}, {(u64)columns * 2, (u64)heads * columns * 2},
                {64, 1, rows});
}

// Inputs, and outputs and gradients in f64.
struct Attention {
  std::vector<bf16> q, k, v;
  Floats d_o;
  std::vector<double> o, lse, dq, dk, dv;
  float scale;
  Attention(const Documents& documents, const Heads& h)
      : q(random_bf16(documents.rows(), h.heads * h.qk, h.heads * h.qk)),
        k(random_bf16(documents.rows(), h.kv_heads * h.qk, h.kv_heads * h.qk)),
        v(random_bf16(documents.rows(), h.kv_heads * h.v, h.kv_heads * h.v)),
        d_o((size_t)documents.rows() * h.heads * h.v), scale(3 / std::sqrt((float)h.qk)) {
    const int n = documents.rows(), repeat = h.heads / h.kv_heads;
    for (float& x : d_o) x = to_float(to_bf16((float)random_unit()));
    o.assign((size_t)n * h.heads * h.v, 0);
    lse.assign((size_t)n * h.heads, 0);
    dq.assign(q.size(), 0);
    dk.assign(k.size(), 0);
    dv.assign(v.size(), 0);
    std::vector<double> p(n), wide_q(q.size()), wide_k(k.size()), wide_v(v.size());
    for (size_t i = 0; i < q.size(); i++) wide_q[i] = to_float(q[i]);
    for (size_t i = 0; i < k.size(); i++) wide_k[i] = to_float(k[i]);
    for (size_t i = 0; i < v.size(); i++) wide_v[i] = to_float(v[i]);
    for (int i = 0; i < n; i++) {
      for (int head = 0; head < h.heads; head++) {
        const double* query = &wide_q[((size_t)i * h.heads + head) * h.qk];
        const int start = (int)documents.starts[i], kv_head = head / repeat;
        auto key = [&](int j) { return ((size_t)j * h.kv_heads + kv_head) * h.qk; };
        auto value = [&](int j) { return ((size_t)j * h.kv_heads + kv_head) * h.v; };
        const size_t own = ((size_t)i * h.heads + head) * h.v;
        double most = -INFINITY, sum = 0;
        for (int j = start; j <= i; j++) {
          double s = 0;
          for (int c = 0; c < h.qk; c++) s += query[c] * wide_k[key(j) + c];
          most = std::max(most, p[j] = s * scale);
        }
        for (int j = start; j <= i; j++) sum += p[j] = std::exp(p[j] - most);
        for (int j = start; j <= i; j++) {
          p[j] /= sum;
          for (int c = 0; c < h.v; c++) o[own + c] += p[j] * wide_v[value(j) + c];
        }
        lse[(size_t)head * n + i] = most + std::log(sum);
        double delta = 0;
        for (int c = 0; c < h.v; c++) delta += o[own + c] * d_o[own + c];
        for (int j = start; j <= i; j++) {
          double dp = 0;
          for (int c = 0; c < h.v; c++) {
            dp += d_o[own + c] * wide_v[value(j) + c];
            dv[value(j) + c] += p[j] * d_o[own + c];
          }
          const double ds = p[j] * (dp - delta) * scale;
          for (int c = 0; c < h.qk; c++) {
            dq[((size_t)i * h.heads + head) * h.qk + c] += ds * wide_k[key(j) + c];
            dk[key(j) + c] += ds * query[c];
          }
        }
      }
    }
  }
};
void expect_close(const char* name, const Floats& got, const std::vector<double>& expected, double tolerance) {
  Error error;
  for (size_t i = 0; i < expected.size(); i++) error.add(got[i], expected[i]);
  expect(name, error, tolerance);
}

struct Results {
  Floats o, lse, dq, dk, dv;
};
Results flash(const Attention& x, const Documents& documents, const Heads& h, u32 grid) {
  const int n = documents.rows();
  const Device<bf16> q(x.q), k(x.k), v(x.v);
  const Device<float> o((size_t)n * h.heads * h.v), lse((size_t)n * h.heads), delta((size_t)n * h.heads), d_o(x.d_o);
  const Device<u32> ends(documents.ends), starts(n), limits(n);
  run("document_spans", {(u32)documents.ends.size(), 256, 0}, ends.address, starts.address, limits.address);
  if (starts.download() != documents.starts || limits.download() != documents.limits) {
    printf("document_spans: wrong\n");
    exit(1);
  }
  const Map k_128 = heads_map(k.address, n, h.kv_heads, h.qk, 128);
  const Map v_128 = heads_map(v.address, n, h.kv_heads, h.v, 128);
  const Map q_128 = heads_map(q.address, n, h.heads, h.qk, 128);
  run(("flash_forward_" + h.suffix()).c_str(), {grid, THREADS, h.one_of(213072, 163920, 82000)}, q_128, k_128, v_128,
      starts.address, limits.address, o.address, lse.address, n, h.heads, h.kv_heads, x.scale);

  const Device<bf16> low((size_t)n * h.heads * h.v);
  run(("flash_delta_" + std::to_string(h.v)).c_str(), {(u32)(n * h.heads + 7) / 8, 256, 0}, o.address, d_o.address,
      low.address, delta.address, n, h.heads);
  const Device<float> dq(x.q.size()), dk(x.k.size()), dv(x.v.size());
  const u32 block = h.one_of(32, 64, 64);
  run(("flash_keys_" + h.suffix()).c_str(), {grid, THREADS, h.one_of(164944, 198736, 100432)},
      heads_map(q.address, n, h.heads, h.qk, block), k_128, v_128, heads_map(low.address, n, h.heads, h.v, block),
      starts.address, limits.address, lse.address, delta.address, dk.address, dv.address, n, h.heads, h.kv_heads,
      x.scale);
  run(("flash_queries_" + h.suffix()).c_str(), {grid, THREADS, h.one_of(204864, 163904, 81984)}, q_128,
      heads_map(k.address, n, h.kv_heads, h.qk, 64), heads_map(v.address, n, h.kv_heads, h.v, 64),
      heads_map(low.address, n, h.heads, h.v, 128), starts.address, limits.address, lse.address, delta.address,
      dq.address, n, h.heads, h.kv_heads, x.scale);
  return {o.download(), lse.download(), dq.download(), dk.download(), dv.download()};
}
void flash_case(const std::vector<int>& lengths, const Heads& h) {
  const Documents documents(lengths);
  const Attention x(documents, h);
  const Results first = flash(x, documents, h, 1);
  for (u32 grid = 2; grid <= 3; grid++) {
    const Results again = flash(x, documents, h, grid);
    expect_same("o", first.o, again.o);
    expect_same("lse", first.lse, again.lse);
    expect_same("dq", first.dq, again.dq);
    expect_same("dk", first.dk, again.dk);
    expect_same("dv", first.dv, again.dv);
  }
  // probabilities and gradients of scores are rounded to bf16, 2^-9 relative each
  expect_close("o", first.o, x.o, 4e-3);
  expect_close("lse", first.lse, x.lse, 1e-5);
  expect_close("dq", first.dq, x.dq, 6e-3);
  expect_close("dk", first.dk, x.dk, 6e-3);
  expect_close("dv", first.dv, x.dv, 6e-3);
}
void flash_192_test() {
  flash_case({1}, {1, 1, 192, 128});
  flash_case({300}, {2, 2, 192, 128});
  flash_case({5, 130, 1, 64, 200}, {1, 1, 192, 128});
}
void flash_128_test() { flash_case({129, 70}, {2, 1, 128, 128}); }
void flash_64_test() {
  flash_case({3, 2, 1, 1, 9, 250}, {4, 2, 64, 64});
  flash_case({191, 40}, {1, 1, 64, 64});  // a warpgroup's last row alone is of the next document
}

// A document's bits do not depend on what stands before and behind it, even where gradients behind it overflow.
void alone_case(int before, int length, int behind, const Heads& h) {
  const Documents together({before, length, behind}), alone({length});
  Attention x(together, h), one(alone, h);
  const size_t own_rows = before + length;
  for (size_t i = own_rows * h.kv_heads * h.v; i < x.v.size(); i++) x.v[i] = to_bf16(to_float(x.v[i]) * 1e30f);
  for (size_t i = own_rows * h.heads * h.v; i < x.d_o.size(); i++) x.d_o[i] = to_float(to_bf16(x.d_o[i] * 1e30f));
  auto part = [&](const auto& all, auto& own) {
    const size_t row = own.size() / length;
    std::copy(all.begin() + before * row, all.begin() + (before + length) * row, own.begin());
  };
  part(x.q, one.q);
  part(x.k, one.k);
  part(x.v, one.v);
  part(x.d_o, one.d_o);
  const Results all = flash(x, together, h, 1), own = flash(one, alone, h, 1);
  auto same = [&](const char* name, const Floats& all, const Floats& own) {
    Floats copy(own.size());
    part(all, copy);
    expect_same(name, copy, own);
  };
  same("o of a document alone", all.o, own.o);
  same("dq of a document alone", all.dq, own.dq);
  same("dk of a document alone", all.dk, own.dk);
  same("dv of a document alone", all.dv, own.dv);
}
void alone_test() {
  alone_case(37, 150, 20, {2, 1, 64, 64});
  alone_case(200, 70, 1, {1, 1, 192, 128});
}

int main(int count, char** words) {
  void* context;
  MUST(cuInit(0));
  MUST(cuDevicePrimaryCtxRetain(&context, 0));
  MUST(cuCtxSetCurrent(context));
  struct {
    const char* name;
    void (*run)();
  } tests[] = {
      {"fp8_gemm", fp8_gemm_test},           {"fp8_gradient", fp8_gradient_test}, {"bf16_gemm", bf16_gemm_test},
      {"bf16_gradient", bf16_gradient_test}, {"flash_192", flash_192_test},       {"flash_128", flash_128_test},
      {"flash_64", flash_64_test},           {"flash_alone", alone_test},
  };
  for (auto& test : tests) {
    if (count > 1 && std::string(test.name).find(words[1]) == std::string::npos) continue;
    worst_of_test = 0;
    const auto start = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    printf("%-16s ok, off by at most %.2g of the largest, %.1f s\n", test.name, worst_of_test, seconds.count());
    fflush(stdout);
  }
}
