// The door of the CUDA kernels: any framework serves the bottleneck adapter by two calls, without knowing what is
// behind.
//
//     const Plan plan = cuda::plan(problem, tensors, indices, device, pin);
//     if (!plan.refusal.empty()) ...  raise it, behind the name of the function
//     void* workspace = ...           plan.workspace bytes of device memory, 256-byte aligned, free again once the
//                                     stream has passed the call
//     const Status status = cuda::run(plan, problem, tensors, indices, cublas, workspace, stream);
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

}  // namespace adapterx::cuda
