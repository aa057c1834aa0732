// The machine's mbarriers, and when what is under way to them lands.
#pragma once

#include "machine.h"

namespace emulator {

// An mbarrier's eight bytes hold its number, so that one that was overwritten is not found.
inline Barrier* Machine::find_barrier(const uint64_t* place) {
  const uint64_t number = *place ^ kBarrierMark;
  return number < barriers_.size() && barriers_[number].place == place ? &barriers_[number] : nullptr;
}

inline void Machine::make_barrier(uint64_t* place, unsigned arrivals) {
  *place = kBarrierMark ^ barriers_.size();
  Barrier& barrier = barriers_.emplace_back();
  barrier.place = place;
  barrier.block = current->block;
  barrier.arrivals = barrier.pending = arrivals;
  barrier.maker = number_of(*current);
}

inline void Machine::fence_barriers() {
  for (Barrier& barrier : barriers_) {
    if (barrier.fenced || barrier.maker != number_of(*current)) continue;
    barrier.fenced = true;
    barrier.fence_block = block().barriers_passed;
    barrier.fence_cluster = current->cluster_arrivals;
  }
}

// Whether the barrier is known to the current thread: its maker's fence lies before a barrier that both have passed.
inline bool Machine::sees(const Barrier& barrier) {
  if (barrier.maker == number_of(*current)) return true;
  if (!barrier.fenced) return false;
  if (current->cluster_waits > barrier.fence_cluster) return true;
  return current->block == barrier.block && block().barriers_passed > barrier.fence_block;
}

inline void Machine::arrive(Barrier& barrier, unsigned bytes) {
  if (barrier.pending == 0) fail("an arrival too many at an mbarrier");
  --barrier.pending;
  barrier.bytes += bytes;
  if (barrier.bytes > kMaxBarrierCount) fail("an mbarrier that expects 2^20 bytes or more");
  end_phase(barrier);
}

// Begins the next phase where the current one is complete.
inline void Machine::end_phase(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  barrier.last_remote = std::exchange(barrier.remote, false);
  for (int i = 0; i < num_threads_; ++i) {
    if (threads_[i].awaited == &barrier) threads_[i].awaited = nullptr, threads_[i].ready = true;
  }
}

inline void Machine::wait_for(const Barrier& barrier) {
  current->awaited = &barrier;
  wait();
}

inline void Machine::issue(Barrier& barrier, const Transfer& transfer) {
  Block& target = blocks_[barrier.block];
  if (target.any(target.incoming, transfer.target, transfer.bytes)) fail("two transfers to the same shared memory");
  if (target.any(target.unread, transfer.target, transfer.bytes)) {
    fail("a transfer to shared memory that a bulk store has yet to read");
  }
  target.count(target.incoming, transfer.target, transfer.bytes, 1);
  barrier.under_way.push_back(transfer);
  if (options.eager_copies) return land(barrier, barrier.under_way.size() - 1, transfer.bytes);
  std::memset(transfer.target, kPoison, transfer.bytes);
}

// Lands `bytes` of transfer `i` and counts them.
inline void Machine::land(Barrier& barrier, size_t i, unsigned bytes) {
  Transfer& transfer = barrier.under_way[i];
  const Transfer piece = transfer.split(bytes, random_() % 2 == 0);
  if (transfer.bytes == 0) {
    std::swap(transfer, barrier.under_way.back());
    barrier.under_way.pop_back();
  }
  if (find_barrier(barrier.place) != &barrier) fail("an mbarrier was overwritten while copies to it were under way");
  Block& target = blocks_[barrier.block];
  target.count(target.incoming, piece.target, piece.bytes, -1);
  piece.land();
  barrier.bytes -= bytes;
  barrier.remote |= piece.remote;
  if (barrier.bytes < -kMaxBarrierCount) fail("2^20 bytes or more landed on an mbarrier before it expected them");
  end_phase(barrier);
}

// Lands some of what is under way, in the order of the schedule.
inline void Machine::land_pieces(Barrier& barrier, int pieces) {
  while (pieces-- > 0 && !barrier.under_way.empty()) {
    const size_t count = barrier.under_way.size();
    if (options.order == Order::random) {
      const size_t i = random_() % count;
      const unsigned units = barrier.under_way[i].bytes / 16;
      land(barrier, i, units <= 1 ? barrier.under_way[i].bytes : 16 * (1 + random_() % units));
    } else {
      const size_t i = options.order == Order::reverse ? count - 1 : 0;
      land(barrier, i, barrier.under_way[i].bytes);
    }
  }
}

// Under the random order something may land at any time.
inline bool Machine::land_by_chance() {
  if (options.order != Order::random || barriers_.empty()) return false;
  Barrier& barrier = barriers_[random_() % barriers_.size()];
  const bool any = !barrier.under_way.empty();
  land_pieces(barrier, 1);
  return any;
}

// Where no thread of the block, or of all, can go on: lands what some of them wait for, of one barrier. Says whether
// there was any.
inline bool Machine::land_awaited(int rank) {
  std::vector<Barrier*> awaited;
  for (int i = 0; i < num_threads_; ++i) {
    auto* barrier = const_cast<Barrier*>(threads_[i].awaited);
    if (barrier == nullptr || barrier->under_way.empty() || (rank != kAllBlocks && barrier->block != rank)) continue;
    if (awaited.empty() || awaited.back() != barrier) awaited.push_back(barrier);
  }
  if (awaited.empty()) return false;
  if (options.order == Order::random) {
    land_pieces(*awaited[random_() % awaited.size()], 1 + static_cast<int>(random_() % 16));
  } else {
    Barrier& barrier = options.order == Order::reverse ? *awaited.back() : *awaited.front();
    land_pieces(barrier, static_cast<int>(barrier.under_way.size()));
  }
  return true;
}

// Nothing may be on its way to a block that has ended.
inline void Machine::finish_block() {
  for (const Barrier& barrier : barriers_) {
    if (barrier.block == current->block && !barrier.under_way.empty()) {
      fail("a block ended while copies or stores to it were under way");
    }
  }
}

inline void Machine::report_deadlock() const {
  std::string places, barriers;
  for (int i = 0; i < num_threads_; ++i) {
    if (threads_[i].done) continue;
    const std::string where = threads_[i].where + threads_[i].here.text();
    if (places.find(where) == std::string::npos) places += (places.empty() ? " " : ", ") + where;
    const Barrier* barrier = threads_[i].awaited;
    if (barrier == nullptr) continue;
    const auto offset = reinterpret_cast<const unsigned char*>(barrier->place) - blocks_[barrier->block].shared.data();
    const std::string state = "; the mbarrier at byte " + std::to_string(offset) + " of block " +
                              std::to_string(barrier->block) + " of the cluster, in phase " +
                              std::to_string(barrier->phase) + ", lacks " + std::to_string(barrier->pending) +
                              " arrivals and " + std::to_string(barrier->bytes) + " bytes";
    if (barriers.find(state) == std::string::npos) barriers += state;
  }
  throw Error("emulator: deadlock, threads wait at:" + places + barriers);
}

}  // namespace emulator
