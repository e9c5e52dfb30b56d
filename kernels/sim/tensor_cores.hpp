// The tensor cores of sm_90a in software: what kernels call. The products are in tensor_cores.cpp, which is not
// watched.
#pragma once

void wgmma_fence();
void wgmma_commit();
namespace sim {
void wait_for_products(int groups_left);
// `count` accumulators per thread.
void product_e4m3(float* d, int count, u64 a, u64 b, int keep);
// `a_mn` and `b_mn`: an operand with M or N contiguous in memory.
void product_bf16(float* d, int count, u64 a, bool a_mn, u64 b, bool b_mn, int keep);
void product_bf16(float* d, int count, const u32* a, u64 b, bool b_mn, int keep);
}  // namespace sim

template <int N> inline void wgmma_wait() { sim::wait_for_products(N); }
template <int R> inline void more_registers() {}
template <int R> inline void fewer_registers() {}
inline void fence_operand(float&) {}
inline u32 computed_here(u32 x) { return x; }
inline float minus_infinity() { return -INFINITY; }
inline float fast_exp2(float x) { return exp2f(x); }

template <int COUNT> inline void wgmma_e4m3(float (&d)[COUNT], u64 a, u64 b, int keep) {
  sim::product_e4m3(d, COUNT, a, b, keep);
}
template <int A_MN, int B_MN, int COUNT> inline void wgmma_bf16(float (&d)[COUNT], u64 a, u64 b, int keep) {
  sim::product_bf16(d, COUNT, a, A_MN, b, B_MN, keep);
}
template <int B_MN, int COUNT> inline void wgmma_bf16(float (&d)[COUNT], const u32* a, u64 b, int keep) {
  sim::product_bf16(d, COUNT, a, b, B_MN, keep);
}
