// What the machine consists of: its options and limits, threads, warps and blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <vector>

#include "fiber.h"
#include "guarded_memory.h"
#include "host_types.h"
#include "transfers.h"

namespace emulator {

enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::forward;  // of the warps, and of the lanes within a warp
  // Copies happen at issue (shows a stage overwritten too early) or as late as they can (shows a missing wait).
  bool eager_copies = false;
  unsigned seed = 1;
  // One block of a cluster runs as far as it can, with what it waits for landing, before another one gets a turn; else
  // the warps of all blocks take turns.
  bool greedy_blocks = false;
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
  std::vector<size_t> unfenced;  // units of shared memory that it has written since its last async_proxy_fence
  int64_t cluster_arrivals = 0, cluster_waits = 0;
  bool waits_for_cluster = false, waits_for_kernels = false;
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

inline constexpr unsigned kUnit = 4;  // bytes; the smallest transfer

struct Block {
  uint3 index = {};
  int arrived = 0, live = 0;
  int64_t barriers_passed = 0;  // by all its threads together
  GuardedMemory shared;
  NamedBarrier named[kNamedBarriers];
  // Of each unit of shared memory: the transfers to them that are under way, the bulk stores that have yet to read
  // them, and who has written them and not called async_proxy_fence since. Empty where the kernel has none of these.
  std::vector<uint16_t> incoming, unread;
  std::vector<const Thread*> unfenced;

  size_t unit_of(const void* pointer) const {
    return static_cast<size_t>(static_cast<const unsigned char*>(pointer) - shared.data()) / kUnit;
  }
  // Adds `change` to the units of a range of shared memory.
  void count(std::vector<uint16_t>& units, const void* pointer, unsigned bytes, int change) {
    units.resize(shared.size() / kUnit + 1);
    const size_t first = unit_of(pointer), end = first + (bytes + kUnit - 1) / kUnit;
    for (size_t i = first; i < end; ++i) units[i] = static_cast<uint16_t>(units[i] + change);
  }
  template <typename T>
  bool any(const std::vector<T>& units, const void* pointer, unsigned bytes) const {
    if (units.empty()) return false;
    const auto first = units.begin() + unit_of(pointer);
    return std::any_of(first, first + (bytes + kUnit - 1) / kUnit, [](const T& unit) { return unit != T(); });
  }
};

}  // namespace emulator
