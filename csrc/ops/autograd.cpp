// Gradients. Without grad mode the call goes straight to the kernel of the device; with it, one autograd node runs the
// fused forward and backward kernels and keeps (num_tokens, bottleneck_dim) numbers and references, nothing larger.
// Where our kernels have no rule (functorch transforms, forward-mode tangents, second derivatives) the formula of
// composite.h takes over.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include "checks.h"
#include "composite.h"
#include "registration.h"

namespace adapterx::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
bool requires_grad(const OptTensor& tensor) { return tensor.has_value() && requires_grad(*tensor); }

bool has_tangent(const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(/*level=*/0).defined(); }
bool has_tangent(const OptTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

// Whether `test` holds for one of the tensors that gradients flow to.
template <class Test>
bool any(const ForwardArguments& a, const Test& test) {
  return test(a.hidden_states) || test(a.residual) || test(a.down_weight) || test(a.down_bias) || test(a.up_weight) ||
         test(a.up_bias);
}
template <class Test>
bool any(const BackwardArguments& a, const Test& test) {
  return test(a.grad_output) || test(a.hidden_states) || test(a.pre_activation) || test(a.down_weight) ||
         test(a.up_weight);
}

// A functorch transform (grad, vjp, jvp, ...) differentiates the level above ours and knows no C++ autograd node. The
// dispatch key says so only while a transform runs; functorch's thread-local accessor is also set while torch.compile
// and torch.export trace, and asking it would decompose the operator in their graphs.
bool in_functorch_transform() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

template <class Arguments>
bool needs_formula(const Arguments& arguments) {
  return in_functorch_transform() || any(arguments, [](const auto& tensor) { return has_tangent(tensor); });
}

template <class Arguments>
bool needs_graph(const Arguments& arguments) {
  return at::GradMode::is_enabled() && any(arguments, [](const auto& tensor) { return requires_grad(tensor); });
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
                               const OptTensor& adapter_indices, bool residual_is_hidden_states) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto actual_residual = residual_is_hidden_states ? OptTensor(hidden_states) : residual;
    auto [output, pre_activation] = call_train({hidden_states, actual_residual, down_weight, down_bias, up_weight,
                                                up_bias, activation, scaling, adapter_indices});
    const bool through_activation =
        hidden_states.requires_grad() || down_weight.requires_grad() || requires_grad(down_bias);
    const auto keep_if = [](bool needed, const Tensor& tensor) { return needed ? tensor : Tensor(); };
    variable_list saved{keep_if(down_weight.requires_grad(), hidden_states),
                        keep_if(through_activation || up_weight.requires_grad(), pre_activation),
                        keep_if(hidden_states.requires_grad(), down_weight), keep_if(through_activation, up_weight)};
    if (adapter_indices) {
      saved.push_back(*adapter_indices);
      ctx->saved_data["num_adapters"] = down_weight.sym_size(0).guard_int(__FILE__, __LINE__);
    }
    ctx->save_for_backward(std::move(saved));
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
    const auto saved = ctx->get_saved_variables();
    const bool grouped = saved.size() > 4;

    // The node has one edge for each tensor argument that was given; the last, of the indices, is not asked about.
    size_t edge = 0;
    const auto wanted = [&](bool given) { return given && ctx->needs_input_grad(edge++); };
    OutputMask mask{};
    mask[kHiddenStates] = wanted(true);
    const bool want_residual = wanted(state.has_residual);
    mask[kDownWeight] = wanted(true);
    mask[kDownBias] = wanted(state.has_down_bias);
    mask[kUpWeight] = wanted(true);
    mask[kUpBias] = wanted(state.has_up_bias);

    const auto given = [](const Tensor& tensor) { return tensor.defined() ? OptTensor(tensor) : std::nullopt; };
    const auto hidden_states = given(saved[0]), pre_activation = given(saved[1]);
    const auto down_weight = given(saved[2]), up_weight = given(saved[3]);
    const OptTensor adapter_indices = grouped ? OptTensor(saved[4]) : std::nullopt;
    const BackwardArguments arguments{grad_output,
                                      hidden_states,
                                      pre_activation,
                                      down_weight,
                                      up_weight,
                                      activation_name(state.activation),
                                      ctx->saved_data["scaling"].toDouble(),
                                      state.residual_is_hidden_states,
                                      mask,
                                      adapter_indices,
                                      grouped ? ctx->saved_data["num_adapters"].toInt() : 0};
    Gradients gradients;
    if (at::GradMode::is_enabled() || grad_pre_activation.defined()) {  // create_graph=True, or a second derivative
      gradients = composite_backward_of_both(arguments, grad_pre_activation);
    } else if (grad_output.defined() && mask != OutputMask{}) {
      gradients = call_backward(arguments);
    }
    return {std::get<kHiddenStates>(gradients),
            want_residual ? grad_output : Tensor(),
            std::get<kDownWeight>(gradients),
            std::get<kDownBias>(gradients),
            std::get<kUpWeight>(gradients),
            std::get<kUpBias>(gradients),
            Tensor(),   // activation
            Tensor(),   // scaling
            Tensor(),   // adapter_indices
            Tensor()};  // residual_is_hidden_states
  }

  // `apply`, with the residual left out where it is hidden_states itself: one edge then carries both gradients.
  static variable_list record(const ForwardArguments& a) {
    check_given(a);
    const bool fused = a.residual.has_value() && a.residual->is_same(a.hidden_states);
    return apply(a.hidden_states, fused ? kNone : a.residual, a.down_weight, a.down_bias, a.up_weight, a.up_bias,
                 a.activation, a.scaling, a.adapter_indices, fused);
  }
};

Tensor forward_autograd(c10::DispatchKeySet keys, const Tensor& hidden_states, const OptTensor& residual,
                        const Tensor& down_weight, const OptTensor& down_bias, const Tensor& up_weight,
                        const OptTensor& up_bias, std::string_view activation, double scaling,
                        const OptTensor& adapter_indices) {
  const ForwardArguments arguments{hidden_states, residual,   down_weight, down_bias,      up_weight,
                                   up_bias,       activation, scaling,     adapter_indices};
  if (needs_formula(arguments)) return composite_forward(arguments);
  if (needs_graph(arguments)) return BottleneckAdapter::record(arguments)[0];
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return forward_operator().redispatch(keys & c10::after_autograd_keyset, hidden_states, residual, down_weight,
                                       down_bias, up_weight, up_bias, activation, scaling, adapter_indices);
}

// The operators that autograd itself calls: rarely called by users, so a call through the dispatcher is good enough.
TrainOutputs train_autograd(const ForwardArguments& arguments) {
  if (needs_formula(arguments)) return composite_train(arguments);
  if (needs_graph(arguments)) {
    auto outputs = BottleneckAdapter::record(arguments);
    return {std::move(outputs[0]), std::move(outputs[1])};
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_train(arguments);
}

Gradients backward_autograd(const BackwardArguments& arguments) {
  if (needs_formula(arguments) || needs_graph(arguments)) return composite_backward(arguments);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_backward(arguments);
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, Autograd, m) {
  m.impl("bottleneck_adapter", TORCH_FN(forward_autograd));
  m.impl("bottleneck_adapter_train", TORCH_FN((Flat<train_autograd, TrainSignature>::call)));
  m.impl("bottleneck_adapter_backward", TORCH_FN((Flat<backward_autograd, BackwardSignature>::call)));
}

}  // namespace adapterx::ops
