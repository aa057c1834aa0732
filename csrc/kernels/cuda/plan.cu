// Which tile serves a problem. The numbers come from the roofline; a measured table replaces them where there is one.
#include "dispatch.cuh"

namespace adapterx::cuda {
namespace {

// A block with at most this many columns of 64 tokens leaves room for a second one on its SM, which computes while the
// first waits for its cluster.
constexpr int64_t kSliceForTwoBlocks = 512;
constexpr int64_t kBlocksThatFillTheDevice = 132;  // SMs of an H100 or H200

bool fits(const Problem& problem, const TilePlan& plan, const Device& device) {
  return unsupported_reason(problem, plan, device) == nullptr;
}

// The smallest power of two with which a block owns at most `columns` columns.
int32_t cluster_for(const Problem& problem, int64_t columns) {
  int32_t size = 1;
  while (size < kMaxClusterSize && ceil_div(problem.hidden_size, size) > columns) size *= 2;
  return size;
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

TilePlan plan_tile(const Problem& problem, const Device& device) {
  const bool clusters = device.compute_capability >= 90;
  const TilePlan wide = {64, clusters ? cluster_for(problem, kSliceForTwoBlocks) : 1};
  const bool fills = ceil_div(problem.num_tokens, 64) * wide.cluster_size >= kBlocksThatFillTheDevice;
  if (fills && fits(problem, wide, device)) return wide;
  // Few tokens: small tiles, and as many SMs as possible to read the weights.
  const TilePlan narrow = {16, clusters ? cluster_for(problem, 64) : 1};
  if (fits(problem, narrow, device)) return narrow;
  return {};
}

}  // namespace adapterx::cuda
