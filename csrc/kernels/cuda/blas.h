// The bottleneck adapter as cuBLASLt products, any shape and dtype: what the tile kernels do not serve, and the path
// they must beat. No temporary is larger than (num_tokens, bottleneck_dim).
//
// Device pointers; nothing here allocates or synchronises, so calls may be captured in a CUDA graph. Products
// accumulate in fp32 (fp64 for fp64) and split sums are added in that precision in a fixed order: the same bits each
// time. Functions return null, or what went wrong in words.
#pragma once

#include "../problem.h"
#include "runtime.h"

#ifdef ADAPTERX_EMULATE
#include "fake_cublaslt.h"  // tests/emulator
#else
#include <cublasLt.h>
#endif

namespace adapterx::cuda {

// What cuBLASLt needs from the caller.
struct Blas {
  cublasLtHandle_t handle = nullptr;
  bool allow_tf32 = false;    // fp32 products may round their operands to TF32
  void* workspace = nullptr;  // device memory for cuBLASLt itself, 256-byte aligned
  int64_t workspace_bytes = 0;
};

// What NVIDIA's guide recommends for Hopper; smaller devices ask for less and leave the rest alone.
inline constexpr int64_t kBlasWorkspace = int64_t{32} << 20;

// Bytes of device memory for temporaries, 256-byte aligned.
int64_t blas_forward_workspace(const Problem& problem, const ForwardTensors& tensors);
int64_t blas_backward_workspace(const Problem& problem, const BackwardTensors& tensors);

const char* blas_forward(const Problem& problem, const ForwardTensors& tensors, const Blas& blas, void* workspace,
                         cudaStream_t stream);
const char* blas_backward(const Problem& problem, const BackwardTensors& tensors, const Blas& blas, void* workspace,
                          cudaStream_t stream);

}  // namespace adapterx::cuda
