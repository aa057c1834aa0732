// Launches the backward of the bottleneck adapter on tensor cores.
#include <algorithm>

#include "resident_path.h"
#include "rowwise.h"
#include "tile_kernels.cuh"
#include "tile_path.h"
#include "weight_gradient.cuh"

namespace adapterx::cuda {
namespace {

constexpr int64_t kTargetBlocks = 4 * 132;  // four blocks fit on an SM; 132 SMs
constexpr int64_t kMinRangeTokens = 256;    // fewer are not worth another set of partial sums
constexpr int64_t kMaxRanges = 32;

// Which of the two weight products are wanted, and the workspace.
struct TileBackward {
  bool up = false, down = false, grad_pre_activation = false;
  void* activated = nullptr;  // (num_tokens, bottleneck_dim), as the next
  void* gradient = nullptr;   // of the pre-activation
  int64_t ranges = 0, range_tokens = 0;
  PartialLayout layout;
  float* partial = nullptr;  // ranges x layout.size()
};

// The ranges of neighbouring tokens of one adapter: enough blocks for the device, few enough partial sums.
template <class Config>
void set_ranges(const Problem& problem, TileBackward& own) {
  const int64_t blocks = own.layout.padded_hidden / Config::kColumns * (own.up && own.down ? 2 : 1);
  const int64_t most = std::min(kMaxRanges, std::max(int64_t{1}, problem.num_tokens / kMinRangeTokens));
  const int64_t ranges = std::min(most, ceil_div(kTargetBlocks, blocks));
  own.range_tokens = round_up(std::max(int64_t{1}, ceil_div(problem.num_tokens, ranges)), Config::kTokens);
  own.ranges = std::max(int64_t{1}, ceil_div(problem.num_tokens, own.range_tokens));
}

template <class Config>
TileBackward lay_out(const PathCall<BackwardTensors>& call, Arena& arena) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  TileBackward own;
  own.up = tensors.grad_up_weight != nullptr || tensors.grad_up_bias != nullptr;
  own.down = tensors.grad_down_weight != nullptr || tensors.grad_down_bias != nullptr;
  own.grad_pre_activation = own.down || tensors.grad_input != nullptr;
  const int64_t narrow = problem.num_tokens * problem.bottleneck_dim;
  if (own.up) own.activated = take_elements(arena, problem.dtype, narrow);
  if (own.down) own.gradient = take_elements(arena, problem.dtype, narrow);
  const int64_t padded = round_up(problem.hidden_size, Config::kColumns);
  own.layout = {padded, padded, Config::kBottleneck, own.up, own.down};
  set_ranges<Config>(problem, own);
  if (call.sorted != nullptr) own.ranges = call.sorted->max_ranges;
  if (own.up || own.down) own.partial = arena.take<float>(own.ranges * own.layout.size());
  return own;
}

template <class Visitor>
auto visit_weight_gradient(const Problem& problem, const Visitor& visitor) {
  return visit_element(problem.dtype, [&](auto element) {
    return visit_bottleneck(problem.bottleneck_dim, [&](auto size) {
      return visitor(Tag<WeightGradientConfig<typename decltype(element)::Type, decltype(size)::value>>());
    });
  });
}

TileBackward lay_out_for(const PathCall<BackwardTensors>& call, Arena& arena) {
  return visit_weight_gradient(call.problem,
                               [&](auto tag) { return lay_out<typename decltype(tag)::Type>(call, arena); });
}

// The tile kernel: grad_input, and the two narrow matrices that the weight gradients need.
template <class Config>
cudaError_t launch_input_gradient(const PathCall<BackwardTensors>& call, const TileBackward& own, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  using Element = typename Config::Element;
  const int64_t tokens = problem.num_tokens, columns = problem.hidden_size, m = problem.bottleneck_dim;
  TileArguments<Element> arguments;
  arguments.tile = make_matrix<Element>(tensors.grad_output, tensors.grad_output_stride, tokens, columns);
  arguments.down_weight = make_matrix<Element>(tensors.down_weight, columns, m, columns);
  arguments.up_weight = make_matrix<Element>(tensors.up_weight, m, columns, m);
  arguments.output = static_cast<Element*>(tensors.grad_input);
  arguments.add_base = tensors.add_grad_output;
  BackwardMiddle<Element> middle;
  middle.access = make_quad_access<Element>(problem, {tensors.pre_activation, own.gradient, own.activated});
  middle.activation = problem.activation;
  middle.scaling = static_cast<float>(problem.scaling);
  middle.pre_activation = static_cast<const Element*>(tensors.pre_activation);
  middle.grad_pre_activation = static_cast<Element*>(own.gradient);
  middle.activated = static_cast<Element*>(own.activated);
  return launch_tile<Config>(arguments, middle, call.tile, call.sorted, stream);
}

// Partial sums of both weight gradients.
template <class Config>
cudaError_t launch_weight_gradient(const PathCall<BackwardTensors>& call, const TileBackward& own,
                                   cudaStream_t stream) {
  using Element = typename Config::Element;
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  const int64_t tokens = problem.num_tokens, columns = problem.hidden_size, m = problem.bottleneck_dim;
  WeightGradientArguments<Element> arguments;
  arguments.grad_output = make_matrix<Element>(tensors.grad_output, tensors.grad_output_stride, tokens, columns);
  arguments.activated = make_matrix<Element>(own.activated, m, tokens, m);
  arguments.hidden_states = make_matrix<Element>(tensors.hidden_states, tensors.hidden_states_stride, tokens, columns);
  arguments.grad_pre_activation = make_matrix<Element>(own.gradient, m, tokens, m);
  const bool down_bias_only = tensors.grad_down_weight == nullptr;
  if (down_bias_only) {  // no hidden states: zeros are copied in their place, from an address that exists
    arguments.hidden_states = arguments.grad_output;
    arguments.hidden_states.columns = 0;
  }
  arguments.partial = own.partial;
  arguments.layout = own.layout;
  arguments.range_tokens = own.range_tokens;
  arguments.down_only = !own.up;
  if (call.sorted != nullptr) {
    arguments.segments = call.sorted->ranges;
    arguments.tokens = call.sorted->tokens;
  }
  const int64_t windows = down_bias_only && !own.up ? 1 : own.layout.padded_hidden / Config::kColumns;
  const LaunchShape shape = {
      dim3(static_cast<unsigned>(windows), static_cast<unsigned>(own.ranges), own.up && own.down ? 2 : 1),
      dim3(Config::kThreads), Config::kSharedMemory};
  return launch(weight_gradient_kernel<Config>, shape, stream, arguments);
}

}  // namespace

void lay_out_tile(const PathCall<BackwardTensors>& call, Arena& arena) { lay_out_for(call, arena); }

Status run_tile(const PathCall<BackwardTensors>& call, Arena& arena, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  const bool resident = call.tile.row_tile == kResidentRowTile;
  if (!resident && !has_tile_kernel(problem, call.tile)) return cudaErrorNotSupported;
  const int64_t adapters = call.sorted == nullptr ? 1 : call.sorted->num_adapters;
  if (problem.num_tokens == 0) return clear_weight_gradients(problem, tensors, adapters, stream);
  const TileBackward own = lay_out_for(call, arena);
  cudaError_t error = cudaSuccess;
  if (own.grad_pre_activation && resident) {
    error = run_resident(call, own.gradient, own.activated, stream);
  } else if (own.grad_pre_activation) {
    error = visit_tile(problem, call.tile, [&](auto tag) {
      return launch_input_gradient<typename decltype(tag)::Type>(call, own, stream);
    });
  } else if (own.up) {
    const RowShape shape = {problem.dtype, problem.num_tokens, problem.bottleneck_dim};
    error = bias_activation(shape, problem.activation, tensors.pre_activation, nullptr, own.activated, nullptr, stream);
  }
  if (error != cudaSuccess || !(own.up || own.down)) return error;
  error = visit_weight_gradient(
      problem, [&](auto tag) { return launch_weight_gradient<typename decltype(tag)::Type>(call, own, stream); });
  if (error != cudaSuccess) return error;
  return reduce_partial_sums(problem, tensors, {own.partial, own.layout, own.ranges}, call.sorted, stream);
}

}  // namespace adapterx::cuda
