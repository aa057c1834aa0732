// The bottleneck adapter on tensor cores, forward and backward: the interface of the torch-free CUDA kernels.
//
// All pointers are device pointers. Nothing here allocates, synchronises or asks the driver anything beyond the launch,
// so every call may be captured in a CUDA graph; the caller sets the device and passes its stream. Results are the same
// bits each time for the same problem and plan. These kernels need input_size == hidden_size; a residual that is
// hidden_states itself is read from device memory once.
#pragma once

#include "../problem.h"
#include "grouping.h"
#include "runtime.h"

namespace adapterx::cuda {

struct Device {
  int32_t compute_capability = 0;       // 10 * major + minor
  int64_t shared_memory_per_block = 0;  // bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin
};

// How the tile kernels serve a problem. cluster_size 1 is the kernel of one block (F1); more is a thread-block cluster
// with distributed shared memory (F2, from compute capability 9.0).
struct TilePlan {
  int32_t row_tile = 0;  // tokens of a tile: 16 or 64; 0: no tile kernel serves this problem
  int32_t cluster_size = 1;
};

inline constexpr int64_t kMaxBottleneckDim = 128;
inline constexpr int32_t kMaxClusterSize = 8;  // the portable limit

// Null where the kernels of this header serve `problem` on `device` with `plan`, else the reason why not.
const char* unsupported_reason(const Problem& problem, const TilePlan& plan, const Device& device);

enum class Direction { forward, backward };

// The plan for `problem` on `device` by dispatch_table.h; row_tile 0: no tile kernel, or cuBLASLt is faster.
TilePlan plan_tile(const Problem& problem, const Device& device, Direction direction);

// The same for the grouped form, which cuBLASLt cannot serve; row_tile 0: the kernels of segments.h.
TilePlan plan_grouped_tile(const Problem& problem, const Device& device, Direction direction, int64_t num_groups);

// Where the table comes from: "roofline" or "measured on <device>".
const char* dispatch_source();

// Bytes of shared memory that one block of the tile kernel takes, forward and backward alike.
int64_t tile_shared_memory(const Problem& problem, const TilePlan& plan);

// One launch. cudaErrorNotSupported where no kernel exists for the plan.
//
// With a grouping (made with the plan's row_tile) each token picks one of num_groups adapters: weights and biases have
// a leading dimension num_groups, contiguous, here and among the gradients. A token without adapter gets its residual,
// or zero, and a zero pre-activation.
cudaError_t bottleneck_adapter_forward(const Problem& problem, const ForwardTensors& tensors, const TilePlan& plan,
                                       cudaStream_t stream, const Grouping* grouping = nullptr);

// Bytes of device memory that the backward needs as `workspace`, 256-byte aligned; depends on which gradients are
// wanted.
int64_t bottleneck_adapter_backward_workspace(const Problem& problem, const BackwardTensors& tensors,
                                              const Grouping* grouping = nullptr);

// At most three launches: grad_input and the gradient of the pre-activation; weight gradients; their reduction.
cudaError_t bottleneck_adapter_backward(const Problem& problem, const BackwardTensors& tensors, const TilePlan& plan,
                                        void* workspace, cudaStream_t stream, const Grouping* grouping = nullptr);

}  // namespace adapterx::cuda
