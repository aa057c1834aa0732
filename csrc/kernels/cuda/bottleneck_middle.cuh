// What happens between the two products of a bottleneck tile: bias and activation, or their derivative. Columns behind
// bottleneck_dim become zero whatever the sums there are: an infinity times the padding of a weight is NaN.
#pragma once

#include "activation.cuh"
#include "element.cuh"

namespace adapterx::cuda {

// Four neighbouring values of one row of a narrow matrix; nothing for row -1. `vector`: rows are aligned for 8-byte
// access.
template <typename Element>
struct QuadAccess {
  int columns = 0;
  int stride = 0;  // elements between two rows
  bool vector = false;

  __device__ __forceinline__ void load(const Element* source, int64_t row, int column, float (&values)[4]) const {
    const Element* from = source + row * stride + column;
    if (row >= 0 && vector && column + 4 <= columns) {
      const Vector<Element, 4> quad = *reinterpret_cast<const Vector<Element, 4>*>(from);
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = to_compute(quad.values[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = row >= 0 && column + i < columns ? to_compute(from[i]) : 0.f;
    }
  }

  __device__ __forceinline__ void store(Element* target, int64_t row, int column, uint2 packed) const {
    if (target == nullptr || row < 0) return;
    Element* to = target + row * stride + column;
    if (vector && column + 4 <= columns) {
      *reinterpret_cast<uint2*>(to) = packed;
    } else {
      const Vector<Element, 4> quad = *reinterpret_cast<const Vector<Element, 4>*>(&packed);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + i < columns) to[i] = quad.values[i];
      }
    }
  }
};

template <typename Element>
__device__ __forceinline__ uint2 pack_quad(const float (&v)[4]) {
  return make_uint2(pack<Element>(v[0], v[1]), pack<Element>(v[2], v[3]));
}

// Forward: pre-activation = sum + bias (stored where it is wanted), middle = activation(pre-activation).
template <typename Element>
struct ForwardMiddle {
  static constexpr bool kBackward = false;
  QuadAccess<Element> access;
  Activation activation = Activation::relu;
  const Element* bias = nullptr;
  Element* pre_activation = nullptr;

  __device__ __forceinline__ uint2 operator()(int64_t row, int column, float (&values)[4], int adapter) const {
    const int64_t adapter_bias = static_cast<int64_t>(adapter) * access.columns;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (bias != nullptr && column + i < access.columns) values[i] += to_compute(bias[adapter_bias + column + i]);
    }
    access.store(pre_activation, row, column, pack_quad<Element>(values));
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = column + i < access.columns ? activate(activation, values[i]) : 0.f;
    return pack_quad<Element>(values);
  }

  // A token without adapter.
  __device__ __forceinline__ void clear(int64_t row, int column) const {
    access.store(pre_activation, row, column, make_uint2(0, 0));
  }
};

// Backward: middle = gradient of the pre-activation = scaling * activation'(pre-activation) * sum. The activation is
// stored beside it: the weight gradient needs it, and here it costs bottleneck_dim values a token.
template <typename Element>
struct BackwardMiddle {
  static constexpr bool kBackward = true;
  QuadAccess<Element> access;  // of pre_activation
  QuadAccess<Element> narrow;  // of the other two
  Activation activation = Activation::relu;
  float scaling = 1.f;
  const Element* pre_activation = nullptr;
  Element* grad_pre_activation = nullptr;  // may be null
  Element* activated = nullptr;            // may be null

  __device__ __forceinline__ uint2 operator()(int64_t row, int column, float (&values)[4], int) const {
    float u[4];
    access.load(pre_activation, row, column, u);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float gradient = activation_gradient(activation, u[i], scaling * values[i]);
      values[i] = column + i < access.columns ? gradient : 0.f;
      u[i] = activate(activation, u[i]);
    }
    const uint2 gradient = pack_quad<Element>(values);
    narrow.store(grad_pre_activation, row, column, gradient);
    narrow.store(activated, row, column, pack_quad<Element>(u));
    return gradient;
  }

  __device__ __forceinline__ void clear(int64_t, int) const {}  // the weight gradients skip these tokens
};

}  // namespace adapterx::cuda
