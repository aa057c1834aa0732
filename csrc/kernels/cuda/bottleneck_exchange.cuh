// How the sums of the first product become the middle of the tile, known to all warps and blocks that share its rows.
// Each block finishes its share of the rows: it gets the sums of these from every warp of the cluster, adds them in the
// order of blocks and warps (the same bits every time), applies bias and activation and gives every block the result.
//
// In a cluster both go by st.async to mbarriers that expect all of their bytes. Each buffer is filled once, so nothing
// must be told that it is free, and no cluster-wide barrier orders the stores: who waits for the mbarrier sees all that
// has landed there. The one cluster barrier says that the mbarriers are there before the first store to them; its
// arrival is relaxed, because barrier_init_fence has ordered the initialisation, and nothing else is known by it. A
// block may end when it has got its middle: nothing more is on the way to its shared memory then, since the middle of a
// row comes only after all of its sums, and each block waits for those of its own rows.
#pragma once

#include "bottleneck_layout.cuh"
#include "bottleneck_middle.cuh"

namespace adapterx::cuda {

// The warp's sums of the first product: rows of 16-row tiles, columns in units of 8.
template <class Config>
using FirstSums = float[Config::kRowTiles][Config::kFirstColumns / 8][4];

// Prepares the mbarriers; all threads of all blocks of the cluster.
template <class Config>
__device__ __forceinline__ void open_exchange(const TileBlock<Config>& block) {
  if constexpr (Config::kCluster) {
    if (threadIdx.x == 0) {
      barrier_init(block.sums_landed, 1);
      barrier_init(block.middle_landed, 1);
      barrier_init_fence();
      barrier_expect(block.sums_landed, 4 * Config::kTermSplits * Config::kRows * Config::kBottleneck);
      barrier_expect(block.middle_landed, 2 * Config::kRows * Config::kBottleneck);
    }
    cluster_arrive_relaxed();
  }
}

// Sends the warp's sums to the blocks that finish their rows.
template <class Config>
__device__ __forceinline__ void send_sums(const FirstSums<Config>& sums, const TileBlock<Config>& block) {
  const int source = block.rank * Config::kTermSplits + block.column_group / Config::kFirstSplits;
  const int column = block.column_group % Config::kFirstSplits * Config::kFirstColumns + block.lane % 4 * 2;
#pragma unroll
  for (int place = 0; place < 2 * Config::kRowTiles; ++place) {
    const int half = place % 2, row = block.row0 + place * 8 + block.lane / 4;
    const int owner = row >> block.share_log, row_of_share = row & ((1 << block.share_log) - 1);
    float* to = block.sums + ((source << block.share_log) + row_of_share) * Config::kSumStride + column;
#pragma unroll
    for (int n = 0; n < Config::kFirstColumns / 8; ++n) {
      const float2 pair = make_float2(sums[place / 2][n][half * 2], sums[place / 2][n][half * 2 + 1]);
      if constexpr (Config::kCluster) {
        store_remote(reinterpret_cast<uint2*>(to + n * 8), static_cast<unsigned>(owner),
                     *reinterpret_cast<const uint2*>(&pair), block.sums_landed);
      } else {
        *reinterpret_cast<float2*>(to + n * 8) = pair;
      }
    }
  }
}

template <class Config>
__device__ __forceinline__ void wait_for(const TileBlock<Config>&, uint64_t* landed) {
  if constexpr (Config::kCluster) {
    barrier_wait_cluster(landed, 0);
  } else {
    __syncthreads();
  }
}

// Finishes the block's share of the rows, four columns a thread. `wanted`: there is a second product.
template <class Config, class Middle>
__device__ __forceinline__ void finish_middle(const TileBlock<Config>& block, const Middle& middle, int blocks,
                                              bool wanted) {
  constexpr int kQuads = Config::kBottleneck / 4;
  const int share = 1 << block.share_log, sources = blocks * Config::kTermSplits;
  for (int i = threadIdx.x; i < share * kQuads; i += Config::kThreads) {
    const int row_of_share = i / kQuads, column = i % kQuads * 4;
    const float* from = block.sums + row_of_share * Config::kSumStride + column;
    float values[4] = {};
#pragma unroll 4
    for (int source = 0; source < sources; ++source) {
      const float4 part = *reinterpret_cast<const float4*>(from + (source << block.share_log) * Config::kSumStride);
      values[0] += part.x, values[1] += part.y, values[2] += part.z, values[3] += part.w;
    }
    const int row = (block.rank << block.share_log) + row_of_share;
    const uint2 packed = middle(block.tokens[row], column, values, block.adapter);
    auto* to = reinterpret_cast<uint2*>(block.operand + row * Config::kUpStride + column);
    if constexpr (Config::kCluster) {
      if (!wanted) continue;
      for (int target = 0; target < blocks; ++target) {
        store_remote(to, static_cast<unsigned>(target), packed, block.middle_landed);
      }
    } else {
      *to = packed;
    }
  }
}

// From the warps' sums to the middle in every block's shared memory.
template <class Config, class Middle>
__device__ __forceinline__ void exchange(const FirstSums<Config>& sums, const TileBlock<Config>& block,
                                         const Middle& middle, int blocks, bool wanted) {
  if constexpr (Config::kCluster) cluster_wait();  // every block has opened its exchange
  send_sums<Config>(sums, block);
  wait_for(block, block.sums_landed);
  finish_middle(block, middle, blocks, wanted);
  if (wanted) wait_for(block, block.middle_landed);
}

}  // namespace adapterx::cuda
