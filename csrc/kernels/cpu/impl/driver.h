// What forward and backward share: scratch layout, the division of tokens among threads, the narrow product.
#pragma once

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Tokens of a block: enough to amortise the traffic of weights and partial gradients, few enough that the block's rows
// stay in the L2 cache. A multiple of every tile height.
constexpr int64_t kBlockRows = 96;
constexpr int64_t kRowGranularity = 24;
// Steps of depth that accumulate in registers before the sum goes to memory. Short chains keep fp32 accurate (error
// grows with the chain's length), and a packed chunk of 64 columns stays in the L1 cache.
constexpr int64_t kDepthSteps = 128;

// Hands out consecutive aligned pieces. Run once with a null base to learn the size.
struct Pieces {
  std::byte* base;
  int64_t used = 0;

  template <typename A>
  AX_INLINE A* take(int64_t count) {
    A* piece = base == nullptr ? nullptr : reinterpret_cast<A*>(base + used);
    used += round_up(count * static_cast<int64_t>(sizeof(A)), 64);
    return piece;
  }
};

// Fills `layout` (which has a member lay_out(Pieces&)) from the arena.
template <typename Layout>
AX_INLINE void place(Arena arena, Layout& layout) {
  Pieces pieces{nullptr};
  layout.lay_out(pieces);
  Pieces placed{acquire_scratch(arena, static_cast<size_t>(pieces.used))};
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

// A weight packed for multiply_narrow: chunks of kDepthSteps, each a matrix of panels; chunk at element k starts at
// packed + k * columns.
template <typename T>
void pack_narrow(bool depth_is_contiguous, const T* from, int64_t stride, int64_t depth, int64_t count, int64_t columns,
                 const ThreadPool& pool, Operand<T>* to) {
  constexpr int64_t kDepth = kDepthSteps * kPair<T>;
  parallel_for(pool, divide_up(depth, kDepth), [&](int64_t chunk) {
    const int64_t k = chunk * kDepth;
    pack_matrix(depth_is_contiguous, from + k * (depth_is_contiguous ? 1 : stride), stride, min_of(kDepth, depth - k),
                count, columns, to + k * columns);
  });
}

// A weight packed for the wide products: panels over the whole depth (the bottleneck dimension).
template <typename T>
void pack_wide(bool depth_is_contiguous, const T* from, int64_t stride, int64_t depth, int64_t count, int64_t columns,
               const ThreadPool& pool, Operand<T>* to) {
  const int64_t padded_depth = round_up(depth, kPair<T>);
  parallel_for(pool, divide_up(columns, kPanelColumns<T>), [&](int64_t panel) {
    const int64_t c = panel * kPanelColumns<T>;
    const int64_t width = min_of(kPanelColumns<T>, columns - c);
    pack_matrix(depth_is_contiguous, from + c * (depth_is_contiguous ? stride : 1), stride, depth, count - c, width,
                to + c * padded_depth);
  });
}

// out (rows, columns) = tokens (rows, depth) @ packed; `columns` is padded to whole vectors.
template <typename T>
void multiply_narrow(const T* tokens, int64_t stride, int64_t rows, int64_t depth, const Operand<T>* packed,
                     int64_t columns, Acc<T>* out, Operand<T>* staging) {
  constexpr int64_t kDepth = kDepthSteps * kPair<T>;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t count = min_of(kDepth, depth - k);
    const int64_t steps = divide_up(count, kPair<T>);
    const LeftOperand<T> a = view_rows(tokens + k, stride, rows, count, staging);
    const Operand<T>* chunk = packed + k * columns;
    for (int64_t c = 0; c < columns; c += kPanelColumns<T>) {
      const int64_t width = min_of(kPanelColumns<T>, columns - c);
      multiply_into<T>(rows, steps, width, a, chunk + c * steps * kPair<T>, width * kPair<T>, k > 0, out + c, columns);
    }
  }
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
