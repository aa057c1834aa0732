// CUDA for the host: include it in place of the CUDA headers, define ADAPTERX_EMULATE, and kernels run as fibers.
//
// Finds: wrong results on any schedule, missing barriers, missing or miscounted waits for copies, barriers reached at
// different places, deadlocks, accesses past the end of global or shared memory, reads of memory that nobody wrote (NaN
// poison), misaligned accesses by instructions of ptx.cuh (plain ones are trapped by -fsanitize=alignment, as the suites
// are built), launches beyond the limits, shared memory of a block that has ended; mbarriers used before they are known,
// with an arrival or a byte too many or too few; bulk copies of and to what is still being read or written; counts
// ldmatrix bank conflicts. Cannot find: anything about speed or registers, races inside a warp that only weak memory
// ordering shows, the rounding order of the hardware's sums, plain stores that a bulk store reads without
// async_proxy_fence. Not modelled: static __shared__ variables, wgmma, TMA by tensor maps, warp votes.
#pragma once

#include "asynchronous.h"
#include "collectives.h"
#include "host_types.h"
#include "machine.h"

#define threadIdx (emulator::machine().current->index)
#define blockIdx (emulator::machine().block().index)
#define blockDim (emulator::machine().block_shape())
#define gridDim (emulator::machine().grid())

#define ADAPTERX_STRING_(x) #x
#define ADAPTERX_STRING(x) ADAPTERX_STRING_(x)
#define __syncthreads() emulator::machine().sync_block(__FILE__ ":" ADAPTERX_STRING(__LINE__))
#define __syncwarp() emulator::machine().sync_warp(__FILE__ ":" ADAPTERX_STRING(__LINE__))
#define __trap() emulator::machine().fail("__trap()")
#define ADAPTERX_SHARED_MEMORY(name) unsigned char* name = emulator::machine().block().shared.data()

namespace emulator {

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_memory, int cluster_size,
                   bool programmatic, Parameters... parameters) {
  machine().launch([=] { kernel(parameters...); }, grid, block, shared_memory, cluster_size, programmatic);
  return cudaSuccess;
}

}  // namespace emulator
