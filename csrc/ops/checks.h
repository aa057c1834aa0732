// One vocabulary of argument checks: "<function>: <argument> must <rule>, got <value>". Wrong types raise TypeError,
// wrong values ValueError. Sizes are symbolic integers, so that the fake kernels check exactly what the real ones do.
#pragma once

#include <string_view>

#include "../kernels/types.h"
#include "operators.h"

namespace adapterx::ops {

// The activation called `name`; raises ValueError where none is.
Activation checked_activation(const char* function, std::string_view name);

// The name of `activation`, as the operators take it.
inline std::string_view activation_name(Activation activation) {
  return kActivationNames[static_cast<int32_t>(activation)];
}

// Python's None arrives as an undefined tensor where the schema says Tensor; autograd must not meet one.
void check_given(const ForwardArguments& arguments);

// Arguments of the forward operators and their `_train` twins; users see the first name only. Returns the activation.
Activation check_forward(const ForwardArguments& arguments);

// Arguments of the backward operators, and that all that the wanted gradients need is given.
Activation check_backward(const BackwardArguments& arguments);

// That the storage behind every tensor holds its elements; raises RuntimeError otherwise. For the kernels that read
// memory, after the checks above: FSDP and its kin free a parameter's storage and leave its shape. Fake tensors and the
// wrappers of functorch have no memory, and their dispatch keys do not ask.
void check_memory(const ForwardArguments& arguments);
void check_memory(const BackwardArguments& arguments);

}  // namespace adapterx::ops
