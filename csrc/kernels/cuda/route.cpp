#include "route.h"

#include <charconv>

namespace adapterx::cuda {
namespace {

constexpr std::string_view kTile = "tile";

// "64x8"; a row_tile of 0 where it is not of that form.
TilePlan parse_plan(std::string_view text) {
  TilePlan plan;
  const char* end = text.data() + text.size();
  const auto [middle, first_error] = std::from_chars(text.data(), end, plan.row_tile);
  if (first_error != std::errc() || middle == end || *middle != 'x') return {};
  const auto [last, second_error] = std::from_chars(middle + 1, end, plan.cluster_size);
  return second_error == std::errc() && last == end ? plan : TilePlan{};
}

TilePlan planned(const Problem& problem, const Device& device, Direction direction, int64_t num_groups) {
  return num_groups > 0 ? plan_grouped_tile(problem, device, direction, num_groups)
                        : plan_tile(problem, device, direction);
}

// The table's plan; where the table prefers another path, the first plan that serves the problem.
TilePlan any_plan(const Problem& problem, const Device& device, Direction direction, int64_t num_groups) {
  const TilePlan plan = planned(problem, device, direction, num_groups);
  if (plan.row_tile != 0) return plan;
  for (const int32_t row_tile : {64, 16}) {
    for (const int32_t cluster_size : {1, 2, 4, 8}) {
      const TilePlan candidate = {row_tile, cluster_size};
      if (unsupported_reason(problem, candidate, device) == nullptr) return candidate;
    }
  }
  return {64, 1};
}

Route tile_route(const Problem& problem, const TilePlan& plan, const Device& device) {
  return {Path::tile, plan, unsupported_reason(problem, plan, device)};
}

}  // namespace

Route choose_route(const Problem& problem, const Device& device, Direction direction, int64_t num_groups,
                   std::string_view pin) {
  const bool grouped = num_groups > 0;
  if (pin.empty() || pin == "auto") {
    const TilePlan plan = planned(problem, device, direction, num_groups);
    if (plan.row_tile != 0) return {Path::tile, plan};
    return {grouped ? Path::segments : Path::blas, {}};
  }
  if (pin == "cublas") return {Path::blas, {}, grouped ? "cuBLASLt does not serve the grouped form" : nullptr};
  if (pin == "segments") return {Path::segments, {}, grouped ? nullptr : "it serves the grouped form only"};
  if (pin == kTile) return tile_route(problem, any_plan(problem, device, direction, num_groups), device);
  if (pin.substr(0, kTile.size() + 1) == "tile:") {
    return tile_route(problem, parse_plan(pin.substr(kTile.size() + 1)), device);
  }
  return {Path::blas, {}, "it must be auto, tile, tile:<row_tile>x<cluster_size>, cublas or segments"};
}

}  // namespace adapterx::cuda
