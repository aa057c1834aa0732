// Launches the general grouped kernels.
#include <algorithm>
#include <limits>

#include "rowwise.h"
#include "segments.cuh"

namespace adapterx::cuda {
namespace {

constexpr int64_t kPartialPadding = 4;  // elements: rows of partial sums are stored in units of 16 bytes
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;

// Bytes of a (num_tokens, bottleneck_dim) matrix.
int64_t narrow_bytes(const Problem& problem) {
  return round_up(problem.num_tokens * problem.bottleneck_dim * element_size(problem.dtype), kWorkspaceAlignment);
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

// The weights of the first group. Those of the others start as well aligned as these: see make_matrix.
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
                           const Grouping& grouping, cudaStream_t stream) {
  using Config = SegmentConfig<Element>;
  const int64_t windows = ceil_div(kTransposed ? weight.columns : weight.rows, Config::kColumns);
  if (grouping.max_tiles * windows > kMaxGridX) return cudaErrorInvalidValue;
  const ProductArguments<Element> arguments = {terms, weight, static_cast<int>(windows), grouping.tiles,
                                               grouping.tokens};
  const LaunchShape shape = {dim3(static_cast<unsigned>(grouping.max_tiles * windows)), dim3(Config::kThreads),
                             Config::kSharedMemory};
  return launch(segment_product_kernel<Config, kTransposed, Finish>, shape, stream, arguments, finish);
}

template <typename Element>
cudaError_t launch_forward(const Problem& problem, const ForwardTensors& tensors, void* activated,
                           const Grouping& grouping, cudaStream_t stream) {
  const int64_t d = problem.hidden_size, n = problem.input_size, m = problem.bottleneck_dim;
  const auto groups = grouping.num_groups;
  const ActivationFinish<Element> middle = {make_matrix<Element>(tensors.down_bias, m, groups, m),
                                            token_rows<Element>(tensors.pre_activation, m),
                                            token_rows<Element>(activated, m), problem.activation};
  const cudaError_t error =
      launch_product<false>(token_matrix<Element>(problem, tensors.hidden_states, tensors.hidden_states_stride, n),
                            down_weight<Element>(problem, tensors.down_weight), middle, grouping, stream);
  if (error != cudaSuccess) return error;
  const OutputFinish<Element> output = {make_matrix<Element>(tensors.up_bias, d, groups, d),
                                        token_matrix<Element>(problem, tensors.residual, tensors.residual_stride, d),
                                        token_rows<Element>(tensors.output, d),
                                        static_cast<Compute<Element>>(problem.scaling)};
  return launch_product<false>(token_matrix<Element>(problem, activated, m, m),
                               up_weight<Element>(problem, tensors.up_weight), output, grouping, stream);
}

// Which parts the backward has, and how the workspace is laid out.
struct SegmentBackwardPlan {
  bool up = false, down = false;  // a gradient of the weight or the bias is wanted
  bool gradient = false;          // of the pre-activation
  bool activated = false;
  int64_t gradient_offset = 0, partial_offset = 0, bytes = 0;  // activated lies at the start
  PartialLayout layout;
};

SegmentBackwardPlan plan_backward(const Problem& problem, const BackwardTensors& tensors, const Grouping& grouping) {
  SegmentBackwardPlan plan;
  plan.up = tensors.grad_up_weight != nullptr || tensors.grad_up_bias != nullptr;
  plan.down = tensors.grad_down_weight != nullptr || tensors.grad_down_bias != nullptr;
  plan.gradient = plan.down || tensors.grad_input != nullptr;
  plan.activated = tensors.grad_up_weight != nullptr;
  plan.layout = {round_up(problem.hidden_size, kPartialPadding), round_up(problem.input_size, kPartialPadding),
                 round_up(problem.bottleneck_dim, kPartialPadding), tensors.grad_up_weight != nullptr,
                 tensors.grad_down_weight != nullptr};
  plan.gradient_offset = plan.activated ? narrow_bytes(problem) : 0;
  plan.partial_offset = plan.gradient_offset + (plan.gradient ? narrow_bytes(problem) : 0);
  plan.bytes = plan.partial_offset;
  if (plan.up || plan.down) plan.bytes += grouping.max_ranges * plan.layout.size() * compute_size(problem.dtype);
  return plan;
}

// The gradient of the pre-activation, and the activation beside it where that is wanted.
template <typename Element>
cudaError_t launch_derivative(const Problem& problem, const BackwardTensors& tensors, void* gradient, void* activated,
                              const Grouping& grouping, cudaStream_t stream) {
  const int64_t d = problem.hidden_size, m = problem.bottleneck_dim;
  const DerivativeFinish<Element> finish = {token_matrix<Element>(problem, tensors.pre_activation, m, m),
                                            token_rows<Element>(gradient, m), token_rows<Element>(activated, m),
                                            problem.activation, static_cast<Compute<Element>>(problem.scaling)};
  return launch_product<true>(token_matrix<Element>(problem, tensors.grad_output, tensors.grad_output_stride, d),
                              up_weight<Element>(problem, tensors.up_weight), finish, grouping, stream);
}

template <typename Element>
cudaError_t launch_grad_input(const Problem& problem, const BackwardTensors& tensors, const void* gradient,
                              const Grouping& grouping, cudaStream_t stream) {
  const int64_t n = problem.input_size, m = problem.bottleneck_dim;
  const void* base = tensors.add_grad_output ? tensors.grad_output : nullptr;
  const OutputFinish<Element> finish = {{},
                                        token_matrix<Element>(problem, base, tensors.grad_output_stride, n),
                                        token_rows<Element>(tensors.grad_input, n)};
  return launch_product<true>(token_matrix<Element>(problem, gradient, m, m),
                              down_weight<Element>(problem, tensors.down_weight), finish, grouping, stream);
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
cudaError_t launch_weight_gradients(const Problem& problem, const BackwardTensors& tensors,
                                    const SegmentBackwardPlan& plan, unsigned char* workspace, const Grouping& grouping,
                                    cudaStream_t stream) {
  using Config = SegmentConfig<Element>;
  const int64_t d = problem.hidden_size, n = problem.input_size, m = problem.bottleneck_dim;
  const PartialLayout& layout = plan.layout;
  GradientArguments<Element> arguments;
  arguments.up = {token_matrix<Element>(problem, tensors.grad_output, tensors.grad_output_stride, d),
                  token_matrix<Element>(problem, workspace, m, m),
                  0,
                  1,
                  layout.up_weight(),
                  layout.padded_bottleneck,
                  layout.up_bias()};
  arguments.down = {token_matrix<Element>(problem, workspace + plan.gradient_offset, m, m),
                    token_matrix<Element>(problem, tensors.hidden_states, tensors.hidden_states_stride, n),
                    0,
                    1,
                    layout.down_weight(),
                    layout.padded_input,
                    layout.down_bias()};
  const int64_t windows = set_windows(arguments.up, plan.up, tensors.grad_up_weight != nullptr) +
                          set_windows(arguments.down, plan.down, tensors.grad_down_weight != nullptr);
  if (windows > kMaxGridX) return cudaErrorInvalidValue;
  arguments.ranges = grouping.ranges;
  arguments.tokens = grouping.tokens;
  arguments.partial = reinterpret_cast<Compute<Element>*>(workspace + plan.partial_offset);
  arguments.range_size = layout.size();
  const LaunchShape shape = {dim3(static_cast<unsigned>(windows), static_cast<unsigned>(grouping.max_ranges)),
                             dim3(Config::kThreads), Config::kSharedMemory};
  return launch(segment_gradient_kernel<Config>, shape, stream, arguments);
}

// The two narrow matrices that the later launches read: gradient of the pre-activation, and activation.
template <typename Element>
cudaError_t launch_middle(const Problem& problem, const BackwardTensors& tensors, const SegmentBackwardPlan& plan,
                          unsigned char* workspace, const Grouping& grouping, cudaStream_t stream) {
  void* activated = plan.activated ? workspace : nullptr;
  if (plan.gradient) {
    return launch_derivative<Element>(problem, tensors, workspace + plan.gradient_offset, activated, grouping, stream);
  }
  if (!plan.activated) return cudaSuccess;
  const RowShape shape = {problem.dtype, problem.num_tokens, problem.bottleneck_dim};
  return bias_activation(shape, problem.activation, tensors.pre_activation, nullptr, activated, nullptr, stream);
}

}  // namespace

int64_t segment_forward_workspace(const Problem& problem) { return narrow_bytes(problem); }

cudaError_t segment_forward(const Problem& problem, const ForwardTensors& tensors, void* workspace, cudaStream_t stream,
                            const Grouping& grouping) {
  if (!columns_fit(problem)) return cudaErrorInvalidValue;
  if (problem.num_tokens == 0) return cudaSuccess;
  return visit_dtype(problem.dtype, [&](auto tag) {
    return launch_forward<typename decltype(tag)::Type>(problem, tensors, workspace, grouping, stream);
  });
}

int64_t segment_backward_workspace(const Problem& problem, const BackwardTensors& tensors, const Grouping& grouping) {
  return plan_backward(problem, tensors, grouping).bytes;
}

cudaError_t segment_backward(const Problem& problem, const BackwardTensors& tensors, void* workspace,
                             cudaStream_t stream, const Grouping& grouping) {
  if (!columns_fit(problem)) return cudaErrorInvalidValue;
  if (problem.num_tokens == 0) return clear_weight_gradients(problem, tensors, grouping.num_groups, stream);
  const SegmentBackwardPlan plan = plan_backward(problem, tensors, grouping);
  auto* bytes = static_cast<unsigned char*>(workspace);
  return visit_dtype(problem.dtype, [&](auto tag) {
    using Element = typename decltype(tag)::Type;
    cudaError_t error = launch_middle<Element>(problem, tensors, plan, bytes, grouping, stream);
    if (error == cudaSuccess && tensors.grad_input != nullptr) {
      error = launch_grad_input<Element>(problem, tensors, bytes + plan.gradient_offset, grouping, stream);
    }
    if (error != cudaSuccess || !(plan.up || plan.down)) return error;
    error = launch_weight_gradients<Element>(problem, tensors, plan, bytes, grouping, stream);
    if (error != cudaSuccess) return error;
    return reduce_partial_sums(problem, tensors, {bytes + plan.partial_offset, plan.layout, grouping.max_ranges},
                               &grouping, stream);
  });
}

}  // namespace adapterx::cuda
