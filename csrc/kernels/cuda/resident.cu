// Launches the resident kernel, forward and backward, and says what it serves.
#include <algorithm>
#include <initializer_list>

#include "resident_path.h"
#include "resident_tile.cuh"

namespace adapterx::cuda {
namespace {

constexpr int64_t kMaxSlice = 512;

int64_t resident_slice(int64_t columns, int64_t cluster_size) { return round_up(ceil_div(columns, cluster_size), 16); }

// Calls visitor(Tag<Config>) with the kernel's configuration; the problem must be one that it serves.
template <class Visitor>
auto visit_resident(const Problem& problem, int32_t cluster_size, bool grouped, const Visitor& visitor) {
  const bool narrow = resident_slice(problem.hidden_size, cluster_size) <= kMaxSlice / 2;
  const auto with_size = [&](auto element, auto size, auto slice) {
    using Element = typename decltype(element)::Type;
    constexpr int kSize = decltype(size)::value, kColumns = decltype(slice)::value;
    if (grouped) return visitor(Tag<ResidentConfig<Element, kSize, kColumns, true>>());
    return visitor(Tag<ResidentConfig<Element, kSize, kColumns, false>>());
  };
  return visit_element(problem.dtype, [&](auto element) {
    constexpr auto half = std::integral_constant<int, 256>();
    constexpr auto whole = std::integral_constant<int, 512>();
    if (problem.bottleneck_dim > 64) return with_size(element, std::integral_constant<int, 128>(), half);
    if (problem.bottleneck_dim > 32) {
      if (narrow) return with_size(element, std::integral_constant<int, 64>(), half);
      return with_size(element, std::integral_constant<int, 64>(), whole);
    }
    if (narrow) return with_size(element, std::integral_constant<int, 32>(), half);
    return with_size(element, std::integral_constant<int, 32>(), whole);
  });
}

template <typename Element>
PairMatrix<Element> pair_matrix(const Problem& problem, int64_t stride, std::initializer_list<const void*> pointers) {
  bool pairs = problem.bottleneck_dim % 2 == 0 && stride % 2 == 0;
  for (const void* pointer : pointers) pairs = pairs && is_aligned(pointer, 4);
  return {stride, static_cast<int>(problem.bottleneck_dim), pairs};
}

// `arguments` comes with its tensors set, weights aside.
template <class Config, class Tensors, class Middle>
cudaError_t launch_resident(ResidentArguments<typename Config::Element> arguments, const Middle& middle,
                            const PathCall<Tensors>& call, cudaStream_t stream) {
  using Element = typename Config::Element;
  const Problem& problem = call.problem;
  const int64_t cluster_size = call.tile.cluster_size;
  arguments.down_weight = static_cast<const Element*>(call.tensors.down_weight);
  arguments.up_weight = static_cast<const Element*>(call.tensors.up_weight);
  arguments.down_pairs = is_aligned(arguments.down_weight, 4);  // its rows are whole multiples of 16 bytes long
  arguments.up_pairs = is_aligned(arguments.up_weight, 4) && problem.bottleneck_dim % 2 == 0;
  arguments.bottleneck_dim = static_cast<int>(problem.bottleneck_dim);
  arguments.slice = static_cast<int>(resident_slice(problem.hidden_size, cluster_size));
  arguments.cluster_size = static_cast<int>(cluster_size);
  while (Config::kUnits >> (arguments.unit_bits + 1) >= cluster_size) ++arguments.unit_bits;
  arguments.tiles = static_cast<int>(ceil_div(problem.num_tokens, Config::kTokens));
  int64_t most = arguments.tiles;
  if (call.sorted != nullptr) {
    arguments.segments = call.sorted->tiles;
    arguments.tokens = call.sorted->tokens;
    arguments.used_tiles = call.sorted->first_tile + call.sorted->num_adapters + 1;
    most = call.sorted->max_tiles;
  }
  LaunchShape shape = {dim3(1), dim3(Config::kThreads), Config::kSharedMemory, call.tile.cluster_size, true};
  const int64_t clusters = clusters_at_once(resident_tile_kernel<Config, Middle>, shape, call.device.multiprocessors);
  if (clusters == 0) return cudaErrorNotSupported;
  shape.grid = dim3(static_cast<unsigned>(std::min(clusters, most) * cluster_size));
  return launch(resident_tile_kernel<Config, Middle>, shape, stream, arguments, middle);
}

}  // namespace

const char* resident_refusal(const Problem& problem, int32_t cluster_size) {
  if (cluster_size < 1 || cluster_size > kMaxClusterSize || (cluster_size & (cluster_size - 1)) != 0) {
    return "a resident tile must have a cluster_size of 1, 2, 4 or 8";
  }
  if (problem.hidden_size % 8 != 0) return "hidden_size must be a multiple of 8 for a resident tile";
  const int64_t slice = resident_slice(problem.hidden_size, cluster_size);
  if (slice > (problem.bottleneck_dim > 64 ? kMaxSlice / 2 : kMaxSlice)) {
    return "hidden_size must be at most 512 columns a block for a resident tile, 256 where bottleneck_dim is over 64";
  }
  if (slice * (cluster_size - 1) >= problem.hidden_size) return "each block of a resident tile must have columns";
  return nullptr;
}

int64_t resident_shared_memory(const Problem& problem, int32_t cluster_size) {
  return visit_resident(problem, cluster_size, false, [](auto tag) { return decltype(tag)::Type::kSharedMemory; });
}

bool has_bulk_rows(const Problem& problem, const ForwardTensors& tensors) {
  const bool in_place = tensors.residual == nullptr || (tensors.residual == tensors.hidden_states &&
                                                        tensors.residual_stride == tensors.hidden_states_stride);
  return in_place && tensors.output != nullptr && is_aligned(tensors.hidden_states, 16) &&
         is_aligned(tensors.output, 16) && tensors.hidden_states_stride % 8 == 0 && problem.hidden_size % 8 == 0;
}

bool has_bulk_rows(const Problem& problem, const BackwardTensors& tensors) {
  return tensors.grad_input != nullptr && is_aligned(tensors.grad_output, 16) && is_aligned(tensors.grad_input, 16) &&
         tensors.grad_output_stride % 8 == 0 && problem.hidden_size % 8 == 0;
}

cudaError_t run_resident(const PathCall<ForwardTensors>& call, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const ForwardTensors& tensors = call.tensors;
  return visit_resident(problem, call.tile.cluster_size, call.sorted != nullptr, [&](auto tag) {
    using Config = typename decltype(tag)::Type;
    using Element = typename Config::Element;
    ResidentArguments<Element> arguments;
    arguments.tile = make_matrix<Element>(tensors.hidden_states, tensors.hidden_states_stride, problem.num_tokens,
                                          problem.hidden_size);
    arguments.output_bias = static_cast<const Element*>(tensors.up_bias);
    arguments.output = static_cast<Element*>(tensors.output);
    arguments.add_base = tensors.residual != nullptr;
    arguments.scale = static_cast<float>(problem.scaling);
    ResidentForward<Element> middle;
    middle.matrix = pair_matrix<Element>(problem, problem.bottleneck_dim, {tensors.pre_activation});
    middle.activation = problem.activation;
    middle.bias = static_cast<const Element*>(tensors.down_bias);
    middle.pre_activation = static_cast<Element*>(tensors.pre_activation);
    return launch_resident<Config>(arguments, middle, call, stream);
  });
}

cudaError_t run_resident(const PathCall<BackwardTensors>& call, void* grad_pre_activation, void* activated,
                         int64_t pitch, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  return visit_resident(problem, call.tile.cluster_size, call.sorted != nullptr, [&](auto tag) {
    using Config = typename decltype(tag)::Type;
    using Element = typename Config::Element;
    ResidentArguments<Element> arguments;
    arguments.tile =
        make_matrix<Element>(tensors.grad_output, tensors.grad_output_stride, problem.num_tokens, problem.hidden_size);
    arguments.output = static_cast<Element*>(tensors.grad_input);
    arguments.add_base = tensors.add_grad_output;
    ResidentBackward<Element> middle;
    middle.matrix = pair_matrix<Element>(problem, problem.bottleneck_dim, {tensors.pre_activation});
    middle.narrow = pair_matrix<Element>(problem, pitch, {grad_pre_activation, activated});
    middle.activation = problem.activation;
    middle.scaling = static_cast<float>(problem.scaling);
    middle.pre_activation = static_cast<const Element*>(tensors.pre_activation);
    middle.grad_pre_activation = static_cast<Element*>(grad_pre_activation);
    middle.activated = static_cast<Element*>(activated);
    return launch_resident<Config>(arguments, middle, call, stream);
  });
}

}  // namespace adapterx::cuda
