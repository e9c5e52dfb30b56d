// What the files of the simulated driver share: settings, the state of errors, streams.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "runtime.hpp"

#define API extern "C" __attribute__((visibility("default"))) int

namespace sim {

constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, DEVICE_UNAVAILABLE = 46,
              NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
              NOT_FOUND = 500, NOT_READY = 600, LAUNCH_OUT_OF_RESOURCES = 701, NOT_SUPPORTED = 801;

// From the environment, at cuInit.
struct Settings {
  int driver_version = 13000;  // SMELT_SIM_DRIVER
  int devices = 1;             // SMELT_SIM_DEVICES
  u64 memory = 8ull << 30;     // SMELT_SIM_MEMORY, bytes of a device
  int capability = 90;         // SMELT_SIM_CAPABILITY, 10 · major + minor
  int processors = 4;          // SMELT_SIM_PROCESSORS
  u64 page_locked = ~0ull;     // SMELT_SIM_LOCKED, bytes of page-locked memory that the host can have
  u64 seed = 1;                // SMELT_SIM_SEED, of the order of threads and copies
  std::string fail_kernel;     // SMELT_SIM_FAIL=name:n, the launch of that kernel which fails, from 1
  u64 fail_launch = 0;
  u64 lost_after = ~0ull;      // SMELT_SIM_LOST=n, launches before the device is lost
};
extern Settings settings;

extern std::recursive_mutex lock;
extern u64 host_waits;  // synchronisations and synchronous copies
extern u64 launches;
extern u64 changed_copies;  // to the host, of memory that was written before they were done
extern u64 graph_launches;  // of graphs, whose kernels count as launches too
extern int sticky_error;   // every call returns it
extern int pending_error;  // becomes sticky at the next synchronisation

// What every call begins with: 0, or why it cannot be done.
int begin_call();
// The host waits for the device: brings up an error of an earlier launch.
int begin_wait();
// Prints why a call is refused.
int refuse(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));

struct Kernel;
int launch(Kernel* kernel, dim3 grid, dim3 block, u32 dynamic, void* stream, void** parameters);

struct Stream;  // see streams.hpp
struct Event;
Stream* stream_of(void* handle);  // null when it is not a stream
int current_device();             // of this thread; negative without one
// Late work (late.cpp) that the stream's next work, the event, or any work of the current device is to run after.
// Called without the lock, since such work waits for other threads. False when it is not done and the call `may_wait`
// not.
bool settle(void* stream_handle, bool may_wait = true);
bool settle_event(Event* event, bool may_wait = true);
void settle_device();
// Before a kernel or a copy runs on `stream`: uploads issued earlier are done.
void flush_uploads(Stream* stream);
// A kernel is about to run on `stream`.
void note_launch(const Stream* stream);
// Drops copies that are not done, as after an error.
void forget_late_work();
u64 shared_limit();  // bytes of dynamic shared memory that a kernel may ask for
u64 device_memory_used();

}  // namespace sim

API cuCtxGetCurrent(void** handle);

#define BEGIN \
  std::lock_guard<std::recursive_mutex> guard(sim::lock); \
  if (int error = sim::begin_call()) return error
