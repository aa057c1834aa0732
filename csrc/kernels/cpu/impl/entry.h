// The whole implementation, compiled once per instruction set into its own namespace.
// Included after `#pragma target`: nothing in this folder may instantiate a template or inline function of the standard
// library, since the linker could then choose the wide copy for a machine that cannot run it. Every file here includes
// what it uses; what lies outside the folder comes through outside.h.
#pragma once

#include "backward_gradients.h"
#include "backward_grouped.h"
#include "forward_few.h"
#include "forward_grouped.h"

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
