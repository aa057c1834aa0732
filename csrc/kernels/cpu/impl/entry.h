// The whole implementation, compiled once per instruction set into its own namespace.
// Included after `#pragma target`: nothing below may instantiate a template or inline function of the standard
// library, since the linker could then choose the wide copy for a machine that cannot run it.
// The order is that of their needs.
// clang-format off
#include "vector.h"
#include "activation.h"
#include "gemm.h"
#include "pack.h"
#include "driver.h"
#include "forward.h"
#include "backward.h"
// clang-format on

namespace adapterx::cpu {

#define ADAPTERX_CONCAT_(a, b) a##b
#define ADAPTERX_CONCAT(a, b) ADAPTERX_CONCAT_(a, b)
#define ADAPTERX_STRING_(a) #a
#define ADAPTERX_STRING(a) ADAPTERX_STRING_(a)

Kernels ADAPTERX_CONCAT(ADAPTERX_ISA, _kernels)() {
  using namespace ADAPTERX_ISA;
#ifdef ADAPTERX_BF16_DOT
  return {ADAPTERX_STRING(ADAPTERX_ISA),
          {nullptr, nullptr, forward<BFloat16>, nullptr},
          {nullptr, nullptr, backward<BFloat16>, nullptr}};
#else
  return {ADAPTERX_STRING(ADAPTERX_ISA),
          {forward<float>, forward<double>, forward<BFloat16>, forward<Half>},
          {backward<float>, backward<double>, backward<BFloat16>, backward<Half>}};
#endif
}

}  // namespace adapterx::cpu
