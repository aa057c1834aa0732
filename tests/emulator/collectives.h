// Host twins of what csrc/kernels/cuda/ptx.cuh wraps: ldmatrix, stmatrix, mma.sync, cp.async, clusters. Layouts of fragments by
// PTX ISA 8.0, figures of "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
#pragma once

#include "machine.h"
#include "thread_barriers.h"

namespace emulator {

// ---- assertions ----------------------------------------------------------------------------------------------------

[[noreturn]] inline void assertion_failed(const char* words, const char* file, unsigned line, const char* function) {
  machine().fail(std::string(file) + ":" + std::to_string(line) + ": " + function + ": Assertion `" + words +
                 "` failed.");
}

inline int lane_number() { return machine().current->lane; }
inline void prefetch(const void* address) { (void)*static_cast<const volatile unsigned char*>(address); }
inline void prefetch_far(const void* address) { prefetch(address); }
inline int warp_number() { return static_cast<int>(machine().current->index.x) / kWarpSize; }

// ---- shared memory -------------------------------------------------------------------------------------------------

inline void check_place(const void* pointer, int bytes) {
  if (!machine().block().shared.contains(pointer, bytes)) machine().fail("shared-memory access out of range");
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) machine().fail("misaligned shared-memory access");
}
inline void check_shared(const void* pointer, int bytes) {
  check_place(pointer, bytes);
  const Block& block = machine().block();
  if (block.any(block.incoming, pointer, bytes)) machine().fail("shared memory that a transfer is under way to");
}
// As check_shared, for a write.
inline void check_written(const void* pointer, int bytes) {
  check_shared(pointer, bytes);
  const Block& block = machine().block();
  if (block.any(block.unread, pointer, bytes)) machine().fail("shared memory that a bulk store has yet to read");
}

// The eight rows of one 8x8 matrix are read together: each should lie in another of the eight groups of four banks.
inline void count_bank_conflicts(const unsigned char (*slots)[kSlotBytes], int matrix) {
  unsigned seen = 0;
  for (int row = 0; row < 8; ++row) {
    uintptr_t address;
    std::memcpy(&address, slots[matrix * 8 + row], sizeof address);
    const unsigned group = 1u << (address / 16 % 8);
    if (seen & group) ++machine().counters.bank_conflicts;
    seen |= group;
  }
}

// Reads element (row, column) of matrix `matrix`, whose row addresses lie in the slots.
inline uint16_t matrix_element(const unsigned char (*slots)[kSlotBytes], int matrix, int row, int column) {
  const unsigned char* address;
  std::memcpy(&address, slots[matrix * 8 + row], sizeof address);
  uint16_t element;
  std::memcpy(&element, address + 2 * column, sizeof element);
  return element;
}

template <bool kTransposed>
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  check_shared(row, 16);
  const auto* slots = machine().exchange(row, kTransposed ? "ldmatrix.trans" : "ldmatrix");
  const int lane = machine().current->lane, i = lane / 4, j = lane % 4 * 2;
  if (lane == 0) ++machine().counters.ldmatrix;
  for (int matrix = 0; matrix < 4; ++matrix) {
    if (lane == 0) count_bank_conflicts(slots, matrix);
    const uint32_t low = kTransposed ? matrix_element(slots, matrix, j, i) : matrix_element(slots, matrix, i, j);
    const uint32_t high =
        kTransposed ? matrix_element(slots, matrix, j + 1, i) : matrix_element(slots, matrix, i, j + 1);
    r[matrix] = low | high << 16;
  }
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { load_matrices<false>(r, row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { load_matrices<true>(r, row); }

// Element (row, column) of a matrix that a warp holds as the 32 bits at byte `pair` of each lane's slot.
inline uint16_t held_element(const unsigned char (*slots)[kSlotBytes], size_t pair, int row, int column) {
  uint16_t element;
  std::memcpy(&element, slots[row * 4 + column / 2] + pair + 2 * (column % 2), sizeof element);
  return element;
}

inline uint32_t movmatrix_trans(uint32_t pair) {
  const auto* slots = machine().exchange(pair, "movmatrix");
  const int lane = machine().current->lane, i = lane / 4, j = lane % 4 * 2;
  return held_element(slots, 0, j, i) | static_cast<uint32_t>(held_element(slots, 0, j + 1, i)) << 16;
}

// Bulk stores see what a thread has written when it has called async_proxy_fence.
inline void note_write(const void* pointer, unsigned bytes) {
  Block& block = machine().block();
  block.unfenced.resize(block.shared.size() / kUnit + 1);
  for (size_t unit = block.unit_of(pointer), end = unit + bytes / kUnit; unit < end; ++unit) {
    block.unfenced[unit] = machine().current;
    machine().current->unfenced.push_back(unit);
  }
}

inline uint32_t shuffle_xor(uint32_t value, int mask) {
  const auto* slots = machine().exchange(value, "shuffle_xor");
  uint32_t other;
  std::memcpy(&other, slots[machine().current->lane ^ mask], sizeof other);
  return other;
}

struct StoredRow {
  void* row;
  uint32_t r[4];
};

inline void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) {
  check_written(row, 16);
  const StoredRow mine = {row, {r[0], r[1], r[2], r[3]}};
  const auto* slots = machine().exchange(mine, "stmatrix.trans");
  const int lane = machine().current->lane;
  if (lane % 8 == 0) count_bank_conflicts(slots, lane / 8);
  uint16_t elements[8];  // row lane % 8 of matrix lane / 8: the column of what the warp holds
  for (int i = 0; i < 8; ++i) {
    elements[i] = held_element(slots, offsetof(StoredRow, r) + 4 * (lane / 8), i, lane % 8);
  }
  std::memcpy(row, elements, sizeof elements);
  note_write(row, sizeof elements);
}

// ---- tensor cores --------------------------------------------------------------------------------------------------

template <typename Element>
inline float element_float(uint16_t bits);
template <>
inline float element_float<__nv_bfloat16>(uint16_t bits) {
  return bfloat16_float(bits);
}
template <>
inline float element_float<__half>(uint16_t bits) {
  return half_float(bits);
}

struct Operands {
  uint32_t a[4], b[2];
};

// Term k of row `row` of A: register k / 8 * 2 + row / 8 of lane row % 8 * 4 + k % 8 / 2.
template <typename Element>
inline float a_element(const unsigned char (*slots)[kSlotBytes], int row, int k) {
  uint16_t bits;
  const int lane = row % 8 * 4 + k % 8 / 2, reg = k / 8 * 2 + row / 8;
  std::memcpy(&bits, slots[lane] + offsetof(Operands, a) + 4 * reg + 2 * (k % 2), sizeof bits);
  return element_float<Element>(bits);
}

// Term k of column `column` of B: register k / 8 of lane column * 4 + k % 8 / 2.
template <typename Element>
inline float b_element(const unsigned char (*slots)[kSlotBytes], int column, int k) {
  uint16_t bits;
  const int lane = column * 4 + k % 8 / 2;
  std::memcpy(&bits, slots[lane] + offsetof(Operands, b) + 4 * (k / 8) + 2 * (k % 2), sizeof bits);
  return element_float<Element>(bits);
}

// d(16x8) += a(16x16) * b(16x8); a lane holds rows lane / 4 and + 8, columns lane % 4 * 2 and + 1 of d.
template <typename Element>
inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto* slots = machine().exchange(mine, "mma.sync");
  const int lane = machine().current->lane;
  if (lane == 0) ++machine().counters.mma;
  for (int half = 0; half < 2; ++half) {
    float terms[16];
    for (int k = 0; k < 16; ++k) terms[k] = a_element<Element>(slots, lane / 4 + half * 8, k);
    for (int i = 0; i < 2; ++i) {
      float sum = 0.f;
      for (int k = 0; k < 16; ++k) sum += terms[k] * b_element<Element>(slots, lane % 4 * 2 + i, k);
      d[half * 2 + i] += sum;
    }
  }
}

// ---- asynchronous copies -------------------------------------------------------------------------------------------

inline void perform(const Copy& copy) {
  if (copy.bytes > 0) std::memcpy(copy.target, copy.source, copy.bytes);
  std::memset(copy.target + copy.bytes, 0, 16 - copy.bytes);
  machine().counters.copied_bytes += copy.bytes;
}

inline void cp_async16(void* target, const void* source, int bytes) {
  check_written(target, 16);
  if (bytes < 0 || bytes > 16) machine().fail("cp.async of other than 0 to 16 bytes");
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0) machine().fail("cp.async from a misaligned address");
  const Copy copy = {static_cast<unsigned char*>(target), static_cast<const unsigned char*>(source), bytes};
  if (machine().options.eager_copies) {
    perform(copy);
  } else {
    machine().current->open_group.push_back(copy);
  }
}

inline void cp_async_commit() {
  Thread& thread = *machine().current;
  thread.groups.push_back(std::move(thread.open_group));
  thread.open_group.clear();
}

template <int kPending>
inline void cp_async_wait() {
  auto& groups = machine().current->groups;
  while (static_cast<int>(groups.size()) > kPending) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.pop_front();
  }
}

// ---- clusters ------------------------------------------------------------------------------------------------------

inline unsigned cluster_rank() { return static_cast<unsigned>(machine().current->block); }
inline void cluster_arrive() { machine().arrive_cluster(); }
inline void cluster_arrive_relaxed() { machine().arrive_cluster(); }
inline void cluster_wait() { machine().wait_cluster("cluster_wait"); }
inline void cluster_sync() {
  machine().arrive_cluster();
  machine().wait_cluster("cluster_sync");
}
inline void block_barrier(int number, int threads) { machine().sync_named(number, threads); }

template <typename T>
inline T* cluster_map(T* pointer, unsigned rank) {
  check_place(pointer, sizeof(T));
  if (static_cast<int>(rank) >= machine().cluster_size()) machine().fail("cluster_map to a rank outside the cluster");
  Block& target = machine().block(static_cast<int>(rank));
  if (target.live == 0) machine().fail("distributed shared memory of a block that has ended");
  const auto offset = reinterpret_cast<const unsigned char*>(pointer) - machine().block().shared.data();
  return reinterpret_cast<T*>(target.shared.data() + offset);
}

}  // namespace emulator
