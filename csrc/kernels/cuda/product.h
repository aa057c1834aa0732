// One matrix product in row-major terms, and the kernel that serves it whatever its sizes, strides and alignment.
#pragma once

#include "../types.h"
#include "runtime.h"

namespace adapterx::cuda {

struct RowMajor {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;  // elements between two rows, at least `columns`
};

// What happens to a product before it is stored. `bias` belongs to the columns of the result.
enum class Epilogue {
  none,
  bias,
  gelu_tanh,     // with the bias, where one is given
  gelu_tanh_aux  // likewise; what the activation sees goes to `aux`
};

// result = epilogue(alpha * op(a) @ op(b) + addend), where op transposes a stored matrix that is marked so.
struct Product {
  ScalarType dtype = ScalarType::float32;
  RowMajor a;
  bool a_transposed = false;
  RowMajor b;
  bool b_transposed = false;
  RowMajor addend;         // data null: nothing is added; may be the result itself
  void* result = nullptr;  // contiguous
  double alpha = 1.0;
  Epilogue epilogue = Epilogue::none;
  void* bias = nullptr;  // null: no bias
  void* aux = nullptr;   // contiguous, shaped as the result

  int64_t rows() const { return a_transposed ? a.columns : a.rows; }  // of the result
  int64_t columns() const { return b_transposed ? b.rows : b.columns; }
  int64_t terms() const { return a_transposed ? a.rows : a.columns; }
};

// Serves a product without epilogue, or with a bias, by a kernel of our own, in one launch. Sums in fp32, or fp64 for
// fp64, in a fixed order.
constexpr bool serves_plainly(Epilogue epilogue) { return epilogue == Epilogue::none || epilogue == Epilogue::bias; }
cudaError_t multiply_plainly(const Product& product, cudaStream_t stream);

}  // namespace adapterx::cuda
