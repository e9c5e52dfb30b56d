// The device side of CUDA on the CPU: what a kernel source (../cu/*.cu, compiled with -DSMELT_SIM) includes in place of
// CUDA, through device.cuh. It serves to test kernels where there is no GPU.
//
// Threads of a block are fibers on one OS thread; blocks run one after another. So a run depends on nothing but the
// seed. Copies of the copy engine (TMA) land late and in random order, products of the tensor cores (wgmma) are
// computed when they are waited for: a missing wait gives wrong numbers, a barrier that never completes is reported.
//
// Every load and store of a kernel goes through watch.cpp (the sources are compiled with -fsanitize=thread, but linked
// with our own __tsan_* functions), which reports accesses outside of allocations, reads of unwritten memory and races.
// With SMELT_SIM_WATCH=0 it only counts bytes. The other variables of the environment are in driver.hpp.
//
// Not modelled: speed; the reduced precision in which FP8 tensor cores accumulate; approximate functions (`__expf`,
// `rsqrtf`, `__fdividef` are the exact ones here); clusters and multicast; bank conflicts and coalescing; registers and
// their limit; the 48 KB limit of static shared memory; the weak memory order of a GPU between blocks.
//
// This header holds declarations and what must be inline; it is included by every kernel source, so it must compile
// fast: no containers. The functions are in scheduler.cpp, copy_engine.cpp and watch.cpp, which are not watched.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef long long i64;

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Device functions are always inlined, as on the GPU: so two sources may hold different ones of the same name.
#define DEVICE inline __attribute__((always_inline))

// build.sh finds kernels by this type in the preprocessed source, and registers them with their bound on threads.
namespace sim {
template <int THREADS> using kernel = void;
}
#define KERNEL(threads) extern "C" sim::kernel<(threads)>

// Static shared memory of one source lies in a section of its own. Declare it in kernels, not in templates.
#ifdef SMELT_SHARED_SECTION
#define __shared__ __attribute__((section(SMELT_SHARED_SECTION))) static
#endif

#include "block.hpp"
#include "math.hpp"
#include "formats.hpp"
#include "async.hpp"
#include "tensor_cores.hpp"
#include "registration.hpp"
