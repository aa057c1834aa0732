// Grouped backward: each thread walks blocks of tokens, adapter by adapter. The gradients of an adapter that it has to
// itself it writes at once; of the others each thread leaves a partial gradient, and they are added in thread order.
#pragma once

#include "ahead.h"
#include "backward.h"
#include "backward_gradients.h"
#include "backward_job.h"
#include "driver.h"
#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"
#include "walk.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Writing the zero gradients of an adapter takes as long as some eight rows whatever the sizes: both grow alike.
constexpr int64_t kZeroRows = 8;

// The gradients of a problem with several adapters as those of one.
template <typename T>
BackwardTensors with_gradients_of(const Problem& problem, BackwardTensors tensors, int64_t adapter) {
  const auto skip = [&](void*& to, int64_t size) {
    if (to != nullptr) to = static_cast<T*>(to) + adapter * size;
  };
  skip(tensors.grad_down_weight, problem.bottleneck_dim * problem.input_size);
  skip(tensors.grad_down_bias, problem.bottleneck_dim);
  skip(tensors.grad_up_weight, problem.hidden_size * problem.bottleneck_dim);
  skip(tensors.grad_up_bias, problem.hidden_size);
  return tensors;
}

// Tokens without adapter: grad_input = grad_output where that is added, else zero.
template <typename T>
void copy_grad_output(const Problem& problem, const BackwardTensors& tensors, const SortedTokens& tokens,
                      RowRange range) {
  const size_t bytes = static_cast<size_t>(problem.input_size) * sizeof(T);
  for (int64_t i = range.begin; tensors.grad_input && i < range.end; ++i) {
    const int64_t token = tokens.order[i];
    T* to = static_cast<T*>(tensors.grad_input) + token * problem.input_size;
    if (tensors.add_grad_output) {
      __builtin_memcpy(to, static_cast<const T*>(tensors.grad_output) + token * tensors.grad_output_stride, bytes);
    } else {
      __builtin_memset(to, 0, bytes);
    }
  }
}

template <typename T>
struct GroupedBackwardCall {
  SortRoom sort;
  PartialsRoom<T> partials;  // of share s: s for an adapter begun in a share before it, else shares + s

  void lay_out(Pieces& pieces) {
    sort.lay_out(pieces);
    partials.lay_out(pieces);
  }
};

template <typename T>
struct GroupedBackwardScratch {
  BackwardScratch<T> block;
  PackedTransposes<T> adapter;

  void lay_out(Pieces& pieces) {
    block.lay_out(pieces);
    adapter.lay_out(pieces);
  }
};

// A worker's walk over the parts of its blocks. While the products of one run, the memory behind the one after the next
// is fetched.
template <typename T>
class GroupedBackward {
 public:
  GroupedBackward(const BackwardJob<T>& job, const SortedTokens& tokens, const GroupedBackwardCall<T>& call,
                  int64_t share, int64_t shares, const GroupedBackwardScratch<T>& scratch)
      : job_(job),
        parts_(tokens, call.sort.cuts + share, job.wants_du ? job.problem.hidden_size : 0,
               max_of(job.problem.input_size, job.problem.hidden_size)),
        begun_before_(call.partials.at(share)),
        own_(call.partials.at(shares + share)),
        scratch_(scratch),
        next_(parts_.next()),
        later_(parts_.next()) {}

  void run() {
    while (next_.block.count > 0) {
      const RowBlock block = next_.block;
      backward_block(
          job_, block.rows, block.count, [&](int64_t) { return next_chunk(); }, [&](int64_t) { return next_panel(); },
          [&](int64_t c) { finish_panel(block, c); }, !block.first, partials(block), scratch_.block, ahead_);
      if (ends(block)) write_bias_gradients(job_.problem, gradients(block), PartialsSum<T>{own_, {}, 0, 0});
    }
  }

 private:
  // Whether no other share has tokens of the adapter, and whether this is the last block of it.
  static bool is_own(const RowBlock& block) { return !block.begun_before && !block.goes_on; }
  static bool ends(const RowBlock& block) { return block.last && is_own(block); }

  // Where the partial gradients of a panel stand: those of a single block are done with before the next panel's.
  int64_t partials_at(const RowBlock& block, int64_t c) const {
    return block.first && ends(block) ? 0 : c * job_.problem.bottleneck_dim;
  }
  // Whether a panel of grad_down_weight is summed where it belongs, which is of the same layout.
  bool sums_in_place(const RowBlock& block, int64_t c) const {
    return kSame<T, Acc<T>> && job_.tensors.grad_down_weight && is_own(block) &&
           c + kPanelColumns<T> <= job_.problem.input_size;
  }
  BackwardTensors gradients(const RowBlock& block) const {
    return with_gradients_of<T>(job_.problem, job_.tensors, block.adapter);
  }

  void finish_panel(const RowBlock& block, int64_t c) const {
    if (!ends(block)) return;
    BackwardTensors to = gradients(block);
    if (sums_in_place(block, c)) to.grad_down_weight = nullptr;
    write_weight_gradients(job_, to, {own_, {}, 0, 0}, c, partials_at(block, c));
  }

  void fetch_chunk_ahead(const RowBlock& block, int64_t k) {
    const Weight<T> up = chunk_of(job_.up_weight(block.adapter), k);
    if (block.first) ahead_.fetch(up.from, up.stride, kAllRows, up.depth, up.count);
    if (!block.rows.listed) return;
    const T* grad_output = static_cast<const T*>(job_.tensors.grad_output) + k;
    ahead_.fetch(grad_output, job_.tensors.grad_output_stride, block.rows, block.count, up.depth);
  }

  void fetch_panel_ahead(const RowBlock& block, int64_t c) {
    const Problem& problem = job_.problem;
    const BackwardTensors to = gradients(block);
    const int64_t size = problem.bottleneck_dim;
    const int64_t out_count = min_of(kPanelColumns<T>, problem.hidden_size - c);
    const int64_t in_count = min_of(kPanelColumns<T>, problem.input_size - c);
    if (to.grad_up_weight && out_count > 0 && ends(block)) {
      ahead_.fetch(static_cast<const T*>(to.grad_up_weight) + c * size, size, kAllRows, out_count, size);
    }
    if (in_count <= 0) return;
    if (to.grad_input) {
      const Weight<T> down = panel_of(job_.down_weight(block.adapter), c);
      if (block.first) ahead_.fetch(down.from, down.stride, kAllRows, down.depth, down.count);
      const T* grad_input = static_cast<const T*>(to.grad_input) + c;
      ahead_.fetch(grad_input, problem.input_size, block.rows, block.count, in_count);
    }
    if (!to.grad_down_weight) return;
    if (block.rows.listed) {
      const T* hidden_states = static_cast<const T*>(to.hidden_states) + c;
      ahead_.fetch(hidden_states, to.hidden_states_stride, block.rows, block.count, in_count);
    }
    if (ends(block)) {
      ahead_.fetch(static_cast<const T*>(to.grad_down_weight) + c, problem.input_size, kAllRows, size, in_count);
    }
  }

  // Goes on to the next part, whose products run now.
  Part step() {
    const Part part = next_;
    const Problem& problem = job_.problem;
    ahead_.restart();
    if (part.panel) {
      const int64_t steps = divide_up(part.block.count, kPair<T>);
      ahead_.expect(problem.bottleneck_dim, steps, kPanelColumns<T>);
      ahead_.expect(problem.bottleneck_dim, steps, kPanelColumns<T>);
      ahead_.expect(part.block.count, divide_up(problem.bottleneck_dim, kPair<T>), kPanelColumns<T>);
    } else {
      ahead_.expect(part.block.count, kDepthSteps, job_.inner);
    }
    next_ = later_;
    later_ = parts_.next();
    if (later_.block.count > 0) {
      later_.panel ? fetch_panel_ahead(later_.block, later_.at) : fetch_chunk_ahead(later_.block, later_.at);
    }
    return part;
  }

  ChunkOperands<T> next_chunk() {
    const Part part = step();
    const RowBlock& block = part.block;
    const LeftOperand<T> rows = job_.grad_chunk(part.at, block.rows, block.count, scratch_.block.staging);
    const Weight<T> up = chunk_of(job_.up_weight(block.adapter), part.at);
    if constexpr (kSame<T, Operand<T>> && kPair<T> == 1) {
      if (up.count == up.columns) return {rows, up.from, up.stride};
    }
    Operand<T>* packed = scratch_.adapter.up + part.at * job_.inner;
    if (block.first) pack(up, packed);
    return {rows, packed};
  }

  PanelOperands<T> next_panel() {
    const Part part = step();
    const RowBlock& block = part.block;
    const int64_t depth = round_up(job_.problem.bottleneck_dim, kPair<T>);
    if (block.first && job_.tensors.grad_input && part.at < job_.problem.input_size) {
      pack(panel_of(job_.down_weight(block.adapter), part.at), scratch_.adapter.down + part.at * depth);
    }
    PanelOperands<T> operands = panel_operands(scratch_.adapter, partials(block), part.at, partials_at(block, part.at));
    if constexpr (kSame<T, Acc<T>>) {
      if (sums_in_place(block, part.at)) {
        T* gradient = static_cast<T*>(gradients(block).grad_down_weight);
        operands.grad_down = {gradient + part.at, job_.problem.input_size};
      }
    }
    return operands;
  }

  const Partials<T>& partials(const RowBlock& block) const { return block.begun_before ? begun_before_ : own_; }

  const BackwardJob<T>& job_;
  PartWalk<T> parts_;
  Partials<T> begun_before_;
  Partials<T> own_;
  const GroupedBackwardScratch<T>& scratch_;
  Part next_;
  Part later_;
  Ahead<T> ahead_;
};

template <typename T>
void backward_share(const BackwardJob<T>& job, const SortedTokens& tokens, const GroupedBackwardCall<T>& call,
                    int64_t share, int64_t shares) {
  GroupedBackwardScratch<T> scratch{{kBlockRows, job.inner}, {job}};
  place(ScratchOwner::worker, scratch);
  const Cut* cuts = call.sort.cuts + share;
  for (int64_t slot = max_of<int64_t>(1, cuts[0].slot); slot < cuts[1].slot; ++slot) {
    if (tokens.count(slot) == 0) {
      write_zero_gradients<T>(job.problem, with_gradients_of<T>(job.problem, job.tensors, slot - 1), 1);
    }
  }
  copy_grad_output<T>(job.problem, job.tensors, tokens, tokens_without_adapter(tokens, cuts));
  GroupedBackward<T>(job, tokens, call, share, shares, scratch).run();
  trim_scratch(ScratchOwner::worker);
}

// The gradients of the adapters that several shares have tokens of.
template <typename T>
void write_shared_gradients(const BackwardJob<T>& job, const SortedTokens& tokens, const GroupedBackwardCall<T>& call,
                            int64_t shares, const ThreadPool& pool) {
  const Cut* cuts = call.sort.cuts;
  for (int64_t share = 0; share + 1 < shares; ++share) {
    const int64_t slot = cuts[share + 1].slot;
    if (slot == 0 || slot == tokens.num_slots || cuts[share + 1].position == tokens.starts[slot]) continue;
    if (cuts[share].position > tokens.starts[slot]) continue;  // begun before: added up with the share it began in
    int64_t more = 0;
    while (cuts[share + 1 + more].position < tokens.starts[slot + 1]) ++more;
    const PartialsSum<T> sum{call.partials.at(shares + share), call.partials.at(share + 1), more, call.partials.size};
    write_gradients(job, with_gradients_of<T>(job.problem, job.tensors, slot - 1), sum, pool);
  }
}

template <typename T>
void grouped_backward(const Problem& problem, const BackwardTensors& tensors, const AdapterIndices& indices,
                      const ThreadPool& pool) {
  const int64_t num_tokens = problem.num_tokens;
  if (num_tokens == 0) return write_zero_gradients<T>(problem, tensors, indices.num_adapters);
  const BackwardJob<T> job{problem, tensors};
  const bool wants_weights =
      tensors.grad_up_weight || tensors.grad_down_weight || tensors.grad_up_bias || tensors.grad_down_bias;
  const int64_t empty_rows = wants_weights ? kZeroRows : 0;
  const int64_t largest = largest_number_of_shares(num_tokens, indices.num_adapters, empty_rows);
  const int64_t most = backward_workers<T>(problem, largest, 2, pool);
  GroupedBackwardCall<T> call{{num_tokens, indices.num_adapters, most}, {job, 2 * most}};
  place(ScratchOwner::call, call);
  const SortedTokens tokens = sort_tokens(indices, num_tokens, call.sort.order, call.sort.starts);
  const int64_t shares = cut_evenly(tokens, empty_rows, most, call.sort.cuts);
  parallel_for(pool, shares, [&](int64_t share) { backward_share(job, tokens, call, share, shares); });
  write_shared_gradients(job, tokens, call, shares, pool);
  trim_scratch(ScratchOwner::call);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
