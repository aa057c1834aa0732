// Grouped forward: each thread walks blocks of tokens, adapter by adapter, and packs the weights as it comes to them.
#pragma once

#include "ahead.h"
#include "driver.h"
#include "forward.h"
#include "forward_few.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"
#include "walk.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Tokens without adapter: out = residual, or zero.
template <typename T>
void copy_residual(const ForwardJob<T>& job, const SortedTokens& tokens, RowRange range) {
  const int64_t width = job.problem.hidden_size;
  const int64_t inner = job.problem.bottleneck_dim;
  const T* residual = static_cast<const T*>(job.tensors.residual);
  T* pre_activation = static_cast<T*>(job.tensors.pre_activation);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t token = tokens.order[i];
    T* to = static_cast<T*>(job.tensors.output) + token * width;
    if (residual) {
      __builtin_memcpy(to, residual + token * job.tensors.residual_stride, static_cast<size_t>(width) * sizeof(T));
    } else {
      __builtin_memset(to, 0, static_cast<size_t>(width) * sizeof(T));
    }
    if (pre_activation) __builtin_memset(pre_activation + token * inner, 0, static_cast<size_t>(inner) * sizeof(T));
  }
}

template <typename T>
struct GroupedForwardScratch {
  ForwardScratch<T> block;
  PackedAdapter<T> adapter;

  void lay_out(Pieces& pieces) {
    block.lay_out(pieces);
    adapter.lay_out(pieces);
  }
};

// A worker's walk over the parts of its blocks. While the product of one runs, the next one is packed and the memory
// behind the one after that is fetched.
template <typename T>
class GroupedForward {
 public:
  GroupedForward(const ForwardJob<T>& job, const SortedTokens& tokens, const Cut* share,
                 const GroupedForwardScratch<T>& scratch)
      : job_(job),
        parts_(tokens, share, job.problem.input_size, job.problem.hidden_size),
        scratch_(scratch),
        next_(parts_.next()),
        later_(parts_.next()) {}

  void run() {
    pack_ahead(next_);
    while (next_.block.count > 0) {
      const RowBlock block = next_.block;
      if (block.first) pack_biases(scratch_.adapter, with_adapter<T>(job_.problem, job_.tensors, block.adapter));
      forward_block(
          scratch_.adapter, block.rows, block.count, [&](int64_t) { return next_chunk(); },
          [&](int64_t) { return next_panel(); }, scratch_.block, ahead_);
    }
  }

 private:
  Weight<T> weight(const Part& part) const {
    const int64_t adapter = part.block.adapter;
    return part.panel ? panel_of(job_.up_weight(adapter), part.at) : chunk_of(job_.down_weight(adapter), part.at);
  }

  // Where a part is packed: an adapter that serves one block needs room for the part in use and the next one only.
  Operand<T>* packed(const Part& part) const {
    const int64_t size = part.panel ? kPanelColumns<T> : kChunkDepth<T>;
    const bool once = part.block.first && part.block.last;
    const int64_t at = once ? part.at / size % 2 * size : part.at;
    if (part.panel) return scratch_.adapter.up + at * round_up(job_.problem.bottleneck_dim, kPair<T>);
    return scratch_.adapter.down + at * job_.inner;
  }

  void pack_ahead(const Part& part) {
    if (part.block.count > 0 && part.block.first) ahead_.pack(weight(part), packed(part));
  }

  void fetch_ahead(const Part& part) {
    const RowBlock& block = part.block;
    if (block.count == 0) return;
    const ForwardTensors& tensors = job_.tensors;
    const Weight<T> from = weight(part);
    const auto fetch_rows = [&](const void* matrix, int64_t stride, int64_t count) {
      ahead_.fetch(static_cast<const T*>(matrix) + part.at, stride, block.rows, block.count, count);
    };
    if (block.first) ahead_.fetch(from.from, from.stride, kAllRows, from.count, from.depth);
    if (!part.panel) {
      if (block.rows.listed) fetch_rows(tensors.hidden_states, tensors.hidden_states_stride, from.depth);
      return;
    }
    fetch_rows(tensors.output, job_.problem.hidden_size, from.count);
    if (tensors.residual && tensors.residual != tensors.hidden_states) {
      fetch_rows(tensors.residual, tensors.residual_stride, from.count);
    }
  }

  // Goes on to the next part, whose product runs now.
  Part step() {
    const Part part = next_;
    const Weight<T> operand = weight(part);
    ahead_.restart();
    ahead_.expect(part.block.count, divide_up(operand.depth, kPair<T>), operand.columns);
    next_ = later_;
    later_ = parts_.next();
    pack_ahead(next_);
    fetch_ahead(later_);
    return part;
  }

  ChunkOperands<T> next_chunk() {
    const Part part = step();
    const RowBlock& block = part.block;
    return {job_.hidden_chunk(part.at, block.rows, block.count, scratch_.block.staging), packed(part)};
  }
  const Operand<T>* next_panel() { return packed(step()); }

  const ForwardJob<T>& job_;
  PartWalk<T> parts_;
  const GroupedForwardScratch<T>& scratch_;
  Part next_;   // packed already, or being packed
  Part later_;  // the one after it
  Ahead<T> ahead_;
};

template <typename T>
void forward_share(const ForwardJob<T>& job, const SortedTokens& tokens, const Cut* share) {
  GroupedForwardScratch<T> scratch{{kBlockRows, job.inner}, {job}};
  place(ScratchOwner::worker, scratch);
  copy_residual(job, tokens, tokens_without_adapter(tokens, share));
  GroupedForward<T>(job, tokens, share, scratch).run();
  trim_scratch(ScratchOwner::worker);
}

template <typename T>
struct GroupedForwardCall {
  SortRoom sort;
  FewTokens<T> few;

  void lay_out(Pieces& pieces) {
    sort.lay_out(pieces);
    if (sort.num_tokens <= kFewTokens) few.lay_out(pieces);
  }
};

template <typename T>
void grouped_forward(const Problem& problem, const ForwardTensors& tensors, const AdapterIndices& indices,
                     const ThreadPool& pool) {
  const int64_t num_tokens = problem.num_tokens;
  if (num_tokens == 0) return;
  if (indices.values[0] >= 0 && all_equal(indices, num_tokens)) {
    return forward<T>(problem, with_adapter<T>(problem, tensors, indices.values[0]), pool);
  }
  const ForwardJob<T> job{problem, tensors};
  const int64_t most = largest_number_of_shares(num_tokens, indices.num_adapters, 0);
  GroupedForwardCall<T> call{{num_tokens, indices.num_adapters, workers_for(most, pool)}, {job}};
  place(ScratchOwner::call, call);
  const SortedTokens tokens = sort_tokens(indices, num_tokens, call.sort.order, call.sort.starts);
  if (num_tokens <= kFewTokens) {
    copy_residual(job, tokens, {0, tokens.starts[1]});
    for (int64_t slot = 1; slot < tokens.num_slots; ++slot) {
      const int64_t count = tokens.count(slot);
      if (count > 0) call.few.add(slot - 1, rows_at(tokens, tokens.starts[slot], count), count);
    }
    forward_few(call.few, pool);
  } else {
    const int64_t shares = cut_evenly(tokens, 0, call.sort.most_shares, call.sort.cuts);
    parallel_for(pool, shares, [&](int64_t share) { forward_share(job, tokens, call.sort.cuts + share); });
  }
  trim_scratch(ScratchOwner::call);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
