// Launches the kernels of the segment path.
#include <algorithm>
#include <limits>

#include "rowwise.h"
#include "segment_path.h"
#include "segments.cuh"

namespace adapterx::cuda {
namespace {

constexpr int64_t kPartialPadding = 4;  // elements: rows of partial sums are stored in units of 16 bytes
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;

// A (num_tokens, bottleneck_dim) matrix.
void* take_narrow(const Problem& problem, Arena& arena) {
  return take_elements(arena, problem.dtype, problem.num_tokens * problem.bottleneck_dim);
}

// The kernels count the columns of a matrix in 32 bits.
bool columns_fit(const Problem& problem) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - kSegmentRowTile;
  return problem.input_size <= kMost && problem.hidden_size <= kMost && problem.bottleneck_dim <= kMost;
}

template <typename Element>
Matrix<Element> token_matrix(const Problem& problem, const void* data, int64_t stride, int64_t columns) {
  return make_matrix<Element>(data, stride, problem.num_tokens, columns);
}

template <typename Element>
TokenRows<Element> token_rows(void* data, int64_t columns) {
  const bool vector = is_aligned(data, 16) && columns % kVectorWidth<Element> == 0;
  return {static_cast<Element*>(data), static_cast<int>(columns), vector};
}

// The weights of the first adapter. Those of the others start as well aligned as these: see make_matrix.
template <typename Element>
Matrix<Element> down_weight(const Problem& problem, const void* data) {
  return make_matrix<Element>(data, problem.input_size, problem.bottleneck_dim, problem.input_size);
}
template <typename Element>
Matrix<Element> up_weight(const Problem& problem, const void* data) {
  return make_matrix<Element>(data, problem.bottleneck_dim, problem.hidden_size, problem.bottleneck_dim);
}

// result = finish(terms @ weight), or, not transposed, finish(terms @ weight^T).
template <bool kTransposed, typename Element, class Finish>
cudaError_t launch_product(const Matrix<Element>& terms, const Matrix<Element>& weight, const Finish& finish,
                           const SortedTokens& sorted, cudaStream_t stream) {
  using Config = SegmentConfig<Element>;
  const int64_t windows = ceil_div(kTransposed ? weight.columns : weight.rows, Config::kColumns);
  if (sorted.max_tiles * windows > kMaxGridX) return cudaErrorInvalidValue;
  const ProductArguments<Element> arguments = {terms, weight, static_cast<int>(windows), sorted.tiles, sorted.tokens};
  const LaunchShape shape = {dim3(static_cast<unsigned>(sorted.max_tiles * windows)), dim3(Config::kThreads),
                             Config::kSharedMemory};
  return launch(segment_product_kernel<Config, kTransposed, Finish>, shape, stream, arguments, finish);
}

template <typename Element>
cudaError_t launch_segment_forward(const PathCall<ForwardTensors>& call, void* activated, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const ForwardTensors& tensors = call.tensors;
  const SortedTokens& sorted = *call.sorted;
  const int64_t d = problem.hidden_size, n = problem.input_size, m = problem.bottleneck_dim;
  const auto adapters = sorted.num_adapters;
  const ActivationFinish<Element> middle = {make_matrix<Element>(tensors.down_bias, m, adapters, m),
                                            token_rows<Element>(tensors.pre_activation, m),
                                            token_rows<Element>(activated, m), problem.activation};
  const cudaError_t error =
      launch_product<false>(token_matrix<Element>(problem, tensors.hidden_states, tensors.hidden_states_stride, n),
                            down_weight<Element>(problem, tensors.down_weight), middle, sorted, stream);
  if (error != cudaSuccess) return error;
  const OutputFinish<Element> output = {make_matrix<Element>(tensors.up_bias, d, adapters, d),
                                        token_matrix<Element>(problem, tensors.residual, tensors.residual_stride, d),
                                        token_rows<Element>(tensors.output, d),
                                        static_cast<Compute<Element>>(problem.scaling)};
  return launch_product<false>(token_matrix<Element>(problem, activated, m, m),
                               up_weight<Element>(problem, tensors.up_weight), output, sorted, stream);
}

// Which parts the backward has, and the workspace.
struct SegmentBackward {
  bool up = false, down = false;  // a gradient of the weight or the bias is wanted
  void* activated = nullptr;      // (num_tokens, bottleneck_dim) where it is needed, as the next
  void* gradient = nullptr;       // of the pre-activation
  bool has_activated = false, has_gradient = false;
  PartialLayout layout;
  void* partial = nullptr;  // a layout for each range

  SegmentBackward(const PathCall<BackwardTensors>& call, Arena& arena) {
    const Problem& problem = call.problem;
    const BackwardTensors& tensors = call.tensors;
    up = tensors.grad_up_weight != nullptr || tensors.grad_up_bias != nullptr;
    down = tensors.grad_down_weight != nullptr || tensors.grad_down_bias != nullptr;
    has_gradient = down || tensors.grad_input != nullptr;
    has_activated = tensors.grad_up_weight != nullptr;
    if (has_activated) activated = take_narrow(problem, arena);
    if (has_gradient) gradient = take_narrow(problem, arena);
    layout = {round_up(problem.hidden_size, kPartialPadding), round_up(problem.input_size, kPartialPadding),
              round_up(problem.bottleneck_dim, kPartialPadding), tensors.grad_up_weight != nullptr,
              tensors.grad_down_weight != nullptr};
    if (up || down) {
      partial = arena.take<unsigned char>(call.sorted->max_ranges * layout.size() * compute_size(problem.dtype));
    }
  }
};

// The gradient of the pre-activation, and the activation beside it where that is wanted.
template <typename Element>
cudaError_t launch_derivative(const Problem& problem, const BackwardTensors& tensors, void* gradient, void* activated,
                              const SortedTokens& sorted, cudaStream_t stream) {
  const int64_t d = problem.hidden_size, m = problem.bottleneck_dim;
  const DerivativeFinish<Element> finish = {token_matrix<Element>(problem, tensors.pre_activation, m, m),
                                            token_rows<Element>(gradient, m), token_rows<Element>(activated, m),
                                            problem.activation, static_cast<Compute<Element>>(problem.scaling)};
  return launch_product<true>(token_matrix<Element>(problem, tensors.grad_output, tensors.grad_output_stride, d),
                              up_weight<Element>(problem, tensors.up_weight), finish, sorted, stream);
}

template <typename Element>
cudaError_t launch_grad_input(const Problem& problem, const BackwardTensors& tensors, const void* gradient,
                              const SortedTokens& sorted, cudaStream_t stream) {
  const int64_t n = problem.input_size, m = problem.bottleneck_dim;
  const void* base = tensors.add_grad_output ? tensors.grad_output : nullptr;
  const OutputFinish<Element> finish = {{},
                                        token_matrix<Element>(problem, base, tensors.grad_output_stride, n),
                                        token_rows<Element>(tensors.grad_input, n)};
  return launch_product<true>(token_matrix<Element>(problem, gradient, m, m),
                              down_weight<Element>(problem, tensors.down_weight), finish, sorted, stream);
}

// Fills in and returns how many windows `product` has; without the weight only the first column of windows, for the
// bias.
template <typename Element>
int64_t set_windows(GradientProduct<Element>& product, bool wanted, bool weight) {
  using Config = SegmentConfig<Element>;
  if (!weight) {
    product.right = product.left;  // zeros are copied in its place, from an address that exists
    product.right.columns = 0;
  }
  const int64_t column_windows = std::max(int64_t{1}, ceil_div(product.right.columns, Config::kColumns));
  const int64_t windows = wanted ? ceil_div(product.left.columns, Config::kRows) * column_windows : 0;
  product.column_windows = static_cast<int>(column_windows);
  product.windows = static_cast<int>(windows);
  return windows;
}

// Partial sums of the weight and bias gradients.
template <typename Element>
cudaError_t launch_weight_gradients(const Problem& problem, const BackwardTensors& tensors, const SegmentBackward& own,
                                    const SortedTokens& sorted, cudaStream_t stream) {
  using Config = SegmentConfig<Element>;
  const int64_t d = problem.hidden_size, n = problem.input_size, m = problem.bottleneck_dim;
  const PartialLayout& layout = own.layout;
  GradientArguments<Element> arguments;
  arguments.up = {token_matrix<Element>(problem, tensors.grad_output, tensors.grad_output_stride, d),
                  token_matrix<Element>(problem, own.activated, m, m),
                  0,
                  1,
                  layout.up_weight(),
                  layout.padded_bottleneck,
                  layout.up_bias()};
  arguments.down = {token_matrix<Element>(problem, own.gradient, m, m),
                    token_matrix<Element>(problem, tensors.hidden_states, tensors.hidden_states_stride, n),
                    0,
                    1,
                    layout.down_weight(),
                    layout.padded_input,
                    layout.down_bias()};
  const int64_t windows = set_windows(arguments.up, own.up, tensors.grad_up_weight != nullptr) +
                          set_windows(arguments.down, own.down, tensors.grad_down_weight != nullptr);
  if (windows > kMaxGridX) return cudaErrorInvalidValue;
  arguments.ranges = sorted.ranges;
  arguments.tokens = sorted.tokens;
  arguments.partial = static_cast<Compute<Element>*>(own.partial);
  arguments.range_size = layout.size();
  const LaunchShape shape = {dim3(static_cast<unsigned>(windows), static_cast<unsigned>(sorted.max_ranges)),
                             dim3(Config::kThreads), Config::kSharedMemory};
  return launch(segment_gradient_kernel<Config>, shape, stream, arguments);
}

// The two narrow matrices that the later launches read: gradient of the pre-activation, and activation.
template <typename Element>
cudaError_t launch_middle(const Problem& problem, const BackwardTensors& tensors, const SegmentBackward& own,
                          const SortedTokens& sorted, cudaStream_t stream) {
  if (own.has_gradient) {
    return launch_derivative<Element>(problem, tensors, own.gradient, own.activated, sorted, stream);
  }
  if (!own.has_activated) return cudaSuccess;
  const RowShape shape = {problem.dtype, problem.num_tokens, problem.bottleneck_dim};
  return bias_activation(shape, problem.activation, tensors.pre_activation, nullptr, own.activated, nullptr, stream);
}

template <typename Element>
cudaError_t launch_segment_backward(const PathCall<BackwardTensors>& call, const SegmentBackward& own,
                                    cudaStream_t stream) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  const SortedTokens& sorted = *call.sorted;
  cudaError_t error = launch_middle<Element>(problem, tensors, own, sorted, stream);
  if (error == cudaSuccess && tensors.grad_input != nullptr) {
    error = launch_grad_input<Element>(problem, tensors, own.gradient, sorted, stream);
  }
  if (error != cudaSuccess || !(own.up || own.down)) return error;
  error = launch_weight_gradients<Element>(problem, tensors, own, sorted, stream);
  if (error != cudaSuccess) return error;
  return reduce_partial_sums(problem, tensors, {own.partial, own.layout, sorted.max_ranges}, &sorted, stream);
}

}  // namespace

void lay_out_segments(const PathCall<ForwardTensors>& call, Arena& arena) { take_narrow(call.problem, arena); }

Status run_segments(const PathCall<ForwardTensors>& call, Arena& arena, cudaStream_t stream) {
  if (!columns_fit(call.problem)) return cudaErrorInvalidValue;
  if (call.problem.num_tokens == 0) return cudaSuccess;
  void* activated = take_narrow(call.problem, arena);
  return visit_dtype(call.problem.dtype, [&](auto tag) {
    return launch_segment_forward<typename decltype(tag)::Type>(call, activated, stream);
  });
}

void lay_out_segments(const PathCall<BackwardTensors>& call, Arena& arena) { SegmentBackward(call, arena); }

Status run_segments(const PathCall<BackwardTensors>& call, Arena& arena, cudaStream_t stream) {
  if (!columns_fit(call.problem)) return cudaErrorInvalidValue;
  if (call.problem.num_tokens == 0) {
    return clear_weight_gradients(call.problem, call.tensors, call.sorted->num_adapters, stream);
  }
  const SegmentBackward own(call, arena);
  return visit_dtype(call.problem.dtype, [&](auto tag) {
    return launch_segment_backward<typename decltype(tag)::Type>(call, own, stream);
  });
}

}  // namespace adapterx::cuda
