// What the parts of the simulator share: threads, the running block, reports. Not included by kernels.
#pragma once
#include "cuda.hpp"

#include <functional>
#include <string>
#include <vector>

namespace sim {

// ---- memory: one region of the address space, so that watch.cpp tells by one subtraction what an address is
//
//   shared memory of the running block | stacks of its threads | device memory
//
// Of shared memory, dynamic lies at [0, 228 KB), static behind it: static arrays have addresses in the library's own
// data section, but take part in the numbering of `shared_address`.
constexpr u64 SHARED_BYTES = 384 << 10, STATIC_SHARED = 228 << 10, SHARED_LIMIT = 227 << 10;
constexpr u64 STACK_BYTES = 128 << 10, STACK_GAP = 4096, STACKS = 1 << 20;
constexpr u32 MOST_THREADS = 1024;
constexpr u64 DEVICE_MEMORY = 256ull << 20;  // offset of device memory in the region
extern u8* region;
extern u64 device_bytes;  // of address space for device memory
inline u8* device_memory() { return region + DEVICE_MEMORY; }
// Reserves the region; false without enough address space.
bool reserve_region(u64 device_bytes);

// ---- threads
struct Snapshot;  // see order.hpp

struct Thread {
  u32 lin = 0;  // number in the block
  uint3 index = {0, 0, 0};
  bool done = false;
  const char* waits_for = "";
  Thread* next = nullptr;  // in the list of threads that are ready, or wait at the same barrier
  void* stack_pointer = nullptr;
  u8* stack = nullptr;

  u32 clock = 0;               // grows with every synchronisation: see order.hpp
  u32 tag = 0;                 // number and clock, as watch.cpp stores them
  Snapshot* known = nullptr;   // clocks of the other threads that this one is ordered after
  u32 fenced = 0;              // its clock at its last fence_async

  // Products of the tensor cores that were issued, and that were committed but not waited for.
  std::vector<std::function<void()>> open;
  std::vector<std::vector<std::function<void()>>> groups;
};

struct ThreadList {
  Thread *first = nullptr, *last = nullptr;
  void push(Thread* t) {
    t->next = nullptr;
    if (last) last->next = t;
    else first = t;
    last = t;
  }
  Thread* pop() {
    Thread* t = first;
    first = t->next;
    if (!first) last = nullptr;
    return t;
  }
};

extern Thread* current;
inline Thread* cur() { return current; }

// Makes the current thread wait until another one puts it on the list of those that are ready.
void block_current(const char* what);
void make_ready(ThreadList& threads);
u64 random_number();

// ---- the running block
struct Block {
  uint3 index = {0, 0, 0};
  dim3 threads, grid;
  u32 count = 0, live = 0;  // threads, and those that have not returned
  u32 dynamic_bytes = 0, static_bytes = 0;
  u8* static_shared = nullptr;
  u64 switches = 0;
};
extern Block block;
inline Thread* thread(u32 lin) {
  extern Thread threads[MOST_THREADS];
  return &threads[lin];
}

// Address of shared memory as a pointer.
u8* shared_pointer(u32 address);

// ---- kernels
struct Kernel {
  const char* name;
  int most_threads;
  void (*call)(void** parameters);
  const u32* parameters;  // bytes of each, and 0 behind them
  u8 *static_shared, *static_end;
  u32 most_dynamic = 48 << 10;

  // Of all launches since the last reset. Bytes are those of global memory; distinct ones count once a launch.
  u64 launches = 0, read = 0, written = 0, distinct_read = 0, distinct_written = 0, flops = 0, problems = 0;

  // Registered by a constructor in each kernel source.
  Kernel(const char* name, int most_threads, void (*call)(void**), const u32* parameters, u8* static_shared,
         u8* static_end);
};
extern Kernel* running;  // the kernel of the current launch
std::vector<Kernel*>& kernels();

// Runs a grid to its end. Returns 0 or a CUresult.
int run_grid(Kernel& kernel, dim3 grid, dim3 threads, u32 dynamic_bytes, void** parameters, u64 seed);

// ---- reports
// Prints the problem with kernel, block and thread, counts it, and lets the launch end with `error`.
void problem(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Ends the launch without returning to the kernel.
[[noreturn]] void abandon();
constexpr int ILLEGAL_ADDRESS = 700, LAUNCH_TIMEOUT = 702, MISALIGNED_ADDRESS = 716, LAUNCH_FAILED = 719;

// ---- for tensor_cores.cpp
// `bytes` of shared memory at `address`, read by the tensor cores on behalf of the current thread.
const u8* shared_read(u32 address, u32 bytes);
void tensor_core_read(const void* shared, u32 bytes);
const void* code_of_products();  // return address of the call that waits for products
inline void count_tensor_flops(u64 flops) { running->flops += flops; }

}  // namespace sim
