// A product by FMA, for what cuBLASLt refuses: right for every size, stride and alignment, and not meant to be fast.
// Grid and blocks: a block of 16 x 16 threads makes tiles of 16 x 16 results, a thread one result of each.
// Shared memory: 16 terms of the tile's rows and of its columns, converted, with a column of padding.
#include <algorithm>

#include "element.cuh"
#include "launch.cuh"
#include "product.h"

namespace adapterx::cuda {
namespace {

constexpr int kTile = 16;
constexpr int kPlainThreads = kTile * kTile;
constexpr int64_t kMaxPlainBlocks = 16 * 132;  // more blocks than run at once only cost their start; 132 SMs

// An operand as vectors of terms, one for each row or column of the result.
template <typename Element>
struct TermVectors {
  const Element* data;
  int64_t count;
  int64_t step;       // elements from one vector to the next
  int64_t term_step;  // elements from one term to the next
};

template <typename Element>
struct PlainArguments {
  TermVectors<Element> rows, columns;
  int64_t terms;
  int64_t tiles, tiles_across;  // of the result
  Compute<Element> alpha;
  const Element* addend;  // null: nothing is added
  int64_t addend_stride;
  const Element* bias;  // of the columns; null likewise
  Element* result;
};

template <typename Element>
using TermWindow = Compute<Element>[kTile][kTile + 1];

// A term for each thread, zero outside the operand; neighbouring threads read neighbouring elements.
template <typename Element>
__device__ __forceinline__ void load_window(TermWindow<Element>& window, const TermVectors<Element>& vectors,
                                            int64_t first_vector, int64_t first_term, int64_t terms) {
  const int slow = threadIdx.x / kTile, fast = threadIdx.x % kTile;
  const int i = vectors.term_step == 1 ? slow : fast, k = vectors.term_step == 1 ? fast : slow;
  const int64_t vector = first_vector + i, term = first_term + k;
  const bool inside = vector < vectors.count && term < terms;
  window[i][k] = inside ? to_compute(vectors.data[vector * vectors.step + term * vectors.term_step]) : 0;
}

template <typename Element>
__device__ __forceinline__ void store_result(const PlainArguments<Element>& arguments, int64_t row, int64_t column,
                                             Compute<Element> sum) {
  if (row >= arguments.rows.count || column >= arguments.columns.count) return;
  sum *= arguments.alpha;
  if (arguments.addend != nullptr) sum += to_compute(arguments.addend[row * arguments.addend_stride + column]);
  if (arguments.bias != nullptr) sum += to_compute(arguments.bias[column]);
  arguments.result[row * arguments.columns.count + column] = from_compute<Element>(sum);
}

template <typename Element>
__global__ void __launch_bounds__(kPlainThreads) plain_product_kernel(const PlainArguments<Element> arguments) {
  ADAPTERX_SHARED_MEMORY(memory);
  auto& left = reinterpret_cast<TermWindow<Element>*>(memory)[0];
  auto& right = reinterpret_cast<TermWindow<Element>*>(memory)[1];
  const int i = threadIdx.x / kTile, j = threadIdx.x % kTile;
  for (int64_t tile = blockIdx.x; tile < arguments.tiles; tile += gridDim.x) {
    const int64_t row = tile / arguments.tiles_across * kTile, column = tile % arguments.tiles_across * kTile;
    Compute<Element> sum = 0;
    for (int64_t term = 0; term < arguments.terms; term += kTile) {
      load_window(left, arguments.rows, row, term, arguments.terms);
      load_window(right, arguments.columns, column, term, arguments.terms);
      __syncthreads();
      Compute<Element> part = 0;  // many terms in one sum would lose the last digits of small ones
#pragma unroll
      for (int k = 0; k < kTile; ++k) part += left[i][k] * right[j][k];
      sum += part;
      __syncthreads();
    }
    store_result(arguments, row + i, column + j, sum);
  }
}

template <typename Element>
TermVectors<Element> term_vectors(const RowMajor& matrix, bool rows_are_vectors) {
  const auto* data = static_cast<const Element*>(matrix.data);
  if (rows_are_vectors) return {data, matrix.rows, matrix.stride, 1};
  return {data, matrix.columns, 1, matrix.stride};
}

}  // namespace

cudaError_t multiply_plainly(const Product& p, cudaStream_t stream) {
  if (!serves_plainly(p.epilogue)) return cudaErrorNotSupported;
  return visit_dtype(p.dtype, [&](auto tag) {
    using Element = typename decltype(tag)::Type;
    const int64_t across = ceil_div(p.columns(), kTile), tiles = across * ceil_div(p.rows(), kTile);
    if (tiles == 0) return cudaSuccess;
    const PlainArguments<Element> arguments = {term_vectors<Element>(p.a, !p.a_transposed),
                                               term_vectors<Element>(p.b, p.b_transposed),
                                               p.terms(),
                                               tiles,
                                               across,
                                               static_cast<Compute<Element>>(p.alpha),
                                               static_cast<const Element*>(p.addend.data),
                                               p.addend.stride,
                                               static_cast<const Element*>(p.bias),
                                               static_cast<Element*>(p.result)};
    const LaunchShape shape = {dim3(static_cast<unsigned>(std::min(tiles, kMaxPlainBlocks))), dim3(kPlainThreads),
                               2 * static_cast<int64_t>(sizeof(TermWindow<Element>))};
    return launch(plain_product_kernel<Element>, shape, stream, arguments);
  });
}

}  // namespace adapterx::cuda
