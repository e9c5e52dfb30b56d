// Atomic operations on global and shared memory. Threads are fibers, so each is done at once; watch.hpp checks it.
#include "watch.hpp"

#define ATOMIC(name, type, new_value) \
  type name(type* p, type value) { \
    sim::atomic_access(p, sizeof *p, __builtin_return_address(0)); \
    type old = *p; \
    *p = (new_value); \
    return old; \
  }
ATOMIC(atomicAdd, u32, old + value)
ATOMIC(atomicAdd, int, (int)((u32)old + (u32)value))
ATOMIC(atomicAdd, u64, old + value)
ATOMIC(atomicAdd, float, old + value)
ATOMIC(atomicAdd, double, old + value)
ATOMIC(atomicSub, u32, old - value)
ATOMIC(atomicOr, u32, old | value)
ATOMIC(atomicOr, int, old | value)
ATOMIC(atomicOr, u64, old | value)
ATOMIC(atomicAnd, u32, old & value)
ATOMIC(atomicXor, u32, old ^ value)
ATOMIC(atomicMax, u32, old > value ? old : value)
ATOMIC(atomicMax, int, old > value ? old : value)
ATOMIC(atomicMax, u64, old > value ? old : value)
ATOMIC(atomicMin, u32, old < value ? old : value)
ATOMIC(atomicMin, int, old < value ? old : value)
ATOMIC(atomicMin, u64, old < value ? old : value)
ATOMIC(atomicExch, u32, value)
ATOMIC(atomicExch, int, value)
ATOMIC(atomicExch, float, value)
ATOMIC(atomicInc, u32, old >= value ? 0 : old + 1)

#define ATOMIC_CAS(type) \
  type atomicCAS(type* p, type expected, type value) { \
    sim::atomic_access(p, sizeof *p, __builtin_return_address(0)); \
    type old = *p; \
    if (old == expected) *p = value; \
    return old; \
  }
ATOMIC_CAS(u32)
ATOMIC_CAS(int)
ATOMIC_CAS(u64)
