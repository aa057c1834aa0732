// The adapter as a formula of differentiable ATen operators: for functorch transforms, forward-mode derivatives and
// second derivatives, where no kernel of ours is at hand. Slower, and right.
#pragma once

#include "operators.h"

namespace adapterx::ops {

// The operators, arguments checked.
Tensor composite_forward(const ForwardArguments& arguments);
TrainOutputs composite_train(const ForwardArguments& arguments);
Gradients composite_backward(const BackwardArguments& arguments);

// As composite_backward without the checks, where the pre-activation has a gradient of its own, as it does in second
// derivatives. Either gradient (`grad_output` is that of the arguments) may be undefined, which means zero; a gradient
// that is zero for that reason is returned undefined.
Gradients composite_backward_of_both(const BackwardArguments& arguments, const Tensor& grad_pre_activation);

}  // namespace adapterx::ops
