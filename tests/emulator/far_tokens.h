// A grouping made by hand whose one tile names tokens that lie far apart, in matrices of more than 2^31 elements: what
// shows an offset computed with 32 bits. Of the matrices only the rows that are touched take memory.
#pragma once

#include <vector>

#include "guarded_memory.h"
#include "sort_tokens.h"

namespace emulator {

// Zeros. Memory that nobody wrote is no error here: it is there when it is touched.
class SparseMemory {
 public:
  explicit SparseMemory(size_t bytes) : bytes_(bytes) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
  }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  ~SparseMemory() { munmap(data_, bytes_); }
  unsigned char* data() const { return static_cast<unsigned char*>(data_); }

 private:
  void* data_;
  size_t bytes_;
};

// The tables of one adapter whose tokens are `tokens`, at most a tile's, of num_tokens.
struct FarTokens {
  std::vector<int64_t> tokens;
  adapterx::cuda::Segment segment;
  std::vector<int32_t> first_token, first_segment;

  explicit FarTokens(std::vector<int64_t> which)
      : tokens(std::move(which)),
        segment{0, 0, static_cast<int32_t>(tokens.size())},
        first_token{0, segment.end, segment.end},
        first_segment{0, 1, 1} {}

  adapterx::cuda::SortedTokens sorted(int64_t num_tokens, int32_t row_tile) {
    adapterx::cuda::SortedTokens result;
    result.num_tokens = num_tokens, result.num_adapters = 1, result.row_tile = row_tile;
    result.tokens = tokens.data();
    result.tiles = result.ranges = &segment;
    result.max_tiles = result.max_ranges = 1;
    result.first_token = first_token.data();
    result.first_tile = result.first_range = first_segment.data();
    return result;
  }
};

}  // namespace emulator
