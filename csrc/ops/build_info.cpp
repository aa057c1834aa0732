// What this library was built from and for, as JSON: bug reports and the tests of the wheels read it.
#include <torch/library.h>
#include <torch/version.h>

#include <string>

#include "../kernels/cpu/bottleneck_adapter.h"
#ifdef ADAPTERX_WITH_CUDA
#include "../kernels/cuda/plan.h"
#endif

#ifndef ADAPTERX_VERSION
#define ADAPTERX_VERSION "unknown"  // built without CMakeLists.txt, which passes version.txt on
#endif

namespace adapterx::ops {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

std::string build_info() {
  const auto entry = [](const char* key, const std::string& value) {
    return std::string("\"").append(key).append("\": \"").append(value).append("\", ");
  };
  std::string info = "{" + entry("version", ADAPTERX_VERSION) + entry("compiler", kCompiler) +
                     entry("torch", TORCH_VERSION) + entry("cpu_capability", cpu::cpu_capability());
#ifdef ADAPTERX_WITH_CUDA
  // What the build passes on: the toolkit and the architectures that the kernels were compiled with and for.
  info += entry("cuda", ADAPTERX_CUDA_VERSION) + entry("cuda_architectures", ADAPTERX_CUDA_ARCHITECTURES) +
          "\"plan_table\": \"" + cuda::plan_table_source() + "\"}";
#else
  info += "\"cuda\": false, \"cuda_architectures\": false, \"plan_table\": false}";
#endif
  return info;
}

}  // namespace

// No tensor arguments: the one kernel serves every key.
TORCH_LIBRARY_IMPL(adapterx, CompositeExplicitAutograd, m) { m.impl("build_info", build_info); }

}  // namespace adapterx::ops
