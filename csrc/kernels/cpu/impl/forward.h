// Forward: per block of rows, pre_activation = h W_down^T + b, activation, out = residual + s (a W_up^T + b).
// The block's hidden states and activations stay in cache between the two products.
#pragma once

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

constexpr int64_t kFewTokens = 32;
// Multiplications below which waking other threads costs more than they save (some 5 us).
constexpr int64_t kSmallestShared = 256 * 1024;

template <typename T>
struct ForwardJob {
  const Problem& problem;
  const ForwardTensors& tensors;
  bool few_tokens;
  int64_t inner;    // bottleneck_dim, padded to whole vectors
  int64_t columns;  // hidden_size, padded to whole vectors
  Operand<T>* down = nullptr;
  Operand<T>* up = nullptr;
  Acc<T>* down_bias_room = nullptr;
  Acc<T>* up_bias_room = nullptr;
  const Acc<T>* down_bias = nullptr;
  const Acc<T>* up_bias = nullptr;
  Acc<T>* chunk_sums = nullptr;     // few tokens: (chunks of depth, num_tokens, inner)
  Operand<T>* activated = nullptr;  // few tokens: (num_tokens, inner)

  void lay_out(Pieces& pieces) {
    if (few_tokens) {
      const int64_t chunks = divide_up(problem.input_size, kDepthSteps * kPair<T>);
      chunk_sums = pieces.take<Acc<T>>(chunks * problem.num_tokens * inner);
      activated = pieces.take<Operand<T>>(problem.num_tokens * inner);
    } else {
      down = pieces.take<Operand<T>>(round_up(problem.input_size, kPair<T>) * inner);
      up = pieces.take<Operand<T>>(round_up(problem.bottleneck_dim, kPair<T>) * columns);
    }
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
void finish_down(const ForwardJob<T>& job, int64_t rows, T* pre_activation, const Acc<T>* sums, Operand<T>* activated) {
  const int64_t size = job.problem.bottleneck_dim;
  with_activation(job.problem.activation, [&](auto constant) AX_LAMBDA {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < job.inner; c += kLanes<T>) {
        Vec<T> x = load(sums + r * job.inner + c);
        if (job.down_bias) x += load(job.down_bias + c);
        if (pre_activation) store_some(pre_activation + r * size + c, x, size - c);
        store(activated + r * job.inner + c, activate<constant.value, Acc<T>>(x).value);
      }
    }
  });
}

// Panel at column c of the output rows [row, row + rows), from their activations and the packed panel of W_up.
template <typename T>
void write_output_panel(const ForwardJob<T>& job, int64_t row, int64_t rows, int64_t c, const Operand<T>* packed,
                        const Operand<T>* activated) {
  const Problem& problem = job.problem;
  const T* residual = static_cast<const T*>(job.tensors.residual);
  if (residual) residual += row * job.tensors.residual_stride + c;
  const WideResult<T> to{static_cast<T*>(job.tensors.output) + row * problem.hidden_size + c,
                         problem.hidden_size,
                         residual,
                         job.tensors.residual_stride,
                         job.up_bias ? job.up_bias + c : nullptr,
                         static_cast<Acc<T>>(problem.scaling),
                         min_of(kPanelColumns<T>, problem.hidden_size - c)};
  const int64_t steps = divide_up(problem.bottleneck_dim, kPair<T>);
  multiply_residual<T>(rows, steps, {activated, job.inner, kPair<T>}, packed, to);
}

template <typename T>
void forward_block(const ForwardJob<T>& job, int64_t row, int64_t rows, const ForwardScratch<T>& scratch) {
  const int64_t stride = job.tensors.hidden_states_stride;
  const T* hidden_states = static_cast<const T*>(job.tensors.hidden_states) + row * stride;
  multiply_narrow(hidden_states, stride, rows, job.problem.input_size, job.down, job.inner, scratch.sums,
                  scratch.staging);
  T* pre_activation = static_cast<T*>(job.tensors.pre_activation);
  if (pre_activation) pre_activation += row * job.problem.bottleneck_dim;
  finish_down(job, rows, pre_activation, scratch.sums, scratch.activated);
  const int64_t depth = round_up(job.problem.bottleneck_dim, kPair<T>);
  for (int64_t c = 0; c < job.columns; c += kPanelColumns<T>) {
    write_output_panel(job, row, rows, c, job.up + c * depth, scratch.activated);
  }
}

template <typename T>
void forward_by_rows(ForwardJob<T>& job, const ThreadPool& pool) {
  const Problem& problem = job.problem;
  pack_narrow(true, static_cast<const T*>(job.tensors.down_weight), problem.input_size, problem.input_size,
              problem.bottleneck_dim, job.inner, pool, job.down);
  pack_wide(true, static_cast<const T*>(job.tensors.up_weight), problem.bottleneck_dim, problem.bottleneck_dim,
            problem.hidden_size, job.columns, pool, job.up);
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
}

// What a worker needs for few tokens: one packed chunk or panel of a weight, used at once.
template <typename T>
struct ChunkScratch {
  int64_t rows;
  int64_t packed_size;
  Operand<T>* packed = nullptr;
  Operand<T>* staging = nullptr;

  void lay_out(Pieces& pieces) {
    packed = pieces.take<Operand<T>>(packed_size);
    staging = pieces.take<Operand<T>>(rows * kDepthSteps * kPair<T>);
  }
};

// Few tokens: the weights are the work, so threads share their columns and not the rows. The partial sums of the
// chunks of depth are added in the order of forward_by_rows: a row's bits do not depend on the number of rows.
template <typename T>
void forward_by_columns(ForwardJob<T>& job, const ThreadPool& pool) {
  const Problem& problem = job.problem;
  const ForwardTensors& tensors = job.tensors;
  constexpr int64_t kDepth = kDepthSteps * kPair<T>;
  const int64_t rows = problem.num_tokens;
  const int64_t size = problem.bottleneck_dim;
  const int64_t chunks = divide_up(problem.input_size, kDepth);
  parallel_for(pool, chunks, [&](int64_t chunk) {
    const int64_t k = chunk * kDepth;
    const int64_t count = min_of(kDepth, problem.input_size - k);
    ChunkScratch<T> scratch{rows, kDepth * job.inner};
    place(Arena::worker, scratch);
    pack_matrix(true, static_cast<const T*>(tensors.down_weight) + k, problem.input_size, count, size, job.inner,
                scratch.packed);
    multiply_narrow(static_cast<const T*>(tensors.hidden_states) + k, tensors.hidden_states_stride, rows, count,
                    static_cast<const Operand<T>*>(scratch.packed), job.inner,
                    job.chunk_sums + chunk * rows * job.inner, scratch.staging);
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < rows * job.inner; i += kLanes<T>) {
      const Acc<T>* more = job.chunk_sums + chunk * rows * job.inner + i;
      store(job.chunk_sums + i, load(static_cast<const Acc<T>*>(job.chunk_sums + i)) + load(more));
    }
  }
  finish_down(job, rows, static_cast<T*>(tensors.pre_activation), job.chunk_sums, job.activated);
  parallel_for(pool, divide_up(job.columns, kPanelColumns<T>), [&](int64_t panel) {
    const int64_t c = panel * kPanelColumns<T>;
    ChunkScratch<T> scratch{rows, round_up(size, kPair<T>) * kPanelColumns<T>};
    place(Arena::worker, scratch);
    pack_matrix(true, static_cast<const T*>(tensors.up_weight) + c * size, size, size, problem.hidden_size - c,
                min_of(kPanelColumns<T>, job.columns - c), scratch.packed);
    write_output_panel(job, 0, rows, c, static_cast<const Operand<T>*>(scratch.packed),
                       static_cast<const Operand<T>*>(job.activated));
  });
}

template <typename T>
void forward(const Problem& problem, const ForwardTensors& tensors, const ThreadPool& pool) {
  if (problem.num_tokens == 0) return;
  ForwardJob<T> job{problem, tensors, problem.num_tokens <= kFewTokens, round_up(problem.bottleneck_dim, kLanes<T>),
                    round_up(problem.hidden_size, kLanes<T>)};
  place(Arena::call, job);
  job.down_bias = pack_bias(static_cast<const T*>(tensors.down_bias), Acc<T>(1), problem.bottleneck_dim, job.inner,
                            job.down_bias_room);
  job.up_bias = pack_bias(static_cast<const T*>(tensors.up_bias), static_cast<Acc<T>>(problem.scaling),
                          problem.hidden_size, job.columns, job.up_bias_room);
  const int64_t weights = (problem.input_size + problem.hidden_size) * problem.bottleneck_dim;
  if (!job.few_tokens) {
    forward_by_rows(job, pool);
  } else {
    forward_by_columns(job, weights * problem.num_tokens < kSmallestShared ? ThreadPool{} : pool);
  }
  trim_scratch(Arena::call);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
