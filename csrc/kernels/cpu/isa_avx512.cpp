// The kernels compiled for avx512f,avx512bw,avx512dq,avx512vl,fma,f16c.
// The target is set after the system headers: their inline functions must stay runnable on every machine.
#include "impl/outside.h"

#ifdef ADAPTERX_X86
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own AVX-512 header trips over it (gcc.gnu.org/PR105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

#define ADAPTERX_ISA avx512
#define ADAPTERX_VECTOR_BYTES 64
#define ADAPTERX_X86_VECTORS
#include "impl/entry.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // ADAPTERX_X86
