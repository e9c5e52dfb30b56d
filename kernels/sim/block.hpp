// A thread's view of its block: indices, barriers, shuffles and votes. Defined in scheduler.cpp.
#pragma once

struct uint3 {
  u32 x, y, z;
};
struct dim3 {
  u32 x, y, z;
  dim3(u32 x = 1, u32 y = 1, u32 z = 1) : x(x), y(y), z(z) {}
};

namespace sim {

// Constant during one call of a kernel, hence the attribute.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_dim();
__attribute__((const)) dim3 grid_dim();
__attribute__((const)) u32 thread_in_block();
__attribute__((const)) u8* dynamic_shared();

// Lets every other thread that can run do so.
void yield();

enum class Reduce { Or, And, Count };
int barrier_reduce(Reduce how, int predicate);

// `bits` of lane `source`, after all lanes of `mask` have come here.
u64 shuffle(u32 mask, u64 bits, u32 source);
// Bit i is lane i's predicate.
u32 ballot(u32 mask, int predicate);

template <class T> T shuffle_value(u32 mask, T value, u32 source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  u64 bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, bits, source);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace sim

#define threadIdx (sim::thread_index())
#define blockIdx (sim::block_index())
#define blockDim (sim::block_dim())
#define gridDim (sim::grid_dim())
#define warpSize 32
#define DYNAMIC_SHARED(name) u8* name = sim::dynamic_shared()

void __syncthreads();
void __syncwarp(u32 mask = 0xffffffffu);
void named_barrier(int id, int threads);
inline int __syncthreads_or(int predicate) { return sim::barrier_reduce(sim::Reduce::Or, predicate); }
inline int __syncthreads_and(int predicate) { return sim::barrier_reduce(sim::Reduce::And, predicate); }
inline int __syncthreads_count(int predicate) { return sim::barrier_reduce(sim::Reduce::Count, predicate); }

template <class T> T __shfl_sync(u32 mask, T value, int source, int width = 32) {
  u32 lane = sim::thread_in_block() & 31;
  return sim::shuffle_value(mask, value, (lane & ~(width - 1u)) | ((u32)source & (width - 1u)));
}
template <class T> T __shfl_xor_sync(u32 mask, T value, int bits, int width = 32) {
  u32 lane = sim::thread_in_block() & 31, other = lane ^ (u32)bits;
  return sim::shuffle_value(mask, value, (other & ~(width - 1u)) > (lane & ~(width - 1u)) ? lane : other);
}
template <class T> T __shfl_down_sync(u32 mask, T value, u32 delta, int width = 32) {
  u32 lane = sim::thread_in_block() & 31;
  return sim::shuffle_value(mask, value, (lane & (width - 1u)) + delta < (u32)width ? lane + delta : lane);
}
template <class T> T __shfl_up_sync(u32 mask, T value, u32 delta, int width = 32) {
  u32 lane = sim::thread_in_block() & 31;
  return sim::shuffle_value(mask, value, (lane & (width - 1u)) >= delta ? lane - delta : lane);
}
inline u32 __ballot_sync(u32 mask, int predicate) { return sim::ballot(mask, predicate); }
inline int __any_sync(u32 mask, int predicate) { return sim::ballot(mask, predicate) != 0; }
inline int __all_sync(u32 mask, int predicate) { return sim::ballot(mask, !predicate) == 0; }
u32 __reduce_add_sync(u32 mask, u32 value);
u32 __reduce_min_sync(u32 mask, u32 value);
u32 __reduce_max_sync(u32 mask, u32 value);

// Blocks run one after another, and stores of a block are seen at once: these order nothing more.
inline void __threadfence() {}
inline void __threadfence_block() {}

// The kernel fails with CUDA_ERROR_LAUNCH_FAILED.
[[noreturn]] void __trap();
