// Where the sums of the weight gradients go: into the gradients themselves, rounded once, where the block that has them
// saw all tokens of the adapter; else, in fp32, into a set of partial sums that reduce_partial_sums adds.
#pragma once

#include "bottleneck_middle.cuh"
#include "partial_sums.h"

namespace adapterx::cuda {

// One weight gradient, (rows, columns) for each adapter, its bias, and their places in a set of partial sums.
template <typename Element>
struct GradientMatrix {
  Element* weight = nullptr;  // null: not wanted
  Element* bias = nullptr;    // null: not wanted
  int64_t rows = 0;
  QuadAccess<Element> row;
  int64_t bias_size = 0;
  float scale = 1.f;
  int64_t partial_weight = 0, partial_stride = 0, partial_bias = 0;
};

// Of the sums of one range of tokens.
struct GradientTarget {
  int64_t adapter = 0;
  float* partial = nullptr;  // a set of partial sums; null: the gradients themselves
};

// A row of two 8x8 blocks that lie side by side, packed: lane l holds elements (l / 4, 2 * (l % 4)) and the one right of
// it. Neighbouring lanes exchange halves, so that each stores four neighbours and four lanes fill 32 bytes.
template <typename Element>
__device__ __forceinline__ void store_blocks(Element* target, const GradientMatrix<Element>& gradient, int64_t row0,
                                             int column0, uint32_t left, uint32_t right, int lane) {
  const bool odd = lane % 2 != 0;
  const uint32_t received = shuffle_xor(odd ? left : right, 1);
  const uint2 quad = odd ? make_uint2(received, right) : make_uint2(left, received);
  const int64_t row = row0 + lane / 4;
  gradient.row.store(target, row < gradient.rows ? row : -1, column0 + lane % 4 / 2 * 4 + (odd ? 8 : 0), quad);
}

// 16 x 16 sums of a gradient from (row0, column0) on, as a warp holds them in two mma accumulators: side by side, or,
// transposed, those of the gradient's transpose (16 columns, 8 rows each), one below the other.
template <bool kTransposed, typename Element>
__device__ __forceinline__ void store_sums(const GradientMatrix<Element>& gradient, const GradientTarget& target,
                                           int64_t row0, int column0, const float (&first)[4], const float (&second)[4],
                                           int lane) {
  if (gradient.weight == nullptr) return;
  if (target.partial == nullptr) {
    Element* weight = gradient.weight + target.adapter * gradient.rows * gradient.row.columns;
    uint32_t blocks[2][2];  // as they lie in an accumulator: its upper and lower half, of the first and the second
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      blocks[half][0] = pack<Element>(gradient.scale * first[2 * half], gradient.scale * first[2 * half + 1]);
      blocks[half][1] = pack<Element>(gradient.scale * second[2 * half], gradient.scale * second[2 * half + 1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t left = kTransposed ? movmatrix_trans(blocks[0][i]) : blocks[i][0];
      const uint32_t right = kTransposed ? movmatrix_trans(blocks[1][i]) : blocks[i][1];
      store_blocks(weight, gradient, row0 + 8 * i, column0, left, right, lane);
    }
    return;
  }
  float* partial = target.partial + gradient.partial_weight + row0 * gradient.partial_stride + column0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + half * 8, column = lane % 4 * 2;
    if constexpr (kTransposed) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        partial[(column + i) * gradient.partial_stride + row] = first[half * 2 + i];
        partial[(column + i + 8) * gradient.partial_stride + row] = second[half * 2 + i];
      }
    } else {
      float* to = partial + row * gradient.partial_stride + column;
      *reinterpret_cast<float2*>(to) = make_float2(first[half * 2], first[half * 2 + 1]);
      *reinterpret_cast<float2*>(to + 8) = make_float2(second[half * 2], second[half * 2 + 1]);
    }
  }
}

template <typename Element>
__device__ __forceinline__ void store_bias(const GradientMatrix<Element>& gradient, const GradientTarget& target,
                                           int64_t place, float sum) {
  if (target.partial != nullptr) {
    target.partial[gradient.partial_bias + place] = sum;
  } else if (gradient.bias != nullptr && place < gradient.bias_size) {
    gradient.bias[target.adapter * gradient.bias_size + place] = from_compute<Element>(gradient.scale * sum);
  }
}

// Where the sums of range `range` of the sorted tokens go.
template <class Arguments>
__device__ __forceinline__ GradientTarget sorted_target(const Arguments& arguments, int64_t range,
                                                        const Segment& segment) {
  const int first = arguments.first_range[segment.adapter], end = arguments.first_range[segment.adapter + 1];
  if (end - first == 1) return {segment.adapter, nullptr};
  const int64_t set = partial_set(segment.begin, range + 1 == end);
  return {segment.adapter, arguments.partial + set * arguments.partial_size};
}

}  // namespace adapterx::cuda
