// The parts of a backward pass: its sizes and weights, the partial gradients, the memory of a worker.
#pragma once

#include "driver.h"
#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Partial gradients of one worker. A weight gradient is held by panels of columns: (bottleneck_dim, panel) each.
template <typename T>
struct Partials {
  Acc<T>* up = nullptr;
  Acc<T>* down = nullptr;
  Acc<T>* up_bias = nullptr;
  Acc<T>* down_bias = nullptr;
};

// Where a panel of a weight gradient is summed: (bottleneck_dim, panel).
template <typename T>
struct PanelSum {
  Acc<T>* to;
  int64_t stride;
};

// A call of the backward pass. Weights as right operands.
template <typename T>
struct BackwardJob {
  const Problem& problem;
  const BackwardTensors& tensors;
  // Whether something needs the gradient at the pre-activation.
  bool wants_du = tensors.grad_input || tensors.grad_down_weight || tensors.grad_down_bias;
  int64_t inner = round_up(problem.bottleneck_dim, kLanes<T>);
  int64_t in_columns = round_up(problem.input_size, kLanes<T>);
  int64_t out_columns = round_up(problem.hidden_size, kLanes<T>);

  Weight<T> up_weight(int64_t adapter) const {
    const T* from = static_cast<const T*>(tensors.up_weight) + adapter * problem.hidden_size * problem.bottleneck_dim;
    return {from, false, problem.bottleneck_dim, problem.hidden_size, problem.bottleneck_dim, inner};
  }
  Weight<T> down_weight(int64_t adapter) const {
    const T* from = static_cast<const T*>(tensors.down_weight) + adapter * problem.bottleneck_dim * problem.input_size;
    return {from, false, problem.input_size, problem.bottleneck_dim, problem.input_size, in_columns};
  }
  // The chunk at element k of some rows of grad_output as left operand.
  LeftOperand<T> grad_chunk(int64_t k, TokenRows rows, int64_t num_rows, Operand<T>* staging) const {
    const T* from = static_cast<const T*>(tensors.grad_output) + k;
    const int64_t count = min_of(kChunkDepth<T>, problem.hidden_size - k);
    return view_rows(from, tensors.grad_output_stride, rows, num_rows, count, staging);
  }

  Partials<T> take_partials(Pieces& pieces) const {
    Partials<T> partials;
    if (tensors.grad_up_weight) partials.up = pieces.take<Acc<T>>(out_columns * problem.bottleneck_dim);
    if (tensors.grad_down_weight) partials.down = pieces.take<Acc<T>>(in_columns * problem.bottleneck_dim);
    if (tensors.grad_up_bias) partials.up_bias = pieces.take<Acc<T>>(out_columns);
    if (tensors.grad_down_bias) partials.down_bias = pieces.take<Acc<T>>(inner);
    return partials;
  }
};

// Room for `count` partial gradients one after the other.
template <typename T>
struct PartialsRoom {
  const BackwardJob<T>& job;
  int64_t count;
  Acc<T>* room = nullptr;
  int64_t size = 0;  // of one, elements

  void lay_out(Pieces& pieces) {
    Pieces one{nullptr};
    job.take_partials(one);
    size = one.used / static_cast<int64_t>(sizeof(Acc<T>));
    room = pieces.take<Acc<T>>(count * size);
  }

  Partials<T> at(int64_t i) const {
    Pieces pieces{reinterpret_cast<std::byte*>(room + i * size)};
    return job.take_partials(pieces);
  }
};

// One adapter as the products of the backward pass read it.
template <typename T>
struct PackedTransposes {
  const BackwardJob<T>& job;
  Operand<T>* up = nullptr;
  Operand<T>* down = nullptr;

  void lay_out(Pieces& pieces) {
    const Problem& problem = job.problem;
    if (job.wants_du) up = pieces.take<Operand<T>>(round_up(problem.hidden_size, kPair<T>) * job.inner);
    if (job.tensors.grad_input) {
      down = pieces.take<Operand<T>>(round_up(problem.bottleneck_dim, kPair<T>) * job.in_columns);
    }
  }
};

template <typename T>
void pack_transposes(int64_t adapter, const ThreadPool& pool, const PackedTransposes<T>& to) {
  if (to.up) pack_chunks(to.job.up_weight(adapter), pool, to.up);
  if (to.down) pack_panels(to.job.down_weight(adapter), pool, to.down);
}

// What a worker needs for a block.
template <typename T>
struct BackwardScratch {
  int64_t rows;
  int64_t inner;
  Acc<T>* sums = nullptr;         // (rows, inner)
  Operand<T>* du = nullptr;       // (rows, inner): left operand of grad_input
  Operand<T>* du_deep = nullptr;  // (steps, inner, pair): left operand of the weight gradient, tokens as depth
  Operand<T>* activated_deep = nullptr;
  Operand<T>* staging = nullptr;
  Operand<T>* panel = nullptr;

  void lay_out(Pieces& pieces) {
    sums = pieces.take<Acc<T>>(rows * inner);
    du = pieces.take<Operand<T>>(rows * inner);
    du_deep = kPair<T> == 1 ? du : pieces.take<Operand<T>>(round_up(rows, kPair<T>) * inner);
    activated_deep = pieces.take<Operand<T>>(round_up(rows, kPair<T>) * inner);
    staging = pieces.take<Operand<T>>(rows * kChunkDepth<T>);
    panel = pieces.take<Operand<T>>(round_up(rows, kPair<T>) * kPanelColumns<T>);
  }
};

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
