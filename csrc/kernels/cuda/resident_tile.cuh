// The bottleneck adapter at the speed of memory, forward and backward, from compute capability 9.0 on. The same two
// products as in bottleneck_tile.cuh, computed transposed, so that the weights are the operands that stay:
//     middle^T = f(first weight @ tile^T),   output^T = base^T + scale * (second weight @ middle^T + bias).
//
// Grid: as many clusters as run at once; each walks over tiles of kTokens tokens. Block `rank` of a cluster owns the
//     columns [rank * slice, (rank + 1) * slice) of every tile, and the weights that belong to them.
// Block: kWarps warps.
//     First product: a warp owns 16 rows of the middle, a share of the slice's terms, a share of the tokens.
//     Second product: a warp owns slice / kWarps columns of the output, all tokens.
//     Copies: one of the last kCopyWarps warps moves kCopyRows rows of each tile, in and out.
// Thread: its part of both weights as mma A operands, for as long as the adapter does not change; accumulators.
// Shared memory: a ring of kStages tiles, which arrive by bulk copies, are overwritten by the output and leave by bulk
//     copies; partial sums and the middle of two tiles, in the order of mma fragments.
// Pipeline: first product of tile i + 1, second product of tile i, share of tile i + 1. So what the blocks of a cluster
//     send each other is on its way while they compute; barriers count the bytes, and no block waits for another one
//     at a barrier of the cluster. Two buffers suffice: who sends partial sums of tile i + 2 has the middle of tile i,
//     to which every block contributed after it had read the partial sums of tile i.
// Accumulation: fp32; sums over warps and blocks in a fixed order.
#pragma once

#include "resident_middle.cuh"
#include "sort_tokens.h"
#include "tile.cuh"

namespace adapterx::cuda {

template <typename Element_, int kBottleneck_, int kSlice_, bool kGrouped_>
struct ResidentConfig {
  using Element = Element_;
  static constexpr int kBottleneck = kBottleneck_;  // bottleneck_dim padded; the padding is zero
  static constexpr int kSlice = kSlice_;            // most columns of a block; those that it lacks are zero
  static constexpr bool kGrouped = kGrouped_;
  static constexpr int kTokens = 32;
  static constexpr int kWarps = 16;  // four on each quarter of an SM, each with 128 registers
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kCopyWarps = 8;  // the last ones: the first have the most of the middle to finish
  static constexpr int kCopyRows = kTokens / kCopyWarps;  // rows of a tile that such a warp copies
  // First product.
  static constexpr int kRowTiles = kBottleneck / 16;  // of the middle
  static constexpr int kTermGroups = kRowTiles == 8 ? 2 : 4;
  static constexpr int kTokenGroups = kWarps / (kRowTiles * kTermGroups);
  static constexpr int kSteps = kSlice / 16 / kTermGroups;        // mma steps of a warp
  static constexpr int kTokenTiles = kTokens / 8 / kTokenGroups;  // mma tiles of a warp's tokens
  static constexpr int kUnits = kTokens / 8 * kRowTiles;          // mma tiles of the middle
  // Second product: mma tiles of a warp's columns.
  static constexpr int kColumnTiles = kSlice / 16 / kWarps;
  static constexpr int kStride = kSlice + kRowPadding;  // of a tile in shared memory
  static constexpr int kStageElements = kTokens * kStride;
  static constexpr int kExchangeBytes = kUnits * 32 * (2 * 16 + 2 * 8 + (kTermGroups - 1) * 16);
  static constexpr int kBarrierBytes = 256;
  static constexpr int kBiasBytes = 4 * kSlice;
  static constexpr int kRoom = 227 * 1024 - kExchangeBytes - kBarrierBytes - kBiasBytes;
  static constexpr int kStages = kRoom / (2 * kStageElements) < 8 ? kRoom / (2 * kStageElements) : 8;
  static constexpr int64_t kSharedMemory = 2 * kStages * kStageElements + kExchangeBytes + kBarrierBytes + kBiasBytes;
  static_assert(kTokenTiles % 2 == 0 && kStages >= 4 && 8 * (2 * kStages + 4) + 16 <= kBarrierBytes);
};

template <typename Element>
struct ResidentArguments {
  Matrix<Element> tile;  // its rows are copied in bulk: 16-byte aligned, and columns a multiple of 8
  const Element* down_weight = nullptr;
  const Element* up_weight = nullptr;
  const Element* output_bias = nullptr;  // may be null
  Element* output = nullptr;             // contiguous; aligned as the tile
  bool add_base = false;
  float scale = 1.f;
  int bottleneck_dim = 0;
  bool down_pairs = false, up_pairs = false;  // the weight's rows are aligned for 4-byte access
  int slice = 0;                              // columns of a block; the last one may have fewer
  int cluster_size = 1;
  int unit_bits = 0;                    // log2 of the units that a block finishes
  int tiles = 0;                        // where there is one adapter
  const Segment* segments = nullptr;    // grouped: which sorted tokens a tile holds
  const int64_t* tokens = nullptr;      // grouped: the sorted tokens
  const int32_t* used_tiles = nullptr;  // grouped: how many tiles there are
};

// The tiles of one cluster. Tiles of one adapter are dealt out in turns, which keeps neighbours in flight together;
// grouped ones in runs, so that the weights change seldom.
struct TileRun {
  int first = 0, step = 1, count = 0;

  __device__ __forceinline__ int operator[](int i) const { return first + i * step; }
};

template <class Config>
__device__ __forceinline__ TileRun tile_run(const ResidentArguments<typename Config::Element>& arguments) {
  const int clusters = gridDim.x / arguments.cluster_size, cluster = blockIdx.x / arguments.cluster_size;
  if constexpr (!Config::kGrouped) {
    return {cluster, clusters, (arguments.tiles - cluster + clusters - 1) / clusters};
  } else {
    const int64_t used = *arguments.used_tiles;
    const int first = static_cast<int>(used * cluster / clusters);
    return {first, 1, static_cast<int>(used * (cluster + 1) / clusters) - first};
  }
}

// One tile: the token in each of its rows, and their adapter.
struct TileTokens : WindowRows {
  int adapter = 0;  // or kNoAdapter

  __device__ __forceinline__ int rows() const { return static_cast<int>(min(end - first, int64_t{1} << 16)); }
};

template <class Config>
__device__ __forceinline__ TileTokens tile_tokens(const ResidentArguments<typename Config::Element>& arguments,
                                                  int tile) {
  if constexpr (!Config::kGrouped) {
    return {{static_cast<int64_t>(tile) * Config::kTokens, arguments.tile.rows, nullptr}, 0};
  } else {
    const Segment segment = arguments.segments[tile];
    return {{segment.begin, segment.end, arguments.tokens}, segment.adapter};
  }
}

// This block's shared memory and its place in the cluster.
template <class Config>
struct ResidentBlock {
  using Element = typename Config::Element;
  Element* stages;             // kStages x kTokens x kStride
  float4* received;            // 2 x kUnits x 32: partial sums [source block][unit of this block][lane]
  uint2* middle;               // 2 x kUnits x 32: B operands of the second product
  float4* plane;               // kTermGroups - 1 x kUnits x 32: sums that the groups of terms give each other
  Element* zeros;              // 16 bytes
  float* bias;                 // of this block's columns; a warp reads what it has written itself
  uint64_t* full;              // of each stage: the tile has landed
  uint64_t* done;              // of each stage: the output may leave
  uint64_t* sums_in;           // of each buffer: all partial sums of this block's units have come
  uint64_t* middle_in;         // of each buffer: the whole middle has come
  int rank, column0, columns;  // columns of this block
  int unit_bits;               // log2 of the units that a block finishes

  __device__ __forceinline__ ResidentBlock(unsigned char* memory, const ResidentArguments<Element>& arguments) {
    stages = reinterpret_cast<Element*>(memory);
    received = reinterpret_cast<float4*>(stages + Config::kStages * Config::kStageElements);
    middle = reinterpret_cast<uint2*>(received + 2 * Config::kUnits * 32);
    full = reinterpret_cast<uint64_t*>(middle + 2 * Config::kUnits * 32);
    done = full + Config::kStages;
    sums_in = done + Config::kStages;
    middle_in = sums_in + 2;
    zeros = reinterpret_cast<Element*>(full + Config::kBarrierBytes / 8 - 2);
    bias = reinterpret_cast<float*>(full + Config::kBarrierBytes / 8);
    plane = reinterpret_cast<float4*>(bias + Config::kSlice);
    rank = static_cast<int>(cluster_rank());
    column0 = rank * arguments.slice;
    columns = min(arguments.tile.columns - column0, arguments.slice);
    unit_bits = arguments.unit_bits;
  }

  __device__ __forceinline__ int units() const { return 1 << unit_bits; }  // of this block

  __device__ __forceinline__ Element* stage(int index) const { return stages + index * Config::kStageElements; }

  // Sets the barriers up and clears the columns that no copy fills: the first product reads them.
  __device__ __forceinline__ void prepare(int tiles) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Config::kStages; ++i) {
        barrier_init(full + i, Config::kCopyWarps), barrier_init(done + i, Config::kWarps);
      }
      for (int i = 0; i < 2; ++i) {
        barrier_init(sums_in + i, 1), barrier_init(middle_in + i, 1);
        if (i < tiles) expect_sums(i), expect_middle(i);
      }
      *reinterpret_cast<uint4*>(zeros) = uint4{};
      barrier_init_fence();
    }
    const int padding = Config::kSlice - columns;
    for (int i = threadIdx.x; i < Config::kStages * Config::kTokens * (padding / 8); i += Config::kThreads) {
      Element* row = stages + i / (padding / 8) * Config::kStride + columns;
      *reinterpret_cast<uint4*>(row + i % (padding / 8) * 8) = uint4{};
    }
  }

  __device__ __forceinline__ void expect_sums(int buffer) const {
    barrier_expect(sums_in + buffer, Config::kUnits * 32 * sizeof(float4));
  }
  __device__ __forceinline__ void expect_middle(int buffer) const {
    barrier_expect(middle_in + buffer, Config::kUnits * 32 * sizeof(uint2));
  }
};

// The part of a stored weight that belongs to this block's columns.
template <typename Element>
struct WeightSlice {
  const Element* data;
  PairMatrix<Element> matrix;
  int rows;

  // The 8x8 block from (row, column) on: lane l holds (l / 4, 2 * (l % 4)) and the one right of it.
  template <bool kPairs>
  __device__ __forceinline__ uint32_t block(int row, int column, int lane) const {
    row += lane / 4, column += lane % 4 * 2;
    if constexpr (kPairs) {
      uint32_t pair = 0;  // a predicated load: the loads of all blocks are under way together
      const int offset = row * static_cast<int>(matrix.stride) + column;
      if (row < rows && column < matrix.columns) pair = *reinterpret_cast<const uint32_t*>(data + offset);
      return pair;
    } else {
      return matrix.load(data, row < rows ? row : -1, column);
    }
  }

  // The A operand of rows from `row` on and terms from `term` on; stored as [row][term], or as [term][row]: then each
  // block must be transposed afterwards.
  template <bool kTransposed, bool kPairs>
  __device__ __forceinline__ void load(uint32_t (&a)[4], int row, int term, int lane) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i % 2 * 8, t = term + i / 2 * 8;
      a[i] = kTransposed ? block<kPairs>(t, r, lane) : block<kPairs>(r, t, lane);
    }
  }
};

// Transposes every block of `kCount` operands, after all have been asked for.
template <int kCount>
__device__ __forceinline__ void transpose_blocks(uint32_t (&a)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) a[i / 4][i % 4] = movmatrix_trans(a[i / 4][i % 4]);
}

// A warp that computes: its place and its part of the weights.
template <class Config, bool kBackward>
struct ResidentWarp {
  using Element = typename Config::Element;
  const ResidentBlock<Config>& block;
  const ResidentArguments<Element>& arguments;
  int lane, warp, row_tile, term_group, token_group;
  uint32_t first[Config::kSteps][4];
  uint32_t second[Config::kColumnTiles][Config::kRowTiles][4];

  __device__ __forceinline__ ResidentWarp(const ResidentBlock<Config>& own_block,
                                          const ResidentArguments<Element>& own_arguments)
      : block(own_block), arguments(own_arguments) {
    lane = threadIdx.x % 32;
    warp = warp_number();
    row_tile = warp % Config::kRowTiles;
    term_group = warp / Config::kRowTiles % Config::kTermGroups;
    token_group = warp / (Config::kRowTiles * Config::kTermGroups);
  }

  // The weight with the columns of the tile along its rows (up_weight) or its columns (down_weight).
  template <bool kUp>
  __device__ __forceinline__ WeightSlice<Element> weight(int adapter) const {
    const int m = arguments.bottleneck_dim, d = arguments.tile.columns;
    const int64_t offset = static_cast<int64_t>(adapter) * m * d + static_cast<int64_t>(block.column0) * (kUp ? m : 1);
    const Element* data = (kUp ? arguments.up_weight : arguments.down_weight) + offset;
    if (kUp) return {data, {m, m, arguments.up_pairs}, block.columns};
    return {data, {d, block.columns, arguments.down_pairs}, m};
  }

  // Both loads are rare; with lane_number() their addresses take no registers from the loop over the tiles.
  __device__ __forceinline__ void load_first(int adapter) {
    const int own_lane = lane_number();
    const auto slice = weight<kBackward>(adapter);
    const auto load = [&](auto pairs) {
#pragma unroll
      for (int step = 0; step < Config::kSteps; ++step) {
        slice.template load<kBackward, decltype(pairs)::value>(first[step], row_tile * 16,
                                                               (term_group * Config::kSteps + step) * 16, own_lane);
      }
    };
    slice.matrix.pairs ? load(std::true_type()) : load(std::false_type());
    if constexpr (kBackward) transpose_blocks(first);
  }

  __device__ __forceinline__ void load_second(int adapter) {
    const int own_lane = lane_number();
    const auto slice = weight<!kBackward>(adapter);
    const int64_t row = static_cast<int64_t>(adapter) * arguments.tile.columns + block.column0;
    const auto load = [&](auto pairs) {
#pragma unroll
      for (int i = 0; i < Config::kColumnTiles * Config::kRowTiles; ++i) {
        const int c = i / Config::kRowTiles, r = i % Config::kRowTiles;
        slice.template load<kBackward, decltype(pairs)::value>(second[c][r], first_column() + c * 16, r * 16, own_lane);
      }
    };
    slice.matrix.pairs ? load(std::true_type()) : load(std::false_type());
#pragma unroll
    for (int c = 0; c < Config::kColumnTiles; ++c) {
      if constexpr (kBackward) transpose_blocks(second[c]);
    }
    for (int i = first_column() + own_lane; i < first_column() + Config::kColumnTiles * 16; i += 32) {
      const bool wanted = arguments.output_bias != nullptr && i < block.columns;
      block.bias[i] = wanted ? to_compute(arguments.output_bias[row + i]) : 0.f;
    }
    __syncwarp();
  }

  // Asks the L2 cache for an adapter's weights; the work of the warps that copy.
  __device__ __forceinline__ void prefetch_weights(int adapter) const {
    constexpr int kLine = 128 / sizeof(Element), kStep = 32 * Config::kCopyWarps;
    const auto up = weight<true>(adapter), down = weight<false>(adapter);
    const int thread = (warp - (Config::kWarps - Config::kCopyWarps)) * 32 + lane;
    for (int i = thread * kLine; i < up.rows * up.matrix.columns; i += kStep * kLine) prefetch_far(up.data + i);
    const int lines = (down.matrix.columns + kLine - 1) / kLine;
    for (int i = thread; i < down.rows * lines; i += kStep) {
      prefetch_far(down.data + i / lines * down.matrix.stride + i % lines * kLine);
    }
  }

  // The first of this warp's columns of the output, counted in the slice.
  __device__ __forceinline__ int first_column() const { return warp * Config::kColumnTiles * 16; }

  __device__ __forceinline__ bool copies() const { return warp >= Config::kWarps - Config::kCopyWarps; }

  // The first of this warp's rows of each tile, where it copies.
  __device__ __forceinline__ int first_row() const {
    return (warp - (Config::kWarps - Config::kCopyWarps)) * Config::kCopyRows;
  }

  // Copies this warp's rows of a tile to a stage.
  __device__ __forceinline__ void copy_in(const TileTokens& tokens, int stage) const {
    if (!copies() || lane != 0) return;
    const unsigned bytes = block.columns * 2;
    barrier_expect(block.full + stage, min(max(tokens.rows() - first_row(), 0), Config::kCopyRows) * bytes);
    Element* target = block.stage(stage) + first_row() * Config::kStride;
#pragma unroll
    for (int i = 0; i < Config::kCopyRows; ++i) {
      const int64_t token = tokens(first_row() + i);
      if (token < 0) break;
      bulk_load(target + i * Config::kStride, arguments.tile.data + token * arguments.tile.stride + block.column0,
                bytes, block.full + stage);
    }
  }

  // Copies this warp's rows of the finished tile in a stage to the output.
  __device__ __forceinline__ void copy_out(const TileTokens& tokens, int stage) const {
    if (lane != 0) return;
    const Element* source = block.stage(stage) + first_row() * Config::kStride;
#pragma unroll
    for (int i = 0; i < Config::kCopyRows; ++i) {
      const int64_t token = tokens(first_row() + i);
      if (token < 0) break;
      bulk_store(arguments.output + token * arguments.tile.columns + block.column0, source + i * Config::kStride,
                 block.columns * 2);
    }
    bulk_commit();
  }

  // The unit (mma tile of the middle) of this warp's rows and token tile `n`.
  __device__ __forceinline__ int unit(int n) const {
    return (token_group * Config::kTokenTiles + n) * Config::kRowTiles + row_tile;
  }

  // Sends the partial sums of a unit to the block that finishes it.
  __device__ __forceinline__ void send(int number, const float (&sums)[4], int buffer) const {
    const int owner = number >> block.unit_bits, own = number & (block.units() - 1);
    float4* place = block.received + (buffer * Config::kUnits + (block.rank << block.unit_bits) + own) * 32 + lane;
    store_remote(place, owner, make_float4(sums[0], sums[1], sums[2], sums[3]), block.sums_in + buffer);
  }

  // Which group of terms adds up the sums of token tile `n`, kTilesEach neighbours each.
  static constexpr int kTilesEach =
      Config::kTokenTiles > Config::kTermGroups ? Config::kTokenTiles / Config::kTermGroups : 1;
  static __device__ __forceinline__ constexpr int owner_group(int n) { return n / kTilesEach; }

  // Sum k of the `i`-th token tile that this warp's group adds up. By masks: where the compiler may choose between
  // places, it puts the sums into local memory.
  __device__ __forceinline__ float own_sum(const float (&sums)[Config::kTokenTiles][4], int i, int k) const {
    uint32_t bits = 0;
#pragma unroll
    for (int n = 0; n < Config::kTokenTiles; ++n) {
      const float sum = sums[n][k];
      const uint32_t mask = n % kTilesEach == i && owner_group(n) == term_group ? ~0u : 0u;
      bits |= *reinterpret_cast<const uint32_t*>(&sum) & mask;
    }
    return *reinterpret_cast<const float*>(&bits);
  }

  // First product of the tile in `stage`. For each token tile one of the groups of terms adds up the sums of all, and
  // sends them to the block that finishes them.
  // `planes_free` returns when nobody reads the planes of the tile before.
  template <class Wait>
  __device__ __forceinline__ void multiply_first(const Element* stage, int buffer, const Wait& planes_free) const {
    float sums[Config::kTokenTiles][4] = {};
    const Element* tile =
        stage + token_group * Config::kTokenTiles * 8 * Config::kStride + term_group * Config::kSteps * 16;
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
#pragma unroll
      for (int n = 0; n < Config::kTokenTiles; n += 2) {
        uint32_t b[4];
        load_b<false>(b, tile + n * 8 * Config::kStride + step * 16, Config::kStride, lane);
        mma<Element>(sums[n], first[step], b[0], b[1]);
        mma<Element>(sums[n + 1], first[step], b[2], b[3]);
      }
    }
    planes_free();
#pragma unroll
    for (int n = 0; n < Config::kTokenTiles; ++n) {
      const int owner = owner_group(n);
      if (owner == term_group) continue;
      const int plane = term_group - (term_group > owner);  // the owner itself needs none
      block.plane[(plane * Config::kUnits + unit(n)) * 32 + lane] =
          make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
    }
    // The warps of these rows and tokens.
    block_barrier(1 + token_group * Config::kRowTiles + row_tile, 32 * Config::kTermGroups);
    if (owner_group(Config::kTokenTiles - 1) < term_group) return;  // more groups than token tiles
#pragma unroll
    for (int i = 0; i < kTilesEach; ++i) {
      float total[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) total[k] = own_sum(sums, i, k);
      const int number = unit(term_group * kTilesEach + i);
#pragma unroll
      for (int plane = 0; plane < Config::kTermGroups - 1; ++plane) {
        const float4 part = block.plane[(plane * Config::kUnits + number) * 32 + lane];
        total[0] += part.x, total[1] += part.y, total[2] += part.z, total[3] += part.w;
      }
      send(number, total, buffer);
    }
  }

  // Where the values of half unit `own` of this block belong.
  __device__ __forceinline__ MiddlePlace middle_place(const TileTokens& tokens, int own) const {
    const int number = (block.rank << block.unit_bits) + own / 2;
    const int row = number % Config::kRowTiles * 16 + own % 2 * 8;
    return {tokens(number / Config::kRowTiles * 8 + lane / 4), row + lane % 4 * 2, row + lane / 4, tokens.adapter};
  }

  // Asks for what this warp's share of the middle will need from memory.
  template <class Middle>
  __device__ __forceinline__ void prefetch_middle(const Middle& middle, const TileTokens& tokens) const {
    for (int own = warp; own < 2 * block.units(); own += Config::kWarps) middle.prefetch(middle_place(tokens, own));
  }

  // Finishes this block's units of the middle and gives every block of the cluster the result. A warp takes half a unit:
  // two values a lane.
  template <class Middle>
  __device__ __forceinline__ void finish_middle(const Middle& middle, const TileTokens& tokens, int buffer,
                                                unsigned parity, bool expect) const {
    for (int own = warp; own < 2 * block.units(); own += Config::kWarps) {
      const MiddlePlace place = middle_place(tokens, own);
      const auto ahead = middle.ask(place);
      barrier_wait_cluster(block.sums_in + buffer, parity);
      if (own == 0 && expect && lane == 0) block.expect_sums(buffer);
      const float4* from = block.received + (buffer * Config::kUnits + own / 2) * 32 + lane;
      float values[2] = {};
#pragma unroll 8
      for (int source = 0; source < arguments.cluster_size; ++source) {
        const float2 part = reinterpret_cast<const float2*>(from + (source << block.unit_bits) * 32)[own % 2];
        values[0] += part.x, values[1] += part.y;
      }
      const uint32_t pair = middle(ahead, values, place);
      const int number = (block.rank << block.unit_bits) + own / 2;
      auto* to = reinterpret_cast<uint32_t*>(block.middle + (buffer * Config::kUnits + number) * 32 + lane) + own % 2;
      for (int target = 0; target < arguments.cluster_size; ++target) {
        store_remote(to, target, pair, block.middle_in + buffer);
      }
    }
  }

  // Second product of the tile in `stage`, 16 tokens at a time, written over the tile.
  __device__ __forceinline__ void multiply_second(Element* stage, int buffer) const {
#pragma unroll
    for (int t = 0; t < Config::kTokens; t += 16) {
      const uint2* from = block.middle + (buffer * Config::kUnits + t / 8 * Config::kRowTiles) * 32 + lane;
      float product[Config::kColumnTiles][2][4];
#pragma unroll
      for (int i = 0; i < Config::kColumnTiles * 2; ++i) {
        const float bias = block.bias[first_column() + i * 8 + lane / 4];
#pragma unroll
        for (int j = 0; j < 4; ++j) product[i / 2][j / 2][i % 2 * 2 + j % 2] = bias;
      }
#pragma unroll
      for (int r = 0; r < Config::kRowTiles; ++r) {
        const uint2 b0 = from[r * 32], b1 = from[(Config::kRowTiles + r) * 32];
#pragma unroll
        for (int c = 0; c < Config::kColumnTiles; ++c) {
          mma<Element>(product[c][0], second[c][r], b0.x, b0.y);
          mma<Element>(product[c][1], second[c][r], b1.x, b1.y);
        }
      }
#pragma unroll
      for (int c = 0; c < Config::kColumnTiles; ++c) {
        finish_output(stage + t * Config::kStride + first_column() + c * 16, product[c]);
      }
    }
    if (first_column() + Config::kColumnTiles * 16 > block.columns) {  // columns that do not exist stay zero
      __syncwarp();
      clear(stage, max(first_column(), block.columns));
    }
  }

  // output = base + scale * product for 16 tokens and 16 columns.
  __device__ __forceinline__ void finish_output(Element* tile, const float (&product)[2][4]) const {
    Element* place = tile + columns_first(Config::kStride, lane);
    uint32_t values[4];
    ldmatrix_x4_trans(values, arguments.add_base ? place : block.zeros);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto base = *reinterpret_cast<const Vector<Element, 2>*>(&values[i]);
      const float* own = product[i / 2] + i % 2 * 2;
      values[i] = pack<Element>(to_compute(base.values[0]) + arguments.scale * own[0],
                                to_compute(base.values[1]) + arguments.scale * own[1]);
    }
    stmatrix_x4_trans(place, values);
  }

  // Zeroes this warp's columns from `column` on.
  __device__ __forceinline__ void clear(Element* stage, int column) const {
    const int units = (first_column() + Config::kColumnTiles * 16 - column) / 8;
    for (int i = lane; i < Config::kTokens * units; i += 32) {
      *reinterpret_cast<uint4*>(stage + i % Config::kTokens * Config::kStride + column + i / Config::kTokens * 8) =
          uint4{};
    }
  }
};

template <class Config, class Middle>
__device__ __forceinline__ void run_tiles(const ResidentBlock<Config>& block,
                                          const ResidentArguments<typename Config::Element>& arguments,
                                          const Middle& middle, const TileRun& run) {
  using Element = typename Config::Element;
  constexpr int kStages = Config::kStages;
  ResidentWarp<Config, Middle::kBackward> warp(block, arguments);
  for (int i = 0; i < kStages && i < run.count; ++i) warp.copy_in(tile_tokens<Config>(arguments, run[i]), i);
  int first_adapter = kUnusedSegment, second_adapter = kUnusedSegment;
  int stage = 0, stage_before = 0, stage_last = 0;  // of tiles i, i - 1 and i - 2
  unsigned parity = 0, parity_before = 0, parity_last = 0;
  for (int i = 0; i <= run.count; ++i) {
    const int buffer = i % 2;
    if (i < run.count) {
      const TileTokens tokens = tile_tokens<Config>(arguments, run[i]);
      if constexpr (Middle::kBackward) warp.prefetch_middle(middle, tokens);
      if (tokens.adapter >= 0 && tokens.adapter != first_adapter) warp.load_first(first_adapter = tokens.adapter);
      if (!Config::kGrouped && i == 0) warp.load_second(second_adapter = 0);
      if (i == 0) cluster_wait();  // the barriers of the other blocks are there
      barrier_wait(block.full + stage, parity);
      // Who has arrived at `done` of tile i - 2 has read the planes of tile i - 1.
      warp.multiply_first(block.stage(stage), buffer, [&] {
        if (i >= 2) barrier_wait(block.done + stage_last, parity_last);
      });
      if (i == 0) __syncthreads();
    }
    if constexpr (Config::kGrouped) {
      const int later = i + 3;
      if (warp.copies() && later < run.count) {
        const int adapter = tile_tokens<Config>(arguments, run[later]).adapter;
        const int last = tile_tokens<Config>(arguments, run[later - 1]).adapter;
        if (adapter >= 0 && adapter != last) warp.prefetch_weights(adapter);
      }
    }
    if (i >= 2 && i - 2 + kStages < run.count && warp.copies()) {
      bulk_wait_read<0>();
      warp.copy_in(tile_tokens<Config>(arguments, run[i - 2 + kStages]), stage_last);
    }
    if (i >= 1) {
      const int adapter = Config::kGrouped ? tile_tokens<Config>(arguments, run[i - 1]).adapter : 0;
      if (Config::kGrouped && adapter >= 0 && adapter != second_adapter) warp.load_second(second_adapter = adapter);
      barrier_wait_cluster(block.middle_in + (buffer ^ 1), (i - 1) / 2 % 2);
      if (threadIdx.x == 0 && i + 1 < run.count) block.expect_middle(buffer ^ 1);
      Element* finished = block.stage(stage_before);
      if (adapter >= 0) {
        warp.multiply_second(finished, buffer ^ 1);
      } else if (!arguments.add_base) {  // else the output is the base, which is there
        warp.clear(finished, warp.first_column());
      }
      async_proxy_fence();  // the copies read what this thread has written
      __syncwarp();
      if (warp.lane == 0) barrier_arrive(block.done + stage_before);
    }
    if (i < run.count) {
      warp.finish_middle(middle, tile_tokens<Config>(arguments, run[i]), buffer, i / 2 % 2, i + 2 < run.count);
    }
    if (i >= 1 && warp.copies()) {
      barrier_wait(block.done + stage_before, parity_before);
      warp.copy_out(tile_tokens<Config>(arguments, run[i - 1]), stage_before);
    }
    stage_last = stage_before, stage_before = stage;
    parity_last = parity_before, parity_before = parity;
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  bulk_wait<0>();
}

template <class Config, class Middle>
__device__ __forceinline__ void run_resident(const ResidentArguments<typename Config::Element>& arguments,
                                             const Middle& middle) {
  ADAPTERX_SHARED_MEMORY(memory);
  const ResidentBlock<Config> block(memory, arguments);
  const TileRun run = tile_run<Config>(arguments);
  block.prepare(run.count);
  if constexpr (Middle::kBackward) dependents_launch();  // the weight gradients may prepare themselves on idle SMs
  cluster_arrive();
  __syncthreads();
  if (run.count > 0) {
    run_tiles(block, arguments, middle, run);
  } else {
    cluster_wait();
  }
  cluster_arrive_relaxed();  // a block stays until no other one stores to it
  cluster_wait();
}

template <class Config, class Middle>
__global__ void __launch_bounds__(Config::kThreads, 1)
    resident_tile_kernel(const ResidentArguments<typename Config::Element> arguments, const Middle middle) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  __trap();  // no clusters and no bulk copies here: tile_refusal() keeps callers away
#else
  run_resident<Config>(arguments, middle);
#endif
}

}  // namespace adapterx::cuda
