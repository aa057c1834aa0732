// Launches the element-wise kernels.
#include <algorithm>

#include "rowwise.cuh"
#include "rowwise.h"

namespace adapterx::cuda {
namespace {

constexpr int64_t kThreads = 256;
constexpr int64_t kMaxRowBlocks = 16 * 132;  // more blocks than run at once only cost their start; 132 SMs
constexpr int64_t kMaxRanges = 128;          // of rows, each with its own partial column sums
constexpr int64_t kMinRangeRows = 64;

// Calls visitor(Tag<Element>, integral_constant<width>): 16-byte vectors where every row of every matrix allows them.
template <class Visitor>
cudaError_t visit_width(const RowShape& shape, int64_t stride, std::initializer_list<const void*> pointers,
                        const Visitor& visitor) {
  return visit_dtype(shape.dtype, [&](auto tag) {
    using Element = typename decltype(tag)::Type;
    constexpr int kWidth = kVectorWidth<Element>;
    bool vector = shape.columns % kWidth == 0 && stride % kWidth == 0;
    for (const void* pointer : pointers) vector = vector && is_aligned(pointer, 16);
    if (vector) return visitor(tag, std::integral_constant<int, kWidth>());
    return visitor(tag, std::integral_constant<int, 1>());
  });
}

// A rectangle of 256 threads, as wide as the matrix where that is at most 256 vectors.
dim3 thread_rectangle(int64_t columns, int width) {
  int64_t x = 1;
  while (x < kThreads && x * width < columns) x *= 2;
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(kThreads / x));
}

LaunchShape elementwise_shape(const RowShape& shape, int width) {
  const dim3 block = thread_rectangle(shape.columns, width);
  return {dim3(static_cast<unsigned>(std::min(kMaxRowBlocks, ceil_div(shape.rows, block.y)))), block};
}

int64_t row_ranges(int64_t rows) { return std::clamp<int64_t>(rows / kMinRangeRows, 1, kMaxRanges); }

// Both stages of a column sum; the first one also differentiates where arguments.pre_activation is set.
template <typename Element, int kWidth>
cudaError_t launch_column_sum(ColumnArguments<Element> arguments, Compute<Element> sum_scaling, void* sums,
                              cudaStream_t stream) {
  const int64_t ranges = row_ranges(arguments.rows);
  arguments.range_rows = ceil_div(arguments.rows, ranges);
  const dim3 block = thread_rectangle(std::min<int64_t>(arguments.columns, 32 * kWidth), kWidth);
  const int64_t windows = ceil_div(arguments.columns, int64_t{block.x} * kWidth);
  const LaunchShape shape = {dim3(static_cast<unsigned>(windows), static_cast<unsigned>(ranges)), block,
                             kThreads * kWidth * static_cast<int64_t>(sizeof(Compute<Element>))};
  const cudaError_t error = launch(column_sum_kernel<Element, kWidth>, shape, stream, arguments);
  if (error != cudaSuccess || sums == nullptr) return error;
  const LaunchShape finish = {dim3(static_cast<unsigned>(ceil_div(arguments.columns, kThreads))),
                              dim3(static_cast<unsigned>(kThreads))};
  return launch(column_sum_finish_kernel<Element>, finish, stream, arguments.columns, static_cast<int>(ranges),
                sum_scaling, arguments.partial, static_cast<Element*>(sums));
}

// No rows: the sums are zero (all formats write zero as zero bytes).
cudaError_t clear_sums(const RowShape& shape, void* sums, cudaStream_t stream) {
  if (sums == nullptr || shape.columns == 0) return cudaSuccess;
  return visit_dtype(shape.dtype, [&](auto tag) {
    return cudaMemsetAsync(sums, 0, static_cast<size_t>(shape.columns) * sizeof(typename decltype(tag)::Type), stream);
  });
}

}  // namespace

cudaError_t bias_activation(const RowShape& shape, Activation activation, const void* input, const void* bias,
                            void* activated, void* pre_activation, cudaStream_t stream) {
  if (shape.rows == 0 || shape.columns == 0) return cudaSuccess;
  return visit_width(shape, 0, {input, bias, activated, pre_activation}, [&](auto tag, auto width) {
    using Element = typename decltype(tag)::Type;
    constexpr int kWidth = decltype(width)::value;
    return launch(bias_activation_kernel<Element, kWidth>, elementwise_shape(shape, kWidth), stream, shape.rows,
                  shape.columns, activation, static_cast<const Element*>(input), static_cast<const Element*>(bias),
                  static_cast<Element*>(activated), static_cast<Element*>(pre_activation));
  });
}

cudaError_t scaled_residual(const RowShape& shape, double scaling, const void* branch, const void* bias,
                            const void* residual, int64_t residual_stride, void* output, cudaStream_t stream) {
  if (shape.rows == 0 || shape.columns == 0) return cudaSuccess;
  return visit_width(shape, residual_stride, {branch, bias, residual, output}, [&](auto tag, auto width) {
    using Element = typename decltype(tag)::Type;
    constexpr int kWidth = decltype(width)::value;
    return launch(scaled_residual_kernel<Element, kWidth>, elementwise_shape(shape, kWidth), stream, shape.rows,
                  shape.columns, static_cast<Compute<Element>>(scaling), static_cast<const Element*>(branch),
                  static_cast<const Element*>(bias), static_cast<const Element*>(residual), residual_stride,
                  static_cast<Element*>(output));
  });
}

int64_t column_sum_workspace(const RowShape& shape) {
  return row_ranges(shape.rows) * shape.columns * compute_size(shape.dtype);
}

cudaError_t activation_gradient(const RowShape& shape, Activation activation, double scaling,
                                const void* pre_activation, const void* grad_activated, void* grad_pre_activation,
                                void* grad_bias, void* workspace, cudaStream_t stream) {
  if (shape.rows == 0 || shape.columns == 0) return clear_sums(shape, grad_bias, stream);
  return visit_width(shape, 0, {pre_activation, grad_activated, grad_pre_activation}, [&](auto tag, auto width) {
    using Element = typename decltype(tag)::Type;
    ColumnArguments<Element> arguments;
    arguments.rows = shape.rows;
    arguments.columns = shape.columns;
    arguments.activation = activation;
    arguments.scaling = static_cast<Compute<Element>>(scaling);
    arguments.input = static_cast<const Element*>(grad_activated);
    arguments.input_stride = shape.columns;
    arguments.pre_activation = static_cast<const Element*>(pre_activation);
    arguments.output = static_cast<Element*>(grad_pre_activation);
    arguments.partial = grad_bias == nullptr ? nullptr : static_cast<Compute<Element>*>(workspace);
    return launch_column_sum<Element, decltype(width)::value>(arguments, 1, grad_bias, stream);
  });
}

cudaError_t column_sum(const RowShape& shape, double scaling, const void* input, int64_t input_stride, void* sums,
                       void* workspace, cudaStream_t stream) {
  if (shape.rows == 0 || shape.columns == 0) return clear_sums(shape, sums, stream);
  return visit_width(shape, input_stride, {input}, [&](auto tag, auto width) {
    using Element = typename decltype(tag)::Type;
    ColumnArguments<Element> arguments;
    arguments.rows = shape.rows;
    arguments.columns = shape.columns;
    arguments.input = static_cast<const Element*>(input);
    arguments.input_stride = input_stride;
    arguments.partial = static_cast<Compute<Element>*>(workspace);
    return launch_column_sum<Element, decltype(width)::value>(arguments, static_cast<Compute<Element>>(scaling), sums,
                                                              stream);
  });
}

}  // namespace adapterx::cuda
