// The tile path: the bottleneck adapter on tensor cores, one adapter or several. Serves what plan.h's tile_refusal
// accepts; cudaErrorNotSupported otherwise. Needs input_size == hidden_size; a residual that is hidden_states itself is
// read from device memory once. The tokens must be sorted with the tile's row_tile.
#pragma once

#include "path.h"

namespace adapterx::cuda {

// One launch; no workspace.
void lay_out_tile(const PathCall<ForwardTensors>& call, Arena& arena);
Status run_tile(const PathCall<ForwardTensors>& call, Arena& arena, cudaStream_t stream);

// At most three launches: grad_input and the gradient of the pre-activation; weight gradients; their reduction.
void lay_out_tile(const PathCall<BackwardTensors>& call, Arena& arena);
Status run_tile(const PathCall<BackwardTensors>& call, Arena& arena, cudaStream_t stream);

}  // namespace adapterx::cuda
