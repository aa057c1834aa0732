// The operators on CUDA: checks, the choice of a path, temporaries from PyTorch's allocator, then the torch-free
// kernels on the current stream. Nothing here synchronises.
#include <cstdlib>

#include "../kernels/cuda/blas.h"
#include "../kernels/cuda/route.h"
#include "../kernels/cuda/segments.h"
#include "checks.h"
#include "cuda_context.h"
#include "kernel_arguments.h"
#include "registration.h"

namespace adapterx::ops {
namespace {

using cuda::Direction;
using cuda::Grouping;
using cuda::Path;
using cuda::Route;

constexpr const char* kPin = "ADAPTERX_CUDA_PATH";

// Device memory that lives as long as this object; freed memory is reused only behind what the stream has queued.
struct DeviceMemory {
  Tensor owner;

  DeviceMemory(const Tensor& like, int64_t bytes) {
    if (bytes > 0) owner = CudaContext::empty_bytes(like, bytes);
  }
  void* data() const { return owner.defined() ? owner.mutable_data_ptr() : nullptr; }
};

Route chosen_route(const char* function, const Problem& problem, Direction direction, const Groups& groups) {
  const char* pin = std::getenv(kPin);
  if (problem.bottleneck_dim == 0) pin = nullptr;  // the gradient of up_bias alone: a sum, on which no path is pinned
  const Route route =
      cuda::choose_route(problem, CudaContext::device(), direction, groups.num_groups, pin == nullptr ? "" : pin);
  TORCH_CHECK_VALUE(route.refusal == nullptr, function, ": ", kPin, " must name a path that serves this call, got '",
                    pin, "': ", route.refusal);
  return route;
}

// The tokens sorted by adapter, on the device.
struct SortedTokens {
  DeviceMemory workspace;
  Grouping grouping;

  SortedTokens(const char* function, const Tensor& like, const Problem& problem, const Groups& groups,
               const Route& route, const CudaContext& context)
      : workspace(like, checked_bytes(function, problem, groups, row_tile(route))) {
    context.check(cuda::group_tokens(groups.indices, problem.num_tokens, groups.num_groups, row_tile(route),
                                     workspace.data(), context.stream));
    grouping = cuda::grouping_in(workspace.data(), problem.num_tokens, groups.num_groups, row_tile(route));
  }

  static int64_t checked_bytes(const char* function, const Problem& problem, const Groups& groups, int32_t row_tile) {
    TORCH_CHECK_VALUE(groups.num_groups <= cuda::kMaxGroups, function, ": down_weight must be for at most ",
                      cuda::kMaxGroups, " adapters on CUDA, got ", groups.num_groups);
    TORCH_CHECK_VALUE(problem.num_tokens < int64_t{1} << 31, function,
                      ": hidden_states must have fewer than 2^31 tokens on CUDA, got ", problem.num_tokens);
    return cuda::grouping_workspace(problem.num_tokens, groups.num_groups, row_tile);
  }

  static int32_t row_tile(const Route& route) {
    return route.path == Path::tile ? route.plan.row_tile : cuda::kSegmentRowTile;
  }
};

// Raises what the cuBLASLt path says in words.
void check_blas(const char* function, const char* error) {
  TORCH_CHECK(error == nullptr, function, ": the cuBLASLt path failed: ", error);
}

cuda::Blas make_blas(const DeviceMemory& workspace) {
  return {CudaContext::blas_handle(), CudaContext::allow_tf32(), workspace.data(), cuda::kBlasWorkspace};
}

void launch_forward(const char* function, const ForwardCall& call, const CudaContext& context) {
  const Route route = chosen_route(function, call.problem, Direction::forward, call.groups);
  if (route.path == Path::blas) {
    const DeviceMemory own(call.output, cuda::blas_forward_workspace(call.problem, call.tensors));
    const DeviceMemory scratch(call.output, cuda::kBlasWorkspace);
    return check_blas(function,
                      cuda::blas_forward(call.problem, call.tensors, make_blas(scratch), own.data(), context.stream));
  }
  std::optional<SortedTokens> sorted;
  if (call.groups.num_groups > 0) sorted.emplace(function, call.output, call.problem, call.groups, route, context);
  const Grouping* grouping = sorted ? &sorted->grouping : nullptr;
  if (route.path == Path::tile) {
    return context.check(
        cuda::bottleneck_adapter_forward(call.problem, call.tensors, route.plan, context.stream, grouping));
  }
  const DeviceMemory own(call.output, cuda::segment_forward_workspace(call.problem));
  context.check(cuda::segment_forward(call.problem, call.tensors, own.data(), context.stream, *grouping));
}

void launch_backward(const char* function, const BackwardCall& call, const Tensor& like, const CudaContext& context) {
  Problem problem = call.problem;
  if (problem.input_size == 0) problem.input_size = problem.hidden_size;  // no wanted gradient depends on it
  const Route route = chosen_route(function, problem, Direction::backward, call.groups);
  if (route.path == Path::blas) {
    const DeviceMemory own(like, cuda::blas_backward_workspace(problem, call.tensors));
    const DeviceMemory scratch(like, cuda::kBlasWorkspace);
    return check_blas(function,
                      cuda::blas_backward(problem, call.tensors, make_blas(scratch), own.data(), context.stream));
  }
  std::optional<SortedTokens> sorted;
  if (call.groups.num_groups > 0) sorted.emplace(function, like, problem, call.groups, route, context);
  const Grouping* grouping = sorted ? &sorted->grouping : nullptr;
  if (route.path == Path::tile) {
    const DeviceMemory own(like, cuda::bottleneck_adapter_backward_workspace(problem, call.tensors, grouping));
    return context.check(
        cuda::bottleneck_adapter_backward(problem, call.tensors, route.plan, own.data(), context.stream, grouping));
  }
  const DeviceMemory own(like, cuda::segment_backward_workspace(problem, call.tensors, *grouping));
  context.check(cuda::segment_backward(problem, call.tensors, own.data(), context.stream, *grouping));
}

TrainOutputs run_forward(const ForwardArguments& arguments, bool save_pre_activation) {
  const auto activation = check_forward(arguments);
  const CudaContext context(arguments.hidden_states);
  ForwardCall call(arguments, activation, save_pre_activation);
  if (!call.empty()) launch_forward(arguments.name(), call, context);
  return {std::move(call.output), std::move(call.pre_activation)};
}

Tensor forward_cuda(const ForwardArguments& arguments) { return std::get<0>(run_forward(arguments, false)); }

TrainOutputs train_cuda(const ForwardArguments& arguments) { return run_forward(arguments, true); }

Gradients backward_cuda(const BackwardArguments& arguments) {
  const auto activation = check_backward(arguments);
  const CudaContext context(arguments.grad_output);
  BackwardCall call(arguments, activation);
  if (!call.empty()) launch_backward(arguments.name(), call, arguments.grad_output, context);
  return std::move(call.gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, ADAPTERX_CUDA_KEY, m) { register_operators<forward_cuda, train_cuda, backward_cuda>(m); }

}  // namespace adapterx::ops
