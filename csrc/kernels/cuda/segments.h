// The general grouped path: kernels over sorted tokens that serve every dtype and all sizes, where the tile kernels do
// not (fp32 and fp64, more than 128 bottleneck columns, input_size other than hidden_size, tiles too large for shared
// memory). Device pointers; nothing allocates or synchronises, so every call may be captured in a CUDA graph. Results
// are the same bits each time, and those of a token do not depend on the other tokens.
#pragma once

#include "../problem.h"
#include "grouping.h"
#include "runtime.h"

namespace adapterx::cuda {

inline constexpr int32_t kSegmentRowTile = 64;  // the row_tile to sort tokens with; smaller ones are served too

// Bytes of device memory that the forward needs as `workspace`, 256-byte aligned.
int64_t segment_forward_workspace(const Problem& problem);

// Two launches: down product, bias and activation; up product, bias, scaling and residual.
cudaError_t segment_forward(const Problem& problem, const ForwardTensors& tensors, void* workspace, cudaStream_t stream,
                            const Grouping& grouping);

// As above for the backward; depends on which gradients are wanted.
int64_t segment_backward_workspace(const Problem& problem, const BackwardTensors& tensors, const Grouping& grouping);

// At most four launches: gradient of the pre-activation; grad_input; weight and bias gradients; their reduction.
cudaError_t segment_backward(const Problem& problem, const BackwardTensors& tensors, void* workspace,
                             cudaStream_t stream, const Grouping& grouping);

}  // namespace adapterx::cuda
