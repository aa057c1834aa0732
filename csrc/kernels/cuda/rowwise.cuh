// Element-wise kernels over a (rows, columns) matrix, and column sums: see rowwise.h for the formulas.
// Grid and blocks: a block is a rectangle of threads, x along columns and y along rows, and strides over the matrix; so
// no thread ever divides an index by the number of columns. A thread owns kWidth neighbouring columns: a 16-byte vector
// where rows are aligned, else one element. Shared memory: only the column sums, one value for each thread and column.
// Accumulation in fp32, or fp64 for fp64.
#pragma once

#include "activation.cuh"
#include "launch.cuh"

namespace adapterx::cuda {

template <typename Element, int kWidth>
struct Values {
  Compute<Element> v[kWidth];

  __device__ __forceinline__ void load(const Element* from) {
    const Vector<Element, kWidth> raw = *reinterpret_cast<const Vector<Element, kWidth>*>(from);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = to_compute(raw.values[i]);
  }
  __device__ __forceinline__ void store(Element* to) {
    Vector<Element, kWidth> raw;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      raw.values[i] = from_compute<Element>(v[i]);
      v[i] = to_compute(raw.values[i]);  // what the memory now holds
    }
    *reinterpret_cast<Vector<Element, kWidth>*>(to) = raw;
  }
  __device__ __forceinline__ void add(const Element* from) {
    if (from == nullptr) return;
    Values other;
    other.load(from);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] += other.v[i];
  }
};

// Calls body(row, column) for the places of this thread.
template <int kWidth, class Body>
__device__ __forceinline__ void for_each_place(int64_t rows, int64_t columns, const Body& body) {
  const int64_t first_column = static_cast<int64_t>(threadIdx.x) * kWidth;
  const int64_t row_stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += row_stride) {
    for (int64_t column = first_column; column < columns; column += static_cast<int64_t>(blockDim.x) * kWidth) {
      body(row, column);
    }
  }
}

template <typename Element, int kWidth>
__global__ void bias_activation_kernel(int64_t rows, int64_t columns, Activation activation, const Element* input,
                                       const Element* bias, Element* activated, Element* pre_activation) {
  for_each_place<kWidth>(rows, columns, [&](int64_t row, int64_t column) {
    Values<Element, kWidth> x;
    x.load(input + row * columns + column);
    x.add(bias == nullptr ? nullptr : bias + column);
    // The activation sees the unrounded sum, as in the fused kernels.
    Values<Element, kWidth> a = x;
    if (pre_activation != nullptr) x.store(pre_activation + row * columns + column);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) a.v[i] = activate(activation, a.v[i]);
    a.store(activated + row * columns + column);
  });
}

template <typename Element, int kWidth>
__global__ void scaled_residual_kernel(int64_t rows, int64_t columns, Compute<Element> scaling, const Element* branch,
                                       const Element* bias, const Element* residual, int64_t residual_stride,
                                       Element* output) {
  for_each_place<kWidth>(rows, columns, [&](int64_t row, int64_t column) {
    Values<Element, kWidth> y = {};
    if (branch != nullptr) y.load(branch + row * columns + column);
    y.add(bias == nullptr ? nullptr : bias + column);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) y.v[i] *= scaling;
    y.add(residual == nullptr ? nullptr : residual + row * residual_stride + column);
    y.store(output + row * columns + column);
  });
}

template <typename Element>
struct ColumnArguments {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t range_rows = 0;  // rows that one blockIdx.y sums
  Activation activation = Activation::identity;
  Compute<Element> scaling = 1;
  const Element* input = nullptr;  // grad_activated, or what is to be summed
  int64_t input_stride = 0;
  const Element* pre_activation = nullptr;  // null: only sums
  Element* output = nullptr;
  Compute<Element>* partial = nullptr;  // (ranges, columns); null: no sums wanted
};

template <typename Element, int kWidth>
__device__ __forceinline__ void differentiate(Values<Element, kWidth>& x, const ColumnArguments<Element>& arguments,
                                              int64_t place) {
  Values<Element, kWidth> u;
  u.load(arguments.pre_activation + place);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    x.v[i] = activation_gradient(arguments.activation, u.v[i], arguments.scaling * x.v[i]);
  }
  x.store(arguments.output + place);
}

// Sums one value of each thread over threadIdx.y, in order; the result is that of the threads with threadIdx.y == 0.
template <typename Element, int kWidth>
__device__ __forceinline__ void sum_over_y(Compute<Element> (&sums)[kWidth], unsigned char* memory) {
  auto* shared = reinterpret_cast<Compute<Element>*>(memory);
  const int width = blockDim.x * kWidth, place = threadIdx.x * kWidth;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) shared[threadIdx.y * width + place + i] = sums[i];
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int y = 1; y < static_cast<int>(blockDim.y); ++y) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] += shared[y * width + place + i];
  }
}

// blockIdx.x: a window of columns, blockIdx.y: a range of rows.
template <typename Element, int kWidth>
__global__ void column_sum_kernel(const ColumnArguments<Element> arguments) {
  ADAPTERX_SHARED_MEMORY(memory);
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  const int64_t first = blockIdx.y * arguments.range_rows;
  const int64_t end = first + arguments.range_rows < arguments.rows ? first + arguments.range_rows : arguments.rows;
  Compute<Element> sums[kWidth] = {};
  if (column < arguments.columns) {
    for (int64_t row = first + threadIdx.y; row < end; row += blockDim.y) {
      Values<Element, kWidth> x;
      x.load(arguments.input + row * arguments.input_stride + column);
      if (arguments.pre_activation != nullptr) {
        differentiate(x, arguments, row * arguments.columns + column);
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sums[i] += x.v[i];
    }
  }
  if (arguments.partial == nullptr) return;
  sum_over_y<Element, kWidth>(sums, memory);
  if (threadIdx.y != 0 || column >= arguments.columns) return;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) arguments.partial[blockIdx.y * arguments.columns + column + i] = sums[i];
}

// sums[column] = scaling * the sum of the ranges' partial sums, in order.
template <typename Element>
__global__ void column_sum_finish_kernel(int64_t columns, int ranges, Compute<Element> scaling,
                                         const Compute<Element>* partial, Element* sums) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  Compute<Element> sum = 0;
  for (int range = 0; range < ranges; ++range) sum += partial[range * columns + column];
  sums[column] = from_compute<Element>(scaling * sum);
}

}  // namespace adapterx::cuda
