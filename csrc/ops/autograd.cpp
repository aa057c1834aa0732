// Gradients. Without grad mode the call goes straight to the kernel of the device; with it, one autograd node runs the
// fused forward and backward kernels and keeps (num_tokens, bottleneck_dim) numbers and references, nothing larger.
// Where our kernels have no rule (functorch transforms, forward-mode tangents, second derivatives) the formula of
// composite.h takes over.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "checks.h"
#include "composite.h"

namespace adapterx::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
bool requires_grad(const OptTensor& tensor) { return tensor.has_value() && requires_grad(*tensor); }

bool has_tangent(const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(/*level=*/0).defined(); }
bool has_tangent(const OptTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

// A functorch transform (grad, vjp, jvp, ...) differentiates the level above ours and knows no C++ autograd node. The
// dispatch key says so only while a transform runs; functorch's thread-local accessor is also set while torch.compile
// and torch.export trace, and asking it would decompose the operator in their graphs.
bool in_functorch_transform() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

template <class... Tensors>
bool needs_formula(const Tensors&... tensors) {
  return in_functorch_transform() || (has_tangent(tensors) || ...);
}

template <class... Tensors>
bool needs_graph(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// What a node remembers besides tensors, in one integer: entries of `saved_data` cost an allocation each.
struct NodeState {
  Activation activation;
  bool residual_is_hidden_states, has_residual, has_down_bias, has_up_bias;

  int64_t pack() const {
    return int64_t{residual_is_hidden_states} | int64_t{has_residual} << 1 | int64_t{has_down_bias} << 2 |
           int64_t{has_up_bias} << 3 | static_cast<int64_t>(activation) << 4;
  }

  static NodeState unpack(int64_t bits) {
    return {static_cast<Activation>(bits >> 4), (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
  }
};

// Outputs: output and pre_activation. The second is an output so that second derivatives flow through it into this
// very node: nothing is recomputed, and hidden_states is kept only where the gradient of down_weight needs it.
struct BottleneckAdapter : torch::autograd::Function<BottleneckAdapter> {
  static variable_list forward(AutogradContext* ctx, const Tensor& hidden_states, const OptTensor& residual,
                               const Tensor& down_weight, const OptTensor& down_bias, const Tensor& up_weight,
                               const OptTensor& up_bias, std::string_view activation, double scaling,
                               bool residual_is_hidden_states) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto actual_residual = residual_is_hidden_states ? OptTensor(hidden_states) : residual;
    auto [output, pre_activation] = train_operator().call(hidden_states, actual_residual, down_weight, down_bias,
                                                          up_weight, up_bias, activation, scaling);
    const bool through_activation =
        hidden_states.requires_grad() || down_weight.requires_grad() || requires_grad(down_bias);
    const auto keep_if = [](bool needed, const Tensor& tensor) { return needed ? tensor : Tensor(); };
    ctx->save_for_backward({keep_if(down_weight.requires_grad(), hidden_states),
                            keep_if(through_activation || up_weight.requires_grad(), pre_activation),
                            keep_if(hidden_states.requires_grad(), down_weight),
                            keep_if(through_activation, up_weight)});
    const NodeState state{checked_activation("bottleneck_adapter", activation), residual_is_hidden_states,
                          residual.has_value(), down_bias.has_value(), up_bias.has_value()};
    ctx->saved_data["state"] = state.pack();
    ctx->saved_data["scaling"] = scaling;
    ctx->set_materialize_grads(false);
    return {std::move(output), std::move(pre_activation)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto &grad_output = grads[0], &grad_pre_activation = grads[1];
    const auto state = NodeState::unpack(ctx->saved_data["state"].toInt());
    const double scaling = ctx->saved_data["scaling"].toDouble();
    const auto saved = ctx->get_saved_variables();
    const auto &hidden_states = saved[0], &pre_activation = saved[1], &down_weight = saved[2], &up_weight = saved[3];

    // The node has one edge for each tensor argument that was given.
    size_t edge = 0;
    const auto wanted = [&](bool given) { return given && ctx->needs_input_grad(edge++); };
    OutputMask mask{};
    mask[kHiddenStates] = wanted(true);
    const bool want_residual = wanted(state.has_residual);
    mask[kDownWeight] = wanted(true);
    mask[kDownBias] = wanted(state.has_down_bias);
    mask[kUpWeight] = wanted(true);
    mask[kUpBias] = wanted(state.has_up_bias);

    Gradients gradients;
    const auto name = activation_name(state.activation);
    if (at::GradMode::is_enabled() || grad_pre_activation.defined()) {  // create_graph=True, or a second derivative
      gradients =
          composite_backward_of_both(grad_output, grad_pre_activation, hidden_states, pre_activation, down_weight,
                                     up_weight, name, scaling, state.residual_is_hidden_states, mask);
    } else if (grad_output.defined() && mask != OutputMask{}) {
      const auto given = [](const Tensor& tensor) { return tensor.defined() ? OptTensor(tensor) : std::nullopt; };
      gradients = backward_operator().call(grad_output, given(hidden_states), given(pre_activation), given(down_weight),
                                           given(up_weight), name, scaling, state.residual_is_hidden_states, mask);
    }
    return {std::get<kHiddenStates>(gradients),
            want_residual ? grad_output : Tensor(),
            std::get<kDownWeight>(gradients),
            std::get<kDownBias>(gradients),
            std::get<kUpWeight>(gradients),
            std::get<kUpBias>(gradients),
            Tensor(),   // activation
            Tensor(),   // scaling
            Tensor()};  // residual_is_hidden_states
  }

  // `apply`, with the residual left out where it is hidden_states itself: one edge then carries both gradients.
  static variable_list record(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                              const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                              std::string_view activation, double scaling) {
    check_given(hidden_states, down_weight, up_weight);
    const bool fused = residual.has_value() && residual->is_same(hidden_states);
    return apply(hidden_states, fused ? std::nullopt : residual, down_weight, down_bias, up_weight, up_bias, activation,
                 scaling, fused);
  }
};

Tensor forward_autograd(c10::DispatchKeySet keys, const Tensor& hidden_states, const OptTensor& residual,
                        const Tensor& down_weight, const OptTensor& down_bias, const Tensor& up_weight,
                        const OptTensor& up_bias, std::string_view activation, double scaling) {
  if (needs_formula(hidden_states, residual, down_weight, down_bias, up_weight, up_bias)) {
    return composite_forward(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling);
  }
  if (needs_graph(hidden_states, residual, down_weight, down_bias, up_weight, up_bias)) {
    return BottleneckAdapter::record(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation,
                                     scaling)[0];
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return forward_operator().redispatch(keys & c10::after_autograd_keyset, hidden_states, residual, down_weight,
                                       down_bias, up_weight, up_bias, activation, scaling);
}

TrainOutputs train_autograd(c10::DispatchKeySet keys, const Tensor& hidden_states, const OptTensor& residual,
                            const Tensor& down_weight, const OptTensor& down_bias, const Tensor& up_weight,
                            const OptTensor& up_bias, std::string_view activation, double scaling) {
  if (needs_formula(hidden_states, residual, down_weight, down_bias, up_weight, up_bias)) {
    return composite_train(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling);
  }
  if (needs_graph(hidden_states, residual, down_weight, down_bias, up_weight, up_bias)) {
    auto outputs = BottleneckAdapter::record(hidden_states, residual, down_weight, down_bias, up_weight, up_bias,
                                             activation, scaling);
    return {std::move(outputs[0]), std::move(outputs[1])};
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return train_operator().redispatch(keys & c10::after_autograd_keyset, hidden_states, residual, down_weight, down_bias,
                                     up_weight, up_bias, activation, scaling);
}

Gradients backward_autograd(c10::DispatchKeySet keys, const Tensor& grad_output, const OptTensor& hidden_states,
                            const OptTensor& pre_activation, const OptTensor& down_weight, const OptTensor& up_weight,
                            std::string_view activation, double scaling, bool add_grad_output, OutputMask output_mask) {
  if (needs_formula(grad_output, hidden_states, pre_activation, down_weight, up_weight) ||
      needs_graph(grad_output, hidden_states, pre_activation, down_weight, up_weight)) {
    return composite_backward(grad_output, hidden_states, pre_activation, down_weight, up_weight, activation, scaling,
                              add_grad_output, output_mask);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return backward_operator().redispatch(keys & c10::after_autograd_keyset, grad_output, hidden_states, pre_activation,
                                        down_weight, up_weight, activation, scaling, add_grad_output, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, Autograd, m) {
  m.impl("bottleneck_adapter", TORCH_FN(forward_autograd));
  m.impl("bottleneck_adapter_train", TORCH_FN(train_autograd));
  m.impl("bottleneck_adapter_backward", TORCH_FN(backward_autograd));
}

}  // namespace adapterx::ops
