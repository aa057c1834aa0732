// Both weight gradients and both bias gradients of the bottleneck adapter, deterministic:
//     up_weight   (hidden_size x m) = scaling * grad_output^T @ activated,      up_bias   = scaling * grad_output^T @ 1
//     down_weight (m x hidden_size) = grad_pre_activation^T @ hidden_states,    down_bias = grad_pre_activation^T @ 1.
//
// For rows of any alignment; gradient_stream.cuh is for aligned ones, from compute capability 9.0 on.
//
// Grid: x a window of 4 * kWarpColumns columns of hidden_size, y a range of tokens, z which of the two products.
// Block: 4 warps; a warp owns kWarpColumns columns times all of m.
// Thread: mma accumulators as in tile.cuh. A bias gradient is one more mma whose B operand holds ones in its first
//     column and zeros elsewhere.
// Shared memory: kStages chunks of kTokens tokens: the wide matrix's window and the narrow matrix (m columns).
// Accumulation: fp32. A block whose range holds all tokens of its adapter stores the gradients; else it writes partial
// sums, and reduce_partial_sums adds the token ranges in order.
#pragma once

#include "gradient_store.cuh"
#include "sort_tokens.h"
#include "tile.cuh"

namespace adapterx::cuda {

template <typename Element_, int kBottleneck_>
struct WeightGradientConfig {
  using Element = Element_;
  static constexpr int kBottleneck = kBottleneck_;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kMinBlocks = kBottleneck > 64 ? 3 : 4;      // on an SM: shared memory allows them
  static constexpr int kWarpColumns = kBottleneck > 64 ? 16 : 32;  // keeps the accumulators at 64 registers a thread
  static constexpr int kColumns = kWarps * kWarpColumns;
  static constexpr int kTokens = 32;  // a pipeline stage
  static constexpr int kStages = 4;
  static constexpr int kWideStride = kColumns + kRowPadding;
  static constexpr int kNarrowStride = kBottleneck + kRowPadding;
  static constexpr int kStageElements = kTokens * (kWideStride + kNarrowStride);
  static constexpr int64_t kSharedMemory = int64_t{2} * kStages * kStageElements;
};

template <typename Element>
struct WeightGradientArguments {
  Matrix<Element> grad_output;          // wide
  Matrix<Element> activated;            // narrow
  Matrix<Element> hidden_states;        // wide
  Matrix<Element> grad_pre_activation;  // narrow
  GradientMatrix<Element> up, down;
  float* partial = nullptr;  // sets of partial_size sums; null: one range holds all tokens
  int64_t partial_size = 0;
  int64_t range_tokens = 0;              // tokens of a range
  int ranges = 1;                        // without sorted tokens
  int up_windows = 0, down_windows = 0;  // of the products' columns, 0 for one that is not wanted
  const Segment* segments = nullptr;     // grouped: the sorted tokens of each range; null: neighbouring tokens
  const int64_t* tokens = nullptr;       // grouped: the sorted tokens
  const int32_t* first_range = nullptr;  // grouped: where the ranges of each adapter begin
  int num_adapters = 0;                  // grouped
};

// The first column of an accumulator: the sums that the ones column has made.
template <typename Element>
__device__ __forceinline__ void store_first_column(const GradientMatrix<Element>& gradient,
                                                   const GradientTarget& target, int64_t place, const float (&sums)[4],
                                                   int lane) {
  if (lane % 4 != 0) return;
  store_bias(gradient, target, place + lane / 4, sums[0]);
  store_bias(gradient, target, place + lane / 4 + 8, sums[2]);
}

// The tokens of this block's range.
template <typename Element>
__device__ __forceinline__ WindowRows range_rows(const WeightGradientArguments<Element>& arguments) {
  if (arguments.segments != nullptr) {
    const Segment segment = arguments.segments[blockIdx.y];
    return {segment.begin, segment.end, arguments.tokens};
  }
  const int64_t first = blockIdx.y * arguments.range_tokens, end = first + arguments.range_tokens;
  return {first, end < arguments.activated.rows ? end : arguments.activated.rows, nullptr};
}

template <typename Element>
__device__ __forceinline__ GradientTarget range_target(const WeightGradientArguments<Element>& arguments) {
  if (arguments.segments != nullptr) return sorted_target(arguments, blockIdx.y, arguments.segments[blockIdx.y]);
  if (arguments.partial == nullptr) return {};
  return {0, arguments.partial + blockIdx.y * arguments.partial_size};
}

// Copies and multiplies one token range: `multiply(wide, narrow)` sees kTokens tokens of both matrices at a time.
template <class Config, class Multiply>
__device__ __forceinline__ void stream_tokens(typename Config::Element* stages,
                                              const Matrix<typename Config::Element>& wide,
                                              const Matrix<typename Config::Element>& narrow, const WindowRows& range,
                                              const Multiply& multiply) {
  const int chunks = static_cast<int>((range.end - range.first + Config::kTokens - 1) / Config::kTokens);
  const int column0 = static_cast<int>(blockIdx.x) * Config::kColumns;
  const auto load = [&](int chunk, int stage) {
    const WindowRows rows = {range.first + chunk * Config::kTokens, range.end, range.tokens};
    auto* target = stages + stage * Config::kStageElements;
    copy_window<Config::kTokens, Config::kColumns, Config::kThreads>(target, Config::kWideStride, wide, rows, column0);
    copy_window<Config::kTokens, Config::kBottleneck, Config::kThreads>(target + Config::kTokens * Config::kWideStride,
                                                                        Config::kNarrowStride, narrow, rows, 0);
  };
  Pipeline<Config::kStages>::start(chunks, load);
  Pipeline<Config::kStages>::run(chunks, load, [&](int, int stage) {
    const auto* from = stages + stage * Config::kStageElements;
    multiply(from, from + Config::kTokens * Config::kWideStride);
  });
}

// grad_output^T @ [activated | 1]: the warp's columns are rows of the result.
template <class Config>
__device__ __forceinline__ void up_gradient(typename Config::Element* stages,
                                            const WeightGradientArguments<typename Config::Element>& arguments) {
  using Element = typename Config::Element;
  constexpr int kRowTiles = Config::kWarpColumns / 16;
  const int lane = threadIdx.x % 32, warp_column = threadIdx.x / 32 * Config::kWarpColumns;
  float sums[kRowTiles][Config::kBottleneck / 8][4] = {}, bias[kRowTiles][4] = {};
  const uint32_t ones = ones_column<Element>(lane);
  stream_tokens<Config>(stages, arguments.grad_output, arguments.activated, range_rows(arguments),
                        [&](const Element* wide, const Element* narrow) {
#pragma unroll
                          for (int k = 0; k < Config::kTokens; k += 16) {
                            uint32_t a[kRowTiles][4], b[4];
#pragma unroll
                            for (int i = 0; i < kRowTiles; ++i) {
                              load_a<true>(a[i], wide + k * Config::kWideStride + warp_column + i * 16,
                                           Config::kWideStride, lane);
                              mma<Element>(bias[i], a[i], ones, ones);
                            }
#pragma unroll
                            for (int n = 0; n < Config::kBottleneck; n += 16) {
                              load_b<true>(b, narrow + k * Config::kNarrowStride + n, Config::kNarrowStride, lane);
#pragma unroll
                              for (int i = 0; i < kRowTiles; ++i) {
                                mma<Element>(sums[i][n / 8], a[i], b[0], b[1]);
                                mma<Element>(sums[i][n / 8 + 1], a[i], b[2], b[3]);
                              }
                            }
                          }
                        });
  const GradientTarget target = range_target(arguments);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * Config::kColumns + warp_column;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int n = 0; n < Config::kBottleneck / 8; n += 2) {
      store_sums<false>(arguments.up, target, column + i * 16, n * 8, sums[i][n], sums[i][n + 1], lane);
    }
    store_first_column(arguments.up, target, column + i * 16, bias[i], lane);
  }
}

// grad_pre_activation^T @ [hidden_states | 1]: the warp's columns are columns of the result. The bias is the work of
// one warp of the grid's first column, so that it is summed once.
template <class Config>
__device__ __forceinline__ void down_gradient(typename Config::Element* stages,
                                              const WeightGradientArguments<typename Config::Element>& arguments) {
  using Element = typename Config::Element;
  constexpr int kRowTiles = Config::kBottleneck / 16, kColumnTiles = Config::kWarpColumns / 8;
  const int lane = threadIdx.x % 32, warp_column = threadIdx.x / 32 * Config::kWarpColumns;
  const bool owns_bias = blockIdx.x == 0 && threadIdx.x < 32;
  float sums[kRowTiles][kColumnTiles][4] = {}, bias[kRowTiles][4] = {};
  const uint32_t ones = ones_column<Element>(lane);
  stream_tokens<Config>(stages, arguments.hidden_states, arguments.grad_pre_activation, range_rows(arguments),
                        [&](const Element* wide, const Element* narrow) {
#pragma unroll
                          for (int k = 0; k < Config::kTokens; k += 16) {
                            uint32_t a[4], b[kColumnTiles / 2][4];
#pragma unroll
                            for (int n = 0; n < kColumnTiles / 2; ++n) {
                              load_b<true>(b[n], wide + k * Config::kWideStride + warp_column + n * 16,
                                           Config::kWideStride, lane);
                            }
#pragma unroll
                            for (int i = 0; i < kRowTiles; ++i) {
                              load_a<true>(a, narrow + k * Config::kNarrowStride + i * 16, Config::kNarrowStride, lane);
#pragma unroll
                              for (int n = 0; n < kColumnTiles; ++n)
                                mma<Element>(sums[i][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                              if (owns_bias) mma<Element>(bias[i], a, ones, ones);
                            }
                          }
                        });
  const GradientTarget target = range_target(arguments);
  const int column = static_cast<int>(blockIdx.x) * Config::kColumns + warp_column;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      store_sums<false>(arguments.down, target, i * 16, column + n * 8, sums[i][n], sums[i][n + 1], lane);
    }
    if (owns_bias) store_first_column(arguments.down, target, i * 16, bias[i], lane);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinBlocks)
    weight_gradient_kernel(const WeightGradientArguments<typename Config::Element> arguments) {
  ADAPTERX_SHARED_MEMORY(memory);
  auto* stages = reinterpret_cast<typename Config::Element*>(memory);
  if (arguments.segments != nullptr && arguments.segments[blockIdx.y].adapter < 0) return;
  if (blockIdx.z == 0 && arguments.up_windows > 0) {
    up_gradient<Config>(stages, arguments);
  } else {
    down_gradient<Config>(stages, arguments);
  }
}

}  // namespace adapterx::cuda
