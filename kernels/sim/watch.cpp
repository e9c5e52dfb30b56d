// Watches every load and store of kernels: the compiler calls a __tsan_* function before each, and another one where an
// address is not aligned as its type wants (see build.sh).
//
// An access is a fault when it lies outside of live memory: the launch ends there. Reads of unwritten bytes and races
// are problems: the kernel goes on, the launch fails at its end. All are kept per byte, in arrays beside the memory:
//
//   global memory   state: not allocated, unwritten or written; the last block that wrote, by which thread and when;
//                   the last block that read. Two blocks of one launch must not touch the same byte if one of them
//                   writes, unless by atomic operations. Within a block, whoever touches what another thread wrote
//                   must be ordered after it.
//   shared memory   the last thread that wrote, and the last that read, with its clock, and another reader of another
//                   warp. Whoever touches the byte next must be ordered after them (order.hpp).
//
// Not seen: in global memory, a thread that overwrites what another thread of its block still reads; in shared memory,
// readers beyond the two that are kept; an index beyond a static array that is within another one of the same source.
// Blocks that order each other by atomics and __threadfence are reported as races.
#include "watch.hpp"

#include <emmintrin.h>
#include <string.h>
#include <sys/mman.h>

#include "report.hpp"

namespace sim {

bool watching = true;

enum State : u8 { Free = 0, Unwritten = 1, Written = 3 };

static u8* state = nullptr;                     // of device memory, by offset
static u32 *writer = nullptr, *reader = nullptr;  // number of the block
static u32* writer_thread = nullptr;              // tag (order.hpp), of the last block that wrote
constexpr u32 SEVERAL = 1u << 31;               // in `reader`: more than one block of this launch
static u32 first_block = 1, this_block = 0;     // numbers of blocks, over all launches
static u64 read_bytes, written_bytes, distinct_read, distinct_written;

struct alignas(16) SharedShadow {
  u32 writer[SHARED_BYTES], reader[SHARED_BYTES], other_reader[SHARED_BYTES];
};
static SharedShadow* shared = nullptr;
constexpr u32 PAGE = 1024;
static u32 page_versions[SHARED_BYTES / PAGE + 1];  // grows with every write to a page of shared memory

bool reserve_shadow() {
  auto reserve = [](u64 bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return (void*)nullptr;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
  };
  state = (u8*)reserve(device_bytes);
  writer = (u32*)reserve(device_bytes * 4);
  writer_thread = (u32*)reserve(device_bytes * 4);
  reader = (u32*)reserve(device_bytes * 4);
  shared = (SharedShadow*)reserve(sizeof(SharedShadow));
  return state && writer && writer_thread && reader && shared;
}

static u64 offset_of(const void* p) { return (u64)((const u8*)p - device_memory()); }
void mark_allocated(const void* p, u64 bytes) {
  if (watching) memset(state + offset_of(p), Unwritten, bytes);
}
void mark_freed(const void* p, u64 bytes) {
  if (watching) memset(state + offset_of(p), Free, bytes);
}
void mark_written(const void* p, u64 bytes) {
  if (watching) memset(state + offset_of(p), Written, bytes);
}
void mark_copied(const void* to, const void* from, u64 bytes) {
  if (watching) memmove(state + offset_of(to), state + offset_of(from), bytes);
}

void begin_launch() {
  if (this_block > SEVERAL / 2) {  // numbers begin anew
    this_block = 0;
    madvise(writer, device_bytes * 4, MADV_DONTNEED);
    madvise(reader, device_bytes * 4, MADV_DONTNEED);
  }
  first_block = this_block + 1;
  read_bytes = written_bytes = distinct_read = distinct_written = 0;
}
void end_launch() {
  running->read += read_bytes;
  running->written += written_bytes;
  running->distinct_read += distinct_read;
  running->distinct_written += distinct_written;
}
u32 next_block() { return this_block > SEVERAL / 2 ? 1 : this_block + 1; }
u32 last_block_of(const void* p, u64 bytes) {
  if (!watching) return 0;
  u32 last = 0;
  for (u64 i = offset_of(p), end = i + bytes; i < end; i++) {
    u32 read = reader[i] & ~SEVERAL;
    last = last > read ? last : read;
    last = last > writer[i] ? last : writer[i];
  }
  return last;
}
void begin_shared(bool anew) {
  this_block++;
  for (u32& version : page_versions) version++;
  if (!watching) {  // otherwise who reads what is left of an earlier block is reported
    memset(region, 0xff, block.dynamic_bytes);
    memset(block.static_shared, 0xff, block.static_bytes);
  }
  if (anew && watching) memset(shared, 0, sizeof *shared);
}

static const void* code_of_access = nullptr;  // set by the hooks, for reports

// ---- order

// Whether an access of `who` is ordered after the one that `tag` tells of. One of an earlier block always is.
static inline bool ordered(u32 tag, const Actor& who) { return (tag & CLOCK_MASK) < first_clock || who.after(tag); }

// Four neighbours mostly have the same tag.
static inline bool all_same(const u32* tags) {
  u64 low, high;
  memcpy(&low, tags, 8);
  memcpy(&high, tags + 2, 8);
  return low == high && (u32)low == (u32)(low >> 32);
}
// Whether `who` is ordered after what four neighbours tell of.
static inline bool all_ordered(const u32* tags, const Actor& who) {
  if (all_same(tags)) return ordered(tags[0], who);
  return ordered(tags[0], who) && ordered(tags[1], who) && ordered(tags[2], who) && ordered(tags[3], who);
}
// The accesses of `tags` that `who` is not ordered after: of whom is the first?
static int first_unordered(const u32* tags, u32 bytes, const Actor& who) {
  for (u32 i = 0; i < bytes; i++) {
    if (!ordered(tags[i], who)) return (int)(tags[i] >> CLOCK_BITS);
  }
  return -1;
}

// ---- global memory

[[gnu::noinline]] static void state_problem(u64 offset, u64 bytes) {
  for (u64 i = 0; i < bytes; i++) {
    if (state[offset + i] == Free) {
      fault(ILLEGAL_ADDRESS, code_of_access, "access outside of an allocation of global memory, of %llu bytes, %s",
            bytes, place_in_device(offset).c_str());
    }
  }
  access_problem(ILLEGAL_ADDRESS, code_of_access, "read of unwritten global memory, of %llu bytes, %s", bytes,
                 place_in_device(offset).c_str());
  memset(state + offset, Written, bytes);  // reported once
}
[[gnu::noinline]] static void block_race(bool write, u64 offset, u64 bytes) {
  access_problem(ILLEGAL_ADDRESS, code_of_access,
                 write ? "write to global memory that another block of the launch touches, of %llu bytes, %s"
                       : "read of global memory that another block of the launch writes, of %llu bytes, %s",
                 bytes, place_in_device(offset).c_str());
}

[[gnu::noinline]] static void thread_race(bool write, u64 offset, u64 bytes, int other) {
  access_problem(ILLEGAL_ADDRESS, code_of_access,
                 write ? "race in global memory: a write, not ordered after a write by thread %d, of %llu bytes, %s"
                       : "race in global memory: a read, not ordered after a write by thread %d, of %llu bytes, %s",
                 other, bytes, place_in_device(offset).c_str());
}

static inline bool of_other_block(u32 number) {
  number &= ~SEVERAL;
  return number >= first_block && number != this_block;
}

static inline void note_reader(u32& r) {
  u32 number = r & ~SEVERAL;
  if (number < first_block) {
    distinct_read++;
    r = this_block;
  } else if (number != this_block) {
    r = this_block | SEVERAL;
  }
}
static inline bool all_lanes(__m128i mask) { return _mm_movemask_epi8(mask) == 0xffff; }
static inline int count_lanes(__m128i mask) { return __builtin_popcount((u32)_mm_movemask_epi8(mask)) >> 2; }

// `bytes` is a constant in the hooks, so that the loops are unrolled. An atomic operation counts as a read here: it
// conflicts only with plain writes.
template <bool WRITE>
static inline __attribute__((always_inline)) void global_access(u64 offset, u64 bytes) {
  (WRITE ? written_bytes : read_bytes) += bytes;
  if (!watching) return;
  const u8* s = state + offset;
  bool fine = true;
  if (bytes == 1) fine = WRITE ? *s != Free : *s == Written;
  else if (bytes == 2) fine = *(const u16*)s == (WRITE ? *(const u16*)s | 0x0101 : 0x0303);
  else {
    for (u64 i = 0; i + 4 <= bytes; i += 4) {
      u32 four = *(const u32*)(s + i);
      fine &= WRITE ? (four & 0x01010101) == 0x01010101 : four == 0x03030303;
    }
    for (u64 i = bytes & ~3ull; i < bytes; i++) fine &= WRITE ? s[i] != Free : s[i] == Written;
  }
  if (__builtin_expect(!fine, 0)) state_problem(offset, bytes);

  u32 *w = writer + offset, *r = reader + offset, *t = writer_thread + offset;
  bool race = false;
  int other = -1;  // thread of this block that races with the access
  const Actor who = actor(current);
  const __m128i before = _mm_set1_epi32((int)first_block - 1), own = _mm_set1_epi32((int)this_block);
  const __m128i number_mask = _mm_set1_epi32((int)~SEVERAL);
  for (u64 i = 0; i + 4 <= bytes; i += 4) {
    __m128i ws = _mm_loadu_si128((const __m128i*)(w + i)), rs = _mm_loadu_si128((const __m128i*)(r + i));
    __m128i own_writer = _mm_cmpeq_epi32(ws, own);
    if (_mm_movemask_epi8(own_writer)) {
      if (all_lanes(own_writer)) {
        if (__builtin_expect(!all_ordered(t + i, who), 0)) other = first_unordered(t + i, 4, who);
      } else {
        for (u64 k = i; k < i + 4; k++) {
          if (w[k] == this_block && !ordered(t[k], who)) other = first_unordered(t + k, 1, who);
        }
      }
    }
    if (WRITE) {
      __m128i rn = _mm_and_si128(rs, number_mask);
      // another block read: its number is in the launch, and is not ours or not the only one
      __m128i in_launch = _mm_cmpgt_epi32(rn, before), only_ours = _mm_cmpeq_epi32(rs, own);
      if (_mm_movemask_epi8(_mm_andnot_si128(only_ours, in_launch))) race = true;
      if (!all_lanes(own_writer)) {
        __m128i this_launch = _mm_cmpgt_epi32(ws, before);
        if (_mm_movemask_epi8(_mm_andnot_si128(own_writer, this_launch))) race = true;
        distinct_written += 4 - count_lanes(this_launch);
        _mm_storeu_si128((__m128i*)(w + i), own);
      }
      _mm_storeu_si128((__m128i*)(t + i), _mm_set1_epi32((int)current->tag));
      *(u32*)(state + offset + i) = 0x03030303;
    } else {
      if (_mm_movemask_epi8(_mm_andnot_si128(own_writer, _mm_cmpgt_epi32(ws, before)))) race = true;
      if (!all_lanes(_mm_cmpeq_epi32(rs, own))) {  // as note_reader, for four bytes
        __m128i rn = _mm_and_si128(rs, number_mask), in_launch = _mm_cmpgt_epi32(rn, before);
        __m128i ours = _mm_cmpeq_epi32(rn, own);
        __m128i noted = _mm_or_si128(own, _mm_andnot_si128(number_mask, in_launch));
        distinct_read += 4 - count_lanes(in_launch);
        _mm_storeu_si128((__m128i*)(r + i), _mm_or_si128(_mm_and_si128(ours, rs), _mm_andnot_si128(ours, noted)));
      }
    }
  }
  for (u64 i = bytes & ~3ull; i < bytes; i++) {
    race |= of_other_block(w[i]);
    if (w[i] == this_block && !ordered(t[i], who)) other = first_unordered(t + i, 1, who);
    if (WRITE) {
      race |= of_other_block(r[i]) || (r[i] & SEVERAL && (r[i] & ~SEVERAL) >= first_block);
      distinct_written += w[i] < first_block;
      w[i] = this_block;
      t[i] = current->tag;
      state[offset + i] = Written;
    } else {
      note_reader(r[i]);
    }
  }
  if (__builtin_expect(race, 0)) block_race(WRITE, offset, bytes);
  if (__builtin_expect(other >= 0, 0)) thread_race(WRITE, offset, bytes, other);
}

// ---- shared memory

static inline bool any_unwritten(const u32* tags) {
  if (all_same(tags)) return (tags[0] & CLOCK_MASK) < first_clock;
  bool any = false;
  for (int i = 0; i < 4; i++) any |= (tags[i] & CLOCK_MASK) < first_clock;
  return any;
}

[[gnu::noinline]] static void report_shared(bool write, bool unwritten, int other, u32 address, u32 bytes, u32 tag) {
  if (unwritten) {
    access_problem(ILLEGAL_ADDRESS, code_of_access, "read of unwritten shared memory, of %u bytes, %s", bytes,
                   place_in_shared(address).c_str());
    for (u32 i = address; i < address + bytes; i++) {  // reported once
      if ((shared->writer[i] & CLOCK_MASK) < first_clock) shared->writer[i] = tag;
    }
  }
  if (other >= 0) {
    std::string whom = (u32)other < MOST_THREADS ? "thread " + std::to_string(other) : std::string("the copy engine");
    access_problem(ILLEGAL_ADDRESS, code_of_access,
                   write ? "race in shared memory: a write, not ordered after an access by %s, of %u bytes, %s"
                         : "race in shared memory: a read, not ordered after a write by %s, of %u bytes, %s",
                   whom.c_str(), bytes, place_in_shared(address).c_str());
  }
}
[[noreturn, gnu::noinline]] static void outside_of_shared(u32 address, u32 bytes) {
  fault(ILLEGAL_ADDRESS, code_of_access, "access outside of shared memory, of %u bytes, %s", bytes,
        place_in_shared(address).c_str());
}

// `tag` is what the access leaves behind, `who` what it must be ordered after.
template <bool WRITE>
static inline __attribute__((always_inline)) void shared_access(u32 address, u32 bytes, const Actor& who, u32 tag) {
  u64 limit = address < STATIC_SHARED ? block.dynamic_bytes : STATIC_SHARED + block.static_bytes;
  if (__builtin_expect(address + (u64)bytes > limit, 0)) outside_of_shared(address, bytes);
  if (WRITE) {
    for (u32 page = address / PAGE; page <= (address + bytes - 1) / PAGE; page++) page_versions[page]++;
  }
  if (!watching) return;
  u32 *w = shared->writer + address, *r = shared->reader + address, *o = shared->other_reader + address;
  int other = -1;  // who races with this access
  bool unwritten = false;
  const __m128i own = _mm_set1_epi32((int)tag);
  u32 fine = ~0u;  // tag of a writer that was looked at: lines mostly have one
  for (u32 i = 0; i + 4 <= bytes; i += 4) {
    bool known = w[i] == fine && all_same(w + i);
    if (!known && __builtin_expect(!all_ordered(w + i, who), 0)) other = first_unordered(w + i, 4, who);
    if (WRITE) {
      if (__builtin_expect(!all_ordered(r + i, who), 0)) other = first_unordered(r + i, 4, who);
      if (__builtin_expect(!all_ordered(o + i, who), 0)) other = first_unordered(o + i, 4, who);
      _mm_storeu_si128((__m128i*)(w + i), own);
    } else {
      if (!known) {
        bool any = any_unwritten(w + i);
        unwritten |= any;
        if (!any && other < 0 && all_same(w + i)) fine = w[i];
      }
      __m128i rs = _mm_loadu_si128((const __m128i*)(r + i)), os = _mm_loadu_si128((const __m128i*)(o + i));
      __m128i same_warp =
          _mm_cmpeq_epi32(_mm_srli_epi32(_mm_xor_si128(rs, own), CLOCK_BITS + 5), _mm_setzero_si128());
      os = _mm_or_si128(_mm_and_si128(same_warp, os), _mm_andnot_si128(same_warp, rs));
      _mm_storeu_si128((__m128i*)(o + i), os);
      _mm_storeu_si128((__m128i*)(r + i), own);
    }
  }
  for (u32 i = bytes & ~3u; i < bytes; i++) {
    if (!ordered(w[i], who)) other = first_unordered(w + i, 1, who);
    if (WRITE) {
      if (!ordered(r[i], who)) other = first_unordered(r + i, 1, who);
      if (!ordered(o[i], who)) other = first_unordered(o + i, 1, who);
      w[i] = tag;
    } else {
      unwritten |= (w[i] & CLOCK_MASK) < first_clock;
      if ((r[i] ^ tag) >> (CLOCK_BITS + 5)) o[i] = r[i];  // of another warp
      r[i] = tag;
    }
  }
  if (__builtin_expect(other >= 0 || unwritten, 0)) report_shared(WRITE, unwritten, other, address, bytes, tag);
}

u64 shared_version(u32 first, u32 last) {
  u64 sum = 0;
  for (u32 page = first / PAGE; page <= last / PAGE; page++) sum += page_versions[page];
  return sum;
}

// ---- any address

[[gnu::noinline]] static void elsewhere(u64 address, u64 bytes, bool write) {
  // Constants of the library may be read.
  static u64 image_first = 0, image_last = 0;
  if (!image_last) {
    extern char image_start __asm__("__ehdr_start"), image_end __asm__("_end");
    image_first = (u64)&image_start;
    image_last = (u64)&image_end;
  }
  if (!write && address >= image_first && address + bytes <= image_last) return;
  fault(ILLEGAL_ADDRESS, code_of_access, "%s memory that is not the device's, of %llu bytes at 0x%llx",
        write ? "write to" : "read of", bytes, address);
}

template <bool WRITE> static inline __attribute__((always_inline)) void access(void* p, u64 bytes, const void* code) {
  u64 offset = (u64)((u8*)p - region);
  if (offset >= DEVICE_MEMORY && offset - DEVICE_MEMORY < device_bytes) {
    code_of_access = code;
    global_access<WRITE>(offset - DEVICE_MEMORY, bytes);
  } else if (offset < DEVICE_MEMORY) {
    if (offset >= STACKS) {
      if ((u64)((u8*)p - current->stack) < STACK_BYTES) return;
      code_of_access = code;
      fault(ILLEGAL_ADDRESS, code, "access to local memory of another thread, of %llu bytes", bytes);
    }
    code_of_access = code;
    shared_access<WRITE>((u32)offset, (u32)bytes, actor(current), current->tag);
  } else {
    if (!running) return;  // a constructor of a source
    code_of_access = code;
    u64 fixed = (u64)((u8*)p - block.static_shared);
    if (fixed < block.static_bytes) {
      shared_access<WRITE>((u32)(STATIC_SHARED + fixed), (u32)bytes, actor(current), current->tag);
    } else {
      elsewhere((u64)p, bytes, WRITE);
    }
  }
}

void copy_engine_read(const void* p, u32 bytes, const void* code) {
  code_of_access = code;
  u64 offset = offset_of(p);
  if (offset + bytes > device_bytes) {
    fault(ILLEGAL_ADDRESS, code, "the copy engine reads memory that is not the device's, %u bytes at %p", bytes, p);
  }
  global_access<false>(offset, bytes);
}
void copy_engine_write(u32 address, u32 bytes, const Actor& issuer, u32 tag, const void* code) {
  code_of_access = code;
  shared_access<true>(address, bytes, issuer, tag);
}

// Written by an ordinary store: the thread must have executed fence_async after it, and before the barrier that orders
// the current thread after the store.
void tensor_core_read(const void* p, u32 bytes) {
  u32 address = shared_address(p);
  code_of_access = code_of_products();
  Actor who = actor(current);
  shared_access<false>(address, bytes, who, current->tag);
  if (!watching) return;
  u32 checked = ~0u;
  for (u32 i = 0; i < bytes; i++) {
    u32 tag = shared->writer[address + i];
    if (tag == checked) {
      if (all_same(&shared->writer[address + i]) && i + 3 < bytes) i += 3;
      continue;
    }
    checked = tag;
    u32 lin = tag >> CLOCK_BITS, clock = tag & CLOCK_MASK;
    if (lin >= MOST_THREADS || clock < first_clock) continue;
    bool in_time = lin == who.lin || who.known->clock[lin] > clock;
    if (thread(lin)->fenced < clock || !in_time) {
      access_problem(ILLEGAL_ADDRESS, code_of_access,
                     "the tensor cores read what thread %u stored without a fence_async behind it, %s", lin,
                     place_in_shared(address).c_str());
      return;
    }
  }
}
const u8* shared_read(u32 address, u32 bytes) {
  const u8* p = shared_pointer(address);
  tensor_core_read(p, bytes);
  return p;
}

void atomic_access(void* p, u32 bytes, const void* code) {
  code_of_access = code;
  if ((u64)p % bytes) fault(MISALIGNED_ADDRESS, code, "misaligned atomic operation at %p", p);
  u64 offset = offset_of(p);
  if (offset < device_bytes) {
    global_access<false>(offset, bytes);
    written_bytes += bytes;
    return;
  }
  // In shared memory atomic operations are ordered with each other; against plain accesses only the read is checked.
  access<false>(p, bytes, code);
}

}  // namespace sim

using namespace sim;

void fence_async() {
  current->fenced = current->clock;
  advance(current);
  fence_mbarrier_init();
}

// ---- what the compiler calls

extern "C" {
// Before an access to a type that wants more alignment than `p` has, such as float4 (-fsanitize=alignment).
struct TypeMismatch {
  const char* file;
  u32 line, column;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* where, void* p) {
  const char* name = strrchr(where->file, '/');
  fault(MISALIGNED_ADDRESS, nullptr, "misaligned access at %p (%s:%u)", p, name ? name + 1 : where->file, where->line);
}

#define HOOKS(bytes) \
  void __tsan_read##bytes(void* p) { \
    access<false>(p, bytes, __builtin_return_address(0)); \
  } \
  void __tsan_write##bytes(void* p) { \
    access<true>(p, bytes, __builtin_return_address(0)); \
  } \
  void __tsan_unaligned_read##bytes(void* p) { access<false>(p, bytes, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##bytes(void* p) { access<true>(p, bytes, __builtin_return_address(0)); } \
  void __tsan_volatile_read##bytes(void* p) { access<false>(p, bytes, __builtin_return_address(0)); } \
  void __tsan_volatile_write##bytes(void* p) { access<true>(p, bytes, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, unsigned long bytes) { access<false>(p, bytes, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long bytes) { access<true>(p, bytes, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
