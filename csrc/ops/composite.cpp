#include "composite.h"

#include "checks.h"

namespace adapterx::ops {
namespace {

Tensor activate(Activation activation, const Tensor& x) {
  switch (activation) {
    case Activation::relu: return at::relu(x);
    case Activation::gelu: return at::gelu(x, "none");
    case Activation::gelu_tanh: return at::gelu(x, "tanh");
    case Activation::silu: return at::silu(x);
    case Activation::tanh: return at::tanh(x);
    case Activation::sigmoid: return at::sigmoid(x);
    case Activation::leaky_relu: return at::leaky_relu(x, kLeakyReluSlope);
    case Activation::identity: return x;
  }
  TORCH_INTERNAL_ASSERT(false, "activation without a formula");
}

Tensor activate_backward(Activation activation, const Tensor& grad, const Tensor& x) {
  switch (activation) {
    case Activation::relu: return at::threshold_backward(grad, x, 0);
    case Activation::gelu: return at::gelu_backward(grad, x, "none");
    case Activation::gelu_tanh: return at::gelu_backward(grad, x, "tanh");
    case Activation::silu: {  // at::silu_backward has no derivative
      const auto gate = at::sigmoid(x);
      return grad * gate * (1 + x * (1 - gate));
    }
    case Activation::tanh: return at::tanh_backward(grad, at::tanh(x));
    case Activation::sigmoid: return at::sigmoid_backward(grad, at::sigmoid(x));
    case Activation::leaky_relu: return at::leaky_relu_backward(grad, x, kLeakyReluSlope, /*self_is_result=*/false);
    case Activation::identity: return grad;
  }
  TORCH_INTERNAL_ASSERT(false, "activation without a formula");
}

// (..., columns) as (num_tokens, columns).
Tensor as_matrix(const Tensor& tensor) { return tensor.reshape_symint({-1, tensor.sym_size(-1)}); }

Tensor scaled(const Tensor& tensor, double scaling) { return scaling == 1.0 ? tensor : tensor.mul(scaling); }

Tensor or_undefined(const OptTensor& tensor) { return tensor.value_or(Tensor()); }

}  // namespace

TrainOutputs composite_train(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                             const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                             std::string_view activation, double scaling) {
  const auto parsed =
      check_forward(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling);
  auto pre_activation = at::linear(hidden_states, down_weight, down_bias);
  const auto branch = at::linear(activate(parsed, pre_activation), up_weight, up_bias);
  auto output = residual ? residual->add(branch, scaling) : branch.mul(scaling);
  return {std::move(output), std::move(pre_activation)};
}

Tensor composite_forward(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                         const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                         std::string_view activation, double scaling) {
  return std::get<0>(
      composite_train(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling));
}

Gradients composite_backward_of_both(const Tensor& grad_output, const Tensor& grad_pre_activation,
                                     const Tensor& hidden_states, const Tensor& pre_activation,
                                     const Tensor& down_weight, const Tensor& up_weight, std::string_view activation,
                                     double scaling, bool add_grad_output, OutputMask output_mask) {
  const auto parsed = checked_activation("bottleneck_adapter_backward", activation);
  const auto& [want_hidden_states, want_down_weight, want_down_bias, want_up_weight, want_up_bias] = output_mask;
  Tensor grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias;
  const auto grad_rows = grad_output.defined() ? as_matrix(grad_output) : Tensor();

  // `scaling` is applied to the small products, never to the (num_tokens, hidden_size) gradient.
  if (grad_rows.defined() && want_up_bias) grad_up_bias = scaled(grad_rows.sum(0), scaling);
  if (grad_rows.defined() && want_up_weight) {
    const auto activated = activate(parsed, as_matrix(pre_activation));
    grad_up_weight = scaled(grad_rows.t().mm(activated), scaling);
  }
  if (!want_hidden_states && !want_down_weight && !want_down_bias) {
    return {grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias};
  }

  auto grad_pre = grad_pre_activation.defined() ? as_matrix(grad_pre_activation) : Tensor();
  if (grad_rows.defined()) {
    const auto through = scaled(grad_rows.mm(up_weight), scaling);
    const auto own = activate_backward(parsed, through, as_matrix(pre_activation));
    grad_pre = grad_pre.defined() ? grad_pre + own : own;
  }
  if (grad_pre.defined()) {
    if (want_down_bias) grad_down_bias = grad_pre.sum(0);
    if (want_down_weight) grad_down_weight = grad_pre.t().mm(as_matrix(hidden_states));
    if (want_hidden_states) {
      auto rows = add_grad_output && grad_rows.defined() ? at::addmm(grad_rows, grad_pre, down_weight)
                                                         : grad_pre.mm(down_weight);
      auto sizes = (grad_output.defined() ? grad_output : grad_pre_activation).sym_sizes().vec();
      sizes.back() = down_weight.sym_size(1);
      grad_hidden_states = rows.reshape_symint(sizes);
    }
  }
  return {grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias};
}

Gradients composite_backward(const Tensor& grad_output, const OptTensor& hidden_states, const OptTensor& pre_activation,
                             const OptTensor& down_weight, const OptTensor& up_weight, std::string_view activation,
                             double scaling, bool add_grad_output, OutputMask output_mask) {
  check_backward(grad_output, hidden_states, pre_activation, down_weight, up_weight, activation, scaling,
                 add_grad_output, output_mask);
  return composite_backward_of_both(grad_output, Tensor(), or_undefined(hidden_states), or_undefined(pre_activation),
                                    or_undefined(down_weight), or_undefined(up_weight), activation, scaling,
                                    add_grad_output, output_mask);
}

}  // namespace adapterx::ops
