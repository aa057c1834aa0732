// The gradients of the weights and biases from the partial ones, and the backward pass of one adapter.
#pragma once

#include "backward.h"
#include "backward_job.h"
#include "driver.h"
#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "transpose.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Partial gradients to be added in this order: the first, then `more` that lie `size` elements apart.
template <typename T>
struct PartialsSum {
  Partials<T> first;
  Partials<T> next;
  int64_t more;
  int64_t size;
};

template <typename T, typename Pick>
AX_INLINE Vec<T> sum_partials(const PartialsSum<T>& sum, Pick pick, int64_t at) {
  Vec<T> value = load(static_cast<const Acc<T>*>(pick(sum.first) + at));
  for (int64_t i = 0; i < sum.more; ++i) value += load(static_cast<const Acc<T>*>(pick(sum.next) + i * sum.size + at));
  return value;
}

// Rows [r, r + kLanes) of the up gradient's partial panel at column c, vector v, to columns of grad_up_weight.
template <typename T>
void write_up_square(const Problem& problem, const PartialsSum<T>& sum, int64_t at, int64_t c, int64_t v, int64_t r,
                     int64_t width, T* to) {
  constexpr int64_t kSide = kLanes<T>;
  const int64_t size = problem.bottleneck_dim;
  const Acc<T> scaling = static_cast<Acc<T>>(problem.scaling);
  const auto up = [](const Partials<T>& partials) { return partials.up; };
  const int64_t rows = min_of(kSide, size - r);
  const int64_t columns = min_of(kSide, problem.hidden_size - c - v);
  to += (c + v) * size + r;
  Vec<T> square[kSide] = {};
  for (int64_t i = 0; i < rows; ++i) square[i] = scaling * sum_partials(sum, up, at + (r + i) * width + v);
  if constexpr (sizeof(Acc<T>) == 4) {
    Words bits[kSide];
    __builtin_memcpy(&bits, &square, sizeof(bits));
    transpose(bits);
    for (int64_t i = 0; i < columns; ++i) store_some(to + i * size, bit_cast<Vec<T>>(bits[i]), rows);
  } else {
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = 0; j < rows; ++j) to[i * size + j] = square[j][i];
    }
  }
}

// Writes the gradients of the weights' panel at column c, whose partial gradients stand at `at`.
template <typename T>
void write_weight_gradients(const BackwardJob<T>& job, const BackwardTensors& to, const PartialsSum<T>& sum, int64_t c,
                            int64_t at) {
  const Problem& problem = job.problem;
  T* down = static_cast<T*>(to.grad_down_weight);
  T* up = static_cast<T*>(to.grad_up_weight);
  const int64_t in_width = min_of(kPanelColumns<T>, job.in_columns - c);
  const int64_t out_width = min_of(kPanelColumns<T>, job.out_columns - c);
  const auto pick_down = [](const Partials<T>& partials) { return partials.down; };
  for (int64_t r = 0; down && r < problem.bottleneck_dim; ++r) {
    for (int64_t v = 0; v < in_width; v += kLanes<T>) {
      store_some(down + r * problem.input_size + c + v, sum_partials(sum, pick_down, at + r * in_width + v),
                 problem.input_size - c - v);
    }
  }
  for (int64_t r = 0; up && r < problem.bottleneck_dim; r += kLanes<T>) {
    for (int64_t v = 0; v < out_width; v += kLanes<T>) write_up_square(problem, sum, at, c, v, r, out_width, up);
  }
}

template <typename T>
void write_bias_gradients(const Problem& problem, const BackwardTensors& to, const PartialsSum<T>& sum) {
  const Acc<T> scaling = static_cast<Acc<T>>(problem.scaling);
  T* down = static_cast<T*>(to.grad_down_bias);
  T* up = static_cast<T*>(to.grad_up_bias);
  const auto pick_down = [](const Partials<T>& partials) { return partials.down_bias; };
  const auto pick_up = [](const Partials<T>& partials) { return partials.up_bias; };
  for (int64_t c = 0; down && c < problem.bottleneck_dim; c += kLanes<T>) {
    store_some(down + c, sum_partials(sum, pick_down, c), problem.bottleneck_dim - c);
  }
  for (int64_t c = 0; up && c < problem.hidden_size; c += kLanes<T>) {
    store_some(up + c, scaling * sum_partials(sum, pick_up, c), problem.hidden_size - c);
  }
}

template <typename T>
void write_gradients(const BackwardJob<T>& job, const BackwardTensors& to, const PartialsSum<T>& sum,
                     const ThreadPool& pool) {
  const bool weights = to.grad_up_weight || to.grad_down_weight;
  const int64_t panels = divide_up(max_of(job.in_columns, job.out_columns), kPanelColumns<T>);
  parallel_for(pool, weights ? panels : 0, [&](int64_t panel) {
    const int64_t c = panel * kPanelColumns<T>;
    write_weight_gradients(job, to, sum, c, c * job.problem.bottleneck_dim);
  });
  write_bias_gradients(job.problem, to, sum);
}

// Zeros for the gradients of `adapters` adapters in a row.
template <typename T>
void write_zero_gradients(const Problem& problem, const BackwardTensors& tensors, int64_t adapters) {
  const auto clear = [&](void* to, int64_t count) {
    if (to != nullptr) __builtin_memset(to, 0, static_cast<size_t>(adapters * count) * sizeof(T));
  };
  clear(tensors.grad_down_weight, problem.bottleneck_dim * problem.input_size);
  clear(tensors.grad_up_weight, problem.bottleneck_dim * problem.hidden_size);
  clear(tensors.grad_down_bias, problem.bottleneck_dim);
  clear(tensors.grad_up_bias, problem.hidden_size);
}

// Workers such that the partial gradients, `each` per worker, fit into kLargestPartials bytes.
template <typename T>
int64_t backward_workers(const Problem& problem, int64_t items, int64_t each, const ThreadPool& pool) {
  constexpr int64_t kLargestPartials = int64_t{512} << 20;
  const int64_t bytes = (problem.input_size + problem.hidden_size) * problem.bottleneck_dim * int64_t{sizeof(Acc<T>)};
  const int64_t most = kLargestPartials / max_of<int64_t>(each * bytes, 1);
  return max_of<int64_t>(1, min_of(workers_for(items, pool), most));
}

template <typename T>
struct BackwardCall {
  PackedTransposes<T> adapter;
  PartialsRoom<T> partials;

  void lay_out(Pieces& pieces) {
    adapter.lay_out(pieces);
    partials.lay_out(pieces);
  }
};

// One adapter for all tokens: packed once, the threads share the rows.
template <typename T>
void backward(const Problem& problem, const BackwardTensors& tensors, const ThreadPool& pool) {
  if (problem.num_tokens == 0) return write_zero_gradients<T>(problem, tensors, 1);
  const BackwardJob<T> job{problem, tensors};
  const int64_t workers = backward_workers<T>(problem, divide_up(problem.num_tokens, kRowGranularity), 1, pool);
  BackwardCall<T> call{{job}, {job, workers}};
  place(ScratchOwner::call, call);
  pack_transposes(0, pool, call.adapter);
  parallel_for(pool, workers, [&](int64_t worker) {
    BackwardScratch<T> scratch{min_of(problem.num_tokens, kBlockRows), job.inner};
    place(ScratchOwner::worker, scratch);
    const Partials<T> partials = call.partials.at(worker);
    const RowRange range = share_of_rows(problem.num_tokens, worker, workers);
    Nothing nothing;
    for (int64_t row = range.begin; row < range.end; row += kBlockRows) {
      const TokenRows rows{row, nullptr};
      const int64_t count = min_of(kBlockRows, range.end - row);
      const auto chunk = [&](int64_t k) -> ChunkOperands<T> {
        return {job.grad_chunk(k, rows, count, scratch.staging), call.adapter.up + k * job.inner};
      };
      const auto panel = [&](int64_t c) {
        return panel_operands(call.adapter, partials, c, c * problem.bottleneck_dim);
      };
      backward_block(job, rows, count, chunk, panel, [](int64_t) {}, row > range.begin, partials, scratch, nothing);
    }
    trim_scratch(ScratchOwner::worker);
  });
  const PartialsSum<T> sum{call.partials.at(0), call.partials.at(1), workers - 1, call.partials.size};
  write_gradients(job, tensors, sum, pool);
  trim_scratch(ScratchOwner::call);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
