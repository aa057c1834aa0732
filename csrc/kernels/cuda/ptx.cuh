// Everything a kernel does that C++ cannot say. The only file with inline PTX and calls of the device's system.
// Each function has a twin in the host emulator (tests/emulator/collectives.h), chosen where ADAPTERX_EMULATE is
// defined, so that the kernels above this file compile unchanged for the GPU and for the host. Source: PTX ISA 8.0,
// sections 9.7.13 (ldmatrix, mma), 9.7.8.25 (cp.async), 9.7.12 (barrier.cluster), 9.7.8.23 (mapa).
#pragma once

#include "runtime.h"

#ifndef ADAPTERX_EMULATE
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// Dynamic shared memory of this block as bytes; 128 keeps every tile on a whole row of banks.
#define ADAPTERX_SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#include <cstdint>

namespace adapterx::cuda {

#ifdef ADAPTERX_EMULATE

using emulator::assertion_failed;
using emulator::cluster_map;
using emulator::cluster_rank;
using emulator::cluster_sync;
using emulator::cp_async16;
using emulator::cp_async_commit;
using emulator::cp_async_wait;
using emulator::ldmatrix_x4;
using emulator::ldmatrix_x4_trans;
using emulator::mma;

#else

// Ends the launch as a failed assert() does, with NDEBUG too: the words and the place go to stderr, and every later
// call in this context reports cudaErrorAssert, "device-side assert triggered".
__device__ __forceinline__ void assertion_failed(const char* words, const char* file, unsigned line,
                                                 const char* function) {
#ifdef __CUDA_ARCH__  // the toolkit declares it for the device alone
  __assert_fail(words, file, line, function);
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Loads four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 and receives, of
// matrix i, elements (l / 4, 2 * (l % 4)) and the one right of it in r[i].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// As ldmatrix_x4 with every 8x8 matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d(16x8, fp32) += a(16x16, row-major) * b(16x8, column-major)
template <typename Element>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies `bytes` (0 to 16) from global to shared memory asynchronously and zeroes the rest of the 16. Both addresses
// must be 16-byte aligned; `source` is not read where bytes is 0.
__device__ __forceinline__ void cp_async16(void* target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's newest groups are still under way. Other threads need a barrier.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Clusters exist from sm_90 on; on older architectures the functions are there and trap.
__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  __trap();
  return 0;
#endif
}

// A barrier of all threads of all blocks of the cluster; orders their accesses to distributed shared memory.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// The place in block `rank` of the cluster that corresponds to `pointer` in this block's shared memory.
template <typename T>
__device__ __forceinline__ T* cluster_map(T* pointer, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t mapped;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(mapped);
#else
  __trap();
  return pointer;
#endif
}

#endif  // ADAPTERX_EMULATE

}  // namespace adapterx::cuda
