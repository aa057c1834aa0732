// The operators on CUDA: checks, memory from PyTorch's allocator, then the torch-free kernels through their door, on
// the current stream. Nothing here synchronises.
#include <cstdlib>

#include "../kernels/cuda/adapter.h"
#include "checks.h"
#include "cuda_context.h"
#include "kernel_arguments.h"
#include "registration.h"
#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

// `call`: a ForwardCall or a BackwardCall. `like`: a tensor on the device.
template <class Call>
void run_kernels(const char* function, const Call& call, const Tensor& like, const CudaContext& context) {
  if (call.empty()) return;
  const char* pin = std::getenv(cuda::kPinVariable);
  const auto plan =
      cuda::plan(call.problem, call.tensors, call.indices, CudaContext::device(), pin == nullptr ? "" : pin);
  TORCH_CHECK_VALUE(plan.refusal.empty(), function, ": ", plan.refusal);
  // Freed at the end of this function, and reused only behind what the stream has queued.
  const Tensor workspace = plan.workspace > 0 ? CudaContext::empty_bytes(like, plan.workspace) : Tensor();
  const auto cublas = plan.path == cuda::Path::cublas ? CudaContext::cublas() : cuda::CublasLt();
  const auto status = cuda::run(plan, call.problem, call.tensors, call.indices, cublas,
                                workspace.defined() ? workspace.mutable_data_ptr() : nullptr, context.stream);
  TORCH_CHECK(status.words == nullptr, function, ": the cuBLASLt path failed: ", status.words);
  CudaContext::check(status.error);
}

TrainOutputs run_forward(const ForwardArguments& arguments, bool save_pre_activation) {
  const auto activation = check_forward(arguments);
  check_memory(arguments);
  const CudaContext context(arguments.hidden_states);
  ForwardCall call(arguments, activation, save_pre_activation, IndexOf::tokens);
  run_kernels(arguments.name(), call, call.output, context);
  return {std::move(call.output), std::move(call.pre_activation)};
}

Tensor forward_cuda(const ForwardArguments& arguments) { return std::get<0>(run_forward(arguments, false)); }

TrainOutputs train_cuda(const ForwardArguments& arguments) { return run_forward(arguments, true); }

Gradients backward_cuda(const BackwardArguments& arguments) {
  const auto activation = check_backward(arguments);
  check_memory(arguments);
  const CudaContext context(arguments.grad_output);
  BackwardCall call(arguments, activation, IndexOf::tokens);
  run_kernels(arguments.name(), call, arguments.grad_output, context);
  return std::move(call.gradients);
}

Tensor sort_cuda(const Tensor& adapter_indices, int64_t num_tokens, int64_t num_adapters) {
  check_sort(adapter_indices, num_tokens, num_adapters);
  const auto refusal = cuda::sort_refusal(num_tokens, num_adapters);
  TORCH_CHECK_VALUE(refusal.empty(), "sort_tokens: ", refusal);
  const CudaContext context(adapter_indices);
  const int64_t size = sorted_size(num_tokens, num_adapters), offset = order_offset(num_tokens);
  TORCH_INTERNAL_ASSERT(offset + cuda::sorted_bytes(num_tokens, num_adapters) <= size);
  auto sorted = at::zeros({size}, adapter_indices.options().dtype(at::kByte));  // what lies between the tables, too
  write_indices(sorted, adapter_indices, num_tokens);
  if (num_tokens == 0) return sorted;
  const auto values = adapter_indices.contiguous();
  const AdapterIndices indices = {values.const_data_ptr<int64_t>(), num_adapters, nullptr, num_tokens / values.numel()};
  const auto workspace = CudaContext::empty_bytes(adapter_indices, cuda::sort_workspace(num_tokens, num_adapters));
  const auto status = cuda::sort(indices, num_tokens, sorted.mutable_data_ptr<uint8_t>() + offset,
                                 workspace.mutable_data_ptr(), context.stream);
  CudaContext::check(status.error);
  return sorted;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, ADAPTERX_CUDA_KEY, m) {
  register_operators<forward_cuda, train_cuda, backward_cuda>(m);
  m.impl("sort_tokens", sort_cuda);
}

}  // namespace adapterx::ops
