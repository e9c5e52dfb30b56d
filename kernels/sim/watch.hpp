// What watch.cpp offers to the scheduler, the copy engine and the driver.
#pragma once
#include "order.hpp"

namespace sim {

extern bool watching;  // SMELT_SIM_WATCH=0 turns it off: then only bytes are counted

// Reserves the shadow of device memory; false without enough address space.
bool reserve_shadow();

// Device memory, by the driver.
void mark_allocated(const void* p, u64 bytes);
void mark_freed(const void* p, u64 bytes);
void mark_written(const void* p, u64 bytes);
// A copy within device memory: unwritten bytes stay unwritten.
void mark_copied(const void* to, const void* from, u64 bytes);

void begin_launch();
void end_launch();
// The number that the first block of the next launch gets, and the last block that read or wrote any of these bytes.
u32 next_block();
u32 last_block_of(const void* p, u64 bytes);
// Shared memory of a new block: unwritten. `anew`: the clocks began anew.
void begin_shared(bool anew);

// Changes when shared memory between two addresses is written.
u64 shared_version(u32 first, u32 last);

// `code` is the return address of what issued the access, for reports.
void copy_engine_read(const void* global, u32 bytes, const void* code);
void copy_engine_write(u32 shared_address, u32 bytes, const Actor& issuer, u32 tag, const void* code);
// An atomic operation of the current thread on global or shared memory.
void atomic_access(void* p, u32 bytes, const void* code);

}  // namespace sim
