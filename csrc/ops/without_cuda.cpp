// CUDA tensors in a library built without the CUDA kernels, as the wheels are: the formula of composite.h computes, on
// the GPU, and says so once.
#ifndef ADAPTERX_WITH_CUDA

#include "checks.h"
#include "composite.h"
#include "registration.h"
#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

void say_so() {
  TORCH_WARN_ONCE(
      "adapterx: this library was built without CUDA kernels, so PyTorch's own operators compute the adapters of CUDA "
      "tensors: as exactly, slower and with more memory; with a CUDA toolkit, `ADAPTERX_CUDA=1 pip install "
      "--no-build-isolation .` in the source folder builds the kernels, or says what it is missing");
}

// The formula gives a token whose index is no adapter's none; the kernels stop the device there.
void check_range(const OptTensor& adapter_indices, const Tensor& tokens, int64_t num_adapters) {
  if (!adapter_indices) return;
  const auto indices = unsorted_indices(*adapter_indices, tokens);
  at::_assert_async(indices.ge(-1).logical_and(indices.lt(num_adapters)).all(),
                    "adapter_indices must be -1 (no adapter) or the number of an adapter");
}

TrainOutputs train_formula(const ForwardArguments& arguments) {
  say_so();
  check_forward(arguments);
  check_memory(arguments);
  check_range(arguments.adapter_indices, arguments.hidden_states, arguments.down_weight.size(0));
  auto [output, pre_activation] = composite_train(arguments);
  return {output.contiguous(), pre_activation.contiguous()};
}

Tensor forward_formula(const ForwardArguments& arguments) { return std::get<0>(train_formula(arguments)); }

Gradients backward_formula(const BackwardArguments& arguments) {
  say_so();
  check_backward(arguments);
  check_memory(arguments);
  check_range(arguments.adapter_indices, arguments.grad_output, arguments.num_adapters);
  return composite_backward(arguments);
}

// The indices where the kernels would find them. There is no order: the formula reads none.
Tensor sort_formula(const Tensor& adapter_indices, int64_t num_tokens, int64_t num_adapters) {
  check_sort(adapter_indices, num_tokens, num_adapters);
  auto sorted = at::zeros({sorted_size(num_tokens, num_adapters)}, adapter_indices.options().dtype(at::kByte));
  write_indices(sorted, adapter_indices, num_tokens);
  return sorted;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, CUDA, m) {
  register_operators<forward_formula, train_formula, backward_formula>(m);
  m.impl("sort_tokens", sort_formula);
}

}  // namespace adapterx::ops

#endif
