// Which tile serves a problem: the first row of the generated table that matches and fits.
#include "plan_table.h"
#include "resident_path.h"
#include "tile_kernels.cuh"

namespace adapterx::cuda {
namespace {

// A tile never holds tokens of two adapters: with fewer tokens an adapter, a tile of 64 would mostly be padding.
constexpr int64_t kTokensForWideTile = 64;

bool serves(const PlanRow& row, const Problem& problem, const Device& device) {
  return device.compute_capability >= row.capability && problem.num_tokens <= row.num_tokens &&
         problem.hidden_size <= row.hidden_size && problem.bottleneck_dim <= row.bottleneck_dim;
}

// The first row that `accepts(tile)` too; row_tile 0 where there is none.
template <class Accepts>
TileShape find_tile(const Problem& problem, const Device& device, Direction direction, const Accepts& accepts) {
  const auto search = [&](const auto& rows) -> TileShape {
    for (const PlanRow& row : rows) {
      const TileShape tile = {row.row_tile, row.cluster_size};
      if (serves(row, problem, device) && accepts(tile)) return tile;
    }
    return {};
  };
  return direction == Direction::forward ? search(kForwardRows) : search(kBackwardRows);
}

}  // namespace

int64_t tile_shared_memory(const Problem& problem, const TileShape& tile) {
  if (tile.row_tile == kResidentRowTile) return resident_shared_memory(problem, tile.cluster_size);
  return visit_tile(problem, tile, [&](auto tag) {
    return decltype(tag)::Type::shared_memory(problem.hidden_size, tile.cluster_size, 2);
  });
}

const char* tile_refusal(const Problem& problem, const TileShape& tile, const Device& device, bool bulk_rows) {
  if (problem.dtype != ScalarType::bfloat16 && problem.dtype != ScalarType::float16) {
    return "dtype must be bfloat16 or float16";
  }
  if (problem.bottleneck_dim < 1 || problem.bottleneck_dim > kMaxBottleneckDim) {
    return "bottleneck_dim must be between 1 and 128";
  }
  if (problem.input_size != problem.hidden_size) return "input_size must equal hidden_size";
  if (problem.hidden_size < 1) return "hidden_size must be positive";
  if (tile.row_tile == kResidentRowTile) {
    if (const char* refusal = resident_refusal(problem, tile.cluster_size); refusal != nullptr) return refusal;
    if (device.compute_capability < 90) return "a resident tile needs compute capability 9.0";
    if (!bulk_rows) {
      return "a resident tile needs rows aligned to 16 bytes, an output, and no residual but hidden_states";
    }
  } else if (!has_tile_kernel(problem, tile)) {
    return "the plan must have a row_tile of 16 or 64, or 32 for the resident kernel, and a cluster_size of 1, 2, 4 or "
           "8";
  }
  if (device.compute_capability < 80) return "compute capability must be at least 8.0";
  if (tile.cluster_size > 1 && device.compute_capability < 90) return "clusters need compute capability 9.0";
  if (tile_shared_memory(problem, tile) > device.shared_memory_per_block) {
    return "the tile must fit in shared memory";
  }
  if (ceil_div(problem.num_tokens, tile.row_tile) * tile.cluster_size >= int64_t{1} << 31) {
    return "num_tokens must fit in the grid";
  }
  return nullptr;
}

TileShape plan_tile(const Problem& problem, const Device& device, Direction direction, int64_t num_adapters,
                    bool bulk_rows) {
  const auto fits = [&](const Problem& sizes, const TileShape& tile) {
    return tile_refusal(sizes, tile, device, bulk_rows) == nullptr;
  };
  if (num_adapters == 0) {
    return find_tile(problem, device, direction,
                     [&](const TileShape& tile) { return tile.row_tile == 0 || fits(problem, tile); });
  }
  const bool narrow = problem.num_tokens < num_adapters * kTokensForWideTile;
  return find_tile(problem, device, direction, [&](const TileShape& tile) {
    if (tile.row_tile == 0 || (narrow && tile.row_tile > 16)) return false;
    Problem worst = problem;  // each adapter may end with a tile that is not full, and so may the tokens without one
    worst.num_tokens += (num_adapters + 1) * tile.row_tile;
    return fits(worst, tile);
  });
}

const char* plan_table_source() { return kPlanTableSource; }

}  // namespace adapterx::cuda
