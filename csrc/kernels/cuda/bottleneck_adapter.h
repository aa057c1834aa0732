// The bottleneck adapter on tensor cores, forward and backward: the interface of the torch-free CUDA kernels.
//
// All pointers are device pointers. Nothing here allocates, synchronises or asks the driver anything beyond the launch,
// so every call may be captured in a CUDA graph; the caller sets the device and passes its stream. Results are the same
// bits each time for the same problem and plan.
#pragma once

#include "../types.h"
#include "grouping.h"
#include "runtime.h"

namespace adapterx::cuda {

// Sizes in elements. Matrices are row-major; weights as in nn.Linear: down_weight (bottleneck_dim, input_size),
// up_weight (hidden_size, bottleneck_dim). Rows of token matrices may be strided, their columns may not. Biases have
// the dtype of the other tensors.
struct Problem {
  ScalarType dtype = ScalarType::bfloat16;
  Activation activation = Activation::relu;
  double scaling = 1.0;
  int64_t num_tokens = 0;
  int64_t input_size = 0;   // columns of hidden_states; the kernels of this header need input_size == hidden_size
  int64_t hidden_size = 0;  // columns of residual and output
  int64_t bottleneck_dim = 0;
};

// output = residual + scaling * (activation(hidden_states @ down_weight^T + down_bias) @ up_weight^T + up_bias)
struct ForwardTensors {
  const void* hidden_states = nullptr;
  int64_t hidden_states_stride = 0;  // elements between two rows
  const void* residual = nullptr;    // null: the bare branch; hidden_states itself: read from device memory once
  int64_t residual_stride = 0;
  const void* down_weight = nullptr;
  const void* down_bias = nullptr;  // null: no bias
  const void* up_weight = nullptr;
  const void* up_bias = nullptr;   // null: no bias
  void* output = nullptr;          // contiguous (num_tokens, hidden_size); may not overlap an input
  void* pre_activation = nullptr;  // contiguous (num_tokens, bottleneck_dim); null: not wanted
};

// A gradient pointer that is null is not computed and costs nothing.
struct BackwardTensors {
  const void* grad_output = nullptr;
  int64_t grad_output_stride = 0;
  const void* hidden_states = nullptr;  // may be null when grad_down_weight is
  int64_t hidden_states_stride = 0;
  const void* pre_activation = nullptr;  // contiguous, as the forward stored it
  const void* down_weight = nullptr;
  const void* up_weight = nullptr;
  bool add_grad_output = false;  // grad_input += grad_output: the residual is hidden_states itself
  void* grad_input = nullptr;    // contiguous (num_tokens, input_size)
  void* grad_down_weight = nullptr;
  void* grad_down_bias = nullptr;
  void* grad_up_weight = nullptr;
  void* grad_up_bias = nullptr;
};

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

// The plan for `problem` on `device`; row_tile is 0 where there is none. From the roofline, not yet from measurements.
TilePlan plan_tile(const Problem& problem, const Device& device);

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
