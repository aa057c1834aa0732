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
// Kept per thread and arena: covers m=64, d=4096 and its partial weight gradients on 8 threads.
constexpr std::size_t kLargestKept = 32 * 1024 * 1024;

struct Block {
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
  ~Block() { release(); }
};

Block& block_of(Arena arena) {
  thread_local Block blocks[2];
  return blocks[static_cast<int>(arena)];
}

}  // namespace

std::byte* acquire_scratch(Arena arena, std::size_t bytes) {
  Block& block = block_of(arena);
  if (block.size < bytes) {
    const std::size_t size = (bytes + kGranularity - 1) / kGranularity * kGranularity;
    block.release();
    block.data = static_cast<std::byte*>(::operator new(size, kAlignment));
    block.size = size;
  }
  return block.data;
}

void forbid_scratch(std::byte* begin, std::size_t bytes) { ASAN_POISON_MEMORY_REGION(begin, bytes); }
void allow_scratch(std::byte* begin, std::size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(begin, bytes); }

void trim_scratch(Arena arena) {
  Block& block = block_of(arena);
  if (block.size > kLargestKept) block.release();
}

}  // namespace adapterx::cpu
