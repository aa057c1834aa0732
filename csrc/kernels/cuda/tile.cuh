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

// Copies 16 bytes of elements of which the first `valid` exist; the others become zero. Asynchronous where rows are
// aligned, else element by element: either way complete for other threads after cp_async_wait and a barrier.
template <typename Element>
__device__ __forceinline__ void copy_unit(Element* target, const Matrix<Element>& source, int64_t row, int column,
                                          int valid) {
  const Element* from = valid > 0 ? source.data + row * source.stride + column : source.data;
  if (source.vector) {
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

// Copies the window of kRows rows and kColumns columns from `column0` on with all threads of the block; what lies
// outside the matrix becomes zero. `rows(i)` is the matrix's row for row i of the window, or -1.
template <int kRows, int kColumns, int kThreads, typename Element, class Rows>
__device__ __forceinline__ void copy_window(Element* target, int target_stride, const Matrix<Element>& source,
                                            const Rows& rows, int column0) {
  constexpr int kWidth = kVectorWidth<Element>, kUnits = kColumns / kWidth;
  static_assert(kColumns % kWidth == 0);
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kUnits; i += kThreads) {
    const int row = i / kUnits, column = i % kUnits * kWidth;
    const int inside = min(max(source.columns - (column0 + column), 0), kWidth);
    const int64_t source_row = rows(row);
    const int valid = source_row >= 0 ? inside : 0;
    copy_unit(target + row * target_stride + column, source, source_row, column0 + column, valid);
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
template <typename Element>
__device__ __forceinline__ const Element* rows_first(const Element* block, int stride, int lane) {
  return block + lane % 16 * stride + lane / 16 * 8;
}
template <typename Element>
__device__ __forceinline__ const Element* columns_first(const Element* block, int stride, int lane) {
  return block + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
}

// The A operand (16 rows of the result, 16 terms of the sum) of one mma; stored as [row][term], or, transposed, as
// [term][row].
template <bool kTransposed, typename Element>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const Element* block, int stride, int lane) {
  if constexpr (kTransposed) {
    ldmatrix_x4_trans(a, columns_first(block, stride, lane));
  } else {
    ldmatrix_x4(a, rows_first(block, stride, lane));
  }
}

// The B operands (16 terms, 16 columns of the result) of two mma, b[0..1] and b[2..3]; stored as [column][term] as in
// the weight of a linear map, or, transposed, as [term][column].
template <bool kTransposed, typename Element>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const Element* block, int stride, int lane) {
  if constexpr (kTransposed) {
    ldmatrix_x4_trans(b, rows_first(block, stride, lane));
  } else {
    ldmatrix_x4(b, columns_first(block, stride, lane));
  }
}

// B operand of an mma: ones in column 0, zeros in columns 1 to 7. The product is the sum of A's terms.
template <typename Element>
__device__ __forceinline__ uint32_t ones_column(int lane) {
  return lane / 4 == 0 ? pack<Element>(1.f, 1.f) : 0u;
}

}  // namespace adapterx::cuda
