// One vocabulary of argument checks: "<function>: <argument> must <rule>, got <value>".
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>

#include "../kernels/types.h"

namespace adapterx::ops {

inline Activation checked_activation(const char* function, std::string_view name) {
  const auto activation = parse_activation(name);
  TORCH_CHECK_VALUE(activation.has_value(), function,
                    ": activation must be one of relu, gelu, gelu_tanh, silu, tanh, sigmoid, leaky_relu, identity, got '",
                    name, "'");
  return *activation;
}

}  // namespace adapterx::ops
