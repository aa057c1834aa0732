// What every kernel of the bottleneck adapter computes, on whichever device: sizes and tensors as plain pointers.
#pragma once

#include "types.h"

namespace adapterx {

// Sizes in elements. Matrices are row-major; weights as in nn.Linear: down_weight (bottleneck_dim, input_size),
// up_weight (hidden_size, bottleneck_dim). Rows of token matrices may be strided, their columns may not. Biases have
// the dtype of the other tensors.
struct Problem {
  ScalarType dtype = ScalarType::float32;
  Activation activation = Activation::relu;
  double scaling = 1.0;
  int64_t num_tokens = 0;
  int64_t input_size = 0;   // columns of hidden_states
  int64_t hidden_size = 0;  // columns of residual and output
  int64_t bottleneck_dim = 0;
};

// output = residual + scaling * (activation(hidden_states @ down_weight^T + down_bias) @ up_weight^T + up_bias)
struct ForwardTensors {
  const void* hidden_states = nullptr;
  int64_t hidden_states_stride = 0;  // elements between two rows
  const void* residual = nullptr;    // null: the bare branch; may be hidden_states itself
  int64_t residual_stride = 0;
  const void* down_weight = nullptr;
  const void* down_bias = nullptr;  // null: no bias
  const void* up_weight = nullptr;
  const void* up_bias = nullptr;   // null: no bias
  void* output = nullptr;          // contiguous (num_tokens, hidden_size); may not overlap an input
  void* pre_activation = nullptr;  // contiguous (num_tokens, bottleneck_dim); null: not wanted
};

// A gradient pointer that is null is not computed and costs nothing.
struct BackwardTensors {
  const void* grad_output = nullptr;
  int64_t grad_output_stride = 0;
  const void* hidden_states = nullptr;  // may be null when grad_down_weight is
  int64_t hidden_states_stride = 0;
  const void* pre_activation = nullptr;  // contiguous, as the forward stored it
  const void* down_weight = nullptr;
  const void* up_weight = nullptr;
  bool add_grad_output = false;  // grad_input += grad_output: the residual is hidden_states itself
  void* grad_input = nullptr;    // contiguous (num_tokens, input_size)
  void* grad_down_weight = nullptr;
  void* grad_down_bias = nullptr;
  void* grad_up_weight = nullptr;
  void* grad_up_bias = nullptr;
};

// The grouped form: each token picks one of num_adapters adapters, or none. Weights, biases and their gradients then
// have a contiguous leading dimension num_adapters. A token without adapter gets its residual, or zero, and a zero
// pre-activation; the gradients of an adapter that no token picked are zero.
struct AdapterIndices {
  const int64_t* values =
      nullptr;               // num_tokens numbers of [-1, num_adapters), -1 for none; the caller has checked them
  int64_t num_adapters = 0;  // 0: one adapter for all tokens, no indices
  // On CUDA only:
  const void* sorted = nullptr;  // what cuda::sort made of them; null: the call sorts them itself
  int64_t tokens_each = 1;       // consecutive tokens that a number is for
};

}  // namespace adapterx
