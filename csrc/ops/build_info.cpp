// What this library was built from and for, as JSON: bug reports and the tests of the wheels read it.
#include <torch/library.h>
#include <torch/version.h>

#include <string>

#include "../kernels/cpu/bottleneck_adapter.h"

#ifndef ADAPTERX_VERSION
#define ADAPTERX_VERSION "unknown"  // built without setup.py or CMakeLists.txt, which both pass version.txt on
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

// The CUDA toolkit that the kernels were compiled with, or false.
#ifdef ADAPTERX_CUDA_VERSION
constexpr const char* kCuda = "\"" ADAPTERX_CUDA_VERSION "\"";
#else
constexpr const char* kCuda = "false";
#endif

std::string build_info() {
  const auto entry = [](const char* key, const std::string& value) {
    return std::string("\"").append(key).append("\": \"").append(value).append("\", ");
  };
  return "{" + entry("version", ADAPTERX_VERSION) + entry("compiler", kCompiler) + entry("torch", TORCH_VERSION) +
         entry("cpu_capability", cpu::cpu_capability()) + "\"cuda\": " + kCuda + "}";
}

}  // namespace

// No tensor arguments: the one kernel serves every key.
TORCH_LIBRARY_IMPL(adapterx, CompositeExplicitAutograd, m) { m.impl("build_info", build_info); }

}  // namespace adapterx::ops
