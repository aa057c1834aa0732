// Arithmetic of sizes and addresses, for host and device code alike.
#pragma once

#include <cstdint>

#include "../types.h"

namespace adapterx::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

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
