// One pass over a tile of tokens, forward and backward. Both are
//     middle = f(sum over columns of tile @ first weight),   output = base + scale * (middle @ second weight + bias),
// forward with tile = hidden_states, first = down_weight^T, second = up_weight^T, f = activation(. + down_bias);
// backward with tile = grad_output, first = up_weight, second = down_weight, f = scaling * activation'(u) * (.).
//
// Grid: the blocks of a cluster (or a single block) share kRows tokens; block `rank` owns the columns
//     [rank * slice, (rank + 1) * slice) of the tile and of the output.
// Block: kRowGroups x kColumnGroups warps of kWarpRows rows. Those of the same rows split the columns of the middle in
//     the first product, and its terms where the middle is narrow; in the second, the columns of each chunk.
// Thread: mma accumulators, rows lane / 4 and + 8, columns 2 * (lane % 4) and + 1 of each 16 x 8. The middle of the
//     warp's rows stays in registers for all chunks of the second product.
// Shared memory: the tile (kept for the residual, so tokens are read from device memory once), a ring of chunks of the
//     weights, the middle as 16-bit operand, sums on their way to the middle in fp32, the output's bias.
// Accumulation: fp32; sums over warps and blocks in a fixed order.
#pragma once

#include "bottleneck_copy.cuh"
#include "bottleneck_exchange.cuh"

namespace adapterx::cuda {

// The slice's output bias, for all chunks.
template <class Config>
__device__ __forceinline__ void place_bias(const TileBlock<Config>& block,
                                           const TileArguments<typename Config::Element>& arguments) {
  const int64_t first = static_cast<int64_t>(block.adapter) * arguments.tile.columns + block.column0;
  for (int i = threadIdx.x; i < block.chunks * Config::kChunk; i += Config::kThreads) {
    const bool exists = arguments.output_bias != nullptr && i < block.columns;
    block.bias[i] = exists ? arguments.output_bias[first + i] : from_compute<typename Config::Element>(0.f);
  }
}

// The sum of the chains of accumulators.
template <int kChains, int kRowTiles, int kUnits>
__device__ __forceinline__ void join_chains(float (&result)[kRowTiles][kUnits][4],
                                            const float (&chains)[kChains][kRowTiles][kUnits][4]) {
#pragma unroll
  for (int i = 0; i < kRowTiles * kUnits * 4; ++i) {
    const int tile = i / (kUnits * 4), unit = i / 4 % kUnits, value = i % 4;
    result[tile][unit][value] = chains[0][tile][unit][value];
    if (kChains > 1) result[tile][unit][value] += chains[kChains - 1][tile][unit][value];
  }
}

// First product: the warp's sums over all chunks of its share of the terms.
template <class Config, bool kBackward>
__device__ __forceinline__ void first_product(FirstSums<Config>& result, const TileBlock<Config>& block,
                                              TileFeed<Config, kBackward>& feed) {
  using Element = typename Config::Element;
  constexpr int kStride = kBackward ? Config::kUpStride : Config::kDownStride;
  const int n0 = block.column_group % Config::kFirstSplits * Config::kFirstColumns;
  const int k0 = block.column_group / Config::kFirstSplits * Config::kFirstTerms;
  const Element* a_from[Config::kRowTiles];
#pragma unroll
  for (int i = 0; i < Config::kRowTiles; ++i) {
    a_from[i] =
        block.tile + (block.row0 + i * 16) * block.tile_stride + k0 + a_offset<false>(block.tile_stride, block.lane);
  }
  const int b_from = b_offset<kBackward>(kStride, block.lane) + (kBackward ? k0 * kStride + n0 : n0 * kStride + k0);
  float sums[Config::kChains][Config::kRowTiles][Config::kFirstColumns / 8][4] = {};
  for (int chunk = 0; chunk < block.chunks; ++chunk) {
    const Element* weight = feed.template next<false>(chunk) + b_from;
#pragma unroll
    for (int k = 0; k < Config::kFirstTerms; k += 16) {
      auto& chain = sums[k / 16 % Config::kChains];
      uint32_t a[Config::kRowTiles][4], b[4];
#pragma unroll
      for (int i = 0; i < Config::kRowTiles; ++i) load_fragment<false>(a[i], a_from[i] + k);
#pragma unroll
      for (int n = 0; n < Config::kFirstColumns; n += 16) {
        load_fragment<kBackward>(b, weight + (kBackward ? k * kStride + n : n * kStride + k));
#pragma unroll
        for (int i = 0; i < Config::kRowTiles; ++i) {
          mma<Element>(chain[i][n / 8], a[i], b[0], b[1]);
          mma<Element>(chain[i][n / 8 + 1], a[i], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Config::kRowTiles; ++i) a_from[i] += Config::kChunk;
  }
  join_chains(result, sums);
}

// The A operands of the second product: the middle of a warp's rows.
template <class Config>
using MiddleFragments = uint32_t[Config::kRowTiles][Config::kBottleneck / 16][4];

template <class Config>
__device__ __forceinline__ void load_middle(MiddleFragments<Config>& middle, const TileBlock<Config>& block) {
#pragma unroll
  for (int i = 0; i < Config::kRowTiles; ++i) {
    const auto* rows = block.operand + (block.row0 + i * 16) * Config::kUpStride;
#pragma unroll
    for (int k = 0; k < Config::kBottleneck; k += 16) {
      load_a<false>(middle[i][k / 16], rows + k, Config::kUpStride, block.lane);
    }
  }
}

// Second product, one chunk: the warp's rows x kSecondColumns of the output, base + scale * (product + bias), in place of
// the tile. `weight`, `place` and `bias` are where the lane finds its operands, its first value and its bias.
template <class Config, bool kBackward>
__device__ __forceinline__ void second_product(const MiddleFragments<Config>& middle,
                                               const typename Config::Element* weight, typename Config::Element* place,
                                               int stride, const typename Config::Element* bias,
                                               const TileArguments<typename Config::Element>& arguments) {
  using Element = typename Config::Element;
  const auto place_of = [&](int i) {  // pair i % 2 of the accumulator of columns i / 2 % 2, row tile i / 4
    return reinterpret_cast<uint32_t*>(place + (i / 4 * 16 + i % 2 * 8) * stride + i / 2 % 2 * 8);
  };
  uint32_t base[4 * Config::kRowTiles] = {};
  if (arguments.add_base) {
#pragma unroll
    for (int i = 0; i < 4 * Config::kRowTiles; ++i) base[i] = *place_of(i);
  }
  float chains[Config::kChains][Config::kRowTiles][2][4] = {}, product[Config::kRowTiles][2][4];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float2 pair = unpack<Element>(*reinterpret_cast<const uint32_t*>(bias + j * 8));
#pragma unroll
    for (int i = 0; i < Config::kRowTiles; ++i) {
      chains[0][i][j][0] = chains[0][i][j][2] = pair.x, chains[0][i][j][1] = chains[0][i][j][3] = pair.y;
    }
  }
#pragma unroll
  for (int k = 0; k < Config::kBottleneck; k += 16) {
    auto& chain = chains[k / 16 % Config::kChains];
    uint32_t b[4];
    load_fragment<kBackward>(b, weight + (kBackward ? k * Config::kDownStride : k));
#pragma unroll
    for (int i = 0; i < Config::kRowTiles; ++i) {
      mma<Element>(chain[i][0], middle[i][k / 16], b[0], b[1]);
      mma<Element>(chain[i][1], middle[i][k / 16], b[2], b[3]);
    }
  }
  join_chains(product, chains);
#pragma unroll
  for (int i = 0; i < 4 * Config::kRowTiles; ++i) {
    const float2 value = unpack<Element>(base[i]);
    const float* term = &product[i / 4][i / 2 % 2][i % 2 * 2];
    *place_of(i) = pack<Element>(fmaf(arguments.scale, term[0], value.x), fmaf(arguments.scale, term[1], value.y));
  }
}

// The second product over all chunks.
template <class Config, bool kBackward>
__device__ __forceinline__ void write_output(const TileBlock<Config>& block,
                                             const TileArguments<typename Config::Element>& arguments,
                                             TileFeed<Config, kBackward>& feed) {
  constexpr int kStride = kBackward ? Config::kDownStride : Config::kUpStride;
  MiddleFragments<Config> middle;
  load_middle<Config>(middle, block);
  OutputRows<Config> output(block, arguments);
  const int n = block.column_group * Config::kSecondColumns, column = n + block.lane % 4 * 2;
  const int b_from = b_offset<kBackward>(kStride, block.lane) + (kBackward ? n : n * kStride);
  const auto* bias = block.bias + column;
  auto* place = block.tile + (block.row0 + block.lane / 4) * block.tile_stride + column;
  for (int chunk = 0; chunk < block.chunks; ++chunk) {
    const auto* weight = feed.template next<true>(chunk) + b_from;
    if (chunk > 0) output.store_next();  // the chunk before, which all warps have finished
    second_product<Config, kBackward>(middle, weight, place, block.tile_stride, bias, arguments);
    place += Config::kChunk, bias += Config::kChunk;
  }
  __syncthreads();
  if (block.chunks > 0) output.store_next();
}

// Tokens without adapter: the output is the base alone, or zero. A warp owns a row at a time.
template <class Config, class Middle>
__device__ __forceinline__ void copy_base(const TileBlock<Config>& block,
                                          const TileArguments<typename Config::Element>& arguments,
                                          const Middle& middle) {
  using Element = typename Config::Element;
  const Matrix<Element>& base = arguments.replacement.data != nullptr ? arguments.replacement : arguments.tile;
  const int columns = arguments.output == nullptr ? 0 : block.columns;
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

// Puts another residual in the place of the tile, once all warps have read it; all chunks at once, during the exchange.
template <class Config>
__device__ __forceinline__ void replace_tile(const TileBlock<Config>& block,
                                             const TileArguments<typename Config::Element>& arguments) {
  __syncthreads();
  TileRows<Config> rows(block, arguments.replacement);
#pragma unroll 1
  for (int chunk = 0; chunk < block.chunks; ++chunk) rows.copy_next();
  cp_async_commit();
}

template <class Config, class Middle>
__device__ __forceinline__ void run_tile(const TileArguments<typename Config::Element>& arguments,
                                         const Middle& middle) {
  constexpr bool kBackward = Middle::kBackward;
  ADAPTERX_SHARED_MEMORY(memory);
  const TileBlock<Config> block(memory, arguments);
  if (block.adapter == kUnusedSegment) return;  // the same for all blocks of the cluster
  if (block.adapter == kNoAdapter) return copy_base(block, arguments, middle);
  TileFeed<Config, kBackward> feed(block, arguments);
  feed.start(arguments.tile);
  open_exchange(block);
  const bool has_output = arguments.output != nullptr;
  if (has_output) place_bias(block, arguments);
  feed.wait_for_first();
  FirstSums<Config> sums;
  first_product(sums, block, feed);
  const bool replaced = has_output && arguments.replacement.data != nullptr;
  if (replaced) replace_tile(block, arguments);
  exchange<Config>(sums, block, middle, block.blocks(arguments), has_output);
  if (!has_output) return;
  if (replaced) cp_async_wait<0>();
  dependents_launch();
  write_output(block, arguments, feed);
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
