// Backward in one sweep over the tokens: per block, t = g W_up, du = s act'(u) t, then per panel of columns the partial
// weight gradients and grad_input, while the panel's rows of g and h are in cache.
// Every worker sums its own partial gradients; they are added in worker order: same bits for the same thread count.
#pragma once

#include "activation.h"
#include "backward_job.h"
#include "driver.h"
#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// Writes one vector of token `row` into a (steps, inner, pair) operand.
template <typename T>
AX_INLINE void store_deep(Operand<T>* to, int64_t inner, int64_t row, int64_t column, Vec<T> value) {
  if constexpr (kDot<T>) {
    Operand<T> narrowed[kLanes<T>];
    store(static_cast<Operand<T>*>(narrowed), value);
    Operand<T>* at = to + (row / 2) * inner * 2 + column * 2 + row % 2;
    for (int64_t i = 0; i < kLanes<T>; ++i) at[i * 2] = narrowed[i];
  } else {
    store(to + row * inner + column, value);
  }
}

// From the pre-activation u and t (in scratch.sums): du = s act'(u) t and act(u), as operands; sums du over tokens.
template <typename T>
void finish_up_gradient(const BackwardJob<T>& job, TokenRows rows, int64_t num_rows, bool add,
                        const Partials<T>& partials, const BackwardScratch<T>& scratch) {
  const int64_t size = job.problem.bottleneck_dim;
  const T* pre_activation = static_cast<const T*>(job.tensors.pre_activation);
  const Acc<T> scaling = static_cast<Acc<T>>(job.problem.scaling);
  const bool wants_activated = partials.up != nullptr;
  const int64_t padded_rows = round_up(num_rows, kPair<T>);
  with_activation(job.problem.activation, [&](auto constant) AX_LAMBDA {
    for (int64_t c = 0; c < job.inner; c += kLanes<T>) {
      Vec<T> bias_sum = {};
      for (int64_t r = 0; r < padded_rows; ++r) {
        Vec<T> du = {};
        Vec<T> activated = {};
        if (r < num_rows) {
          const Vec<T> u = load_some(pre_activation + rows.token(r) * size + c, size - c);
          const auto result = activate<constant.value, Acc<T>>(u);
          activated = result.value;
          if (job.wants_du) {
            const Vec<T> gradient = load(static_cast<const Acc<T>*>(scratch.sums + r * job.inner + c)) * scaling;
            du = through<constant.value>(gradient, u, result.derivative);
            store(scratch.du + r * job.inner + c, du);
            bias_sum += du;
          }
        }
        if (kDot<T> && partials.down) store_deep<T>(scratch.du_deep, job.inner, r, c, du);
        if (wants_activated) store_deep<T>(scratch.activated_deep, job.inner, r, c, activated);
      }
      if (partials.down_bias) {
        Acc<T>* to = partials.down_bias + c;
        store(to, add ? load(static_cast<const Acc<T>*>(to)) + bias_sum : bias_sum);
      }
    }
    for (int64_t r = 0; job.wants_du && r < num_rows; ++r) end_last_pair<T>(scratch.du + r * job.inner, size);
  });
}

// A panel of token rows as right operand: in place where possible, else packed.
template <typename T>
struct RightOperand {
  const Operand<T>* data;
  int64_t step;
};
template <typename T>
AX_INLINE RightOperand<T> view_panel(const T* from, int64_t stride, TokenRows rows, int64_t num_rows, int64_t count,
                                     int64_t width, Operand<T>* room) {
  if constexpr (kSame<T, Operand<T>> && kPair<T> == 1) {
    if (count == width && rows.listed == nullptr) return {from + rows.first * stride, stride};
  }
  pack_rows(from, stride, rows, num_rows, count, width, room);
  return {room, width * kPair<T>};
}

// sums (+)= the sum over the rows, for kVectors vectors of columns of which `count` columns exist.
template <typename T, int64_t kVectors, typename From>
AX_INLINE void add_vector_sums(const From* from, int64_t stride, TokenRows rows, int64_t num_rows, int64_t count,
                               bool add, Acc<T>* sums) {
  Vec<T> sum[kVectors] = {};
  for (int64_t r = 0; r < num_rows; ++r) {
    const From* row = from + rows.token(r) * stride;
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) sum[v] += load_some(row + v * kLanes<T>, count - v * kLanes<T>);
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    Acc<T>* to = sums + v * kLanes<T>;
    store(to, add ? load(static_cast<const Acc<T>*>(to)) + sum[v] : sum[v]);
  }
}

// The same for a panel of `count` columns. All vectors of a row at once: the additions of one wait for each other.
template <typename T, typename From>
void add_column_sums(const From* from, int64_t stride, TokenRows rows, int64_t num_rows, int64_t count, bool add,
                     Acc<T>* sums) {
  if (count == kPanelColumns<T>) {
    return add_vector_sums<T, kPanelVectors>(from, stride, rows, num_rows, kPanelColumns<T>, add, sums);
  }
  for (int64_t c = 0; c < count; c += kLanes<T>) {
    add_vector_sums<T, 1>(from + c, stride, rows, num_rows, count - c, add, sums + c);
  }
}

// What a block's products of one panel of columns need.
template <typename T>
struct PanelOperands {
  const Operand<T>* down;  // the packed panel of W_down; null where grad_input is not wanted
  PanelSum<T> grad_up;     // null where not wanted
  PanelSum<T> grad_down;
};

// Those of the panel at column c, its sums at `at` in the partial gradients.
template <typename T>
PanelOperands<T> panel_operands(const PackedTransposes<T>& adapter, const Partials<T>& partials, int64_t c,
                                int64_t at) {
  const BackwardJob<T>& job = adapter.job;
  const auto sum = [&](Acc<T>* partial, int64_t columns) -> PanelSum<T> {
    if (partial == nullptr || c >= columns) return {nullptr, 0};
    return {partial + at, min_of(kPanelColumns<T>, columns - c)};
  };
  const bool has_down = adapter.down != nullptr && c < job.in_columns;
  return {has_down ? adapter.down + c * round_up(job.problem.bottleneck_dim, kPair<T>) : nullptr,
          sum(partials.up, job.out_columns), sum(partials.down, job.in_columns)};
}

// (+)= operand^T @ a panel of token rows.
template <typename T, typename Beside>
void add_weight_gradient(const BackwardJob<T>& job, const Operand<T>* deep, int64_t num_rows, RightOperand<T> panel,
                         int64_t width, bool add, PanelSum<T> sum, Beside& beside) {
  multiply_into<T>(job.problem.bottleneck_dim, divide_up(num_rows, kPair<T>), width,
                   {deep, kPair<T>, job.inner * kPair<T>}, panel.data, panel.step, add, sum.to, sum.stride, beside);
}

// Everything that the columns [c, c + panel) of grad_output give.
template <typename T, typename Beside>
void backward_out_panel(const BackwardJob<T>& job, TokenRows rows, int64_t num_rows, int64_t c,
                        const PanelOperands<T>& operands, bool add, const Partials<T>& partials,
                        const BackwardScratch<T>& scratch, Beside& beside) {
  if (!partials.up && !partials.up_bias) return;
  const int64_t count = min_of(kPanelColumns<T>, job.problem.hidden_size - c);
  const int64_t width = round_up(count, kLanes<T>);
  const T* g = static_cast<const T*>(job.tensors.grad_output) + c;
  const int64_t stride = job.tensors.grad_output_stride;
  const RightOperand<T> panel = view_panel(g, stride, rows, num_rows, count, width, scratch.panel);
  if (partials.up_bias) {
    if constexpr (kPair<T> == 1) {
      add_column_sums<T>(panel.data, panel.step, {0, nullptr}, num_rows, width, add, partials.up_bias + c);
    } else {
      add_column_sums<T>(g, stride, rows, num_rows, count, add, partials.up_bias + c);
    }
  }
  if (partials.up) {
    add_weight_gradient(job, scratch.activated_deep, num_rows, panel, width, add, operands.grad_up, beside);
  }
}

// Everything that concerns the columns [c, c + panel) of hidden_states.
template <typename T, typename Beside>
void backward_in_panel(const BackwardJob<T>& job, TokenRows rows, int64_t num_rows, int64_t c,
                       const PanelOperands<T>& operands, bool add, const Partials<T>& partials,
                       const BackwardScratch<T>& scratch, Beside& beside) {
  const Problem& problem = job.problem;
  const BackwardTensors& tensors = job.tensors;
  const int64_t count = min_of(kPanelColumns<T>, problem.input_size - c);
  if (tensors.grad_input) {
    const WideResult<T> to{rows,
                           static_cast<T*>(tensors.grad_input) + c,
                           problem.input_size,
                           tensors.add_grad_output ? static_cast<const T*>(tensors.grad_output) + c : nullptr,
                           tensors.grad_output_stride,
                           nullptr,
                           Acc<T>(1),
                           count};
    multiply_residual<T>(num_rows, divide_up(problem.bottleneck_dim, kPair<T>), {scratch.du, job.inner, kPair<T>},
                         operands.down, to, beside);
  }
  if (partials.down) {
    const int64_t width = round_up(count, kLanes<T>);
    const RightOperand<T> panel = view_panel(static_cast<const T*>(tensors.hidden_states) + c,
                                             tensors.hidden_states_stride, rows, num_rows, count, width, scratch.panel);
    add_weight_gradient(job, scratch.du_deep, num_rows, panel, width, add, operands.grad_down, beside);
  }
}

// A block of rows. `chunk(k)` and `panel(c)` give the operands of the products, `panel_done(c)` ends a panel.
template <typename T, typename Chunk, typename Panel, typename PanelDone, typename Beside>
void backward_block(const BackwardJob<T>& job, TokenRows rows, int64_t num_rows, const Chunk& chunk, const Panel& panel,
                    const PanelDone& panel_done, bool add, const Partials<T>& partials,
                    const BackwardScratch<T>& scratch, Beside& beside) {
  const Problem& problem = job.problem;
  if (job.wants_du) multiply_narrow<T>(num_rows, problem.hidden_size, job.inner, chunk, scratch.sums, beside);
  if (job.wants_du || partials.up) finish_up_gradient(job, rows, num_rows, add, partials, scratch);
  for (int64_t c = 0; c < max_of(problem.input_size, problem.hidden_size); c += kPanelColumns<T>) {
    const PanelOperands<T> operands = panel(c);
    if (c < problem.hidden_size) {
      backward_out_panel(job, rows, num_rows, c, operands, add, partials, scratch, beside);
    }
    if (c < problem.input_size) {
      backward_in_panel(job, rows, num_rows, c, operands, add, partials, scratch, beside);
    }
    panel_done(c);
  }
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
