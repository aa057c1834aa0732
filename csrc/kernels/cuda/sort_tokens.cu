// A stable counting sort of tokens by slot (an adapter, or none), without atomics: the same order every time.
//
// count:    a block of 256 tokens; thread s counts slot s.
// scan:     one block; for each slot a few threads add the blocks, then all threads add the slots.
// scatter:  a block of the same 256 tokens; a thread places its token, and fills in a few entries of the tables.
// Few indices, as of the sequences of a batch, take one launch: there every block counts and scans them all for itself,
// and places 256 tokens.
// Shared memory: the slots of the block's tokens; for the scan a few numbers a slot.
#include <algorithm>

#include "element.cuh"
#include "launch.cuh"
#include "sort_tokens.h"

namespace adapterx::cuda {
namespace {

constexpr int kBlockTokens = 256;              // tokens and threads of a block
constexpr int kSums = 1 + kSegmentTables;      // of a slot: its tokens, and its segments in each table
constexpr int64_t kMaxSortMemory = 96 * 1024;  // of a block; every GPU from compute capability 8.0 on grants it

// Shared memory of a block, as integers.
struct SortMemory {
  int32_t* slots;   // kBlockTokens, of the block's tokens or of all indices; -1 behind the last one
  int32_t* sums;    // kSums x kBlockTokens
  int32_t* totals;  // num_adapters + 1: tokens of each slot
  int32_t* rest;    // of the scan: sums over some of the blocks; of few indices: where each slot begins

  __device__ __forceinline__ SortMemory(unsigned char* memory, int num_adapters) {
    slots = reinterpret_cast<int32_t*>(memory);
    sums = slots + kBlockTokens;
    totals = sums + kSums * kBlockTokens;
    rest = totals + num_adapters + 1;
  }
  static int64_t bytes(int64_t num_adapters, int64_t rest) {
    return round_up((kBlockTokens * (1 + kSums) + num_adapters + 1 + rest) * 4, 16);
  }
  static int64_t bytes_of_slots() { return kBlockTokens * 4; }
  static int64_t bytes_of_scan(int64_t num_adapters) {
    return bytes(num_adapters, std::max<int64_t>(num_adapters + 1, kBlockTokens));
  }
  static int64_t bytes_of_few(int64_t num_adapters) { return bytes(num_adapters, kSums * (num_adapters + 2)); }
};

// What is to be sorted: each index is for some consecutive tokens.
struct Indices {
  const int64_t* values;
  int64_t tokens_each;
};

// Tokens without adapter form a last slot of their own.
__device__ __forceinline__ int slot_of(int64_t index, int num_adapters) {
  if (index < -1 || index >= num_adapters) {
    assertion_failed("bottleneck_adapter: adapter_indices must be -1 or the number of an adapter", "sort_tokens.cu",
                     __LINE__, "sort_tokens");
  }
  return index < 0 ? num_adapters : static_cast<int>(index);
}

// Reads this block's slots to shared memory; returns that of this thread's token.
__device__ __forceinline__ int load_slots(int32_t* slots, const Indices& indices, const SortedTokens& tables) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kBlockTokens + threadIdx.x;
  int slot = -1;
  if (token < tables.num_tokens) slot = slot_of(indices.values[token / indices.tokens_each], tables.num_adapters);
  slots[threadIdx.x] = slot;
  __syncthreads();
  return slot;
}

// How many of the block's first `end` tokens picked `slot`.
__device__ __forceinline__ int count_slot(const int32_t* slots, int slot, int end) {
  int count = 0;
#pragma unroll 4
  for (int i = 0; i < end; i += 4) {
    const auto four = *reinterpret_cast<const Vector<int32_t, 4>*>(slots + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) count += i + j < end && four.values[j] == slot;
  }
  return count;
}

__device__ __forceinline__ void count_slots(const int32_t* slots, const SortedTokens& tables) {
  int32_t* counts = tables.counts + static_cast<int64_t>(blockIdx.x) * (tables.num_adapters + 1);
  for (int slot = threadIdx.x; slot <= tables.num_adapters; slot += kBlockTokens) {
    counts[slot] = count_slot(slots, slot, kBlockTokens);
  }
}

// Turns the counts of each block into the tokens of the slot in earlier blocks, and writes each slot's total. With
// few slots several threads share a slot, each with a part of the blocks.
__device__ __forceinline__ void scan_blocks(const SortMemory& memory, const SortedTokens& tables, int blocks) {
  constexpr int kBatch = 8;  // loads under way at once
  const int slots = tables.num_adapters + 1, step = min(slots, kBlockTokens), parts = kBlockTokens / step;
  const int part = threadIdx.x / step, first_slot = threadIdx.x % step;
  const int64_t first = static_cast<int64_t>(part) * blocks / parts;
  const int64_t end = part < parts ? static_cast<int64_t>(part + 1) * blocks / parts : first;
  for (int slot = first_slot; slot < slots && part < parts; slot += step) {
    int32_t total = 0;
    for (int64_t block = first; block < end; ++block) total += tables.counts[block * slots + slot];
    memory.rest[part * step + slot] = total;
  }
  __syncthreads();
  for (int slot = first_slot; slot < slots && part < parts; slot += step) {
    int32_t before = 0;
    for (int other = 0; other < part; ++other) before += memory.rest[other * step + slot];
    for (int64_t block = first; block < end; block += kBatch) {
      int32_t batch[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) batch[i] = block + i < end ? tables.counts[(block + i) * slots + slot] : 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (block + i < end) tables.counts[(block + i) * slots + slot] = before;
        before += batch[i];
      }
    }
    if (part == parts - 1) memory.totals[slot] = before;
  }
  __syncthreads();
}

// Inclusive sums over the threads of kSums numbers each.
__device__ __forceinline__ void scan_threads(int32_t* sums) {
  for (int offset = 1; offset < kBlockTokens; offset *= 2) {
    int32_t add[kSums] = {};
    const int place = threadIdx.x;
#pragma unroll
    for (int i = 0; i < kSums; ++i) add[i] = place >= offset ? sums[i * kBlockTokens + place - offset] : 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i * kBlockTokens + place] += add[i];
    __syncthreads();
  }
}

// Adds a slot's numbers to the sums.
__device__ __forceinline__ void add_slot(int32_t (&sums)[kSums], const SortedTokens& sorted, int slot, int32_t tokens) {
  sums[0] += tokens;
#pragma unroll
  for (int i = 0; i < kSegmentTables; ++i) {
    const SegmentTable& table = sorted.tables[i];
    if (slot < table.slots) sums[1 + i] += (tokens + table.length - 1) / table.length;
  }
}

__device__ __forceinline__ void store_first(const SortedTokens& sorted, int slot, const int32_t (&sums)[kSums]) {
  sorted.first_token[slot] = sums[0];
#pragma unroll
  for (int i = 0; i < kSegmentTables; ++i) sorted.tables[i].first[slot] = sums[1 + i];
}

// Where each slot's tokens and segments begin. A thread owns a few neighbouring slots.
__device__ __forceinline__ void scan_slots(const SortMemory& memory, const SortedTokens& sorted) {
  const int slots = sorted.num_adapters + 1, run = (slots + kBlockTokens - 1) / kBlockTokens;
  const int first = min(static_cast<int>(threadIdx.x) * run, slots), end = min(first + run, slots);
  int32_t sums[kSums] = {};
  for (int slot = first; slot < end; ++slot) add_slot(sums, sorted, slot, memory.totals[slot]);
#pragma unroll
  for (int i = 0; i < kSums; ++i) memory.sums[i * kBlockTokens + threadIdx.x] = sums[i];
  __syncthreads();
  scan_threads(memory.sums);
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = memory.sums[i * kBlockTokens + threadIdx.x] - sums[i];
  for (int slot = first; slot < end; ++slot) {
    store_first(sorted, slot, sums);
    add_slot(sums, sorted, slot, memory.totals[slot]);
  }
  if (threadIdx.x == kBlockTokens - 1) store_first(sorted, slots, sums);  // the last thread's sums are those of all
}

// Segment `index` of a table.
__device__ __forceinline__ Segment find_segment(const SortedTokens& sorted, const SegmentTable& table, int64_t index) {
  if (index >= table.first[sorted.num_adapters + 1]) return {kUnusedSegment, 0, 0};
  int low = 0, high = sorted.num_adapters;  // the last slot that begins at or before `index`
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first[middle] <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int32_t begin = sorted.first_token[low] + static_cast<int32_t>(index - table.first[low]) * table.length;
  const int32_t end = min(begin + table.length, sorted.first_token[low + 1]);
  return {low == sorted.num_adapters ? kNoAdapter : low, begin, end};
}

// Writes this block's share of the tables.
__device__ __forceinline__ void write_tables(const SortedTokens& sorted) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kBlockTokens;
#pragma unroll
  for (int i = 0; i < kSegmentTables; ++i) {
    const SegmentTable& table = sorted.tables[i];
    for (int64_t index = first; index < table.most; index += stride) {
      table.segments[index] = find_segment(sorted, table, index);
    }
  }
}

__global__ void __launch_bounds__(kBlockTokens) sort_count_kernel(const Indices indices, const SortedTokens tables) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const SortMemory memory(bytes, tables.num_adapters);
  load_slots(memory.slots, indices, tables);
  count_slots(memory.slots, tables);
}

__global__ void __launch_bounds__(kBlockTokens) sort_scan_kernel(const SortedTokens tables, int blocks) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const SortMemory memory(bytes, tables.num_adapters);
  scan_blocks(memory, tables, blocks);
  scan_slots(memory, tables);
}

__global__ void __launch_bounds__(kBlockTokens) sort_scatter_kernel(const Indices indices, const SortedTokens tables) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const SortMemory memory(bytes, tables.num_adapters);
  const int slot = load_slots(memory.slots, indices, tables);
  if (slot >= 0) {
    const int32_t earlier = tables.counts[static_cast<int64_t>(blockIdx.x) * (tables.num_adapters + 1) + slot];
    const int32_t place = tables.first_token[slot] + earlier + count_slot(memory.slots, slot, threadIdx.x);
    tables.tokens[place] = static_cast<int64_t>(blockIdx.x) * kBlockTokens + threadIdx.x;
  }
  write_tables(tables);
}

// ---- few indices ---------------------------------------------------------------------------------------------------

// The tables with this block's own copy of where each slot begins.
__device__ __forceinline__ SortedTokens with_own_firsts(const SortMemory& memory, const SortedTokens& tables) {
  SortedTokens own = tables;
  const int entries = tables.num_adapters + 2;
  own.first_token = memory.rest;
#pragma unroll
  for (int i = 0; i < kSegmentTables; ++i) own.tables[i].first = memory.rest + (1 + i) * entries;
  return own;
}

__device__ __forceinline__ void store_firsts(const SortedTokens& own, const SortedTokens& tables) {
  for (int slot = threadIdx.x; slot < tables.num_adapters + 2; slot += kBlockTokens) {
    tables.first_token[slot] = own.first_token[slot];
#pragma unroll
    for (int i = 0; i < kSegmentTables; ++i) tables.tables[i].first[slot] = own.tables[i].first[slot];
  }
}

__global__ void __launch_bounds__(kBlockTokens)
    sort_few_kernel(const Indices indices, int count, const SortedTokens tables) {
  ADAPTERX_SHARED_MEMORY(bytes);
  const SortMemory memory(bytes, tables.num_adapters);
  const int thread = threadIdx.x, each = static_cast<int>(indices.tokens_each);
  memory.slots[thread] = thread < count ? slot_of(indices.values[thread], tables.num_adapters) : -1;
  __syncthreads();
  for (int slot = thread; slot <= tables.num_adapters; slot += kBlockTokens) {
    memory.totals[slot] = count_slot(memory.slots, slot, count) * each;
  }
  __syncthreads();
  const SortedTokens own = with_own_firsts(memory, tables);
  scan_slots(memory, own);
  __syncthreads();
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kBlockTokens + thread;
  if (token < tables.num_tokens) {
    const int index = static_cast<int>(token / each), slot = memory.slots[index];
    const int32_t place = own.first_token[slot] + count_slot(memory.slots, slot, index) * each;
    tables.tokens[place + static_cast<int32_t>(token % each)] = token;
  }
  write_tables(own);
  if (blockIdx.x == 0) store_firsts(own, tables);
}

}  // namespace

SortedTokens lay_out_sorted(int64_t num_tokens, int64_t num_adapters, int32_t row_tile, Arena& arena) {
  SortedTokens sorted;
  sorted.num_tokens = num_tokens;
  sorted.num_adapters = static_cast<int32_t>(num_adapters);
  sorted.row_tile = row_tile;
  sorted.tokens = arena.take<int64_t>(num_tokens);
  sorted.first_token = arena.take<int32_t>(num_adapters + 2);
  for (int i = 0; i < kSegmentTables; ++i) {
    SegmentTable& table = sorted.tables[i];
    table.length = i == kRangeTable ? static_cast<int32_t>(kRangeTokens) : kRowTiles[i];
    table.slots = sorted.num_adapters + (i == kRangeTable ? 0 : 1);
    // The most that full segments and one last segment for each slot that has tokens can be.
    table.most = num_tokens / table.length + std::min<int64_t>(table.slots, num_tokens);
    table.first = arena.take<int32_t>(num_adapters + 2);
    table.segments = arena.take<Segment>(table.most);
    if (table.length == row_tile) sorted.tiles = table.segments, sorted.max_tiles = table.most;
  }
  const SegmentTable& ranges = sorted.tables[kRangeTable];
  sorted.ranges = ranges.segments, sorted.max_ranges = ranges.most, sorted.first_range = ranges.first;
  return sorted;
}

int32_t* lay_out_counts(int64_t num_tokens, int64_t num_adapters, Arena& arena) {
  return arena.take<int32_t>(ceil_div(num_tokens, kBlockTokens) * (num_adapters + 1));
}

SortedTokens lay_out_tokens(int64_t num_tokens, int64_t num_adapters, int32_t row_tile, Arena& arena) {
  SortedTokens sorted = lay_out_sorted(num_tokens, num_adapters, row_tile, arena);
  sorted.counts = lay_out_counts(num_tokens, num_adapters, arena);
  return sorted;
}

cudaError_t sort_tokens(const int64_t* values, const SortedTokens& sorted, cudaStream_t stream, int64_t tokens_each) {
  const bool fits = sorted.num_adapters >= 1 && sorted.num_adapters <= kMaxAdapters &&
                    sorted.num_tokens <= kMaxTokens && sorted.max_ranges <= kMaxSortedRanges &&
                    (sorted.max_tiles > 0 || sorted.num_tokens == 0) && tokens_each >= 1 &&
                    sorted.num_tokens % tokens_each == 0;
  if (!fits) return cudaErrorInvalidValue;
  if (sorted.num_tokens == 0) return cudaSuccess;
  const Indices indices = {values, tokens_each};
  const auto blocks = static_cast<unsigned>(ceil_div(sorted.num_tokens, kBlockTokens));
  const int64_t count = sorted.num_tokens / tokens_each, few_bytes = SortMemory::bytes_of_few(sorted.num_adapters);
  if (count <= kBlockTokens && few_bytes <= kMaxSortMemory) {
    const LaunchShape shape = {dim3(blocks), dim3(kBlockTokens), few_bytes};
    return launch(sort_few_kernel, shape, stream, indices, static_cast<int>(count), sorted);
  }
  const LaunchShape over_tokens = {dim3(blocks), dim3(kBlockTokens), SortMemory::bytes_of_slots()};
  const LaunchShape one_block = {dim3(1), dim3(kBlockTokens), SortMemory::bytes_of_scan(sorted.num_adapters)};
  cudaError_t error = launch(sort_count_kernel, over_tokens, stream, indices, sorted);
  if (error != cudaSuccess) return error;
  error = launch(sort_scan_kernel, one_block, stream, sorted, static_cast<int>(blocks));
  if (error != cudaSuccess) return error;
  return launch(sort_scatter_kernel, over_tokens, stream, indices, sorted);
}

}  // namespace adapterx::cuda
