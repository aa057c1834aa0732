// Host twins of what runs beside the threads on sm_90: mbarriers, bulk copies, stores to other blocks that land on a
// barrier. PTX ISA 8.0, sections 9.7.12.15 (mbarrier), 9.7.8.24 (cp.async.bulk), 9.7.8.11 (st.async).
//
// A transfer happens at issue where `eager_copies` is set. Otherwise its target holds NaN patterns from the issue on and
// it lands when no thread can go on and one waits on its barrier; under the random order in pieces of whole 16 bytes, in
// any order and also before. A bulk store reads shared memory when its thread waits for that, and writes global memory
// when its thread waits for that or when the launch ends.
#pragma once

#include "collectives.h"
#include "landing.h"

namespace emulator {

// ---- mbarriers -----------------------------------------------------------------------------------------------------

// The barrier at this place of this block. Another thread than its maker needs the maker's fence and a barrier between.
inline Barrier& barrier_at(const uint64_t* place, Here here) {
  machine().at("an mbarrier", here);
  check_place(place, sizeof *place);
  Barrier* barrier = machine().find_barrier(place);
  if (barrier == nullptr) machine().fail("an mbarrier that was not initialised, or was overwritten");
  if (!machine().sees(*barrier)) machine().fail("an mbarrier used before its maker's fence and a barrier behind it");
  return *barrier;
}

inline void barrier_init(uint64_t* place, unsigned arrivals, Here here = Here::now()) {
  machine().at("barrier_init", here);
  check_place(place, sizeof *place);
  if (arrivals < 1 || arrivals > kMaxBarrierCount) machine().fail("an mbarrier of other than 1 to 2^20 - 1 arrivals");
  if (machine().find_barrier(place) != nullptr) machine().fail("an mbarrier initialised twice");
  machine().make_barrier(place, arrivals);
}

inline void barrier_init_fence() { machine().fence_barriers(); }

inline void barrier_arrive(uint64_t* place, Here here = Here::now()) { machine().arrive(barrier_at(place, here), 0); }
inline void barrier_expect(uint64_t* place, unsigned bytes, Here here = Here::now()) {
  machine().arrive(barrier_at(place, here), bytes);
}

// Parity tells two phases apart: the current one and the one before it. Whoever still waits when a second phase has
// ended would, on a GPU, wait for a phase that may never end.
template <bool kCluster>
inline void wait_for_phase(const uint64_t* place, unsigned parity, Here here) {
  const Barrier& barrier = barrier_at(place, here);
  if (parity > 1) machine().fail("barrier_wait for a parity other than 0 and 1");
  const int64_t awaited = barrier.phase - (barrier.phase % 2 == parity ? 0 : 1);
  machine().at("barrier_wait", here);
  while (barrier.phase <= awaited) machine().wait_for(barrier);
  if (barrier.phase > awaited + 1) machine().fail("a second phase of an mbarrier ended while a thread waited for one");
  if (barrier.last_remote && !kCluster) {
    machine().fail("barrier_wait for what another block has stored: it takes barrier_wait_cluster");
  }
}

inline void barrier_wait(uint64_t* place, unsigned parity, Here here = Here::now()) {
  wait_for_phase<false>(place, parity, here);
}
inline void barrier_wait_cluster(uint64_t* place, unsigned parity, Here here = Here::now()) {
  wait_for_phase<true>(place, parity, here);
}

// ---- transfers that land on an mbarrier ----------------------------------------------------------------------------

inline void check_bulk(const void* global, const void* shared, unsigned bytes) {
  if (bytes == 0 || bytes % 16 != 0) machine().fail("a bulk copy of other than whole 16 bytes");
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) machine().fail("a bulk copy at a misaligned global address");
  check_place(shared, 16);
  if (!machine().block().shared.contains(shared, bytes)) machine().fail("a bulk copy out of shared memory's range");
  // Read here and now what may fault later: inside, every page of the range is mapped or the range is no tensor.
  const auto* first = static_cast<const volatile unsigned char*>(global);
  (void)first[0], (void)first[bytes - 1];
}

inline void bulk_load(void* target, const void* source, unsigned bytes, uint64_t* place, Here here = Here::now()) {
  Barrier& barrier = barrier_at(place, here);
  if (!barrier.fenced) machine().fail("a bulk copy on an mbarrier before barrier_init_fence");
  check_bulk(source, target, bytes);
  const Block& block = machine().block();
  if (block.any(block.unfenced, target, bytes)) {
    machine().fail("a bulk copy over shared memory whose writer has not called async_proxy_fence");
  }
  machine().counters.copied_bytes += bytes;
  Transfer transfer;
  transfer.target = static_cast<unsigned char*>(target);
  transfer.source = static_cast<const unsigned char*>(source);
  transfer.bytes = bytes;
  machine().issue(barrier, transfer);
}

template <typename T>
inline void store_remote_value(T* pointer, unsigned rank, const T& value, uint64_t* place, Here here) {
  machine().at("store_remote", here);
  auto* target = reinterpret_cast<unsigned char*>(cluster_map(pointer, rank));
  check_place(place, sizeof *place);
  Barrier* barrier = machine().find_barrier(cluster_map(place, rank));
  if (barrier == nullptr) machine().fail("a store on an mbarrier that was not initialised, or was overwritten");
  if (!machine().sees(*barrier)) machine().fail("an mbarrier used before its maker's fence and a barrier behind it");
  Transfer transfer;
  transfer.target = target;
  std::memcpy(transfer.value, &value, sizeof value);
  transfer.bytes = sizeof value;
  transfer.remote = static_cast<int>(rank) != machine().current->block;
  machine().issue(*barrier, transfer);
}

inline void store_remote(float4* pointer, unsigned rank, float4 value, uint64_t* place, Here here = Here::now()) {
  store_remote_value(pointer, rank, value, place, here);
}
inline void store_remote(uint32_t* pointer, unsigned rank, uint32_t value, uint64_t* place, Here here = Here::now()) {
  store_remote_value(pointer, rank, value, place, here);
}
inline void store_remote(uint2* pointer, unsigned rank, uint2 value, uint64_t* place, Here here = Here::now()) {
  store_remote_value(pointer, rank, value, place, here);
}

// ---- bulk stores ---------------------------------------------------------------------------------------------------

inline void async_proxy_fence() {
  Block& block = machine().block();
  for (const size_t unit : machine().current->unfenced) {
    if (block.unfenced[unit] == machine().current) block.unfenced[unit] = nullptr;
  }
  machine().current->unfenced.clear();
}

inline void bulk_store(void* target, const void* source, unsigned bytes, Here here = Here::now()) {
  machine().at("bulk_store", here);
  check_bulk(target, source, bytes);
  Block& block = machine().block();
  if (block.any(block.unfenced, source, bytes)) {
    machine().fail("a bulk store of shared memory whose writer has not called async_proxy_fence");
  }
  if (block.any(block.incoming, source, bytes)) {
    machine().fail("a bulk store of shared memory that a transfer is under way to");
  }
  block.count(block.unread, source, bytes, 1);
  BulkStore store;
  store.target = static_cast<unsigned char*>(target);
  store.source = static_cast<const unsigned char*>(source);
  store.bytes = bytes;
  if (machine().options.eager_copies) store.read(), store.write();
  machine().current->open_stores.push_back(std::move(store));
}

inline void bulk_commit() {
  Thread& thread = *machine().current;
  thread.store_groups.push_back({std::move(thread.open_stores), false});
  thread.open_stores.clear();
}

template <int kPending>
inline void bulk_wait_read() {
  auto& groups = machine().current->store_groups;
  for (size_t i = 0; i + kPending < groups.size(); ++i) {
    if (groups[i].read) continue;
    groups[i].read = true;
    for (BulkStore& store : groups[i].stores) {
      store.read();
      machine().block().count(machine().block().unread, store.source, store.bytes, -1);
    }
  }
}

template <int kPending>
inline void bulk_wait() {
  auto& groups = machine().current->store_groups;
  bulk_wait_read<kPending>();
  while (groups.size() > kPending) {
    for (BulkStore& store : groups.front().stores) store.write();
    groups.pop_front();
  }
}

// ---- programmatic dependent launch ---------------------------------------------------------------------------------

inline void dependents_launch() { ++machine().counters.dependents_launches; }
inline void dependency_wait() { ++machine().counters.dependency_waits; }

}  // namespace emulator
