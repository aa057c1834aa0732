// The twin of csrc/ops/cuda_context.h: the CUDA operators on CPU tensors, with the kernels emulated on the host.
// The device is an H200 (compute capability 9.0, 132 multiprocessors) unless ADAPTERX_EMULATED_CAPABILITY says 80 (A100) or 89 (L40).
#pragma once

#include <ATen/Context.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string>

#include "adapter.h"
#include "fake_cublaslt.h"
#include "operators.h"

#define ADAPTERX_CUDA_KEY CPU

namespace adapterx::ops {

struct CudaContext {
  explicit CudaContext(const Tensor&) : one_at_a_time(emulator_mutex()) {}

  static cuda::Device device() {
    const char* wanted = std::getenv("ADAPTERX_EMULATED_CAPABILITY");
    const int capability = wanted == nullptr ? 90 : std::stoi(wanted);
    // Opt-in shared memory of a block: CUDA programming guide, technical specifications per compute capability.
    return {capability, (capability >= 90 ? 227 : capability == 80 ? 163 : 99) * int64_t{1024}, 132};
  }

  // Aligned as on a GPU, but not better, and filled with what no kernel may rely on: NaN in every floating type. Of
  // large memory (cuBLASLt's own, which the fake does not touch) only the beginning, for speed.
  static Tensor empty_bytes(const Tensor&, int64_t bytes) {
    constexpr int64_t kAlignment = 256, kPoisoned = int64_t{1} << 20;
    const auto memory = at::empty({bytes + kAlignment}, at::kByte);
    const auto address = reinterpret_cast<uintptr_t>(memory.data_ptr());
    const auto aligned = memory.narrow(0, kAlignment - static_cast<int64_t>(address % kAlignment), bytes);
    aligned.narrow(0, 0, std::min(bytes, kPoisoned)).fill_(0xFF);
    return aligned;
  }

  static cuda::CublasLt cublas() { return {&fake_cublaslt_handle, at::globalContext().allowTF32CuBLAS()}; }

  static void check(cudaError_t error) { TORCH_CHECK(error == cudaSuccess, "CUDA error: ", cudaGetErrorString(error)); }

  static std::mutex& emulator_mutex() {
    static std::mutex mutex;
    return mutex;
  }

  std::lock_guard<std::mutex> one_at_a_time;  // the emulator is one machine
  cudaStream_t stream = nullptr;
};

}  // namespace adapterx::ops
