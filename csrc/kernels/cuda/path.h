// What the three paths of the CUDA kernels have in common. Each has, for both directions, the same two functions:
//     void lay_out_NAME(call, arena)             takes the pieces of the workspace that the call needs
//     Status run_NAME(call, arena, stream)       takes the same pieces, and launches
// All pointers are device pointers. Nothing allocates, synchronises or asks the driver anything beyond the launch, so
// every call may be captured in a CUDA graph; the caller sets the device. Results are the same bits each time for the
// same problem, device and plan.
#pragma once

#include "../problem.h"
#include "arena.h"
#include "runtime.h"
#include "sort_tokens.h"

struct cublasLtContext;  // of cublasLt.h, which the kernels do without

namespace adapterx::cuda {

inline constexpr int32_t kResidentRowTile = 32;

// The tile of the tile kernels. A cluster_size of 1 is one block; more is a thread-block cluster that shares the
// columns of a tile through distributed shared memory (from compute capability 9.0).
struct TileShape {
  int32_t row_tile = 0;  // tokens of a tile: 16 or 64; kResidentRowTile: the resident kernel; 0: no tile kernel
  int32_t cluster_size = 1;
};

struct Device {
  int32_t compute_capability = 0;       // 10 * major + minor
  int64_t shared_memory_per_block = 0;  // bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin
  int32_t multiprocessors = 0;
};

// What cuBLASLt needs from the caller.
struct CublasLt {
  cublasLtContext* handle = nullptr;  // a cublasLtHandle_t; null: all products by a kernel of our own
  bool allow_tf32 = false;            // fp32 products may round their operands to TF32
};

// One call. With sorted tokens each token picks one of several adapters: weights and biases have a leading dimension
// num_adapters, contiguous, here and among the gradients. A token without adapter gets its residual, or zero, and a
// zero pre-activation.
template <class Tensors>
struct PathCall {
  const Problem& problem;
  const Tensors& tensors;
  const SortedTokens* sorted = nullptr;  // null: one adapter for all tokens
  TileShape tile = {};                   // of the tile path
  CublasLt cublas = {};                  // of the cublas path
  Device device = {};
};

// How a call ended: well, with an error of the CUDA runtime, or, where there is no such code, in words.
struct [[nodiscard]] Status {
  cudaError_t error = cudaSuccess;
  const char* words = nullptr;

  Status(cudaError_t code) : error(code) {}          // NOLINT: a return value
  Status(const char* sentence) : words(sentence) {}  // NOLINT: likewise; null: all is well
  bool ok() const { return error == cudaSuccess && words == nullptr; }
};

}  // namespace adapterx::cuda
