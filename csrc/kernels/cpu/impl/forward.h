// Forward: per block of rows, pre_activation = h W_down^T + b, activation, out = residual + s (a W_up^T + b).
// The block's hidden states and activations stay in cache between the two products.
#pragma once

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

template <typename T>
struct ForwardJob {
  const Problem& problem;
  const ForwardTensors& tensors;
  int64_t inner;    // bottleneck_dim, padded to whole vectors
  int64_t columns;  // hidden_size, padded to whole vectors
  Operand<T>* down = nullptr;
  Operand<T>* up = nullptr;
  Acc<T>* down_bias_room = nullptr;
  Acc<T>* up_bias_room = nullptr;
  const Acc<T>* down_bias = nullptr;
  const Acc<T>* up_bias = nullptr;

  void lay_out(Pieces& pieces) {
    down = pieces.take<Operand<T>>(round_up(problem.input_size, kPair<T>) * inner);
    up = pieces.take<Operand<T>>(round_up(problem.bottleneck_dim, kPair<T>) * columns);
    down_bias_room = pieces.take<Acc<T>>(inner);
    up_bias_room = pieces.take<Acc<T>>(columns);
  }
};

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
    staging = pieces.take<Operand<T>>(rows * kDepthSteps * kPair<T>);
  }
};

// Adds the bias, stores the pre-activation, applies the activation. It is applied before rounding to T.
template <typename T>
void finish_down(const ForwardJob<T>& job, int64_t rows, T* pre_activation, const ForwardScratch<T>& scratch) {
  const int64_t size = job.problem.bottleneck_dim;
  with_activation(job.problem.activation, [&](auto constant) AX_LAMBDA {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < job.inner; c += kLanes<T>) {
        Vec<T> x = load(static_cast<const Acc<T>*>(scratch.sums + r * job.inner + c));
        if (job.down_bias) x += load(job.down_bias + c);
        if (pre_activation) store_some(pre_activation + r * size + c, x, size - c);
        store(scratch.activated + r * job.inner + c, activate<constant.value, Acc<T>>(x).value);
      }
    }
  });
}

template <typename T>
void forward_block(const ForwardJob<T>& job, int64_t row, int64_t rows, const ForwardScratch<T>& scratch) {
  const Problem& problem = job.problem;
  const ForwardTensors& tensors = job.tensors;
  const T* hidden_states = static_cast<const T*>(tensors.hidden_states) + row * tensors.hidden_states_stride;
  multiply_narrow(hidden_states, tensors.hidden_states_stride, rows, problem.input_size, job.down, job.inner,
                  scratch.sums, scratch.staging);
  T* pre_activation = static_cast<T*>(tensors.pre_activation);
  finish_down(job, rows, pre_activation ? pre_activation + row * problem.bottleneck_dim : nullptr, scratch);

  const int64_t steps = divide_up(problem.bottleneck_dim, kPair<T>);
  const T* residual = static_cast<const T*>(tensors.residual);
  if (residual) residual += row * tensors.residual_stride;
  T* output = static_cast<T*>(tensors.output) + row * problem.hidden_size;
  for (int64_t c = 0; c < problem.hidden_size; c += kPanelColumns<T>) {
    const WideResult<T> to{output + c,
                           problem.hidden_size,
                           residual ? residual + c : nullptr,
                           tensors.residual_stride,
                           job.up_bias ? job.up_bias + c : nullptr,
                           static_cast<Acc<T>>(problem.scaling),
                           min_of(kPanelColumns<T>, problem.hidden_size - c)};
    multiply_residual<T>(rows, steps, {scratch.activated, job.inner, kPair<T>}, job.up + c * steps * kPair<T>, to);
  }
}

template <typename T>
void forward(const Problem& problem, const ForwardTensors& tensors, const ThreadPool& pool) {
  if (problem.num_tokens == 0) return;
  ForwardJob<T> job{problem, tensors, round_up(problem.bottleneck_dim, kLanes<T>),
                    round_up(problem.hidden_size, kLanes<T>)};
  place(Arena::call, job);
  pack_narrow(true, static_cast<const T*>(tensors.down_weight), problem.input_size, problem.input_size,
              problem.bottleneck_dim, job.inner, pool, job.down);
  pack_wide(true, static_cast<const T*>(tensors.up_weight), problem.bottleneck_dim, problem.bottleneck_dim,
            problem.hidden_size, job.columns, pool, job.up);
  job.down_bias = pack_bias(static_cast<const T*>(tensors.down_bias), Acc<T>(1), problem.bottleneck_dim, job.inner,
                            job.down_bias_room);
  job.up_bias = pack_bias(static_cast<const T*>(tensors.up_bias), static_cast<Acc<T>>(problem.scaling),
                          problem.hidden_size, job.columns, job.up_bias_room);
  const int64_t shares = workers_for(divide_up(problem.num_tokens, kRowGranularity), pool);
  parallel_for(pool, shares, [&](int64_t share) {
    ForwardScratch<T> scratch{min_of(problem.num_tokens, kBlockRows), job.inner};
    place(Arena::worker, scratch);
    const RowRange range = share_of_rows(problem.num_tokens, share, shares);
    for (int64_t row = range.begin; row < range.end; row += kBlockRows) {
      forward_block(job, row, min_of(kBlockRows, range.end - row), scratch);
    }
    trim_scratch(Arena::worker);
  });
  trim_scratch(Arena::call);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
