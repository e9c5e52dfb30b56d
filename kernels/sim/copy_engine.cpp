// mbarriers and tiled copies from global to shared memory (TMA, cp.async.bulk.tensor).
//
// A copy that is issued waits in a list; the scheduler lets copies land at random moments, in random order.
#include "copy_engine.hpp"

#include <stdio.h>
#include <stdlib.h>

#include "order.hpp"
#include "report.hpp"
#include "watch.hpp"

namespace sim {

struct MBarrier {
  u32 address = 0;
  u32 count = 0, pending = 0;  // arrivals a phase needs, and those that are still missing
  i64 bytes = 0;               // expected, less those that came
  u32 phase = 0;               // parity of the running phase
  u32 init_tag = 0;            // who initialised it, and when
  bool fenced = false;         // whether that thread then executed a fence for the copy engine
  ThreadList waiting;
  Relay relay;
};

struct Copy {
  void* to;
  TensorMap map;
  MBarrier* barrier;
  int at[3];
  Actor issuer;  // holds a reference to its snapshot
  const void* code;  // of the call
};

static std::vector<MBarrier*> mbarriers;  // of the running block; the first `used` are in use
static u32 used = 0;
static u16 number_at[SHARED_BYTES / 8];  // by address / 8: the place in `mbarriers`, plus 1
static std::vector<Copy> copies;

void begin_copies() {
  for (u32 i = 0; i < used; i++) {
    number_at[mbarriers[i]->address / 8] = 0;
    end_relay(mbarriers[i]->relay);
  }
  used = 0;
  copies.clear();
}

void end_copies(bool finished) {
  if (finished && !copies.empty()) {
    problem(LAUNCH_FAILED, "the block returns while %zu copies are in flight", copies.size());
  }
  for (Copy& copy : copies) drop((Snapshot*)copy.issuer.known);
  copies.clear();
}

bool copies_in_flight() { return !copies.empty(); }

static u32 mbarrier_address(const u64* barrier) {
  u32 address = shared_address(barrier);
  u32 limit = address < STATIC_SHARED ? block.dynamic_bytes : (u32)STATIC_SHARED + block.static_bytes;
  if (address % 8 || address + 8 > limit) {
    problem(ILLEGAL_ADDRESS, "an mbarrier at shared address %u, outside of shared memory or not aligned to 8", address);
    abandon();
  }
  return address;
}

static MBarrier& find(const u64* barrier) {
  u32 number = number_at[mbarrier_address(barrier) / 8];
  if (!number) {
    problem(LAUNCH_FAILED, "an mbarrier is used before mbarrier_init");
    abandon();
  }
  MBarrier& b = *mbarriers[number - 1];
  if (watching && !actor(current).after(b.init_tag)) {
    problem(LAUNCH_FAILED, "an mbarrier is used without a barrier between mbarrier_init and this thread");
    b.init_tag = current->tag;
  }
  return b;
}

static void complete_if_done(MBarrier& b) {
  if (b.pending || b.bytes) return;
  b.phase ^= 1;
  b.pending = b.count;
  complete_phase(b.relay);
  make_ready(b.waiting);
}

static void arrive_at(MBarrier& b) {
  if (!b.pending) {
    problem(LAUNCH_FAILED, "more arrivals at an mbarrier than the %u it was initialised for", b.count);
    abandon();
  }
  arrive(b.relay, current);
  b.pending--;
  complete_if_done(b);
}

// One tile; elements outside of the tensor are zero.
static void land(const Copy& copy) {
  const TensorMap& map = copy.map;
  u32 to = shared_address(copy.to);
  u32 tag = copy.barrier->relay.copy_lin << CLOCK_BITS | copy.barrier->relay.copy_clock;
  i64 first = copy.at[0], last = first + map.box[0], size = (i64)map.size[0];
  i64 inside_first = first < 0 ? 0 : first, inside_last = last < size ? last : size;
  u32 row_bytes = map.box[0] * map.element_bytes;
  u8 row[256 * 8];
  for (u32 z = 0; z < map.box[2]; z++) {
    for (u32 y = 0; y < map.box[1]; y++) {
      i64 at1 = copy.at[1] + (i64)y, at2 = copy.at[2] + (i64)z;
      bool inside = at1 >= 0 && at1 < (i64)map.size[1] && at2 >= 0 && at2 < (i64)map.size[2];
      memset(row, 0, row_bytes);
      if (inside && inside_first < inside_last) {
        const u8* from = map.base + at1 * (i64)map.stride[0] + at2 * (i64)map.stride[1] +
                         inside_first * map.element_bytes;
        u32 bytes = (u32)(inside_last - inside_first) * map.element_bytes;
        copy_engine_read(from, bytes, copy.code);
        memcpy(row + (inside_first - first) * map.element_bytes, from, bytes);
      }
      u32 address = to + (z * map.box[1] + y) * row_bytes;
      copy_engine_write(address, row_bytes, copy.issuer, tag, copy.code);
      if (map.swizzle_bytes == 128) {
        for (u32 i = 0; i < row_bytes; i += 16) memcpy(shared_pointer(swz128(address + i)), row + i, 16);
      } else {
        memcpy(shared_pointer(address), row, row_bytes);
      }
    }
  }
  copy.barrier->bytes -= (i64)row_bytes * map.box[1] * map.box[2];
  complete_if_done(*copy.barrier);
}

void land_one_copy() {
  Thread* interrupted = current;
  size_t i = random_number() % copies.size();
  Copy copy = copies[i];
  copies[i] = copies.back();
  copies.pop_back();
  current = thread(copy.issuer.lin);  // reports name the thread that issued the copy
  land(copy);
  current = interrupted;
  drop((Snapshot*)copy.issuer.known);
}

static void issue_copy(void* to, const TensorMap* map, u64* barrier, u32 rank, int c0, int c1, int c2,
                       const void* code) {
  MBarrier& b = find(barrier);
  u32 address = shared_address(to), bytes = map->box[0] * map->element_bytes * map->box[1] * map->box[2];
  u64 limit = address < STATIC_SHARED ? block.dynamic_bytes : STATIC_SHARED + block.static_bytes;
  const char* wrong = nullptr;
  if (map->magic != TENSOR_MAP_MAGIC) wrong = "its tensor map is not one of cuTensorMapEncodeTiled";
  else if (map->rank != rank) wrong = "its coordinates are of another rank than the tensor map";
  else if (address % 128) wrong = "its destination is not aligned to 128 bytes";
  else if (map->swizzle_bytes && address % 1024) wrong = "its destination is swizzled and not aligned to 1024 bytes";
  else if (map->swizzle_bytes && map->box[0] * map->element_bytes != 128) {
    wrong = "the simulator swizzles only boxes whose rows have 128 bytes";
  } else if ((u64)address + bytes > limit) {
    wrong = "its destination ends outside of shared memory";
  } else if (!b.fenced && watching) {
    wrong = "no fence_mbarrier_init follows the mbarrier's mbarrier_init";
  }
  if (wrong) {
    fault(ILLEGAL_ADDRESS, code, "a tile is copied, but %s", wrong);
  }
  Actor issuer = actor(current);
  hold(current->known);
  copies.push_back(Copy{to, *map, &b, {c0, c1, c2}, issuer, code});
}

}  // namespace sim

using namespace sim;

u32 shared_address(const void* p) {
  u64 dynamic = (u64)((const u8*)p - region), fixed = (u64)((const u8*)p - block.static_shared);
  if (dynamic < STATIC_SHARED) return (u32)dynamic;
  if (fixed < block.static_bytes) return (u32)(STATIC_SHARED + fixed);
  problem(ILLEGAL_ADDRESS, "%p is not an address of shared memory", p);
  abandon();
}

void mbarrier_init(u64* barrier, u32 count) {
  u32 address = mbarrier_address(barrier);
  if (number_at[address / 8]) {
    problem(LAUNCH_FAILED, "an mbarrier is initialised twice");
    abandon();
  }
  if (!count) {
    problem(LAUNCH_FAILED, "an mbarrier of no arrivals");
    abandon();
  }
  if (used == mbarriers.size()) mbarriers.push_back(new MBarrier);
  MBarrier& b = *mbarriers[used];
  b = MBarrier();
  b.address = address;
  b.count = b.pending = count;
  b.init_tag = current->tag;
  begin_relay(b.relay, used);
  number_at[address / 8] = (u16)++used;
}

void fence_mbarrier_init() {
  for (u32 i = 0; i < used; i++) {
    if (mbarriers[i]->init_tag >> CLOCK_BITS == current->lin) mbarriers[i]->fenced = true;
  }
}

void mbarrier_arrive(u64* barrier) { arrive_at(find(barrier)); }

void mbarrier_expect(u64* barrier, u32 bytes) {
  MBarrier& b = find(barrier);
  b.bytes += bytes;
  arrive_at(b);
}

void mbarrier_wait(u64* barrier, u32 parity) {
  MBarrier& b = find(barrier);
  while (b.phase == (parity & 1)) {
    b.waiting.push(current);
    block_current("mbarrier_wait");
  }
  acquire(current, b.relay);
}

void prefetch_map(const TensorMap* map) {
  if (map->magic == TENSOR_MAP_MAGIC) return;
  problem(LAUNCH_FAILED, "prefetch_map of what is not a tensor map");
}
void copy_tile_2d(void* to, const TensorMap* map, u64* barrier, int c0, int c1) {
  issue_copy(to, map, barrier, 2, c0, c1, 0, __builtin_return_address(0));
}
void copy_tile_3d(void* to, const TensorMap* map, u64* barrier, int c0, int c1, int c2) {
  issue_copy(to, map, barrier, 3, c0, c1, c2, __builtin_return_address(0));
}
