// Where the parts of a bottleneck tile lie: the sizes that the compiler knows, the kernel's arguments, and a block's
// place in the grid and its shared memory.
#pragma once

#include "sort_tokens.h"
#include "tile.cuh"

namespace adapterx::cuda {

template <typename Element_, int kBottleneck_, int kRowGroups_, int kRowTiles_, int kColumnGroups_, int kChunk_,
          bool kCluster_>
struct TileConfig {
  using Element = Element_;
  static constexpr int kBottleneck = kBottleneck_;      // bottleneck_dim padded; the padding is zero
  static constexpr int kRowGroups = kRowGroups_;        // warps along the rows
  static constexpr int kRowTiles = kRowTiles_;          // 16 rows each, of a warp: one B fragment serves them all
  static constexpr int kColumnGroups = kColumnGroups_;  // warps that share the rows
  static constexpr int kChunk = kChunk_;                // columns of the tile that one stage of a weight serves
  static constexpr bool kCluster = kCluster_;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarpRows * kRowGroups;
  static constexpr int kRowsLog = kRows == 16 ? 4 : 6;
  static constexpr int kThreads = 32 * kRowGroups * kColumnGroups;
  // On an SM: as many as shared memory allows; ptxas would else save registers for more. For compute capability 10.0 it
  // wants a few more registers in the widest form.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int kMinBlocks = kWarpRows * kBottleneck < 32 * 128 ? 2 : 1;
#else
  static constexpr int kMinBlocks = kCluster || kWarpRows * kBottleneck < 32 * 128 ? 2 : 1;
#endif
  // In the first product the warps that share rows split the bottleneck, and where it is narrow the terms as well; in
  // the second they split the columns.
  static constexpr int kFirstSplits = kBottleneck / 16 < kColumnGroups ? kBottleneck / 16 : kColumnGroups;
  static constexpr int kTermSplits = kColumnGroups / kFirstSplits;
  static constexpr int kFirstColumns = kBottleneck / kFirstSplits;
  static constexpr int kFirstTerms = kChunk / kTermSplits;
  static constexpr int kSecondColumns = kChunk / kColumnGroups;
  static constexpr int kChains = kRowTiles == 1 ? 2 : 1;       // of dependent mma, so that one waits less for another
  static constexpr int kDownStride = kChunk + kRowPadding;     // a chunk of down_weight: kBottleneck x kChunk
  static constexpr int kUpStride = kBottleneck + kRowPadding;  // a chunk of up_weight: kChunk x kBottleneck
  static constexpr int kDownElements = kBottleneck * kDownStride;
  static constexpr int kUpElements = kChunk * kUpStride;
  static constexpr int kStageElements = kDownElements > kUpElements ? kDownElements : kUpElements;
  static constexpr int kSumStride = kBottleneck + 4;  // fp32; the padding keeps 16-byte alignment
  static constexpr int kSumElements = kTermSplits * kRows * kSumStride;
  static_assert(kBottleneck % 16 == 0 && kFirstColumns % 16 == 0 && kFirstTerms % 16 == 0 && kSecondColumns == 16 &&
                kRows == 1 << kRowsLog);

  // Columns of a block: multiples of 16, so that as few blocks of a cluster as can be have less to do than others.
  static constexpr int64_t slice(int64_t columns, int64_t cluster_size) {
    return round_up(ceil_div(columns, cluster_size), 16);
  }
  static constexpr int64_t shared_memory(int64_t columns, int64_t cluster_size, int64_t stages) {
    const int64_t width = round_up(slice(columns, cluster_size), kChunk);
    const int64_t elements = kRows * (width + kRowPadding) + stages * kStageElements + kRows * kUpStride;
    return 2 * (elements + width) + 4 * kSumElements + 8 * (kRows + 2);
  }
};

template <typename Element>
struct TileArguments {
  Matrix<Element> tile;
  Matrix<Element> replacement;  // data null: the tile itself is the base; else it takes the tile's place as the base
  Matrix<Element> down_weight;
  Matrix<Element> up_weight;
  const Element* output_bias = nullptr;  // may be null
  Element* output = nullptr;             // contiguous; null: only the middle is wanted
  bool output_vector = false;            // the rows of output are aligned for 16-byte stores
  bool add_base = false;
  float scale = 1.f;
  int slice = 0;
  int stages = 2;                     // of the ring; a power of two
  int cluster_log = 0;                // the cluster has 2^cluster_log blocks
  const Segment* segments = nullptr;  // grouped: which sorted tokens a tile holds; null: tile i holds kRows neighbours
  const int64_t* tokens = nullptr;    // grouped: the sorted tokens
};

// What a thread knows about its place in the grid, and its block's shared memory.
template <class Config>
struct TileBlock {
  using Element = typename Config::Element;
  Element* tile;     // kRows x tile_stride
  Element* stages;   // of the ring
  Element* operand;  // kRows x kUpStride: the middle
  float* sums;       // kTermSplits x blocks of the cluster x rows of a share x kSumStride
  Element* bias;     // of the slice's columns
  int64_t* tokens;   // kRows token numbers, -1 where the tile has fewer
  uint64_t* sums_landed;
  uint64_t* middle_landed;
  int tile_stride;
  int adapter;    // 0 where there is only one
  int column0;    // first column of this block's slice
  int columns;    // that exist in the slice; none for the last blocks of some clusters
  int chunks;     // of them
  int rank;       // of this block in its cluster
  int share_log;  // each block finishes the middle of 2^share_log rows
  int lane, row0, column_group;

  __device__ __forceinline__ TileBlock(unsigned char* memory, const TileArguments<Element>& arguments) {
    const int width = (arguments.slice + Config::kChunk - 1) / Config::kChunk * Config::kChunk;
    tile = reinterpret_cast<Element*>(memory);
    tile_stride = width + kRowPadding;
    stages = tile + Config::kRows * tile_stride;
    operand = stages + arguments.stages * Config::kStageElements;
    sums = reinterpret_cast<float*>(operand + Config::kRows * Config::kUpStride);
    bias = reinterpret_cast<Element*>(sums + Config::kSumElements);
    tokens = reinterpret_cast<int64_t*>(bias + width);
    sums_landed = reinterpret_cast<uint64_t*>(tokens + Config::kRows);
    middle_landed = sums_landed + 1;
    rank = Config::kCluster ? static_cast<int>(cluster_rank()) : 0;
    share_log = Config::kRowsLog - arguments.cluster_log;
    column0 = rank * arguments.slice;
    columns = max(min(arguments.tile.columns - column0, arguments.slice), 0);
    chunks = (columns + Config::kChunk - 1) / Config::kChunk;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row0 = warp / Config::kColumnGroups * Config::kWarpRows;
    column_group = warp % Config::kColumnGroups;
    adapter = place_tokens(arguments);
  }

  // Looks up which tokens this tile holds; returns their adapter.
  __device__ __forceinline__ int place_tokens(const TileArguments<Element>& arguments) {
    const int64_t tile_number = blockIdx.x >> arguments.cluster_log;
    WindowRows rows = {tile_number * Config::kRows, arguments.tile.rows, nullptr};
    int tile_adapter = 0;
    if (arguments.segments != nullptr) {
      const Segment segment = arguments.segments[tile_number];
      rows = {segment.begin, segment.end, arguments.tokens};
      tile_adapter = segment.adapter;
    }
    for (int i = threadIdx.x; i < Config::kRows; i += Config::kThreads) tokens[i] = rows(i);
    __syncthreads();
    return tile_adapter;
  }

  __device__ __forceinline__ int blocks(const TileArguments<Element>& arguments) const {
    return 1 << arguments.cluster_log;
  }
  __device__ __forceinline__ Element* stage(int index) const { return stages + index * Config::kStageElements; }
};

}  // namespace adapterx::cuda
