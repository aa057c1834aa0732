// One way to launch a kernel, on the GPU and in the host emulator.
#pragma once

#include <utility>

#include "ptx.cuh"
#include "sizes.h"

#ifndef ADAPTERX_EMULATE
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#endif

namespace adapterx::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  int64_t shared_memory = 0;  // bytes of dynamic shared memory in a block
  int cluster_size = 1;       // consecutive blocks along x that form a cluster
  bool clusters = false;      // blocks form clusters also where cluster_size is 1, as store_remote wants
  bool programmatic = false;  // blocks may start before the kernel ahead in the stream has ended: see dependency_wait
};

#ifdef ADAPTERX_EMULATE

// Bytes of shared memory that a block of the current device may have at most.
inline int64_t shared_memory_limit() { return emulator::kMaxSharedMemory; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t, Arguments&&... arguments) {
  return emulator::launch(kernel, shape.grid, shape.block, shape.shared_memory, shape.cluster_size, shape.programmatic,
                          Parameters(std::forward<Arguments>(arguments))...);
}

template <typename... Parameters>
int64_t clusters_at_once(void (*)(Parameters...), const LaunchShape& shape, int64_t multiprocessors) {
  return multiprocessors / shape.cluster_size;
}

#else

inline cudaLaunchAttribute cluster_attribute(const LaunchShape& shape) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster_size), 1, 1};
  return cluster;
}

// What is asked of the driver once, for each device, and each kernel on it.
class LaunchCache {
 public:
  static LaunchCache& instance() {
    static LaunchCache cache;
    return cache;
  }

  int64_t shared_memory_limit() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return limit_of(current_device());
  }

  // Lets the kernel have as much dynamic shared memory as the device can give, and its blocks all of an SM's: the
  // default may leave more to the L1 cache than lets as many blocks share an SM as fit.
  cudaError_t prepare(const void* kernel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int device = current_device();
    if (prepared_.count({device, kernel}) != 0) return cudaSuccess;
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    const auto most = limit_of(device) - static_cast<int64_t>(attributes.sharedSizeBytes);
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(most < 0 ? 0 : most));
    if (error != cudaSuccess) return error;
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (error == cudaSuccess) prepared_.insert({device, kernel});
    return error;
  }

  // The most clusters of a kernel that run on the device at once, 0 where the driver cannot say; the grid is not looked
  // at.
  int64_t clusters_at_once(const void* kernel, const LaunchShape& shape) {
    if (prepare(kernel) != cudaSuccess) return 0;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [place, unknown] = clusters_.try_emplace({current_device(), kernel, shape.cluster_size}, 0);
    if (!unknown) return place->second;
    cudaLaunchAttribute cluster = cluster_attribute(shape);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.cluster_size));
    config.blockDim = shape.block;
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_memory);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) {
      place->second = clusters;
    } else {
      cudaGetLastError();  // not a failure of the call
    }
    return place->second;
  }

 private:
  static int current_device() {
    int device = 0;
    return cudaGetDevice(&device) == cudaSuccess ? device : 0;
  }

  int64_t limit_of(int device) {
    const auto known = limits_.find(device);
    if (known != limits_.end()) return known->second;
    int limit = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return error == cudaSuccess ? limits_[device] = limit : 0;
  }

  std::mutex mutex_;
  std::map<int, int64_t> limits_;
  std::set<std::pair<int, const void*> > prepared_;
  std::map<std::tuple<int, const void*, int>, int> clusters_;
};

inline int64_t shared_memory_limit() { return LaunchCache::instance().shared_memory_limit(); }

// How many clusters of this shape run at once on the current device; 0 where the driver cannot say.
template <typename... Parameters>
int64_t clusters_at_once(void (*kernel)(Parameters...), const LaunchShape& shape, int64_t) {
  return LaunchCache::instance().clusters_at_once(reinterpret_cast<const void*>(kernel), shape);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (shape.shared_memory > 0) {
    const cudaError_t error = LaunchCache::instance().prepare(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.cluster_size > 1 || shape.clusters) attributes[count++] = cluster_attribute(shape);
  if (shape.programmatic) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_memory);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
}

#endif

}  // namespace adapterx::cuda
