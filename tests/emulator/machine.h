// The machine: runs the threads of a cluster of blocks as fibers on one host thread, one cluster after another.
//
// A warp runs as far as it can before the next one gets a turn, and within it a lane runs to the next warp-wide
// operation: the schedule that a missing barrier is least likely to survive. The order of warps and lanes is an option.
#pragma once

#include <cstdio>
#include <deque>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "guarded_memory.h"
#include "host_types.h"
#include "transfers.h"

namespace emulator {

enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::forward;  // of the warps, and of the lanes within a warp
  // cp.async copies at issue (shows a stage overwritten too early) or at the wait (shows a missing wait).
  bool eager_copies = false;
  unsigned seed = 1;
};

struct Counters {
  int64_t launches = 0;
  int64_t switches = 0;
  int64_t mma = 0;             // per warp
  int64_t ldmatrix = 0;        // per warp
  int64_t bank_conflicts = 0;  // ldmatrix phases times extra rows that meet in one group of banks
  int64_t copied_bytes = 0;    // global memory read by cp.async and bulk copies
  int64_t dependents_launches = 0, dependency_waits = 0;  // per thread
};

// Limits of one block on sm_90 (CUDA programming guide, technical specifications per compute capability).
inline constexpr int64_t kMaxThreads = 1024;
inline constexpr int64_t kMaxBarrierCount = (1 << 20) - 1;  // an mbarrier's arrivals; bytes under way, either sign
inline constexpr int64_t kMaxSharedMemory = 227 * 1024;
inline constexpr int kMaxClusterSize = 8;  // portable
inline constexpr unsigned kMaxGridYZ = 65535;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Thread {
  Fiber fiber;
  uint3 index = {};
  int lane = 0, warp = 0, block = 0;
  bool ready = false, done = false;
  int slot = 0;                     // which of the warp's two buffers the next exchange uses
  const char* where = "the start";  // the barrier or warp-wide operation it reached last
  Here here;                        // the line of it, where that is known
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;
  std::vector<BulkStore> open_stores;
  std::deque<BulkGroup> store_groups;
  const Barrier* awaited = nullptr;
  std::vector<size_t> unfenced;  // units of 16 bytes of shared memory that it has written since its last fence
  int64_t cluster_arrivals = 0, cluster_waits = 0;
  bool waits_for_cluster = false;
};

inline constexpr int kWarpSize = 32;
inline constexpr int kSlotBytes = 32;

struct Warp {
  int arrived = 0, live = 0;
  alignas(16) unsigned char slots[2][kWarpSize][kSlotBytes];
};

// A barrier of some of a block's threads.
struct NamedBarrier {
  int threads = 0;  // that it waits for
  std::vector<Thread*> arrived;
};
inline constexpr int kNamedBarriers = 16;
inline constexpr uint64_t kBarrierMark = 0x6d62617272696572;  // the eight bytes of an mbarrier, but for its number

struct Block {
  uint3 index = {};
  int arrived = 0, live = 0;
  int64_t barriers_passed = 0;  // by all its threads together
  GuardedMemory shared;
  NamedBarrier named[kNamedBarriers];
  std::vector<const Thread*> storing;   // the threads that have issued bulk stores
  std::vector<const Thread*> unfenced;  // who has written these 16 bytes and not called async_proxy_fence since
};

class Machine {
 public:
  Options options;
  Counters counters;
  Thread* current = nullptr;

  dim3 grid() const { return grid_; }
  dim3 block_shape() const { return block_shape_; }
  int cluster_size() const { return cluster_size_; }
  Block& block() { return blocks_[current->block]; }
  Block& block(int rank) { return blocks_[rank]; }
  Warp& warp() { return warps_[current->warp]; }

  // Ends the launch with a message. From a fiber it does not return: the scheduler takes over and throws.
  [[noreturn]] void fail(const std::string& message) {
    if (current == nullptr) throw Error("emulator: " + message);
    const uint3 b = block().index, t = current->index;
    error_ = "emulator: " + message + " (block " + std::to_string(b.x) + "," + std::to_string(b.y) + "," +
             std::to_string(b.z) + ", thread " + std::to_string(t.x) + ", last at " + current->where +
             current->here.text() + ")";
    for (;;) current->fiber.leave();
  }

  // Notes where the current thread is, for messages.
  void at(const char* where, Here here = {}) {
    current->where = where;
    current->here = here;
  }

  // Barriers. The last thread to arrive releases the others and goes on without a switch.
  void sync_block(const char* where) {
    at(where);
    if (++block().arrived == block().live) return release_block(current->block);
    wait();
  }
  // The barrier `number` of `threads` threads, whole warps, of the block.
  void sync_named(int number, int threads) {
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
  void arrive_cluster() {
    if (current->cluster_arrivals > current->cluster_waits) fail("cluster_arrive twice without cluster_wait");
    ++current->cluster_arrivals;
    if (++cluster_arrived_ == cluster_live_) release_cluster();
  }
  void wait_cluster(const char* where) {
    at(where);
    if (current->cluster_arrivals == current->cluster_waits) fail("cluster_wait without cluster_arrive");
    while (cluster_phase_ < current->cluster_arrivals) {
      current->waits_for_cluster = true;
      wait();
    }
    ++current->cluster_waits;
  }
  void sync_warp(const char* where) {
    at(where);
    if (++warp().arrived == warp().live) return release_warp(current->warp);
    wait();
  }

  // Shows `bytes` of this lane to the whole warp and returns what the 32 lanes have shown. Two buffers take turns: a
  // lane can only reach the third exchange when all have read the first.
  template <typename T>
  const unsigned char (*exchange(const T& value, const char* where)) [kSlotBytes] {
    static_assert(sizeof(T) <= kSlotBytes);
    Warp& w = warp();
    if (w.live != kWarpSize) fail(std::string(where) + " needs all 32 lanes");
    auto& slots = w.slots[current->slot];
    current->slot ^= 1;
    std::memcpy(slots[current->lane], &value, sizeof value);
    sync_warp(where);
    return slots;
  }

  // ---- mbarriers and what lands on them ----

  Barrier* find_barrier(const uint64_t* place) {
    const uint64_t number = *place ^ kBarrierMark;
    return number < barriers_.size() && barriers_[number].place == place ? &barriers_[number] : nullptr;
  }
  void make_barrier(uint64_t* place, unsigned arrivals) {
    *place = kBarrierMark ^ barriers_.size();
    Barrier& barrier = barriers_.emplace_back();
    barrier.place = place;
    barrier.block = current->block;
    barrier.arrivals = barrier.pending = arrivals;
    barrier.maker = number_of(*current);
  }
  void fence_barriers() {
    for (Barrier& barrier : barriers_) {
      if (barrier.fenced || barrier.maker != number_of(*current)) continue;
      barrier.fenced = true;
      barrier.fence_block = block().barriers_passed;
      barrier.fence_cluster = current->cluster_arrivals;
    }
  }
  // Whether the barrier is known to this thread.
  bool sees(const Barrier& barrier) {
    if (barrier.maker == number_of(*current)) return true;
    if (!barrier.fenced) return false;
    if (current->cluster_waits > barrier.fence_cluster) return true;
    return current->block == barrier.block && block().barriers_passed > barrier.fence_block;
  }
  // Begins the next phase where the current one is complete.
  void end_phase(Barrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
    barrier.last_remote = std::exchange(barrier.remote, false);
    for (int i = 0; i < num_threads_; ++i) {
      if (threads_[i].awaited == &barrier) threads_[i].awaited = nullptr, threads_[i].ready = true;
    }
  }
  void wait_for(const Barrier& barrier) {
    current->awaited = &barrier;
    wait();
  }
  void issue(Barrier& barrier, const Transfer& transfer) {
    barrier.under_way.push_back(transfer);
    if (options.eager_copies) return land(barrier, barrier.under_way.size() - 1, transfer.bytes);
    std::memset(transfer.target, kPoison, transfer.bytes);
  }
  template <class Visit>
  void each_transfer(const Visit& visit) const {
    for (const Barrier& barrier : barriers_) {
      for (const Transfer& transfer : barrier.under_way) visit(transfer);
    }
  }
  // The threads of a block that have issued bulk stores.
  template <class Visit>
  void each_storing_thread(int rank, const Visit& visit) const {
    for (const Thread* thread : blocks_[rank].storing) visit(*thread);
  }

  // ---- writes that bulk stores cannot see yet ----

  void note_write(const void* pointer) {
    const size_t unit = unit_of(pointer);
    auto& unfenced = block().unfenced;
    if (unfenced.size() <= unit) unfenced.resize(unit + 1);
    unfenced[unit] = current;
    current->unfenced.push_back(unit);
  }
  void fence_proxy() {
    auto& unfenced = block().unfenced;
    for (const size_t unit : current->unfenced) {
      if (unfenced[unit] == current) unfenced[unit] = nullptr;
    }
    current->unfenced.clear();
  }
  bool unfenced(const void* pointer, unsigned bytes) {
    const auto& unfenced = block().unfenced;
    const size_t first = unit_of(pointer), end = std::min(first + bytes / 16, unfenced.size());
    for (size_t unit = first; unit < end; ++unit) {
      if (unfenced[unit] != nullptr) return true;
    }
    return false;
  }

  void launch(std::function<void()> body, dim3 grid, dim3 block, int64_t shared_memory, int cluster_size);

 private:
  static void thread_main();
  void check_launch(int64_t shared_memory) const;
  void prepare_cluster(uint3 first_block, size_t shared_memory);
  void prepare_thread(int number, int rank, int linear);
  void run_cluster();
  bool run_warp(int warp);
  void finish_thread();
  void finish_block();
  void land(Barrier& barrier, size_t i, unsigned bytes);
  void land_pieces(Barrier& barrier, int pieces);
  bool land_awaited();
  [[noreturn]] void report_deadlock() const;

  int number_of(const Thread& thread) const { return static_cast<int>(&thread - threads_.get()); }
  size_t unit_of(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) / 16 - reinterpret_cast<uintptr_t>(block().shared.data()) / 16;
  }

  void wait() {
    ++counters.switches;
    current->ready = false;
    current->fiber.leave();
  }

  // All threads of a barrier must stand at the same one.
  template <class Belongs>
  void release(const char* kind, const Belongs& belongs) {
    const char* where = nullptr;
    for (int i = 0; i < num_threads_; ++i) {
      Thread& thread = threads_[i];
      if (thread.done || !belongs(thread)) continue;
      if (where != nullptr && thread.where != where) {
        fail(std::string(kind) + " reached at different places: " + where + " and " + thread.where);
      }
      where = thread.where;
      thread.ready = true;
    }
  }
  void release_block(int rank) {
    release("__syncthreads", [&](const Thread& t) { return t.block == rank; });
    blocks_[rank].arrived = 0;
    ++blocks_[rank].barriers_passed;
  }
  void release_named(NamedBarrier& barrier) {
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
  void release_cluster() {
    ++cluster_phase_;
    cluster_arrived_ = 0;
    for (int i = 0; i < num_threads_; ++i) {
      if (std::exchange(threads_[i].waits_for_cluster, false)) threads_[i].ready = true;
    }
  }
  void release_warp(int warp) {
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

  std::function<void()> body_;
  dim3 grid_, block_shape_;
  int cluster_size_ = 1, threads_per_block_ = 0, num_threads_ = 0;
  int cluster_arrived_ = 0, cluster_live_ = 0;
  int64_t cluster_phase_ = 0;  // barriers of the cluster that are complete
  std::deque<Barrier> barriers_;
  std::vector<BulkStore> late_stores_;  // that write when the launch ends
  std::string error_;
  std::unique_ptr<Thread[]> threads_;
  int allocated_threads_ = 0;
  std::vector<Warp> warps_;
  std::vector<Block> blocks_;
  std::mt19937 random_;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

inline void Machine::thread_main() {
  Fiber::arrived();
  Machine& m = machine();
  m.body_();
  m.finish_thread();
  for (;;) m.current->fiber.leave();
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

// Nothing may be on its way to a block that has ended.
inline void Machine::finish_block() {
  for (const Barrier& barrier : barriers_) {
    if (barrier.block == current->block && !barrier.under_way.empty()) {
      fail("a block ended while copies or stores to it were under way");
    }
  }
}

// Lands `bytes` of transfer `i` and counts them.
inline void Machine::land(Barrier& barrier, size_t i, unsigned bytes) {
  Transfer& transfer = barrier.under_way[i];
  Transfer piece = transfer;
  piece.bytes = bytes;
  if (bytes < transfer.bytes && random_() % 2 == 0) {  // from its end
    piece.target += transfer.bytes - bytes;
    piece.source += transfer.bytes - bytes;
  } else {
    transfer.target += bytes;
    if (transfer.source != nullptr) transfer.source += bytes;
  }
  transfer.bytes -= bytes;
  if (transfer.bytes == 0) {
    if (&transfer != &barrier.under_way.back()) transfer = barrier.under_way.back();
    barrier.under_way.pop_back();
  }
  if (find_barrier(barrier.place) != &barrier) fail("an mbarrier was overwritten while copies to it were under way");
  piece.land();
  barrier.bytes -= bytes;
  barrier.remote |= piece.remote;
  if (barrier.bytes < -kMaxBarrierCount) fail("more than 2^20 bytes landed on an mbarrier before it expected them");
  end_phase(barrier);
}

// Lands some of what is under way, by the order of the schedule.
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

// Where no thread can go on: lands what a waiting thread waits for, of one barrier. Says whether there was any.
inline bool Machine::land_awaited() {
  std::vector<Barrier*> awaited;
  for (Barrier& barrier : barriers_) {
    if (barrier.under_way.empty()) continue;
    for (int i = 0; i < num_threads_; ++i) {
      if (threads_[i].awaited != &barrier) continue;
      awaited.push_back(&barrier);
      break;
    }
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

inline void Machine::check_launch(int64_t shared_memory) const {
  const auto check = [](bool ok, const char* rule) {
    if (!ok) throw Error(std::string("emulator: launch: ") + rule);
  };
  check(threads_per_block_ >= 1 && threads_per_block_ <= kMaxThreads, "a block must have 1 to 1024 threads");
  check(threads_per_block_ % kWarpSize == 0, "a block must be made of whole warps");
  check(shared_memory >= 0 && shared_memory <= kMaxSharedMemory, "shared memory must fit in 227 KiB");
  check(shared_memory % 16 == 0, "shared memory must be a multiple of 16 bytes");
  check(cluster_size_ >= 1 && cluster_size_ <= kMaxClusterSize, "a cluster must have 1 to 8 blocks");
  check(grid_.x >= 1 && grid_.y >= 1 && grid_.z >= 1, "the grid must not be empty");
  check(grid_.x < 1u << 31 && grid_.y <= kMaxGridYZ && grid_.z <= kMaxGridYZ, "the grid is too large");
  check(grid_.x % cluster_size_ == 0, "the grid must be made of whole clusters");
}

inline void Machine::prepare_thread(int number, int rank, int linear) {
  Thread& thread = threads_[number];
  thread.index = {linear % block_shape_.x, linear / block_shape_.x % block_shape_.y,
                  linear / block_shape_.x / block_shape_.y};
  thread.lane = linear % kWarpSize;
  thread.warp = number / kWarpSize;
  thread.block = rank;
  thread.ready = true;
  thread.done = false;
  thread.slot = 0;
  thread.where = "the start";
  thread.open_group.clear();
  thread.groups.clear();
  thread.open_stores.clear();
  thread.store_groups.clear();
  thread.unfenced.clear();
  thread.here = {};
  thread.awaited = nullptr;
  thread.cluster_arrivals = thread.cluster_waits = 0;
  thread.waits_for_cluster = false;
  thread.fiber.prepare(&Machine::thread_main);
}

inline void Machine::prepare_cluster(uint3 first_block, size_t shared_memory) {
  if (allocated_threads_ < num_threads_) {
    threads_ = std::make_unique<Thread[]>(num_threads_);
    allocated_threads_ = num_threads_;
  }
  blocks_.resize(cluster_size_);
  warps_.resize(num_threads_ / kWarpSize);
  for (int rank = 0; rank < cluster_size_; ++rank) {
    Block& b = blocks_[rank];
    b.index = {first_block.x + rank, first_block.y, first_block.z};
    b.arrived = 0;
    b.live = threads_per_block_;
    if (b.shared.size() != shared_memory) b.shared = GuardedMemory(shared_memory);
    b.shared.poison();
    b.barriers_passed = 0;
    b.storing.clear();
    b.unfenced.clear();
    for (NamedBarrier& barrier : b.named) barrier.arrived.clear();
    for (int i = 0; i < threads_per_block_; ++i) prepare_thread(rank * threads_per_block_ + i, rank, i);
  }
  for (Warp& w : warps_) w.arrived = 0, w.live = kWarpSize;
  barriers_.clear();
  cluster_arrived_ = 0;
  cluster_phase_ = 0;
  cluster_live_ = num_threads_;
}

// Runs the ready lanes of a warp until none is ready; says whether any was.
inline bool Machine::run_warp(int warp) {
  bool any = false;
  for (bool again = true; again;) {
    again = false;
    for (int i = 0; i < kWarpSize; ++i) {
      const int lane = options.order == Order::reverse ? kWarpSize - 1 - i : i;
      Thread& thread = threads_[warp * kWarpSize + lane];
      if (!thread.ready) continue;
      any = again = true;
      current = &thread;
      thread.fiber.enter();
      current = nullptr;
      if (!error_.empty()) throw Error(error_);
    }
  }
  return any;
}

inline void Machine::run_cluster() {
  std::vector<int> order(warps_.size());
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int>(options.order == Order::reverse ? order.size() - 1 - i : i);
  }
  while (cluster_live_ > 0) {
    if (options.order == Order::random) std::shuffle(order.begin(), order.end(), random_);
    bool any = false;
    for (int warp : order) any |= run_warp(warp);
    if (options.order == Order::random && !barriers_.empty()) land_pieces(barriers_[random_() % barriers_.size()], 1);
    if (!any && cluster_live_ > 0 && !land_awaited()) report_deadlock();
  }
}

inline void Machine::launch(std::function<void()> body, dim3 grid, dim3 block, int64_t shared_memory,
                            int cluster_size) {
  body_ = std::move(body);
  grid_ = grid;
  block_shape_ = block;
  cluster_size_ = cluster_size;
  threads_per_block_ = static_cast<int>(block.x * block.y * block.z);
  num_threads_ = threads_per_block_ * cluster_size;
  error_.clear();
  random_.seed(options.seed);
  late_stores_.clear();
  ++counters.launches;
  check_launch(shared_memory);
  const FaultHandler handler([] { machine().fail("memory access out of range"); });
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; x += cluster_size) {
        prepare_cluster({x, y, z}, static_cast<size_t>(shared_memory));
        run_cluster();
      }
    }
  }
  for (BulkStore& store : late_stores_) store.write();
}

}  // namespace emulator
