// Vocabulary shared by every kernel: element types, activations, the thread pool of the caller.
// Framework-free: no torch, ATen, c10, onnxruntime or Python here (tests/tools/test_architecture.py checks it).
#pragma once

#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>

namespace adapterx {

enum class ScalarType : int32_t { float32, float64, bfloat16, float16 };

// Every activation: this list gives their numbers, names, and the switches over them. A number is part of the kernels'
// binary interface: append, never reorder. docs/recipes.md says what else an activation needs.
#define ADAPTERX_ACTIVATIONS(X) X(relu) X(gelu) X(gelu_tanh) X(silu) X(tanh) X(sigmoid) X(leaky_relu) X(identity)

enum class Activation : int32_t {
#define ADAPTERX_ENUMERATOR(name) name,
  ADAPTERX_ACTIVATIONS(ADAPTERX_ENUMERATOR)
#undef ADAPTERX_ENUMERATOR
};

inline constexpr std::string_view kActivationNames[] = {
#define ADAPTERX_NAME(name) #name,
    ADAPTERX_ACTIVATIONS(ADAPTERX_NAME)
#undef ADAPTERX_NAME
};

// Slope of leaky_relu for negative arguments; torch.nn.functional.leaky_relu's default.
inline constexpr double kLeakyReluSlope = 0.01;

// The activation called `name`, or nothing where no activation has that name.
inline std::optional<Activation> parse_activation(std::string_view name) {
  for (int32_t i = 0; i < static_cast<int32_t>(std::size(kActivationNames)); ++i) {
    if (kActivationNames[i] == name) return static_cast<Activation>(i);
  }
  return std::nullopt;
}

// The caller's thread pool. `run` splits [0, count) over at most `num_threads` threads and returns when all is done.
// Kernels never start threads of their own, so that they obey torch.set_num_threads and ONNX Runtime's pool alike.
struct ThreadPool {
  using Body = void (*)(void* closure, int64_t begin, int64_t end);
  void (*run)(void* context, int64_t count, Body body, void* closure) = nullptr;
  void* context = nullptr;
  int32_t num_threads = 1;
};

}  // namespace adapterx
