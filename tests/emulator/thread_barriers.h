// The machine's barriers of threads. The last thread to arrive releases the others and goes on without a switch.
#pragma once

#include "machine.h"

namespace emulator {

inline void Machine::sync_block(const char* where) {
  at(where);
  if (++block().arrived == block().live) return release_block(current->block);
  wait();
}

// The barrier `number` of `threads` threads, whole warps, of the block.
inline void Machine::sync_named(int number, int threads) {
  at("block_barrier");
  if (number < 1 || number >= kNamedBarriers) fail("block_barrier with a number other than 1 to 15");
  if (threads < 1 || threads % kWarpSize != 0 || threads > threads_per_block_) {
    fail("block_barrier of other than whole warps of the block");
  }
  NamedBarrier& barrier = block().named[number];
  if (barrier.arrived.empty()) barrier.threads = threads;
  if (barrier.threads != threads) fail("block_barrier reached with different numbers of threads");
  barrier.arrived.push_back(current);
  if (static_cast<int>(barrier.arrived.size()) == threads) return release_named(barrier);
  wait();
}

// The two halves of the cluster's barrier.
inline void Machine::arrive_cluster() {
  if (current->cluster_arrivals > current->cluster_waits) fail("cluster_arrive twice without cluster_wait");
  ++current->cluster_arrivals;
  if (++cluster_arrived_ == cluster_live_) release_cluster();
}
inline void Machine::wait_cluster(const char* where) {
  at(where);
  if (current->cluster_arrivals == current->cluster_waits) fail("cluster_wait without cluster_arrive");
  while (cluster_phase_ < current->cluster_arrivals) {
    current->waits_for_cluster = true;
    wait();
  }
  ++current->cluster_waits;
}

inline void Machine::sync_warp(const char* where) {
  at(where);
  if (++warp().arrived == warp().live) return release_warp(current->warp);
  wait();
}

inline void Machine::wait() {
  ++counters.switches;
  current->ready = false;
  current->fiber.leave();
}

// All threads of a block must stand at the same barrier.
inline void Machine::release_block(int rank) {
  const char* where = nullptr;
  for (int i = rank * threads_per_block_; i < (rank + 1) * threads_per_block_; ++i) {
    if (threads_[i].done) continue;
    if (where != nullptr && threads_[i].where != where) {
      fail(std::string("__syncthreads reached at different places: ") + where + " and " + threads_[i].where);
    }
    where = threads_[i].where;
    threads_[i].ready = true;
  }
  blocks_[rank].arrived = 0;
  ++blocks_[rank].barriers_passed;
}

inline void Machine::release_named(NamedBarrier& barrier) {
  int lanes[kMaxThreads / kWarpSize] = {};
  for (Thread* thread : barrier.arrived) {
    thread->ready = true;
    ++lanes[thread->warp % (threads_per_block_ / kWarpSize)];
  }
  for (const int count : lanes) {
    if (count != 0 && count != kWarpSize) fail("block_barrier reached by a part of a warp");
  }
  if (barrier.threads == block().live) ++block().barriers_passed;
  barrier.arrived.clear();
}

inline void Machine::release_cluster() {
  ++cluster_phase_;
  cluster_arrived_ = 0;
  for (int i = 0; i < num_threads_; ++i) {
    if (std::exchange(threads_[i].waits_for_cluster, false)) threads_[i].ready = true;
  }
}

inline void Machine::release_warp(int warp) {
  const char* where = nullptr;
  const int first = warp * kWarpSize;
  for (int i = first; i < std::min(first + kWarpSize, num_threads_); ++i) {
    if (threads_[i].done) continue;
    if (where != nullptr && threads_[i].where != where) fail("the lanes of a warp reached different operations");
    where = threads_[i].where;
    threads_[i].ready = true;
  }
  warps_[warp].arrived = 0;
}

// A thread that returns no longer takes part in barriers; it may be the one the others wait for.
inline void Machine::finish_thread() {
  current->done = true;
  current->ready = false;
  Block& b = block();
  Warp& w = warp();
  --w.live, --b.live, --cluster_live_;
  if (!current->open_group.empty() || !current->groups.empty()) {
    for (const auto& group : current->groups) {
      if (!group.empty()) fail("a thread ended with cp.async copies that it never waited for");
    }
  }
  if (!current->open_stores.empty()) fail("a thread ended with bulk stores that it never committed");
  for (BulkGroup& group : current->store_groups) {
    if (!group.read && !group.stores.empty()) fail("a thread ended with bulk stores that it never waited for");
    std::move(group.stores.begin(), group.stores.end(), std::back_inserter(late_stores_));
  }
  if (b.live == 0) finish_block();
  if (current->cluster_arrivals > cluster_phase_) --cluster_arrived_;  // arrived, but does not wait
  if (w.live > 0 && w.arrived == w.live) release_warp(current->warp);
  if (b.live > 0 && b.arrived == b.live) release_block(current->block);
  if (cluster_live_ > 0 && cluster_arrived_ == cluster_live_) release_cluster();
}

}  // namespace emulator
