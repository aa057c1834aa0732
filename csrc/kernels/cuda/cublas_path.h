// The cublas path: one adapter as cuBLASLt products, any shape and dtype: what the tile kernels do not serve, and the
// path they must beat. No temporary is larger than (num_tokens, bottleneck_dim).
//
// Products accumulate in fp32 (fp64 for fp64) and split sums are added in that precision in a fixed order: the same
// bits each time.
#pragma once

#include "path.h"

namespace adapterx::cuda {

// Up to six launches.
void lay_out_cublas(const PathCall<ForwardTensors>& call, Arena& arena);
Status run_cublas(const PathCall<ForwardTensors>& call, Arena& arena, cudaStream_t stream);

// Up to nine launches.
void lay_out_cublas(const PathCall<BackwardTensors>& call, Arena& arena);
Status run_cublas(const PathCall<BackwardTensors>& call, Arena& arena, cudaStream_t stream);

}  // namespace adapterx::cuda
