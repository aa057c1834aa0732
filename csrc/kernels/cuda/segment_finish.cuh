// What follows a product of the grouped kernels, 16 bytes of elements of one token at a time: bias, activation or its
// derivative, scaling and residual.
#pragma once

#include "activation.cuh"
#include "tile.cuh"

namespace adapterx::cuda {

// ---- rows of 16-byte units -----------------------------------------------------------------------------------------

template <typename Element>
using Unit = Compute<Element>[kVectorWidth<Element>];

// A unit of a row, zero where the row has ended.
template <typename Element>
__device__ __forceinline__ void load_unit(Unit<Element>& values, const Matrix<Element>& matrix, int64_t row,
                                          int column) {
  constexpr int kWidth = kVectorWidth<Element>;
  const Element* from = matrix.data + row * matrix.stride + column;
  if (matrix.vector && column + kWidth <= matrix.columns) {
    const auto unit = *reinterpret_cast<const Vector<Element, kWidth>*>(from);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = to_compute(unit.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = column + i < matrix.columns ? to_compute(from[i]) : 0;
  }
}

// A unit of a row in shared memory.
template <typename Element>
__device__ __forceinline__ void load_row(Unit<Element>& values, const Compute<Element>* from) {
  constexpr int kStep = kVectorWidth<Compute<Element>>;
#pragma unroll
  for (int i = 0; i < kVectorWidth<Element>; i += kStep) {
    const auto part = *reinterpret_cast<const Vector<Compute<Element>, kStep>*>(from + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) values[i + j] = part.values[j];
  }
}

// A contiguous token matrix that is written.
template <typename Element>
struct TokenRows {
  Element* data = nullptr;  // null: not wanted
  int columns = 0;
  bool vector = false;  // every row starts at a multiple of 16 bytes

  __device__ __forceinline__ void store(int64_t token, int column, const Unit<Element>& values) const {
    constexpr int kWidth = kVectorWidth<Element>;
    if (data == nullptr) return;
    Element* to = data + token * columns + column;
    if (vector) {
      Vector<Element, kWidth> unit;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) unit.values[i] = from_compute<Element>(values[i]);
      *reinterpret_cast<Vector<Element, kWidth>*>(to) = unit;
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (column + i < columns) to[i] = from_compute<Element>(values[i]);
      }
    }
  }
};

// ---- what follows a product ----------------------------------------------------------------------------------------
// operator() gets a unit of the product of `token` with the weight of `adapter`; `skip` is for tokens without adapter.

// pre_activation = product + bias, stored where it is wanted; activated = activation(pre_activation).
template <typename Element>
struct ActivationFinish {
  Matrix<Element> bias;  // a row for each adapter; data null: no bias
  TokenRows<Element> pre_activation, activated;
  Activation activation = Activation::relu;

  __device__ __forceinline__ void operator()(int64_t token, int column, int adapter, Unit<Element>& values) const {
    if (bias.data != nullptr) {
      Unit<Element> b;
      load_unit(b, bias, adapter, column);
#pragma unroll
      for (int i = 0; i < kVectorWidth<Element>; ++i) values[i] += b[i];
    }
    pre_activation.store(token, column, values);
    // The activation sees the unrounded sum, as in the tile kernels.
#pragma unroll
    for (int i = 0; i < kVectorWidth<Element>; ++i) values[i] = activate(activation, values[i]);
    activated.store(token, column, values);
  }

  __device__ __forceinline__ void skip(int64_t token, int column) const {
    pre_activation.store(token, column, Unit<Element>{});
  }
};

// gradient = scaling * activation'(pre_activation) * product; activated is computed anew for the weight gradient.
template <typename Element>
struct DerivativeFinish {
  Matrix<Element> pre_activation;
  TokenRows<Element> gradient, activated;
  Activation activation = Activation::relu;
  Compute<Element> scaling = 1;

  __device__ __forceinline__ void operator()(int64_t token, int column, int, Unit<Element>& values) const {
    Unit<Element> u;
    load_unit(u, pre_activation, token, column);
#pragma unroll
    for (int i = 0; i < kVectorWidth<Element>; ++i) {
      values[i] = activation_gradient(activation, u[i], scaling * values[i]);
      u[i] = activate(activation, u[i]);
    }
    gradient.store(token, column, values);
    activated.store(token, column, u);
  }

  __device__ __forceinline__ void skip(int64_t, int) const {}  // nothing reads these tokens' gradients
};

// output = base + scale * (product + bias)
template <typename Element>
struct OutputFinish {
  Matrix<Element> bias;  // a row for each adapter; data null: no bias
  Matrix<Element> base;  // data null: zero
  TokenRows<Element> output;
  Compute<Element> scale = 1;

  __device__ __forceinline__ void operator()(int64_t token, int column, int adapter, Unit<Element>& values) const {
    Unit<Element> b = {}, x = {};
    if (bias.data != nullptr) load_unit(b, bias, adapter, column);
    if (base.data != nullptr) load_unit(x, base, token, column);
#pragma unroll
    for (int i = 0; i < kVectorWidth<Element>; ++i) values[i] = x[i] + scale * (values[i] + b[i]);
    output.store(token, column, values);
  }

  __device__ __forceinline__ void skip(int64_t token, int column) const {
    Unit<Element> x = {};
    if (base.data != nullptr) load_unit(x, base, token, column);
    output.store(token, column, x);
  }
};

}  // namespace adapterx::cuda
