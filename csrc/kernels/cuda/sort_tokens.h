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

inline constexpr int32_t kRowTiles[] = {16, 32, 64};  // of the kernels; there is a table of tiles for each
inline constexpr int kTileTables = 3;
inline constexpr int kRangeTable = kTileTables;  // after them
inline constexpr int kSegmentTables = kTileTables + 1;

// The sorted order cut into segments of one length, slot by slot. A slot is an adapter; the last one holds the tokens
// without adapter, and has no ranges.
struct SegmentTable {
  int32_t length = 0;        // tokens of a full segment
  int32_t slots = 0;         // those that have segments
  int32_t* first = nullptr;  // num_adapters + 2 entries: where each slot's segments begin
  Segment* segments = nullptr;
  int64_t most = 0;  // as many as there can be
};

// The sorted order and its tables, on the device; sort_tokens fills them. A tile never holds tokens of two adapters.
// What is filled does not depend on row_tile, so that one sort serves kernels with different tiles.
struct SortedTokens {
  int64_t num_tokens = 0;
  int32_t num_adapters = 0;
  int32_t row_tile = 0;
  int64_t* tokens = nullptr;       // token numbers, stably sorted by adapter; those without adapter come last
  const Segment* tiles = nullptr;  // of the table for row_tile
  int64_t max_tiles = 0;
  const Segment* ranges = nullptr;  // at most kRangeTokens tokens each, for the weight gradients
  int64_t max_ranges = 0;
  int32_t* first_token = nullptr;  // num_adapters + 2 entries: where each slot begins
  const int32_t* first_range = nullptr;
  SegmentTable tables[kSegmentTables] = {};
  int32_t* counts = nullptr;  // (blocks, num_adapters + 1); after the scan: tokens of the slot in earlier blocks
};

inline constexpr int64_t kMaxAdapters = 4096;       // the scan keeps two numbers an adapter in 48 KiB of shared memory
inline constexpr int64_t kRangeTokens = 2048;       // each range costs a set of partial sums of both weights
inline constexpr int64_t kMaxSortedRanges = 65535;  // the weight gradients launch one row of blocks a range
inline constexpr int64_t kMaxTokens = (int64_t{1} << 31) - 1;  // token numbers in tables have 32 bits

// Takes the pieces for at most kMaxTokens tokens and kMaxAdapters adapters. row_tile: one of kRowTiles. Without counts:
// what stays of a sort, whatever row_tile.
SortedTokens lay_out_sorted(int64_t num_tokens, int64_t num_adapters, int32_t row_tile, Arena& arena);
int32_t* lay_out_counts(int64_t num_tokens, int64_t num_adapters, Arena& arena);
// Both.
SortedTokens lay_out_tokens(int64_t num_tokens, int64_t num_adapters, int32_t row_tile, Arena& arena);

// One launch for at most 256 indices (and at most some 3800 adapters), otherwise three. indices: a number of [-1, num_adapters) for each token, or for
// as many consecutive tokens as tokens_each says, -1 for no adapter; any other number is a device-side assertion, as an index out of range is in PyTorch.
cudaError_t sort_tokens(const int64_t* indices, const SortedTokens& sorted, cudaStream_t stream,
                        int64_t tokens_each = 1);

}  // namespace adapterx::cuda
