// Intrinsics of CUDA that kernels use: bits, conversions, rounding, vectors, atomics. Sources are compiled with
// -ffp-contract=off, so + - * / sqrt and fma give the GPU's bits (with --fmad=false there).
#pragma once

inline u32 __popc(u32 x) { return (u32)__builtin_popcount(x); }
inline u32 __popcll(u64 x) { return (u32)__builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((u32)x) : 32; }
inline int __clzll(i64 x) { return x ? __builtin_clzll((u64)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(i64 x) { return __builtin_ffsll(x); }
inline u32 __brev(u32 x) {
  x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
  x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
  x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
  return __builtin_bswap32(x);
}
inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((i64)a * b >> 32); }
inline u64 __umul64hi(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
// Byte i of the result is byte `selector[4i, 4i+3)` of the eight bytes of a (low) and b.
inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
  u64 bytes = (u64)b << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; i++) result |= (u32)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return result;
}
inline u32 __funnelshift_l(u32 low, u32 high, u32 shift) {
  return (u32)(((u64)high << 32 | low) << (shift & 31) >> 32);
}
inline u32 __funnelshift_r(u32 low, u32 high, u32 shift) { return (u32)(((u64)high << 32 | low) >> (shift & 31)); }

namespace sim {
template <class To, class From> inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same number of bits");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace sim
inline u32 __float_as_uint(float x) { return sim::bits_as<u32>(x); }
inline int __float_as_int(float x) { return sim::bits_as<int>(x); }
inline float __uint_as_float(u32 x) { return sim::bits_as<float>(x); }
inline float __int_as_float(int x) { return sim::bits_as<float>(x); }
inline i64 __double_as_longlong(double x) { return sim::bits_as<i64>(x); }
inline double __longlong_as_double(i64 x) { return sim::bits_as<double>(x); }
inline int __double2hiint(double x) { return (int)(sim::bits_as<u64>(x) >> 32); }
inline int __double2loint(double x) { return (int)sim::bits_as<u64>(x); }
inline double __hiloint2double(int high, int low) { return sim::bits_as<double>((u64)(u32)high << 32 | (u32)low); }

namespace sim {
// Conversions to integers saturate, and NaN gives 0 (to 64 bits: the smallest number, as on the GPU).
inline int to_int(double x) {
  if (x != x) return 0;
  if (x >= 2147483647.) return 2147483647;
  return x <= -2147483648. ? (int)0x80000000 : (int)x;
}
inline u32 to_uint(double x) {
  if (x != x || x <= 0) return 0;
  return x >= 4294967295. ? 0xffffffffu : (u32)x;
}
}  // namespace sim
inline int __float2int_rn(float x) { return sim::to_int(nearbyint((double)x)); }
inline int __float2int_rz(float x) { return sim::to_int((double)x); }
inline int __float2int_rd(float x) { return sim::to_int(floor((double)x)); }
inline int __float2int_ru(float x) { return sim::to_int(ceil((double)x)); }
inline u32 __float2uint_rn(float x) { return sim::to_uint(nearbyint((double)x)); }
inline u32 __float2uint_rz(float x) { return sim::to_uint((double)x); }
inline i64 __float2ll_rn(float x) { return (i64)nearbyint((double)x); }
inline i64 __double2ll_rn(double x) { return (i64)nearbyint(x); }
inline int __double2int_rn(double x) { return sim::to_int(nearbyint(x)); }
inline int __double2int_rz(double x) { return sim::to_int(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(u32 x) { return (float)x; }
inline float __ull2float_rn(u64 x) { return (float)x; }
inline float __double2float_rn(double x) { return (float)x; }
inline double __uint2double_rn(u32 x) { return (double)x; }
inline double __ull2double_rn(u64 x) { return (double)x; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// Approximate on the GPU, rounded from the exact value here.
inline float rsqrtf(float x) { return (float)(1. / sqrt((double)x)); }
inline double rsqrt(double x) { return 1. / sqrt(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = (float)sin((double)x * M_PI);
  *cosine = (float)cos((double)x * M_PI);
}

inline int min(int a, int b) { return a < b ? a : b; }
inline u32 min(u32 a, u32 b) { return a < b ? a : b; }
inline u32 min(int a, u32 b) { return min((u32)a, b); }
inline u32 min(u32 a, int b) { return min(a, (u32)b); }
inline long min(long a, long b) { return a < b ? a : b; }
inline unsigned long min(unsigned long a, unsigned long b) { return a < b ? a : b; }
inline i64 min(i64 a, i64 b) { return a < b ? a : b; }
inline u64 min(u64 a, u64 b) { return a < b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline int max(int a, int b) { return a > b ? a : b; }
inline u32 max(u32 a, u32 b) { return a > b ? a : b; }
inline u32 max(int a, u32 b) { return max((u32)a, b); }
inline u32 max(u32 a, int b) { return max(a, (u32)b); }
inline long max(long a, long b) { return a > b ? a : b; }
inline unsigned long max(unsigned long a, unsigned long b) { return a > b ? a : b; }
inline i64 max(i64 a, i64 b) { return a > b ? a : b; }
inline u64 max(u64 a, u64 b) { return a > b ? a : b; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

struct __align__(4) uchar4 { u8 x, y, z, w; };
struct __align__(8) uint2 { u32 x, y; };
struct __align__(16) uint4 { u32 x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(16) double2 { double x, y; };
struct __align__(16) ulonglong2 { u64 x, y; };
inline uchar4 make_uchar4(u8 x, u8 y, u8 z, u8 w) { return uchar4{x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return uint2{x, y}; }
inline uint3 make_uint3(u32 x, u32 y, u32 z) { return uint3{x, y, z}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return uint4{x, y, z, w}; }
inline int2 make_int2(int x, int y) { return int2{x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return int4{x, y, z, w}; }
inline float2 make_float2(float x, float y) { return float2{x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
inline double2 make_double2(double x, double y) { return double2{x, y}; }
inline ulonglong2 make_ulonglong2(u64 x, u64 y) { return ulonglong2{x, y}; }

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, T value) { *p = value; }
template <class T> inline void __stcg(T* p, T value) { *p = value; }

// Each returns what was there before.
u32 atomicAdd(u32* p, u32 value);
int atomicAdd(int* p, int value);
u64 atomicAdd(u64* p, u64 value);
float atomicAdd(float* p, float value);
double atomicAdd(double* p, double value);
u32 atomicSub(u32* p, u32 value);
u32 atomicOr(u32* p, u32 value);
int atomicOr(int* p, int value);
u64 atomicOr(u64* p, u64 value);
u32 atomicAnd(u32* p, u32 value);
u32 atomicXor(u32* p, u32 value);
u32 atomicMax(u32* p, u32 value);
int atomicMax(int* p, int value);
u64 atomicMax(u64* p, u64 value);
u32 atomicMin(u32* p, u32 value);
int atomicMin(int* p, int value);
u64 atomicMin(u64* p, u64 value);
u32 atomicExch(u32* p, u32 value);
int atomicExch(int* p, int value);
float atomicExch(float* p, float value);
u32 atomicCAS(u32* p, u32 expected, u32 value);
int atomicCAS(int* p, int expected, int value);
u64 atomicCAS(u64* p, u64 expected, u64 value);
// 0 when the old number was `last`, one more otherwise.
u32 atomicInc(u32* p, u32 last);
