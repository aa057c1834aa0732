// The kernels compiled for avx2,fma,f16c.
// The target is set after the system headers: their inline functions must stay runnable on every machine.
#include "impl/outside.h"

#ifdef ADAPTERX_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define ADAPTERX_ISA avx2
#define ADAPTERX_VECTOR_BYTES 32
#define ADAPTERX_X86_VECTORS
#include "impl/entry.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // ADAPTERX_X86
