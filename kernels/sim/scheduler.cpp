// Threads as fibers: switching, barriers, shuffles, and the loop over the blocks of a grid.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>

#include "copy_engine.hpp"
#include "order.hpp"
#include "report.hpp"
#include "watch.hpp"

// Saves the registers that a call preserves on the stack in use, and goes on with another stack (x86-64, System V).
extern "C" void sim_switch(void** save_stack_pointer, void* stack_pointer);
asm(R"(
.text
.globl sim_switch
.hidden sim_switch
sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace sim {

u8* region = nullptr;
u64 device_bytes = 0;
Thread threads[MOST_THREADS];
Thread* current = nullptr;
Block block;
Kernel* running = nullptr;

static ThreadList ready;
static void* main_stack_pointer = nullptr;
static void** parameters_of_launch = nullptr;
static u64 random_state = 1;
static bool abandoned = false;

std::vector<Kernel*>& kernels() {
  static std::vector<Kernel*> all;
  return all;
}
Kernel::Kernel(const char* name, int most_threads, void (*call)(void**), const u32* parameters, u8* static_shared,
               u8* static_end)
    : name(name), most_threads(most_threads), call(call), parameters(parameters), static_shared(static_shared),
      static_end(static_end) {
  if ((u64)(static_end - static_shared) > SHARED_BYTES - STATIC_SHARED) {
    fprintf(stderr, "simulator: the source of `%s` has %zu bytes of static shared memory, too many\n", name,
            (size_t)(static_end - static_shared));
    abort();
  }
  kernels().push_back(this);
}

u64 random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

// ---- switching

void abandon() {
  abandoned = true;
  void* unused;
  sim_switch(&unused, main_stack_pointer);
  abort();
}

// The next thread to run; lets copies land, all of them if nothing else can happen. Null when nothing can.
static Thread* next_ready() {
  if (copies_in_flight() && random_number() % 16 == 0) land_one_copy();
  while (!ready.first && copies_in_flight()) land_one_copy();
  return ready.first ? ready.pop() : nullptr;
}

static void report_deadlock() {
  std::map<std::string, int> waiting;
  for (u32 i = 0; i < block.count; i++) {
    if (!threads[i].done) waiting[threads[i].waits_for]++;
  }
  std::string text;
  for (auto& [what, count] : waiting) {
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " threads in " + what;
  }
  current = nullptr;
  problem(LAUNCH_TIMEOUT, "deadlock: %s", text.c_str());
}

static void switch_away() {
  Thread* self = current;
  Thread* next = next_ready();
  if (next == self) return;
  block.switches++;
  if (!next) {
    report_deadlock();
    abandon();
  }
  current = next;
  sim_switch(&self->stack_pointer, next->stack_pointer);
}

void block_current(const char* what) {
  current->waits_for = what;
  switch_away();
}
void make_ready(ThreadList& list) {
  if (!list.first) return;
  if (ready.last) ready.last->next = list.first;
  else ready.first = list.first;
  ready.last = list.last;
  list = ThreadList();
}
void yield() {
  ready.push(current);
  block_current("yield");
}

// ---- barriers

struct Barrier {
  u32 arrived = 0, expected = 0, generation = 0;
  u32 any = 0, all = 1, count = 0, result[3] = {0, 0, 0};  // of predicates: running, and of the last generation
  ThreadList waiting;

  // `last` is the thread that completes it, null when that is one that returned.
  void release(Thread* last) {
    meet(waiting.first, last);
    result[0] = any;
    result[1] = all;
    result[2] = count;
    any = 0;
    all = 1;
    count = 0;
    arrived = 0;
    generation++;
    make_ready(waiting);
  }
  void wait(const char* what, int predicate = 0) {
    any |= predicate != 0;
    all &= predicate != 0;
    count += predicate != 0;
    if (++arrived >= expected) {
      release(current);
      if (random_number() & 1) yield();
      return;
    }
    waiting.push(current);
    block_current(what);
  }
};

static Barrier barriers[16];

// A barrier of some lanes of a warp, with what they show each other. Slots alternate by generation: a lane can write
// its slot again only after all have passed the next barrier, hence read the previous one.
struct WarpBarrier {
  u32 mask = 0;
  Barrier barrier;
  u64 slot[2][32];
};
struct Warp {
  u32 lanes = 0;  // that exist and have not returned
  u32 used = 0;
  std::vector<WarpBarrier*> groups;
};
static Warp warps[MOST_THREADS / 32];

static WarpBarrier& warp_barrier(u32 mask) {
  Warp& warp = warps[current->lin >> 5];
  if (!(mask >> (current->lin & 31) & 1)) {
    problem(LAUNCH_FAILED, "a lane synchronises with mask %08x, which it is not in", mask);
    abandon();
  }
  for (u32 i = 0; i < warp.used; i++) {
    if (warp.groups[i]->mask == mask) return *warp.groups[i];
  }
  if (warp.used == warp.groups.size()) warp.groups.push_back(new WarpBarrier);
  WarpBarrier& group = *warp.groups[warp.used++];
  group.mask = mask;
  group.barrier = Barrier();
  return group;
}

static void warp_wait(WarpBarrier& group, const char* what) {
  group.barrier.expected = (u32)__builtin_popcount(group.mask & warps[current->lin >> 5].lanes);
  group.barrier.wait(what);
}

// A thread has returned: who waits only for it goes on.
static void leave_barriers(Thread* t) {
  Barrier& all = barriers[0];
  if (all.arrived && all.arrived >= block.live) all.release(nullptr);
  Warp& warp = warps[t->lin >> 5];
  warp.lanes &= ~(1u << (t->lin & 31));
  for (u32 i = 0; i < warp.used; i++) {
    Barrier& b = warp.groups[i]->barrier;
    if (b.arrived && b.arrived >= (u32)__builtin_popcount(warp.groups[i]->mask & warp.lanes)) b.release(nullptr);
  }
}

int barrier_reduce(Reduce how, int predicate) {
  barriers[0].expected = block.live;
  barriers[0].wait("__syncthreads", predicate);
  return (int)barriers[0].result[(int)how];
}

u64 shuffle(u32 mask, u64 bits, u32 source) {
  WarpBarrier& group = warp_barrier(mask);
  u64* slots = group.slot[group.barrier.generation & 1];
  slots[current->lin & 31] = bits;
  if (!(mask & warps[current->lin >> 5].lanes & 1u << (source & 31))) {
    problem(LAUNCH_FAILED, "a shuffle reads lane %u, which does not take part", source & 31);
    source = current->lin;
  }
  warp_wait(group, "shuffle");
  return slots[source & 31];
}

u32 ballot(u32 mask, int predicate) {
  WarpBarrier& group = warp_barrier(mask);
  u64* slots = group.slot[group.barrier.generation & 1];
  slots[current->lin & 31] = predicate != 0;
  u32 present = mask & warps[current->lin >> 5].lanes, result = 0;
  warp_wait(group, "vote");
  for (u32 lane = 0; lane < 32; lane++) {
    if (present >> lane & 1) result |= (u32)slots[lane] << lane;
  }
  return result;
}

template <class F> static u32 warp_reduce(u32 mask, u32 value, F combine) {
  WarpBarrier& group = warp_barrier(mask);
  u64* slots = group.slot[group.barrier.generation & 1];
  slots[current->lin & 31] = value;
  u32 present = mask & warps[current->lin >> 5].lanes;
  warp_wait(group, "warp reduction");
  u32 result = value;
  for (u32 lane = 0; lane < 32; lane++) {
    if (present >> lane & 1 && lane != (current->lin & 31)) result = combine(result, (u32)slots[lane]);
  }
  return result;
}

// ---- indices

uint3 thread_index() { return current->index; }
uint3 block_index() { return block.index; }
dim3 block_dim() { return block.threads; }
dim3 grid_dim() { return block.grid; }
u32 thread_in_block() { return current->lin; }
u8* dynamic_shared() { return region; }

// ---- running

static void enter_thread() {
  running->call(parameters_of_launch);
  Thread* self = current;
  self->done = true;
  block.live--;
  leave_barriers(self);
  if (!self->open.empty() || !self->groups.empty()) {
    problem(LAUNCH_FAILED, "a thread returns before its products of the tensor cores are done");
  }
  if (block.live) {
    switch_away();
  } else {
    void* unused;
    sim_switch(&unused, main_stack_pointer);
  }
  abort();  // a thread that is done never runs again
}

static void begin_thread(u32 i) {
  Thread& t = threads[i];
  t.lin = i;
  t.index = uint3{i % block.threads.x, i / block.threads.x % block.threads.y,
                  i / (block.threads.x * block.threads.y)};
  t.done = false;
  t.waits_for = "";
  t.open.clear();
  t.groups.clear();
  t.stack = region + STACKS + i * (STACK_BYTES + STACK_GAP);
  void** top = (void**)(t.stack + STACK_BYTES);
  *--top = nullptr;  // the return address of enter_thread
  *--top = (void*)enter_thread;
  for (int k = 0; k < 6; k++) *--top = nullptr;
  t.stack_pointer = top;
}

static void run_block() {
  block.live = block.count;
  abandoned = false;
  for (Barrier& b : barriers) b = Barrier();
  ready = ThreadList();
  for (u32 w = 0; w < (block.count + 31) / 32; w++) {
    u32 lanes = block.count - w * 32;
    warps[w].lanes = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
    warps[w].used = 0;
  }
  for (u32 i = 0; i < block.count; i++) begin_thread(i);
  bool anew = begin_order();
  begin_shared(anew);
  begin_copies();

  // Threads start in ascending or descending order, from a random one on.
  u32 first = (u32)(random_number() % block.count);
  bool descending = random_number() & 1;
  for (u32 i = 0; i < block.count; i++) {
    u32 k = descending ? block.count - 1 - i : i;
    ready.push(&threads[(first + k) % block.count]);
  }
  current = ready.pop();
  sim_switch(&main_stack_pointer, current->stack_pointer);
  current = nullptr;
  end_copies(!abandoned);
  end_order();
}

int run_grid(Kernel& kernel, dim3 grid, dim3 block_threads, u32 dynamic_bytes, void** parameters, u64 seed) {
  running = &kernel;
  parameters_of_launch = parameters;
  begin_reports();
  block.grid = grid;
  block.threads = block_threads;
  block.count = block_threads.x * block_threads.y * block_threads.z;
  block.dynamic_bytes = dynamic_bytes;
  block.static_shared = kernel.static_shared;
  block.static_bytes = (u32)(kernel.static_end - kernel.static_shared);
  begin_launch();
  u64 number = 0;
  for (u32 z = 0; z < grid.z && !launch_error(); z++) {
    for (u32 y = 0; y < grid.y && !launch_error(); y++) {
      for (u32 x = 0; x < grid.x && !launch_error(); x++) {
        block.index = uint3{x, y, z};
        random_state = (seed + 1) * 0x9E3779B97F4A7C15ull + ++number;
        for (int i = 0; i < 3; i++) random_number();
        run_block();
      }
    }
  }
  kernel.launches++;
  end_launch();
  end_reports();
  running = nullptr;
  return launch_error();
}

bool reserve_region(u64 bytes) {
  device_bytes = bytes;
  u64 all = DEVICE_MEMORY + bytes;
  void* p = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return false;
  region = (u8*)p;
  // A stack that overflows ends the process instead of writing to its neighbour.
  for (u32 i = 1; i <= MOST_THREADS; i++) {
    mprotect(region + STACKS + i * (STACK_BYTES + STACK_GAP) - STACK_GAP, STACK_GAP, PROT_NONE);
  }
  return true;
}

u8* shared_pointer(u32 address) {
  return address < STATIC_SHARED ? region + address : block.static_shared + (address - STATIC_SHARED);
}

}  // namespace sim

void __syncthreads() { sim::barrier_reduce(sim::Reduce::Or, 0); }
void __syncwarp(u32 mask) { sim::warp_wait(sim::warp_barrier(mask), "__syncwarp"); }

void named_barrier(int id, int count) {
  using namespace sim;
  if (id < 0 || id > 15 || count <= 0 || count % 32 || (u32)count > block.count) {
    problem(LAUNCH_FAILED, "named barrier %d of %d threads", id, count);
    abandon();
  }
  Barrier& b = barriers[id];
  if (b.arrived && b.expected != (u32)count) {
    problem(LAUNCH_FAILED, "threads wait at barrier %d for %u and for %d threads", id, b.expected, count);
    abandon();
  }
  b.expected = (u32)count;
  b.wait("a named barrier");
}

u32 __reduce_add_sync(u32 mask, u32 value) {
  return sim::warp_reduce(mask, value, [](u32 a, u32 b) { return a + b; });
}
u32 __reduce_min_sync(u32 mask, u32 value) {
  return sim::warp_reduce(mask, value, [](u32 a, u32 b) { return a < b ? a : b; });
}
u32 __reduce_max_sync(u32 mask, u32 value) {
  return sim::warp_reduce(mask, value, [](u32 a, u32 b) { return a > b ? a : b; });
}

void __trap() {
  sim::problem(sim::LAUNCH_FAILED, "__trap");
  sim::abandon();
}
