// What happens between the two products of the resident kernel: bias and activation, or their derivative. A lane holds
// two values of the middle, as in an mma accumulator of middle^T: row (of the bottleneck) lane / 4, tokens
// 2 * (lane % 4) and + 1. Memory is [token][bottleneck], so pairs are transposed on their way: a lane then holds token
// lane / 4, columns 2 * (lane % 4) and + 1, which is also its part of the B operand of the second product.
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

// Where a lane's values belong.
struct MiddlePlace {
  int64_t token;  // of its pair in memory; -1: none
  int column;     // likewise, the first of two
  int row;        // of its accumulators
  int adapter;
};

// Forward: pre-activation = sum + bias (stored where it is wanted), middle = activation(pre-activation).
template <typename Element>
struct ResidentForward {
  static constexpr bool kBackward = false;
  PairMatrix<Element> matrix;
  Activation activation = Activation::relu;
  const Element* bias = nullptr;
  Element* pre_activation = nullptr;

  // What the middle needs besides its sums.
  __device__ __forceinline__ float ask(const MiddlePlace& place) const {
    if (bias == nullptr || place.adapter < 0 || place.row >= matrix.columns) return 0.f;
    return to_compute(bias[static_cast<int64_t>(place.adapter) * matrix.columns + place.row]);
  }

  // From sums to the lane's part of the second product's operand.
  __device__ __forceinline__ uint32_t operator()(float ahead, float (&values)[2], const MiddlePlace& place) const {
    values[0] += ahead, values[1] += ahead;
    if (pre_activation != nullptr) {
      const uint32_t before = movmatrix_trans(pack<Element>(values[0], values[1]));
      matrix.store(pre_activation, place.token, place.column, place.adapter < 0 ? 0 : before);
    }
    activate(activation, values);
    return movmatrix_trans(place.row < matrix.columns ? pack<Element>(values[0], values[1]) : 0);
  }
};

// Backward: middle = gradient of the pre-activation = scaling * activation'(pre-activation) * sum. The activation is
// stored beside it for the weight gradient.
template <typename Element>
struct ResidentBackward {
  static constexpr bool kBackward = true;
  PairMatrix<Element> matrix;  // pre_activation
  PairMatrix<Element> narrow;  // what is stored
  Activation activation = Activation::relu;
  float scaling = 1.f;
  const Element* pre_activation = nullptr;
  Element* grad_pre_activation = nullptr;  // may be null
  Element* activated = nullptr;            // may be null

  __device__ __forceinline__ void prefetch(const MiddlePlace& place) const {
    if (place.token < 0 || place.column >= matrix.columns) return;
    cuda::prefetch(pre_activation + place.token * matrix.stride + place.column);
  }
  __device__ __forceinline__ uint32_t ask(const MiddlePlace& place) const {
    return matrix.load(pre_activation, place.token, place.column);
  }

  __device__ __forceinline__ uint32_t operator()(uint32_t ahead, float (&values)[2], const MiddlePlace& place) const {
    const uint32_t pair = movmatrix_trans(ahead);
    const auto two = *reinterpret_cast<const Vector<Element, 2>*>(&pair);
    float active[2] = {to_compute(two.values[0]), to_compute(two.values[1])};
    values[0] *= scaling, values[1] *= scaling;
    differentiate(activation, active, values);
    const bool inside = place.row < matrix.columns;
    const uint32_t gradient = movmatrix_trans(inside ? pack<Element>(values[0], values[1]) : 0);
    if (activated != nullptr) {
      const uint32_t transposed = movmatrix_trans(pack<Element>(active[0], active[1]));
      if (place.adapter >= 0) narrow.store(activated, place.token, place.column, transposed);
    }
    // The weight gradients skip tokens without adapter.
    if (place.adapter >= 0) narrow.store(grad_pre_activation, place.token, place.column, gradient);
    return gradient;
  }
};

}  // namespace adapterx::cuda
