// How a block of the grouped kernels multiplies 64 rows by 64 columns: copies of windows, FMA or tensor cores, and the
// way of the result back to rows.
#pragma once

#include "segment_path.h"
#include "tile.cuh"

namespace adapterx::cuda {

template <typename Element_>
struct SegmentConfig {
  using Element = Element_;
  using Real = Compute<Element>;
  static constexpr bool kTensorCores = sizeof(Element) == 2;
  static constexpr int kWidth = kVectorWidth<Element>;
  static constexpr int kRows = kSegmentRowTile;
  static constexpr int kFewRows = 16;  // a tile with at most these tokens multiplies a quarter of its rows
  static constexpr int kColumns = 64;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = sizeof(Element) == 8 ? 3 : 4;  // on an SM; sums in fp64 take twice the registers
  static constexpr int kStages = 3;
  static constexpr int kTerms = 128 / sizeof(Element);     // in a stage
  static constexpr int kTermStride = kTerms + kWidth;      // of a window stored as [row or column][term]
  static constexpr int kWindowStride = kColumns + kWidth;  // of a window stored as [term][row or column]
  static constexpr int kWindow =
      kColumns * kTermStride > kTerms* kWindowStride ? kColumns * kTermStride : kTerms * kWindowStride;
  static constexpr int kResultStride = kColumns + 8;  // the eight rows that a store meets lie in different banks
  static constexpr int64_t kTokenBytes = kRows * sizeof(int64_t);
  static constexpr int kStageElements = 2 * kWindow;  // the left operand, then the right one
  static constexpr int64_t kStageBytes = kStageElements * sizeof(Element);
  static constexpr int64_t kResultBytes = kRows * kResultStride * sizeof(Real);
  static constexpr int64_t kSharedMemory =
      kTokenBytes + (kStages * kStageBytes > kResultBytes ? kStages * kStageBytes : kResultBytes);
  static_assert(kRows == kColumns && kTerms % 16 == 0);
};

// For products that need no more of the left operand.
struct NoBias {
  template <class Rows>
  __device__ __forceinline__ void operator()(int, const Rows&) const {}
};

// Sums of a thread: [16 rows][8 columns][row half * 2 + column], as mma accumulators.
template <class Config>
using SegmentSums = typename Config::Real[Config::kRows / 16][2][4];

// ---- multiplication ------------------------------------------------------------------------------------------------

// Where the two rows (of 16) lie that a thread owns; both neighbours where they come from one vector.
template <class Config, bool kTransposed>
__device__ __forceinline__ int owned_row(int lane, int half) {
  return kTransposed && !Config::kTensorCores ? lane / 4 * 2 + half : lane / 4 + half * 8;
}

// kWidth terms from `term` on of the rows (or columns) `first` and `first + kStep` of a window.
template <class Config, bool kTransposed, int kStep>
__device__ __forceinline__ void load_pair(typename Config::Element (&pair)[2][Config::kWidth],
                                          const typename Config::Element* window, int first, int term) {
  using Element = typename Config::Element;
  if constexpr (kTransposed) {
    static_assert(kStep == 1);
#pragma unroll
    for (int t = 0; t < Config::kWidth; ++t) {
      const Element* from = window + (term + t) * Config::kWindowStride + first;
      const auto both = *reinterpret_cast<const Vector<Element, 2>*>(from);
      pair[0][t] = both.values[0], pair[1][t] = both.values[1];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Element* from = window + (first + i * kStep) * Config::kTermStride + term;
      const auto terms = *reinterpret_cast<const Vector<Element, Config::kWidth>*>(from);
#pragma unroll
      for (int t = 0; t < Config::kWidth; ++t) pair[i][t] = terms.values[t];
    }
  }
}

// sums += rows of `left` @ columns of `right`, one stage, by FMA. `also(i, rows)` sees the rows as well.
template <class Config, bool kLeftTransposed, bool kRightTransposed, int kRowTiles, class Also>
__device__ __forceinline__ void multiply_scalars(SegmentSums<Config>& sums, const typename Config::Element* left,
                                                 const typename Config::Element* right, const Also& also) {
  constexpr int kWidth = Config::kWidth;
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 16 + lane % 4 * 2;
#pragma unroll 1
  for (int term = 0; term < Config::kTerms; term += kWidth) {
    typename Config::Element columns[2][2][kWidth];
#pragma unroll
    for (int j = 0; j < 2; ++j) load_pair<Config, kRightTransposed, 1>(columns[j], right, column + j * 8, term);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      typename Config::Element rows[2][kWidth];
      const int row = i * 16 + owned_row<Config, kLeftTransposed>(lane, 0);
      load_pair<Config, kLeftTransposed, kLeftTransposed ? 1 : 8>(rows, left, row, term);
      also(i, rows);
#pragma unroll
      for (int t = 0; t < kWidth; ++t) {
#pragma unroll
        for (int place = 0; place < 8; ++place) {
          const int j = place / 4, half = place / 2 % 2, k = place % 2;
          sums[i][j][half * 2 + k] += rows[half][t] * columns[j][k][t];
        }
      }
    }
  }
}

// As multiply_scalars, on tensor cores.
template <class Config, bool kLeftTransposed, bool kRightTransposed, int kRowTiles, class Also>
__device__ __forceinline__ void multiply_fragments(SegmentSums<Config>& sums, const typename Config::Element* left,
                                                   const typename Config::Element* right, const Also& also) {
  using Element = typename Config::Element;
  constexpr int kLeftStride = kLeftTransposed ? Config::kWindowStride : Config::kTermStride;
  constexpr int kRightStride = kRightTransposed ? Config::kWindowStride : Config::kTermStride;
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 16;
#pragma unroll
  for (int term = 0; term < Config::kTerms; term += 16) {
    uint32_t b[4];
    load_b<kRightTransposed>(
        b, kRightTransposed ? right + term * kRightStride + column : right + column * kRightStride + term, kRightStride,
        lane);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      uint32_t a[4];
      load_a<kLeftTransposed>(a,
                              kLeftTransposed ? left + term * kLeftStride + i * 16 : left + i * 16 * kLeftStride + term,
                              kLeftStride, lane);
      also(i, a);
      mma<Element>(sums[i][0], a, b[0], b[1]);
      mma<Element>(sums[i][1], a, b[2], b[3]);
    }
  }
}

// sums += the first 16 * kRowTiles rows of the left window @ the columns of the right one, all terms of a stage.
template <class Config, bool kLeftTransposed, bool kRightTransposed, int kRowTiles, class Also>
__device__ __forceinline__ void multiply(SegmentSums<Config>& sums, const typename Config::Element* stage,
                                         const Also& also) {
  if constexpr (Config::kTensorCores) {
    multiply_fragments<Config, kLeftTransposed, kRightTransposed, kRowTiles>(sums, stage, stage + Config::kWindow,
                                                                             also);
  } else {
    multiply_scalars<Config, kLeftTransposed, kRightTransposed, kRowTiles>(sums, stage, stage + Config::kWindow, also);
  }
}

// Copies a window of 64 rows or columns and kTerms terms; `kTransposed`: the matrix has terms as its rows.
template <class Config, bool kTransposed, class Rows>
__device__ __forceinline__ void copy_terms(typename Config::Element* target,
                                           const Matrix<typename Config::Element>& source, const Rows& rows,
                                           int column0) {
  if constexpr (kTransposed) {
    copy_window<Config::kTerms, Config::kColumns, Config::kThreads>(target, Config::kWindowStride, source, rows,
                                                                    column0);
  } else {
    copy_window<Config::kColumns, Config::kTerms, Config::kThreads>(target, Config::kTermStride, source, rows, column0);
  }
}

// Lays the block's result out by rows in shared memory, for all threads.
template <class Config, bool kLeftTransposed>
__device__ __forceinline__ void lay_out_result(typename Config::Real* result, const SegmentSums<Config>& sums) {
  using Pair = Vector<typename Config::Real, 2>;
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 16 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Config::kRows / 16; ++i) {
#pragma unroll
    for (int place = 0; place < 4; ++place) {
      const int j = place / 2, half = place % 2;
      const int row = i * 16 + owned_row<Config, kLeftTransposed>(lane, half);
      *reinterpret_cast<Pair*>(result + row * Config::kResultStride + column + j * 8) = {sums[i][j][half * 2],
                                                                                         sums[i][j][half * 2 + 1]};
    }
  }
  __syncthreads();
}

}  // namespace adapterx::cuda
