// What the CUDA operators ask of PyTorch: the device of a call, its stream and its cuBLASLt handle. A twin for the host
// (tests/emulator/emulated_context.h) takes its place where ADAPTERX_EMULATE is defined, so that the operators run on
// CPU tensors with the kernels emulated.
#pragma once

#ifdef ADAPTERX_EMULATE
#include "emulated_context.h"
#else

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "../kernels/cuda/adapter.h"
#include "operators.h"

#define ADAPTERX_CUDA_KEY CUDA

namespace adapterx::ops {

// Makes the device of `tensor` current for as long as it lives.
struct CudaContext {
  explicit CudaContext(const Tensor& tensor)
      : guard(tensor.device()), stream(at::cuda::getCurrentCUDAStream(tensor.device().index())) {}

  static cuda::Device device() {
    const auto* properties = at::cuda::getCurrentDeviceProperties();
    return {10 * properties->major + properties->minor, static_cast<int64_t>(properties->sharedMemPerBlockOptin),
            properties->multiProcessorCount};
  }

  // Memory on the device of `like`. PyTorch's allocator aligns it to 512 bytes.
  static Tensor empty_bytes(const Tensor& like, int64_t bytes) {
    return at::empty({bytes}, like.options().dtype(at::kByte));
  }

  // The handle of this thread and device; the first call creates it.
  static cuda::CublasLt cublas() {
    return {at::cuda::getCurrentCUDABlasLtHandle(), at::globalContext().allowTF32CuBLAS()};
  }

  // Raises with PyTorch's words, which name the failed assertion of a kernel where there is one.
  static void check(cudaError_t error) { C10_CUDA_CHECK(error); }

  c10::cuda::CUDAGuard guard;
  cudaStream_t stream;
};

}  // namespace adapterx::ops

#endif
