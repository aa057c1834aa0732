// The adapter as a formula of differentiable ATen operators: for functorch transforms, forward-mode derivatives and
// second derivatives, where no kernel of ours is at hand. Slower, and right.
#pragma once

#include "operators.h"

namespace adapterx::ops {

// The three operators, arguments checked.
Tensor composite_forward(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                         const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                         std::string_view activation, double scaling);
TrainOutputs composite_train(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                             const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                             std::string_view activation, double scaling);
Gradients composite_backward(const Tensor& grad_output, const OptTensor& hidden_states, const OptTensor& pre_activation,
                             const OptTensor& down_weight, const OptTensor& up_weight, std::string_view activation,
                             double scaling, bool add_grad_output, OutputMask output_mask);

// As composite_backward, where the pre-activation has a gradient of its own, as it does in second derivatives. Either
// gradient may be undefined, which means zero; a gradient that is zero for that reason is returned undefined.
Gradients composite_backward_of_both(const Tensor& grad_output, const Tensor& grad_pre_activation,
                                     const Tensor& hidden_states, const Tensor& pre_activation,
                                     const Tensor& down_weight, const Tensor& up_weight, std::string_view activation,
                                     double scaling, bool add_grad_output, OutputMask output_mask);

}  // namespace adapterx::ops
