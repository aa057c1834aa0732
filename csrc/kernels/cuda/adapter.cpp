#include "adapter.h"

#include "cublas_path.h"
#include "segment_path.h"
#include "tile_path.h"

namespace adapterx::cuda {
namespace {

constexpr Direction direction_of(const ForwardTensors&) { return Direction::forward; }
constexpr Direction direction_of(const BackwardTensors&) { return Direction::backward; }

// A size that no wanted gradient depends on is 0; the paths want one that fits.
Problem with_all_sizes(Problem problem) {
  if (problem.input_size == 0) problem.input_size = problem.hidden_size;
  return problem;
}

SortedTokens lay_out_sorted(const Plan& plan, const Problem& problem, const AdapterIndices& indices, Arena& arena) {
  const int32_t row_tile = plan.path == Path::tile ? plan.tile.row_tile : kSegmentRowTile;
  return lay_out_tokens(problem.num_tokens, indices.num_adapters, row_tile, arena);
}

// The limits of the sort, in words; empty where they are kept.
std::string sort_refusal(const Problem& problem, const AdapterIndices& indices) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  if (indices.num_adapters > kMaxAdapters) {
    return "down_weight must be for at most " + number(kMaxAdapters) + " adapters on CUDA, got " +
           number(indices.num_adapters);
  }
  if (problem.num_tokens > kMaxTokens) {
    return "hidden_states must have fewer than 2^31 tokens on CUDA, got " + number(problem.num_tokens);
  }
  Arena arena;
  if (lay_out_tokens(problem.num_tokens, indices.num_adapters, kSegmentRowTile, arena).max_ranges > kMaxSortedRanges) {
    return "hidden_states must have at most " + number((kMaxSortedRanges - indices.num_adapters) * kRangeTokens) +
           " tokens for " + number(indices.num_adapters) + " adapters on CUDA, got " + number(problem.num_tokens);
  }
  return {};
}

template <class Tensors>
void lay_out(Path path, const PathCall<Tensors>& call, Arena& arena) {
  switch (path) {
    case Path::tile: return lay_out_tile(call, arena);
    case Path::cublas: return lay_out_cublas(call, arena);
    case Path::segments: return lay_out_segments(call, arena);
  }
}

template <class Tensors>
Plan plan_call(Problem problem, const Tensors& tensors, const AdapterIndices& indices, const Device& device,
               std::string_view pin) {
  problem = with_all_sizes(problem);
  if (problem.bottleneck_dim == 0) pin = {};
  Plan plan = plan_path(problem, device, direction_of(tensors), indices.num_adapters, pin);
  if (!plan.refusal.empty()) return plan;
  Arena arena;
  PathCall<Tensors> call = {problem, tensors};
  SortedTokens sorted;
  if (indices.num_adapters > 0) {
    plan.refusal = sort_refusal(problem, indices);
    if (!plan.refusal.empty()) return plan;
    sorted = lay_out_sorted(plan, problem, indices, arena);
    call.sorted = &sorted;
  }
  lay_out(plan.path, call, arena);
  plan.workspace = arena.used();
  return plan;
}

template <class Tensors>
Status run_call(const Plan& plan, Problem problem, const Tensors& tensors, const AdapterIndices& indices,
                const CublasLt& cublas, void* workspace, cudaStream_t stream) {
  problem = with_all_sizes(problem);
  Arena arena(workspace);
  PathCall<Tensors> call = {problem, tensors, nullptr, plan.tile, plan.own_products ? CublasLt() : cublas};
  SortedTokens sorted;
  if (indices.num_adapters > 0) {
    sorted = lay_out_sorted(plan, problem, indices, arena);
    const cudaError_t error = sort_tokens(indices.values, sorted, stream);
    if (error != cudaSuccess) return error;
    call.sorted = &sorted;
  }
  switch (plan.path) {
    case Path::tile: return run_tile(call, arena, stream);
    case Path::cublas: return run_cublas(call, arena, stream);
    case Path::segments: return run_segments(call, arena, stream);
  }
  return cudaErrorNotSupported;
}

}  // namespace

Plan plan(const Problem& problem, const ForwardTensors& tensors, const AdapterIndices& indices, const Device& device,
          std::string_view pin) {
  return plan_call(problem, tensors, indices, device, pin);
}

Plan plan(const Problem& problem, const BackwardTensors& tensors, const AdapterIndices& indices, const Device& device,
          std::string_view pin) {
  return plan_call(problem, tensors, indices, device, pin);
}

Status run(const Plan& plan, const Problem& problem, const ForwardTensors& tensors, const AdapterIndices& indices,
           const CublasLt& cublas, void* workspace, cudaStream_t stream) {
  return run_call(plan, problem, tensors, indices, cublas, workspace, stream);
}

Status run(const Plan& plan, const Problem& problem, const BackwardTensors& tensors, const AdapterIndices& indices,
           const CublasLt& cublas, void* workspace, cudaStream_t stream) {
  return run_call(plan, problem, tensors, indices, cublas, workspace, stream);
}

}  // namespace adapterx::cuda
