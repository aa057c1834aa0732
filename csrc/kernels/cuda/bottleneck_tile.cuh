// One pass over a tile of tokens, forward and backward. Both are
//     middle = f(sum over columns of tile @ first weight),   output = base + scale * (middle @ second weight + bias),
// forward with tile = hidden_states, first = down_weight^T, second = up_weight^T, f = activation(. + down_bias);
// backward with tile = grad_output, first = up_weight, second = down_weight, f = scaling * activation'(u) * (.).
//
// Grid: the blocks of a cluster (or a single block) share kRows tokens; block `rank` owns the columns
//     [rank * slice, (rank + 1) * slice) of the tile and of the output.
// Block: kRowGroups x kColumnGroups warps. A warp owns 16 rows; in the first product it sums its share of each chunk's
//     terms, in the second it computes its share of each chunk's output columns.
// Thread: mma accumulators, rows lane / 4 and + 8, columns 2 * (lane % 4) and + 1.
// Shared memory: the tile (kept for the residual, so tokens are read from device memory once), kStages chunks of a
//     weight, the middle as 16-bit operand, partial sums in fp32.
// Accumulation: fp32; sums over warps and blocks in a fixed order.
#pragma once

#include "bottleneck_middle.cuh"
#include "sort_tokens.h"
#include "tile.cuh"

namespace adapterx::cuda {

template <typename Element_, int kBottleneck_, int kRowGroups_, int kColumnGroups_, int kChunk_, int kStages_,
          bool kCluster_>
struct TileConfig {
  using Element = Element_;
  static constexpr int kBottleneck = kBottleneck_;  // bottleneck_dim padded; the padding is zero
  static constexpr int kRowGroups = kRowGroups_;
  static constexpr int kColumnGroups = kColumnGroups_;
  static constexpr int kChunk = kChunk_;  // columns of the tile that one pipeline stage serves
  static constexpr int kStages = kStages_;
  static constexpr bool kCluster = kCluster_;
  static constexpr int kRows = 16 * kRowGroups;
  static constexpr int kThreads = 32 * kRowGroups * kColumnGroups;
  static constexpr int kMinBlocks = 2;  // as many as shared memory allows; ptxas would else save registers for more
  static constexpr int kGroupColumns = kChunk / kColumnGroups;
  static constexpr int kDownStride = kChunk + kRowPadding;     // a chunk of down_weight: kBottleneck x kChunk
  static constexpr int kUpStride = kBottleneck + kRowPadding;  // a chunk of up_weight: kChunk x kBottleneck
  static constexpr int kDownElements = kBottleneck * kDownStride;
  static constexpr int kUpElements = kChunk * kUpStride;
  static constexpr int kStageElements = kDownElements > kUpElements ? kDownElements : kUpElements;
  static constexpr int kPartialStride = kBottleneck + 4;  // fp32; the padding keeps 16-byte alignment
  static constexpr int kPartialPlane = kRows * kPartialStride;
  static_assert(kBottleneck % 16 == 0 && kGroupColumns % 16 == 0);

  static constexpr int64_t slice(int64_t columns, int64_t cluster_size) {
    return kChunk * ceil_div(ceil_div(columns, kChunk), cluster_size);
  }
  static constexpr int64_t shared_memory(int64_t columns, int64_t cluster_size) {
    const int64_t tile = kRows * (slice(columns, cluster_size) + kRowPadding);
    return 2 * (tile + kStages * kStageElements + kRows * kUpStride) + 4 * kColumnGroups * kPartialPlane + 8 * kRows;
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
  int cluster_size = 1;
  const Segment* segments = nullptr;  // grouped: which sorted tokens a tile holds; null: tile i holds kRows neighbours
  const int64_t* tokens = nullptr;    // grouped: the sorted tokens
};

// What a thread knows about its place in the grid, and its block's shared memory.
template <class Config>
struct TileBlock {
  using Element = typename Config::Element;
  Element* tile;     // kRows x (slice + padding)
  Element* stages;   // kStages x kStageElements
  Element* operand;  // kRows x kUpStride
  float* partial;    // kColumnGroups x kRows x kPartialStride
  int tile_stride;
  int64_t* tokens;  // kRows token numbers, -1 where the tile has fewer
  int adapter;      // 0 where there is only one
  int column0;      // first column of this block's slice
  int chunks;       // chunks of the slice that hold at least one column; none for the last blocks of some clusters
  int rank;         // of this block in its cluster
  int lane, row_group, column_group;

  __device__ __forceinline__ TileBlock(unsigned char* memory, const TileArguments<Element>& arguments) {
    tile = reinterpret_cast<Element*>(memory);
    tile_stride = arguments.slice + kRowPadding;
    stages = tile + Config::kRows * tile_stride;
    operand = stages + Config::kStages * Config::kStageElements;
    partial = reinterpret_cast<float*>(operand + Config::kRows * Config::kUpStride);
    rank = Config::kCluster ? static_cast<int>(cluster_rank()) : 0;
    tokens = reinterpret_cast<int64_t*>(partial + Config::kColumnGroups * Config::kPartialPlane);
    adapter = place_tokens(arguments);
    column0 = rank * arguments.slice;
    const int columns = min(arguments.tile.columns - column0, arguments.slice);
    chunks = columns > 0 ? (columns + Config::kChunk - 1) / Config::kChunk : 0;
    lane = threadIdx.x % 32;
    row_group = threadIdx.x / 32 / Config::kColumnGroups;
    column_group = threadIdx.x / 32 % Config::kColumnGroups;
  }

  // Looks up which tokens this tile holds; returns their adapter.
  __device__ __forceinline__ int place_tokens(const TileArguments<Element>& arguments) {
    const int64_t tile_number = blockIdx.x / arguments.cluster_size;
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

  // Row of the tile to row of a token matrix, for copy_window.
  __device__ __forceinline__ int64_t operator()(int row) const { return tokens[row]; }

  __device__ __forceinline__ Element* stage(int index) const { return stages + index * Config::kStageElements; }

  template <typename T>
  __device__ __forceinline__ T* in_block(T* pointer, int block) const {
    if constexpr (Config::kCluster) {
      return cluster_map(pointer, static_cast<unsigned>(block));
    } else {
      return pointer;
    }
  }

  __device__ __forceinline__ void barrier() const {
    if constexpr (Config::kCluster) {
      cluster_sync();
    } else {
      __syncthreads();
    }
  }
};

// Copies the chunk of the adapter's weight that belongs to columns [column, column + kChunk) of the tile.
template <class Config, bool kUp>
__device__ __forceinline__ void copy_weight(typename Config::Element* target, int adapter,
                                            const TileArguments<typename Config::Element>& arguments, int column) {
  auto weight = kUp ? arguments.up_weight : arguments.down_weight;
  weight.data += adapter * weight.rows * weight.columns;
  const WindowRows rows = {kUp ? column : 0, weight.rows};
  if constexpr (kUp) {
    copy_window<Config::kChunk, Config::kBottleneck, Config::kThreads>(target, Config::kUpStride, weight, rows, 0);
  } else {
    copy_window<Config::kBottleneck, Config::kChunk, Config::kThreads>(target, Config::kDownStride, weight, rows,
                                                                       column);
  }
}

// First product, one chunk: adds the warp's share of the terms to its 16 x kBottleneck partial sums.
template <class Config, bool kBackward>
__device__ __forceinline__ void first_product(float (&sums)[Config::kBottleneck / 8][4], const TileBlock<Config>& block,
                                              int chunk, int stage) {
  constexpr int kStride = kBackward ? Config::kUpStride : Config::kDownStride;
  const auto* rows = block.tile + block.row_group * 16 * block.tile_stride + chunk * Config::kChunk;
  const auto* weight = block.stage(stage);
  const int first = block.column_group * Config::kGroupColumns;
#pragma unroll
  for (int k = first; k < first + Config::kGroupColumns; k += 16) {
    uint32_t a[4], b[4];
    load_a<false>(a, rows + k, block.tile_stride, block.lane);
#pragma unroll
    for (int n = 0; n < Config::kBottleneck; n += 16) {
      load_b<kBackward>(b, kBackward ? weight + k * kStride + n : weight + n * kStride + k, kStride, block.lane);
      mma<typename Config::Element>(sums[n / 8], a, b[0], b[1]);
      mma<typename Config::Element>(sums[n / 8 + 1], a, b[2], b[3]);
    }
  }
}

template <class Config>
__device__ __forceinline__ void store_partial(const float (&sums)[Config::kBottleneck / 8][4],
                                              const TileBlock<Config>& block) {
  const int row = block.row_group * 16 + block.lane / 4, column = block.lane % 4 * 2;
  float* plane = block.partial + block.column_group * Config::kPartialPlane;
#pragma unroll
  for (int n = 0; n < Config::kBottleneck / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* to = plane + (row + half * 8) * Config::kPartialStride + n * 8 + column;
      *reinterpret_cast<float2*>(to) = make_float2(sums[n][half * 2], sums[n][half * 2 + 1]);
    }
  }
}

// Sums the partial products of all warps and blocks in rank order (the same bits every time), applies `middle`, and
// gives every block of the cluster the result. Each block finishes its share of the tile, four columns a thread.
template <class Config, class Middle>
__device__ __forceinline__ void exchange(const TileBlock<Config>& block, const Middle& middle, int cluster_size) {
  constexpr int kQuads = Config::kBottleneck / 4;
  constexpr int kItems = Config::kRows * kQuads;
  const int end = (block.rank + 1) * kItems / cluster_size;
  for (int i = block.rank * kItems / cluster_size + threadIdx.x; i < end; i += Config::kThreads) {
    const int row = i / kQuads, column = i % kQuads * 4;
    float values[4] = {};
    for (int source = 0; source < cluster_size; ++source) {
#pragma unroll
      for (int group = 0; group < Config::kColumnGroups; ++group) {
        float* from = block.partial + group * Config::kPartialPlane + row * Config::kPartialStride + column;
        const float4 part = *reinterpret_cast<const float4*>(block.in_block(from, source));
        values[0] += part.x, values[1] += part.y, values[2] += part.z, values[3] += part.w;
      }
    }
    const uint2 packed = middle(block.tokens[row], column, values, block.adapter);
    auto* to = block.operand + row * Config::kUpStride + column;
    for (int target = 0; target < cluster_size; ++target) {
      *reinterpret_cast<uint2*>(block.in_block(to, target)) = packed;
    }
  }
}

// output = base + scale * (product + bias) for the four values of one mma accumulator, written over the tile.
template <class Config>
__device__ __forceinline__ void finish_output(const float (&product)[4], const TileBlock<Config>& block,
                                              const TileArguments<typename Config::Element>& arguments, int column) {
  using Element = typename Config::Element;
  const int row = block.row_group * 16 + block.lane / 4;
  float bias[2] = {};
  if (arguments.output_bias != nullptr) {
    const int first = block.column0 + column, columns = arguments.tile.columns;
    const Element* from = arguments.output_bias + static_cast<int64_t>(block.adapter) * columns + first;
#pragma unroll
    for (int i = 0; i < 2; ++i) bias[i] = first + i < columns ? to_compute(from[i]) : 0.f;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    auto* place = reinterpret_cast<Vector<Element, 2>*>(block.tile + (row + half * 8) * block.tile_stride + column);
    float values[2];
    const Vector<Element, 2> base = *place;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float term = arguments.scale * (product[half * 2 + i] + bias[i]);
      values[i] = arguments.add_base ? to_compute(base.values[i]) + term : term;
    }
    *reinterpret_cast<uint32_t*>(place) = pack<Element>(values[0], values[1]);
  }
}

// Stores the part of the tile that this warp has just finished: 16 rows x kGroupColumns.
template <class Config>
__device__ __forceinline__ void store_output(const TileBlock<Config>& block,
                                             const TileArguments<typename Config::Element>& arguments, int column) {
  using Element = typename Config::Element;
  constexpr int kWidth = kVectorWidth<Element>, kUnits = Config::kGroupColumns / kWidth;
#pragma unroll
  for (int i = block.lane; i < 16 * kUnits; i += 32) {
    const int row = block.row_group * 16 + i / kUnits, tile_column = column + i % kUnits * kWidth;
    const int output_column = block.column0 + tile_column, columns = arguments.tile.columns;
    const int64_t token = block.tokens[row];
    if (token < 0 || output_column >= columns) continue;
    const Element* from = block.tile + row * block.tile_stride + tile_column;
    Element* to = arguments.output + token * columns + output_column;
    if (arguments.output_vector) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int j = 0; j < min(kWidth, columns - output_column); ++j) to[j] = from[j];
    }
  }
}

// Second product, one chunk: the warp's 16 rows x kGroupColumns of the output.
template <class Config, bool kBackward>
__device__ __forceinline__ void second_product(const TileBlock<Config>& block,
                                               const TileArguments<typename Config::Element>& arguments, int chunk,
                                               int stage) {
  constexpr int kStride = kBackward ? Config::kDownStride : Config::kUpStride;
  const auto* rows = block.operand + block.row_group * 16 * Config::kUpStride;
  const auto* weight = block.stage(stage);
  const int first = block.column_group * Config::kGroupColumns;
#pragma unroll
  for (int n = first; n < first + Config::kGroupColumns; n += 16) {
    float product[2][4] = {};
#pragma unroll
    for (int k = 0; k < Config::kBottleneck; k += 16) {
      uint32_t a[4], b[4];
      load_a<false>(a, rows + k, Config::kUpStride, block.lane);
      load_b<kBackward>(b, kBackward ? weight + k * kStride + n : weight + n * kStride + k, kStride, block.lane);
      mma<typename Config::Element>(product[0], a, b[0], b[1]);
      mma<typename Config::Element>(product[1], a, b[2], b[3]);
    }
    const int column = chunk * Config::kChunk + n + block.lane % 4 * 2;
    finish_output(product[0], block, arguments, column);
    finish_output(product[1], block, arguments, column + 8);
  }
  __syncwarp();  // a warp stores what its own lanes have written
  store_output(block, arguments, chunk * Config::kChunk + first);
}

// Tokens without adapter: the output is the base alone, or zero. A warp owns a row at a time.
template <class Config, class Middle>
__device__ __forceinline__ void copy_base(const TileBlock<Config>& block,
                                          const TileArguments<typename Config::Element>& arguments,
                                          const Middle& middle) {
  using Element = typename Config::Element;
  const Matrix<Element>& base = arguments.replacement.data != nullptr ? arguments.replacement : arguments.tile;
  const int columns = arguments.output == nullptr ? 0 : min(arguments.tile.columns - block.column0, arguments.slice);
  const bool vector = arguments.output_vector && base.vector;
  const int width = vector ? kVectorWidth<Element> : 1;
  for (int row = threadIdx.x / 32; row < Config::kRows && block.tokens[row] >= 0; row += Config::kThreads / 32) {
    const int64_t token = block.tokens[row];
    const Element* from = base.data + token * base.stride + block.column0;
    Element* to = arguments.output + token * arguments.tile.columns + block.column0;
    for (int i = block.lane * width; i < columns; i += 32 * width) {
      if (vector) {
        *reinterpret_cast<uint4*>(to + i) = arguments.add_base ? *reinterpret_cast<const uint4*>(from + i) : uint4{};
      } else {
        to[i] = arguments.add_base ? from[i] : from_compute<Element>(0.f);
      }
    }
    if (block.rank != 0) continue;
    for (int column = block.lane * 4; column < Config::kBottleneck; column += 128) middle.clear(token, column);
  }
}

template <class Config, class Middle>
__device__ __forceinline__ void run_tile(const TileArguments<typename Config::Element>& arguments,
                                         const Middle& middle) {
  constexpr bool kBackward = Middle::kBackward;
  ADAPTERX_SHARED_MEMORY(memory);
  const TileBlock<Config> block(memory, arguments);
  if (block.adapter == kUnusedSegment) return;  // the same for all blocks of the cluster
  if (block.adapter == kNoAdapter) return copy_base(block, arguments, middle);
  const auto load_first = [&](int chunk, int stage) {
    const int column = chunk * Config::kChunk;
    copy_window<Config::kRows, Config::kChunk, Config::kThreads>(block.tile + column, block.tile_stride, arguments.tile,
                                                                 block, block.column0 + column);
    copy_weight<Config, kBackward>(block.stage(stage), block.adapter, arguments, block.column0 + column);
  };
  const auto load_second = [&](int chunk, int stage) {
    const int column = chunk * Config::kChunk;
    if (arguments.replacement.data != nullptr) {
      copy_window<Config::kRows, Config::kChunk, Config::kThreads>(
          block.tile + column, block.tile_stride, arguments.replacement, block, block.column0 + column);
    }
    copy_weight<Config, !kBackward>(block.stage(stage), block.adapter, arguments, block.column0 + column);
  };
  const int second_chunks = arguments.output == nullptr ? 0 : block.chunks;
  {
    float sums[Config::kBottleneck / 8][4] = {};
    Pipeline<Config::kStages>::start(block.chunks, load_first);
    Pipeline<Config::kStages>::run(block.chunks, load_first, [&](int chunk, int stage) {
      first_product<Config, kBackward>(sums, block, chunk, stage);
    });
    Pipeline<Config::kStages>::start(second_chunks, load_second);  // in flight during the exchange
    store_partial<Config>(sums, block);
  }
  block.barrier();
  exchange(block, middle, arguments.cluster_size);
  block.barrier();  // also keeps a block alive until the others have read its shared memory
  Pipeline<Config::kStages>::run(second_chunks, load_second, [&](int chunk, int stage) {
    second_product<Config, kBackward>(block, arguments, chunk, stage);
  });
}

template <class Config, class Middle>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinBlocks)
    bottleneck_tile_kernel(const TileArguments<typename Config::Element> arguments, const Middle middle) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (Config::kCluster) {
    __trap();  // no clusters here: unsupported_reason() keeps callers away
    return;
  } else
#endif
  {
    run_tile<Config>(arguments, middle);
  }
}

}  // namespace adapterx::cuda
