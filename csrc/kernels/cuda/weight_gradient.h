// The weight gradients and biases of the tile path's backward, from two matrices that its first kernel leaves.
#pragma once

#include "partial_sums.h"
#include "path.h"

namespace adapterx::cuda {

// Which of the two weight products are wanted, and the workspace.
struct WeightGradientWork {
  bool up = false, down = false, grad_pre_activation = false;
  void* activated = nullptr;  // (num_tokens, bottleneck_dim), rows `pitch` elements apart, as the next
  void* gradient = nullptr;   // of the pre-activation
  int64_t pitch = 0;
  bool stream = false;  // gradient_stream.cuh, else weight_gradient.cuh
  int64_t ranges = 1, range_tokens = 0;
  PartialLayout layout;
  float* partial = nullptr;  // null: every adapter has one range, or a cluster sums them
};

WeightGradientWork lay_out_weight_gradients(const PathCall<BackwardTensors>& call, Arena& arena);

// One launch, and one more where there are partial sums.
cudaError_t launch_weight_gradients(const PathCall<BackwardTensors>& call, const WeightGradientWork& work,
                                    cudaStream_t stream);

}  // namespace adapterx::cuda
