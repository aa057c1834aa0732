// Which kernel serves which problem. Written by a program, do not edit:
//     python benchmarks/plan_table.py
//         --from-results benchmarks/results/bench_op_cuda_sweep_NVIDIA_H100_80GB_HBM3.csv
#pragma once

#include <cstdint>

namespace adapterx::cuda {

inline constexpr const char* kPlanTableSource = "measured on NVIDIA H100 80GB HBM3";

// A row serves bfloat16 and float16 problems on devices of its compute capability (10 * major + minor) and newer whose
// sizes do not exceed its limits. The first row that serves a problem and whose tile fits into the device's shared
// memory wins. row_tile 0 is the cublas path, which also serves whatever no row serves: other dtypes, wider
// bottlenecks.
struct PlanRow {
  int32_t capability;
  int64_t num_tokens;
  int64_t hidden_size;
  int64_t bottleneck_dim;
  int32_t row_tile;
  int32_t cluster_size;
};

inline constexpr int64_t kAny = INT64_MAX;  // no limit

// clang-format off: the columns are aligned.
// capability, num_tokens, hidden_size, bottleneck_dim, row_tile, cluster_size
inline constexpr PlanRow kForwardRows[] = {
    { 90,      512,      886,    32, 16, 8},
    { 90,     8192,      886,    32, 64, 8},
    { 90,      512,     1448,    32, 16, 8},
    { 90,     2048,     1448,    32, 16, 4},
    { 90,     8192,     1448,    32, 64, 8},
    { 90,      512,     2896,    32, 16, 8},
    { 90,     2048,     2896,    32, 16, 4},
    { 90,      512,     5792,    32, 16, 8},
    { 90,      512,      886,    90, 16, 8},
    { 90,     2048,      886,    90, 64, 8},
    { 90,      512,     1448,    90, 16, 8},
    { 90,      512,     2896,    90, 16, 8},
    { 90,      128,      886,  kAny, 16, 8},
    { 90,      512,      886,  kAny, 16, 4},
    { 90,      128,     1448,  kAny, 16, 8},
    { 90,     kAny,     kAny,  kAny,  0, 1},
    { 90,     8384,       64,   128, 16, 1},
    { 90,     8384,      128,   128, 16, 2},
    { 90,     8384,      256,   128, 16, 4},
    { 90,     8384,      512,   128, 16, 8},
    { 90,     4160,     1024,   128, 16, 8},
    { 90,     2048,     2048,   128, 16, 8},
    { 90,     1024,     kAny,   128, 16, 8},
    { 90,     kAny,      512,   128, 64, 1},
    { 90,     kAny,     1024,   128, 64, 2},
    { 90,     kAny,     2048,   128, 64, 4},
    { 90,     kAny,     kAny,   128, 64, 8},
    { 90,     kAny,       64,   128, 16, 1},
    { 90,     kAny,      128,   128, 16, 2},
    { 90,     kAny,      256,   128, 16, 4},
    { 90,     kAny,     kAny,   128, 16, 8},
    { 80,     8384,     kAny,   128, 16, 1},
    { 80,     8384,     kAny,   128,  0, 1},
    { 80,     kAny,     kAny,   128, 64, 1},
    { 80,     kAny,     kAny,   128, 16, 1},
};

inline constexpr PlanRow kBackwardRows[] = {
    { 90,      512,      886,    32, 16, 8},
    { 90,     2048,      886,    32, 64, 8},
    { 90,     8192,      886,    32, 64, 4},
    { 90,     kAny,      886,    32, 64, 1},
    { 90,      512,     1448,    32, 16, 8},
    { 90,     2048,     1448,    32, 16, 4},
    { 90,     kAny,     1448,    32, 64, 4},
    { 90,      512,     2896,    32, 16, 8},
    { 90,     2048,     2896,    32, 16, 4},
    { 90,     kAny,     2896,    32, 64, 8},
    { 90,      512,     5792,    32, 16, 8},
    { 90,     2048,     5792,    32, 64, 8},
    { 90,      512,     kAny,    32, 16, 8},
    { 90,      512,      886,    90, 16, 8},
    { 90,     2048,      886,    90, 64, 8},
    { 90,     8192,      886,    90, 64, 4},
    { 90,      512,     1448,    90, 16, 8},
    { 90,     2048,     1448,    90, 64, 8},
    { 90,      512,     2896,    90, 16, 8},
    { 90,     2048,     2896,    90, 64, 8},
    { 90,      512,     5792,    90, 16, 8},
    { 90,      128,      886,  kAny, 16, 8},
    { 90,      512,      886,  kAny, 16, 4},
    { 90,     2048,      886,  kAny, 64, 8},
    { 90,      128,     1448,  kAny, 16, 8},
    { 90,      512,     1448,  kAny, 16, 4},
    { 90,     2048,     1448,  kAny, 64, 8},
    { 90,      128,     2896,  kAny, 16, 8},
    { 90,       32,     5792,  kAny,  0, 1},
    { 90,      128,     5792,  kAny, 16, 8},
    { 90,     kAny,     kAny,  kAny,  0, 1},
    { 90,     8384,       64,   128, 16, 1},
    { 90,     8384,      128,   128, 16, 2},
    { 90,     8384,      256,   128, 16, 4},
    { 90,     8384,      512,   128, 16, 8},
    { 90,     4160,     1024,   128, 16, 8},
    { 90,     2048,     2048,   128, 16, 8},
    { 90,     1024,     kAny,   128, 16, 8},
    { 90,     kAny,      512,   128, 64, 1},
    { 90,     kAny,     1024,   128, 64, 2},
    { 90,     kAny,     2048,   128, 64, 4},
    { 90,     kAny,     kAny,   128, 64, 8},
    { 90,     kAny,       64,   128, 16, 1},
    { 90,     kAny,      128,   128, 16, 2},
    { 90,     kAny,      256,   128, 16, 4},
    { 90,     kAny,     kAny,   128, 16, 8},
    { 80,     8384,     kAny,   128, 16, 1},
    { 80,     8384,     kAny,   128,  0, 1},
    { 80,     kAny,     kAny,   128, 64, 1},
    { 80,     kAny,     kAny,   128, 16, 1},
};
// clang-format on

}  // namespace adapterx::cuda
