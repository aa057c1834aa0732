// The operators' C++ signatures, and how the dispatch-key files call each other: through the dispatcher only.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace adapterx::ops {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

// Which gradients the backward operator is asked for; the order of its results.
using OutputMask = std::array<bool, 5>;
enum Gradient : size_t { kHiddenStates, kDownWeight, kDownBias, kUpWeight, kUpBias };

using TrainOutputs = std::tuple<Tensor, Tensor>;                       // output, pre_activation
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // in the order of `Gradient`

using ForwardSignature = Tensor(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                                const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                                std::string_view activation, double scaling, const OptTensor& adapter_indices);
using TrainSignature = TrainOutputs(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                                    const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                                    std::string_view activation, double scaling, const OptTensor& adapter_indices);
using BackwardSignature = Gradients(const Tensor& grad_output, const OptTensor& hidden_states,
                                    const OptTensor& pre_activation, const OptTensor& down_weight,
                                    const OptTensor& up_weight, std::string_view activation, double scaling,
                                    bool add_grad_output, OutputMask output_mask, const OptTensor& adapter_indices,
                                    int64_t num_adapters);

inline const OptTensor kNone;

// The arguments of a forward operator, in the order of its schema.
struct ForwardArguments {
  const Tensor& hidden_states;
  const OptTensor& residual;
  const Tensor& down_weight;
  const OptTensor& down_bias;
  const Tensor& up_weight;
  const OptTensor& up_bias;
  std::string_view activation;
  double scaling;
  const OptTensor& adapter_indices;  // given: grouped, and the weights and biases have a leading dimension

  bool grouped() const { return adapter_indices.has_value(); }
  // The operator as users know it; its `_train` twin goes by the same name.
  static constexpr const char* name() { return "bottleneck_adapter"; }
};

// The arguments of a backward operator.
struct BackwardArguments {
  const Tensor& grad_output;
  const OptTensor& hidden_states;
  const OptTensor& pre_activation;
  const OptTensor& down_weight;
  const OptTensor& up_weight;
  std::string_view activation;
  double scaling;
  bool add_grad_output;
  OutputMask output_mask;
  const OptTensor& adapter_indices;
  int64_t num_adapters;  // 0 where not grouped

  bool grouped() const { return adapter_indices.has_value(); }
  static constexpr const char* name() { return "bottleneck_adapter_backward"; }
};

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline const c10::TypedOperatorHandle<ForwardSignature>& forward_operator() {
  static const auto handle = find_operator<ForwardSignature>("adapterx::bottleneck_adapter");
  return handle;
}

inline const c10::TypedOperatorHandle<TrainSignature>& train_operator() {
  static const auto handle = find_operator<TrainSignature>("adapterx::bottleneck_adapter_train");
  return handle;
}

inline const c10::TypedOperatorHandle<BackwardSignature>& backward_operator() {
  static const auto handle = find_operator<BackwardSignature>("adapterx::bottleneck_adapter_backward");
  return handle;
}

// The operators with their arguments as a struct.
inline Tensor call_forward(const ForwardArguments& a) {
  return forward_operator().call(a.hidden_states, a.residual, a.down_weight, a.down_bias, a.up_weight, a.up_bias,
                                 a.activation, a.scaling, a.adapter_indices);
}

inline TrainOutputs call_train(const ForwardArguments& a) {
  return train_operator().call(a.hidden_states, a.residual, a.down_weight, a.down_bias, a.up_weight, a.up_bias,
                               a.activation, a.scaling, a.adapter_indices);
}

inline Gradients call_backward(const BackwardArguments& a) {
  return backward_operator().call(a.grad_output, a.hidden_states, a.pre_activation, a.down_weight, a.up_weight,
                                  a.activation, a.scaling, a.add_grad_output, a.output_mask, a.adapter_indices,
                                  a.num_adapters);
}

}  // namespace adapterx::ops
