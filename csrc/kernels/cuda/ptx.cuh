// Everything a kernel does that C++ cannot say. The only file with inline PTX and calls of the device's system.
// Each function has a twin in the host emulator (tests/emulator/collectives.h), chosen where ADAPTERX_EMULATE is
// defined, so that the kernels above this file compile unchanged for the GPU and for the host. Source: PTX ISA 8.0,
// sections 9.7.13 (ldmatrix, stmatrix, movmatrix, mma), 9.7.8.24 (cp.async, cp.async.bulk), 9.7.12 (bar, barrier.cluster,
// mbarrier, griddepcontrol), 9.7.8.11 (st.async), 9.7.8.23 (mapa).
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
using emulator::async_proxy_fence;
using emulator::barrier_arrive;
using emulator::barrier_expect;
using emulator::barrier_init;
using emulator::barrier_init_fence;
using emulator::barrier_wait;
using emulator::barrier_wait_cluster;
using emulator::block_barrier;
using emulator::bulk_commit;
using emulator::bulk_load;
using emulator::bulk_store;
using emulator::bulk_wait;
using emulator::bulk_wait_read;
using emulator::cluster_arrive;
using emulator::cluster_arrive_relaxed;
using emulator::cluster_map;
using emulator::cluster_rank;
using emulator::cluster_sync;
using emulator::cluster_wait;
using emulator::cp_async16;
using emulator::cp_async_commit;
using emulator::cp_async_wait;
using emulator::dependency_wait;
using emulator::dependents_launch;
using emulator::lane_number;
using emulator::ldmatrix_x4;
using emulator::ldmatrix_x4_trans;
using emulator::mma;
using emulator::movmatrix_trans;
using emulator::prefetch;
using emulator::prefetch_far;
using emulator::shuffle_xor;
using emulator::stmatrix_x4_trans;
using emulator::store_remote;
using emulator::warp_number;

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

// The two halves of cluster_sync. What a thread has done before `arrive` is seen behind `wait` by all threads of the
// cluster; `relaxed` orders nothing and says only that the thread has come so far.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// A barrier of `threads` threads of the block, whole warps; `number` 1 to 15 (0 is that of __syncthreads).
__device__ __forceinline__ void block_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// This thread's lane. Volatile, so that what follows from it is computed where it is wanted and not kept in registers
// from the start of a loop.
__device__ __forceinline__ int lane_number() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// This thread's warp, told so that the compiler knows it to be the same for all lanes.
__device__ __forceinline__ int warp_number() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0); }

// Asks for the line of global memory at `address` without a register to wait with.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

// As prefetch, no nearer than L2.
__device__ __forceinline__ void prefetch_far(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Transposes one 8x8 matrix of 16-bit elements that a warp holds, lane l elements (l / 4, 2 * (l % 4)) and the one right
// of it.
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// The value of the lane whose number differs in the bits of `mask`.
__device__ __forceinline__ uint32_t shuffle_xor(uint32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// ---- from sm_90 on; on older architectures these are there and trap ----

// Stores four 8x8 matrices, each transposed: the inverse of ldmatrix_x4_trans.
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  __trap();
#endif
}

// An mbarrier: a place in shared memory that counts arrivals and bytes on their way. A phase ends when `arrivals`
// arrivals have come and every byte that was expected has landed; phases have the parities 0, 1, 0, ...
__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
  __trap();
#endif
}

// Makes barriers that this thread has initialised known to the copies and to the other blocks of the cluster; a barrier
// of the block, or of the cluster, must follow.
__device__ __forceinline__ void barrier_init_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
  __trap();
#endif
}

// Arrives, and adds `bytes` to what the phase waits for.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}

// Waits until the phase of this parity has ended: it, or the one after it, must be the current one.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  unsigned done = 0;
  while (done == 0) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  }
#else
  __trap();
#endif
}

// As barrier_wait, and sees what other blocks of the cluster have stored by store_remote. That lands in this block's own
// shared memory, which no cache lies before: an acquire of the block's scope suffices (as in CUTLASS), where one of the
// cluster's would empty L1 each time. The emulator tells the two apart.
__device__ __forceinline__ void barrier_wait_cluster(uint64_t* barrier, unsigned parity) {
  barrier_wait(barrier, parity);
}

// Copies `bytes`, a multiple of 16, from global to this block's shared memory, both 16-byte aligned; they count as landed
// on `barrier`, which must have been told to expect them. One thread issues the whole copy.
__device__ __forceinline__ void bulk_load(void* target, const void* source, unsigned bytes, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(target)),
               "l"(source), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#else
  __trap();
#endif
}

// The way back. What threads have written to shared memory needs async_proxy_fence by each of them and a barrier first.
__device__ __forceinline__ void bulk_store(void* target, const void* source, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target), "r"(shared_address(source)),
               "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}

// Makes the bulk stores of this thread since the last commit a group.
__device__ __forceinline__ void bulk_commit() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  __trap();
#endif
}

// Waits until at most kPending of this thread's newest groups are under way: `read`, to have read shared memory, which
// may then be overwritten; else, to have written global memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#else
  __trap();
#endif
}
template <int kPending>
__device__ __forceinline__ void bulk_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#else
  __trap();
#endif
}

// Orders this thread's accesses to shared memory with those of bulk copies.
__device__ __forceinline__ void async_proxy_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}

// The address that st.async and remote arrivals take: `pointer`'s place in block `rank` of the cluster.
__device__ __forceinline__ uint32_t remote_address(const void* pointer, unsigned rank) {
  uint32_t mapped = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared_address(pointer)), "r"(rank));
#else
  __trap();
#endif
  return mapped;
}

// Stores to the place in block `rank` that corresponds to `place` here; the bytes count as landed on that block's
// `barrier`, which must expect them. Asynchronous; who waits on the barrier by barrier_wait_cluster sees the value.
__device__ __forceinline__ void store_remote(float4* place, unsigned rank, float4 value, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
                   remote_address(place, rank)),
               "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(remote_address(barrier, rank))
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void store_remote(uint2* place, unsigned rank, uint2 value, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(
                   remote_address(place, rank)),
               "r"(value.x), "r"(value.y), "r"(remote_address(barrier, rank))
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void store_remote(uint32_t* place, unsigned rank, uint32_t value, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(remote_address(place, rank)),
      "r"(value), "r"(remote_address(barrier, rank))
      : "memory");
#else
  __trap();
#endif
}

// Programmatic dependent launch: the next kernel of the stream may start once all blocks of this one have said so or
// ended; there, `dependency_wait` returns when the kernels before it have ended and their writes are seen. Without the
// launch attribute both do nothing.
__device__ __forceinline__ void dependents_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif  // ADAPTERX_EMULATE

}  // namespace adapterx::cuda
