// The whole implementation, compiled once per instruction set into its own namespace.
// Included after `#pragma target`: nothing below may instantiate a template or inline function of the standard
// library, since the linker could then choose the wide copy for a machine that cannot run it.
// The order is that of their needs.
// clang-format off
#include "vector.h"
#include "rows.h"
#include "activation.h"
#include "gemm.h"
#include "transpose.h"
#include "pack.h"
#include "ahead.h"
#include "driver.h"
#include "forward.h"
#include "forward_few.h"
#include "walk.h"
#include "forward_grouped.h"
#include "backward_job.h"
#include "backward.h"
#include "backward_gradients.h"
#include "backward_grouped.h"
// clang-format on

namespace adapterx::cpu {
namespace ADAPTERX_ISA {
namespace {

template <typename T>
Entries entries_of() {
  return {forward<T>, backward<T>, grouped_forward<T>, grouped_backward<T>};
}

}  // namespace
}  // namespace ADAPTERX_ISA

#define ADAPTERX_CONCAT_(a, b) a##b
#define ADAPTERX_CONCAT(a, b) ADAPTERX_CONCAT_(a, b)
#define ADAPTERX_STRING_(a) #a
#define ADAPTERX_STRING(a) ADAPTERX_STRING_(a)

Kernels ADAPTERX_CONCAT(ADAPTERX_ISA, _kernels)() {
  using namespace ADAPTERX_ISA;
#ifdef ADAPTERX_BF16_DOT
  return {ADAPTERX_STRING(ADAPTERX_ISA), {{}, {}, entries_of<BFloat16>(), {}}};
#else
  return {ADAPTERX_STRING(ADAPTERX_ISA),
          {entries_of<float>(), entries_of<double>(), entries_of<BFloat16>(), entries_of<Half>()}};
#endif
}

}  // namespace adapterx::cpu
