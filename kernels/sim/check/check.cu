// Kernels for the checks of the simulator: correct ones, and ones with one planted fault each, chosen by `fault`.
#include "device.cuh"

constexpr int THREADS = 256;

KERNEL(THREADS) scale(const float* x, float* y, int n, float factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * factor;
}

KERNEL(256) add_four(const float4* x, float4* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float4 value = x[i];
  value.y += 1.f;
  y[i] = value;
}

// y[block] = sum of a row of x. Fault 1: no barrier before the partial sums are read.
KERNEL(256) row_sum(const float* x, float* y, int n, int fault) {
  __shared__ float part[32];
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[(size_t)blockIdx.x * n + i];
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = sum;
  if (fault != 1) __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < (blockDim.x >> 5) ? part[threadIdx.x] : 0.f;
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
  }
}

// Reverses blocks of blockDim.x numbers through dynamic shared memory, `rounds` times. Fault 1: no barrier between the
// rounds, so a thread writes while others still read. Fault 2: stores beyond the end. Fault 3: reads what nobody wrote,
// 4: where nobody ever wrote.
KERNEL(256) reverse(const float* x, float* y, int rounds, int fault) {
  DYNAMIC_SHARED(memory);
  float* buffer = (float*)memory;
  int n = blockDim.x, i = threadIdx.x;
  float value = x[blockIdx.x * n + i];
  for (int r = 0; r < rounds; r++) {
    if (fault != 3 || i != 5) buffer[fault == 2 ? i + 1 : i] = value;
    __syncthreads();
    value = buffer[fault == 4 ? 40000 + i : n - 1 - i];
    if (fault != 1) __syncthreads();
  }
  y[blockIdx.x * n + i] = value;
}

// Neighbours in a warp exchange through shared memory. Fault 1: without __syncwarp.
KERNEL(128) exchange(const float* x, float* y, int fault) {
  __shared__ float buffer[128];
  int i = threadIdx.x;
  buffer[i] = x[i];
  if (fault != 1) __syncwarp();
  y[i] = buffer[i ^ 1];
}

// Blocks share memory. 0: atomic sums, correct. 1: all write y[0]. 2: block b reads what block b - 1 wrote.
KERNEL(32) share(u32* y, int fault) {
  if (threadIdx.x) return;
  if (fault == 0) {
    atomicAdd(&y[0], blockIdx.x);
    y[1 + blockIdx.x] = 1;
  } else if (fault == 1) {
    y[0] = blockIdx.x;
  } else {
    if (blockIdx.x) y[blockIdx.x] = y[blockIdx.x - 1] + 1;
    else y[0] = 1;
  }
}

// Threads exchange numbers through global memory. Fault 1: without a barrier. 2: two threads write the same number.
KERNEL(64) stage(const float* x, float* between, float* y, int fault) {
  int i = threadIdx.x;
  between[i] = x[i];
  if (fault != 1) __syncthreads();
  y[fault == 2 ? i / 2 : i] = between[63 - i];
}

// Counts bytes in shared memory by atomics.
KERNEL(256) histogram(const u8* x, u32* counts, int n) {
  __shared__ u32 bins[256];
  bins[threadIdx.x] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&bins[x[i]], 1u);
  __syncthreads();
  if (bins[threadIdx.x]) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}

// Warps vote and shuffle; threads from `stay` on return first, which the barrier must not wait for.
KERNEL(256) votes(u32* y, int stay) {
  int i = threadIdx.x, lane = i & 31;
  if (i >= stay) return;
  u32 odd = __ballot_sync(0xffffffffu, lane & 1);
  u32 half = lane < 16 ? __shfl_down_sync(0x0000ffffu, (u32)lane, 4, 16)
                       : __shfl_up_sync(0xffff0000u, (u32)lane, 4, 16);
  u32 first = __shfl_sync(0xffffffffu, (u32)i, 0);
  u64 wide = __shfl_xor_sync(0xffffffffu, (u64)lane << 40, 1);
  int any = __syncthreads_or(i == stay - 1), count = __syncthreads_count(lane == 3);
  u32 most = __reduce_max_sync(0xffffffffu, (u32)lane * 7);
  y[i] = odd == 0xaaaaaaaau && first == (u32)(i & ~31) && wide >> 40 == (u64)(lane ^ 1) && any && count == stay / 32 &&
                 most == 217 && half == (u32)(lane < 12 ? lane + 4 : lane < 16 ? lane : lane < 20 ? lane : lane - 4)
             ? 1
             : 0;
}

// Fault 0: two named barriers hand numbers from warp 0 to warp 1. 1: the second warp waits at another barrier.
KERNEL(64) handover(const float* x, float* y, int fault) {
  __shared__ float buffer[32];
  int i = threadIdx.x & 31;
  for (int round = 0; round < 4; round++) {
    if (threadIdx.x < 32) {
      buffer[i] = x[round * 32 + i];
      named_barrier(1, 64);
      named_barrier(2, 64);
    } else {
      named_barrier(fault ? 3 : 1, 64);
      y[round * 32 + i] = buffer[31 - i];
      named_barrier(2, 64);
    }
  }
}

// Sums tiles of 64 × 32 floats (rank 2) or 4 × 8 × 32 (rank 3) that the copy engine brings, through STAGES stages.
// Faults: 1 more bytes expected than come; 2 fewer; 3 no wait for the tile; 4 the ring's stages are not waited for;
// 5 no fence_mbarrier_init; 6 no __syncthreads after mbarrier_init; 7 the barrier of another stage is waited for.
constexpr int STAGES = 2, TILE_BYTES_2D = 64 * 32 * 4, TILE_BYTES_3D = 4 * 8 * 32 * 4;
KERNEL(96) tile_sum(TENSOR_MAP map, float* y, int tiles, int rank, int fault) {
  DYNAMIC_SHARED(memory);
  __shared__ u64 full[STAGES], empty[STAGES];
  const int bytes = rank == 2 ? TILE_BYTES_2D : TILE_BYTES_3D;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 2);
    }
    if (fault != 5) fence_mbarrier_init();
  }
  if (fault != 6) __syncthreads();
  if (threadIdx.x >= 64) {
    if (threadIdx.x > 64) return;
    for (int t = 0; t < tiles; t++) {
      int s = t % STAGES, round = t / STAGES;
      if (fault != 4) mbarrier_wait(&empty[s], (round & 1) ^ 1);
      mbarrier_expect(&full[s], bytes + (fault == 1 ? 16 : fault == 2 ? -16 : 0));
      if (rank == 2) copy_tile_2d(memory + s * TILE_BYTES_2D, &map, &full[s], -8, t * 64);
      else copy_tile_3d(memory + s * TILE_BYTES_2D, &map, &full[s], 0, -2, t * 4);
    }
    return;
  }
  float sum = 0;
  for (int t = 0; t < tiles; t++) {
    int s = t % STAGES, round = t / STAGES;
    if (fault != 3) mbarrier_wait(&full[fault == 7 ? s ^ 1 : s], round & 1);
    const float* tile = (const float*)(memory + s * TILE_BYTES_2D);
    for (int i = threadIdx.x; i < bytes / 4; i += 64) sum += tile[i];
    __syncwarp();
    if ((threadIdx.x & 31) == 0) mbarrier_arrive(&empty[s]);
  }
  y[threadIdx.x] = sum;
}

// d[64, 128] = a[64, 32] · b[128, 32]ᵀ in E4M3, with operands that threads store. Fault 1: without fence_async. 2:
// the fence comes after the barrier. 3: no wait for the product.
KERNEL(128) product(const u8* a, const u8* b, float* d, int fault, int repeats) {
  DYNAMIC_SHARED(memory);
  u8* at_a = memory;
  u8* at_b = memory + 8192;
  for (int i = threadIdx.x; i < 192 * 32; i += 128) {
    int row = i / 32, k = i % 32;
    if (row < 64) at_a[swz128(row * 128 + k)] = a[row * 32 + k];
    else at_b[swz128((row - 64) * 128 + k)] = b[(row - 64) * 32 + k];
  }
  if (fault != 1 && fault != 2) fence_async();
  __syncthreads();
  if (fault == 2) fence_async();
  float sums[64];
  for (int i = 0; i < 64; i++) fence_operand(sums[i]);
  wgmma_fence();
  for (int i = 0; i < repeats; i++) wgmma_e4m3(sums, k_major(at_a), k_major(at_b), 0);
  wgmma_commit();
  if (fault != 3) wgmma_wait<0>();
  for (int i = 0; i < 64; i++) fence_operand(sums[i]);
  int row = (threadIdx.x >> 5) * 16 + ((threadIdx.x & 31) >> 2), column = (threadIdx.x & 3) * 2;
  for (int j = 0; j < 16; j++) {
    for (int e = 0; e < 2; e++) {
      d[row * 128 + j * 8 + column + e] = sums[j * 4 + e];
      d[(row + 8) * 128 + j * 8 + column + e] = sums[j * 4 + 2 + e];
    }
  }
}

// Many accesses, for the time of one: each block sums and stores `n` numbers; `shared` goes through shared memory.
KERNEL(256) many(const float* x, float* y, int n, int shared) {
  __shared__ float buffer[256];
  size_t base = (size_t)blockIdx.x * n;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += 256) {
    if (shared) {
      buffer[threadIdx.x] = x[0] + i;
      sum += buffer[threadIdx.x];
    } else {
      y[base + i] = x[base + i] + 1.f;
    }
  }
  if (shared) y[base + threadIdx.x] = sum;
}

// Many shuffles and barriers, for the time of one.
KERNEL(256) many_waits(float* y, int n, int barriers) {
  float value = threadIdx.x;
  for (int i = 0; i < n; i++) {
    if (barriers) __syncthreads();
    else value += __shfl_xor_sync(0xffffffffu, value, 1);
  }
  y[blockIdx.x * 256 + threadIdx.x] = value;
}
