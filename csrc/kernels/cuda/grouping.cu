// A stable counting sort of tokens by group, without atomics: the same order every time.
// count: a block of 256 tokens; thread g counts group g. scan: one block; thread g adds the blocks of group g, then one
// thread adds the groups. scatter: a block of the same 256 tokens; thread g writes the places of group g's tokens, and
// every thread a few entries of the tables.
#include "grouping.h"
#include "launch.cuh"

namespace adapterx::cuda {
namespace {

constexpr int kBlockTokens = 256;  // tokens and threads of a block
constexpr int64_t kAlignment = 256;
constexpr int64_t kMaxRanges = 65535;  // the weight gradients launch one row of blocks a range

struct GroupingTables {
  const int64_t* indices = nullptr;
  int64_t num_tokens = 0;
  int num_groups = 0;
  int row_tile = 0;
  int64_t* tokens = nullptr;
  int32_t* counts = nullptr;       // (blocks, num_groups + 1); after the scan: tokens of the group in earlier blocks
  int32_t* first_token = nullptr;  // num_groups + 2
  int32_t* first_tile = nullptr;   // num_groups + 2
  int32_t* first_range = nullptr;  // num_groups + 2; the last group, of no adapter, has none
  Segment* tiles = nullptr;
  Segment* ranges = nullptr;
  int64_t max_tiles = 0, max_ranges = 0;
};

// Reads this block's groups to shared memory. Tokens without adapter form a last group of their own.
__device__ __forceinline__ int load_groups(int32_t* groups, const GroupingTables& tables) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens, token = first + threadIdx.x;
  if (token < tables.num_tokens) {
    const int64_t index = tables.indices[token];
    if (index < -1 || index >= tables.num_groups) {
      assertion_failed("grouped_bottleneck_adapter: adapter_indices must be -1 or the number of an adapter",
                       "grouping.cu", __LINE__, "group_tokens");
    }
    groups[threadIdx.x] = index < 0 ? tables.num_groups : static_cast<int32_t>(index);
  }
  __syncthreads();
  return static_cast<int>(min(tables.num_tokens - first, static_cast<int64_t>(kBlockTokens)));
}

__global__ void group_count_kernel(const GroupingTables tables) {
  ADAPTERX_SHARED_MEMORY(memory);
  auto* groups = reinterpret_cast<int32_t*>(memory);
  const int tokens = load_groups(groups, tables);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (tables.num_groups + 1);
  for (int group = threadIdx.x; group <= tables.num_groups; group += kBlockTokens) {
    int count = 0;
    for (int i = 0; i < tokens; ++i) count += groups[i] == group;
    tables.counts[row + group] = count;
  }
}

__global__ void group_scan_kernel(const GroupingTables tables, int blocks) {
  ADAPTERX_SHARED_MEMORY(memory);
  auto* totals = reinterpret_cast<int32_t*>(memory);
  const int groups = tables.num_groups + 1;
  for (int group = threadIdx.x; group < groups; group += kBlockTokens) {
    int32_t total = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      int32_t& count = tables.counts[block * groups + group];
      const int32_t before = total;
      total += count;
      count = before;
    }
    totals[group] = total;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  int32_t token = 0, tile = 0, range = 0;
  for (int group = 0; group <= groups; ++group) {
    tables.first_token[group] = token;
    tables.first_tile[group] = tile;
    tables.first_range[group] = range;
    if (group == groups) return;
    token += totals[group];
    tile += (totals[group] + tables.row_tile - 1) / tables.row_tile;
    if (group < tables.num_groups) range += (totals[group] + static_cast<int>(kRangeTokens) - 1) / kRangeTokens;
  }
}

// Segment `index` of a table whose group g begins at first[g] and has segments of `size` tokens.
__device__ __forceinline__ Segment find_segment(const GroupingTables& tables, const int32_t* first, int32_t size,
                                                int64_t index) {
  if (index >= first[tables.num_groups + 1]) return {kUnusedSegment, 0, 0};
  int low = 0, high = tables.num_groups;  // the last group that begins at or before `index`
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first[middle] <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int32_t begin = tables.first_token[low] + static_cast<int32_t>(index - first[low]) * size;
  const int32_t end = min(begin + size, tables.first_token[low + 1]);
  return {low == tables.num_groups ? kNoAdapter : low, begin, end};
}

__global__ void group_scatter_kernel(const GroupingTables tables) {
  ADAPTERX_SHARED_MEMORY(memory);
  auto* groups = reinterpret_cast<int32_t*>(memory);
  const int tokens = load_groups(groups, tables);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (tables.num_groups + 1);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  for (int group = threadIdx.x; group <= tables.num_groups; group += kBlockTokens) {
    int64_t place = tables.first_token[group] + tables.counts[row + group];
    for (int i = 0; i < tokens; ++i) {
      if (groups[i] == group) tables.tokens[place++] = first + i;
    }
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kBlockTokens;
  for (int64_t i = first + threadIdx.x; i < tables.max_tiles; i += stride) {
    tables.tiles[i] = find_segment(tables, tables.first_tile, tables.row_tile, i);
  }
  for (int64_t i = first + threadIdx.x; i < tables.max_ranges; i += stride) {
    tables.ranges[i] = find_segment(tables, tables.first_range, static_cast<int32_t>(kRangeTokens), i);
  }
}

// Lays the tables out; with a null workspace only the size matters.
GroupingTables lay_out(void* workspace, int64_t num_tokens, int64_t num_groups, int32_t row_tile, int64_t* bytes) {
  GroupingTables tables;
  tables.num_tokens = num_tokens;
  tables.num_groups = static_cast<int>(num_groups);
  tables.row_tile = row_tile;
  tables.max_tiles = num_tokens / row_tile + num_groups + 1;
  tables.max_ranges = num_tokens / kRangeTokens + num_groups;
  int64_t offset = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    const auto address = reinterpret_cast<uintptr_t>(workspace) + static_cast<uintptr_t>(offset);
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(address);
    offset += round_up(count * static_cast<int64_t>(sizeof(*pointer)), kAlignment);
  };
  take(tables.tokens, num_tokens);
  take(tables.counts, ceil_div(num_tokens, kBlockTokens) * (num_groups + 1));
  take(tables.first_token, num_groups + 2);
  take(tables.first_tile, num_groups + 2);
  take(tables.first_range, num_groups + 2);
  take(tables.tiles, tables.max_tiles);
  take(tables.ranges, tables.max_ranges);
  if (bytes != nullptr) *bytes = offset;
  return tables;
}

}  // namespace

int64_t grouping_workspace(int64_t num_tokens, int64_t num_groups, int32_t row_tile) {
  int64_t bytes = 0;
  lay_out(nullptr, num_tokens, num_groups, row_tile, &bytes);
  return bytes;
}

Grouping grouping_in(void* workspace, int64_t num_tokens, int64_t num_groups, int32_t row_tile) {
  const GroupingTables t = lay_out(workspace, num_tokens, num_groups, row_tile, nullptr);
  return {num_groups, t.tokens, t.tiles, t.max_tiles, t.ranges, t.max_ranges, t.first_range};
}

cudaError_t group_tokens(const int64_t* indices, int64_t num_tokens, int64_t num_groups, int32_t row_tile,
                         void* workspace, cudaStream_t stream) {
  if (num_groups < 1 || num_groups > kMaxGroups || num_tokens >= int64_t{1} << 31) return cudaErrorInvalidValue;
  if (num_tokens / kRangeTokens + num_groups > kMaxRanges) return cudaErrorInvalidValue;
  if (num_tokens == 0) return cudaSuccess;
  GroupingTables tables = lay_out(workspace, num_tokens, num_groups, row_tile, nullptr);
  tables.indices = indices;
  const auto blocks = static_cast<unsigned>(ceil_div(num_tokens, kBlockTokens));
  const LaunchShape over_tokens = {dim3(blocks), dim3(kBlockTokens), kBlockTokens * 4};
  const LaunchShape one_block = {dim3(1), dim3(kBlockTokens), round_up((num_groups + 1) * 4, 16)};
  cudaError_t error = launch(group_count_kernel, over_tokens, stream, tables);
  if (error != cudaSuccess) return error;
  error = launch(group_scan_kernel, one_block, stream, tables, static_cast<int>(blocks));
  if (error != cudaSuccess) return error;
  return launch(group_scatter_kernel, over_tokens, stream, tables);
}

}  // namespace adapterx::cuda
