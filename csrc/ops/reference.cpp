// First operator of the house, in ATen: replaced by the dispatch-key files as they are written.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"

namespace adapterx::ops {
namespace {
using at::Tensor;
using OptTensor = std::optional<Tensor>;

Tensor activate(Activation a, const Tensor& x) {
  switch (a) {
    case Activation::relu: return at::relu(x);
    case Activation::gelu: return at::gelu(x);
    case Activation::gelu_tanh: return at::gelu(x, "tanh");
    case Activation::silu: return at::silu(x);
    case Activation::tanh: return at::tanh(x);
    case Activation::sigmoid: return at::sigmoid(x);
    case Activation::leaky_relu: return at::leaky_relu(x, kLeakyReluSlope);
    default: return x;
  }
}

Tensor bottleneck_adapter(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                          const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                          c10::string_view activation, double scaling) {
  auto act = checked_activation("bottleneck_adapter", {activation.data(), activation.size()});
  auto branch = at::linear(activate(act, at::linear(hidden_states, down_weight, down_bias)), up_weight, up_bias);
  return residual ? residual->add(branch, scaling) : branch.mul(scaling);
}
}  // namespace

TORCH_LIBRARY_IMPL(adapterx, CompositeImplicitAutograd, m) { m.impl("bottleneck_adapter", bottleneck_adapter); }
}  // namespace adapterx::ops
