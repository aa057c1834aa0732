// Element-wise and row-wise kernels for the cuBLASLt path, any dtype: what its epilogues cannot say exactly.
// Device pointers; nothing allocates or synchronises. fp32 arithmetic, fp64 for fp64 tensors.
#pragma once

#include "../types.h"
#include "runtime.h"

namespace adapterx::cuda {

// A contiguous (rows, columns) matrix of `dtype`.
struct RowShape {
  ScalarType dtype = ScalarType::float32;
  int64_t rows = 0;
  int64_t columns = 0;
};

// pre_activation = input + bias;  activated = activation(pre_activation). bias and pre_activation may be null; both
// results may overwrite the input.
cudaError_t bias_activation(const RowShape& shape, Activation activation, const void* input, const void* bias,
                            void* activated, void* pre_activation, cudaStream_t stream);

// output = residual + scaling * (branch + bias). All but the output may be null, which is zero; rows of residual may be
// strided; output may overwrite branch.
cudaError_t scaled_residual(const RowShape& shape, double scaling, const void* branch, const void* bias,
                            const void* residual, int64_t residual_stride, void* output, cudaStream_t stream);

// Bytes of workspace of the two functions below, 256-byte aligned.
int64_t column_sum_workspace(const RowShape& shape);

// grad_pre_activation = scaling * activation'(pre_activation) * grad_activated, and grad_bias = its column sums (null:
// not wanted; the workspace may be null then). grad_pre_activation may overwrite grad_activated. The sums are those of
// the stored, rounded values, in a fixed order.
cudaError_t activation_gradient(const RowShape& shape, Activation activation, double scaling,
                                const void* pre_activation, const void* grad_activated, void* grad_pre_activation,
                                void* grad_bias, void* workspace, cudaStream_t stream);

// sums[column] = scaling * sum over rows of input, in a fixed order. Rows of input may be strided.
cudaError_t column_sum(const RowShape& shape, double scaling, const void* input, int64_t input_stride, void* sums,
                       void* workspace, cudaStream_t stream);

}  // namespace adapterx::cuda
