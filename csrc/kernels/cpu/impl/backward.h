// Backward in one sweep over the tokens: per block, t = g W_up, du = s act'(u) t, then per panel of columns the partial
// weight gradients and grad_input, while the panel's rows of g and h are in cache.
// Every worker sums its own partial gradients; they are added in worker order: same bits for the same thread count.
#pragma once

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

template <typename T>
struct BackwardJob {
  const Problem& problem;
  const BackwardTensors& tensors;
  int64_t workers;
  bool wants_du;        // something needs the gradient at the pre-activation
  int64_t inner;        // bottleneck_dim, padded to whole vectors
  int64_t in_columns;   // input_size, padded
  int64_t out_columns;  // hidden_size, padded
  Operand<T>* up = nullptr;
  Operand<T>* down = nullptr;
  Acc<T>* partials = nullptr;
  int64_t partials_size = 0;  // of one worker, elements

  void lay_out(Pieces& pieces) {
    if (wants_du) up = pieces.take<Operand<T>>(round_up(problem.hidden_size, kPair<T>) * inner);
    if (tensors.grad_input) down = pieces.take<Operand<T>>(round_up(problem.bottleneck_dim, kPair<T>) * in_columns);
    Pieces one{nullptr};
    partials_of_worker(one);
    partials_size = one.used / static_cast<int64_t>(sizeof(Acc<T>));
    partials = pieces.take<Acc<T>>(workers * partials_size);
  }

  Partials<T> partials_of_worker(Pieces& pieces) const {
    Partials<T> mine;
    if (tensors.grad_up_weight) mine.up = pieces.take<Acc<T>>(out_columns * problem.bottleneck_dim);
    if (tensors.grad_down_weight) mine.down = pieces.take<Acc<T>>(in_columns * problem.bottleneck_dim);
    if (tensors.grad_up_bias) mine.up_bias = pieces.take<Acc<T>>(out_columns);
    if (tensors.grad_down_bias) mine.down_bias = pieces.take<Acc<T>>(inner);
    return mine;
  }

  Partials<T> partials_of(int64_t worker) const {
    Pieces pieces{reinterpret_cast<std::byte*>(partials + worker * partials_size)};
    return partials_of_worker(pieces);
  }
};

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
    staging = pieces.take<Operand<T>>(rows * kDepthSteps * kPair<T>);
    panel = pieces.take<Operand<T>>(round_up(rows, kPair<T>) * kPanelColumns<T>);
  }
};

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
void finish_up_gradient(const BackwardJob<T>& job, int64_t row, int64_t rows, bool add, const Partials<T>& partials,
                        const BackwardScratch<T>& scratch) {
  const int64_t size = job.problem.bottleneck_dim;
  const T* pre_activation = static_cast<const T*>(job.tensors.pre_activation) + row * size;
  const Acc<T> scaling = static_cast<Acc<T>>(job.problem.scaling);
  const bool wants_activated = partials.up != nullptr;
  const int64_t padded_rows = round_up(rows, kPair<T>);
  with_activation(job.problem.activation, [&](auto constant) AX_LAMBDA {
    for (int64_t c = 0; c < job.inner; c += kLanes<T>) {
      Vec<T> bias_sum = {};
      for (int64_t r = 0; r < padded_rows; ++r) {
        Vec<T> du = {};
        Vec<T> activated = {};
        if (r < rows) {
          const Vec<T> u = load_some(pre_activation + r * size + c, size - c);
          const auto result = activate<constant.value, Acc<T>>(u);
          activated = result.value;
          if (job.wants_du) {
            du = load(static_cast<const Acc<T>*>(scratch.sums + r * job.inner + c)) * scaling * result.derivative;
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
  });
}

// A panel of token rows as right operand: in place where possible, else packed.
template <typename T>
struct RightOperand {
  const Operand<T>* data;
  int64_t step;
};
template <typename T>
AX_INLINE RightOperand<T> view_panel(const T* from, int64_t stride, int64_t rows, int64_t count, int64_t width,
                                     Operand<T>* room) {
  if constexpr (kSame<T, Operand<T>> && kPair<T> == 1) {
    if (count == width) return {from, stride};
  }
  pack_rows(from, stride, rows, count, width, room);
  return {room, width * kPair<T>};
}

template <typename T>
void add_column_sums(const T* from, int64_t stride, int64_t rows, int64_t count, bool add, Acc<T>* sums) {
  for (int64_t c = 0; c < count; c += kLanes<T>) {
    Vec<T> sum = {};
    for (int64_t r = 0; r < rows; ++r) sum += load_some(from + r * stride + c, count - c);
    store(sums + c, add ? load(static_cast<const Acc<T>*>(sums + c)) + sum : sum);
  }
}

// The partial weight gradient of the panel at column c: (+)= operand^T @ token rows.
template <typename T>
void add_weight_gradient(const BackwardJob<T>& job, const T* tokens, int64_t stride, int64_t rows, int64_t c,
                         int64_t count, const Operand<T>* deep, bool add, Acc<T>* partial, Operand<T>* room) {
  const int64_t width = round_up(count, kLanes<T>);
  const RightOperand<T> b = view_panel(tokens + c, stride, rows, count, width, room);
  const int64_t size = job.problem.bottleneck_dim;
  multiply_into<T>(size, divide_up(rows, kPair<T>), width, {deep, kPair<T>, job.inner * kPair<T>}, b.data, b.step, add,
                   partial + c * size, width);
}

template <typename T>
void backward_block(const BackwardJob<T>& job, int64_t row, int64_t rows, bool add, const Partials<T>& partials,
                    const BackwardScratch<T>& scratch) {
  const Problem& problem = job.problem;
  const BackwardTensors& tensors = job.tensors;
  const int64_t g_stride = tensors.grad_output_stride;
  const int64_t h_stride = tensors.hidden_states_stride;
  const T* g = static_cast<const T*>(tensors.grad_output) + row * g_stride;
  const T* h = partials.down ? static_cast<const T*>(tensors.hidden_states) + row * h_stride : nullptr;
  T* grad_input = static_cast<T*>(tensors.grad_input);
  if (grad_input) grad_input += row * problem.input_size;

  if (job.wants_du) {
    multiply_narrow(g, g_stride, rows, problem.hidden_size, job.up, job.inner, scratch.sums, scratch.staging);
  }
  if (job.wants_du || partials.up) finish_up_gradient(job, row, rows, add, partials, scratch);

  const int64_t steps = divide_up(problem.bottleneck_dim, kPair<T>);
  for (int64_t c = 0; c < max_of(problem.input_size, problem.hidden_size); c += kPanelColumns<T>) {
    const int64_t out_count = min_of(kPanelColumns<T>, problem.hidden_size - c);
    const int64_t in_count = min_of(kPanelColumns<T>, problem.input_size - c);
    if (out_count > 0) {
      if (partials.up_bias) add_column_sums(g + c, g_stride, rows, out_count, add, partials.up_bias + c);
      if (partials.up) {
        add_weight_gradient(job, g, g_stride, rows, c, out_count, scratch.activated_deep, add, partials.up,
                            scratch.panel);
      }
    }
    if (in_count > 0) {
      if (grad_input) {
        const WideResult<T> to{
            grad_input + c, problem.input_size, tensors.add_grad_output ? g + c : nullptr, g_stride, nullptr, Acc<T>(1),
            in_count};
        multiply_residual<T>(rows, steps, {scratch.du, job.inner, kPair<T>}, job.down + c * steps * kPair<T>, to);
      }
      if (partials.down) {
        add_weight_gradient(job, h, h_stride, rows, c, in_count, scratch.du_deep, add, partials.down, scratch.panel);
      }
    }
  }
}

// The sum over workers, in worker order, of `count` elements that start `at` elements into a partial gradient.
template <typename T, typename Part>
AX_INLINE Vec<T> sum_partials(const BackwardJob<T>& job, Part part, int64_t at) {
  Vec<T> sum = load(static_cast<const Acc<T>*>(part(job.partials_of(0)) + at));
  for (int64_t worker = 1; worker < job.workers; ++worker) {
    sum += load(static_cast<const Acc<T>*>(part(job.partials_of(worker)) + at));
  }
  return sum;
}

// Rows [r, r + kLanes) of the up gradient's partial panel at column c, vector v, to columns of grad_up_weight.
template <typename T>
void write_up_square(const BackwardJob<T>& job, int64_t c, int64_t v, int64_t r, int64_t width) {
  constexpr int64_t kSide = kLanes<T>;
  const int64_t size = job.problem.bottleneck_dim;
  const Acc<T> scaling = static_cast<Acc<T>>(job.problem.scaling);
  const auto part = [](const Partials<T>& partials) { return partials.up; };
  const int64_t rows = min_of(kSide, size - r);
  const int64_t columns = min_of(kSide, job.problem.hidden_size - c - v);
  T* to = static_cast<T*>(job.tensors.grad_up_weight) + (c + v) * size + r;
  Vec<T> square[kSide] = {};
  for (int64_t i = 0; i < rows; ++i) square[i] = scaling * sum_partials(job, part, c * size + (r + i) * width + v);
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

// Writes the gradients of the weights' panel at column c.
template <typename T>
void write_weight_gradients(const BackwardJob<T>& job, int64_t c) {
  const Problem& problem = job.problem;
  T* down = static_cast<T*>(job.tensors.grad_down_weight);
  const int64_t in_width = min_of(kPanelColumns<T>, job.in_columns - c);
  const int64_t out_width = min_of(kPanelColumns<T>, job.out_columns - c);
  for (int64_t r = 0; down && r < problem.bottleneck_dim; ++r) {
    for (int64_t v = 0; v < in_width; v += kLanes<T>) {
      const auto part = [](const Partials<T>& partials) { return partials.down; };
      store_some(down + r * problem.input_size + c + v,
                 sum_partials(job, part, c * problem.bottleneck_dim + r * in_width + v), problem.input_size - c - v);
    }
  }
  for (int64_t r = 0; job.tensors.grad_up_weight && r < problem.bottleneck_dim; r += kLanes<T>) {
    for (int64_t v = 0; v < out_width; v += kLanes<T>) write_up_square(job, c, v, r, out_width);
  }
}

template <typename T>
void write_bias_gradients(const BackwardJob<T>& job) {
  const Problem& problem = job.problem;
  const Acc<T> scaling = static_cast<Acc<T>>(problem.scaling);
  T* down = static_cast<T*>(job.tensors.grad_down_bias);
  T* up = static_cast<T*>(job.tensors.grad_up_bias);
  for (int64_t c = 0; down && c < problem.bottleneck_dim; c += kLanes<T>) {
    const auto part = [](const Partials<T>& partials) { return partials.down_bias; };
    store_some(down + c, sum_partials(job, part, c), problem.bottleneck_dim - c);
  }
  for (int64_t c = 0; up && c < problem.hidden_size; c += kLanes<T>) {
    const auto part = [](const Partials<T>& partials) { return partials.up_bias; };
    store_some(up + c, scaling * sum_partials(job, part, c), problem.hidden_size - c);
  }
}

template <typename T>
void write_zero_gradients(const Problem& problem, const BackwardTensors& tensors) {
  const auto clear = [](void* to, int64_t count) {
    if (to != nullptr) __builtin_memset(to, 0, static_cast<size_t>(count) * sizeof(T));
  };
  clear(tensors.grad_down_weight, problem.bottleneck_dim * problem.input_size);
  clear(tensors.grad_up_weight, problem.bottleneck_dim * problem.hidden_size);
  clear(tensors.grad_down_bias, problem.bottleneck_dim);
  clear(tensors.grad_up_bias, problem.hidden_size);
}

// Workers whose partial gradients fit into kLargestPartials bytes.
template <typename T>
int64_t backward_workers(const Problem& problem, const ThreadPool& pool) {
  constexpr int64_t kLargestPartials = int64_t{512} << 20;
  const int64_t bytes = (problem.input_size + problem.hidden_size) * problem.bottleneck_dim * int64_t{sizeof(Acc<T>)};
  const int64_t workers = workers_for(divide_up(problem.num_tokens, kRowGranularity), pool);
  return max_of<int64_t>(1, min_of(workers, kLargestPartials / max_of<int64_t>(bytes, 1)));
}

template <typename T>
void backward(const Problem& problem, const BackwardTensors& tensors, const ThreadPool& pool) {
  if (problem.num_tokens == 0) return write_zero_gradients<T>(problem, tensors);
  const bool wants_du = tensors.grad_input || tensors.grad_down_weight || tensors.grad_down_bias;
  BackwardJob<T> job{problem,
                     tensors,
                     backward_workers<T>(problem, pool),
                     wants_du,
                     round_up(problem.bottleneck_dim, kLanes<T>),
                     round_up(problem.input_size, kLanes<T>),
                     round_up(problem.hidden_size, kLanes<T>)};
  place(Arena::call, job);
  if (job.up) {
    pack_narrow(false, static_cast<const T*>(tensors.up_weight), problem.bottleneck_dim, problem.hidden_size,
                problem.bottleneck_dim, job.inner, pool, job.up);
  }
  if (job.down) {
    pack_wide(false, static_cast<const T*>(tensors.down_weight), problem.input_size, problem.bottleneck_dim,
              problem.input_size, job.in_columns, pool, job.down);
  }
  parallel_for(pool, job.workers, [&](int64_t worker) {
    BackwardScratch<T> scratch{min_of(problem.num_tokens, kBlockRows), job.inner};
    place(Arena::worker, scratch);
    const Partials<T> partials = job.partials_of(worker);
    const RowRange range = share_of_rows(problem.num_tokens, worker, job.workers);
    for (int64_t row = range.begin; row < range.end; row += kBlockRows) {
      backward_block(job, row, min_of(kBlockRows, range.end - row), row > range.begin, partials, scratch);
    }
    trim_scratch(Arena::worker);
  });
  if (tensors.grad_up_weight || tensors.grad_down_weight) {
    parallel_for(pool, divide_up(max_of(job.in_columns, job.out_columns), kPanelColumns<T>),
                 [&](int64_t panel) { write_weight_gradients(job, panel * kPanelColumns<T>); });
  }
  write_bias_gradients(job);
  trim_scratch(Arena::call);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
