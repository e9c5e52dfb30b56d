// libnccl.so.2 for machines without a GPU: the ranks of a communicator are threads of one process, each with a
// simulated device of its own. It has what smelt calls.
//
// An operation happens as late as it may: when its stream, or one that waits for it, has more to do, and all ranks
// that take part have come to it. Until then its result holds NaN, and what it reads must stay. A rank's operations
// happen in the order of their issue, as in one stream; those of a group all at once.
//
// Where NVIDIA's library would hang (ranks that call different operations, or wait for one that is gone) or give
// nonsense (counts that do not fit), this one fails the communicator for all ranks: ncclCommGetAsyncError says so, and
// ncclGetLastError why.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
int cuCtxGetDevice(int* device);
int smelt_sim_before_late(void* stream);
int smelt_sim_late(void* stream, int (*finish)(void* argument, int may_wait), void* argument);
int smelt_sim_check(const char* what, const void* p, size_t bytes, void* stream);
int smelt_sim_poison(void* p, size_t bytes);
int smelt_sim_move(void* to, const void* from, size_t bytes);
int smelt_sim_load(void* to_host, const void* from, size_t bytes);
int smelt_sim_store(void* to, const void* from_host, size_t bytes);
}

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Code { SUCCESS = 0, CUDA_ERROR = 1, SYSTEM_ERROR = 2, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5,
            REMOTE_ERROR = 6 };
enum Type { BYTES = 1, U32 = 3, F32 = 7, F64 = 8, BF16 = 9 };
enum Operation { SUM = 0, MAX = 2, MEAN = 4 };
enum Kind { SEND, RECEIVE, ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER };
const char* const NAMES[] = {"send", "receive", "all-reduce", "all-gather", "reduce-scatter"};

struct Part {
  Kind kind;
  const uint8_t* from;
  uint8_t* to;
  size_t count;
  int type, operation, peer;
  bool done;
};
struct Communicator;
struct Launch {
  Communicator* of;
  void* stream;
  std::vector<Part> parts;  // one, or sends and receives
  bool done = false;
};
struct World {
  int size;
  std::vector<Communicator*> ranks;
  int error = 0;
  std::string why;
  bool complete = false;  // all ranks have come
};
struct Communicator {  // never freed, so that one that is used after its end is seen
  World* world;
  int rank, device;
  bool ended = false;
  std::deque<Launch*> queue;
};

// Taken before the driver's.
std::mutex lock;
std::condition_variable changed;
std::map<uint64_t, World*> worlds;  // by the number in the id; null before the first rank has come
thread_local std::string last_error;
thread_local int depth = 0;  // of groups
thread_local std::vector<Launch*> group;

int refuse(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
int refuse(int code, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  last_error = text;
  return code;
}

size_t number_from(const char* name, size_t otherwise) {
  const char* text = getenv(name);
  return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}
// Seconds that anybody waits, of SMELT_SIM_NCCL_SECONDS.
std::chrono::steady_clock::time_point deadline() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(number_from("SMELT_SIM_NCCL_SECONDS", 10));
}

// 0 for a type that is not simulated.
size_t size_of(int type) {
  switch (type) {
    case BYTES: return 1;
    case BF16: return 2;
    case U32: case F32: return 4;
    case F64: return 8;
    default: return 0;
  }
}

void fail(World& w, int code, const std::string& why) {
  if (!w.error) {
    w.error = code;
    w.why = why;
  }
  for (Communicator* c : w.ranks) {
    if (!c) continue;
    for (Launch* l : c->queue) l->done = true;
    c->queue.clear();
  }
  changed.notify_all();
}

std::string describe(const Communicator& c, const Part& p) {
  std::string text = "rank " + std::to_string(c.rank) + " calls " + NAMES[p.kind] + " of " + std::to_string(p.count) +
                     " elements of type " + std::to_string(p.type);
  if (p.kind == SEND) text += " to rank " + std::to_string(p.peer);
  if (p.kind == RECEIVE) text += " from rank " + std::to_string(p.peer);
  return text;
}

// ---- arithmetic: in the order of the ranks, rounded to the type at each step

float of_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <typename T> T combine(T a, T b, int operation) { return operation == MAX ? (a < b ? b : a) : T(a + b); }

template <typename T> void reduce_as(std::vector<uint8_t>& into, const std::vector<uint8_t>& more, int operation) {
  for (size_t at = 0; at < into.size(); at += sizeof(T)) {
    T a, b;
    memcpy(&a, &into[at], sizeof a);
    memcpy(&b, &more[at], sizeof b);
    a = combine(a, b, operation);
    memcpy(&into[at], &a, sizeof a);
  }
}
void reduce_bf16(std::vector<uint8_t>& into, const std::vector<uint8_t>& more, int operation) {
  for (size_t at = 0; at < into.size(); at += 2) {
    uint16_t a, b;
    memcpy(&a, &into[at], 2);
    memcpy(&b, &more[at], 2);
    a = to_bf16(combine(of_bf16(a), of_bf16(b), operation));
    memcpy(&into[at], &a, 2);
  }
}
void divide(std::vector<uint8_t>& values, int type, int by) {
  for (size_t at = 0; at < values.size(); at += size_of(type)) {
    float single;
    double whole;
    uint16_t half;
    if (type == F32) {
      memcpy(&single, &values[at], 4);
      single /= (float)by;
      memcpy(&values[at], &single, 4);
    } else if (type == F64) {
      memcpy(&whole, &values[at], 8);
      whole /= by;
      memcpy(&values[at], &whole, 8);
    } else {
      memcpy(&half, &values[at], 2);
      half = to_bf16(of_bf16(half) / (float)by);
      memcpy(&values[at], &half, 2);
    }
  }
}

// The reduction of `bytes` from byte `at` on of what every rank's front operation reads.
bool reduce(World& w, size_t at, size_t bytes, std::vector<uint8_t>& result) {
  std::vector<uint8_t> more(bytes);
  const Part& first = w.ranks[0]->queue.front()->parts[0];
  for (Communicator* c : w.ranks) {
    if (smelt_sim_load(more.data(), c->queue.front()->parts[0].from + at, bytes)) return false;
    if (c->rank == 0) result = more;
    else if (first.type == F32) reduce_as<float>(result, more, first.operation);
    else if (first.type == F64) reduce_as<double>(result, more, first.operation);
    else if (first.type == U32) reduce_as<uint32_t>(result, more, first.operation);
    else reduce_bf16(result, more, first.operation);
  }
  if (first.operation == MEAN) divide(result, first.type, w.size);
  return true;
}

// ---- what happens

void end_front(Communicator* c) {
  c->queue.front()->done = true;
  c->queue.pop_front();
}

// When all ranks have come to a collective operation. False when nothing could be done.
bool collective(World& w) {
  for (Communicator* c : w.ranks) {
    if (!c || c->queue.empty() || c->queue.front()->parts[0].kind < ALL_REDUCE) return false;
  }
  const Part& p = w.ranks[0]->queue.front()->parts[0];
  for (Communicator* c : w.ranks) {
    const Part& q = c->queue.front()->parts[0];
    if (q.kind == p.kind && q.count == p.count && q.type == p.type && q.operation == p.operation) continue;
    fail(w, INVALID_USAGE, describe(*w.ranks[0], p) + ", but " + describe(*c, q));
    return false;
  }
  size_t bytes = p.count * size_of(p.type);
  bool good = true;
  std::vector<uint8_t> values;
  if (p.kind == ALL_REDUCE) good = reduce(w, 0, bytes, values);
  for (Communicator* c : w.ranks) {
    uint8_t* to = c->queue.front()->parts[0].to;
    if (p.kind == ALL_GATHER) {
      for (Communicator* other : w.ranks) {
        good = good && !smelt_sim_move(to + (size_t)other->rank * bytes, other->queue.front()->parts[0].from, bytes);
      }
      continue;
    }
    if (p.kind == REDUCE_SCATTER) good = good && reduce(w, (size_t)c->rank * bytes, bytes, values);
    good = good && !smelt_sim_store(to, values.data(), bytes);
  }
  if (!good) {
    fail(w, CUDA_ERROR, describe(*w.ranks[0], p) + ", but memory was freed before");
    return false;
  }
  for (Communicator* c : w.ranks) end_front(c);
  return true;
}

// Sends of a rank's front operation to receives of its peers' front operations, in order.
bool exchange(World& w, Communicator* c) {
  bool moved = false;
  for (Part& p : c->queue.front()->parts) {
    if (p.kind != SEND || p.done) continue;
    Communicator* peer = w.ranks[(size_t)p.peer];
    if (!peer || peer->queue.empty()) continue;
    for (Part& q : peer->queue.front()->parts) {
      if (q.kind != RECEIVE || q.done || q.peer != c->rank) continue;
      if (q.count != p.count || q.type != p.type) {
        fail(w, INVALID_USAGE, describe(*c, p) + ", but " + describe(*peer, q));
        return false;
      }
      if (smelt_sim_move(q.to, p.from, p.count * size_of(p.type))) {
        fail(w, CUDA_ERROR, describe(*c, p) + ", but memory was freed before");
        return false;
      }
      p.done = q.done = moved = true;
      break;
    }
  }
  return moved;
}
bool all_done(const Launch& l) {
  for (const Part& p : l.parts) {
    if (!p.done) return false;
  }
  return true;
}

void progress(World& w) {
  bool moved = true, any = false;
  while (moved && !w.error) {
    moved = collective(w);
    for (Communicator* c : w.ranks) {
      if (w.error || !c || c->queue.empty()) continue;
      moved |= exchange(w, c);
    }
    for (Communicator* c : w.ranks) {
      if (!w.error && c && !c->queue.empty() && all_done(*c->queue.front())) end_front(c);
    }
    any |= moved;
  }
  if (any) changed.notify_all();
}

// The lowest rank that `l` still waits for and that has left; -1 if there is none.
int gone(const World& w, const Launch& l) {
  for (const Communicator* c : w.ranks) {
    if (!c || !c->ended || !c->queue.empty()) continue;
    for (const Part& p : l.parts) {
      if (!p.done && (p.kind >= ALL_REDUCE || p.peer == c->rank)) return c->rank;
    }
  }
  return -1;
}

int finish(void* argument, int may_wait) {
  Launch* l = (Launch*)argument;
  World& w = *l->of->world;
  std::unique_lock<std::mutex> guard(lock);
  auto end = deadline();
  for (;;) {
    if (!l->done) progress(w);
    if (l->done) return 1;
    if (int rank = gone(w, *l); rank >= 0) {
      fail(w, REMOTE_ERROR, describe(*l->of, l->parts[0]) + ", but rank " + std::to_string(rank) + " has left");
      return 1;
    }
    if (!may_wait) return 0;
    if (changed.wait_until(guard, end) == std::cv_status::timeout && !l->done) {
      fail(w, INTERNAL_ERROR, describe(*l->of, l->parts[0]) + ", and waits for ever");
    }
  }
}

// Whether an operation before this one, that has not happened yet, uses the bytes. (Within a group nothing overlaps.)
bool in_use(const Communicator* c, const uint8_t* p, size_t bytes) {
  std::lock_guard<std::mutex> guard(lock);
  for (const Launch* l : c->queue) {
    for (const Part& q : l->parts) {
      size_t most = q.count * size_of(q.type) * (size_t)c->world->size;
      if (q.from && q.from < p + bytes && p < q.from + most) return true;
      if (q.to && q.to < p + bytes && p < q.to + most) return true;
    }
  }
  return false;
}

int issue(Launch* l) {
  if (int error = smelt_sim_before_late(l->stream)) return refuse(CUDA_ERROR, "the stream: error %d", error);
  {
    std::lock_guard<std::mutex> guard(lock);
    if (l->of->world->error) {  // those who look for errors see it
      l->done = true;
      return SUCCESS;
    }
    l->of->queue.push_back(l);
    changed.notify_all();
  }
  if (int error = smelt_sim_late(l->stream, finish, l)) return refuse(CUDA_ERROR, "the stream: error %d", error);
  return SUCCESS;
}

int call(Communicator* c, Part p, size_t read, size_t written, void* stream) {
  const char* name = NAMES[p.kind];
  if (!c || c->ended) return refuse(INVALID_ARGUMENT, "%s: the communicator has ended", name);
  size_t bytes = size_of(p.type);
  if (!bytes) return refuse(INVALID_ARGUMENT, "%s: the type %d is not simulated", name, p.type);
  if (p.peer < 0 || p.peer >= c->world->size) return refuse(INVALID_ARGUMENT, "%s: there is no rank %d", name, p.peer);
  bool reduces = p.kind == ALL_REDUCE || p.kind == REDUCE_SCATTER;
  if (reduces && (p.type == BYTES || (p.operation != SUM && p.operation != MAX && p.operation != MEAN) ||
                  (p.type == U32 && p.operation == MEAN))) {
    return refuse(INVALID_ARGUMENT, "%s: operation %d of type %d is not simulated", name, p.operation, p.type);
  }
  int device = -1;
  if (cuCtxGetDevice(&device) || device != c->device) {
    return refuse(INVALID_USAGE, "%s: the current device is %d, the communicator's %d", name, device, c->device);
  }
  if (p.kind <= RECEIVE && p.peer == c->rank && !depth) return refuse(INVALID_USAGE, "%s to itself, alone", name);
  if (p.from && read && smelt_sim_check(name, p.from, read * bytes, stream)) {
    return refuse(INVALID_ARGUMENT, "%s: what it reads is not there", name);
  }
  if (p.to && written && p.to != p.from) {
    if (smelt_sim_check(name, p.to, written * bytes, stream)) {
      return refuse(INVALID_ARGUMENT, "%s: what it writes is not there", name);
    }
    if (int error = smelt_sim_before_late(stream)) return refuse(CUDA_ERROR, "the stream: error %d", error);
    if (!in_use(c, p.to, written * bytes)) smelt_sim_poison(p.to, written * bytes);
  }
  if (!depth) {
    Launch* alone = new Launch{c, stream, {p}};
    return issue(alone);
  }
  for (Launch* l : group) {
    if (l->of != c) continue;
    bool alike = l->parts[0].kind <= RECEIVE && p.kind <= RECEIVE && l->stream == stream;
    if (!alike) return refuse(INVALID_USAGE, "%s: a group has sends and receives of one stream only", name);
    l->parts.push_back(p);
    return SUCCESS;
  }
  group.push_back(new Launch{c, stream, {p}});
  return SUCCESS;
}

}  // namespace

struct Id {
  uint64_t magic, number;
  char rest[112];
};
constexpr uint64_t MAGIC = 0x6c63636e2d6d6973ull;

API int ncclGetVersion(int* version) {
  *version = (int)number_from("SMELT_SIM_NCCL_VERSION", 22703);
  return SUCCESS;
}
API int ncclGetUniqueId(Id* id) {
  std::lock_guard<std::mutex> guard(lock);
  memset(id, 0, sizeof *id);
  id->magic = MAGIC;
  id->number = worlds.size();
  worlds[id->number] = nullptr;
  return SUCCESS;
}

API int ncclCommInitRank(Communicator** communicator, int size, Id id, int rank) {
  int device;
  if (cuCtxGetDevice(&device)) return refuse(CUDA_ERROR, "there is no current device");
  std::unique_lock<std::mutex> guard(lock);
  auto entry = worlds.find(id.number);
  if (id.magic != MAGIC || entry == worlds.end()) return refuse(INVALID_ARGUMENT, "the id is not of this process");
  if (size < 1 || rank < 0 || rank >= size) return refuse(INVALID_ARGUMENT, "rank %d of %d", rank, size);
  if (!entry->second) entry->second = new World{size, std::vector<Communicator*>((size_t)size), 0, {}, false};
  World& w = *entry->second;
  if (w.size != size) return refuse(INVALID_USAGE, "rank %d says %d ranks, another one %d", rank, size, w.size);
  if (w.ranks[(size_t)rank]) return refuse(INVALID_USAGE, "two ranks are %d", rank);
  Communicator* c = w.ranks[(size_t)rank] = new Communicator{&w, rank, device, false, {}};
  for (Communicator* other : w.ranks) {
    if (other && other != c && other->device == device) {
      fail(w, INVALID_USAGE, "ranks " + std::to_string(std::min(rank, other->rank)) + " and " +
                                 std::to_string(std::max(rank, other->rank)) + " are both on device " +
                                 std::to_string(device));
    }
  }
  w.complete = !w.error && std::count(w.ranks.begin(), w.ranks.end(), nullptr) == 0;
  changed.notify_all();
  auto end = deadline();
  while (!w.error && !w.complete) {
    if (changed.wait_until(guard, end) == std::cv_status::timeout && !w.complete) {
      fail(w, SYSTEM_ERROR, "rank " + std::to_string(rank) + " waits for a rank that does not come");
    }
  }
  if (!w.complete) {
    c->ended = true;
    return refuse(w.error, "%s", w.why.c_str());
  }
  *communicator = c;
  return SUCCESS;
}

API int ncclCommDestroy(Communicator* c) {
  std::lock_guard<std::mutex> guard(lock);
  if (c->ended) return refuse(INVALID_ARGUMENT, "ncclCommDestroy: the communicator has ended");
  progress(*c->world);
  c->ended = true;
  if (!c->queue.empty()) {
    fail(*c->world, INVALID_USAGE, "rank " + std::to_string(c->rank) + " destroys a communicator that is at work");
  }
  changed.notify_all();
  return SUCCESS;
}
API int ncclCommAbort(Communicator* c) {
  std::lock_guard<std::mutex> guard(lock);
  if (c->ended) return refuse(INVALID_ARGUMENT, "ncclCommAbort: the communicator has ended");
  c->ended = true;
  fail(*c->world, REMOTE_ERROR, "rank " + std::to_string(c->rank) + " has aborted");
  return SUCCESS;
}
API int ncclCommGetAsyncError(Communicator* c, int* error) {
  std::lock_guard<std::mutex> guard(lock);
  if (c->ended) return refuse(INVALID_ARGUMENT, "ncclCommGetAsyncError: the communicator has ended");
  *error = c->world->error;
  return SUCCESS;
}

API const char* ncclGetErrorString(int code) {
  static const char* const TEXTS[] = {"no error",         "unhandled cuda error", "unhandled system error",
                                      "internal error",   "invalid argument",     "invalid usage",
                                      "remote process exited or there was a network error"};
  return code >= 0 && code <= REMOTE_ERROR ? TEXTS[code] : "unknown result code";
}
API const char* ncclGetLastError(Communicator* c) {
  std::lock_guard<std::mutex> guard(lock);
  if (c && c->world->error) last_error = c->world->why;
  return last_error.c_str();
}

API int ncclGroupStart() {
  depth++;
  return SUCCESS;
}
API int ncclGroupEnd() {
  if (!depth) return refuse(INVALID_USAGE, "ncclGroupEnd without ncclGroupStart");
  if (--depth) return SUCCESS;
  std::vector<Launch*> launches = std::move(group);
  group.clear();
  for (Launch* l : launches) {
    if (int code = issue(l)) return code;
  }
  return SUCCESS;
}

API int ncclSend(const void* from, size_t count, int type, int peer, Communicator* c, void* stream) {
  return call(c, Part{SEND, (const uint8_t*)from, nullptr, count, type, 0, peer, false}, count, 0, stream);
}
API int ncclRecv(void* to, size_t count, int type, int peer, Communicator* c, void* stream) {
  return call(c, Part{RECEIVE, nullptr, (uint8_t*)to, count, type, 0, peer, false}, 0, count, stream);
}
API int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Communicator* c,
                      void* stream) {
  Part p{ALL_REDUCE, (const uint8_t*)from, (uint8_t*)to, count, type, operation, 0, false};
  return call(c, p, count, count, stream);
}
API int ncclAllGather(const void* from, void* to, size_t count, int type, Communicator* c, void* stream) {
  Part p{ALL_GATHER, (const uint8_t*)from, (uint8_t*)to, count, type, 0, 0, false};
  return call(c, p, count, count * (size_t)(c ? c->world->size : 0), stream);
}
API int ncclReduceScatter(const void* from, void* to, size_t count, int type, int operation, Communicator* c,
                          void* stream) {
  Part p{REDUCE_SCATTER, (const uint8_t*)from, (uint8_t*)to, count, type, operation, 0, false};
  return call(c, p, count * (size_t)(c ? c->world->size : 0), count, stream);
}
