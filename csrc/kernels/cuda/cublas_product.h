// One matrix product by cuBLASLt, or where it has no kernel for a plain one, by ours.
#pragma once

#include "path.h"
#include "product.h"

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

// Returned where cuBLASLt has no kernel for a product with an epilogue; compare the pointer.
extern const char* const kNoAlgorithm;

// Null, kNoAlgorithm (only with an epilogue; nothing has been launched then), or what went wrong. The same product has
// the same bits each time; with other strides or alignments cuBLASLt may add in another order.
const char* multiply(const Product& product, const CublasMeans& cublas, cudaStream_t stream);

}  // namespace adapterx::cuda
