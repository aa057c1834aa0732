// The resident kernel of the tile path (row_tile 32): weights in registers, tiles streamed through shared memory by
// persistent clusters; one adapter or several. Serves what `resident_refusal` accepts.
#pragma once

#include "plan.h"

namespace adapterx::cuda {

// Null where the kernel serves `problem` with clusters of this size, else the reason why not. The device is not looked
// at.
const char* resident_refusal(const Problem& problem, int32_t cluster_size);

// Bytes of shared memory of a block.
int64_t resident_shared_memory(const Problem& problem, int32_t cluster_size);

// Whether the rows of a call can be copied in bulk and overwritten in place: 16-byte aligned, the residual the input
// itself or none, an output wanted.
bool has_bulk_rows(const Problem& problem, const ForwardTensors& tensors);
bool has_bulk_rows(const Problem& problem, const BackwardTensors& tensors);

cudaError_t run_resident(const PathCall<ForwardTensors>& call, cudaStream_t stream);

// grad_input, and the narrow matrices (num_tokens, bottleneck_dim), rows `pitch` elements apart, that the weight
// gradients need; each of these two may be null.
cudaError_t run_resident(const PathCall<BackwardTensors>& call, void* grad_pre_activation, void* activated,
                         int64_t pitch, cudaStream_t stream);

}  // namespace adapterx::cuda
