// The bottleneck adapter on the CPU, forward and backward: the interface of the torch-free kernels.
#pragma once

#include "../problem.h"

namespace adapterx::cpu {

void bottleneck_adapter_forward(const Problem& problem, const ForwardTensors& tensors, const ThreadPool& pool);
void bottleneck_adapter_backward(const Problem& problem, const BackwardTensors& tensors, const ThreadPool& pool);

// Each token picks one of several adapters, or none; see Groups.
void grouped_bottleneck_adapter_forward(const Problem& problem, const ForwardTensors& tensors, const Groups& groups,
                                        const ThreadPool& pool);
void grouped_bottleneck_adapter_backward(const Problem& problem, const BackwardTensors& tensors, const Groups& groups,
                                         const ThreadPool& pool);

// The instruction set the dispatcher uses on this machine: "avx512_bf16", "avx512", "avx2" or "baseline".
// The environment variable ADAPTERX_CPU_CAPABILITY lowers it (for tests); it never raises it.
const char* cpu_capability();

}  // namespace adapterx::cpu
