// Launches the weight gradients of the tile path.
#include <algorithm>

#include "gradient_stream.cuh"
#include "tile_kernels.cuh"
#include "weight_gradient.h"

namespace adapterx::cuda {
namespace {

constexpr int64_t kTargetBlocks = 4 * 132;  // of weight_gradient.cuh: four fit on an SM; 132 SMs
constexpr int64_t kMinRangeTokens = 256;    // fewer are not worth another set of partial sums
constexpr int64_t kMaxRanges = 32;
constexpr int64_t kMaxStreamedTokens = int64_t{1} << 30;
constexpr int64_t kMinClusterRangeTokens = 128;  // fewer are not worth the exchange
constexpr int64_t kMaxSets = 16;                 // of partial sums
constexpr int64_t kTokensForSets = 2048;         // what adding sets up takes (an H100: 12 us), in tokens of a block

template <class Visitor>
auto visit_weight_gradient(const Problem& problem, bool stream, const Visitor& visitor) {
  return visit_element(problem.dtype, [&](auto element) {
    return visit_bottleneck(problem.bottleneck_dim, [&](auto size) {
      using Element = typename decltype(element)::Type;
      constexpr int kSize = decltype(size)::value;
      if (stream) return visitor(Tag<StreamConfig<Element, kSize>>());
      return visitor(Tag<WeightGradientConfig<Element, kSize>>());
    });
  });
}

// Whether rows begin and end at multiples of 16 bytes, the device has bulk copies, and 32 bits count a range's tokens.
bool can_stream(const PathCall<BackwardTensors>& call, const WeightGradientWork& work) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  const int64_t width = 16 / element_size(problem.dtype);
  const auto aligned = [&](const void* data, int64_t stride) { return is_aligned(data, 16) && stride % width == 0; };
  const bool registers = call.device.compute_capability < 100 || problem.bottleneck_dim <= kMaxStreamedBottleneck100;
  return call.device.compute_capability >= 90 && registers && problem.num_tokens < kMaxStreamedTokens &&
         problem.hidden_size % width == 0 && work.pitch % width == 0 &&
         aligned(tensors.grad_output, tensors.grad_output_stride) &&
         (tensors.grad_down_weight == nullptr || aligned(tensors.hidden_states, tensors.hidden_states_stride));
}

// The ranges of neighbouring tokens of one adapter: enough blocks for the device, few enough partial sums.
template <class Config>
void set_ranges(const Problem& problem, WeightGradientWork& work) {
  const int64_t blocks = work.layout.padded_hidden / Config::kColumns * (work.up && work.down ? 2 : 1);
  const int64_t most = std::min(kMaxRanges, std::max(int64_t{1}, problem.num_tokens / kMinRangeTokens));
  const int64_t ranges = std::min(most, std::max(int64_t{1}, kTargetBlocks / blocks));  // whole waves
  work.range_tokens = round_up(std::max(int64_t{1}, ceil_div(problem.num_tokens, ranges)), Config::kTokens);
  work.ranges = std::max(int64_t{1}, ceil_div(problem.num_tokens, work.range_tokens));
}

// Cuts the tokens of one adapter: the most ranges with which all windows run at once, as clusters whose blocks sum
// theirs, and, where that saves each block enough, several clusters for each window, whose sums are added by another
// kernel. (An H100 has room for 132 blocks, but for 66 clusters of two, about 30 of four and 15 of eight.)
template <class Config>
void set_stream_ranges(const PathCall<BackwardTensors>& call, int64_t windows, WeightGradientWork& work) {
  const int64_t tokens = call.problem.num_tokens;
  for (const int ranges : {8, 4, 2, 1}) {
    LaunchShape shape = {dim3(static_cast<unsigned>(ranges)), dim3(Config::kThreads), Config::kSharedMemory, ranges};
    const int64_t room = clusters_at_once(gradient_stream_kernel<Config>, shape, call.device.multiprocessors) / windows;
    for (int64_t sets = 1; sets <= std::min(room, kMaxSets); ++sets) {
      if (ranges * sets > 1 && tokens < ranges * sets * kMinClusterRangeTokens) continue;
      const int64_t saved = ceil_div(tokens, work.ranges * work.sets) - ceil_div(tokens, ranges * sets);
      if (saved <= (sets > work.sets ? kTokensForSets : 0)) continue;
      work.ranges = ranges;
      work.sets = sets;
    }
  }
  work.range_tokens = round_up(ceil_div(tokens, work.ranges * work.sets), Config::kTokens);
}

template <typename Element, int kBottleneck>
void set_ranges_of(Tag<WeightGradientConfig<Element, kBottleneck>>, const PathCall<BackwardTensors>& call,
                   WeightGradientWork& work) {
  set_ranges<WeightGradientConfig<Element, kBottleneck>>(call.problem, work);
  work.sets = work.ranges;
}

template <typename Element, int kBottleneck>
void set_ranges_of(Tag<StreamConfig<Element, kBottleneck>>, const PathCall<BackwardTensors>& call,
                   WeightGradientWork& work) {
  using Config = StreamConfig<Element, kBottleneck>;
  const int64_t windows = work.layout.padded_hidden / Config::kColumns;
  const bool down_windows = call.tensors.grad_down_weight != nullptr;  // else one, for the bias
  set_stream_ranges<Config>(call, (work.up ? windows : 0) + (!work.down ? 0 : down_windows ? windows : 1), work);
}

template <class Config>
void lay_out(const PathCall<BackwardTensors>& call, WeightGradientWork& work, Arena& arena) {
  const int64_t padded = round_up(call.problem.hidden_size, Config::kColumns);
  work.layout = {padded, padded, Config::kBottleneck, call.tensors.grad_up_weight != nullptr,
                 call.tensors.grad_down_weight != nullptr};
  const bool grouped = call.sorted != nullptr;
  if (!grouped) set_ranges_of(Tag<Config>(), call, work);
  const int64_t sets = grouped ? max_partial_sets(call.problem.num_tokens) : work.sets > 1 ? work.sets : 0;
  if (sets > 0) work.partial = arena.take<float>(sets * work.layout.size());
}

template <typename Element>
GradientMatrix<Element> gradient_matrix(void* weight, void* bias, int64_t rows, int64_t columns, int64_t bias_size,
                                        double scale) {
  GradientMatrix<Element> gradient;
  gradient.weight = static_cast<Element*>(weight);
  gradient.bias = static_cast<Element*>(bias);
  gradient.rows = rows;
  gradient.row = {static_cast<int>(columns), static_cast<int>(columns), is_aligned(weight, 8) && columns % 4 == 0};
  gradient.bias_size = bias_size;
  gradient.scale = static_cast<float>(scale);
  return gradient;
}

template <class Config>
WeightGradientArguments<typename Config::Element> make_arguments(const PathCall<BackwardTensors>& call,
                                                                 const WeightGradientWork& work) {
  using Element = typename Config::Element;
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  const int64_t tokens = problem.num_tokens, d = problem.hidden_size, m = problem.bottleneck_dim;
  WeightGradientArguments<Element> arguments;
  arguments.grad_output = make_matrix<Element>(tensors.grad_output, tensors.grad_output_stride, tokens, d);
  arguments.activated = make_matrix<Element>(work.activated, work.pitch, tokens, m);
  arguments.hidden_states = make_matrix<Element>(tensors.hidden_states, tensors.hidden_states_stride, tokens, d);
  arguments.grad_pre_activation = make_matrix<Element>(work.gradient, work.pitch, tokens, m);
  if (tensors.grad_down_weight == nullptr) {  // no hidden states are read; the address exists
    arguments.hidden_states = arguments.grad_output;
    arguments.hidden_states.columns = 0;
  }
  const PartialLayout& layout = work.layout;
  arguments.up = gradient_matrix<Element>(tensors.grad_up_weight, tensors.grad_up_bias, d, m, d, problem.scaling);
  arguments.up.partial_weight = layout.up_weight();
  arguments.up.partial_stride = layout.padded_bottleneck;
  arguments.up.partial_bias = layout.up_bias();
  arguments.down = gradient_matrix<Element>(tensors.grad_down_weight, tensors.grad_down_bias, m, d, m, 1.0);
  arguments.down.partial_weight = layout.down_weight();
  arguments.down.partial_stride = layout.padded_input;
  arguments.down.partial_bias = layout.down_bias();
  arguments.partial = work.partial;
  arguments.partial_size = layout.size();
  arguments.ranges = static_cast<int>(work.ranges);
  arguments.range_tokens = work.range_tokens;
  arguments.sets = static_cast<int>(work.sets);
  const int windows = static_cast<int>(layout.padded_hidden / Config::kColumns);
  arguments.up_windows = work.up ? windows : 0;
  arguments.down_windows = !work.down ? 0 : tensors.grad_down_weight == nullptr ? 1 : windows;
  if (call.sorted != nullptr) {
    arguments.segments = call.sorted->ranges;
    arguments.tokens = call.sorted->tokens;
    arguments.first_range = call.sorted->first_range;
    arguments.num_adapters = call.sorted->num_adapters;
  }
  return arguments;
}

template <typename Element, int kBottleneck>
cudaError_t launch_config(Tag<WeightGradientConfig<Element, kBottleneck>>, const PathCall<BackwardTensors>& call,
                          const WeightGradientWork& work, cudaStream_t stream) {
  using Config = WeightGradientConfig<Element, kBottleneck>;
  const auto arguments = make_arguments<Config>(call, work);
  const int64_t ranges = call.sorted == nullptr ? work.ranges : call.sorted->max_ranges;
  const LaunchShape shape = {dim3(static_cast<unsigned>(std::max(arguments.up_windows, arguments.down_windows)),
                                  static_cast<unsigned>(ranges), work.up && work.down ? 2 : 1),
                             dim3(Config::kThreads), Config::kSharedMemory};
  return launch(weight_gradient_kernel<Config>, shape, stream, arguments);
}

template <typename Element, int kBottleneck>
cudaError_t launch_config(Tag<StreamConfig<Element, kBottleneck>>, const PathCall<BackwardTensors>& call,
                          const WeightGradientWork& work, cudaStream_t stream) {
  using Config = StreamConfig<Element, kBottleneck>;
  static_assert(Config::kNarrowStride == narrow_pitch(kBottleneck));
  auto arguments = make_arguments<Config>(call, work);
  const int64_t windows = arguments.up_windows + arguments.down_windows;
  const bool grouped = call.sorted != nullptr;
  const int64_t items = windows * (grouped ? call.sorted->max_ranges : work.ranges * work.sets);
  if (items >= int64_t{1} << 30) return cudaErrorInvalidValue;  // they are counted in 32 bits
  const int64_t one_wave = std::max<int64_t>(call.device.multiprocessors, 1);
  LaunchShape shape = {dim3(static_cast<unsigned>(work.ranges > 1 ? items : std::min(items, one_wave))),
                       dim3(Config::kThreads), Config::kSharedMemory};
  shape.cluster_size = static_cast<int>(arguments.ranges);
  shape.programmatic = true;
  return launch(gradient_stream_kernel<Config>, shape, stream, arguments);
}

}  // namespace

WeightGradientWork lay_out_weight_gradients(const PathCall<BackwardTensors>& call, Arena& arena) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  WeightGradientWork work;
  work.up = tensors.grad_up_weight != nullptr || tensors.grad_up_bias != nullptr;
  work.down = tensors.grad_down_weight != nullptr || tensors.grad_down_bias != nullptr;
  work.grad_pre_activation = work.down || tensors.grad_input != nullptr;
  // Without the gradient of the pre-activation a row-wise kernel activates, which leaves no space between rows.
  work.pitch = work.grad_pre_activation ? narrow_pitch(problem.bottleneck_dim) : problem.bottleneck_dim;
  work.stream = can_stream(call, work);
  const int64_t narrow = problem.num_tokens * work.pitch;
  if (work.up) work.activated = take_elements(arena, problem.dtype, narrow);
  if (work.down) work.gradient = take_elements(arena, problem.dtype, narrow);
  if (!work.up && !work.down) return work;
  visit_weight_gradient(problem, work.stream,
                        [&](auto tag) { lay_out<typename decltype(tag)::Type>(call, work, arena); });
  return work;
}

cudaError_t launch_weight_gradients(const PathCall<BackwardTensors>& call, const WeightGradientWork& work,
                                    cudaStream_t stream) {
  const cudaError_t error = visit_weight_gradient(call.problem, work.stream,
                                                  [&](auto tag) { return launch_config(tag, call, work, stream); });
  if (error != cudaSuccess || (call.sorted == nullptr && work.partial == nullptr)) return error;
  PartialSums partial = {work.partial, work.layout, work.sets};
  partial.long_only = call.sorted != nullptr;
  partial.programmatic = work.stream;
  return reduce_partial_sums(call.problem, call.tensors, partial, call.sorted, stream);
}

}  // namespace adapterx::cuda
