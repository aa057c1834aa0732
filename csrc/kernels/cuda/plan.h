// Which of the CUDA paths serves a call.
#pragma once

#include <string>
#include <string_view>

#include "path.h"

namespace adapterx::cuda {

enum class Direction { forward, backward };

enum class Path {
  tile,      // tile_path.h: tensor cores, hidden states read once; one adapter or several
  cublas,    // cublas_path.h: whatever the others do not serve with one adapter
  segments,  // segment_path.h: whatever the others do not serve with several
};

struct Plan {
  Path path = Path::cublas;
  TileShape tile;             // of Path::tile
  bool own_products = false;  // Path::cublas without cuBLASLt: every product by product.cu
  Device device;              // that the plan is for
  int64_t workspace = 0;      // bytes of device memory, 256-byte aligned, that the call needs
  std::string refusal;        // empty, or why the call cannot be served: "<argument> must <rule>, got <value>"
};

// Pins a path for tests and measurements; callers read it, so that each framework decides whether it is heard.
inline constexpr const char* kPinVariable = "ADAPTERX_CUDA_PATH";

// The path for `problem` by the table, or the one that `pin` names: "auto" (or empty), "tile" (with the tile of the
// table, or the first that fits), "tile:<row_tile>x<cluster_size>", "cublas", "plain" (the same with own_products),
// "segments". num_adapters 0: without adapter indices. `bulk_rows`: resident_path.h's has_bulk_rows. The workspace is
// not looked at.
Plan plan_path(const Problem& problem, const Device& device, Direction direction, int64_t num_adapters, bool bulk_rows,
               std::string_view pin);

// ---- the tile path's part: tile_plan.cu ----

inline constexpr int64_t kMaxBottleneckDim = 128;  // of the tile kernels
inline constexpr int32_t kMaxClusterSize = 8;      // the portable limit

// Null where the tile kernels serve `problem` on `device` with `tile`, else the reason why not.
const char* tile_refusal(const Problem& problem, const TileShape& tile, const Device& device, bool bulk_rows);

// The tile for `problem` on `device` by plan_table.h; row_tile 0: another path is faster, or the only one.
TileShape plan_tile(const Problem& problem, const Device& device, Direction direction, int64_t num_adapters,
                    bool bulk_rows);

// Where the table comes from: "roofline" or "measured on <device>".
const char* plan_table_source();

// Bytes of shared memory that one block of the tile kernel takes at least, forward and backward alike.
int64_t tile_shared_memory(const Problem& problem, const TileShape& tile);

}  // namespace adapterx::cuda
