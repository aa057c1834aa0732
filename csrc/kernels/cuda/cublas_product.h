// One matrix product by cuBLASLt, in row-major terms.
#pragma once

#include "path.h"

#ifdef ADAPTERX_EMULATE
#include "fake_cublaslt.h"  // tests/emulator
#else
#include <cublasLt.h>
#endif

namespace adapterx::cuda {

// What a product needs besides its operands.
struct CublasMeans {
  CublasLt library;
  void* workspace = nullptr;  // device memory for cuBLASLt itself, 256-byte aligned
  int64_t workspace_bytes = 0;
};

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
  RowMajor addend;         // data null: nothing is added
  void* result = nullptr;  // contiguous
  double alpha = 1.0;
  Epilogue epilogue = Epilogue::none;
  void* bias = nullptr;  // null: no bias
  void* aux = nullptr;   // contiguous, shaped as the result
};

// Returned where cuBLASLt has no kernel for a product, which is so for some epilogues; compare the pointer.
extern const char* const kNoAlgorithm;

// Null, kNoAlgorithm (nothing has been launched then), or what went wrong.
const char* multiply(const Product& product, const CublasMeans& cublas, cudaStream_t stream);

}  // namespace adapterx::cuda
