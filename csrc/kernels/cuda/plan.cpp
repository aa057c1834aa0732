#include "plan.h"

#include <charconv>

namespace adapterx::cuda {
namespace {

constexpr std::string_view kTile = "tile";

// "64x8"; a row_tile of 0 where it is not of that form.
TileShape parse_tile(std::string_view text) {
  TileShape tile;
  const char* end = text.data() + text.size();
  const auto [middle, first_error] = std::from_chars(text.data(), end, tile.row_tile);
  if (first_error != std::errc() || middle == end || *middle != 'x') return {};
  const auto [last, second_error] = std::from_chars(middle + 1, end, tile.cluster_size);
  return second_error == std::errc() && last == end ? tile : TileShape{};
}

// The table's tile; where the table prefers another path, the first tile that serves the problem.
TileShape any_tile(const Problem& problem, const Device& device, Direction direction, int64_t num_adapters,
                   bool bulk_rows) {
  const TileShape tile = plan_tile(problem, device, direction, num_adapters, bulk_rows);
  if (tile.row_tile != 0) return tile;
  for (const int32_t row_tile : {64, 16}) {  // the resident kernel goes by its own name
    for (const int32_t cluster_size : {1, 2, 4, 8}) {
      const TileShape candidate = {row_tile, cluster_size};
      if (tile_refusal(problem, candidate, device, bulk_rows) == nullptr) return candidate;
    }
  }
  return {64, 1};
}

struct Pinned {
  Path path = Path::cublas;
  TileShape tile = {};
  const char* refusal = nullptr;
};

Pinned pinned_tile(const Problem& problem, const TileShape& tile, const Device& device, bool bulk_rows) {
  return {Path::tile, tile, tile_refusal(problem, tile, device, bulk_rows)};
}

Pinned pinned_path(const Problem& problem, const Device& device, Direction direction, int64_t num_adapters,
                   bool bulk_rows, std::string_view pin) {
  const bool grouped = num_adapters > 0;
  if (pin == "cublas") return {Path::cublas, {}, grouped ? "cuBLASLt does not serve the grouped form" : nullptr};
  if (pin == "plain") return {Path::cublas, {}, grouped ? "it does not serve the grouped form" : nullptr};
  if (pin == "segments") return {Path::segments, {}, grouped ? nullptr : "it serves the grouped form only"};
  if (pin == kTile)
    return pinned_tile(problem, any_tile(problem, device, direction, num_adapters, bulk_rows), device, bulk_rows);
  if (pin.substr(0, kTile.size() + 1) == "tile:") {
    return pinned_tile(problem, parse_tile(pin.substr(kTile.size() + 1)), device, bulk_rows);
  }
  return {Path::cublas, {}, "it must be auto, tile, tile:<row_tile>x<cluster_size>, cublas, plain or segments"};
}

}  // namespace

Plan plan_path(const Problem& problem, const Device& device, Direction direction, int64_t num_adapters, bool bulk_rows,
               std::string_view pin) {
  Plan plan;
  if (pin.empty() || pin == "auto") {
    plan.tile = plan_tile(problem, device, direction, num_adapters, bulk_rows);
    plan.path = plan.tile.row_tile != 0 ? Path::tile : num_adapters > 0 ? Path::segments : Path::cublas;
    return plan;
  }
  const Pinned pinned = pinned_path(problem, device, direction, num_adapters, bulk_rows, pin);
  plan.path = pinned.path;
  plan.tile = pinned.tile;
  plan.own_products = pin == "plain";
  if (pinned.refusal != nullptr) {
    plan.refusal.append(kPinVariable).append(" must name a path that serves this call, got '").append(pin);
    plan.refusal.append("': ").append(pinned.refusal);
  }
  return plan;
}

}  // namespace adapterx::cuda
