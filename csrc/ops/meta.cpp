// Fake kernels: shapes, dtypes and the argument checks, no data. Used by torch.compile, torch.export and the meta
// device.
#include <torch/library.h>

#include "checks.h"

namespace adapterx::ops {
namespace {

// A contiguous tensor with the leading dimensions of `tokens` and `columns` columns, as the real kernels return it.
Tensor empty_tokens(const Tensor& tokens, const c10::SymInt& columns) {
  auto sizes = tokens.sym_sizes().vec();
  sizes.back() = columns;
  return at::empty_symint(sizes, tokens.options());
}

Tensor forward_meta(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                    const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                    std::string_view activation, double scaling) {
  check_forward(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling);
  return empty_tokens(hidden_states, up_weight.sym_size(0));
}

TrainOutputs train_meta(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                        const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                        std::string_view activation, double scaling) {
  check_forward(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling);
  return {empty_tokens(hidden_states, up_weight.sym_size(0)), empty_tokens(hidden_states, down_weight.sym_size(0))};
}

Gradients backward_meta(const Tensor& grad_output, const OptTensor& hidden_states, const OptTensor& pre_activation,
                        const OptTensor& down_weight, const OptTensor& up_weight, std::string_view activation,
                        double scaling, bool add_grad_output, OutputMask output_mask) {
  check_backward(grad_output, hidden_states, pre_activation, down_weight, up_weight, activation, scaling,
                 add_grad_output, output_mask);
  const auto options = grad_output.options();
  const auto hidden_size = grad_output.sym_size(-1);
  Gradients gradients;
  if (output_mask[kHiddenStates]) {
    std::get<kHiddenStates>(gradients) = empty_tokens(grad_output, down_weight->sym_size(1));
  }
  if (output_mask[kDownWeight]) {
    std::get<kDownWeight>(gradients) =
        at::empty_symint({pre_activation->sym_size(-1), hidden_states->sym_size(-1)}, options);
  }
  if (output_mask[kDownBias]) {
    std::get<kDownBias>(gradients) = at::empty_symint({pre_activation->sym_size(-1)}, options);
  }
  if (output_mask[kUpWeight]) {
    std::get<kUpWeight>(gradients) = at::empty_symint({hidden_size, pre_activation->sym_size(-1)}, options);
  }
  if (output_mask[kUpBias]) std::get<kUpBias>(gradients) = at::empty_symint({hidden_size}, options);
  return gradients;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, Meta, m) {
  m.impl("bottleneck_adapter", forward_meta);
  m.impl("bottleneck_adapter_train", train_meta);
  m.impl("bottleneck_adapter_backward", backward_meta);
}

}  // namespace adapterx::ops
