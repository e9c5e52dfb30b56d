// Vector clocks: see order.hpp.
#include "order.hpp"

namespace sim {

u32 first_clock = 1;
static u32 next_clock = 1;
static Snapshot* free_snapshots = nullptr;
static u32 width = 0;  // entries of the running block: its threads, rounded up, then the copy engine at the fixed end

static Snapshot* new_snapshot() {
  Snapshot* s = free_snapshots;
  if (s) free_snapshots = s->next_free;
  else s = (Snapshot*)malloc(sizeof(Snapshot));
  s->references = 1;
  return s;
}
Snapshot* hold(Snapshot* s) {
  s->references++;
  return s;
}
void drop(Snapshot* s) {
  if (--s->references) return;
  s->next_free = free_snapshots;
  free_snapshots = s;
}

static void copy_clocks(u32* __restrict to, const u32* __restrict from) {
  memcpy(to, from, width * sizeof(u32));
  memcpy(to + MOST_THREADS, from + MOST_THREADS, COPY_THREADS * sizeof(u32));
}
static void join_clocks(u32* __restrict to, const u32* __restrict from) {
  for (u32 i = 0; i < width; i++) to[i] = to[i] > from[i] ? to[i] : from[i];
  for (u32 i = MOST_THREADS; i < MOST_THREADS + COPY_THREADS; i++) to[i] = to[i] > from[i] ? to[i] : from[i];
}

void advance(Thread* t) {
  if (t->clock < CLOCK_MASK) t->clock++;  // at the end of the clocks races are missed, not invented
  if (t->clock >= next_clock) next_clock = t->clock + 1;
  t->tag = t->lin << CLOCK_BITS | t->clock;
}

bool begin_order() {
  bool anew = next_clock > CLOCK_MASK / 2;
  if (anew) next_clock = 1;
  first_clock = next_clock++;
  width = (block.count + 7) & ~7u;
  Snapshot* root = new_snapshot();
  for (u32& clock : root->clock) clock = first_clock - 1;
  for (u32 i = 0; i < block.count; i++) {
    Thread* t = thread(i);
    t->clock = first_clock;
    t->tag = t->lin << CLOCK_BITS | t->clock;
    t->known = hold(root);
    t->fenced = 0;
  }
  drop(root);
  return anew;
}
void end_order() {
  for (u32 i = 0; i < block.count; i++) {
    if (thread(i)->known) drop(thread(i)->known);
    thread(i)->known = nullptr;
  }
}

void meet(Thread* list, Thread* last) {
  Snapshot* met = new_snapshot();
  const Snapshot* joined = nullptr;  // neighbours in the list mostly share their snapshot
  auto join = [&](Thread* t) {
    if (t->known == joined) return;
    if (joined) join_clocks(met->clock, t->known->clock);
    else copy_clocks(met->clock, t->known->clock);
    joined = t->known;
  };
  for (Thread* t = list; t; t = t->next) join(t);
  if (last) join(last);
  auto enter = [&](Thread* t) {
    met->clock[t->lin] = t->clock;
    drop(t->known);
    t->known = hold(met);
    advance(t);
  };
  for (Thread* t = list; t; t = t->next) enter(t);
  if (last) enter(last);
  drop(met);
}

void begin_relay(Relay& relay, u32 number) {
  relay = Relay();
  relay.copy_lin = MOST_THREADS + number % COPY_THREADS;
  relay.copy_clock = first_clock;
  relay.arrived = new_snapshot();
  for (u32& clock : relay.arrived->clock) clock = first_clock - 1;
  relay.released = hold(relay.arrived);
}
void end_relay(Relay& relay) {
  if (relay.arrived) drop(relay.arrived);
  if (relay.released) drop(relay.released);
  if (relay.last_after) drop(relay.last_after);
  if (relay.last_before) drop(relay.last_before);
  if (relay.last_arrival) drop(relay.last_arrival);
  if (relay.last_released) drop(relay.last_released);
  relay = Relay();
}

// `arrived` may be shared with `released`: makes it the relay's own.
static void own_arrived(Relay& relay) {
  if (relay.arrived->references == 1) return;
  Snapshot* copy = new_snapshot();
  copy_clocks(copy->clock, relay.arrived->clock);
  drop(relay.arrived);
  relay.arrived = copy;
}

void arrive(Relay& relay, Thread* t) {
  own_arrived(relay);
  if (relay.last_arrival != t->known) {
    join_clocks(relay.arrived->clock, t->known->clock);
    if (relay.last_arrival) drop(relay.last_arrival);
    relay.last_arrival = hold(t->known);
  }
  if (relay.arrived->clock[t->lin] < t->clock) relay.arrived->clock[t->lin] = t->clock;
  advance(t);
}

void complete_phase(Relay& relay) {
  own_arrived(relay);
  relay.arrived->clock[relay.copy_lin] = relay.copy_clock;
  if (relay.copy_clock < CLOCK_MASK) relay.copy_clock++;
  if (relay.copy_clock >= next_clock) next_clock = relay.copy_clock + 1;
  drop(relay.released);
  relay.released = hold(relay.arrived);
}

void acquire(Thread* t, Relay& relay) {
  // The threads of a warp mostly know the same before they wait: they get the same afterwards.
  bool again = relay.last_before == t->known && relay.last_released == relay.released;
  if (!again) {
    Snapshot* after = new_snapshot();
    copy_clocks(after->clock, t->known->clock);
    join_clocks(after->clock, relay.released->clock);
    if (relay.last_before) drop(relay.last_before);
    if (relay.last_after) drop(relay.last_after);
    if (relay.last_released) drop(relay.last_released);
    relay.last_before = hold(t->known);
    relay.last_after = after;
    relay.last_released = hold(relay.released);
  }
  drop(t->known);
  t->known = hold(relay.last_after);
}

}  // namespace sim
