// The tensor cores of sm_90a in software.
//
// A product is done when its group is waited for, not when it is issued. Until then accumulators that start from zero
// hold NaN, and operands may still be overwritten: a missing wait, or a stage of the ring that is released too early,
// gives wrong numbers. Each thread computes its own part, with exact products and sums in f32 in the order of K; the
// tensor cores of E4M3 keep fewer bits than that.
//
// The 128 threads of a product read the same operands: the first one decodes them, the others take them as they are
// unless shared memory was written in between. What the product reads is watched once a warp.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.hpp"
#include "watch.hpp"

void wgmma_fence() {}
void wgmma_commit() {
  auto* t = sim::cur();
  t->groups.push_back(std::move(t->open));
  t->open.clear();
}

namespace sim {

static const void* code = nullptr;  // of the call that waits, for reports
const void* code_of_products() { return code; }

void wait_for_products(int groups_left) {
  Thread* t = cur();
  const void* here = __builtin_return_address(0);
  yield();  // copies that nobody waits for may land in between
  code = here;
  while (t->groups.size() > (size_t)groups_left) {
    for (auto& product : t->groups.front()) product();
    t->groups.erase(t->groups.begin());
  }
  // The instruction is the whole warp's: what one lane does next comes after the products of all. (So a lane may
  // release a stage for its warp without another barrier.)
  __syncwarp();
}

// ---- operands in shared memory

constexpr u32 MOST_ROWS = 256, MOST_DEPTH = 32;

// K- or MN-major, with the 128-byte swizzle.
struct Operand {
  u64 descriptor;
  u32 rows, depth, size;  // elements along M or N, and along K; bytes of an element
  bool mn;

  bool operator==(const Operand& o) const {
    return descriptor == o.descriptor && rows == o.rows && depth == o.depth && size == o.size && mn == o.mn;
  }
  // Bytes: where it begins; from 64 elements of M or N to the next (MN-major); from one atom of 8 lines to the next.
  u32 start() const { return (u32)(descriptor & 0x3FFF) << 4; }
  u32 next() const { return (u32)(descriptor >> 16 & 0x3FFF) << 4; }
  u32 atom() const { return (u32)(descriptor >> 32 & 0x3FFF) << 4; }
  // Of an element, before the swizzle.
  u32 address(u32 row, u32 k) const {
    return mn ? start() + (row >> 6) * next() + (k >> 3) * atom() + (k & 7) * 128 + (row & 63) * size
              : start() + (row >> 3) * atom() + (row & 7) * 128 + k * size;
  }
  u32 last_address() const { return address(rows - 1, depth - 1) | 127; }
  // Calls `visit` for pieces of 16 bytes, which the swizzle keeps together, of the rows [first, last).
  template <class Visit> void each_piece(u32 first, u32 last, Visit visit) const {
    u32 count = 16 / size;
    if (mn) {
      for (u32 k = 0; k < depth; k++) {
        for (u32 row = first; row < last; row += count) visit(row, k, swz128(address(row, k)));
      }
    } else {
      for (u32 row = first; row < last; row++) {
        for (u32 k = 0; k < depth; k += count) visit(row, k, swz128(address(row, k)));
      }
    }
  }
};

// What the bytes are as numbers, [K, rows], where the rows of B are sorted by the threads that need them: first those
// of lane 0 of every four, (0, 1, 8, 9, 16, …), then those of lane 1, (2, 3, 10, 11, …).
struct Decoded {
  float value[MOST_DEPTH][MOST_ROWS];
};
struct Key {
  Operand operand = {0, 0, 0, 0, false};
  u64 version = ~0ull;
};
constexpr u32 KEPT = 256;
static Decoded kept[KEPT];
static Key keys[KEPT];

static u32 sorted(u32 row, u32 rows) { return (row >> 1 & 3) * (rows / 4) + (row >> 3) * 2 + (row & 1); }

static float bf16_value(const u8* p) {
  u16 bits;
  memcpy(&bits, p, 2);
  return to_float(bf16{bits});
}
struct E4m3Values {
  float of[256];
  E4m3Values() {
    for (int i = 0; i < 256; i++) of[i] = e4m3_to_f((u8)i);
  }
};

static const Decoded& decode(const Operand& operand) {
  static const E4m3Values e4m3;
  u64 version = shared_version(operand.start(), operand.last_address());
  u32 place = (u32)((operand.descriptor / 2 + operand.rows) * 0x9E3779B1u) / (u32)((1ull << 32) / KEPT);
  Decoded& d = kept[place];
  if (keys[place].version == version && keys[place].operand == operand) return d;
  keys[place] = Key{operand, version};
  operand.each_piece(0, operand.rows, [&](u32 row, u32 k, u32 address) {
    const u8* p = shared_pointer(address);
    for (u32 i = 0; i < 16 / operand.size; i++) {
      float value = operand.size == 1 ? e4m3.of[p[i]] : bf16_value(p + 2 * i);
      if (operand.mn) d.value[k][sorted(row + i, operand.rows)] = value;
      else d.value[k + i][sorted(row, operand.rows)] = value;
    }
  });
  return d;
}

// Rows [first, last), for the current thread's warp. The swizzle moves pieces within lines of 128 bytes, and keeps
// pieces that are 32 bytes together.
static void watch(const Operand& operand, u32 first, u32 last) {
  if (cur()->lin & 31) return;
  if (!operand.mn && operand.start() % 32 == 0) {
    for (u32 row = first; row < last; row++) {
      tensor_core_read(shared_pointer(swz128(operand.address(row, 0)) & ~31u), operand.depth * operand.size);
    }
  } else if (operand.mn && operand.start() % 128 == 0 && first % 64 == 0 && last % 64 == 0) {
    for (u32 k = 0; k < operand.depth; k++) {
      for (u32 row = first; row < last; row += 64) tensor_core_read(shared_pointer(operand.address(row, k)), 128);
    }
  } else {
    operand.each_piece(first, last, [](u32, u32, u32 address) { tensor_core_read(shared_pointer(address), 16); });
  }
}

static Operand operand_of(u64 descriptor, u32 rows, u32 depth, u32 size, bool mn) {
  if (descriptor >> 62 != 1) {
    problem(LAUNCH_FAILED, "a descriptor of an operand without the 128-byte swizzle");
    abandon();
  }
  return Operand{descriptor, rows, depth, size, mn};
}

// ---- products

// The two rows of A that a thread's accumulators belong to.
struct Rows {
  float value[2][MOST_DEPTH];
};

typedef float Eight __attribute__((vector_size(32), aligned(4)));

// d (+)= rows · bᵀ, where b points to the thread's `columns` columns (a multiple of 8), one line of MOST_ROWS per
// step along K.
__attribute__((target_clones("avx2", "default"))) static void multiply_columns(float* d, const Rows& rows,
                                                                               const float* b, u32 columns, u32 depth,
                                                                               int keep) {
  for (u32 first = 0; first < columns; first += 8) {
    float sums[2][8];
    for (u32 half = 0; half < 2; half++) {
      for (u32 i = 0; i < 8; i++) sums[half][i] = keep ? d[((first + i) >> 1) * 4 + half * 2 + (i & 1)] : 0.f;
    }
    Eight sum0 = *(const Eight*)sums[0], sum1 = *(const Eight*)sums[1];
    for (u32 k = 0; k < depth; k++) {
      Eight line = *(const Eight*)(b + k * MOST_ROWS + first);
      sum0 += rows.value[0][k] * line;
      sum1 += rows.value[1][k] * line;
    }
    *(Eight*)sums[0] = sum0;
    *(Eight*)sums[1] = sum1;
    for (u32 half = 0; half < 2; half++) {
      for (u32 i = 0; i < 8; i++) d[((first + i) >> 1) * 4 + half * 2 + (i & 1)] = sums[half][i];
    }
  }
}

static void multiply(float* d, int count, const Rows& rows, const Operand& b, int keep) {
  watch(b, 0, b.rows);
  const Decoded& decoded = decode(b);
  multiply_columns(d, rows, decoded.value[0] + (cur()->lin & 3) * (b.rows / 4), b.rows / 4, b.depth, keep);
  count_tensor_flops((u64)count * b.depth * 2);
}

static void issue(float* d, int count, int keep, std::function<void()> product) {
  if (!keep) {
    for (int i = 0; i < count; i++) d[i] = NAN;
  }
  cur()->open.push_back(std::move(product));
}

static void from_shared(float* d, int count, u64 a, bool a_mn, u64 b, bool b_mn, u32 size, u32 depth, int keep) {
  Operand of_a = operand_of(a, 64, depth, size, a_mn), of_b = operand_of(b, (u32)count * 2, depth, size, b_mn);
  issue(d, count, keep, [=] {
    u32 warp = cur()->lin >> 5 & 3, row = warp * 16 + ((cur()->lin & 31) >> 2);
    watch(of_a, warp * 16, warp * 16 + 16);
    const Decoded& decoded = decode(of_a);
    Rows rows;
    for (u32 half = 0; half < 2; half++) {
      for (u32 k = 0; k < depth; k++) rows.value[half][k] = decoded.value[k][sorted(row + 8 * half, 64)];
    }
    multiply(d, count, rows, of_b, keep);
  });
}

void product_e4m3(float* d, int count, u64 a, u64 b, int keep) {
  from_shared(d, count, a, false, b, false, 1, 32, keep);
}

void product_bf16(float* d, int count, u64 a, bool a_mn, u64 b, bool b_mn, int keep) {
  from_shared(d, count, a, a_mn, b, b_mn, 2, 16, keep);
}

void product_bf16(float* d, int count, const u32* a, u64 b, bool b_mn, int keep) {
  struct Fragment {
    u32 word[4];
  };
  static Fragment fragments[1024];
  u32 thread = cur()->lin;
  Fragment own{{a[0], a[1], a[2], a[3]}};
  fragments[thread] = own;
  __syncwarp();
  // four threads share two rows; each holds k = 2i, 2i + 1 and 2i + 8, 2i + 9 of both
  Rows rows;
  for (u32 i = 0; i < 4; i++) {
    for (u32 j = 0; j < 4; j++) {
      u32 word = fragments[(thread & ~3u) + i].word[j], k = 2 * i + (j >> 1) * 8;
      rows.value[j & 1][k] = to_float(bf16{(u16)word});
      rows.value[j & 1][k + 1] = to_float(bf16{(u16)(word >> 16)});
    }
  }
  __syncwarp();
  Operand of_b = operand_of(b, (u32)count * 2, 16, 2, b_mn);
  issue(d, count, keep, [=] {
    if (memcmp(own.word, a, sizeof own.word)) {
      problem(LAUNCH_FAILED, "an operand in registers changed before its product was done");
    }
    multiply(d, count, rows, of_b, keep);
  });
}

}  // namespace sim
