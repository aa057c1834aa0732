// What is made ready while a product runs: the next part of a weight is packed, and the memory behind the part after
// that is brought into the cache. The processor does not foresee one adapter after another and rows in scattered order:
// without this, 32 adapters for 2048 tokens take 1.8 times as long as one, with it 1.1 to 1.2 times (d=768, m=48).
#pragma once

#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

constexpr int64_t kCacheLine = 64;

// Packs a part a little at a time. Where four rows of a square fit into registers beside the accumulators of a tile,
// their loads, shuffles and stores cost next to nothing, since the tile waits for its multiplications. Slabs that do
// not come in whole rows of four, and those of other instruction sets, are packed between the tiles.
template <typename T>
class PartPacker {
 public:
  // Meant to be done after `tiles` tiles; finish() does what is left.
  void start(const Weight<T>& part, Operand<T>* to, int64_t tiles) {
    part_ = part;
    to_ = to;
    k_ = c_ = 0;
    const int64_t slabs = divide_up(part.columns, kPanelColumns<T>) * divide_up(part.depth, kSlabDepth<T>);
    slabs_per_tile_ = divide_up(slabs, max_of<int64_t>(1, tiles));
    enter_slab();
  }

  AX_INLINE void within_tile() {
    if constexpr (kFours) {
      if (fours_ > 0) pack_four();
    }
  }

  AX_INLINE void after_tile() {
    if (c_ < part_.columns && fours_ == 0) pack_slabs();
  }

  void finish() {
    while (c_ < part_.columns) pack_rest_of_slab();
  }

 private:
  static constexpr bool kFours = kFourRows && kSquares<T>;

  void enter_slab() {
    fours_ = all_fours_ = 0;
    if constexpr (kFours) {
      const int64_t width = min_of(kPanelColumns<T>, part_.columns - c_);
      const int64_t k = slab_begin(part_, k_);
      const bool whole = part_.depth - k >= kSlabDepth<T> && part_.count - c_ >= width;
      if (!part_.depth_is_contiguous || !whole) return;
      fours_ = all_fours_ = width / 4;
      four_ = part_.from + c_ * part_.stride + k;
      four_to_ = to_ + c_ * round_up(part_.depth, kPair<T>) + k * width;
      four_stride_ = width * kPair<T>;
    }
  }

  __attribute__((noinline)) void leave_slab() {
    k_ += kSlabDepth<T>;
    if (k_ >= part_.depth) {
      k_ = 0;
      c_ += kPanelColumns<T>;
    }
    fours_ = 0;
    if (c_ < part_.columns) enter_slab();
  }

  AX_INLINE void pack_four() {
    if constexpr (kFours) {
      pack_four_rows(four_, part_.stride, four_to_, four_stride_);
      four_ += 4 * part_.stride;
      four_to_ += 4 * kPair<T>;
      if (--fours_ == 0) leave_slab();
    }
  }

  void pack_rest_of_slab() {
    if (fours_ == all_fours_) {
      pack_slab(part_, k_, c_, to_);
      return leave_slab();
    }
    for (int64_t left = fours_; left > 0; --left) pack_four();
  }

  __attribute__((noinline)) void pack_slabs() {
    for (int64_t i = 0; i < slabs_per_tile_ && c_ < part_.columns; ++i) pack_rest_of_slab();
  }

  Weight<T> part_ = {};
  Operand<T>* to_ = nullptr;
  int64_t k_ = 0;  // the slab's element; the part is done when c_ reaches its columns
  int64_t c_ = 0;
  int64_t slabs_per_tile_ = 0;
  int64_t fours_ = 0;  // rows of four that are left of the slab
  int64_t all_fours_ = 0;
  const T* four_ = nullptr;
  Operand<T>* four_to_ = nullptr;
  int64_t four_stride_ = 0;
};

// Fetches the cache lines of some rows of some matrices, a few within each tile.
template <typename T>
class LineFetcher {
 public:
  // Forgets what is left; what is added next is spread over `calls` calls of within_tile().
  void restart(int64_t calls) {
    calls_ = max_of<int64_t>(1, calls);
    num_areas_ = area_ = row_ = lines_ = lines_per_call_ = 0;
    at_ = end_ = nullptr;
  }

  void add(const T* from, int64_t stride, TokenRows rows, int64_t num_rows, int64_t count) {
    areas_[num_areas_++] = {from, stride, rows, num_rows, count};
    lines_ += num_rows * divide_up(count * int64_t{sizeof(T)}, kCacheLine);
    lines_per_call_ = divide_up(lines_, calls_);
  }

  AX_INLINE void within_tile() {
    for (int64_t i = 0; i < lines_per_call_; ++i) {
      if (at_ >= end_ && !next_row()) return;
      __builtin_prefetch(at_);
      at_ += kCacheLine;
    }
  }

 private:
  struct Area {
    const T* from;
    int64_t stride;
    TokenRows rows;
    int64_t num_rows;
    int64_t count;
  };

  AX_INLINE bool next_row() {
    while (area_ < num_areas_ && row_ == areas_[area_].num_rows) {
      ++area_;
      row_ = 0;
    }
    if (area_ == num_areas_) {
      lines_per_call_ = 0;
      return false;
    }
    const Area& area = areas_[area_];
    at_ = reinterpret_cast<const char*>(area.from + area.rows.token(row_++) * area.stride);
    end_ = at_ + area.count * int64_t{sizeof(T)};
    return true;
  }

  static constexpr int64_t kMostAreas = 6;
  Area areas_[kMostAreas] = {};
  int64_t num_areas_ = 0;
  int64_t calls_ = 1;
  int64_t lines_ = 0;
  int64_t lines_per_call_ = 0;
  int64_t area_ = 0;
  int64_t row_ = 0;
  const char* at_ = nullptr;
  const char* end_ = nullptr;
};

// The work beside one product after the other.
template <typename T>
class Ahead {
 public:
  // Finishes what was begun.
  void restart() {
    packer_.finish();
    tiles_ = calls_ = 0;
  }
  // Announces a product; what is added next is spread over the tiles of all that were announced.
  void expect(int64_t rows, int64_t steps, int64_t columns) {
    const int64_t vectors = min_of(kPanelVectors, columns / kLanes<T>);
    const int64_t tiles = divide_up(columns, kPanelColumns<T>) * max_of<int64_t>(1, rows / tile_rows(vectors));
    tiles_ += tiles;
    calls_ += tiles * divide_up(steps, kStepsBetween);
    lines_.restart(calls_);
  }
  void pack(const Weight<T>& part, Operand<T>* to) { packer_.start(part, to, tiles_); }
  // `count` elements of each of some rows that lie `stride` elements apart; a null matrix has none.
  void fetch(const T* matrix, int64_t stride, TokenRows rows, int64_t num_rows, int64_t count) {
    if (matrix != nullptr) lines_.add(matrix, stride, rows, num_rows, count);
  }

  AX_INLINE void within_tile() {
    lines_.within_tile();
    packer_.within_tile();
  }
  // A call, for tiles that leave registers free.
  __attribute__((noinline)) void within_low_tile() { within_tile(); }
  AX_INLINE void after_tile() { packer_.after_tile(); }

 private:
  PartPacker<T> packer_;
  LineFetcher<T> lines_;
  int64_t tiles_ = 0;
  int64_t calls_ = 0;  // of within_tile()
};

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
