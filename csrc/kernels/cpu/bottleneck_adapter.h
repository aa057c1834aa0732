// The bottleneck adapter on the CPU, forward and backward: the interface of the torch-free kernels.
#pragma once

#include "../problem.h"

namespace adapterx::cpu {

// Without indices (num_adapters 0) all tokens have the one adapter.
void bottleneck_adapter_forward(const Problem& problem, const ForwardTensors& tensors, const AdapterIndices& indices,
                                const ThreadPool& pool);
void bottleneck_adapter_backward(const Problem& problem, const BackwardTensors& tensors, const AdapterIndices& indices,
                                 const ThreadPool& pool);

// The instruction set the dispatcher uses on this machine: "avx512_bf16", "avx512", "avx2" or "baseline".
// The environment variable ADAPTERX_CPU_CAPABILITY lowers it (for tests); it never raises it.
const char* cpu_capability();

}  // namespace adapterx::cpu
