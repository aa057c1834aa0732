// From the dispatcher's flat argument lists to the structs of operators.h: a dispatch key whose kernels take the
// structs registers all six operators with three functions.
#pragma once

#include <torch/library.h>

#include "operators.h"

namespace adapterx::ops {

// The operators' flat signatures over functions of one struct.
template <Tensor (*forward)(const ForwardArguments&), TrainOutputs (*train)(const ForwardArguments&),
          Gradients (*backward)(const BackwardArguments&)>
struct Flat {
  static Tensor plain_forward(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                              const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                              std::string_view activation, double scaling) {
    return forward({hidden_states, residual, kNone, down_weight, down_bias, up_weight, up_bias, activation, scaling});
  }

  static TrainOutputs plain_train(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                                  const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                                  std::string_view activation, double scaling) {
    return train({hidden_states, residual, kNone, down_weight, down_bias, up_weight, up_bias, activation, scaling});
  }

  static Gradients plain_backward(const Tensor& grad_output, const OptTensor& hidden_states,
                                  const OptTensor& pre_activation, const OptTensor& down_weight,
                                  const OptTensor& up_weight, std::string_view activation, double scaling,
                                  bool add_grad_output, OutputMask output_mask) {
    return backward({grad_output, hidden_states, pre_activation, kNone, down_weight, up_weight, 1, activation, scaling,
                     add_grad_output, output_mask});
  }

  static Tensor grouped_forward(const Tensor& hidden_states, const OptTensor& residual, const Tensor& adapter_indices,
                                const Tensor& down_weight, const OptTensor& down_bias, const Tensor& up_weight,
                                const OptTensor& up_bias, std::string_view activation, double scaling) {
    const OptTensor indices = adapter_indices;
    return forward({hidden_states, residual, indices, down_weight, down_bias, up_weight, up_bias, activation, scaling});
  }

  static TrainOutputs grouped_train(const Tensor& hidden_states, const OptTensor& residual,
                                    const Tensor& adapter_indices, const Tensor& down_weight,
                                    const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                                    std::string_view activation, double scaling) {
    const OptTensor indices = adapter_indices;
    return train({hidden_states, residual, indices, down_weight, down_bias, up_weight, up_bias, activation, scaling});
  }

  static Gradients grouped_backward(const Tensor& grad_output, const OptTensor& hidden_states,
                                    const OptTensor& pre_activation, const Tensor& adapter_indices,
                                    const OptTensor& down_weight, const OptTensor& up_weight, int64_t num_adapters,
                                    std::string_view activation, double scaling, bool add_grad_output,
                                    OutputMask output_mask) {
    const OptTensor indices = adapter_indices;
    return backward({grad_output, hidden_states, pre_activation, indices, down_weight, up_weight, num_adapters,
                     activation, scaling, add_grad_output, output_mask});
  }
};

// Registers the three functions for the plain and for the grouped operators.
template <Tensor (*forward)(const ForwardArguments&), TrainOutputs (*train)(const ForwardArguments&),
          Gradients (*backward)(const BackwardArguments&)>
void register_operators(torch::Library& library) {
  using F = Flat<forward, train, backward>;
  library.impl("bottleneck_adapter", TORCH_FN(F::plain_forward));
  library.impl("bottleneck_adapter_train", TORCH_FN(F::plain_train));
  library.impl("bottleneck_adapter_backward", TORCH_FN(F::plain_backward));
  library.impl("grouped_bottleneck_adapter", TORCH_FN(F::grouped_forward));
  library.impl("grouped_bottleneck_adapter_train", TORCH_FN(F::grouped_train));
  library.impl("grouped_bottleneck_adapter_backward", TORCH_FN(F::grouped_backward));
}

}  // namespace adapterx::ops
