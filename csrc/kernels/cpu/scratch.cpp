#include "scratch.h"

#include <new>

#ifdef ADAPTERX_GUARD_SCRATCH
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) (static_cast<void>(begin), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) (static_cast<void>(begin), static_cast<void>(bytes))
#endif

namespace adapterx::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::size_t kGranularity = 64 * 1024;
// Kept per thread and owner: covers m=64, d=4096 and its partial weight gradients on 8 threads.
constexpr std::size_t kLargestKept = 32 * 1024 * 1024;

struct Allocation {
  std::byte* data = nullptr;
  std::size_t size = 0;

  void release() {
    if (data != nullptr) {
      allow_scratch(data, size);
      ::operator delete(data, kAlignment);
    }
    data = nullptr;
    size = 0;
  }
  ~Allocation() { release(); }
};

Allocation& allocation_of(ScratchOwner owner) {
  thread_local Allocation allocations[2];
  return allocations[static_cast<int>(owner)];
}

}  // namespace

std::byte* acquire_scratch(ScratchOwner owner, std::size_t bytes) {
  Allocation& held = allocation_of(owner);
  if (held.size < bytes) {
    const std::size_t size = (bytes + kGranularity - 1) / kGranularity * kGranularity;
    held.release();
    held.data = static_cast<std::byte*>(::operator new(size, kAlignment));
    held.size = size;
  }
  return held.data;
}

void forbid_scratch(std::byte* begin, std::size_t bytes) { ASAN_POISON_MEMORY_REGION(begin, bytes); }
void allow_scratch(std::byte* begin, std::size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(begin, bytes); }

void trim_scratch(ScratchOwner owner) {
  Allocation& held = allocation_of(owner);
  if (held.size > kLargestKept) held.release();
}

}  // namespace adapterx::cpu
