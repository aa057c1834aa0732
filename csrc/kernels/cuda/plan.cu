// Which tile serves a problem: the first row of the generated table that matches and fits.
#include "dispatch.cuh"
#include "dispatch_table.h"

namespace adapterx::cuda {
namespace {

// A tile never holds tokens of two groups: with fewer tokens a group, a tile of 64 would mostly be padding.
constexpr int64_t kGroupTokensForWideTile = 64;

bool fits(const Problem& problem, const TilePlan& plan, const Device& device) {
  return unsupported_reason(problem, plan, device) == nullptr;
}

bool serves(const DispatchRow& row, const Problem& problem, const Device& device) {
  return device.compute_capability >= row.capability && problem.num_tokens <= row.num_tokens &&
         problem.hidden_size <= row.hidden_size && problem.bottleneck_dim <= row.bottleneck_dim;
}

// The first row that `accepts(plan)` too; a plan without tile where there is none.
template <class Accepts>
TilePlan find_plan(const Problem& problem, const Device& device, Direction direction, const Accepts& accepts) {
  const auto search = [&](const auto& rows) -> TilePlan {
    for (const DispatchRow& row : rows) {
      const TilePlan plan = {row.row_tile, row.cluster_size};
      if (serves(row, problem, device) && accepts(plan)) return plan;
    }
    return {};
  };
  return direction == Direction::forward ? search(kForwardRows) : search(kBackwardRows);
}

}  // namespace

int64_t tile_shared_memory(const Problem& problem, const TilePlan& plan) {
  return visit_tile(problem, plan, [&](auto tag) {
    return decltype(tag)::Type::shared_memory(problem.hidden_size, plan.cluster_size);
  });
}

const char* unsupported_reason(const Problem& problem, const TilePlan& plan, const Device& device) {
  if (problem.dtype != ScalarType::bfloat16 && problem.dtype != ScalarType::float16) {
    return "dtype must be bfloat16 or float16";
  }
  if (problem.bottleneck_dim < 1 || problem.bottleneck_dim > kMaxBottleneckDim) {
    return "bottleneck_dim must be between 1 and 128";
  }
  if (problem.input_size != problem.hidden_size) return "input_size must equal hidden_size";
  if (problem.hidden_size < 1) return "hidden_size must be positive";
  if (!has_tile_kernel(problem, plan)) return "the plan must have a row_tile of 16 or 64 and a cluster_size of 1 to 8";
  if (device.compute_capability < 80) return "compute capability must be at least 8.0";
  if (plan.cluster_size > 1 && device.compute_capability < 90) return "clusters need compute capability 9.0";
  if (tile_shared_memory(problem, plan) > device.shared_memory_per_block) {
    return "the tile must fit in shared memory";
  }
  if (ceil_div(problem.num_tokens, plan.row_tile) * plan.cluster_size >= int64_t{1} << 31) {
    return "num_tokens must fit in the grid";
  }
  return nullptr;
}

TilePlan plan_tile(const Problem& problem, const Device& device, Direction direction) {
  return find_plan(problem, device, direction,
                   [&](const TilePlan& plan) { return plan.row_tile == 0 || fits(problem, plan, device); });
}

TilePlan plan_grouped_tile(const Problem& problem, const Device& device, Direction direction, int64_t num_groups) {
  const bool narrow = problem.num_tokens < num_groups * kGroupTokensForWideTile;
  return find_plan(problem, device, direction, [&](const TilePlan& plan) {
    if (plan.row_tile == 0 || (narrow && plan.row_tile > 16)) return false;
    Problem worst = problem;  // each group may end with a tile that is not full, and so may the tokens without adapter
    worst.num_tokens += (num_groups + 1) * plan.row_tile;
    return fits(worst, plan, device);
  });
}

const char* dispatch_source() { return kDispatchSource; }

}  // namespace adapterx::cuda
