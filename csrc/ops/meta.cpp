// Fake kernels: shapes, dtypes and the argument checks, no data. Used by torch.compile, torch.export and the meta
// device.
#include <torch/library.h>

#include "checks.h"
#include "registration.h"
#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

// A contiguous tensor with the leading dimensions of `tokens` and `columns` columns, as the real kernels return it.
Tensor empty_tokens(const Tensor& tokens, const c10::SymInt& columns) {
  auto sizes = tokens.sym_sizes().vec();
  sizes.back() = columns;
  return at::empty_symint(sizes, tokens.options());
}

Tensor forward_meta(const ForwardArguments& a) {
  check_forward(a);
  return empty_tokens(a.hidden_states, a.up_weight.sym_size(-2));
}

TrainOutputs train_meta(const ForwardArguments& a) {
  auto output = forward_meta(a);
  return {std::move(output), empty_tokens(a.hidden_states, a.down_weight.sym_size(-2))};
}

Gradients backward_meta(const BackwardArguments& a) {
  check_backward(a);
  const auto empty = [&](std::vector<c10::SymInt> sizes) {
    if (a.grouped()) sizes.insert(sizes.begin(), a.num_adapters);
    return at::empty_symint(sizes, a.grad_output.options());
  };
  const auto hidden_size = a.grad_output.sym_size(-1);
  Gradients gradients;
  auto& [grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias] = gradients;
  if (a.output_mask[kHiddenStates]) grad_hidden_states = empty_tokens(a.grad_output, a.down_weight->sym_size(-1));
  if (a.output_mask[kDownWeight]) {
    grad_down_weight = empty({a.pre_activation->sym_size(-1), a.hidden_states->sym_size(-1)});
  }
  if (a.output_mask[kDownBias]) grad_down_bias = empty({a.pre_activation->sym_size(-1)});
  if (a.output_mask[kUpWeight]) grad_up_weight = empty({hidden_size, a.pre_activation->sym_size(-1)});
  if (a.output_mask[kUpBias]) grad_up_bias = empty({hidden_size});
  return gradients;
}

Tensor sort_meta(const Tensor& adapter_indices, c10::SymInt num_tokens, int64_t num_adapters) {
  check_sort(adapter_indices, num_tokens, num_adapters);
  const auto size = sorted_size(num_tokens, c10::SymInt(num_adapters));
  return at::empty_symint({size}, adapter_indices.options().dtype(at::kByte));
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, Meta, m) {
  register_operators<forward_meta, train_meta, backward_meta>(m);
  m.impl("sort_tokens", sort_meta);
}

}  // namespace adapterx::ops
