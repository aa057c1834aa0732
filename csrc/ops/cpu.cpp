// The operators on the CPU: checks, then the torch-free kernels over raw pointers and PyTorch's thread pool.
#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include "../kernels/cpu/bottleneck_adapter.h"
#include "checks.h"
#include "kernel_arguments.h"
#include "registration.h"
#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

// PyTorch's pool through its C interface: at::parallel_for is an OpenMP pragma inside a header, so it would be serial
// without -fopenmp here, and with it could start a second OpenMP runtime that torch.set_num_threads does not reach.
void run_in_torch_pool(void*, int64_t count, ThreadPool::Body body, void* closure) {
  struct Task {
    ThreadPool::Body body;
    void* closure;
  } task{body, closure};
  const auto call = [](int64_t begin, int64_t end, void* context) {
    const auto& [task_body, task_closure] = *static_cast<Task*>(context);
    task_body(task_closure, begin, end);
  };
  TORCH_CHECK(torch_parallel_for(0, count, /*grain_size=*/1, call, &task) == 0,
              "bottleneck_adapter: a thread of the pool failed");
}

ThreadPool torch_pool() {
  // Inside another parallel region PyTorch runs everything on the calling thread.
  const int32_t num_threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return {run_in_torch_pool, nullptr, num_threads};
}

void check_range(const char* function, const AdapterIndices& indices, int64_t num_tokens) {
  for (int64_t i = 0; indices.num_adapters > 0 && i < num_tokens; ++i) {
    TORCH_CHECK_VALUE(indices.values[i] >= -1 && indices.values[i] < indices.num_adapters, function,
                      ": adapter_indices must be -1 (no adapter) or the number of one of the ", indices.num_adapters,
                      " adapters, got ", indices.values[i], " for token ", i);
  }
}

TrainOutputs run_forward(const ForwardArguments& arguments, bool save_pre_activation) {
  const auto activation = check_forward(arguments);
  check_memory(arguments);
  ForwardCall call(arguments, activation, save_pre_activation, IndexOf::token);
  if (!call.empty()) {
    check_range(arguments.name(), call.indices, call.problem.num_tokens);
    cpu::bottleneck_adapter_forward(call.problem, call.tensors, call.indices, torch_pool());
  }
  return {std::move(call.output), std::move(call.pre_activation)};
}

Tensor forward_cpu(const ForwardArguments& arguments) { return std::get<0>(run_forward(arguments, false)); }

TrainOutputs train_cpu(const ForwardArguments& arguments) { return run_forward(arguments, true); }

Gradients backward_cpu(const BackwardArguments& arguments) {
  const auto activation = check_backward(arguments);
  check_memory(arguments);
  BackwardCall call(arguments, activation, IndexOf::token);
  if (!call.empty()) {
    check_range(arguments.name(), call.indices, call.problem.num_tokens);
    cpu::bottleneck_adapter_backward(call.problem, call.tensors, call.indices, torch_pool());
  }
  return std::move(call.gradients);
}

// Refused, not ignored: without an order, what is made here would be wrong where it is taken to a GPU.
Tensor sort_refused(const Tensor& adapter_indices, int64_t num_tokens, int64_t num_adapters) {
  check_sort(adapter_indices, num_tokens, num_adapters);
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "sort_tokens: adapter_indices must be on a CUDA device, got CPU tensors; the operators "
                              "take the indices themselves there");
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, CPU, m) {
  register_operators<forward_cpu, train_cpu, backward_cpu>(m);
  m.impl("sort_tokens", sort_refused);
}

}  // namespace adapterx::ops
