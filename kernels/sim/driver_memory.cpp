// Memory, copies, streams and events of the simulated driver.
//
// Kernels run at launch, so device memory is always up to date. What is late is the host's side, as on a GPU:
//   - a copy from page-locked memory takes its source when the stream next launches or is waited for, so a host that
//     reuses the source too early sends the wrong bytes;
//   - a copy to page-locked memory poisons its destination at once, takes its source when work that is ordered behind
//     it is issued, and fills the destination when the host waits for the stream or for an event behind the copy. So
//     who writes the source meanwhile, without waiting for the copy, sends bytes that are partly new; the report counts
//     such copies.
// Copies from and to pageable memory are done when the call returns, as the driver documents. What other libraries do
// on a stream is later still: see late.cpp.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>

#include "report.hpp"
#include "streams.hpp"
#include "watch.hpp"

namespace sim {

// ---- allocations: first fit, with a gap behind each, so that accesses beyond the end are seen

constexpr u64 GRAIN = 512, GAP = 512;
static std::map<u64, u64> allocations;  // offset in device memory, bytes asked for
static std::map<u64, u64> holes;        // offset, bytes
static u64 used_bytes = 0;

// The last copy to an allocation, by its offset.
struct Writer {
  const Stream* stream;
  u64 number;
};
static std::map<u64, Writer> writers;

static u64 rounded(u64 bytes) { return (bytes + GRAIN - 1) / GRAIN * GRAIN; }
u64 device_memory_used() { return used_bytes; }

static int allocate(u64* address, u64 bytes) {
  if (!bytes) return INVALID_VALUE;
  u64 whole = rounded(bytes) + GAP;
  if (bytes > settings.memory || used_bytes + rounded(bytes) > settings.memory) return OUT_OF_MEMORY;
  if (holes.empty() && allocations.empty()) holes[GAP] = device_bytes - GAP;
  for (auto hole = holes.begin(); hole != holes.end(); ++hole) {
    if (hole->second < whole) continue;
    u64 offset = hole->first, left = hole->second - whole;
    holes.erase(hole);
    if (left) holes[offset + whole] = left;
    allocations[offset] = bytes;
    used_bytes += rounded(bytes);
    u8* p = device_memory() + offset;
    if (bytes <= 256ull << 20) memset(p, 0xff, bytes);  // NaN in every format
    mark_allocated(p, bytes);
    *address = (u64)p;
    return SUCCESS;
  }
  return OUT_OF_MEMORY;
}

static int release(u64 address) {
  if (!address) return SUCCESS;
  auto found = allocations.find(address - (u64)device_memory());
  if (found == allocations.end()) return refuse(INVALID_VALUE, "free of what is not an allocation");
  u64 offset = found->first, bytes = found->second, whole = rounded(bytes) + GAP;
  used_bytes -= rounded(bytes);
  mark_freed((void*)address, bytes);
  u64 first_page = (address + 4095) & ~4095ull, last_page = (address + bytes) & ~4095ull;
  if (bytes >= 1 << 20) madvise((void*)first_page, last_page - first_page, MADV_DONTNEED);
  allocations.erase(found);
  writers.erase(offset);
  auto next = holes.lower_bound(offset);
  if (next != holes.end() && next->first == offset + whole) {
    whole += next->second;
    next = holes.erase(next);
  }
  if (next != holes.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += whole;
      return SUCCESS;
    }
  }
  holes[offset] = whole;
  return SUCCESS;
}

std::string place_in_device(u64 offset) {
  auto after = allocations.upper_bound(offset);
  if (after == allocations.begin()) return "before the first allocation";
  auto found = std::prev(after);
  return "at byte " + std::to_string(offset - found->first) + " of an allocation of " + std::to_string(found->second);
}

static u64 allocation_of(u64 address) {
  return std::prev(allocations.upper_bound(address - (u64)device_memory()))->first;
}

int check_device(const char* what, u64 address, u64 bytes) {
  u64 offset = address - (u64)device_memory();
  auto after = allocations.upper_bound(offset);
  if (after != allocations.begin()) {
    auto found = std::prev(after);
    if (offset + bytes <= found->first + found->second) return SUCCESS;
  }
  return refuse(INVALID_VALUE, "%s: %llu bytes at %p are not within one allocation of the device", what, bytes,
                (void*)address);
}

static void note_writer(u64 address, const Stream* stream) {
  writers[allocation_of(address)] = Writer{stream, stream->issued};
}
int check_order(const char* what, u64 address, Stream* stream) {
  auto found = writers.find(allocation_of(address));
  if (found == writers.end() || found->second.stream == stream) return SUCCESS;
  const Writer& w = found->second;
  if (w.number <= std::max(stream->seen[w.stream], w.stream->waited_for)) return SUCCESS;
  return refuse(INVALID_VALUE, "%s: its memory at %p was written on another stream, which this one did not wait for",
                what, (void*)address);
}

// The launches so far, by the number of their first block.
struct Grid {
  u32 first;
  const Stream* stream;
  u64 number;
};
static std::vector<Grid> grids;

void note_launch(const Stream* stream) {
  u32 first = next_block();
  if (!grids.empty() && grids.back().first > first) grids.clear();  // numbers begin anew
  grids.push_back(Grid{first, stream, stream->issued});
}
// Whether what is issued to `stream` may copy to the bytes, or from them: kernels of other streams that touch them are
// done by then. Kernels run at launch here, so nothing else would tell.
static int check_unused(const char* what, u64 address, u64 bytes, Stream* stream) {
  u32 block = last_block_of((const void*)address, bytes);
  auto after = std::upper_bound(grids.begin(), grids.end(), block, [](u32 n, const Grid& g) { return n < g.first; });
  if (after == grids.begin()) return SUCCESS;
  const Grid& g = *std::prev(after);
  if (g.stream == stream || g.number <= std::max(stream->seen[g.stream], g.stream->waited_for)) return SUCCESS;
  return refuse(INVALID_VALUE, "%s: a kernel of another stream, which this one did not wait for, uses its memory at %p",
                what, (void*)address);
}

// ---- page-locked memory

static std::map<u64, u64> page_locked;
static bool is_page_locked(const void* p) {
  auto after = page_locked.upper_bound((u64)p);
  return after != page_locked.begin() && (u64)p < std::prev(after)->first + std::prev(after)->second;
}

// ---- streams and events

static Stream null_stream;
std::vector<Stream*> streams;

Stream* stream_of(void* handle) {
  if ((u64)handle <= 2) return &null_stream;
  for (Stream* s : streams) {
    if (s == handle && !s->destroyed) return s;
  }
  return nullptr;
}

// Copies to the host up to work `number` take their source.
static void take_sources(Stream* stream, u64 number) {
  for (Download& d : stream->downloads) {
    if (d.function || d.taken || d.number > number) continue;
    d.taken = true;
    if (check_device("a copy to the host, at the time it happens", (u64)d.from, d.data.size())) continue;
    if (!memcmp(d.data.data(), d.from, d.data.size())) continue;
    changed_copies++;
    refuse(INVALID_VALUE, "a copy to the host of %zu bytes at %p: work that does not wait for it changed them",
           d.data.size(), d.from);
    memcpy(d.data.data(), d.from, d.data.size());
  }
}
static void upload_all(Stream* stream) {
  for (const Upload& u : stream->uploads) {
    if (check_device("a copy to the device, at the time it happens", (u64)u.to, u.bytes)) continue;
    memcpy(u.to, u.from, u.bytes);
    mark_written(u.to, u.bytes);
  }
  stream->uploads.clear();
}
void flush_uploads(Stream* stream) {
  take_sources(stream, ~0ull);
  upload_all(stream);
  stream->issued++;
  stream->asked = false;
  if (stream == &null_stream) {
    for (Stream* s : streams) {
      if (s->blocking) upload_all(s);
    }
  } else if (stream->blocking) {
    upload_all(&null_stream);
  }
}

// The host has waited for `stream` up to its work `number`.
static void complete(Stream* stream, u64 number) {
  take_sources(stream, number);
  upload_all(stream);
  stream->waited_for = std::max(stream->waited_for, std::min(number, stream->issued));
  std::vector<Download> later, now;
  for (Download& d : stream->downloads) (d.number <= number ? now : later).push_back(std::move(d));
  stream->downloads = std::move(later);
  std::vector<Wait> waits;
  for (size_t i = 0; i < stream->waits.size(); i++) {
    if (stream->waits[i].number > number) continue;
    waits.push_back(stream->waits[i]);
    stream->waits.erase(stream->waits.begin() + (long)i--);
  }
  for (const Wait& w : waits) complete(w.other, w.other_number);
  for (Download& d : now) {
    if (d.function) d.function(d.argument);
    else memcpy(d.to, d.data.data(), d.data.size());
  }
}
// Of the current device. Other devices have threads of their own, which wait for late work that is not this one's.
static void complete_all() {
  complete(&null_stream, ~0ull);
  for (Stream* s : streams) {
    if (s->device == current_device()) complete(s, ~0ull);
  }
}
static void complete_stream(Stream* stream) {
  complete(stream, ~0ull);
  if (stream != &null_stream) return;
  for (Stream* s : streams) {
    if (s->blocking) complete(s, ~0ull);
  }
}
void forget_late_work() {
  auto forget = [](Stream* s) {
    s->uploads.clear();
    s->downloads.clear();
    s->waits.clear();
    s->late.clear();
  };
  forget(&null_stream);
  for (Stream* s : streams) forget(s);
}
static bool has_late_work(const Stream* stream, u64 number) {
  for (const Download& d : stream->downloads) {
    if (d.number <= number) return true;
  }
  return false;
}

static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

}  // namespace sim

using namespace sim;

#define STREAM(handle) \
  Stream* stream = stream_of(handle); \
  if (!stream) return INVALID_HANDLE
#define ON_DEVICE(what, address, bytes) \
  if (int error = check_device(what, address, bytes)) return error

// ---- allocations

API cuMemAlloc_v2(u64* address, size_t bytes) {
  BEGIN;
  return allocate(address, bytes);
}
API cuMemFree_v2(u64 address) {
  settle_device();
  BEGIN;
  complete_all();  // cuMemFree waits for the device
  return release(address);
}
API cuMemAllocAsync(u64* address, size_t bytes, void* handle) {
  BEGIN;
  STREAM(handle);
  flush_uploads(stream);
  return allocate(address, bytes);
}
API cuMemAllocFromPoolAsync(u64* address, size_t bytes, void*, void* handle) {
  return cuMemAllocAsync(address, bytes, handle);
}
API cuMemFreeAsync(u64 address, void* handle) {
  BEGIN;
  STREAM(handle);
  flush_uploads(stream);
  return release(address);
}
API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  BEGIN;
  *total = settings.memory;
  *free_bytes = settings.memory - used_bytes;
  return SUCCESS;
}
API cuMemGetAddressRange_v2(u64* base, size_t* bytes, u64 address) {
  BEGIN;
  ON_DEVICE("cuMemGetAddressRange", address, 1);
  auto found = std::prev(allocations.upper_bound(address - (u64)device_memory()));
  if (base) *base = (u64)device_memory() + found->first;
  if (bytes) *bytes = found->second;
  return SUCCESS;
}
API cuMemAllocManaged(u64*, size_t, unsigned) { return refuse(NOT_SUPPORTED, "managed memory is not simulated"); }

API cuMemHostAlloc(void** p, size_t bytes, unsigned) {
  BEGIN;
  u64 locked = 0;
  for (auto& [address, length] : page_locked) locked += length;
  if (locked + bytes > settings.page_locked || posix_memalign(p, 4096, bytes ? bytes : 1)) return OUT_OF_MEMORY;
  memset(*p, 0xff, bytes);
  page_locked[(u64)*p] = bytes;
  return SUCCESS;
}
API cuMemAllocHost_v2(void** p, size_t bytes) { return cuMemHostAlloc(p, bytes, 0); }
API cuMemFreeHost(void* p) {
  settle_device();
  BEGIN;
  if (!page_locked.erase((u64)p)) return INVALID_VALUE;
  complete_all();
  free(p);
  return SUCCESS;
}
API cuMemHostRegister_v2(void* p, size_t bytes, unsigned) {
  BEGIN;
  page_locked[(u64)p] = bytes;
  return SUCCESS;
}
API cuMemHostUnregister(void* p) {
  settle_device();
  BEGIN;
  complete_all();
  return page_locked.erase((u64)p) ? SUCCESS : INVALID_VALUE;
}

// Memory pools: one, without limits.
API cuDeviceGetDefaultMemPool(void** pool, int) {
  *pool = (void*)1;
  return SUCCESS;
}
API cuDeviceGetMemPool(void** pool, int) {
  *pool = (void*)1;
  return SUCCESS;
}
API cuDeviceSetMemPool(int, void*) { return SUCCESS; }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolGetAttribute(void*, int attribute, void* value) {
  BEGIN;
  if (attribute >= 4) *(u64*)value = used_bytes;
  else *(int*)value = 1;
  return SUCCESS;
}
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

// ---- copies

API cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, void* handle) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  if (!bytes) return SUCCESS;
  ON_DEVICE("cuMemcpyHtoD", to, bytes);
  if (is_page_locked(from)) {
    if (int error = check_unused("cuMemcpyHtoD", to, bytes, stream)) return error;
    stream->issued++;
    stream->uploads.push_back(Upload{(void*)to, from, bytes});
    note_writer(to, stream);
    return SUCCESS;
  }
  flush_uploads(stream);
  memcpy((void*)to, from, bytes);
  mark_written((void*)to, bytes);
  note_writer(to, stream);
  return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, void* handle) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  if (!bytes) return SUCCESS;
  ON_DEVICE("cuMemcpyDtoH", from, bytes);
  if (int error = check_order("cuMemcpyDtoH", from, stream)) return error;
  if (int error = check_unused("cuMemcpyDtoH", from, bytes, stream)) return error;
  flush_uploads(stream);
  if (is_page_locked(to)) {
    const u8* data = (const u8*)from;
    std::vector<u8> now(data, data + bytes);
    stream->downloads.push_back(Download{stream->issued, to, data, std::move(now), false, nullptr, nullptr});
    memset(to, 0xff, bytes);
    return SUCCESS;
  }
  if (int error = begin_wait()) return error;
  complete_stream(stream);
  memcpy(to, (const void*)from, bytes);
  return SUCCESS;
}
API cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void* handle) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  if (!bytes) return SUCCESS;
  ON_DEVICE("cuMemcpyDtoD", to, bytes);
  ON_DEVICE("cuMemcpyDtoD", from, bytes);
  flush_uploads(stream);
  memmove((void*)to, (const void*)from, bytes);
  mark_copied((void*)to, (const void*)from, bytes);
  note_writer(to, stream);
  return SUCCESS;
}
API cuMemcpyHtoD_v2(u64 to, const void* from, size_t bytes) {
  BEGIN;
  if (int error = begin_wait()) return error;
  if (!bytes) return SUCCESS;
  ON_DEVICE("cuMemcpyHtoD", to, bytes);
  complete_stream(&null_stream);
  memcpy((void*)to, from, bytes);
  mark_written((void*)to, bytes);
  return SUCCESS;
}
API cuMemcpyDtoH_v2(void* to, u64 from, size_t bytes) {
  BEGIN;
  if (int error = begin_wait()) return error;
  if (!bytes) return SUCCESS;
  ON_DEVICE("cuMemcpyDtoH", from, bytes);
  complete_stream(&null_stream);
  memcpy(to, (const void*)from, bytes);
  return SUCCESS;
}
API cuMemcpyDtoD_v2(u64 to, u64 from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }
API cuMemcpyPeerAsync(u64 to, void*, u64 from, void*, size_t bytes, void* handle) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, handle);
}

API cuMemsetD8Async(u64 to, u8 value, size_t count, void* handle) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  if (!count) return SUCCESS;
  ON_DEVICE("cuMemsetD8", to, count);
  flush_uploads(stream);
  memset((void*)to, value, count);
  mark_written((void*)to, count);
  note_writer(to, stream);
  return SUCCESS;
}
API cuMemsetD32Async(u64 to, u32 value, size_t count, void* handle) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  if (!count) return SUCCESS;
  if (to % 4) return INVALID_VALUE;
  ON_DEVICE("cuMemsetD32", to, count * 4);
  flush_uploads(stream);
  for (size_t i = 0; i < count; i++) ((u32*)to)[i] = value;
  mark_written((void*)to, count * 4);
  note_writer(to, stream);
  return SUCCESS;
}
API cuMemsetD16Async(u64 to, u16 value, size_t count, void* handle) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  if (!count) return SUCCESS;
  if (to % 2) return INVALID_VALUE;
  ON_DEVICE("cuMemsetD16", to, count * 2);
  flush_uploads(stream);
  for (size_t i = 0; i < count; i++) ((u16*)to)[i] = value;
  mark_written((void*)to, count * 2);
  note_writer(to, stream);
  return SUCCESS;
}
API cuMemsetD8_v2(u64 to, u8 value, size_t count) { return cuMemsetD8Async(to, value, count, nullptr); }
API cuMemsetD32_v2(u64 to, u32 value, size_t count) { return cuMemsetD32Async(to, value, count, nullptr); }

// ---- streams

API cuStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
  BEGIN;
  if (flags > 1) return INVALID_VALUE;
  Stream* stream = new Stream;
  stream->blocking = !(flags & 1);
  stream->device = current_device();
  stream->priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
  streams.push_back(stream);
  *handle = stream;
  return SUCCESS;
}
API cuStreamCreate(void** handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }
API cuStreamDestroy_v2(void* handle) {
  BEGIN;
  STREAM(handle);
  if (stream == &null_stream) return INVALID_HANDLE;
  stream->destroyed = true;  // its work is still done; events may refer to it
  return SUCCESS;
}
API cuStreamSynchronize(void* handle) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  if (int error = begin_wait()) return error;
  complete_stream(stream);
  return SUCCESS;
}
// Says "not ready" once when there is late work, so that a caller that does not look at the answer is seen.
API cuStreamQuery(void* handle) {
  bool settled = settle(handle, false);
  BEGIN;
  STREAM(handle);
  if (!settled) return NOT_READY;
  if (has_late_work(stream, ~0ull) && !stream->asked) {
    stream->asked = true;
    return NOT_READY;
  }
  if (pending_error) return begin_wait();
  complete_stream(stream);
  return SUCCESS;
}
API cuStreamWaitEvent(void* handle, Event* event, unsigned) {
  BEGIN;
  STREAM(handle);
  if (!event->stream) return SUCCESS;  // never recorded
  take_sources(event->stream, event->number);
  upload_all(event->stream);
  if (event->stream == stream) return SUCCESS;
  stream->waits.push_back(Wait{++stream->issued, event->stream, event->number});
  auto see = [&](const Stream* other, u64 number) { stream->seen[other] = std::max(stream->seen[other], number); };
  see(event->stream, event->number);
  for (auto& [other, number] : event->seen) see(other, number);
  return SUCCESS;
}
API cuStreamGetPriority(void* handle, int* priority) {
  BEGIN;
  STREAM(handle);
  *priority = stream->priority;
  return SUCCESS;
}
API cuStreamGetFlags(void* handle, unsigned* flags) {
  BEGIN;
  STREAM(handle);
  *flags = stream->blocking ? 0 : 1;
  return SUCCESS;
}
API cuStreamGetCtx(void* handle, void** context) {
  BEGIN;
  STREAM(handle);
  (void)stream;
  return cuCtxGetCurrent(context);
}
API cuStreamIsCapturing(void*, int* status) {
  *status = 0;
  return SUCCESS;
}
API cuStreamAttachMemAsync(void*, u64, size_t, unsigned) { return NOT_SUPPORTED; }
API cuLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
  settle(handle);
  BEGIN;
  STREAM(handle);
  flush_uploads(stream);
  stream->downloads.push_back(Download{stream->issued, nullptr, nullptr, {}, true, function, argument});
  return SUCCESS;
}
API cuCtxSynchronize() {
  settle_device();
  BEGIN;
  if (int error = begin_wait()) return error;
  complete_all();
  return SUCCESS;
}

// ---- events

API cuEventCreate(Event** event, unsigned flags) {
  BEGIN;
  *event = new Event;
  (*event)->timed = !(flags & 2);
  return SUCCESS;
}
API cuEventDestroy_v2(Event* event) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  delete event;
  return SUCCESS;
}
API cuEventRecord(Event* event, void* handle) {
  BEGIN;
  STREAM(handle);
  event->stream = stream;
  event->number = stream->issued;
  event->seen = stream->seen;
  event->milliseconds = now();
  event->asked = false;
  return SUCCESS;
}
API cuEventRecordWithFlags(Event* event, void* handle, unsigned) { return cuEventRecord(event, handle); }
API cuEventSynchronize(Event* event) {
  settle_event(event);
  BEGIN;
  if (int error = begin_wait()) return error;
  if (event->stream) complete(event->stream, event->number);
  return SUCCESS;
}
API cuEventQuery(Event* event) {
  bool settled = settle_event(event, false);
  BEGIN;
  if (!settled) return NOT_READY;
  if (!event->stream) return SUCCESS;
  if (has_late_work(event->stream, event->number) && !event->asked) {
    event->asked = true;
    return NOT_READY;
  }
  if (pending_error) return begin_wait();
  complete(event->stream, event->number);
  return SUCCESS;
}
API cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
  BEGIN;
  if (!start->stream || !end->stream || !start->timed || !end->timed) return INVALID_HANDLE;
  *milliseconds = (float)(end->milliseconds - start->milliseconds);
  return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}
