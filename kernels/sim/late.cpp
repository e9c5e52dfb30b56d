// Late work: what another library of the simulator (nccl.cpp) does on a stream. It may have to wait for other threads,
// so it is done without the lock, and when it is needed: before work that runs behind it, on its stream or on one that
// waits for an event behind it, and when the host waits.
#include <algorithm>
#include <atomic>

#include <string.h>

#include "streams.hpp"
#include "watch.hpp"

namespace sim {

static std::atomic<u64> unfinished{0};

// The first late work that runs before work `number` of `stream`, except that of one stream; false when there is none.
// `looked` has the streams that were searched, with the number up to which.
static bool find(Stream* stream, u64 number, const Stream* except, std::map<const Stream*, u64>& looked,
                 std::pair<Stream*, Late>& found) {
  auto known = looked.emplace(stream, number);
  if (!known.second) {
    if (known.first->second >= number) return false;
    known.first->second = number;
  }
  for (const Wait& w : stream->waits) {
    if (w.number <= number && find(w.other, w.other_number, except, looked, found)) return true;
  }
  if (stream == except) return false;
  for (const Late& l : stream->late) {
    if (l.number > number) continue;
    found = {stream, l};
    return true;
  }
  return false;
}

static bool settle_up_to(Stream* stream, u64 number, bool may_wait, const Stream* except = nullptr) {
  while (unfinished) {
    std::pair<Stream*, Late> found;
    std::map<const Stream*, u64> looked;
    {
      std::lock_guard<std::recursive_mutex> guard(lock);
      if (!find(stream, number, except, looked, found)) return true;
    }
    Late& late = found.second;
    if (!late.finish(late.argument, may_wait)) return false;
    std::lock_guard<std::recursive_mutex> guard(lock);
    std::vector<Late>& list = found.first->late;
    auto same = [&](const Late& l) { return l.number == late.number; };
    auto there = std::find_if(list.begin(), list.end(), same);
    if (there == list.end()) continue;  // another thread was faster
    list.erase(there);
    unfinished--;
  }
  return true;
}

static Stream* find_stream(void* handle) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  return stream_of(handle);
}

bool settle(void* handle, bool may_wait) {
  Stream* stream = unfinished ? find_stream(handle) : nullptr;
  return !stream || settle_up_to(stream, ~0ull, may_wait);
}
bool settle_event(Event* event, bool may_wait) {
  return !event->stream || settle_up_to(event->stream, event->number, may_wait);
}
void settle_device() {
  if (!unfinished) return;
  std::vector<Stream*> all;
  {
    std::lock_guard<std::recursive_mutex> guard(lock);
    for (Stream* s : streams) {
      if (s->device == current_device()) all.push_back(s);
    }
  }
  for (Stream* s : all) settle_up_to(s, ~0ull, true);
}

}  // namespace sim

using namespace sim;

// ---- for nccl.cpp

// What `stream` waits for, except its own late work, is done: called before more of that is issued.
API smelt_sim_before_late(void* handle) {
  Stream* stream = find_stream(handle);
  if (!stream) return INVALID_HANDLE;
  settle_up_to(stream, ~0ull, true, stream);
  return SUCCESS;
}

// Issues work to a stream. `finish` says whether it is done; it is called by any thread, possibly by several, and waits
// when it may.
API smelt_sim_late(void* handle, int (*finish)(void* argument, int may_wait), void* argument) {
  BEGIN;
  Stream* stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  stream->issued++;
  stream->asked = false;
  stream->late.push_back(Late{stream->issued, finish, argument});
  unfinished++;
  return SUCCESS;
}

// Whether device memory may be used by what is issued to the stream next.
API smelt_sim_check(const char* what, void* p, size_t bytes, void* handle) {
  BEGIN;
  Stream* stream = stream_of(handle);
  if (!stream) return INVALID_HANDLE;
  if (int error = check_device(what, (u64)p, bytes)) return error;
  return check_order(what, (u64)p, stream);
}

// What is written late holds NaN until then.
API smelt_sim_poison(void* p, size_t bytes) {
  BEGIN;
  memset(p, 0xff, bytes);
  mark_allocated(p, bytes);
  return SUCCESS;
}

// Late work's own accesses. The memory may have been freed by now.
API smelt_sim_move(void* to, const void* from, size_t bytes) {
  BEGIN;
  if (int error = check_device("late work that reads", (u64)from, bytes)) return error;
  if (int error = check_device("late work that writes", (u64)to, bytes)) return error;
  memmove(to, from, bytes);
  mark_copied(to, from, bytes);
  return SUCCESS;
}
API smelt_sim_load(void* to_host, const void* from, size_t bytes) {
  BEGIN;
  if (int error = check_device("late work that reads", (u64)from, bytes)) return error;
  memcpy(to_host, from, bytes);
  return SUCCESS;
}
API smelt_sim_store(void* to, const void* from_host, size_t bytes) {
  BEGIN;
  if (int error = check_device("late work that writes", (u64)to, bytes)) return error;
  memcpy(to, from_host, bytes);
  mark_written(to, bytes);
  return SUCCESS;
}
