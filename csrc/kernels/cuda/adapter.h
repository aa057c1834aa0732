// The door of the CUDA kernels: any framework serves the bottleneck adapter by two calls, without knowing what is
// behind.
//
//     const Plan plan = cuda::plan(problem, tensors, indices, device, pin);
//     if (!plan.refusal.empty()) ...  raise it, behind the name of the function
//     void* workspace = ...           plan.workspace bytes of device memory, 256-byte aligned, free again once the
//                                     stream has passed the call
//     const Status status = cuda::run(plan, problem, tensors, indices, cublas, workspace, stream);
//
// Calls with the same indices, as those of the layers of one pass, may share one sort of the tokens (`sort`, below).
//
// Behind it: the choice of a path, the sort of the tokens, the pieces of the workspace, and the limits. Both directions
// go by the same names; the tensors tell them apart. Arguments are those of problem.h, with device pointers; which of
// them are null decides about workspace and work. Nothing allocates or synchronises, so a call may be captured in a
// CUDA graph. The caller makes the device current.
#pragma once

#include "plan.h"

namespace adapterx::cuda {

// `pin`: empty, or what kPinVariable holds. It is not heard where the gradient of up_bias alone is wanted
// (bottleneck_dim 0), which is a sum and no path.
Plan plan(const Problem& problem, const ForwardTensors& tensors, const AdapterIndices& indices, const Device& device,
          std::string_view pin);
Plan plan(const Problem& problem, const BackwardTensors& tensors, const AdapterIndices& indices, const Device& device,
          std::string_view pin);

// With the arguments of the plan. `cublas`: read on Path::cublas only.
Status run(const Plan& plan, const Problem& problem, const ForwardTensors& tensors, const AdapterIndices& indices,
           const CublasLt& cublas, void* workspace, cudaStream_t stream);
Status run(const Plan& plan, const Problem& problem, const BackwardTensors& tensors, const AdapterIndices& indices,
           const CublasLt& cublas, void* workspace, cudaStream_t stream);

// ---- one sort for many calls ----

// Why tokens cannot be sorted by adapter: "<argument> must <rule>, got <value>"; empty where they can.
std::string sort_refusal(int64_t num_tokens, int64_t num_adapters);

// Bytes of what a sort leaves, and of what it needs meanwhile; each 256-byte aligned.
int64_t sorted_bytes(int64_t num_tokens, int64_t num_adapters);
int64_t sort_workspace(int64_t num_tokens, int64_t num_adapters);

// Sorts the tokens into `sorted`, which calls of either direction with these indices then take as AdapterIndices::sorted.
Status sort(const AdapterIndices& indices, int64_t num_tokens, void* sorted, void* workspace, cudaStream_t stream);

}  // namespace adapterx::cuda
