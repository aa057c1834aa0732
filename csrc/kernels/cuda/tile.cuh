// Building blocks of the tensor-core kernels: guarded copies to shared memory, mma fragments, the cp.async pipeline.
#pragma once

#include "element.cuh"
#include "launch.cuh"

namespace adapterx::cuda {

// 16-bit elements added to each row of a matrix in shared memory. A row is then an odd number of 16-byte units long,
// and the eight rows that one ldmatrix phase reads lie in eight different groups of banks.
inline constexpr int kRowPadding = 8;

// A row-major matrix in global memory and its limits. `vector`: every row starts at a multiple of 16 bytes.
template <typename Element>
struct Matrix {
  const Element* data = nullptr;
  int64_t stride = 0;  // elements between two rows
  int64_t rows = 0;
  int columns = 0;
  bool vector = false;
};

template <typename Element>
inline Matrix<Element> make_matrix(const void* data, int64_t stride, int64_t rows, int64_t columns) {
  const bool vector = is_aligned(data, 16) && stride % kVectorWidth<Element> == 0;
  return {static_cast<const Element*>(data), stride, rows, static_cast<int>(columns), vector};
}

// Copies 16 bytes of elements of which the first `valid` exist; the others become zero. `vector`: both are aligned, and
// the copy is asynchronous; else it goes element by element. Either way it is complete for other threads after
// cp_async_wait and a barrier. `from` is not read where nothing is valid.
template <typename Element>
__device__ __forceinline__ void copy_unit(Element* target, const Element* from, int valid, bool vector) {
  if (vector) {
    cp_async16(target, from, valid * static_cast<int>(sizeof(Element)));
  } else {
#pragma unroll
    for (int i = 0; i < kVectorWidth<Element>; ++i) target[i] = i < valid ? from[i] : from_compute<Element>(0);
  }
}

// Which row of a matrix is row `row` of a window; -1: none. Neighbouring rows, or those of sorted tokens.
struct WindowRows {
  int64_t first = 0;
  int64_t end = 0;
  const int64_t* tokens = nullptr;  // null: the rows themselves

  __device__ __forceinline__ int64_t operator()(int row) const {
    const int64_t place = first + row;
    if (place >= end) return -1;
    return tokens == nullptr ? place : tokens[place];
  }
};

// Which 16-byte units of a window of kRows x kColumns each of kThreads threads copies: kCount of one column of units.
template <int kRows, int kColumns, int kThreads, typename Element>
struct WindowShare {
  static constexpr int kWidth = kVectorWidth<Element>, kUnits = kColumns / kWidth;
  static constexpr int kRowStep = kThreads / kUnits;  // rows between two units of a thread
  static constexpr int kCount = (kRows + kRowStep - 1) / kRowStep;
  static_assert(kColumns % kWidth == 0 && kThreads % kUnits == 0);

  static __device__ __forceinline__ int row(int j) { return static_cast<int>(threadIdx.x) / kUnits + j * kRowStep; }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kUnits * kWidth; }

  // Calls body(j) for this thread's units. `unrolled`: for copies that take few instructions.
  template <class Body>
  static __device__ __forceinline__ void visit(bool unrolled, const Body& body) {
    if (unrolled) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (kRows % kRowStep == 0 || row(j) < kRows) body(j);
      }
    } else {
#pragma unroll 1
      for (int j = 0; j < kCount && row(j) < kRows; ++j) body(j);
    }
  }
};

// Of `count` elements from a unit's first one on, how many lie within it.
template <typename Element>
__device__ __forceinline__ int valid_elements(int count) {
  return min(max(count, 0), kVectorWidth<Element>);
}

// Copies the window of kRows rows and kColumns columns from `column0` on with all threads of the block; what lies
// outside the matrix becomes zero. `rows(i)` is the matrix's row for row i of the window, or -1.
template <int kRows, int kColumns, int kThreads, typename Element, class Rows>
__device__ __forceinline__ void copy_window(Element* target, int target_stride, const Matrix<Element>& source,
                                            const Rows& rows, int column0) {
  using Share = WindowShare<kRows, kColumns, kThreads, Element>;
  const int column = column0 + Share::column();
  const int inside = valid_elements<Element>(source.columns - column);
  const Element* from = source.data + column;
  Element* to = target + Share::row(0) * target_stride + Share::column();
  const auto copy = [&](int j) {
    const int64_t row = rows(Share::row(j));
    copy_unit(to + j * Share::kRowStep * target_stride, from + row * source.stride, row >= 0 ? inside : 0,
              source.vector);
  };
#pragma unroll 2
  for (int j = 0; j < Share::kCount; ++j) {
    if (kRows % Share::kRowStep == 0 || Share::row(j) < kRows) copy(j);
  }
}

// Runs `compute(i, stage)` for i in [0, count) while chunks up to kStages - 1 ahead are being copied by
// `load(i, stage)`. One barrier a chunk: behind it chunk i has landed for all threads, and all are done with chunk
// i - 1, whose stage the next load overwrites. `start` may be called early; the stages must be free by then.
template <int kStages>
struct Pipeline {
  static_assert(kStages >= 2);

  template <class Load>
  static __device__ __forceinline__ void start(int count, const Load& load) {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < count) load(i, i);
      cp_async_commit();  // a group for every chunk, empty ones too, so that the count in wait stays right
    }
  }

  template <class Load, class Body>
  static __device__ __forceinline__ void run(int count, const Load& load, const Body& compute) {
    for (int i = 0; i < count; ++i) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
      const int next = i + kStages - 1;
      if (next < count) load(next, next % kStages);
      cp_async_commit();
      compute(i, i % kStages);
    }
    __syncthreads();  // all stages are free again
  }
};

// Where a lane points ldmatrix within a 16x16 block. The four 8x8 matrices lie (0,0) (8,0) (0,8) (8,8) in
// `rows_first` order and (0,0) (0,8) (8,0) (8,8) in `columns_first` order, as (row, column).
__device__ __forceinline__ int rows_first(int stride, int lane) { return lane % 16 * stride + lane / 16 * 8; }
__device__ __forceinline__ int columns_first(int stride, int lane) {
  return (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
}

// Where a lane reads its part of an operand, from the operand's first element on: A, 16 rows of the result and 16 terms
// of the sum, stored as [row][term], or, transposed, as [term][row]; B, 16 terms and 16 columns of the result, stored as
// [column][term] as in the weight of a linear map, or, transposed, as [term][column].
template <bool kTransposed>
__device__ __forceinline__ int a_offset(int stride, int lane) {
  return kTransposed ? columns_first(stride, lane) : rows_first(stride, lane);
}
template <bool kTransposed>
__device__ __forceinline__ int b_offset(int stride, int lane) {
  return kTransposed ? rows_first(stride, lane) : columns_first(stride, lane);
}

// Loads from such a place: the A operand of one mma, or the B operands of two, [0..1] and [2..3].
template <bool kTransposed, typename Element>
__device__ __forceinline__ void load_fragment(uint32_t (&fragment)[4], const Element* place) {
  if constexpr (kTransposed) {
    ldmatrix_x4_trans(fragment, place);
  } else {
    ldmatrix_x4(fragment, place);
  }
}
template <bool kTransposed, typename Element>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const Element* block, int stride, int lane) {
  load_fragment<kTransposed>(a, block + a_offset<kTransposed>(stride, lane));
}
template <bool kTransposed, typename Element>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const Element* block, int stride, int lane) {
  load_fragment<kTransposed>(b, block + b_offset<kTransposed>(stride, lane));
}

// B operand of an mma: ones in column 0, zeros in columns 1 to 7. The product is the sum of A's terms.
template <typename Element>
__device__ __forceinline__ uint32_t ones_column(int lane) {
  return lane / 4 == 0 ? pack<Element>(1.f, 1.f) : 0u;
}

}  // namespace adapterx::cuda
