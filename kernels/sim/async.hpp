// mbarriers and the copy engine (TMA). Defined in copy_engine.cpp.
#pragma once

// What cuTensorMapEncodeTiled of driver.cpp writes into the 128 bytes of a `CUtensorMap`. Dimensions are innermost
// first.
struct alignas(64) TensorMap {
  u8* base;
  u64 size[3];    // elements
  u64 stride[2];  // bytes, of dimensions 1 and 2
  u32 box[3];     // elements
  u32 element_bytes, swizzle_bytes, rank;
  u64 magic;  // tells a tensor map from other bytes
  u64 unused[5];
};
static_assert(sizeof(TensorMap) == 128, "the size of CUtensorMap");
constexpr u64 TENSOR_MAP_MAGIC = 0x70616d2d726f736eull;
#define TENSOR_MAP const TensorMap

// Dynamic shared memory begins at address 0, static shared memory at 228 KB.
u32 shared_address(const void* p);
// Where the 128-byte swizzle puts the byte at `address`.
inline u32 swz128(u32 address) { return address ^ (address >> 7 & 7) << 4; }

void mbarrier_init(u64* barrier, u32 count);
void fence_mbarrier_init();
void mbarrier_arrive(u64* barrier);
void mbarrier_expect(u64* barrier, u32 bytes);
void mbarrier_wait(u64* barrier, u32 parity);
void fence_async();

void prefetch_map(const TensorMap* map);
void copy_tile_2d(void* to, const TensorMap* map, u64* barrier, int c0, int c1);
void copy_tile_3d(void* to, const TensorMap* map, u64* barrier, int c0, int c1, int c2);
