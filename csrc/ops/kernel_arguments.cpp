#include "kernel_arguments.h"

#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

ScalarType kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return ScalarType::float32;
    case at::kDouble: return ScalarType::float64;
    case at::kBFloat16: return ScalarType::bfloat16;
    case at::kHalf: return ScalarType::float16;
    default: TORCH_INTERNAL_ASSERT(false, "dtype that the checks should have refused");
  }
}

int64_t count_tokens(const Tensor& tensor) { return tensor.numel() / tensor.size(-1); }

// A contiguous tensor with the leading dimensions of `tokens` and `columns` columns.
Tensor empty_tokens(const Tensor& tokens, int64_t columns) {
  at::DimVector sizes(tokens.sizes());
  sizes.back() = columns;
  return at::empty(sizes, tokens.options());
}

// The indices, contiguous; undefined in the plain form.
Tensor index_values_of(const OptTensor& adapter_indices, const Tensor& tokens, IndexOf index_of) {
  if (!adapter_indices) return Tensor();
  Tensor indices = unsorted_indices(*adapter_indices, tokens);
  if (index_of == IndexOf::tokens) return indices.contiguous();
  while (indices.dim() < tokens.dim() - 1) indices = indices.unsqueeze(-1);
  return indices.expand(tokens.sizes().slice(0, tokens.dim() - 1)).contiguous();
}

OptTensor contiguous(const OptTensor& tensor) { return tensor ? OptTensor(tensor->contiguous()) : std::nullopt; }

const void* data_or_null(const OptTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

void* mutable_data_or_null(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

AdapterIndices kernel_indices(const OptTensor& adapter_indices, const Tensor& values, int64_t num_adapters,
                              int64_t num_tokens) {
  if (!adapter_indices) return {};
  AdapterIndices indices = {values.const_data_ptr<int64_t>(), num_adapters};
  if (num_tokens > 0) indices.tokens_each = num_tokens / values.numel();
  if (is_sorted(*adapter_indices)) {
    indices.sorted = adapter_indices->const_data_ptr<uint8_t>() + order_offset(num_tokens);
  }
  return indices;
}

// Uninitialised gradients of the right shapes where they are wanted.
Gradients allocate_gradients(const BackwardArguments& a) {
  const auto empty = [&](at::DimVector sizes) {
    if (a.grouped()) sizes.insert(sizes.begin(), a.num_adapters);
    return at::empty(sizes, a.grad_output.options());
  };
  const int64_t hidden_size = a.grad_output.size(-1);
  Gradients gradients;
  auto& [grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias] = gradients;
  if (a.output_mask[kHiddenStates]) grad_hidden_states = empty_tokens(a.grad_output, a.down_weight->size(-1));
  if (a.output_mask[kDownWeight]) grad_down_weight = empty({a.pre_activation->size(-1), a.hidden_states->size(-1)});
  if (a.output_mask[kDownBias]) grad_down_bias = empty({a.pre_activation->size(-1)});
  if (a.output_mask[kUpWeight]) grad_up_weight = empty({hidden_size, a.pre_activation->size(-1)});
  if (a.output_mask[kUpBias]) grad_up_bias = empty({hidden_size});
  return gradients;
}

}  // namespace

ForwardCall::ForwardCall(const ForwardArguments& a, Activation activation, bool save_pre_activation, IndexOf index_of)
    : output(empty_tokens(a.hidden_states, a.up_weight.size(-2))),
      hidden_states(a.hidden_states),
      residual(a.residual ? std::optional<Rows>(*a.residual) : std::nullopt),
      down_weight(a.down_weight.contiguous()),
      up_weight(a.up_weight.contiguous()),
      index_values(index_values_of(a.adapter_indices, a.hidden_states, index_of)),
      down_bias(contiguous(a.down_bias)),
      up_bias(contiguous(a.up_bias)) {
  if (save_pre_activation) pre_activation = empty_tokens(a.hidden_states, a.down_weight.size(-2));
  problem = {kernel_dtype(a.hidden_states.scalar_type()),
             activation,
             a.scaling,
             count_tokens(a.hidden_states),
             a.hidden_states.size(-1),
             a.up_weight.size(-2),
             a.down_weight.size(-2)};
  indices = kernel_indices(a.adapter_indices, index_values, down_weight.size(0), problem.num_tokens);
  tensors.hidden_states = hidden_states.data();
  tensors.hidden_states_stride = hidden_states.stride;
  tensors.residual = residual ? residual->data() : nullptr;
  tensors.residual_stride = residual ? residual->stride : 0;
  tensors.down_weight = down_weight.const_data_ptr();
  tensors.down_bias = data_or_null(down_bias);
  tensors.up_weight = up_weight.const_data_ptr();
  tensors.up_bias = data_or_null(up_bias);
  tensors.output = output.mutable_data_ptr();
  tensors.pre_activation = mutable_data_or_null(pre_activation);
}

BackwardCall::BackwardCall(const BackwardArguments& a, Activation activation, IndexOf index_of)
    : gradients(allocate_gradients(a)),
      grad_output(a.grad_output),
      hidden_states(a.output_mask[kDownWeight] ? std::optional<Rows>(*a.hidden_states) : std::nullopt),
      pre_activation(contiguous(a.pre_activation)),
      down_weight(contiguous(a.down_weight)),
      up_weight(contiguous(a.up_weight)),
      index_values(index_values_of(a.adapter_indices, a.grad_output, index_of)) {
  const int64_t input_size = a.output_mask[kHiddenStates] ? a.down_weight->size(-1)
                             : a.output_mask[kDownWeight] ? a.hidden_states->size(-1)
                                                          : 0;
  problem = {kernel_dtype(a.grad_output.scalar_type()),
             activation,
             a.scaling,
             count_tokens(a.grad_output),
             input_size,
             a.grad_output.size(-1),
             pre_activation ? pre_activation->size(-1) : 0};
  indices = kernel_indices(a.adapter_indices, index_values, a.num_adapters, problem.num_tokens);
  auto& [grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias] = gradients;
  if (empty()) {  // the sums over tokens are zero
    for (const auto* gradient : {&grad_down_weight, &grad_down_bias, &grad_up_weight, &grad_up_bias}) {
      if (gradient->defined()) gradient->zero_();
    }
  }
  tensors.grad_output = grad_output.data();
  tensors.grad_output_stride = grad_output.stride;
  tensors.hidden_states = hidden_states ? hidden_states->data() : nullptr;
  tensors.hidden_states_stride = hidden_states ? hidden_states->stride : 0;
  tensors.pre_activation = data_or_null(pre_activation);
  tensors.down_weight = data_or_null(down_weight);
  tensors.up_weight = data_or_null(up_weight);
  tensors.add_grad_output = a.add_grad_output;
  tensors.grad_input = mutable_data_or_null(grad_hidden_states);
  tensors.grad_down_weight = mutable_data_or_null(grad_down_weight);
  tensors.grad_down_bias = mutable_data_or_null(grad_down_bias);
  tensors.grad_up_weight = mutable_data_or_null(grad_up_weight);
  tensors.grad_up_bias = mutable_data_or_null(grad_up_bias);
}

}  // namespace adapterx::ops
