// From run-time values to kernel templates: which tile configurations exist.
#pragma once

#include "bottleneck_tile.cuh"
#include "plan.h"

namespace adapterx::cuda {

// 64 tokens: warps of 32 rows, so that one fragment of a weight serves two products. 16 tokens (decode, few tokens): all
// warps share the rows. Either way eight warps, and 16 columns a warp in each chunk of the second product.
template <typename Element, int kBottleneck, bool kCluster>
using WideTile = TileConfig<Element, kBottleneck, 2, 2, 4, 64, kCluster>;
template <typename Element, int kBottleneck, bool kCluster>
using NarrowTile = TileConfig<Element, kBottleneck, 1, 1, 8, 128, kCluster>;

// Calls visitor(Tag<integral_constant>) with bottleneck_dim padded to a size that exists.
template <class Visitor>
auto visit_bottleneck(int64_t bottleneck_dim, const Visitor& visitor) {
  if (bottleneck_dim <= 16) return visitor(std::integral_constant<int, 16>());
  if (bottleneck_dim <= 32) return visitor(std::integral_constant<int, 32>());
  if (bottleneck_dim <= 64) return visitor(std::integral_constant<int, 64>());
  return visitor(std::integral_constant<int, 128>());
}

// Calls visitor(Tag<Config>) with the tile configuration of `tile`.
template <class Visitor>
auto visit_tile(const Problem& problem, const TileShape& tile, const Visitor& visitor) {
  return visit_element(problem.dtype, [&](auto element) {
    using Element = typename decltype(element)::Type;
    return visit_bottleneck(problem.bottleneck_dim, [&](auto size) {
      constexpr int kSize = decltype(size)::value;
      if (tile.cluster_size > 1) {
        if (tile.row_tile == 16) return visitor(Tag<NarrowTile<Element, kSize, true>>());
        return visitor(Tag<WideTile<Element, kSize, true>>());
      }
      if (tile.row_tile == 16) return visitor(Tag<NarrowTile<Element, kSize, false>>());
      return visitor(Tag<WideTile<Element, kSize, false>>());
    });
  });
}

inline bool has_tile_kernel(const Problem& problem, const TileShape& tile) {
  const bool dtype = problem.dtype == ScalarType::bfloat16 || problem.dtype == ScalarType::float16;
  const bool sizes = problem.bottleneck_dim >= 1 && problem.bottleneck_dim <= kMaxBottleneckDim &&
                     problem.input_size == problem.hidden_size && problem.hidden_size >= 1;
  const bool shape = (tile.row_tile == 16 || tile.row_tile == 64) && tile.cluster_size >= 1 &&
                     tile.cluster_size <= kMaxClusterSize && (tile.cluster_size & (tile.cluster_size - 1)) == 0;
  return dtype && sizes && shape;
}

inline constexpr int64_t kFewBlocks = 132;              // no more than SMs
inline constexpr int64_t kReservedSharedMemory = 1024;  // of each block, by the system

// Stages of the ring: as many as the tile has use for where few blocks have an SM each, else as many as leave room for a
// second block on an SM, or for this one; two at least.
template <class Config>
int choose_stages(int64_t columns, int64_t cluster_size, int64_t blocks) {
  const int64_t limit = shared_memory_limit();
  const int64_t half = (limit + kReservedSharedMemory) / 2 - kReservedSharedMemory;
  const bool alone = blocks <= kFewBlocks || Config::shared_memory(columns, cluster_size, 2) > half;
  const int64_t items = 2 * ceil_div(Config::slice(columns, cluster_size), Config::kChunk);
  for (const int stages : {8, 4}) {
    const bool useful = stages / 2 < items;
    if (useful && Config::shared_memory(columns, cluster_size, stages) <= (alone ? limit : half)) return stages;
  }
  return 2;
}

// Launches the tile kernel over all tokens. `arguments` comes with its matrices set.
template <class Config, class Middle>
cudaError_t launch_tile(TileArguments<typename Config::Element> arguments, const Middle& middle, const TileShape& tile,
                        const SortedTokens* sorted, cudaStream_t stream) {
  const int64_t columns = arguments.tile.columns;
  arguments.slice = static_cast<int>(Config::slice(columns, tile.cluster_size));
  while (1 << arguments.cluster_log < tile.cluster_size) ++arguments.cluster_log;
  arguments.output_vector = is_aligned(arguments.output, 16) && columns % kVectorWidth<typename Config::Element> == 0;
  int64_t tiles = ceil_div(arguments.tile.rows, Config::kRows);
  if (sorted != nullptr) {
    arguments.segments = sorted->tiles;
    arguments.tokens = sorted->tokens;
    tiles = sorted->max_tiles;
  }
  const int64_t blocks = tiles * tile.cluster_size;
  arguments.stages = choose_stages<Config>(columns, tile.cluster_size, blocks);
  const LaunchShape shape = {dim3(static_cast<unsigned>(blocks)), dim3(Config::kThreads),
                             Config::shared_memory(columns, tile.cluster_size, arguments.stages), tile.cluster_size};
  return launch(bottleneck_tile_kernel<Config, Middle>, shape, stream, arguments, middle);
}

// `stride`: elements between two rows of all the matrices.
template <typename Element>
QuadAccess<Element> make_quad_access(const Problem& problem, int64_t stride,
                                     std::initializer_list<const void*> pointers) {
  bool vector = stride % 4 == 0;
  for (const void* pointer : pointers) vector = vector && is_aligned(pointer, 8);
  return {static_cast<int>(problem.bottleneck_dim), static_cast<int>(stride), vector};
}

}  // namespace adapterx::cuda
