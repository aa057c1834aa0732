// Launches the backward of the bottleneck adapter on tensor cores.
#include "resident_path.h"
#include "rowwise.h"
#include "tile_kernels.cuh"
#include "tile_path.h"
#include "weight_gradient.h"

namespace adapterx::cuda {
namespace {

// The tile kernel: grad_input, and the two narrow matrices that the weight gradients need.
template <class Config>
cudaError_t launch_input_gradient(const PathCall<BackwardTensors>& call, const WeightGradientWork& work,
                                  cudaStream_t stream) {
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
  middle.access = make_quad_access<Element>(problem, m, {tensors.pre_activation});
  middle.narrow = make_quad_access<Element>(problem, work.pitch, {work.gradient, work.activated});
  middle.activation = problem.activation;
  middle.scaling = static_cast<float>(problem.scaling);
  middle.pre_activation = static_cast<const Element*>(tensors.pre_activation);
  middle.grad_pre_activation = static_cast<Element*>(work.gradient);
  middle.activated = static_cast<Element*>(work.activated);
  return launch_tile<Config>(arguments, middle, call.tile, call.sorted, stream);
}

}  // namespace

void lay_out_tile(const PathCall<BackwardTensors>& call, Arena& arena) { lay_out_weight_gradients(call, arena); }

Status run_tile(const PathCall<BackwardTensors>& call, Arena& arena, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  const bool resident = call.tile.row_tile == kResidentRowTile;
  if (!resident && !has_tile_kernel(problem, call.tile)) return cudaErrorNotSupported;
  const int64_t adapters = call.sorted == nullptr ? 1 : call.sorted->num_adapters;
  if (problem.num_tokens == 0) return clear_weight_gradients(problem, tensors, adapters, stream);
  const WeightGradientWork work = lay_out_weight_gradients(call, arena);
  cudaError_t error = cudaSuccess;
  if (work.grad_pre_activation && resident) {
    error = run_resident(call, work.gradient, work.activated, work.pitch, stream);
  } else if (work.grad_pre_activation) {
    error = visit_tile(problem, call.tile, [&](auto tag) {
      return launch_input_gradient<typename decltype(tag)::Type>(call, work, stream);
    });
  } else if (work.up) {
    const RowShape shape = {problem.dtype, problem.num_tokens, problem.bottleneck_dim};
    error =
        bias_activation(shape, problem.activation, tensors.pre_activation, nullptr, work.activated, nullptr, stream);
  }
  if (error != cudaSuccess || !(work.up || work.down)) return error;
  return launch_weight_gradients(call, work, stream);
}

}  // namespace adapterx::cuda
