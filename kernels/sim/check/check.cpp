// Checks of the simulator: kernels with planted faults (check.cu), each of which must be reported, and correct ones,
// which must pass. Run by ../test.sh, linked with the library that build.sh makes.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <functional>
#include <initializer_list>
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
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoDAsync_v2(u64, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, u64, size_t, void*);
int cuMemcpyHtoD_v2(u64, const void*, size_t);
int cuMemcpyDtoH_v2(void*, u64, size_t);
int cuMemsetD8Async(u64, u8, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuStreamSynchronize(void*);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventSynchronize(void*);
int cuTensorMapEncodeTiled(void*, int, u32, u64, const u64*, const u64*, const u32*, const u32*, int, int, int, int);
size_t smelt_sim_report(char*, size_t);
void smelt_sim_reset();
}

static int failures = 0, checks = 0;
static int saved_stderr = -1;
static bool show = false;
static const char* const CAPTURED = "stderr.txt";

static void expect(bool holds, const std::string& what) {
  checks++;
  if (holds) return;
  failures++;
  printf("FAILED: %s\n", what.c_str());
}
static void must(int result, const char* call) {
  if (!result) return;
  printf("%s: error %d\n", call, result);
  exit(1);
}
#define MUST(call) must(call, #call)

// What the simulator prints while `body` runs.
static std::string printed(const std::function<void()>& body) {
  fflush(stderr);
  saved_stderr = dup(2);
  if (!freopen(CAPTURED, "w", stderr)) exit(1);
  body();
  fflush(stderr);
  dup2(saved_stderr, 2);
  close(saved_stderr);
  std::string text;
  FILE* f = fopen(CAPTURED, "r");
  for (int c; (c = fgetc(f)) != EOF;) text += (char)c;
  fclose(f);
  if (show) printf("%s", text.c_str());
  return text;
}

static std::vector<u64> allocations;
static u64 device(size_t bytes) {
  u64 p;
  MUST(cuMemAlloc_v2(&p, bytes));
  allocations.push_back(p);
  return p;
}
template <class T> static u64 uploaded(const std::vector<T>& values) {
  u64 p = device(values.size() * sizeof(T));
  MUST(cuMemcpyHtoD_v2(p, values.data(), values.size() * sizeof(T)));
  return p;
}
template <class T> static std::vector<T> downloaded(u64 p, size_t count) {
  std::vector<T> values(count);
  MUST(cuMemcpyDtoH_v2(values.data(), p, count * sizeof(T)));
  return values;
}
static void begin() {
  smelt_sim_reset();
  for (u64 p : allocations) MUST(cuMemFree_v2(p));
  allocations.clear();
}

struct Shape {
  u32 grid, block, dynamic;
};
template <class... T> static int launch(const char* name, Shape shape, T... parameters) {
  void *module, *function;
  if (int error = cuModuleLoadData(&module, "\x7f" "ELF")) return error;
  MUST(cuModuleGetFunction(&function, module, name));
  if (shape.dynamic) MUST(cuFuncSetAttribute(function, 8, (int)shape.dynamic));
  void* list[] = {&parameters..., nullptr};
  return cuLaunchKernel(function, shape.grid, 1, 1, shape.block, 1, 1, shape.dynamic, nullptr, list, nullptr);
}

// A launch that must be reported with `error` and words.
template <class... T>
static void faulty(const char* name, int error, const char* words, Shape shape, T... parameters) {
  int result = 0;
  std::string text = printed([&] { result = launch(name, shape, parameters...); });
  expect(result == error && text.find(words) != std::string::npos,
         std::string(name) + ": expected " + std::to_string(error) + " and \"" + words + "\", got " +
             std::to_string(result) + " and:\n" + text);
  if (error != 701) expect(cuCtxSynchronize() == error, std::string(name) + ": the error must stay");  // 701: refused
}
template <class... T> static void sound(const char* name, Shape shape, T... parameters) {
  int result = 0;
  std::string text = printed([&] { result = launch(name, shape, parameters...); });
  expect(result == 0 && text.empty(), std::string(name) + ": expected no report, got " + std::to_string(result) +
                                          " and:\n" + text);
}

struct alignas(128) Map {
  u64 opaque[16];
};
static Map tensor_map(u64 base, std::initializer_list<u64> sizes, std::initializer_list<u32> boxes, u32 element_bytes,
                      bool swizzle) {
  std::vector<u64> size(sizes), strides;
  std::vector<u32> box(boxes), ones(size.size(), 1);
  u64 stride = element_bytes;
  for (u64 s : size) strides.push_back((stride *= s, stride = (stride + 15) / 16 * 16));
  Map map;
  MUST(cuTensorMapEncodeTiled(&map, element_bytes == 1 ? 0 : element_bytes == 2 ? 9 : 7, (u32)size.size(), base,
                              size.data(), strides.data(), box.data(), ones.data(), 0, swizzle ? 3 : 0, 2, 0));
  return map;
}

static std::vector<float> ramp(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; i++) values[i] = (float)i;
  return values;
}

static void kernels_of_global_memory() {
  begin();
  u64 x = uploaded(ramp(1000)), y = device(4000);
  sound("scale", {4, 256, 0}, x, y, 1000, 2.f);
  expect(downloaded<float>(y, 1000)[999] == 1998.f, "scale computes");
  begin();
  x = uploaded(ramp(1000)), y = device(4000);
  faulty("scale", 700, "outside of an allocation", {4, 256, 0}, x, y, 1001, 2.f);
  begin();
  x = uploaded(ramp(1000)), y = device(4000);
  faulty("scale", 700, "read of unwritten global memory", {4, 256, 0}, y, x, 1000, 2.f);
  begin();
  x = uploaded(ramp(1000)), y = device(4000);
  std::vector<float> host(1000);
  faulty("scale", 700, "not the device's", {4, 256, 0}, host.data(), y, 1000, 2.f);
  begin();
  x = uploaded(ramp(1000)), y = device(4000);
  faulty("scale", 716, "misaligned", {1, 32, 0}, x + 2, y, 32, 2.f);
  begin();
  x = uploaded(ramp(1000)), y = device(4000);
  sound("add_four", {1, 32, 0}, x, y, 32);
  faulty("add_four", 716, "check.cu:", {1, 32, 0}, x, y + 4, 32);
  begin();
  x = uploaded(ramp(1000)), y = device(4000);
  faulty("scale", 701, "KERNEL(...)", {1, 512, 0}, x, y, 32, 2.f);
}

static void kernels_of_shared_memory() {
  begin();
  auto rows = [](int fault, bool good) {
    begin();
    u64 x = uploaded(ramp(4 * 1000)), y = device(16);
    if (good) sound("row_sum", {4, 256, 0}, x, y, 1000, fault);
    else faulty("row_sum", 700, "race in shared memory", {4, 256, 0}, x, y, 1000, fault);
    if (good) expect(downloaded<float>(y, 4)[1] == 1499500.f, "row_sum computes");
  };
  rows(0, true);
  rows(1, false);
  auto reverse = [](int rounds, int fault, const char* words) {
    u32 dynamic = fault == 4 ? 200000 : 1024;
    begin();
    u64 x = uploaded(ramp(512)), y = device(2048);
    if (!words) sound("reverse", {2, 256, dynamic}, x, y, rounds, fault);
    else faulty("reverse", 700, words, {2, 256, dynamic}, x, y, rounds, fault);
    if (!words) expect(downloaded<float>(y, 512)[256] == 511.f, "reverse computes");
  };
  reverse(3, 0, nullptr);
  reverse(1, 1, nullptr);
  reverse(3, 1, "race in shared memory: a write");
  reverse(1, 2, "outside of shared memory");
  reverse(1, 3, "read of unwritten shared memory");
  reverse(1, 4, "read of unwritten shared memory");
  begin();
  sound("exchange", {1, 128, 0}, uploaded(ramp(128)), device(512), 0);
  faulty("exchange", 700, "race in shared memory", {1, 128, 0}, uploaded(ramp(128)), device(512), 1);
  begin();
  std::vector<u8> bytes(5000);
  for (size_t i = 0; i < bytes.size(); i++) bytes[i] = (u8)(i * i);
  u64 counts = uploaded(std::vector<u32>(256, 0));
  sound("histogram", {1, 256, 0}, uploaded(bytes), counts, 5000);
  u32 sum = 0;
  for (u32 count : downloaded<u32>(counts, 256)) sum += count;
  expect(sum == 5000, "histogram counts");
}

static void blocks() {
  begin();
  u64 y = uploaded(std::vector<u32>(16, 0));
  sound("share", {8, 32, 0}, y, 0);
  expect(downloaded<u32>(y, 1)[0] == 28, "share sums");
  sound("share", {1, 32, 0}, y, 1);  // another launch, ordered after the first
  faulty("share", 700, "another block", {8, 32, 0}, y, 1);
  begin();
  faulty("share", 700, "another block", {8, 32, 0}, uploaded(std::vector<u32>(16, 0)), 2);
}

static void threads_in_global_memory() {
  for (int fault : {0, 1, 2}) {
    begin();
    u64 x = uploaded(ramp(64)), between = uploaded(ramp(64)), y = device(256);
    if (fault) faulty("stage", 700, "race in global memory", {1, 64, 0}, x, between, y, fault);
    else sound("stage", {1, 64, 0}, x, between, y, fault);
  }
}

static void votes_and_barriers() {
  for (int stay : {256, 128, 32}) {
    begin();
    u64 y = device(1024);
    sound("votes", {1, 256, 0}, y, stay);
    for (u32 good : downloaded<u32>(y, (size_t)stay)) {
      if (!good) expect(false, "votes with " + std::to_string(stay) + " threads");
    }
  }
  begin();
  u64 y = device(512);
  sound("handover", {1, 64, 0}, uploaded(ramp(128)), y, 0);
  expect(downloaded<float>(y, 128)[96] == 127.f, "handover computes");
  faulty("handover", 702, "deadlock", {1, 64, 0}, uploaded(ramp(128)), y, 1);
}

static void copies_of_tiles() {
  const u32 dynamic = 2 * 64 * 32 * 4;
  auto tiles = [&](int rank, int fault, int error, const char* words) {
    begin();
    u64 x = uploaded(std::vector<float>(32 * 300, 1.f)), y = device(256);
    // rank 2: 300 rows of 32; rank 3: 20 × 15 × 32. Both tiles begin outside, and the last one ends outside.
    Map map = rank == 2 ? tensor_map(x, {32, 300}, {32, 64}, 4, true)
                        : tensor_map(x, {32, 15, 20}, {32, 8, 4}, 4, true);
    if (!error) sound("tile_sum", {1, 96, dynamic}, map, y, 5, rank, fault);
    else faulty("tile_sum", error, words, {1, 96, dynamic}, map, y, 5, rank, fault);
    if (error) return;
    float sum = 0;
    for (float part : downloaded<float>(y, 64)) sum += part;
    expect(sum == (rank == 2 ? 300.f * 24 : 20.f * 6 * 32), "tile_sum computes, rank " + std::to_string(rank));
  };
  tiles(2, 0, 0, nullptr);
  tiles(3, 0, 0, nullptr);
  tiles(2, 1, 702, "deadlock");
  tiles(2, 2, 702, "deadlock");
  tiles(2, 3, 700, "shared memory");
  tiles(2, 4, 719, "more arrivals");
  tiles(2, 5, 700, "fence_mbarrier_init");
  tiles(2, 6, 719, "mbarrier");
  tiles(2, 7, 700, "shared memory");
  begin();
  u64 x = uploaded(ramp(64));
  Map map;
  auto refused = [&](u64 base, u64 row_bytes, u32 width, const char* words) {
    u64 size[] = {32, 2}, stride[] = {row_bytes};
    u32 box[] = {width, 2}, ones[] = {1, 1};
    std::string text = printed([&] {
      expect(cuTensorMapEncodeTiled(&map, 7, 2, base, size, stride, box, ones, 0, 3, 2, 0) == 1, words);
    });
    expect(text.find(words) != std::string::npos, std::string(words) + ": " + text);
  };
  refused(x + 8, 128, 32, "aligned to 16");
  refused(x, 132, 32, "multiple of 16");
  refused(x, 64, 32, "smaller than what it steps over");
  refused(x, 128, 64, "longer than the swizzle");
  refused(x, 128, 512, "above 256");
}

static float e4m3(u8 x) {
  int exponent = x >> 3 & 15, mantissa = x & 7;
  float size = exponent ? ldexpf(1.f + (float)mantissa / 8, exponent - 7) : ldexpf((float)mantissa / 8, -6);
  return x & 128 ? -size : size;
}
static void products() {
  std::vector<u8> a(64 * 32), b(128 * 32);
  for (size_t i = 0; i < a.size(); i++) a[i] = (u8)(i * 37 % 0x70);
  for (size_t i = 0; i < b.size(); i++) b[i] = (u8)(i * 53 % 0x70 | (i & 1) << 7);
  auto product = [&](int fault, int error, const char* words) {
    begin();
    u64 d = device(64 * 128 * 4);
    if (error) faulty("product", error, words, {1, 128, 8192 + 16384}, uploaded(a), uploaded(b), d, fault, 1);
    else sound("product", {1, 128, 8192 + 16384}, uploaded(a), uploaded(b), d, fault, 1);
    if (error) return;
    std::vector<float> got = downloaded<float>(d, 64 * 128);
    bool equal = true;
    for (int m = 0; m < 64; m++) {
      for (int n = 0; n < 128; n++) {
        float sum = 0;
        for (int k = 0; k < 32; k++) sum += e4m3(a[m * 32 + k]) * e4m3(b[n * 32 + k]);
        equal &= sum == got[m * 128 + n];
      }
    }
    expect(equal, "product computes");
  };
  product(0, 0, nullptr);
  product(1, 700, "without a fence_async");
  product(2, 700, "without a fence_async");
  product(3, 719, "before its products");
}

static void late_copies() {
  begin();
  void *stream, *event, *locked;
  MUST(cuStreamCreate(&stream, 1));
  MUST(cuEventCreate(&event, 0));
  MUST(cuMemHostAlloc(&locked, 4096, 0));
  float* host = (float*)locked;
  u64 x = uploaded(ramp(1000));
  host[3] = 77;
  MUST(cuMemcpyDtoHAsync_v2(host, x, 4000, stream));
  expect(!(host[3] == 3.f), "a host that reads before it waits must not see the copy");
  MUST(cuEventRecord(event, stream));
  MUST(cuMemcpyDtoHAsync_v2(host + 1000, x, 4, stream));
  MUST(cuEventSynchronize(event));
  expect(host[3] == 3.f, "the copy is there behind its event");
  expect(!(host[1000] == 0.f), "a copy behind the event is not");
  MUST(cuStreamSynchronize(stream));
  expect(host[1000] == 0.f, "the copy is there behind its stream");
  host[0] = 5;
  MUST(cuMemcpyHtoDAsync_v2(x, host, 4, stream));
  host[0] = 6;
  MUST(cuStreamSynchronize(stream));
  expect(downloaded<float>(x, 1)[0] == 6.f, "a source that is reused too early must be sent");
  float pageable = 8;
  MUST(cuMemcpyHtoDAsync_v2(x, &pageable, 4, stream));
  pageable = 9;
  expect(downloaded<float>(x, 1)[0] == 8.f, "a pageable source is taken at once");
  MUST(cuMemFreeHost(locked));
}

// Another stream writes what is copied: before or behind the copy, as its wait for an event says.
static void copies_of_what_is_written() {
  begin();
  void *copying, *writing, *before, *behind, *locked;
  MUST(cuStreamCreate(&copying, 1));
  MUST(cuStreamCreate(&writing, 1));
  MUST(cuEventCreate(&before, 0));
  MUST(cuEventCreate(&behind, 0));
  MUST(cuMemHostAlloc(&locked, 4096, 0));
  float* host = (float*)locked;
  auto copied = [&](bool waits) {
    u64 x = uploaded(ramp(1000));
    MUST(cuMemcpyDtoHAsync_v2(host, x, 4000, copying));
    MUST(cuEventRecord(behind, copying));
    if (waits) MUST(cuStreamWaitEvent(writing, behind, 0));
    MUST(cuMemsetD8Async(x, 0, 4000, writing));
    MUST(cuStreamSynchronize(writing));
    MUST(cuEventSynchronize(behind));
    return host[3];
  };
  expect(copied(true) == 3.f, "a copy that the writer waits for has what was there");
  expect(copied(false) == 0.f, "a copy that the writer does not wait for must have other bytes");
  u64 x = uploaded(ramp(1000));
  MUST(cuMemsetD8Async(x, 0, 4000, writing));
  expect(cuMemcpyDtoHAsync_v2(host, x, 4000, copying) == 1, "a copy that does not wait for the writer is refused");
  MUST(cuEventRecord(before, writing));
  MUST(cuStreamWaitEvent(copying, before, 0));
  MUST(cuMemcpyDtoHAsync_v2(host, x, 4000, copying));
  MUST(cuStreamSynchronize(copying));
  expect(host[3] == 0.f, "a copy that waits for the writer has what it wrote");
  MUST(cuMemFreeHost(locked));
}

static std::string report() {
  std::string text(smelt_sim_report(nullptr, 0) + 1, 0);
  smelt_sim_report(&text[0], text.size());
  return text;
}
static void set_environment(const char* name, const char* value) {
  setenv(name, value, 1);
  smelt_sim_reset();
  unsetenv(name);
}

static void devices_that_fail() {
  begin();
  u64 x = uploaded(ramp(32)), y = device(128);
  set_environment("SMELT_SIM_FAIL", "scale:2");
  expect(launch("scale", {1, 32, 0}, x, y, 32, 2.f) == 0 && cuCtxSynchronize() == 0, "the first launch runs");
  expect(launch("scale", {1, 32, 0}, x, y, 32, 2.f) == 0, "the second launch is accepted");
  expect(cuCtxSynchronize() == 719 && launch("scale", {1, 32, 0}, x, y, 32, 2.f) == 719, "and fails, from then on");
  set_environment("SMELT_SIM_LOST", "1");
  expect(launch("scale", {1, 32, 0}, x, y, 32, 2.f) == 0 && cuCtxSynchronize() == 46, "the device is lost");
  set_environment("SMELT_SIM_MEMORY", "1000000");
  u64 p;
  expect(cuMemAlloc_v2(&p, 999000) == 2, "memory ends");
  begin();
  x = uploaded(ramp(64)), y = device(256);
  launch("scale", {2, 32, 0}, x, y, 64, 2.f);
  std::string text = report();
  expect(text.find("\"scale\": {\"launches\": 1, \"read\": 256, \"written\": 256, \"distinct_read\": 256, "
                   "\"distinct_written\": 256") != std::string::npos, text);
}

static double seconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
static void times() {
  auto measure = [](const char* what, const char* name, double count, auto... parameters) {
    double start = seconds();
    sound(name, {64, 256, 0}, parameters...);
    printf("  %-34s %6.1f ns\n", what, (seconds() - start) * 1e9 / count);
  };
  for (const char* watch : {"1", "0"}) {
    begin();
    set_environment("SMELT_SIM_WATCH", watch);
    printf("SMELT_SIM_WATCH=%s\n", watch);
    const int n = 1 << 15;
    u64 x = uploaded(std::vector<float>(64 * n, 1.f)), y = device(64 * n * 4);
    measure("access to global memory, first", "many", 2. * 64 * n, x, y, n, 0);
    measure("access to global memory, again", "many", 2. * 64 * n, x, y, n, 0);
    double start = seconds();
    for (int i = 0; i < 32; i++) sound("many", {64, 256, 0}, x, y, 1024, 0);
    double accesses = 32 * 2. * 64 * 1024;
    printf("  %-34s %6.1f ns\n", "access to global memory, in cache", (seconds() - start) * 1e9 / accesses);
    measure("access to shared memory", "many", 3. * 64 * n, x, y, n, 1);
    measure("shuffle, a thread", "many_waits", 64. * 256 * 100, y, 100, 0);
    measure("__syncthreads, a thread", "many_waits", 64. * 256 * 100, y, 100, 1);
    u64 a = uploaded(std::vector<u8>(64 * 32, 0x38)), b = uploaded(std::vector<u8>(128 * 32, 0x38));
    start = seconds();
    sound("product", {1, 128, 8192 + 16384}, a, b, y, 0, 100);
    printf("  %-34s %6.1f us\n", "wgmma of 64 x 128 x 32, E4M3", (seconds() - start) * 1e6 / 100);
    measure("thread of a launch", "many_waits", 64. * 256, y, 0, 0);
  }
}

int main(int count, char** arguments) {
  auto option = [&](const char* name) { return count > 1 && !strcmp(arguments[1], name); };
  show = option("--show");
  MUST(cuInit(0));
  void* context;
  MUST(cuDevicePrimaryCtxRetain(&context, 0));
  MUST(cuCtxSetCurrent(context));
  kernels_of_global_memory();
  kernels_of_shared_memory();
  blocks();
  threads_in_global_memory();
  votes_and_barriers();
  copies_of_tiles();
  products();
  late_copies();
  copies_of_what_is_written();
  devices_that_fail();
  if (option("--times")) times();
  unlink(CAPTURED);
  printf("simulator: %d of %d checks hold\n", checks - failures, checks);
  return failures != 0;
}
