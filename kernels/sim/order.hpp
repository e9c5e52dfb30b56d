// Which accesses of a block are ordered: vector clocks.
//
// A thread's clock grows with every synchronisation. Each thread knows for every other one the clock up to which that
// one's accesses happen before its own next ones. The copy engine is as many threads as there are mbarriers: copies
// that complete on one mbarrier are ordered for who waits for it.
//
// Threads that left the same barrier know the same, so they share one snapshot; a barrier of n threads costs O(n).
#pragma once
#include "runtime.hpp"

namespace sim {

constexpr u32 COPY_THREADS = 64;
constexpr u32 CLOCK_BITS = 21, CLOCK_MASK = (1 << CLOCK_BITS) - 1;

struct Snapshot {
  u32 references;
  Snapshot* next_free;
  u32 clock[MOST_THREADS + COPY_THREADS];
};

// What happened before: the clocks of a snapshot, and one thread's own clock on top.
struct Actor {
  u32 lin, clock;
  const Snapshot* known;
  u32 tag() const { return lin << CLOCK_BITS | clock; }
  bool after(u32 tag) const {
    u32 other = tag >> CLOCK_BITS, when = tag & CLOCK_MASK;
    return other == lin ? when <= clock : when <= known->clock[other];
  }
};
inline Actor actor(const Thread* t) { return Actor{t->lin, t->clock, t->known}; }

// The smallest clock of the running block; an older tag is from a block before it.
extern u32 first_clock;
// Begins a block; true when clocks begin anew, so that old tags must be cleared.
bool begin_order();
void end_order();

// All of `list`, and `last` unless null, meet: each knows what any of them knew.
void meet(Thread* list, Thread* last);

// What an mbarrier passes on: arrivals of the running phase, and those of the last complete one.
struct Relay {
  u32 copy_lin = 0, copy_clock = 0;  // of the copy engine, in the running phase
  Snapshot *arrived = nullptr, *released = nullptr;
  // What the last thread that arrived knew; what the last one that waited knew before and after it, and what `released`
  // was then.
  Snapshot *last_arrival = nullptr, *last_before = nullptr, *last_after = nullptr, *last_released = nullptr;
};
void begin_relay(Relay& relay, u32 number);
void end_relay(Relay& relay);
// A step of the thread's own clock.
void advance(Thread* t);
void arrive(Relay& relay, Thread* t);
void complete_phase(Relay& relay);
void acquire(Thread* t, Relay& relay);

Snapshot* hold(Snapshot* s);
void drop(Snapshot* s);

}  // namespace sim
