// The machine: runs the threads of a cluster of blocks as fibers on one host thread, one cluster after another.
//
// A warp runs as far as it can before the next one gets a turn, and within it a lane runs to the next warp-wide
// operation: the schedule that a missing barrier is least likely to survive. The order of warps and lanes is an option.
#pragma once

#include <cstdio>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "machine_state.h"

namespace emulator {

inline constexpr int kAllBlocks = -1;

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

  // Barriers: of the block, of some of its threads, of the warp, and the two halves of the cluster's.
  void sync_block(const char* where);
  void sync_named(int number, int threads);
  void sync_warp(const char* where);
  void arrive_cluster();
  void wait_cluster(const char* where);

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

  Barrier* find_barrier(const uint64_t* place);
  void make_barrier(uint64_t* place, unsigned arrivals);
  void fence_barriers();
  bool sees(const Barrier& barrier);
  void arrive(Barrier& barrier, unsigned bytes);
  void wait_for(const Barrier& barrier);
  void issue(Barrier& barrier, const Transfer& transfer);

  // `programmatic`: the launch may begin before the kernel ahead of it has ended. Global memory is closed until every
  // thread of the first cluster waits, by dependency_wait or for another that does.
  void launch(std::function<void()> body, dim3 grid, dim3 block, int64_t shared_memory, int cluster_size,
              bool programmatic = false);
  void wait_for_kernels();

 private:
  static void thread_main();
  void check_launch(int64_t shared_memory) const;
  void prepare_cluster(uint3 first_block, size_t shared_memory);
  void prepare_thread(int number, int rank, int linear);
  void run_cluster();
  bool run_warp(int warp);
  void finish_thread();
  void finish_block();
  void end_phase(Barrier& barrier);
  void land(Barrier& barrier, size_t i, unsigned bytes);
  void land_pieces(Barrier& barrier, int pieces);
  bool land_awaited(int rank);
  bool land_by_chance();
  bool run_warps(int rank, const std::vector<int>& order);
  void put_in_order(std::vector<int>& order);
  [[noreturn]] void report_deadlock() const;
  void close_memory(bool closed);
  bool end_kernels_ahead();

  int number_of(const Thread& thread) const { return static_cast<int>(&thread - threads_.get()); }

  void wait();
  void release_block(int rank);
  void release_named(NamedBarrier& barrier);
  void release_cluster();
  void release_warp(int warp);

  std::function<void()> body_;
  dim3 grid_, block_shape_;
  int cluster_size_ = 1, threads_per_block_ = 0, num_threads_ = 0;
  int cluster_arrived_ = 0, cluster_live_ = 0;
  bool closed_ = false;        // global memory
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
  thread.waits_for_cluster = thread.waits_for_kernels = false;
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
    if (b.shared.size() != shared_memory) {
      b.shared = GuardedMemory(shared_memory);
      b.shared.keep_open();
    }
    b.shared.poison();
    b.barriers_passed = 0;
    b.incoming.clear(), b.unread.clear(), b.unfenced.clear();
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

// Gives the warps of a block, or of all, one turn each in the order given.
inline bool Machine::run_warps(int rank, const std::vector<int>& order) {
  const int warps_per_block = threads_per_block_ / kWarpSize;
  bool any = false;
  for (const int warp : order) {
    if (rank == kAllBlocks || warp / warps_per_block == rank) any |= run_warp(warp);
  }
  return any;
}

inline void Machine::put_in_order(std::vector<int>& order) {
  if (options.order == Order::random) std::shuffle(order.begin(), order.end(), random_);
}

inline void Machine::run_cluster() {
  const auto numbers = [this](size_t count) {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (options.order == Order::reverse) std::reverse(order.begin(), order.end());
    return order;
  };
  std::vector<int> warps = numbers(warps_.size());
  std::vector<int> turns = options.greedy_blocks ? numbers(blocks_.size()) : std::vector<int>{kAllBlocks};
  while (cluster_live_ > 0) {
    put_in_order(turns);
    bool any = false;
    for (const int rank : turns) {
      bool again = true;
      do {
        put_in_order(warps);
        again = run_warps(rank, warps);
        again |= land_by_chance();
        if (!again && rank != kAllBlocks) again = land_awaited(rank);
        any |= again;
      } while (again && rank != kAllBlocks);
    }
    if (!any && cluster_live_ > 0 && !land_awaited(kAllBlocks) && !end_kernels_ahead()) report_deadlock();
  }
}

inline void Machine::close_memory(bool closed) {
  if (closed != closed_) GuardedMemory::close_all(closed);
  closed_ = closed;
}

inline void Machine::wait_for_kernels() {
  at("dependency_wait");
  while (closed_) {
    current->waits_for_kernels = true;
    wait();
  }
}

// Where no thread can go on: the kernels ahead have ended.
inline bool Machine::end_kernels_ahead() {
  if (!closed_) return false;
  close_memory(false);
  for (int i = 0; i < num_threads_; ++i) {
    if (std::exchange(threads_[i].waits_for_kernels, false)) threads_[i].ready = true;
  }
  return true;
}

inline void Machine::launch(std::function<void()> body, dim3 grid, dim3 block, int64_t shared_memory, int cluster_size,
                            bool programmatic) {
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
  const FaultHandler handler([](const char* words) {
    machine().fail(machine().closed_ ? "global memory touched before dependency_wait" : words);
  });
  struct Opener {
    ~Opener() { machine().close_memory(false); }
  } opener;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; x += cluster_size) {
        prepare_cluster({x, y, z}, static_cast<size_t>(shared_memory));
        close_memory(programmatic && x == 0 && y == 0 && z == 0);
        run_cluster();
      }
    }
  }
  for (BulkStore& store : late_stores_) store.write();
}

}  // namespace emulator
