// One way to launch a kernel, on the GPU and in the host emulator.
#pragma once

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "ptx.cuh"
#include "sizes.h"

namespace adapterx::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  int64_t shared_memory = 0;  // bytes of dynamic shared memory in a block
  int cluster_size = 1;       // consecutive blocks along x that form a cluster
};

#ifdef ADAPTERX_EMULATE

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t, Arguments&&... arguments) {
  return emulator::launch(kernel, shape.grid, shape.block, shape.shared_memory, shape.cluster_size,
                          Parameters(std::forward<Arguments>(arguments))...);
}

template <typename... Parameters>
cudaError_t max_active_clusters(void (*)(Parameters...), const LaunchShape&, int64_t& clusters) {
  clusters = emulator::max_active_clusters;
  return cudaSuccess;
}

#else

inline constexpr int64_t kSharedMemoryWithoutOptIn = 48 * 1024;  // more must be asked for, kernel by kernel

// The most clusters of this kernel that run on the current device at once; the grid is not looked at. Asked once a kernel,
// cluster size and device.
template <typename... Parameters>
cudaError_t max_active_clusters(void (*kernel)(Parameters...), const LaunchShape& shape, int64_t& clusters) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int>, int> known;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const auto* pointer = reinterpret_cast<const void*>(kernel);
  const std::lock_guard<std::mutex> lock(mutex);
  int& count = known[{pointer, device, shape.cluster_size}];
  if (count == 0) {
    error = cudaFuncSetAttribute(pointer, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_memory));
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster_size), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.cluster_size));
    config.blockDim = shape.block;
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_memory);
    config.attrs = &cluster;
    config.numAttrs = 1;
    error = cudaOccupancyMaxActiveClusters(&count, pointer, &config);
    if (error != cudaSuccess) return error;
    if (count == 0) return cudaErrorNotSupported;
  }
  clusters = count;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (shape.shared_memory > kSharedMemoryWithoutOptIn) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.shared_memory));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster_size), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_memory);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = shape.cluster_size > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
}

#endif

}  // namespace adapterx::cuda
