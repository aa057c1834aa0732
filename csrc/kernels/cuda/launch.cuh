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
  bool programmatic = false;  // may start before the kernel in front of it has ended; it calls dependency_wait()
};

#ifdef ADAPTERX_EMULATE

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t, Arguments&&... arguments) {
  return emulator::launch(kernel, shape.grid, shape.block, shape.shared_memory, shape.cluster_size,
                          Parameters(std::forward<Arguments>(arguments))...);
}

template <typename... Parameters>
int64_t clusters_at_once(void (*)(Parameters...), const LaunchShape& shape, int64_t multiprocessors) {
  return multiprocessors / shape.cluster_size;
}

#else

inline constexpr int64_t kSharedMemoryWithoutOptIn = 48 * 1024;  // more must be asked for, kernel by kernel

inline cudaError_t allow_shared_memory(const void* kernel, const LaunchShape& shape) {
  if (shape.shared_memory <= kSharedMemoryWithoutOptIn) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shape.shared_memory));
}

// A shape in the words of the runtime; `attributes` must live as long as the result.
inline cudaLaunchConfig_t launch_config(const LaunchShape& shape, cudaStream_t stream,
                                        cudaLaunchAttribute (&attributes)[2]) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_memory);
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cluster_size > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster_size), 1, 1};
  }
  if (shape.programmatic) {
    cudaLaunchAttribute& programmatic = attributes[config.numAttrs++];
    programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    programmatic.val.programmaticStreamSerializationAllowed = 1;
  }
  return config;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments&&... arguments) {
  const cudaError_t error = allow_shared_memory(reinterpret_cast<const void*>(kernel), shape);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2] = {};
  const cudaLaunchConfig_t config = launch_config(shape, stream, attributes);
  return cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
}

// How many clusters of this shape run at once on the current device; 0 where the driver cannot say. It is asked once
// for each kernel, size and device.
template <typename... Parameters>
int64_t clusters_at_once(void (*kernel)(Parameters...), const LaunchShape& shape, int64_t) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int>, int> known;
  const void* address = reinterpret_cast<const void*>(kernel);
  int device = 0, clusters = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [place, unknown] = known.try_emplace({address, shape.cluster_size, device}, 0);
  if (unknown && allow_shared_memory(address, shape) == cudaSuccess) {
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config = launch_config(shape, nullptr, attributes);
    if (cudaOccupancyMaxActiveClusters(&clusters, address, &config) == cudaSuccess) {
      place->second = clusters;
    } else {
      cudaGetLastError();  // not a failure of the call: fewer blocks are launched
    }
  }
  return place->second;
}

#endif

}  // namespace adapterx::cuda
