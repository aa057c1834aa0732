// What build_info() asks of the CPU kernels, which this library does without.
#include "../../../csrc/kernels/cpu/bottleneck_adapter.h"

namespace adapterx::cpu {

const char* cpu_capability() { return "emulated"; }

}  // namespace adapterx::cpu
