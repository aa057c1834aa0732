// What happens between the two products of the resident kernel: bias and activation, or their derivative. A lane holds
// four values of the middle as an mma accumulator of middle^T: rows (of the bottleneck) lane / 4 and + 8, tokens
// 2 * (lane % 4) and + 1. Memory is [token][bottleneck], so pairs are transposed on their way.
#pragma once

#include "activation.cuh"
#include "element.cuh"

namespace adapterx::cuda {

// Two neighbouring columns of one row of a narrow row-major matrix in one register; zero where there are none. `pairs`:
// rows are aligned for 4-byte access, and a pair lies inside or outside as a whole.
template <typename Element>
struct PairMatrix {
  int64_t stride = 0;
  int columns = 0;
  bool pairs = false;

  __device__ __forceinline__ uint32_t load(const Element* data, int64_t row, int column) const {
    if (row < 0 || column >= columns) return 0;
    const Element* from = data + row * stride + column;
    if (pairs) return *reinterpret_cast<const uint32_t*>(from);
    const Vector<Element, 2> pair = {{from[0], column + 1 < columns ? from[1] : from_compute<Element>(0)}};
    return *reinterpret_cast<const uint32_t*>(&pair);
  }

  __device__ __forceinline__ void store(Element* data, int64_t row, int column, uint32_t pair) const {
    if (data == nullptr || row < 0 || column >= columns) return;
    Element* to = data + row * stride + column;
    if (pairs) {
      *reinterpret_cast<uint32_t*>(to) = pair;
    } else {
      const auto two = *reinterpret_cast<const Vector<Element, 2>*>(&pair);
      to[0] = two.values[0];
      if (column + 1 < columns) to[1] = two.values[1];
    }
  }
};

// The pair of columns 2 * (lane % 4) that a lane holds of token lane / 4, as B operand and as it lies in memory: column
// tiles of 8 at the lane's own column and 8 behind it.
using ColumnPairs = uint2;

// Turns accumulators (two rows, two tokens) into pairs of columns.
template <typename Element>
__device__ __forceinline__ ColumnPairs to_columns(const float (&v)[4]) {
  return make_uint2(movmatrix_trans(pack<Element>(v[0], v[1])), movmatrix_trans(pack<Element>(v[2], v[3])));
}

// Forward: pre-activation = sum + bias (stored where it is wanted), middle = activation(pre-activation).
template <typename Element>
struct ResidentForward {
  static constexpr bool kBackward = false;
  PairMatrix<Element> matrix;
  Activation activation = Activation::relu;
  const Element* bias = nullptr;
  Element* pre_activation = nullptr;

  struct Ahead {
    float bias[2];
  };

  // Asks for what the middle needs before its sums are there. `row`: the lane's row of the middle.
  __device__ __forceinline__ Ahead ask(int64_t, int, int row, int adapter) const {
    Ahead ahead;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool wanted = bias != nullptr && adapter >= 0 && row + 8 * i < matrix.columns;
      ahead.bias[i] = wanted ? to_compute(bias[int64_t{adapter} * matrix.columns + row + 8 * i]) : 0.f;
    }
    return ahead;
  }

  // `token` and `column`: of the lane's pairs of columns; `row`: of its accumulators.
  __device__ __forceinline__ ColumnPairs operator()(const Ahead& ahead, float (&v)[4], int64_t token, int column,
                                                    int row, int adapter) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] += ahead.bias[i / 2];
    const ColumnPairs before = adapter < 0 ? make_uint2(0, 0) : to_columns<Element>(v);
    matrix.store(pre_activation, token, column, before.x);
    matrix.store(pre_activation, token, column + 8, before.y);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = row + i / 2 * 8 < matrix.columns ? activate(activation, v[i]) : 0.f;
    return to_columns<Element>(v);
  }
};

// Backward: middle = gradient of the pre-activation = scaling * activation'(pre-activation) * sum. The activation is
// stored beside it for the weight gradient.
template <typename Element>
struct ResidentBackward {
  static constexpr bool kBackward = true;
  PairMatrix<Element> matrix;
  Activation activation = Activation::relu;
  float scaling = 1.f;
  const Element* pre_activation = nullptr;
  Element* grad_pre_activation = nullptr;  // may be null
  Element* activated = nullptr;            // may be null

  struct Ahead {
    ColumnPairs pre_activation;
  };

  __device__ __forceinline__ Ahead ask(int64_t token, int column, int, int) const {
    return {make_uint2(matrix.load(pre_activation, token, column), matrix.load(pre_activation, token, column + 8))};
  }

  __device__ __forceinline__ ColumnPairs operator()(const Ahead& ahead, float (&v)[4], int64_t token, int column,
                                                    int row, int adapter) const {
    const uint32_t pairs[2] = {movmatrix_trans(ahead.pre_activation.x), movmatrix_trans(ahead.pre_activation.y)};
    float u[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto two = *reinterpret_cast<const Vector<Element, 2>*>(&pairs[i / 2]);
      u[i] = to_compute(two.values[i % 2]);
      v[i] *= scaling * activation_derivative(activation, u[i]);
      if (row + i / 2 * 8 >= matrix.columns) v[i] = 0.f;
      u[i] = activate(activation, u[i]);
    }
    const ColumnPairs gradient = to_columns<Element>(v), active = to_columns<Element>(u);
    if (adapter >= 0) {  // the weight gradients skip the other tokens
      matrix.store(grad_pre_activation, token, column, gradient.x);
      matrix.store(grad_pre_activation, token, column + 8, gradient.y);
      matrix.store(activated, token, column, active.x);
      matrix.store(activated, token, column + 8, active.y);
    }
    return gradient;
  }
};

}  // namespace adapterx::cuda
