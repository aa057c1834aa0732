// One small kernel for each group of instructions of ptx.cuh, on known integers: what ptx_self_test.cu runs.
//
// A kernel gets kWords input words (known and distinct) and writes kWords words; it must give the same on every run. What
// a block leaves out stays as it was.
#pragma once

#include "../../csrc/kernels/cuda/element.cuh"

namespace self_test {

using namespace adapterx::cuda;

constexpr int kWords = 1024;
constexpr int64_t kShared = 16 * 1024;

// Shared memory: 16 mbarriers, then words.
struct Shared {
  uint64_t* barriers;
  uint32_t* words;

  __device__ explicit Shared(unsigned char* memory)
      : barriers(reinterpret_cast<uint64_t*>(memory)), words(reinterpret_cast<uint32_t*>(memory + 128)) {}
};

__device__ inline void copy_words(uint32_t* to, const uint32_t* from, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

template <bool kTransposed>
__global__ void ldmatrix(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  const Shared shared(memory);
  copy_words(shared.words, in, kWords);
  __syncwarp();
  for (int i = 0; i < 2; ++i) {
    uint32_t r[4];
    // Rows in an order of their own, so that a lane's address is not its place.
    const uint32_t* row = shared.words + (threadIdx.x * 5 + i) % 32 * 4;
    kTransposed ? ldmatrix_x4_trans(r, row) : ldmatrix_x4(r, row);
    for (int j = 0; j < 4; ++j) out[(i * 4 + j) * 32 + threadIdx.x] = r[j];
  }
}

// Products of integers from -8 to 7: exact whatever the order of the sum.
template <typename Element>
__global__ void tensor_core(const uint32_t* in, uint32_t* out) {
  const auto integers = [&](int i) {
    const uint32_t word = in[i * 32 + threadIdx.x];
    return pack<Element>(static_cast<float>(word % 16) - 8.f, static_cast<float>(word / 16 % 16) - 8.f);
  };
  float d[4];
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(in[i * 32 + threadIdx.x] % 1000);
  for (int i = 0; i < 4; ++i) a[i] = integers(4 + i);
  mma<Element>(d, a, integers(8), integers(9));
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = static_cast<uint32_t>(static_cast<int>(d[i]));
}

__global__ void copies(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  const Shared shared(memory);
  const int i = threadIdx.x * 4;
  cp_async16(shared.words + i, in + i, threadIdx.x % 17);
  cp_async_commit();
  cp_async16(shared.words + 128 + i, in + 128 + i, 16);
  cp_async_commit();
  cp_async_wait<1>();
  for (int j = 0; j < 4; ++j) out[i + j] = shared.words[i + j];
  cp_async_wait<0>();
  __syncwarp();
  for (int j = 0; j < 4; ++j) out[128 + i + j] = shared.words[128 + (i ^ 124) + j];
}

__global__ void transposition(const uint32_t* in, uint32_t* out) {
  out[threadIdx.x] = movmatrix_trans(in[threadIdx.x]);
}

// Two halves of the block, each with a barrier of its own.
__global__ void named_barriers(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  const int half = threadIdx.x / 64;
  uint32_t* words = Shared(memory).words + 64 * half;
  for (int round = 0; round < 4; ++round) {
    words[threadIdx.x % 64] = in[128 * round + threadIdx.x];
    block_barrier(1 + half, 64);
    out[128 * round + threadIdx.x] = words[63 - threadIdx.x % 64];
    block_barrier(1 + half, 64);
  }
}

// ---- from sm_90 on ----

__global__ void stmatrix(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  const Shared shared(memory);
  uint32_t r[4];
  for (int i = 0; i < 4; ++i) r[i] = in[i * 32 + threadIdx.x];
  stmatrix_x4_trans(shared.words + threadIdx.x * 5 % 32 * 4, r);
  __syncwarp();
  copy_words(out, shared.words, 128);
}

// Each block reads the words of the next one, by the whole barrier of the cluster and by its halves.
__global__ void clusters(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  const Shared shared(memory);
  const unsigned rank = cluster_rank();
  const uint32_t* next = cluster_map(shared.words, (rank + 1) % 4);
  shared.words[threadIdx.x] = in[rank * 32 + threadIdx.x];
  cluster_sync();
  out[rank * 32 + threadIdx.x] = next[threadIdx.x];
  cluster_arrive_relaxed();
  cluster_wait();
  shared.words[threadIdx.x] = in[128 + rank * 32 + threadIdx.x];
  cluster_arrive();
  out[384 + rank * 32 + threadIdx.x] = rank;
  cluster_wait();
  out[128 + rank * 32 + threadIdx.x] = next[threadIdx.x];
  cluster_sync();
}

// Two warps give each other words through mbarriers, phase by phase.
__global__ void mbarriers(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  const Shared shared(memory);
  uint64_t *full = shared.barriers, *empty = shared.barriers + 1;
  if (threadIdx.x == 0) barrier_init(full, 32), barrier_init(empty, 1), barrier_init_fence();
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 8; ++i) {
    if (threadIdx.x < 32) {
      barrier_wait(empty, i % 2 ^ 1);
      shared.words[31 - lane] = in[32 * i + lane];
      barrier_arrive(full);
    } else {
      barrier_wait(full, i % 2);
      out[32 * i + lane] = shared.words[lane];
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
    }
  }
}

// Three stages of 128 words in four rows; a lane copies a row, which leave for another place.
__global__ void bulk_copies(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  const Shared shared(memory);
  constexpr int kStages = 3, kTiles = 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(shared.barriers + i, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const auto load = [&](int tile) {
    const int stage = tile % kStages;
    if (threadIdx.x == 0) barrier_expect(shared.barriers + stage, 512);
    __syncwarp();
    if (threadIdx.x >= 4) return;
    const int row = 32 * threadIdx.x;
    bulk_load(shared.words + 256 * stage + 36 * threadIdx.x, in + 128 * tile + row, 128, shared.barriers + stage);
  };
  for (int tile = 0; tile < kStages - 1; ++tile) load(tile);
  for (int tile = 0; tile < kTiles; ++tile) {
    uint32_t* words = shared.words + 256 * (tile % kStages);
    barrier_wait(shared.barriers + tile % kStages, tile / kStages % 2);
    for (int row = 0; row < 4; ++row) words[36 * row + threadIdx.x] ^= 0x01010101u * tile;
    async_proxy_fence();
    __syncwarp();
    if (threadIdx.x < 4) bulk_store(out + 128 * tile + 32 * (3 - threadIdx.x), words + 36 * threadIdx.x, 128);
    bulk_commit();
    bulk_wait_read<0>();
    __syncwarp();
    if (tile + kStages - 1 < kTiles) load(tile + kStages - 1);
  }
  bulk_wait<0>();
}

// Each block sends words to every one of its cluster, itself too; the order of arrival is nobody's business.
template <typename Value>
__device__ inline void send_words(const uint32_t* in, uint32_t* out, unsigned char* memory) {
  constexpr int kWidth = sizeof(Value) / 4, kBlocks = 4, kRow = 32 * kWidth;
  const Shared shared(memory);
  const int rank = static_cast<int>(cluster_rank());
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared.barriers + i, 1);
      barrier_expect(shared.barriers + i, kBlocks * 32 * sizeof(Value));
    }
    barrier_init_fence();
  }
  cluster_sync();
  for (int round = 0; round < 2; ++round) {
    auto* places = reinterpret_cast<Value*>(shared.words + kBlocks * kRow * round);
    for (int to = 0; to < kBlocks; ++to) {
      const int first = ((round * kBlocks + to) * kBlocks + rank) * kRow + threadIdx.x * kWidth;
      Vector<uint32_t, kWidth> words;
      for (int i = 0; i < kWidth; ++i) words.values[i] = in[(first + i) % kWords] + first;
      store_remote(places + 32 * rank + threadIdx.x, to, *reinterpret_cast<const Value*>(&words),
                   shared.barriers + round);
    }
    barrier_wait_cluster(shared.barriers + round, 0);
    // All that a block has received, in 128 words.
    uint32_t sums[2] = {};
    for (int i = 0; i < kBlocks * kWidth; ++i) {
      const uint32_t word = shared.words[kBlocks * kRow * round + 32 * i + threadIdx.x];
      sums[0] = sums[0] * 31 + word, sums[1] ^= word + i;
    }
    for (int i = 0; i < 2; ++i) out[((round * kBlocks + rank) * 2 + i) * 32 + threadIdx.x] = sums[i];
  }
  cluster_sync();  // nobody ends while something is on its way to another block
}
__global__ void remote_float4(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  send_words<float4>(in, out, memory);
}
__global__ void remote_uint2(const uint32_t* in, uint32_t* out) {
  ADAPTERX_SHARED_MEMORY(memory);
  send_words<uint2>(in, out, memory);
}

// Run after a kernel that writes what it reads.
__global__ void dependent(const uint32_t* in, uint32_t* out) {
  dependency_wait();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) out[256 + i] = out[255 - i] ^ in[i];
  dependents_launch();
}
__global__ void first_of_two(const uint32_t* in, uint32_t* out) {
  dependents_launch();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) out[i] = in[i] * 3 + 1;
}

}  // namespace self_test
