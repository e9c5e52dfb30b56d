// libcuda.so.1 for machines without a GPU: devices, contexts, kernels, tensor maps, errors. Memory, streams and events
// are in driver_memory.cpp. It has what cudarc 0.19's safe layer calls.
//
// Launches run at once, but fail as on a GPU: a kernel that faults leaves an error that every later call returns.
// Environment variables (Settings in driver.hpp) make it an old driver, a small device, or one that fails.
#include "driver.hpp"

#include <algorithm>

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "watch.hpp"

namespace sim {

Settings settings;
std::recursive_mutex lock;
u64 host_waits = 0, launches = 0, graph_launches = 0, changed_copies = 0;
int sticky_error = 0, pending_error = 0;

static bool initialised = false;
static thread_local u64 context = 0;  // current context: number of the device, plus 1

static u64 number_from(const char* name, u64 otherwise) {
  const char* text = getenv(name);
  return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

static void read_settings() {
  settings = Settings();
  settings.driver_version = (int)number_from("SMELT_SIM_DRIVER", 13000);
  settings.devices = (int)number_from("SMELT_SIM_DEVICES", 1);
  settings.memory = number_from("SMELT_SIM_MEMORY", 8ull << 30);  // reserved twice, for what lies between allocations
  settings.capability = (int)number_from("SMELT_SIM_CAPABILITY", 90);
  settings.processors = (int)number_from("SMELT_SIM_PROCESSORS", 4);
  settings.page_locked = number_from("SMELT_SIM_LOCKED", ~0ull);
  settings.seed = number_from("SMELT_SIM_SEED", 1);
  settings.lost_after = number_from("SMELT_SIM_LOST", ~0ull);
  if (!device_memory_used()) watching = number_from("SMELT_SIM_WATCH", 1) != 0;  // what is allocated has a state
  if (const char* fail = getenv("SMELT_SIM_FAIL")) {
    if (const char* colon = strrchr(fail, ':')) {
      settings.fail_kernel.assign(fail, colon);
      settings.fail_launch = strtoull(colon + 1, nullptr, 10);
    }
  }
}

int refuse(int error, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "simulator: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  return error;
}

int begin_call() {
  if (!initialised) return NOT_INITIALIZED;
  if (launches >= settings.lost_after) sticky_error = DEVICE_UNAVAILABLE;
  if (sticky_error) return sticky_error;
  return context ? SUCCESS : INVALID_CONTEXT;
}
int current_device() { return (int)context - 1; }
int begin_wait() {
  host_waits++;
  if (pending_error) sticky_error = pending_error;
  pending_error = 0;
  return sticky_error;
}

u64 shared_limit() {
  return (settings.capability == 80 || settings.capability == 87 ? 163 : settings.capability >= 90 ? 227 : 99) << 10;
}

Registration::Registration(const char* name, int most_threads, void (*call)(void**), const u32* parameters,
                           u8* static_shared, u8* static_end) {
  new Kernel(name, most_threads, call, parameters, static_shared, static_end);
}

int launch(Kernel* kernel, dim3 grid, dim3 block, u32 dynamic, void* stream_handle, void** parameters) {
  Stream* stream = stream_of(stream_handle);
  if (!stream || !kernel) return INVALID_HANDLE;
  u64 count = (u64)block.x * block.y * block.z;
  const char* name = kernel->name;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return refuse(INVALID_VALUE, "launch of `%s`: a grid of (%u, %u, %u)", name, grid.x, grid.y, grid.z);
  }
  if (!count || count > MOST_THREADS || block.x > 1024 || block.y > 1024 || block.z > 64) {
    return refuse(INVALID_VALUE, "launch of `%s`: a block of (%u, %u, %u)", name, block.x, block.y, block.z);
  }
  if (count > (u64)kernel->most_threads) {
    return refuse(LAUNCH_OUT_OF_RESOURCES, "launch of `%s`: a block of %llu threads, its KERNEL(...) says %d", name,
                  count, kernel->most_threads);
  }
  if (dynamic > kernel->most_dynamic) {
    return refuse(INVALID_VALUE, "launch of `%s`: %u bytes of dynamic shared memory, cuFuncSetAttribute allowed %u",
                  name, dynamic, kernel->most_dynamic);
  }
  flush_uploads(stream);
  note_launch(stream);
  launches++;
  if (kernel->name == settings.fail_kernel && kernel->launches + 1 == settings.fail_launch) {
    kernel->launches++;
    pending_error = LAUNCH_FAILED;
    return SUCCESS;
  }
  sticky_error = run_grid(*kernel, grid, block, dynamic, parameters, settings.seed + launches);
  return sticky_error;
}

}  // namespace sim

using namespace sim;

// ---- initialisation, devices

API cuInit(unsigned) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (initialised) return settings.devices ? SUCCESS : NO_DEVICE;
  read_settings();
  if (!settings.devices) return NO_DEVICE;
  if (!region && (!reserve_region(2 * settings.memory) || !reserve_shadow())) {
    return refuse(OUT_OF_MEMORY, "no address space for %llu bytes of device memory", settings.memory);
  }
  initialised = true;
  return SUCCESS;
}
API cuDriverGetVersion(int* version) {
  if (!initialised) read_settings();
  *version = settings.driver_version;
  return SUCCESS;
}

#define DEVICE_CALL(device) \
  std::lock_guard<std::recursive_mutex> guard(lock); \
  if (!initialised) return NOT_INITIALIZED; \
  if (sticky_error == DEVICE_UNAVAILABLE) return sticky_error; \
  if ((device) < 0 || (device) >= settings.devices) return INVALID_DEVICE

API cuDeviceGetCount(int* count) {
  DEVICE_CALL(0);
  *count = settings.devices;
  return SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
  DEVICE_CALL(ordinal);
  *device = ordinal;
  return SUCCESS;
}
API cuDeviceGetName(char* name, int bytes, int device) {
  DEVICE_CALL(device);
  snprintf(name, (size_t)bytes, "simulated sm_%d", settings.capability);
  return SUCCESS;
}
API cuDeviceGetUuid_v2(u8* uuid, int device) {
  DEVICE_CALL(device);
  memcpy(uuid, "smelt simulator ", 16);
  uuid[15] = (u8)device;
  return SUCCESS;
}
API cuDeviceGetUuid(u8* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int device) {
  DEVICE_CALL(device);
  *bytes = settings.memory;
  return SUCCESS;
}
API cuDeviceGetPCIBusId(char* text, int bytes, int device) {
  DEVICE_CALL(device);
  snprintf(text, (size_t)bytes, "0000:%02x:00.0", device + 1);
  return SUCCESS;
}
API cuDeviceCanAccessPeer(int* can, int device, int) {
  DEVICE_CALL(device);
  *can = 0;
  return SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, int device) {
  DEVICE_CALL(device);
  switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;             // threads of a block; its x and y
    case 4: *value = 64; break;                               // its z
    case 5: *value = 0x7fffffff; break;                       // x of a grid
    case 6: case 7: *value = 65535; break;                    // its y and z
    case 8: *value = 48 << 10; break;                         // shared memory of a block, without opting in
    case 9: *value = 64 << 10; break;                         // constant memory
    case 10: *value = 32; break;                              // threads of a warp
    case 12: case 82: *value = 65536; break;                  // registers
    case 13: *value = 1000000; break;                         // clock, kHz
    case 16: *value = settings.processors; break;             // multiprocessors
    case 31: case 41: case 78: *value = 1; break;             // concurrent kernels, unified addressing, priorities
    case 33: *value = device + 1; break;                      // PCI bus
    case 36: *value = 1000000; break;                         // clock of memory, kHz
    case 37: *value = 4096; break;                            // bits of its bus
    case 38: *value = 50 << 20; break;                        // L2 cache
    case 39: *value = 2048; break;                            // threads of a multiprocessor
    case 40: *value = 3; break;                               // copy engines
    case 75: *value = settings.capability / 10; break;
    case 76: *value = settings.capability % 10; break;
    case 81: *value = (int)shared_limit() + 1024; break;      // shared memory of a multiprocessor
    case 97: *value = (int)shared_limit(); break;             // of a block, opting in
    case 106: *value = 32; break;                             // blocks of a multiprocessor
    case 111: *value = 1024; break;                           // shared memory that the system keeps
    case 115: *value = 1; break;                              // memory pools
    case 127: *value = settings.capability >= 90; break;      // tensor maps
    default: *value = 0;
  }
  return SUCCESS;
}

// ---- contexts

API cuDevicePrimaryCtxRetain(void** handle, int device) {
  DEVICE_CALL(device);
  if (sticky_error) return sticky_error;
  *handle = (void*)(u64)(device + 1);
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  DEVICE_CALL(device);
  *flags = 0;
  *active = 1;
  return SUCCESS;
}
API cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
API cuCtxSetCurrent(void* handle) {
  if (!initialised) return NOT_INITIALIZED;
  if ((u64)handle > (u64)settings.devices) return INVALID_CONTEXT;
  context = (u64)handle;
  return SUCCESS;
}
API cuCtxGetCurrent(void** handle) {
  if (!initialised) return NOT_INITIALIZED;
  *handle = (void*)context;
  return SUCCESS;
}
API cuCtxPushCurrent_v2(void* handle) { return cuCtxSetCurrent(handle); }
API cuCtxPopCurrent_v2(void** handle) {
  if (handle) *handle = (void*)context;
  context = 0;
  return SUCCESS;
}
API cuCtxGetDevice(int* device) {
  BEGIN;
  *device = (int)context - 1;
  return SUCCESS;
}
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxGetFlags(unsigned* flags) {
  *flags = 0;
  return SUCCESS;
}
API cuCtxSetLimit(int, size_t) { return SUCCESS; }
API cuCtxGetLimit(size_t* value, int) {
  *value = 0;
  return SUCCESS;
}
API cuCtxSetCacheConfig(int) { return SUCCESS; }
API cuCtxGetCacheConfig(int* value) {
  *value = 0;
  return SUCCESS;
}
API cuCtxGetApiVersion(void*, unsigned* version) {
  *version = 13000;
  return SUCCESS;
}
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  BEGIN;
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return SUCCESS;
}

// ---- modules, kernels

API cuModuleLoadData(void** module, const void* image) {
  BEGIN;
  if (memcmp(image, "\x7f" "ELF", 4)) return refuse(INVALID_IMAGE, "cuModuleLoadData of what is not a cubin");
  *module = (void*)1;
  return SUCCESS;
}
API cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
  return cuModuleLoadData(module, image);
}
API cuModuleUnload(void*) { return SUCCESS; }
API cuModuleGetFunction(void** function, void*, const char* name) {
  BEGIN;
  for (Kernel* kernel : kernels()) {
    if (!strcmp(kernel->name, name)) {
      *function = kernel;
      return SUCCESS;
    }
  }
  return NOT_FOUND;
}
API cuModuleGetGlobal_v2(u64*, size_t*, void*, const char*) { return NOT_FOUND; }

API cuFuncSetAttribute(Kernel* kernel, int attribute, int value) {
  BEGIN;
  if (attribute != 8) return SUCCESS;
  if (value < 0 || (u64)value > shared_limit()) {
    return refuse(INVALID_VALUE, "`%s`: %d bytes of dynamic shared memory, the device has %llu", kernel->name, value,
                  shared_limit());
  }
  kernel->most_dynamic = (u32)value;
  return SUCCESS;
}
API cuFuncGetAttribute(int* value, int attribute, Kernel* kernel) {
  BEGIN;
  *value = attribute == 0 ? kernel->most_threads : attribute == 8 ? (int)kernel->most_dynamic : 0;
  if (attribute == 5 || attribute == 6) *value = settings.capability;
  return SUCCESS;
}
API cuFuncSetCacheConfig(Kernel*, int) { return SUCCESS; }

API cuLaunchKernel(Kernel* kernel, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 dynamic, void* stream,
                   void** parameters, void** extra) {
  settle(stream);
  BEGIN;
  if (extra) return NOT_SUPPORTED;
  return launch(kernel, dim3(gx, gy, gz), dim3(bx, by, bz), dynamic, stream, parameters);
}

struct LaunchAttribute {
  int id;
  u32 padding;
  u32 value[16];
};
struct LaunchConfig {
  u32 grid[3], block[3], dynamic;
  void* stream;
  LaunchAttribute* attributes;
  u32 count;
};
API cuLaunchKernelEx(const LaunchConfig* c, Kernel* kernel, void** parameters, void** extra) {
  settle(c->stream);
  BEGIN;
  for (u32 i = 0; i < c->count; i++) {
    const LaunchAttribute& a = c->attributes[i];
    if (a.id == 4 && a.value[0] * a.value[1] * a.value[2] > 1) {
      return refuse(NOT_SUPPORTED, "launch of `%s`: clusters are not simulated", kernel->name);
    }
  }
  if (extra) return NOT_SUPPORTED;
  return launch(kernel, dim3(c->grid[0], c->grid[1], c->grid[2]), dim3(c->block[0], c->block[1], c->block[2]),
                c->dynamic, c->stream, parameters);
}

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Kernel*, int count, size_t dynamic, unsigned) {
  BEGIN;
  if (count <= 0) return INVALID_VALUE;
  u64 by_shared = (shared_limit() + 1024) / (dynamic + 1024), by_threads = 2048 / (u64)count;
  *blocks = (int)std::min({by_shared, by_threads, (u64)32});
  return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int count, size_t dynamic) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, count, dynamic, 0);
}

// ---- tensor maps: the restrictions are those that cuda.h documents

API cuTensorMapEncodeTiled(TensorMap* map, int type, u32 rank, void* base, const u64* size, const u64* stride,
                           const u32* box, const u32* element_stride, int interleave, int swizzle, int promotion,
                           int fill) {
  BEGIN;
  static const u32 BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  auto bad = [](const char* why) { return refuse(INVALID_VALUE, "cuTensorMapEncodeTiled: %s", why); };
  if (settings.capability < 90) return bad("tensor maps need compute capability 9.0");
  if ((u64)map % 64) return bad("the tensor map is not aligned to 64 bytes");
  if (type < 0 || type > 12) return bad("an unknown type of elements");
  if (rank < 2 || rank > 3) return bad("the simulator has tensor maps of rank 2 and 3 only");
  if (interleave || (swizzle && swizzle != 3)) return bad("the simulator has no interleaving, and no swizzle but 128B");
  if (fill || promotion < 0 || promotion > 3) return bad("an unknown fill or promotion");
  if ((u64)base % 16) return bad("the address is not aligned to 16 bytes");
  *map = TensorMap();
  u32 bytes = BYTES[type];
  for (u32 i = 0; i < 3; i++) {
    bool used = i < rank;
    map->size[i] = used ? size[i] : 1;
    map->box[i] = used ? box[i] : 1;
    if (!map->size[i] || map->size[i] > 1ull << 32) return bad("a dimension is 0 or above 2^32");
    if (!map->box[i] || map->box[i] > 256) return bad("a side of the box is 0 or above 256");
    if (used && element_stride[i] != 1) return bad("the simulator has element strides of 1 only");
  }
  for (u32 i = 0; i + 1 < rank; i++) {
    if (stride[i] % 16 || stride[i] >= 1ull << 40) return bad("a stride is not a multiple of 16, or above 2^40");
    u64 least = i ? stride[0] : size[0] * bytes;
    if (stride[i] < least) return bad("a stride is smaller than what it steps over");
    map->stride[i] = stride[i];
  }
  if (box[0] * bytes % 16) return bad("a row of the box is not a multiple of 16 bytes");
  if (swizzle && box[0] * bytes > 128) return bad("a row of the box is longer than the swizzle's 128 bytes");
  map->base = (u8*)base;
  map->element_bytes = bytes;
  map->swizzle_bytes = swizzle ? 128 : 0;
  map->rank = rank;
  map->magic = TENSOR_MAP_MAGIC;
  return SUCCESS;
}

// ---- errors

struct ErrorText {
  int error;
  const char *name, *text;
};
static const ErrorText ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
API cuGetErrorName(int error, const char** name) {
  for (const ErrorText& e : ERRORS) {
    if (e.error == error) return *name = e.name, SUCCESS;
  }
  *name = nullptr;
  return INVALID_VALUE;
}
API cuGetErrorString(int error, const char** text) {
  for (const ErrorText& e : ERRORS) {
    if (e.error == error) return *text = e.text, SUCCESS;
  }
  *text = nullptr;
  return INVALID_VALUE;
}

// ---- what other libraries of CUDA ask for

// NVRTC 13 asks for a table that is not documented; without the function it crashes.
API cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return NOT_FOUND;
}
API cuGetProcAddress_v2(const char* name, void** function, int, u64, int* status) {
  Dl_info info;
  void* self = dladdr((void*)&cuGetProcAddress_v2, &info) ? dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
  *function = self ? dlsym(self, (std::string(name) + "_v2").c_str()) : nullptr;
  if (self && !*function) *function = dlsym(self, name);
  if (status) *status = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}
API cuGetProcAddress(const char* name, void** function, int version, u64 flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
API cuProfilerStart() { return SUCCESS; }
API cuProfilerStop() { return SUCCESS; }

#define NOT_SIMULATED(name) \
  API name() { return refuse(NOT_SUPPORTED, #name " is not simulated"); }
NOT_SIMULATED(cuCtxCreate_v2)
NOT_SIMULATED(cuCtxCreate_v3)
NOT_SIMULATED(cuCtxCreate_v4)
NOT_SIMULATED(cuCtxDestroy_v2)
NOT_SIMULATED(cuModuleLoad)
NOT_SIMULATED(cuLaunchCooperativeKernel)
NOT_SIMULATED(cuStreamBeginCapture_v2)
NOT_SIMULATED(cuStreamEndCapture)
NOT_SIMULATED(cuGraphUpload)
NOT_SIMULATED(cuOccupancyMaxPotentialBlockSize)
NOT_SIMULATED(cuOccupancyMaxActiveClusters)

// ---- for tests

// Writes the report as JSON; returns how many bytes it has, which may be more than there was room for.
extern "C" __attribute__((visibility("default"))) size_t smelt_sim_report(char* buffer, size_t bytes) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  u64 problems = 0;
  std::string text, list;
  for (Kernel* k : kernels()) {
    problems += k->problems;
    if (!k->launches) continue;
    char line[512];
    snprintf(line, sizeof line,
             "%s\n    \"%s\": {\"launches\": %llu, \"read\": %llu, \"written\": %llu, \"distinct_read\": %llu, "
             "\"distinct_written\": %llu, \"flops\": %llu, \"problems\": %llu}",
             list.empty() ? "" : ",", k->name, k->launches, k->read, k->written, k->distinct_read,
             k->distinct_written, k->flops, k->problems);
    list += line;
  }
  text = "{\n  \"host_waits\": " + std::to_string(host_waits) + ",\n  \"launches\": " + std::to_string(launches) +
         ",\n  \"graph_launches\": " + std::to_string(graph_launches) +
         ",\n  \"changed_copies\": " + std::to_string(changed_copies) +
         ",\n  \"memory_used\": " + std::to_string(device_memory_used()) + ",\n  \"problems\": " +
         std::to_string(problems) + ",\n  \"kernels\": {" + list + "\n  }\n}\n";
  if (bytes) {
    size_t n = std::min(bytes - 1, text.size());
    memcpy(buffer, text.data(), n);
    buffer[n] = 0;
  }
  return text.size();
}

// Counters at zero, no error, no copies on their way, and the settings of the environment as it is now. Memory cannot
// grow, and watching cannot change while anything is allocated.
extern "C" __attribute__((visibility("default"))) void smelt_sim_reset() {
  std::lock_guard<std::recursive_mutex> guard(lock);
  read_settings();
  if (region) settings.memory = std::min(settings.memory, device_bytes / 2);
  forget_late_work();
  host_waits = launches = graph_launches = changed_copies = 0;
  sticky_error = pending_error = 0;
  for (Kernel* k : kernels()) {
    k->launches = k->read = k->written = k->distinct_read = k->distinct_written = k->flops = k->problems = 0;
  }
}
