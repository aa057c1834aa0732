// Grouped products over sorted tokens, for any dtype and any sizes (see segment_path.h):
//     segment_product_kernel:   result[token] = finish(terms[token] @ weight of the token's adapter),
//     segment_gradient_kernel:  sums[range] = left^T @ right, and left^T @ 1, over the tokens of a range.
//
// Grid: product: x is a tile of tokens and a window of 64 columns, the windows of one tile next to each other, so that
//     its tokens come from the L2 cache after the first; gradient: x is a 64 x 64 window of one of the two weights, y a
//     range.
// Block: 4 warps; a warp owns 16 columns of the result and all 64 rows.
// Thread: 8 rows x 4 columns, in the layout of mma accumulators. 16-bit elements are multiplied on tensor cores, the
//     others by FMA.
// Shared memory: the tile's tokens; kStages stages of the terms of both operands, 128 bytes a row; then, in their place,
//     the result, so that it is stored by rows.
// Accumulation: fp32, or fp64 for fp64; the terms of a sum are added in their order.
#pragma once

#include "partial_sums.h"
#include "segment_finish.cuh"
#include "segment_multiply.cuh"

namespace adapterx::cuda {

template <typename Element>
struct ProductArguments {
  Matrix<Element> terms;   // a row for each token
  Matrix<Element> weight;  // of the first adapter: (columns, terms), or, transposed, (terms, columns)
  int windows = 0;         // of 64 columns of the result
  const Segment* tiles = nullptr;
  const int64_t* tokens = nullptr;
};

// The windows of the operands that the stages of a product are filled from.
template <class Config, bool kTransposed>
__device__ __forceinline__ void load_product(typename Config::Element* stage,
                                             const ProductArguments<typename Config::Element>& arguments,
                                             const Matrix<typename Config::Element>& weight, const int64_t* tokens,
                                             int chunk, int column0) {
  const int term = chunk * Config::kTerms;
  const auto row_of_tile = [&](int row) { return tokens[row]; };
  copy_terms<Config, false>(stage, arguments.terms, row_of_tile, term);
  const WindowRows weight_rows = {kTransposed ? term : column0, weight.rows};
  copy_terms<Config, kTransposed>(stage + Config::kWindow, weight, weight_rows, kTransposed ? column0 : term);
}

// The product of the tile's tokens with a window of the adapter's weight, laid out by rows in place of the stages.
template <class Config, bool kTransposed>
__device__ __forceinline__ void multiply_tile(unsigned char* memory,
                                              const ProductArguments<typename Config::Element>& arguments,
                                              const Segment& segment, const int64_t* tokens, int column0) {
  using Element = typename Config::Element;
  auto* stages = reinterpret_cast<Element*>(memory);
  Matrix<Element> weight = arguments.weight;
  weight.data += segment.adapter * weight.rows * weight.columns;
  const auto load = [&](int chunk, int stage) {
    load_product<Config, kTransposed>(stages + stage * Config::kStageElements, arguments, weight, tokens, chunk,
                                      column0);
  };
  const bool few = segment.end - segment.begin <= Config::kFewRows;
  const int chunks = (arguments.terms.columns + Config::kTerms - 1) / Config::kTerms;
  SegmentSums<Config> sums = {};
  Pipeline<Config::kStages>::start(chunks, load);
  Pipeline<Config::kStages>::run(chunks, load, [&](int, int stage) {
    const Element* from = stages + stage * Config::kStageElements;
    if (few) {
      multiply<Config, false, kTransposed, Config::kFewRows / 16>(sums, from, NoBias());
    } else {
      multiply<Config, false, kTransposed, Config::kRows / 16>(sums, from, NoBias());
    }
  });
  lay_out_result<Config, false>(reinterpret_cast<typename Config::Real*>(memory), sums);
}

template <class Config, bool kTransposed, class Finish>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinBlocks)
    segment_product_kernel(const ProductArguments<typename Config::Element> arguments, const Finish finish) {
  using Element = typename Config::Element;
  using Real = typename Config::Real;
  constexpr int kWidth = Config::kWidth, kUnits = Config::kColumns / kWidth;
  ADAPTERX_SHARED_MEMORY(memory);
  const Segment segment = arguments.tiles[blockIdx.x / arguments.windows];
  if (segment.adapter == kUnusedSegment) return;
  const int column0 = static_cast<int>(blockIdx.x % arguments.windows) * Config::kColumns;
  const int columns = kTransposed ? arguments.weight.columns : static_cast<int>(arguments.weight.rows);
  auto* tokens = reinterpret_cast<int64_t*>(memory);
  const WindowRows sorted = {segment.begin, segment.end, arguments.tokens};
  for (int i = threadIdx.x; i < Config::kRows; i += Config::kThreads) tokens[i] = sorted(i);
  __syncthreads();
  unsigned char* stages = memory + Config::kTokenBytes;
  if (segment.adapter != kNoAdapter) multiply_tile<Config, kTransposed>(stages, arguments, segment, tokens, column0);
  const Real* result = reinterpret_cast<const Real*>(stages);
#pragma unroll 1
  for (int i = threadIdx.x; i < Config::kRows * kUnits; i += Config::kThreads) {
    const int row = i / kUnits, window_column = i % kUnits * kWidth, column = column0 + window_column;
    if (tokens[row] < 0 || column >= columns) continue;
    if (segment.adapter == kNoAdapter) {
      finish.skip(tokens[row], column);
    } else {
      Unit<Element> values;
      load_row<Element>(values, result + row * Config::kResultStride + window_column);
      finish(tokens[row], column, segment.adapter, values);
    }
  }
}

// One weight gradient: left^T @ right over tokens, (left columns, right columns), and left^T @ 1.
template <typename Element>
struct GradientProduct {
  Matrix<Element> left;    // a row for each token
  Matrix<Element> right;   // a row for each token; no columns where only the bias is wanted
  int windows = 0;         // blocks that this product takes: 64 x 64 windows; none where nothing of it is wanted
  int column_windows = 1;  // next to each other
  int64_t weight_offset = 0, weight_stride = 0, bias_offset = 0;  // in the partial sums
};

template <typename Element>
struct GradientArguments {
  GradientProduct<Element> up, down;
  const Segment* ranges = nullptr;
  const int64_t* tokens = nullptr;
  Compute<Element>* partial = nullptr;
  int64_t range_size = 0;  // partial sums of a range
};

// Sums of the left operand's terms, for the bias: on tensor cores as a product with a column of ones.
template <class Config>
struct BiasSums {
  typename Config::Real sums[Config::kRows / 16][4] = {};
  bool wanted = false;

  __device__ __forceinline__ void add(int i, const uint32_t (&a)[4]) {
    const uint32_t ones = ones_column<typename Config::Element>(threadIdx.x % 32);
    if (wanted) mma<typename Config::Element>(sums[i], a, ones, ones);
  }
  __device__ __forceinline__ void add(int i, const typename Config::Element (&rows)[2][Config::kWidth]) {
    if (!wanted) return;
#pragma unroll
    for (int t = 0; t < Config::kWidth; ++t) sums[i][0] += rows[0][t], sums[i][2] += rows[1][t];
  }
  // The first column of an accumulator holds the sums.
  __device__ __forceinline__ void store(typename Config::Real* target, int row0, int rows) const {
    const int lane = threadIdx.x % 32;
    if (!wanted || lane % 4 != 0) return;
#pragma unroll
    for (int place = 0; place < Config::kRows / 8; ++place) {
      const int i = place / 2, half = place % 2, row = row0 + i * 16 + owned_row<Config, true>(lane, half);
      if (row < rows) target[row] = sums[i][half * 2];
    }
  }
};

// Sums the products over the block's range. `bias` sees the left operand.
template <class Config>
__device__ __forceinline__ void multiply_range(unsigned char* memory, BiasSums<Config>& bias,
                                               const GradientProduct<typename Config::Element>& product,
                                               const WindowRows& range, int row0, int column0) {
  using Element = typename Config::Element;
  auto* stages = reinterpret_cast<Element*>(memory);
  const auto load = [&](int chunk, int stage) {
    const WindowRows rows = {range.first + chunk * Config::kTerms, range.end, range.tokens};
    Element* target = stages + stage * Config::kStageElements;
    copy_terms<Config, true>(target, product.left, rows, row0);
    copy_terms<Config, true>(target + Config::kWindow, product.right, rows, column0);
  };
  const int chunks = static_cast<int>((range.end - range.first + Config::kTerms - 1) / Config::kTerms);
  SegmentSums<Config> sums = {};
  Pipeline<Config::kStages>::start(chunks, load);
  Pipeline<Config::kStages>::run(chunks, load, [&](int, int stage) {
    multiply<Config, true, true, Config::kRows / 16>(sums, stages + stage * Config::kStageElements,
                                                     [&](int i, const auto& rows) { bias.add(i, rows); });
  });
  lay_out_result<Config, true>(reinterpret_cast<typename Config::Real*>(memory), sums);
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinBlocks)
    segment_gradient_kernel(const GradientArguments<typename Config::Element> arguments) {
  using Real = typename Config::Real;
  constexpr int kWidth = kVectorWidth<Real>, kUnits = Config::kColumns / kWidth;
  ADAPTERX_SHARED_MEMORY(memory);
  const Segment segment = arguments.ranges[blockIdx.y];
  if (segment.adapter < 0) return;
  const bool is_up = static_cast<int>(blockIdx.x) < arguments.up.windows;
  const GradientProduct<typename Config::Element> product = is_up ? arguments.up : arguments.down;
  const int window = static_cast<int>(blockIdx.x) - (is_up ? 0 : arguments.up.windows);
  const int row0 = window / product.column_windows * Config::kRows;
  const int column0 = window % product.column_windows * Config::kColumns;
  BiasSums<Config> bias;
  bias.wanted = column0 == 0 && threadIdx.x < 32;  // one warp sums each of the left columns once
  multiply_range<Config>(memory, bias, product, {segment.begin, segment.end, arguments.tokens}, row0, column0);
  Real* partial = arguments.partial + blockIdx.y * arguments.range_size;
  bias.store(partial + product.bias_offset, row0, product.left.columns);
  const Real* result = reinterpret_cast<const Real*>(memory);
#pragma unroll 4
  for (int i = threadIdx.x; i < Config::kRows * kUnits; i += Config::kThreads) {
    const int row = i / kUnits, column = i % kUnits * kWidth;
    if (row0 + row >= product.left.columns || column0 + column >= product.right.columns) continue;
    Real* to = partial + product.weight_offset + (row0 + row) * product.weight_stride + column0 + column;
    *reinterpret_cast<Vector<Real, kWidth>*>(to) =
        *reinterpret_cast<const Vector<Real, kWidth>*>(result + row * Config::kResultStride + column);
  }
}

}  // namespace adapterx::cuda
