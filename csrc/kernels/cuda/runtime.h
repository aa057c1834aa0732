// The CUDA runtime as the kernels see it: NVIDIA's headers, or the host emulator where ADAPTERX_EMULATE is defined.
#pragma once

#ifdef ADAPTERX_EMULATE
#include "cuda_emulator.h"  // tests/emulator, put on the include path by its CMakeLists.txt
#else
#include <cuda_runtime_api.h>
#endif
