// One table of entry points per instruction set; the dispatcher picks one at run time.
#pragma once

#include <string_view>

#include "bottleneck_adapter.h"

namespace adapterx::cpu {

using ForwardFunction = void (*)(const Problem&, const ForwardTensors&, const ThreadPool&);
using BackwardFunction = void (*)(const Problem&, const BackwardTensors&, const ThreadPool&);
using GroupedForwardFunction = void (*)(const Problem&, const ForwardTensors&, const AdapterIndices&,
                                        const ThreadPool&);
using GroupedBackwardFunction = void (*)(const Problem&, const BackwardTensors&, const AdapterIndices&,
                                         const ThreadPool&);

// The entry points for one dtype.
struct Entries {
  ForwardFunction forward = nullptr;
  BackwardFunction backward = nullptr;
  GroupedForwardFunction grouped_forward = nullptr;
  GroupedBackwardFunction grouped_backward = nullptr;
};

struct Kernels {
  const char* capability;
  Entries entries[4];  // indexed by ScalarType

  const Entries& of(ScalarType dtype) const { return entries[static_cast<int>(dtype)]; }
};

// The kernels of the capability called `name`; null where this machine or this build has none of that name.
const Kernels* find_kernels(std::string_view name);

#if defined(__x86_64__) || defined(_M_X64)
#define ADAPTERX_X86 1
#endif

Kernels baseline_kernels();
#ifdef ADAPTERX_X86
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512_bf16_kernels();  // bfloat16 only; the other entries are null
#endif

}  // namespace adapterx::cpu
