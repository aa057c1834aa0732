// A stable counting sort of tokens by group, without atomics: the same order every time.
// count: a block of 256 tokens; thread g counts group g. scan: one block; for each group a few threads add the blocks,
// then all threads add the groups. scatter: a block of the same 256 tokens; a thread places its token, and fills in a
// few entries of the tables. Where one block holds all tokens, one kernel does all three.
// Shared memory: the groups of the block's tokens; for the scan a few numbers a group.
#include <algorithm>

#include "element.cuh"
#include "grouping.h"
#include "launch.cuh"

namespace adapterx::cuda {
namespace {

constexpr int kBlockTokens = 256;      // tokens and threads of a block
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

// Shared memory of a block, as integers.
struct GroupingMemory {
  int32_t* groups;  // kBlockTokens, of the block's tokens; -1 behind the last token
  int32_t* parts;   // sums over some of the blocks, a number for each thread or group
  int32_t* totals;  // num_groups + 1
  int32_t* sums;    // 3 x kBlockTokens

  __device__ __forceinline__ GroupingMemory(unsigned char* memory, int num_groups) {
    groups = reinterpret_cast<int32_t*>(memory);
    sums = groups + kBlockTokens;
    parts = sums + 3 * kBlockTokens;
    totals = parts + max(num_groups + 1, kBlockTokens);
  }
  static int64_t bytes(int64_t num_groups, bool scan) {
    const int64_t numbers = kBlockTokens * 4 + std::max<int64_t>(num_groups + 1, kBlockTokens) + num_groups + 1;
    return round_up((scan ? numbers : kBlockTokens) * 4, 16);
  }
};

// Reads this block's groups to shared memory; returns that of this thread's token. Tokens without adapter form a last
// group of their own.
__device__ __forceinline__ int load_groups(int32_t* groups, const GroupingTables& tables) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kBlockTokens + threadIdx.x;
  int32_t group = -1;
  if (token < tables.num_tokens) {
    const int64_t index = tables.indices[token];
    if (index < -1 || index >= tables.num_groups) {
      assertion_failed("grouped_bottleneck_adapter: adapter_indices must be -1 or the number of an adapter",
                       "grouping.cu", __LINE__, "group_tokens");
    }
    group = index < 0 ? tables.num_groups : static_cast<int32_t>(index);
  }
  groups[threadIdx.x] = group;
  __syncthreads();
  return group;
}

// How many of the block's first `end` tokens picked `group`.
__device__ __forceinline__ int count_group(const int32_t* groups, int group, int end) {
  int count = 0;
#pragma unroll 4
  for (int i = 0; i < end; i += 4) {
    const auto four = *reinterpret_cast<const Vector<int32_t, 4>*>(groups + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) count += i + j < end && four.values[j] == group;
  }
  return count;
}

__device__ __forceinline__ void count_groups(const int32_t* groups, const GroupingTables& tables) {
  int32_t* counts = tables.counts + static_cast<int64_t>(blockIdx.x) * (tables.num_groups + 1);
  for (int group = threadIdx.x; group <= tables.num_groups; group += kBlockTokens) {
    counts[group] = count_group(groups, group, kBlockTokens);
  }
}

// Turns the counts of each block into the tokens of the group in earlier blocks, and writes each group's total. With
// few groups several threads share a group, each with a part of the blocks.
__device__ __forceinline__ void scan_blocks(const GroupingMemory& memory, const GroupingTables& tables, int blocks) {
  constexpr int kBatch = 8;  // loads under way at once
  const int groups = tables.num_groups + 1, step = min(groups, kBlockTokens), parts = kBlockTokens / step;
  const int part = threadIdx.x / step, first_group = threadIdx.x % step;
  const int64_t first = static_cast<int64_t>(part) * blocks / parts;
  const int64_t end = part < parts ? static_cast<int64_t>(part + 1) * blocks / parts : first;
  for (int group = first_group; group < groups && part < parts; group += step) {
    int32_t total = 0;
    for (int64_t block = first; block < end; ++block) total += tables.counts[block * groups + group];
    memory.parts[part * step + group] = total;
  }
  __syncthreads();
  for (int group = first_group; group < groups && part < parts; group += step) {
    int32_t before = 0;
    for (int other = 0; other < part; ++other) before += memory.parts[other * step + group];
    for (int64_t block = first; block < end; block += kBatch) {
      int32_t batch[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) batch[i] = block + i < end ? tables.counts[(block + i) * groups + group] : 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (block + i < end) tables.counts[(block + i) * groups + group] = before;
        before += batch[i];
      }
    }
    if (part == parts - 1) memory.totals[group] = before;
  }
  __syncthreads();
}

// Inclusive sums over the threads of three numbers each.
__device__ __forceinline__ void scan_threads(int32_t* sums) {
  for (int offset = 1; offset < kBlockTokens; offset *= 2) {
    int32_t add[3] = {};
    const int place = threadIdx.x;
#pragma unroll
    for (int i = 0; i < 3; ++i) add[i] = place >= offset ? sums[i * kBlockTokens + place - offset] : 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 3; ++i) sums[i * kBlockTokens + place] += add[i];
    __syncthreads();
  }
}

// Where each group's tokens, tiles and ranges begin. A thread owns a few neighbouring groups.
__device__ __forceinline__ void scan_groups(const GroupingMemory& memory, const GroupingTables& tables) {
  const int groups = tables.num_groups + 1, run = (groups + kBlockTokens - 1) / kBlockTokens;
  const int first = min(static_cast<int>(threadIdx.x) * run, groups), end = min(first + run, groups);
  const auto tiles_of = [&](int group) { return (memory.totals[group] + tables.row_tile - 1) / tables.row_tile; };
  const auto ranges_of = [&](int group) {
    const int range_tokens = static_cast<int>(kRangeTokens);
    return group < tables.num_groups ? (memory.totals[group] + range_tokens - 1) / range_tokens : 0;
  };
  int32_t sums[3] = {};
  for (int group = first; group < end; ++group) {
    sums[0] += memory.totals[group], sums[1] += tiles_of(group), sums[2] += ranges_of(group);
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) memory.sums[i * kBlockTokens + threadIdx.x] = sums[i];
  __syncthreads();
  scan_threads(memory.sums);
#pragma unroll
  for (int i = 0; i < 3; ++i) sums[i] = memory.sums[i * kBlockTokens + threadIdx.x] - sums[i];
  for (int group = first; group < end; ++group) {
    tables.first_token[group] = sums[0], tables.first_tile[group] = sums[1], tables.first_range[group] = sums[2];
    sums[0] += memory.totals[group], sums[1] += tiles_of(group), sums[2] += ranges_of(group);
  }
  if (threadIdx.x != kBlockTokens - 1) return;  // the last thread's sums are those of all
  tables.first_token[groups] = sums[0], tables.first_tile[groups] = sums[1], tables.first_range[groups] = sums[2];
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

// Writes the places of this block's tokens, and a few entries of the tables. `group`: of this thread's token.
__device__ __forceinline__ void scatter_tokens(const int32_t* groups, int group, const GroupingTables& tables) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  if (group >= 0) {
    const int32_t earlier = tables.counts[static_cast<int64_t>(blockIdx.x) * (tables.num_groups + 1) + group];
    const int32_t place = tables.first_token[group] + earlier + count_group(groups, group, threadIdx.x);
    tables.tokens[place] = first + threadIdx.x;
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kBlockTokens;
  for (int64_t i = first + threadIdx.x; i < tables.max_tiles; i += stride) {
    tables.tiles[i] = find_segment(tables, tables.first_tile, tables.row_tile, i);
  }
  for (int64_t i = first + threadIdx.x; i < tables.max_ranges; i += stride) {
    tables.ranges[i] = find_segment(tables, tables.first_range, static_cast<int32_t>(kRangeTokens), i);
  }
}

__global__ void __launch_bounds__(kBlockTokens) group_count_kernel(const GroupingTables tables) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const GroupingMemory memory(bytes, tables.num_groups);
  load_groups(memory.groups, tables);
  count_groups(memory.groups, tables);
}

__global__ void __launch_bounds__(kBlockTokens) group_scan_kernel(const GroupingTables tables, int blocks) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const GroupingMemory memory(bytes, tables.num_groups);
  scan_blocks(memory, tables, blocks);
  scan_groups(memory, tables);
}

__global__ void __launch_bounds__(kBlockTokens) group_scatter_kernel(const GroupingTables tables) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const GroupingMemory memory(bytes, tables.num_groups);
  const int group = load_groups(memory.groups, tables);
  scatter_tokens(memory.groups, group, tables);
}

__global__ void __launch_bounds__(kBlockTokens) group_block_kernel(const GroupingTables tables) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const GroupingMemory memory(bytes, tables.num_groups);
  const int group = load_groups(memory.groups, tables);
  count_groups(memory.groups, tables);
  __syncthreads();
  scan_blocks(memory, tables, 1);
  scan_groups(memory, tables);
  __syncthreads();
  scatter_tokens(memory.groups, group, tables);
}

// Lays the tables out; with a null workspace only the size matters.
GroupingTables lay_out(void* workspace, int64_t num_tokens, int64_t num_groups, int32_t row_tile, int64_t* bytes) {
  GroupingTables tables;
  tables.num_tokens = num_tokens;
  tables.num_groups = static_cast<int>(num_groups);
  tables.row_tile = row_tile;
  // The most that full tiles and one last tile for each group that has tokens can be.
  tables.max_tiles = num_tokens / row_tile + std::min(num_groups + 1, num_tokens);
  tables.max_ranges = num_tokens / kRangeTokens + std::min(num_groups, num_tokens);
  int64_t offset = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    const auto address = reinterpret_cast<uintptr_t>(workspace) + static_cast<uintptr_t>(offset);
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(address);
    offset += round_up(count * static_cast<int64_t>(sizeof(*pointer)), kWorkspaceAlignment);
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
  if (num_tokens == 0) return cudaSuccess;
  GroupingTables tables = lay_out(workspace, num_tokens, num_groups, row_tile, nullptr);
  if (tables.max_ranges > kMaxRanges) return cudaErrorInvalidValue;
  tables.indices = indices;
  const auto blocks = static_cast<unsigned>(ceil_div(num_tokens, kBlockTokens));
  const LaunchShape over_tokens = {dim3(blocks), dim3(kBlockTokens), GroupingMemory::bytes(num_groups, false)};
  const LaunchShape one_block = {dim3(1), dim3(kBlockTokens), GroupingMemory::bytes(num_groups, true)};
  if (blocks == 1) return launch(group_block_kernel, one_block, stream, tables);
  cudaError_t error = launch(group_count_kernel, over_tokens, stream, tables);
  if (error != cudaSuccess) return error;
  error = launch(group_scan_kernel, one_block, stream, tables, static_cast<int>(blocks));
  if (error != cudaSuccess) return error;
  return launch(group_scatter_kernel, over_tokens, stream, tables);
}

}  // namespace adapterx::cuda
