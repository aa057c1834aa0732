// Both weight gradients and both bias gradients at the speed of memory, for rows that begin and end at multiples of 16
// bytes, from compute capability 9.0 on. Both products are computed as columns of the wide matrix times the narrow one:
//     up_weight (hidden_size x m) = scaling * grad_output^T @ activated,
//     down_weight^T (hidden_size x m) = hidden_states^T @ grad_pre_activation,   the bias gradients beside them.
//
// Work: an item is a window of kColumns columns of one product, and a range of tokens. One adapter: a cluster is a
//     window and neighbouring ranges, one for each of its blocks. Sorted tokens: one wave of blocks without clusters walks over all items.
// Block: kWarps warps that multiply, each kWarpColumns columns times all of m, and kCopyWarps that copy.
// Shared memory: a ring of kStages stages of kTokens tokens, which bulk copies fill; barriers say which stage is full
//     and which is empty. The copying warps run ahead, into the next item too. Rows are padded for ldmatrix.
// Accumulation: fp32, in order of tokens. The blocks of a cluster exchange their accumulators through distributed shared
//     memory, each sums its share in rank order and stores it. There are partial sums in memory, for reduce_partial_sums
//     to add, only where several clusters share a window, and of an adapter with several ranges of sorted tokens.
#pragma once

#include "weight_gradient.cuh"

namespace adapterx::cuda {

// On compute capability 10.0 the registers of a wider one do not suffice.
inline constexpr int kMaxStreamedBottleneck100 = 64;

struct GradientItem {
  int number = 0;
  bool up = false;
  int window = 0;     // of the product's columns
  int64_t first = 0;  // token, or place in the sorted order
  int tokens = 0;
  int range = 0;  // of sorted tokens; else the set of partial sums
};

template <typename Element_, int kBottleneck_>
struct StreamConfig {
  using Element = Element_;
  static constexpr int kBottleneck = kBottleneck_;
  static constexpr int kWarps = 8;
  static constexpr int kComputeThreads = 32 * kWarps;
  static constexpr int kCopyWarps = 4;  // no more warps share a scheduler than with one
  static constexpr int kThreads = kComputeThreads + 32 * kCopyWarps;
  static constexpr int kWarpColumns = 32;
  static constexpr int kColumns = kWarps * kWarpColumns;
  static constexpr int kTokens = 32;
  static constexpr int kCopyTokens = kTokens / kCopyWarps;
  static constexpr int kWideStride = kColumns + kRowPadding;
  static constexpr int kNarrowStride = kBottleneck + kRowPadding;  // narrow_pitch()
  static constexpr int kStageElements = kTokens * (kWideStride + kNarrowStride);
  static constexpr int kStages = 208 * 1024 / (2 * kStageElements);
  static constexpr int kRingBytes = 2 * kStages * kStageElements;
  static constexpr int kBarrierBytes = 2 * kStages * 8;
  static constexpr int64_t kSharedMemory = round_up(kRingBytes + kBarrierBytes + kWarps * sizeof(GradientItem), 16);
  static constexpr int kPairs = kBottleneck / 8;  // of accumulators of the weight that are stored together
  static_assert(int64_t{2 * kPairs + 2} * 16 * kComputeThreads <= kRingBytes);  // the exchange
};

// The ring as one warp sees it: it goes through the stages in order, again and again.
template <class Config>
struct StageRing {
  using Element = typename Config::Element;
  unsigned char* memory;
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ explicit StageRing(unsigned char* memory) : memory(memory) {}
  __device__ __forceinline__ uint64_t* barriers() const {
    return reinterpret_cast<uint64_t*>(memory + Config::kRingBytes);
  }
  // Where a warp that multiplies notes its item, which it would else hold in registers meanwhile.
  __device__ __forceinline__ GradientItem* note(int warp) const {
    return reinterpret_cast<GradientItem*>(memory + Config::kRingBytes + Config::kBarrierBytes) + warp;
  }
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < Config::kStages; ++i) {
      barrier_init(barriers() + i, Config::kCopyWarps);
      barrier_init(barriers() + Config::kStages + i, Config::kWarps);
    }
    barrier_init_fence();
  }
  __device__ __forceinline__ uint64_t* full() const { return barriers() + stage; }
  __device__ __forceinline__ uint64_t* empty() const { return barriers() + Config::kStages + stage; }
  __device__ __forceinline__ Element* wide() const {
    return reinterpret_cast<Element*>(memory) + stage * Config::kStageElements;
  }
  __device__ __forceinline__ Element* narrow() const { return wide() + Config::kTokens * Config::kWideStride; }
  __device__ __forceinline__ void advance() {
    if (++stage < Config::kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <typename Element>
__device__ __forceinline__ int count_items(const WeightGradientArguments<Element>& arguments) {
  const int windows = arguments.up_windows + arguments.down_windows;
  return windows * (arguments.segments == nullptr ? arguments.sets : arguments.first_range[arguments.num_adapters]);
}

// Which range of its cluster's tokens a block has. A cluster has a power of two of blocks.
template <typename Element>
__device__ __forceinline__ int block_rank(const WeightGradientArguments<Element>& arguments) {
  return static_cast<int>(blockIdx.x) & (arguments.ranges - 1);
}

// Items that run side by side are windows of the same tokens.
template <typename Element>
__device__ __forceinline__ GradientItem find_item(const WeightGradientArguments<Element>& arguments, int number) {
  const int windows = arguments.up_windows + arguments.down_windows;
  GradientItem item;
  item.number = number;
  item.window = number % windows;
  item.up = item.window < arguments.up_windows;
  if (!item.up) item.window -= arguments.up_windows;
  item.range = number / windows;
  if (arguments.segments != nullptr) {
    const Segment segment = arguments.segments[item.range];
    item.first = segment.begin;
    item.tokens = segment.end - segment.begin;
  } else {
    item.first = (static_cast<int64_t>(item.range) * arguments.ranges + block_rank(arguments)) * arguments.range_tokens;
    const int64_t left = arguments.activated.rows - item.first;
    item.tokens = static_cast<int>(max(int64_t{0}, min(left, arguments.range_tokens)));
  }
  return item;
}

// The items of a block are `first_item` and each gridDim.x behind it; in a cluster, that one.
template <typename Element>
__device__ __forceinline__ int first_item(const WeightGradientArguments<Element>& arguments) {
  return static_cast<int>(blockIdx.x) / arguments.ranges;
}

// ---- the copying warps ---------------------------------------------------------------------------------------------

// Zeroes the rows [first, end) of a stage.
template <class Config>
__device__ __forceinline__ void clear_rows(const StageRing<Config>& ring, int first, int end, int lane) {
  const auto clear = [&](typename Config::Element* target, int stride, int columns) {
    for (int row = first; row < end; ++row) {
      for (int column = lane * 8; column < columns; column += 32 * 8) {
        *reinterpret_cast<uint4*>(target + row * stride + column) = uint4{};
      }
    }
  };
  clear(ring.wide(), Config::kWideStride, Config::kColumns);
  clear(ring.narrow(), Config::kNarrowStride, Config::kBottleneck);
  async_proxy_fence();  // the next copy to these rows comes after the zeros
  __syncwarp();
}

// Warp `warp` of those that copy brings kCopyTokens tokens of each stage: lane i the wide row of token i, lane
// kCopyTokens + i the narrow one. One copy is one instruction of one lane, but a warp's lanes issue one by one: so there
// are several warps, and rows of neighbouring tokens that lie in memory as in the stage come in one copy.
template <class Config>
__device__ __forceinline__ void copy_item(StageRing<Config>& ring,
                                          const WeightGradientArguments<typename Config::Element>& arguments,
                                          const GradientItem& item, int warp, int lane) {
  using Element = typename Config::Element;
  constexpr int kCopyTokens = Config::kCopyTokens;
  const Matrix<Element>& wide = item.up ? arguments.grad_output : arguments.hidden_states;
  const Matrix<Element>& narrow = item.up ? arguments.activated : arguments.grad_pre_activation;
  const int column0 = item.window * Config::kColumns, columns = min(wide.columns - column0, Config::kColumns);
  const bool together = arguments.tokens == nullptr && narrow.stride == Config::kNarrowStride;
  const int narrow_columns = together ? Config::kNarrowStride : (narrow.columns + 7) / 8 * 8;
  const unsigned wide_bytes = max(columns, 0) * static_cast<unsigned>(sizeof(Element));
  const unsigned narrow_bytes = narrow_columns * static_cast<unsigned>(sizeof(Element));

  const bool copies_wide = lane < kCopyTokens;
  const int own = warp * kCopyTokens + lane % kCopyTokens;  // token of a stage
  const Element* from = copies_wide ? wide.data + column0 : narrow.data;
  const int64_t stride = copies_wide ? wide.stride : narrow.stride;
  const int to =
      copies_wide ? own * Config::kWideStride : Config::kTokens * Config::kWideStride + own * Config::kNarrowStride;
  const bool copies = copies_wide ? wide_bytes > 0 : lane < 2 * kCopyTokens && (!together || lane == kCopyTokens);
  const auto find_row = [&](int token) -> int64_t {
    if (token >= item.tokens) return 0;
    return arguments.tokens == nullptr ? item.first + token : arguments.tokens[item.first + token];
  };
  int64_t row = find_row(own);
  for (int first = 0; first < item.tokens; first += Config::kTokens) {
    const int rows = min(Config::kTokens, item.tokens - first);  // of the stage
    const int mine = min(max(rows - warp * kCopyTokens, 0), kCopyTokens);
    barrier_wait(ring.empty(), ring.parity ^ 1);
    if (rows % 16 != 0) {
      const int begin = warp * kCopyTokens;
      clear_rows(ring, begin + mine, min(begin + kCopyTokens, (rows + 15) / 16 * 16), lane);
    }
    if (lane == 0) barrier_expect(ring.full(), mine * (wide_bytes + narrow_bytes));
    __syncwarp();
    if (copies && own < rows) {
      const unsigned bytes = copies_wide ? wide_bytes : together ? mine * narrow_bytes : narrow_bytes;
      bulk_load(ring.wide() + to, from + row * stride, bytes, ring.full());
    }
    row = find_row(first + Config::kTokens + own);  // on its way while the next stage becomes empty
    ring.advance();
  }
}

// ---- the multiplying warps -----------------------------------------------------------------------------------------

// A warp's sums, as mma accumulators: kWarpColumns columns of the wide matrix times m, and a share of one bias gradient.
// Of the up bias two accumulators for the warp's columns, of which column 0 counts. Of the down bias, in the first
// window, two for columns 16 * warp to 16 * warp + 15 of the narrow matrix, of which row 0 counts. They share none: a sum
// that is no number would spread.
template <class Config>
struct GradientSums {
  static constexpr int kRowTiles = Config::kWarpColumns / 16, kColumnTiles = Config::kBottleneck / 8;
  float weight[kRowTiles][kColumnTiles][4];
  float bias[2][4];

  // Calls visit(first, second, number) for each pair of accumulators of the weight that are stored together.
  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        visit(weight[i][n], weight[i][n + 1], i * (kColumnTiles / 2) + n / 2);
      }
    }
  }

  __device__ __forceinline__ void clear() {
    visit([](float (&first)[4], float (&second)[4], int) {
#pragma unroll
      for (int k = 0; k < 4; ++k) first[k] = second[k] = 0.f;
    });
#pragma unroll
    for (int k = 0; k < 4; ++k) bias[0][k] = bias[1][k] = 0.f;
  }
};

// 16 tokens. `bias_column`: the first of the 16 columns of the narrow matrix that this warp sums for the down
// bias; -1: none.
template <class Config, bool kUp>
__device__ __forceinline__ void multiply_tokens(GradientSums<Config>& sums, const typename Config::Element* wide,
                                                const typename Config::Element* narrow, int bias_column, int lane) {
  using Element = typename Config::Element;
  constexpr int kRowTiles = GradientSums<Config>::kRowTiles;
  static_assert(kRowTiles == 2);
  const uint32_t ones = ones_column<Element>(lane);
  uint32_t a[kRowTiles][4], b[4];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    load_a<true>(a[i], wide + i * 16, Config::kWideStride, lane);
    if constexpr (kUp) mma<Element>(sums.bias[i], a[i], ones, ones);
  }
#pragma unroll
  for (int n = 0; n < Config::kBottleneck; n += 16) {
    load_b<true>(b, narrow + n, Config::kNarrowStride, lane);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      mma<Element>(sums.weight[i][n / 8], a[i], b[0], b[1]);
      mma<Element>(sums.weight[i][n / 8 + 1], a[i], b[2], b[3]);
    }
  }
  if constexpr (!kUp) {
    if (bias_column < 0) return;
    const uint32_t ones_row[4] = {ones, 0, ones, 0};
    load_b<true>(b, narrow + bias_column, Config::kNarrowStride, lane);
    mma<Element>(sums.bias[0], ones_row, b[0], b[1]);
    mma<Element>(sums.bias[1], ones_row, b[2], b[3]);
  }
}

template <class Config, bool kUp>
__device__ __forceinline__ void multiply_item(GradientSums<Config>& sums, StageRing<Config>& ring,
                                              const GradientItem& item, int warp, int lane) {
  const int bias_column = item.window == 0 && warp * 16 < Config::kBottleneck ? warp * 16 : -1;
  for (int left = item.tokens; left > 0; left -= Config::kTokens) {
    barrier_wait(ring.full(), ring.parity);
    const auto* wide = ring.wide() + warp * Config::kWarpColumns;
    const auto* narrow = ring.narrow();
    static_assert(Config::kTokens == 32);
    multiply_tokens<Config, kUp>(sums, wide, narrow, bias_column, lane);
    if (left > 16) {
      multiply_tokens<Config, kUp>(sums, wide + 16 * Config::kWideStride, narrow + 16 * Config::kNarrowStride,
                                   bias_column, lane);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.empty());
    ring.advance();
  }
}

// All warps that multiply, of all blocks of the cluster. Leaves in `sums` the totals over the blocks of the pairs that
// this block owns, pair % blocks == rank; the bias counts as the last pair. The stages are free: who comes here has seen
// all of them full.
template <class Config>
__device__ __forceinline__ void sum_blocks(GradientSums<Config>& sums, unsigned char* memory, int rank, int blocks) {
  constexpr int kStep = Config::kComputeThreads;
  auto* mine = reinterpret_cast<float4*>(memory) + threadIdx.x;
  const auto put = [&](int place, const float (&from)[4]) {
    mine[place * kStep] = float4{from[0], from[1], from[2], from[3]};
  };
  block_barrier(1, Config::kComputeThreads);
  sums.visit([&](float (&first)[4], float (&second)[4], int pair) {
    put(2 * pair, first);
    put(2 * pair + 1, second);
  });
  put(2 * Config::kPairs, sums.bias[0]);
  put(2 * Config::kPairs + 1, sums.bias[1]);
  cluster_sync();
  sums.clear();
  for (int source = 0; source < blocks; ++source) {
    const float4* theirs = cluster_map(mine, static_cast<unsigned>(source));
    const auto add = [&](float (&to)[4], int place) {
      const float4 part = theirs[place * kStep];
      to[0] += part.x, to[1] += part.y, to[2] += part.z, to[3] += part.w;
    };
    sums.visit([&](float (&first)[4], float (&second)[4], int pair) {
      if ((pair & (blocks - 1)) != rank) return;
      add(first, 2 * pair);
      add(second, 2 * pair + 1);
    });
    if ((Config::kPairs & (blocks - 1)) != rank) continue;
    add(sums.bias[0], 2 * Config::kPairs);
    add(sums.bias[1], 2 * Config::kPairs + 1);
  }
}

// Stores the pairs that block `rank` of `blocks`, a power of two, owns.
template <class Config, bool kUp>
__device__ __forceinline__ void store_item(GradientSums<Config>& sums,
                                           const GradientMatrix<typename Config::Element>& gradient,
                                           const GradientTarget& target, const GradientItem& item, int rank, int blocks,
                                           int warp, int lane) {
  constexpr int kRowPairs = Config::kBottleneck / 16;
  const int column0 = item.window * Config::kColumns + warp * Config::kWarpColumns;
  sums.visit([&](float (&first)[4], float (&second)[4], int pair) {
    if ((pair & (blocks - 1)) != rank) return;
    const int column = column0 + pair / kRowPairs * 16, narrow = pair % kRowPairs * 16;
    if constexpr (kUp) {
      store_sums<false>(gradient, target, column, narrow, first, second, lane);
    } else {
      store_sums<true>(gradient, target, narrow, column, first, second, lane);
    }
  });
  if ((Config::kPairs & (blocks - 1)) != rank) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (kUp) {
      store_first_column(gradient, target, column0 + i * 16, sums.bias[i], lane);
    } else if (item.window == 0 && warp * 16 < Config::kBottleneck && lane < 4) {
      store_bias(gradient, target, warp * 16 + i * 8 + lane * 2, sums.bias[i][0]);
      store_bias(gradient, target, warp * 16 + i * 8 + lane * 2 + 1, sums.bias[i][1]);
    }
  }
}

template <class Config, bool kUp>
__device__ __forceinline__ void run_item(StageRing<Config>& ring,
                                         const WeightGradientArguments<typename Config::Element>& arguments,
                                         const GradientItem& start) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  GradientSums<Config> sums;
  sums.clear();
  multiply_item<Config, kUp>(sums, ring, start, warp, lane);
  const int blocks = arguments.ranges, rank = block_rank(arguments);
  if (blocks > 1) sum_blocks(sums, ring.memory, rank, blocks);
  const GradientItem item = *ring.note(warp);
  GradientTarget target;
  if (arguments.segments != nullptr) {
    target = sorted_target(arguments, item.range, arguments.segments[item.range]);
  } else if (arguments.partial != nullptr) {
    target = {0, arguments.partial + item.range * arguments.partial_size};
  }
  store_item<Config, kUp>(sums, kUp ? arguments.up : arguments.down, target, item, rank, blocks, warp, lane);
}

template <class Config>
__device__ __forceinline__ void multiply_items(StageRing<Config>& ring,
                                               const WeightGradientArguments<typename Config::Element>& arguments) {
  GradientItem* note = ring.note(threadIdx.x / 32);
  for (int i = first_item(arguments); i < count_items(arguments); i = note->number + static_cast<int>(gridDim.x)) {
    const GradientItem item = find_item(arguments, i);
    __syncwarp();  // all lanes have read the last note
    if (threadIdx.x % 32 == 0) *note = item;
    __syncwarp();
    if (item.up) {
      run_item<Config, true>(ring, arguments, item);
    } else {
      run_item<Config, false>(ring, arguments, item);
    }
  }
}

template <class Config>
__device__ __forceinline__ void stream_gradients(const WeightGradientArguments<typename Config::Element>& arguments) {
  ADAPTERX_SHARED_MEMORY(memory);
  StageRing<Config> ring(memory);
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  dependency_wait();
  dependents_launch();
  const bool cluster = arguments.ranges > 1;  // of one item then: what the blocks exchange has its place once
  if (threadIdx.x < Config::kComputeThreads) {
    multiply_items(ring, arguments);
  } else {
    for (int i = first_item(arguments); i < count_items(arguments); i += static_cast<int>(gridDim.x)) {
      copy_item(ring, arguments, find_item(arguments, i), static_cast<int>(threadIdx.x / 32) - Config::kWarps,
                static_cast<int>(threadIdx.x % 32));
    }
    if (cluster) cluster_sync();  // as the others in sum_blocks
  }
  if (cluster) cluster_sync();  // a block lives until the others have read its sums
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    gradient_stream_kernel(const WeightGradientArguments<typename Config::Element> arguments) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  __trap();  // no bulk copies here: can_stream() keeps callers away
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if constexpr (Config::kBottleneck > kMaxStreamedBottleneck100) {
    __trap();  // likewise
  } else {
    stream_gradients<Config>(arguments);
  }
#else
  stream_gradients<Config>(arguments);
#endif
}

}  // namespace adapterx::cuda
