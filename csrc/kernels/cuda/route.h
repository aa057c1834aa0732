// Which of the CUDA paths serves a call.
#pragma once

#include <string_view>

#include "bottleneck_adapter.h"

namespace adapterx::cuda {

enum class Path {
  tile,      // the tensor-core kernels of bottleneck_adapter.h
  blas,      // the cuBLASLt products of blas.h
  segments,  // the general grouped kernels of segments.h
};

struct Route {
  Path path = Path::blas;
  TilePlan plan;                  // of Path::tile
  const char* refusal = nullptr;  // why the pinned path cannot serve the call; null: it can
};

// The path for `problem` by the dispatch table, or the one that `pin` names: "auto" (or empty), "tile" (with the
// table's plan, or the first that fits), "tile:<row_tile>x<cluster_size>", "cublas", "segments". num_groups 0: the
// plain form.
Route choose_route(const Problem& problem, const Device& device, Direction direction, int64_t num_groups,
                   std::string_view pin);

}  // namespace adapterx::cuda
