// The machine: runs the threads of a cluster of blocks as fibers on one host thread, one cluster after another.
//
// A warp runs as far as it can before the next one gets a turn, and within it a lane runs to the next warp-wide
// operation: the schedule that a missing barrier is least likely to survive. The order of warps and lanes is an option.
#pragma once

#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "guarded_memory.h"
#include "host_types.h"

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
  int64_t copied_bytes = 0;    // global memory read by cp.async
};

// Limits of one block on sm_90 (CUDA programming guide, technical specifications per compute capability).
inline constexpr int64_t kMaxThreads = 1024;
inline constexpr int64_t kMaxSharedMemory = 227 * 1024;
inline constexpr int kMaxClusterSize = 8;  // portable
inline constexpr unsigned kMaxGridYZ = 65535;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Copy {
  unsigned char* target;
  const unsigned char* source;
  int bytes;
};

struct Thread {
  Fiber fiber;
  uint3 index = {};
  int lane = 0, warp = 0, block = 0;
  bool ready = false, done = false;
  int slot = 0;                     // which of the warp's two buffers the next exchange uses
  const char* where = "the start";  // the barrier or warp-wide operation it reached last
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;
};

inline constexpr int kWarpSize = 32;
inline constexpr int kSlotBytes = 32;

struct Warp {
  int arrived = 0, live = 0;
  alignas(16) unsigned char slots[2][kWarpSize][kSlotBytes];
};

struct Block {
  uint3 index = {};
  int arrived = 0, live = 0;
  GuardedMemory shared;
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
             std::to_string(b.z) + ", thread " + std::to_string(t.x) + ", last at " + current->where + ")";
    for (;;) current->fiber.leave();
  }

  // Barriers. The last thread to arrive releases the others and goes on without a switch.
  void sync_block(const char* where) {
    current->where = where;
    if (++block().arrived == block().live) return release_block(current->block);
    wait();
  }
  void sync_cluster(const char* where) {
    current->where = where;
    if (++cluster_arrived_ == cluster_live_) return release_cluster();
    wait();
  }
  void sync_warp(const char* where) {
    current->where = where;
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

  void launch(std::function<void()> body, dim3 grid, dim3 block, int64_t shared_memory, int cluster_size);

 private:
  static void thread_main();
  void check_launch(int64_t shared_memory) const;
  void prepare_cluster(uint3 first_block, size_t shared_memory);
  void prepare_thread(int number, int rank, int linear);
  void run_cluster();
  bool run_warp(int warp);
  void finish_thread();

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
  }
  void release_cluster() {
    release("cluster_sync", [](const Thread&) { return true; });
    cluster_arrived_ = 0;
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
  if (w.live > 0 && w.arrived == w.live) release_warp(current->warp);
  if (b.live > 0 && b.arrived == b.live) release_block(current->block);
  if (cluster_live_ > 0 && cluster_arrived_ == cluster_live_) release_cluster();
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
    for (int i = 0; i < threads_per_block_; ++i) prepare_thread(rank * threads_per_block_ + i, rank, i);
  }
  for (Warp& w : warps_) w.arrived = 0, w.live = kWarpSize;
  cluster_arrived_ = 0;
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
    if (any) continue;
    std::string places;
    for (int i = 0; i < num_threads_; ++i) {
      const std::string where = threads_[i].where;
      if (!threads_[i].done && places.find(where) == std::string::npos) places += " " + where;
    }
    throw Error("emulator: deadlock, threads wait at:" + places);
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
}

}  // namespace emulator
