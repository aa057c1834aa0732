// The segment path: several adapters, kernels over sorted tokens that serve every dtype and all sizes, where the tile
// kernels do not (fp32 and fp64, more than 128 bottleneck columns, input_size other than hidden_size, tiles too large
// for shared memory). The results of a token do not depend on the other tokens.
#pragma once

#include "path.h"

namespace adapterx::cuda {

inline constexpr int32_t kSegmentRowTile = 64;  // the row_tile to sort tokens with; smaller ones are served too

// Two launches: down product, bias and activation; up product, bias, scaling and residual.
void lay_out_segments(const PathCall<ForwardTensors>& call, Arena& arena);
Status run_segments(const PathCall<ForwardTensors>& call, Arena& arena, cudaStream_t stream);

// At most four launches: gradient of the pre-activation; grad_input; weight and bias gradients; their reduction.
void lay_out_segments(const PathCall<BackwardTensors>& call, Arena& arena);
Status run_segments(const PathCall<BackwardTensors>& call, Arena& arena, cudaStream_t stream);

}  // namespace adapterx::cuda
