// One way to carve a workspace into the pieces that a call needs.
#pragma once

#include <cstdint>

#include "sizes.h"

namespace adapterx::cuda {

// Hands out consecutive pieces of a workspace, each aligned to kWorkspaceAlignment as the workspace itself. Without a
// workspace it only measures: all pieces are null, and `used` says how large the workspace must be. What takes pieces
// therefore runs twice, once to measure and once to place.
class Arena {
 public:
  Arena() = default;
  explicit Arena(void* workspace) : base_(static_cast<unsigned char*>(workspace)) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t offset = round_up(used_, kWorkspaceAlignment);
    used_ = offset + count * static_cast<int64_t>(sizeof(T));
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset);
  }

  int64_t used() const { return used_; }  // bytes

 private:
  unsigned char* base_ = nullptr;
  int64_t used_ = 0;
};

// Memory of elements whose type is known at run time only.
inline void* take_elements(Arena& arena, ScalarType dtype, int64_t count) {
  return arena.take<unsigned char>(count * element_size(dtype));
}

}  // namespace adapterx::cuda
