#include "dispatch.h"

#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace adapterx::cpu {
namespace {

// Best first. An entry stands in the list only if this machine can run it.
struct Available {
  Kernels entries[4];
  int count = 0;

  void add(const Kernels& kernels) { entries[count++] = kernels; }
};

Available detect() {
  Available available;
#ifdef ADAPTERX_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) {
    const Kernels dot = avx512_bf16_kernels();
    Kernels kernels = avx512_kernels();
    kernels.capability = dot.capability;
    kernels.entries[static_cast<int>(ScalarType::bfloat16)] = dot.of(ScalarType::bfloat16);
    available.add(kernels);
  }
  if (avx512) available.add(avx512_kernels());
  if (avx2) available.add(avx2_kernels());
#endif
  available.add(baseline_kernels());
  return available;
}

const Available& available() {
  static const Available kernels = detect();
  return kernels;
}

// The best kernels of this machine, or those the environment asks for where the machine has them.
const Kernels* choose() {
  const char* wanted = std::getenv("ADAPTERX_CPU_CAPABILITY");
  if (wanted == nullptr) return &available().entries[0];
  for (const std::string_view known : {"avx512_bf16", "avx512", "avx2", "baseline"}) {
    if (wanted != known) continue;
    const Kernels* found = find_kernels(known);
    return found == nullptr ? &available().entries[0] : found;
  }
  throw std::invalid_argument(
      "cpu_capability: ADAPTERX_CPU_CAPABILITY must be avx512_bf16, avx512, avx2 or baseline, got " +
      std::string(wanted));
}

const Kernels& chosen() {
  static const Kernels* const kernels = choose();
  return *kernels;
}

}  // namespace

const Kernels* find_kernels(std::string_view name) {
  const Available& kernels = available();
  for (int i = 0; i < kernels.count; ++i) {
    if (name == kernels.entries[i].capability) return &kernels.entries[i];
  }
  return nullptr;
}

const char* cpu_capability() { return chosen().capability; }

void bottleneck_adapter_forward(const Problem& problem, const ForwardTensors& tensors, const AdapterIndices& indices,
                                const ThreadPool& pool) {
  const Entries& entries = chosen().of(problem.dtype);
  if (indices.num_adapters == 0) return entries.forward(problem, tensors, pool);
  entries.grouped_forward(problem, tensors, indices, pool);
}

void bottleneck_adapter_backward(const Problem& problem, const BackwardTensors& tensors, const AdapterIndices& indices,
                                 const ThreadPool& pool) {
  const Entries& entries = chosen().of(problem.dtype);
  if (indices.num_adapters == 0) return entries.backward(problem, tensors, pool);
  entries.grouped_backward(problem, tensors, indices, pool);
}

}  // namespace adapterx::cpu
