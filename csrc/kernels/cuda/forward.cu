// Launches the forward of the bottleneck adapter on tensor cores.
#include "resident_path.h"
#include "tile_kernels.cuh"
#include "tile_path.h"

namespace adapterx::cuda {
namespace {

template <class Config>
cudaError_t launch_tile_forward(const PathCall<ForwardTensors>& call, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const ForwardTensors& tensors = call.tensors;
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
  middle.access = make_quad_access<Element>(problem, m, {tensors.pre_activation});
  middle.activation = problem.activation;
  middle.bias = static_cast<const Element*>(tensors.down_bias);
  middle.pre_activation = static_cast<Element*>(tensors.pre_activation);
  return launch_tile<Config>(arguments, middle, call.tile, call.sorted, stream);
}

}  // namespace

void lay_out_tile(const PathCall<ForwardTensors>&, Arena&) {}

Status run_tile(const PathCall<ForwardTensors>& call, Arena&, cudaStream_t stream) {
  const bool resident = call.tile.row_tile == kResidentRowTile;
  if (!resident && !has_tile_kernel(call.problem, call.tile)) return cudaErrorNotSupported;
  if (call.problem.num_tokens == 0) return cudaSuccess;
  if (resident) return run_resident(call, stream);
  return visit_tile(call.problem, call.tile,
                    [&](auto tag) { return launch_tile_forward<typename decltype(tag)::Type>(call, stream); });
}

}  // namespace adapterx::cuda
