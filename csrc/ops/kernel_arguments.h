// From tensors to what the kernels take, on whichever device: sizes, pointers and strides, the results' memory, and the
// copies that keep unusual layouts alive while a kernel runs.
#pragma once

#include "../kernels/problem.h"
#include "operators.h"

namespace adapterx::ops {

// A token tensor as a matrix of rows with one stride between them. Copies only where no such view exists.
struct Rows {
  Tensor owner;
  int64_t stride = 0;

  explicit Rows(const Tensor& tensor) : owner(has_row_stride(tensor) ? tensor : tensor.contiguous()) {
    stride = row_stride(owner);
  }

  const void* data() const { return owner.const_data_ptr(); }

 private:
  // Elements from one row to the next: the stride of the innermost leading dimension that has more than one entry.
  static int64_t row_stride(const Tensor& tensor) {
    for (int64_t i = tensor.dim() - 2; i >= 0; --i) {
      if (tensor.size(i) != 1) return tensor.stride(i);
    }
    return tensor.size(-1);
  }

  static bool has_row_stride(const Tensor& tensor) {
    if (tensor.is_contiguous()) return true;
    if (tensor.stride(-1) != 1 && tensor.size(-1) != 1) return false;
    int64_t expected = row_stride(tensor);
    if (expected < tensor.size(-1)) return false;  // rows that overlap, such as broadcast ones: cuBLASLt refuses them
    for (int64_t i = tensor.dim() - 2; i >= 0; --i) {
      if (tensor.size(i) == 1) continue;
      if (tensor.stride(i) != expected) return false;
      expected *= tensor.size(i);
    }
    return true;
  }
};

// Whether the kernels want an index for every token, or take one for some consecutive tokens.
enum class IndexOf { token, tokens };

// One call of a forward kernel. `output` and, where it is wanted, `pre_activation` are allocated; the kernel fills
// them.
struct ForwardCall {
  ForwardCall(const ForwardArguments& arguments, Activation activation, bool save_pre_activation, IndexOf index_of);

  bool empty() const { return problem.num_tokens == 0; }

  Tensor output, pre_activation;
  Problem problem;
  ForwardTensors tensors;
  AdapterIndices indices;

 private:
  Rows hidden_states;
  std::optional<Rows> residual;
  Tensor down_weight, up_weight, index_values;
  OptTensor down_bias, up_bias;
};

// One call of a backward kernel. The wanted gradients are allocated, and zero where there are no tokens.
struct BackwardCall {
  BackwardCall(const BackwardArguments& arguments, Activation activation, IndexOf index_of);

  bool empty() const { return problem.num_tokens == 0; }

  Gradients gradients;
  Problem problem;  // a size is zero where no wanted gradient depends on it
  BackwardTensors tensors;
  AdapterIndices indices;

 private:
  Rows grad_output;
  std::optional<Rows> hidden_states;
  OptTensor pre_activation, down_weight, up_weight;
  Tensor index_values;
};

}  // namespace adapterx::ops
