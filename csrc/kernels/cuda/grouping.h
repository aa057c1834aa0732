// Sorting tokens by the adapter they picked, on the device: no host synchronisation, fixed grids, so that the grouped
// operator can be captured in a CUDA graph whatever the indices turn out to be.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace adapterx::cuda {

// Tokens [begin, end) of the sorted order, all of one group.
struct Segment {
  int32_t group;  // kUnusedSegment, kNoAdapter, or the number of the adapter
  int32_t begin;
  int32_t end;
};
inline constexpr int32_t kUnusedSegment = -2;  // the tables are as long as the worst case
inline constexpr int32_t kNoAdapter = -1;      // these tokens picked none: the branch is zero

// Device pointers into the workspace that group_tokens has filled. A tile never holds tokens of two groups.
struct Grouping {
  int64_t num_groups = 0;
  const int64_t* tokens = nullptr;  // token numbers, stably sorted by group; those without adapter come last
  const Segment* tiles = nullptr;   // at most row_tile tokens each
  int64_t max_tiles = 0;
  const Segment* ranges = nullptr;  // at most kRangeTokens tokens each, for the weight gradients
  int64_t max_ranges = 0;
  const int32_t* first_range = nullptr;  // num_groups + 1 entries
};

inline constexpr int64_t kMaxGroups = 4096;    // the scan keeps two numbers a group in 48 KiB of shared memory
inline constexpr int64_t kRangeTokens = 2048;  // each range costs a set of partial sums of both weights

// Bytes of device memory for the sorted order and its tables, 256-byte aligned.
int64_t grouping_workspace(int64_t num_tokens, int64_t num_groups, int32_t row_tile);

// Where group_tokens puts what into the workspace.
Grouping grouping_in(void* workspace, int64_t num_tokens, int64_t num_groups, int32_t row_tile);

// Three launches, or one for at most 256 tokens. indices: num_tokens numbers of [-1, num_groups), -1 for no adapter;
// any other number is a device-side assertion, as an index out of range is in PyTorch. num_tokens must be less than
// 2^31.
cudaError_t group_tokens(const int64_t* indices, int64_t num_tokens, int64_t num_groups, int32_t row_tile,
                         void* workspace, cudaStream_t stream);

}  // namespace adapterx::cuda
