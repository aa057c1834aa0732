// What forward and backward share: scratch layout, the division of tokens among threads, the narrow product.
#pragma once

#include "gemm.h"
#include "pack.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Tokens of a block: enough to amortise the traffic of weights and partial gradients, few enough that the block's rows
// stay in the L2 cache. A multiple of every tile height.
constexpr int64_t kBlockRows = 96;
constexpr int64_t kRowGranularity = 24;
// Hands out consecutive aligned pieces. Run once with a null base to learn the size.
struct Pieces {
  std::byte* base;
  int64_t used = 0;

  template <typename A>
  AX_INLINE A* take(int64_t count) {
    std::byte* piece = base == nullptr ? nullptr : base + used;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(A));
    const int64_t room = round_up(bytes, 64) + static_cast<int64_t>(kGuardBytes);
    if (kGuardBytes > 0 && piece != nullptr) forbid_scratch(piece + bytes, static_cast<size_t>(room - bytes));
    used += room;
    return reinterpret_cast<A*>(piece);
  }
};

// Fills `layout` (which has a member lay_out(Pieces&)) from scratch memory.
template <typename Layout>
AX_INLINE void place(ScratchOwner owner, Layout& layout) {
  Pieces pieces{nullptr};
  layout.lay_out(pieces);
  Pieces placed{acquire_scratch(owner, static_cast<size_t>(pieces.used))};
  if (kGuardBytes > 0) allow_scratch(placed.base, static_cast<size_t>(pieces.used));
  layout.lay_out(placed);
}

struct RowRange {
  int64_t begin;
  int64_t end;
};

// The share of one of `shares` workers: fixed by the sizes alone, so that sums have a fixed order.
AX_INLINE RowRange share_of_rows(int64_t rows, int64_t share, int64_t shares) {
  const int64_t granules = divide_up(rows, kRowGranularity);
  return {min_of(rows, granules * share / shares * kRowGranularity),
          min_of(rows, granules * (share + 1) / shares * kRowGranularity)};
}

AX_INLINE int64_t workers_for(int64_t items, const ThreadPool& pool) {
  return pool.run == nullptr ? 1 : max_of<int64_t>(1, min_of<int64_t>(items, pool.num_threads));
}

// body(index) for every index in [0, count).
template <typename Body>
AX_INLINE void parallel_for(const ThreadPool& pool, int64_t count, const Body& body) {
  if (pool.run == nullptr || pool.num_threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const auto run_range = [](void* closure, int64_t begin, int64_t end) {
    const Body& each = *static_cast<const Body*>(closure);
    for (int64_t i = begin; i < end; ++i) each(i);
  };
  pool.run(pool.context, count, run_range, const_cast<Body*>(&body));
}

// All chunks of a weight for the narrow product, the one at element k at to + k * columns.
template <typename T>
void pack_chunks(const Weight<T>& weight, const ThreadPool& pool, Operand<T>* to) {
  parallel_for(pool, divide_up(weight.depth, kChunkDepth<T>), [&](int64_t chunk) {
    const int64_t k = chunk * kChunkDepth<T>;
    pack(chunk_of(weight, k), to + k * weight.columns);
  });
}

// All panels of a weight for the wide product, the one at column c at to + c * padded depth.
template <typename T>
void pack_panels(const Weight<T>& weight, const ThreadPool& pool, Operand<T>* to) {
  parallel_for(pool, divide_up(weight.columns, kPanelColumns<T>), [&](int64_t panel) {
    const int64_t c = panel * kPanelColumns<T>;
    pack(panel_of(weight, c), to + c * round_up(weight.depth, kPair<T>));
  });
}

// Both operands of the part of a narrow product that one chunk of the depth contributes.
template <typename T>
struct ChunkOperands {
  LeftOperand<T> rows;
  const Operand<T>* weight;  // packed, or
  int64_t stride = 0;        // where this is not zero the weight itself, its rows so far apart
};

// out (rows, columns) = tokens (rows, depth) @ weight; chunk(k) gives the operands of the chunk at element k.
template <typename T, typename Chunk, typename Beside>
void multiply_narrow(int64_t rows, int64_t depth, int64_t columns, const Chunk& chunk, Acc<T>* out, Beside& beside) {
  for (int64_t k = 0; k < depth; k += kChunkDepth<T>) {
    const int64_t steps = divide_up(min_of(kChunkDepth<T>, depth - k), kPair<T>);
    const ChunkOperands<T> operands = chunk(k);
    const bool packed = operands.stride == 0;
    for (int64_t c = 0; c < columns; c += kPanelColumns<T>) {
      const int64_t width = min_of(kPanelColumns<T>, columns - c);
      const Operand<T>* panel = operands.weight + (packed ? c * steps * kPair<T> : c);
      multiply_into<T>(rows, steps, width, operands.rows, panel, packed ? width * kPair<T> : operands.stride, k > 0,
                       out + c, columns, beside);
    }
  }
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
