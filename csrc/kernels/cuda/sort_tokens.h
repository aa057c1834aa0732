// Sorting tokens by the adapter they picked, on the device: no host synchronisation, fixed grids, so that the grouped
// form can be captured in a CUDA graph whatever the indices turn out to be.
#pragma once

#include <cstdint>

#include "arena.h"
#include "runtime.h"

namespace adapterx::cuda {

// Tokens [begin, end) of the sorted order, all of one adapter.
struct Segment {
  int32_t adapter;  // kUnusedSegment, kNoAdapter, or the number of the adapter
  int32_t begin;
  int32_t end;
};
inline constexpr int32_t kUnusedSegment = -2;  // the tables are as long as the worst case
inline constexpr int32_t kNoAdapter = -1;      // these tokens picked none: the branch is zero

// The sorted order and its tables, on the device; sort_tokens fills them. A tile never holds tokens of two adapters.
struct SortedTokens {
  int64_t num_tokens = 0;
  int32_t num_adapters = 0;
  int32_t row_tile = 0;
  int64_t* tokens = nullptr;  // token numbers, stably sorted by adapter; those without adapter come last
  Segment* tiles = nullptr;   // at most row_tile tokens each
  int64_t max_tiles = 0;
  Segment* ranges = nullptr;  // at most kRangeTokens tokens each, for the weight gradients
  int64_t max_ranges = 0;
  // Where each slot begins. A slot is an adapter; the last one holds the tokens without adapter, and has no ranges.
  int32_t* first_token = nullptr;  // num_adapters + 2 entries, as the next two
  int32_t* first_tile = nullptr;
  int32_t* first_range = nullptr;
  int32_t* counts = nullptr;  // (blocks, num_adapters + 1); after the scan: tokens of the slot in earlier blocks
};

inline constexpr int64_t kMaxAdapters = 4096;       // the scan keeps two numbers an adapter in 48 KiB of shared memory
inline constexpr int64_t kRangeTokens = 2048;       // each range costs a set of partial sums of both weights
inline constexpr int64_t kMaxSortedRanges = 65535;  // the weight gradients launch one row of blocks a range
inline constexpr int64_t kMaxTokens = (int64_t{1} << 31) - 1;  // token numbers in tables have 32 bits

// Takes the pieces for at most kMaxTokens tokens and kMaxAdapters adapters.
SortedTokens lay_out_tokens(int64_t num_tokens, int64_t num_adapters, int32_t row_tile, Arena& arena);

// Three launches, or one for at most 256 tokens. indices: a number of [-1, num_adapters) for each token, -1 for no
// adapter; any other number is a device-side assertion, as an index out of range is in PyTorch.
cudaError_t sort_tokens(const int64_t* indices, const SortedTokens& sorted, cudaStream_t stream);

}  // namespace adapterx::cuda
