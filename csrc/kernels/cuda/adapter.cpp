#include "adapter.h"

#include "cublas_path.h"
#include "resident_path.h"
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

// The tokens as the plan's kernels want them sorted: where an earlier sort left them, or in pieces of the arena, which
// `sort_tokens` must still fill.
SortedTokens sorted_tokens(const Plan& plan, const Problem& problem, const AdapterIndices& indices, Arena& arena) {
  const int32_t row_tile = plan.path == Path::tile ? plan.tile.row_tile : kSegmentRowTile;
  if (indices.sorted == nullptr) return lay_out_tokens(problem.num_tokens, indices.num_adapters, row_tile, arena);
  Arena sorted(const_cast<void*>(indices.sorted));
  return lay_out_sorted(problem.num_tokens, indices.num_adapters, row_tile, sorted);
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
  Plan plan =
      plan_path(problem, device, direction_of(tensors), indices.num_adapters, has_bulk_rows(problem, tensors), pin);
  plan.device = device;
  if (!plan.refusal.empty()) return plan;
  Arena arena;
  PathCall<Tensors> call = {problem, tensors, nullptr, plan.tile, {}, device};
  SortedTokens sorted;
  if (indices.num_adapters > 0) {
    plan.refusal = sort_refusal(problem.num_tokens, indices.num_adapters);
    if (!plan.refusal.empty()) return plan;
    sorted = sorted_tokens(plan, problem, indices, arena);
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
  PathCall<Tensors> call = {problem, tensors, nullptr, plan.tile, plan.own_products ? CublasLt() : cublas, plan.device};
  SortedTokens sorted;
  if (indices.num_adapters > 0) {
    sorted = sorted_tokens(plan, problem, indices, arena);
    if (indices.sorted == nullptr) {
      const cudaError_t error = sort_tokens(indices.values, sorted, stream, indices.tokens_each);
      if (error != cudaSuccess) return error;
    }
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

std::string sort_refusal(int64_t num_tokens, int64_t num_adapters) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  if (num_adapters > kMaxAdapters) {
    return "down_weight must be for at most " + number(kMaxAdapters) + " adapters on CUDA, got " + number(num_adapters);
  }
  if (num_tokens > kMaxTokens) {
    return "hidden_states must have fewer than 2^31 tokens on CUDA, got " + number(num_tokens);
  }
  Arena arena;
  if (lay_out_sorted(num_tokens, num_adapters, kSegmentRowTile, arena).max_ranges > kMaxSortedRanges) {
    return "hidden_states must have at most " + number((kMaxSortedRanges - num_adapters) * kRangeTokens) +
           " tokens for " + number(num_adapters) + " adapters on CUDA, got " + number(num_tokens);
  }
  return {};
}

int64_t sorted_bytes(int64_t num_tokens, int64_t num_adapters) {
  Arena arena;
  lay_out_sorted(num_tokens, num_adapters, kSegmentRowTile, arena);
  return arena.used();
}

int64_t sort_workspace(int64_t num_tokens, int64_t num_adapters) {
  Arena arena;
  lay_out_counts(num_tokens, num_adapters, arena);
  return arena.used();
}

Status sort(const AdapterIndices& indices, int64_t num_tokens, void* sorted, void* workspace, cudaStream_t stream) {
  Arena kept(sorted), scratch(workspace);
  SortedTokens tokens = lay_out_sorted(num_tokens, indices.num_adapters, kSegmentRowTile, kept);
  tokens.counts = lay_out_counts(num_tokens, indices.num_adapters, scratch);
  return sort_tokens(indices.values, tokens, stream, indices.tokens_each);
}

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
