// The kernels in plain vector code, for every machine the compiler targets.
#include "impl/outside.h"

#define ADAPTERX_ISA baseline
#define ADAPTERX_VECTOR_BYTES 16
#include "impl/entry.h"
