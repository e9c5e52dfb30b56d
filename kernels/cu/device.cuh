// What kernels are written in: number formats, shuffles, barriers, the copy engine (TMA) and tensor cores (wgmma), as
// inline PTX. No CUDA header is included, so NVRTC needs no include path. The simulator has the same names in
// ../sim/cuda.hpp: a kernel uses nothing else of CUDA than what both have.
#pragma once
#ifdef SMELT_SIM
#include "../sim/cuda.hpp"
#else
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define DEVICE __device__ __forceinline__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]

// A tensor map of the driver (`CUtensorMap`), passed by value; maps stand first among a kernel's parameters.
struct __align__(128) TensorMap { u64 opaque[16]; };
#define TENSOR_MAP const __grid_constant__ TensorMap

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- number formats
struct __align__(2) bf16 { u16 bits; };
DEVICE float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE bf16 to_bf16(float x) { bf16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x)); return r; }
// Two neighbours in memory; `low` comes first.
DEVICE u32 pack_bf16(float low, float high) {
  u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
// To nearest even; saturates to ±448, NaN is 0x7f.
#if __CUDA_ARCH__ >= 890
DEVICE u8 to_e4m3(float x) {
  u16 r; asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(0.f), "f"(x)); return (u8)r;
}
#else
DEVICE u8 to_e4m3(float x) {
  u32 bits = __float_as_uint(x), sign = (bits >> 24) & 128, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7f;
  if (size >= 0x43e00000) return (u8)(sign | 0x7e);
  if (size < 0x3c800000) return (u8)(sign | (u32)__float2int_rn(__uint_as_float(size) * 512.f));
  size += 0x7ffff + ((size >> 20) & 1);
  return (u8)(sign | ((size >> 20) - (120 << 3)));
}
#endif

DEVICE float minus_infinity() { return __uint_as_float(0xff800000); }
// 2ˣ to about 2 units in the last place; exactly 1 at 0 and 0 at −∞.
DEVICE float fast_exp2(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }

// ---- barriers of a part of a block, and mbarriers
DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void mbarrier_init(u64* b, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_expect(u64* b, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
DEVICE void mbarrier_arrive(u64* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
DEVICE void mbarrier_wait(u64* b, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1, 0x989680;\n"
      "@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(shared_address(b)), "r"(parity) : "memory");
}
// Ordinary stores to shared memory become visible to the copy engine and the tensor cores.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- the copy engine
DEVICE void prefetch_map(const TensorMap* m) { asm volatile("prefetch.tensormap [%0];" ::"l"((u64)m) : "memory"); }
DEVICE void copy_tile_2d(void* to, const TensorMap* m, u64* barrier, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
      ::"r"(shared_address(to)), "l"((u64)m), "r"(shared_address(barrier)), "r"(c0), "r"(c1) : "memory");
}
DEVICE void copy_tile_3d(void* to, const TensorMap* m, u64* barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
      ::"r"(shared_address(to)), "l"((u64)m), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2) : "memory");
}

// ---- the tensor cores of sm_90a
#if __CUDA_ARCH_FEAT_SM90_ALL
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
template <int R> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R)); }
template <int R> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R)); }
// Keeps the compiler from moving reads of an accumulator across the asynchronous product.
DEVICE void fence_operand(float& r) { asm volatile("" : "+f"(r)::"memory"); }
// Keeps the compiler from computing ahead of a loop what follows from `x`, where registers are few.
DEVICE u32 computed_here(u32 x) { asm volatile("" : "+r"(x)); return x; }

// Accumulators as operands, and their numbers in the text.
#define SMELT_D8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define SMELT_D16 SMELT_D8(0), SMELT_D8(8)
#define SMELT_D32 SMELT_D16, SMELT_D8(16), SMELT_D8(24)
#define SMELT_D64 SMELT_D32, SMELT_D8(32), SMELT_D8(40), SMELT_D8(48), SMELT_D8(56)
#define SMELT_D96 SMELT_D64, SMELT_D8(64), SMELT_D8(72), SMELT_D8(80), SMELT_D8(88)
#define SMELT_D128 SMELT_D96, SMELT_D8(96), SMELT_D8(104), SMELT_D8(112), SMELT_D8(120)
#define SMELT_N16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define SMELT_N32 SMELT_N16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SMELT_N64 \
  SMELT_N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
            ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SMELT_N96 \
  SMELT_N64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
            ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define SMELT_N128 \
  SMELT_N96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
            ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// d[64, N] (+)= a[64, 32] · b[N, 32]ᵀ, E4M3, both K-major in shared memory, where N is twice the number of
// accumulators; `keep` 0 starts from zero. The last three arguments of the macro are the numbers of the operands
// behind the accumulators.
#define SMELT_WGMMA_E4M3(count, n, a_, b_, keep_) \
  DEVICE void wgmma_e4m3(float (&d)[count], u64 a, u64 b, int keep) { \
    asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" keep_ ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n" n "k32.f32.e4m3.e4m3 {" SMELT_N##count "}, %" a_ ", %" b_ \
        ", p, 1, 1;\n}" \
        : SMELT_D##count \
        : "l"(a), "l"(b), "r"(keep)); \
  }
SMELT_WGMMA_E4M3(64, "128", "64", "65", "66")
SMELT_WGMMA_E4M3(96, "192", "96", "97", "98")

// The same for bf16: d[64, N] (+)= a[64, 16] · b[N, 16]ᵀ. A template argument is 1 for an operand that is MN-major
// in shared memory (see `mn_major`), 0 for a K-major one (`k_major`).
#define SMELT_WGMMA_SHARED(count, n, a_, b_, keep_, a_mn_, b_mn_) \
  template <int A_MN, int B_MN> DEVICE void wgmma_bf16(float (&d)[count], u64 a, u64 b, int keep) { \
    asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" keep_ ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" SMELT_N##count "}, %" a_ ", %" b_ \
        ", p, 1, 1, %" a_mn_ ", %" b_mn_ ";\n}" \
        : SMELT_D##count \
        : "l"(a), "l"(b), "r"(keep), "n"(A_MN), "n"(B_MN)); \
  }
SMELT_WGMMA_SHARED(16, "32", "16", "17", "18", "19", "20")
SMELT_WGMMA_SHARED(32, "64", "32", "33", "34", "35", "36")
SMELT_WGMMA_SHARED(64, "128", "64", "65", "66", "67", "68")
SMELT_WGMMA_SHARED(128, "256", "128", "129", "130", "131", "132")

// The same with a in registers: a[0..4] are the four registers of `wgmma`'s A fragment. They must not change before the
// product is waited for.
#define SMELT_WGMMA_REGISTERS(count, n, a0_, a1_, a2_, a3_, b_, keep_, b_mn_) \
  template <int B_MN> DEVICE void wgmma_bf16(float (&d)[count], const u32* a, u64 b, int keep) { \
    asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" keep_ ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" SMELT_N##count "}, {%" a0_ ", %" a1_ ", %" a2_ \
        ", %" a3_ "}, %" b_ ", p, 1, 1, %" b_mn_ ";\n}" \
        : SMELT_D##count \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(B_MN)); \
  }
SMELT_WGMMA_REGISTERS(32, "64", "32", "33", "34", "35", "36", "37", "38")
SMELT_WGMMA_REGISTERS(64, "128", "64", "65", "66", "67", "68", "69", "70")
SMELT_WGMMA_REGISTERS(96, "192", "96", "97", "98", "99", "100", "101", "102")
#endif
#endif  // SMELT_SIM

// Descriptors of operands in shared memory with the 128-byte swizzle, as the copy engine writes a box whose rows have
// 128 bytes: 8 rows are an atom of 1024 bytes, which begins at a multiple of 1024.
//
// K-major: a row of the box is a row of the operand (of M or N), and has 128 bytes along K. The next step along K lies
// 32 bytes further.
DEVICE u64 k_major(const void* p) {
  return (u64)((shared_address(p) & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// MN-major, bf16 only: a row of the box is one step along K, and has 64 elements of M or N. The next 64 elements lie
// `next` bytes further, the next 16 steps along K 2048 bytes.
DEVICE u64 mn_major(const void* p, u32 next) {
  return (u64)((shared_address(p) & 0x3FFFF) >> 4) | (u64)(next >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
// The descriptor of what begins so many bytes later. Addresses end at bit 17, so only the lower half changes, and the
// upper one stays a constant that takes no register.
DEVICE u64 later(u64 descriptor, u32 bytes) {
  return (descriptor & 0xffffffff00000000ull) | ((u32)descriptor + (bytes >> 4));
}

// Where item `i` of a list stands whose items end at `ends`, for the whole block, which reads that once; without ends
// it is the only one, of n rows. `shared` is written
// before it returns and must not be written again.
struct Bounds {
  int start, end;
};
DEVICE Bounds bounds_of_block(Bounds& shared, const u32* ends, int i, int n) {
  if (threadIdx.x == 0) shared = Bounds{ends && i ? (int)ends[i - 1] : 0, ends ? (int)ends[i] : n};
  __syncthreads();
  return shared;
}
