// Arithmetic of sizes and addresses, for host and device code alike.
#pragma once

#include <cstdint>

#include "../types.h"

namespace adapterx::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The bottleneck_dim that the tensor-core kernels are compiled for, up to 128.
constexpr int64_t padded_bottleneck(int64_t bottleneck_dim) {
  int64_t padded = 16;
  while (padded < bottleneck_dim) padded *= 2;
  return padded;
}

// Elements between two rows of the matrices (num_tokens, bottleneck_dim) that the backward keeps for the weight
// gradients: the row of a padded tile in shared memory, so that rows of neighbouring tokens arrive there in one copy.
constexpr int64_t narrow_pitch(int64_t bottleneck_dim) { return padded_bottleneck(bottleneck_dim) + 8; }

inline constexpr int64_t kWorkspaceAlignment = 256;  // bytes, of every part of a workspace

// Bytes of an element, and of the type that arithmetic on it is done in.
constexpr int64_t element_size(ScalarType dtype) {
  if (dtype == ScalarType::float64) return 8;
  return dtype == ScalarType::float32 ? 4 : 2;
}
constexpr int64_t compute_size(ScalarType dtype) { return dtype == ScalarType::float64 ? 8 : 4; }

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace adapterx::cuda
