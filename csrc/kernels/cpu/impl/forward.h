// Forward: per block of rows, pre_activation = h W_down^T + b, activation, out = residual + s (a W_up^T + b).
// The block's hidden states and activations stay in cache between the two products.
#pragma once

#include "activation.h"
#include "driver.h"
#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// A call of the forward pass. Weights as right operands.
template <typename T>
struct ForwardJob {
  const Problem& problem;
  const ForwardTensors& tensors;
  int64_t inner = round_up(problem.bottleneck_dim, kLanes<T>);
  int64_t columns = round_up(problem.hidden_size, kLanes<T>);

  Weight<T> down_weight(int64_t adapter) const {
    const T* from = static_cast<const T*>(tensors.down_weight) + adapter * problem.bottleneck_dim * problem.input_size;
    return {from, true, problem.input_size, problem.input_size, problem.bottleneck_dim, inner};
  }
  Weight<T> up_weight(int64_t adapter) const {
    const T* from = static_cast<const T*>(tensors.up_weight) + adapter * problem.hidden_size * problem.bottleneck_dim;
    return {from, true, problem.bottleneck_dim, problem.bottleneck_dim, problem.hidden_size, columns};
  }
  // The chunk at element k of some hidden states as left operand.
  LeftOperand<T> hidden_chunk(int64_t k, TokenRows rows, int64_t num_rows, Operand<T>* staging) const {
    const T* from = static_cast<const T*>(tensors.hidden_states) + k;
    const int64_t count = min_of(kChunkDepth<T>, problem.input_size - k);
    return view_rows(from, tensors.hidden_states_stride, rows, num_rows, count, staging);
  }
};

// The tensors of a problem with several adapters as those of one.
template <typename T>
ForwardTensors with_adapter(const Problem& problem, ForwardTensors tensors, int64_t adapter) {
  const auto skip = [&](const void*& from, int64_t size) {
    if (from != nullptr) from = static_cast<const T*>(from) + adapter * size;
  };
  skip(tensors.down_weight, problem.bottleneck_dim * problem.input_size);
  skip(tensors.down_bias, problem.bottleneck_dim);
  skip(tensors.up_weight, problem.hidden_size * problem.bottleneck_dim);
  skip(tensors.up_bias, problem.hidden_size);
  return tensors;
}

// One adapter as the products read it.
template <typename T>
struct PackedAdapter {
  const ForwardJob<T>& job;
  Operand<T>* down = nullptr;
  Operand<T>* up = nullptr;
  Acc<T>* down_bias = nullptr;  // null: no bias
  Acc<T>* up_bias = nullptr;    // times scaling; null: no bias

  void lay_out(Pieces& pieces) {
    down = pieces.take<Operand<T>>(round_up(job.problem.input_size, kPair<T>) * job.inner);
    up = pieces.take<Operand<T>>(round_up(job.problem.bottleneck_dim, kPair<T>) * job.columns);
    if (job.tensors.down_bias) down_bias = pieces.take<Acc<T>>(job.inner);
    if (job.tensors.up_bias) up_bias = pieces.take<Acc<T>>(job.columns);
  }
};

template <typename T>
void pack_biases(const PackedAdapter<T>& to, const ForwardTensors& from) {
  const Problem& problem = to.job.problem;
  if (to.down_bias) {
    pack_bias(static_cast<const T*>(from.down_bias), Acc<T>(1), problem.bottleneck_dim, to.job.inner, to.down_bias);
  }
  if (to.up_bias) {
    pack_bias(static_cast<const T*>(from.up_bias), static_cast<Acc<T>>(problem.scaling), problem.hidden_size,
              to.job.columns, to.up_bias);
  }
}

// What a worker needs for a block.
template <typename T>
struct ForwardScratch {
  int64_t rows;
  int64_t inner;
  Acc<T>* sums = nullptr;           // (rows, inner)
  Operand<T>* activated = nullptr;  // (rows, inner)
  Operand<T>* staging = nullptr;    // (rows, one chunk of depth)

  void lay_out(Pieces& pieces) {
    sums = pieces.take<Acc<T>>(rows * inner);
    activated = pieces.take<Operand<T>>(rows * inner);
    staging = pieces.take<Operand<T>>(rows * kChunkDepth<T>);
  }
};

// Adds the bias, stores the pre-activation, applies the activation. It is applied before rounding to T.
template <typename T>
void finish_down(const ForwardJob<T>& job, TokenRows rows, int64_t num_rows, const Acc<T>* bias, const Acc<T>* sums,
                 Operand<T>* activated) {
  const int64_t size = job.problem.bottleneck_dim;
  T* pre_activation = static_cast<T*>(job.tensors.pre_activation);
  with_activation(job.problem.activation, [&](auto constant) AX_LAMBDA {
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t c = 0; c < job.inner; c += kLanes<T>) {
        Vec<T> x = load(sums + r * job.inner + c);
        if (bias) x += load(bias + c);
        if (pre_activation) store_some(pre_activation + rows.token(r) * size + c, x, size - c);
        store(activated + r * job.inner + c, activate<constant.value, Acc<T>>(x).value);
      }
      end_last_pair<T>(activated + r * job.inner, size);
    }
  });
}

// Panel at column c of the output rows, from their activations, the packed panel of W_up and its bias (may be null).
template <typename T, typename Beside>
void write_output_panel(const ForwardJob<T>& job, TokenRows rows, int64_t num_rows, int64_t c, const Operand<T>* packed,
                        const Acc<T>* bias, const Operand<T>* activated, Beside& beside) {
  const Problem& problem = job.problem;
  const T* residual = static_cast<const T*>(job.tensors.residual);
  const WideResult<T> to{rows,
                         static_cast<T*>(job.tensors.output) + c,
                         problem.hidden_size,
                         residual ? residual + c : nullptr,
                         job.tensors.residual_stride,
                         bias,
                         static_cast<Acc<T>>(problem.scaling),
                         min_of(kPanelColumns<T>, problem.hidden_size - c)};
  const int64_t steps = divide_up(problem.bottleneck_dim, kPair<T>);
  multiply_residual<T>(num_rows, steps, {activated, job.inner, kPair<T>}, packed, to, beside);
}

// A block of rows, from hidden states to output. chunk(k) gives the operands of the down product, panel(c) the packed
// panel of W_up.
template <typename T, typename Chunk, typename Panel, typename Beside>
void forward_block(const PackedAdapter<T>& adapter, TokenRows rows, int64_t num_rows, const Chunk& chunk,
                   const Panel& panel, const ForwardScratch<T>& scratch, Beside& beside) {
  const ForwardJob<T>& job = adapter.job;
  multiply_narrow<T>(num_rows, job.problem.input_size, job.inner, chunk, scratch.sums, beside);
  finish_down(job, rows, num_rows, adapter.down_bias, scratch.sums, scratch.activated);
  for (int64_t c = 0; c < job.columns; c += kPanelColumns<T>) {
    write_output_panel(job, rows, num_rows, c, panel(c), adapter.up_bias ? adapter.up_bias + c : nullptr,
                       scratch.activated, beside);
  }
}

// One adapter for all tokens: packed once, the threads share the rows.
template <typename T>
void forward_by_rows(const ForwardJob<T>& job, const ThreadPool& pool) {
  const Problem& problem = job.problem;
  PackedAdapter<T> adapter{job};
  place(ScratchOwner::call, adapter);
  pack_chunks(job.down_weight(0), pool, adapter.down);
  pack_panels(job.up_weight(0), pool, adapter.up);
  pack_biases(adapter, job.tensors);
  const int64_t depth = round_up(problem.bottleneck_dim, kPair<T>);
  const int64_t shares = workers_for(divide_up(problem.num_tokens, kRowGranularity), pool);
  parallel_for(pool, shares, [&](int64_t share) {
    ForwardScratch<T> scratch{min_of(problem.num_tokens, kBlockRows), job.inner};
    place(ScratchOwner::worker, scratch);
    Nothing nothing;
    const RowRange range = share_of_rows(problem.num_tokens, share, shares);
    for (int64_t row = range.begin; row < range.end; row += kBlockRows) {
      const TokenRows rows{row, nullptr};
      const int64_t count = min_of(kBlockRows, range.end - row);
      const auto chunk = [&](int64_t k) -> ChunkOperands<T> {
        return {job.hidden_chunk(k, rows, count, scratch.staging), adapter.down + k * job.inner};
      };
      const auto panel = [&](int64_t c) { return adapter.up + c * depth; };
      forward_block(adapter, rows, count, chunk, panel, scratch, nothing);
    }
    trim_scratch(ScratchOwner::worker);
  });
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
