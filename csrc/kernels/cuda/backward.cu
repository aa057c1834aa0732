// Launches the backward of the bottleneck adapter on tensor cores.
#include <algorithm>

#include "dispatch.cuh"
#include "rowwise.h"
#include "weight_gradient.cuh"

namespace adapterx::cuda {
namespace {

constexpr int64_t kTargetBlocks = 4 * 132;  // four blocks fit on an SM; 132 SMs
constexpr int64_t kMinRangeTokens = 256;    // fewer are not worth another set of partial sums
constexpr int64_t kMaxRanges = 32;

// Which of the two weight products are wanted, and how the workspace is laid out.
struct BackwardPlan {
  bool up = false, down = false, grad_pre_activation = false;
  int64_t narrow_bytes = 0;  // a (num_tokens, bottleneck_dim) matrix
  int64_t ranges = 0, range_tokens = 0;
  PartialLayout layout;

  int64_t activated_offset() const { return 0; }
  int64_t gradient_offset() const { return up ? narrow_bytes : 0; }
  int64_t partial_offset() const { return gradient_offset() + (down ? narrow_bytes : 0); }
  int64_t bytes() const { return partial_offset() + (up || down ? ranges * layout.size() * 4 : 0); }
};

template <class Config>
BackwardPlan plan_backward(const Problem& problem, const BackwardTensors& tensors, const Grouping* grouping) {
  BackwardPlan plan;
  plan.up = tensors.grad_up_weight != nullptr || tensors.grad_up_bias != nullptr;
  plan.down = tensors.grad_down_weight != nullptr || tensors.grad_down_bias != nullptr;
  plan.grad_pre_activation = plan.down || tensors.grad_input != nullptr;
  plan.narrow_bytes = round_up(problem.num_tokens * problem.bottleneck_dim * 2, kWorkspaceAlignment);
  const int64_t padded = round_up(problem.hidden_size, Config::kColumns);
  plan.layout = {padded, padded, Config::kBottleneck, plan.up, plan.down};
  const int64_t blocks = padded / Config::kColumns * (plan.up && plan.down ? 2 : 1);
  const int64_t most = std::min(kMaxRanges, std::max(int64_t{1}, problem.num_tokens / kMinRangeTokens));
  const int64_t ranges = std::min(most, ceil_div(kTargetBlocks, blocks));
  plan.range_tokens = round_up(std::max(int64_t{1}, ceil_div(problem.num_tokens, ranges)), Config::kTokens);
  plan.ranges = std::max(int64_t{1}, ceil_div(problem.num_tokens, plan.range_tokens));
  if (grouping != nullptr) plan.ranges = grouping->max_ranges;
  return plan;
}

template <class Visitor>
auto visit_weight_gradient(const Problem& problem, const Visitor& visitor) {
  return visit_element(problem.dtype, [&](auto element) {
    return visit_bottleneck(problem.bottleneck_dim, [&](auto size) {
      return visitor(Tag<WeightGradientConfig<typename decltype(element)::Type, decltype(size)::value>>());
    });
  });
}

BackwardPlan make_plan(const Problem& problem, const BackwardTensors& tensors, const Grouping* grouping) {
  return visit_weight_gradient(
      problem, [&](auto tag) { return plan_backward<typename decltype(tag)::Type>(problem, tensors, grouping); });
}

// K1: grad_input, and the two narrow matrices that the weight gradients need.
template <class Config>
cudaError_t launch_input_gradient(const Problem& problem, const BackwardTensors& tensors, const TilePlan& tile_plan,
                                  void* grad_pre_activation, void* activated, const Grouping* grouping,
                                  cudaStream_t stream) {
  using Element = typename Config::Element;
  const int64_t tokens = problem.num_tokens, columns = problem.hidden_size, m = problem.bottleneck_dim;
  TileArguments<Element> arguments;
  arguments.tile = make_matrix<Element>(tensors.grad_output, tensors.grad_output_stride, tokens, columns);
  arguments.down_weight = make_matrix<Element>(tensors.down_weight, columns, m, columns);
  arguments.up_weight = make_matrix<Element>(tensors.up_weight, m, columns, m);
  arguments.output = static_cast<Element*>(tensors.grad_input);
  arguments.add_base = tensors.add_grad_output;
  BackwardMiddle<Element> middle;
  middle.access = make_quad_access<Element>(problem, {tensors.pre_activation, grad_pre_activation, activated});
  middle.activation = problem.activation;
  middle.scaling = static_cast<float>(problem.scaling);
  middle.pre_activation = static_cast<const Element*>(tensors.pre_activation);
  middle.grad_pre_activation = static_cast<Element*>(grad_pre_activation);
  middle.activated = static_cast<Element*>(activated);
  return launch_tile<Config>(arguments, middle, tile_plan, grouping, stream);
}

// K2: partial sums of both weight gradients.
template <class Config>
cudaError_t launch_weight_gradient(const Problem& problem, const BackwardTensors& tensors, const BackwardPlan& plan,
                                   void* workspace, const Grouping* grouping, cudaStream_t stream) {
  using Element = typename Config::Element;
  auto* bytes = static_cast<unsigned char*>(workspace);
  const int64_t tokens = problem.num_tokens, columns = problem.hidden_size, m = problem.bottleneck_dim;
  WeightGradientArguments<Element> arguments;
  arguments.grad_output = make_matrix<Element>(tensors.grad_output, tensors.grad_output_stride, tokens, columns);
  arguments.activated = make_matrix<Element>(bytes + plan.activated_offset(), m, tokens, m);
  arguments.hidden_states = make_matrix<Element>(tensors.hidden_states, tensors.hidden_states_stride, tokens, columns);
  arguments.grad_pre_activation = make_matrix<Element>(bytes + plan.gradient_offset(), m, tokens, m);
  const bool down_bias_only = tensors.grad_down_weight == nullptr;
  if (down_bias_only) {  // no hidden states: zeros are copied in their place, from an address that exists
    arguments.hidden_states = arguments.grad_output;
    arguments.hidden_states.columns = 0;
  }
  arguments.partial = reinterpret_cast<float*>(bytes + plan.partial_offset());
  arguments.layout = plan.layout;
  arguments.range_tokens = plan.range_tokens;
  arguments.down_only = !plan.up;
  if (grouping != nullptr) {
    arguments.segments = grouping->ranges;
    arguments.tokens = grouping->tokens;
  }
  const int64_t windows = down_bias_only && !plan.up ? 1 : plan.layout.padded_hidden / Config::kColumns;
  const LaunchShape shape = {
      dim3(static_cast<unsigned>(windows), static_cast<unsigned>(plan.ranges), plan.up && plan.down ? 2 : 1),
      dim3(Config::kThreads), Config::kSharedMemory};
  return launch(weight_gradient_kernel<Config>, shape, stream, arguments);
}

}  // namespace

int64_t bottleneck_adapter_backward_workspace(const Problem& problem, const BackwardTensors& tensors,
                                              const Grouping* grouping) {
  return make_plan(problem, tensors, grouping).bytes();
}

cudaError_t bottleneck_adapter_backward(const Problem& problem, const BackwardTensors& tensors,
                                        const TilePlan& tile_plan, void* workspace, cudaStream_t stream,
                                        const Grouping* grouping) {
  if (!has_tile_kernel(problem, tile_plan)) return cudaErrorNotSupported;
  const int64_t groups = grouping == nullptr ? 1 : grouping->num_groups;
  if (problem.num_tokens == 0) return clear_weight_gradients(problem, tensors, groups, stream);
  const BackwardPlan plan = make_plan(problem, tensors, grouping);
  auto* bytes = static_cast<unsigned char*>(workspace);
  void* activated = plan.up ? bytes + plan.activated_offset() : nullptr;
  void* gradient = plan.down ? bytes + plan.gradient_offset() : nullptr;
  cudaError_t error = cudaSuccess;
  if (plan.grad_pre_activation) {
    error = visit_tile(problem, tile_plan, [&](auto tag) {
      return launch_input_gradient<typename decltype(tag)::Type>(problem, tensors, tile_plan, gradient, activated,
                                                                 grouping, stream);
    });
  } else if (plan.up) {
    const RowShape shape = {problem.dtype, problem.num_tokens, problem.bottleneck_dim};
    error = bias_activation(shape, problem.activation, tensors.pre_activation, nullptr, activated, nullptr, stream);
  }
  if (error != cudaSuccess || !(plan.up || plan.down)) return error;
  error = visit_weight_gradient(problem, [&](auto tag) {
    return launch_weight_gradient<typename decltype(tag)::Type>(problem, tensors, plan, workspace, grouping, stream);
  });
  if (error != cudaSuccess) return error;
  return reduce_partial_sums(problem, tensors, {bytes + plan.partial_offset(), plan.layout, plan.ranges}, grouping,
                             stream);
}

}  // namespace adapterx::cuda
