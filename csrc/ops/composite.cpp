#include "composite.h"

#include <array>
#include <vector>

#include "checks.h"
#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

// An activation, and its derivative times `grad`, in operators that have derivatives themselves.
template <Activation kActivation>
struct Formula;

template <>
struct Formula<Activation::relu> {
  static Tensor value(const Tensor& x) { return at::relu(x); }
  static Tensor backward(const Tensor& grad, const Tensor& x) { return at::threshold_backward(grad, x, 0); }
};

template <>
struct Formula<Activation::gelu> {
  static Tensor value(const Tensor& x) { return at::gelu(x, "none"); }
  static Tensor backward(const Tensor& grad, const Tensor& x) { return at::gelu_backward(grad, x, "none"); }
};

template <>
struct Formula<Activation::gelu_tanh> {
  static Tensor value(const Tensor& x) { return at::gelu(x, "tanh"); }
  static Tensor backward(const Tensor& grad, const Tensor& x) { return at::gelu_backward(grad, x, "tanh"); }
};

template <>
struct Formula<Activation::silu> {
  static Tensor value(const Tensor& x) { return at::silu(x); }
  static Tensor backward(const Tensor& grad, const Tensor& x) {  // at::silu_backward has no derivative
    const auto gate = at::sigmoid(x);
    return grad * gate * (1 + x * (1 - gate));
  }
};

template <>
struct Formula<Activation::tanh> {
  static Tensor value(const Tensor& x) { return at::tanh(x); }
  static Tensor backward(const Tensor& grad, const Tensor& x) { return at::tanh_backward(grad, at::tanh(x)); }
};

template <>
struct Formula<Activation::sigmoid> {
  static Tensor value(const Tensor& x) { return at::sigmoid(x); }
  static Tensor backward(const Tensor& grad, const Tensor& x) { return at::sigmoid_backward(grad, at::sigmoid(x)); }
};

template <>
struct Formula<Activation::leaky_relu> {
  static Tensor value(const Tensor& x) { return at::leaky_relu(x, kLeakyReluSlope); }
  static Tensor backward(const Tensor& grad, const Tensor& x) {
    return at::leaky_relu_backward(grad, x, kLeakyReluSlope, /*self_is_result=*/false);
  }
};

template <>
struct Formula<Activation::identity> {
  static Tensor value(const Tensor& x) { return x; }
  static Tensor backward(const Tensor& grad, const Tensor&) { return grad; }
};

Tensor activate(Activation activation, const Tensor& x) {
  switch (activation) {
#define ADAPTERX_CASE(name) \
  case Activation::name: return Formula<Activation::name>::value(x);
    ADAPTERX_ACTIVATIONS(ADAPTERX_CASE)
#undef ADAPTERX_CASE
  }
  TORCH_INTERNAL_ASSERT(false, "activation out of range");
}

Tensor activate_backward(Activation activation, const Tensor& grad, const Tensor& x) {
  switch (activation) {
#define ADAPTERX_CASE(name) \
  case Activation::name: return Formula<Activation::name>::backward(grad, x);
    ADAPTERX_ACTIVATIONS(ADAPTERX_CASE)
#undef ADAPTERX_CASE
  }
  TORCH_INTERNAL_ASSERT(false, "activation out of range");
}

// (..., columns) as (num_tokens, columns).
Tensor as_matrix(const Tensor& tensor) { return tensor.reshape_symint({-1, tensor.sym_size(-1)}); }

Tensor scaled(const Tensor& tensor, double scaling) { return scaling == 1.0 ? tensor : tensor.mul(scaling); }

Tensor or_undefined(const OptTensor& tensor) { return tensor.value_or(Tensor()); }

OptTensor select(const OptTensor& stack, int64_t adapter) {
  return stack ? OptTensor(stack->select(0, adapter)) : std::nullopt;
}

// (..., 1): which tokens picked the adapter.
Tensor tokens_of_adapter(const Tensor& adapter_indices, int64_t token_dims, int64_t adapter) {
  auto picked = adapter_indices.eq(adapter);
  while (picked.dim() < token_dims) picked = picked.unsqueeze(-1);
  return picked;
}

// The rows of the tokens that picked an adapter; the others are zero.
Tensor masked(const Tensor& rows, const Tensor& picked) {
  return rows.defined() ? at::where(picked, rows, at::zeros({}, rows.options())) : rows;
}

TrainOutputs train_formula(const ForwardArguments& a, Activation activation) {
  auto pre_activation = at::linear(a.hidden_states, a.down_weight, a.down_bias);
  const auto branch = at::linear(activate(activation, pre_activation), a.up_weight, a.up_bias);
  auto output = a.residual ? a.residual->add(branch, a.scaling) : branch.mul(a.scaling);
  return {std::move(output), std::move(pre_activation)};
}

// Every adapter over all tokens, of which those that picked it keep the result.
TrainOutputs grouped_train_formula(const ForwardArguments& a, Activation activation) {
  const auto adapter_indices = unsorted_indices(*a.adapter_indices, a.hidden_states);
  Tensor output, pre_activation;
  for (int64_t adapter = 0; adapter < a.down_weight.size(0); ++adapter) {
    const auto picked = tokens_of_adapter(adapter_indices, a.hidden_states.dim(), adapter);
    const auto own_hidden_states = masked(a.hidden_states, picked);  // see grouped_backward_formula
    const OptTensor down_bias = select(a.down_bias, adapter), up_bias = select(a.up_bias, adapter);
    const Tensor down_weight = a.down_weight.select(0, adapter), up_weight = a.up_weight.select(0, adapter);
    const auto [own_output, own_pre] = train_formula(
        {own_hidden_states, a.residual, down_weight, down_bias, up_weight, up_bias, a.activation, a.scaling, kNone},
        activation);
    if (adapter == 0) {
      output = a.residual ? a.residual->expand_symint(own_output.sym_sizes()) : at::zeros_like(own_output);
      pre_activation = at::zeros_like(own_pre);
    }
    output = at::where(picked, own_output, output);
    pre_activation = at::where(picked, own_pre, pre_activation);
  }
  return {std::move(output), std::move(pre_activation)};
}

// The gradients of one adapter from the gradients of its tokens, all (num_tokens, columns).
Gradients backward_formula(const Tensor& grad_rows, const Tensor& grad_pre_rows, const Tensor& hidden_states,
                           const Tensor& pre_activation, const Tensor& down_weight, const Tensor& up_weight,
                           Activation activation, double scaling, const OutputMask& mask) {
  Gradients gradients;
  auto& [grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias] = gradients;
  // `scaling` is applied to the small products, never to the (num_tokens, hidden_size) gradient.
  if (grad_rows.defined() && mask[kUpBias]) grad_up_bias = scaled(grad_rows.sum(0), scaling);
  if (grad_rows.defined() && mask[kUpWeight]) {
    grad_up_weight = scaled(grad_rows.t().mm(activate(activation, pre_activation)), scaling);
  }
  if (!mask[kHiddenStates] && !mask[kDownWeight] && !mask[kDownBias]) return gradients;
  auto grad_pre = grad_pre_rows;
  if (grad_rows.defined()) {
    const auto own = activate_backward(activation, scaled(grad_rows.mm(up_weight), scaling), pre_activation);
    grad_pre = grad_pre.defined() ? grad_pre + own : own;
  }
  if (!grad_pre.defined()) return gradients;
  if (mask[kDownBias]) grad_down_bias = grad_pre.sum(0);
  if (mask[kDownWeight]) grad_down_weight = grad_pre.t().mm(hidden_states);
  if (mask[kHiddenStates]) grad_hidden_states = grad_pre.mm(down_weight);
  return gradients;
}

Tensor matrix_or_undefined(const Tensor& tensor) { return tensor.defined() ? as_matrix(tensor) : tensor; }

Tensor weights_of(const Tensor& stack, int64_t adapter) { return stack.defined() ? stack.select(0, adapter) : stack; }

void append(std::vector<Tensor>& list, const Tensor& tensor) {
  if (tensor.defined()) list.push_back(tensor);
}

// backward_formula for every adapter: sums over the adapters for the tokens, stacks for the weights.
Gradients grouped_backward_formula(const BackwardArguments& a, const Tensor& grad_rows, const Tensor& grad_pre_rows,
                                   Activation activation) {
  const auto& tokens = a.grad_output.defined() ? a.grad_output : *a.pre_activation;
  const auto adapter_indices = unsorted_indices(*a.adapter_indices, tokens);
  std::array<std::vector<Tensor>, 5> parts;
  for (int64_t adapter = 0; adapter < a.num_adapters; ++adapter) {
    auto sizes = tokens.sym_sizes().vec();
    sizes.back() = 1;
    const auto picked = as_matrix(tokens_of_adapter(adapter_indices, tokens.dim(), adapter).expand_symint(sizes));
    // What is not finite in other tokens must not reach the sums over tokens: zero times that is no zero.
    const auto own =
        backward_formula(masked(grad_rows, picked), masked(grad_pre_rows, picked),
                         masked(matrix_or_undefined(or_undefined(a.hidden_states)), picked),
                         masked(matrix_or_undefined(or_undefined(a.pre_activation)), picked),
                         weights_of(or_undefined(a.down_weight), adapter),
                         weights_of(or_undefined(a.up_weight), adapter), activation, a.scaling, a.output_mask);
    append(parts[kHiddenStates], std::get<kHiddenStates>(own));
    append(parts[kDownWeight], std::get<kDownWeight>(own));
    append(parts[kDownBias], std::get<kDownBias>(own));
    append(parts[kUpWeight], std::get<kUpWeight>(own));
    append(parts[kUpBias], std::get<kUpBias>(own));
  }
  Gradients gradients;
  if (!parts[kHiddenStates].empty()) {
    auto& sum = std::get<kHiddenStates>(gradients);
    for (const auto& part : parts[kHiddenStates]) sum = sum.defined() ? sum + part : part;
  }
  const auto stacked = [&](Gradient which) { return parts[which].empty() ? Tensor() : at::stack(parts[which]); };
  std::get<kDownWeight>(gradients) = stacked(kDownWeight);
  std::get<kDownBias>(gradients) = stacked(kDownBias);
  std::get<kUpWeight>(gradients) = stacked(kUpWeight);
  std::get<kUpBias>(gradients) = stacked(kUpBias);
  return gradients;
}

}  // namespace

TrainOutputs composite_train(const ForwardArguments& arguments) {
  const auto activation = check_forward(arguments);
  return arguments.grouped() ? grouped_train_formula(arguments, activation) : train_formula(arguments, activation);
}

Tensor composite_forward(const ForwardArguments& arguments) { return std::get<0>(composite_train(arguments)); }

Gradients composite_backward_of_both(const BackwardArguments& a, const Tensor& grad_pre_activation) {
  const auto activation = checked_activation("bottleneck_adapter_backward", a.activation);
  const auto grad_rows = matrix_or_undefined(a.grad_output), grad_pre_rows = matrix_or_undefined(grad_pre_activation);
  auto gradients =
      a.grouped() ? grouped_backward_formula(a, grad_rows, grad_pre_rows, activation)
                  : backward_formula(grad_rows, grad_pre_rows, matrix_or_undefined(or_undefined(a.hidden_states)),
                                     matrix_or_undefined(or_undefined(a.pre_activation)), or_undefined(a.down_weight),
                                     or_undefined(a.up_weight), activation, a.scaling, a.output_mask);
  auto& grad_hidden_states = std::get<kHiddenStates>(gradients);
  if (grad_hidden_states.defined()) {
    if (a.add_grad_output && grad_rows.defined()) grad_hidden_states = grad_hidden_states + grad_rows;
    auto sizes = (a.grad_output.defined() ? a.grad_output : grad_pre_activation).sym_sizes().vec();
    sizes.back() = a.down_weight->sym_size(-1);
    grad_hidden_states = grad_hidden_states.reshape_symint(sizes);
  }
  return gradients;
}

Gradients composite_backward(const BackwardArguments& arguments) {
  check_backward(arguments);
  return composite_backward_of_both(arguments, Tensor());
}

}  // namespace adapterx::ops
