// Launches the forward of the bottleneck adapter on tensor cores.
#include "dispatch.cuh"

namespace adapterx::cuda {
namespace {

template <class Config>
cudaError_t launch_forward(const Problem& problem, const ForwardTensors& tensors, const TilePlan& plan,
                           cudaStream_t stream, const Grouping* grouping) {
  using Element = typename Config::Element;
  const int64_t tokens = problem.num_tokens, columns = problem.hidden_size, m = problem.bottleneck_dim;
  TileArguments<Element> arguments;
  arguments.tile = make_matrix<Element>(tensors.hidden_states, tensors.hidden_states_stride, tokens, columns);
  const bool same =
      tensors.residual == tensors.hidden_states && tensors.residual_stride == tensors.hidden_states_stride;
  if (tensors.residual != nullptr && !same) {
    arguments.replacement = make_matrix<Element>(tensors.residual, tensors.residual_stride, tokens, columns);
  }
  arguments.down_weight = make_matrix<Element>(tensors.down_weight, columns, m, columns);
  arguments.up_weight = make_matrix<Element>(tensors.up_weight, m, columns, m);
  arguments.output_bias = static_cast<const Element*>(tensors.up_bias);
  arguments.output = static_cast<Element*>(tensors.output);
  arguments.add_base = tensors.residual != nullptr;
  arguments.scale = static_cast<float>(problem.scaling);
  ForwardMiddle<Element> middle;
  middle.access = make_quad_access<Element>(problem, {tensors.pre_activation});
  middle.activation = problem.activation;
  middle.bias = static_cast<const Element*>(tensors.down_bias);
  middle.pre_activation = static_cast<Element*>(tensors.pre_activation);
  return launch_tile<Config>(arguments, middle, plan, grouping, stream);
}

}  // namespace

cudaError_t bottleneck_adapter_forward(const Problem& problem, const ForwardTensors& tensors, const TilePlan& plan,
                                       cudaStream_t stream, const Grouping* grouping) {
  if (!has_tile_kernel(problem, plan)) return cudaErrorNotSupported;
  if (problem.num_tokens == 0) return cudaSuccess;
  return visit_tile(problem, plan, [&](auto tag) {
    return launch_forward<typename decltype(tag)::Type>(problem, tensors, plan, stream, grouping);
  });
}

}  // namespace adapterx::cuda
