// What the parts of the mutation suite share: tensors in guarded memory, float64 arithmetic, schedules.
#pragma once

#include <cstdio>
#include <vector>

#include "cuda_emulator.h"
#include "tile_path.h"

namespace suite {

using namespace adapterx;
using namespace adapterx::cuda;
using Values = std::vector<double>;

inline void require(bool ok, const char* what) {
  if (ok) return;
  std::printf("caught: %s\n", what);
  std::exit(1);
}

inline float round_to_bfloat16(double x) {
  return emulator::bfloat16_float(emulator::bfloat16_bits(static_cast<float>(x)));
}

// A bfloat16 or fp32 tensor in guarded memory.
struct Tensor {
  ScalarType dtype = ScalarType::bfloat16;
  emulator::GuardedMemory memory;

  explicit Tensor(size_t count, ScalarType dtype = ScalarType::bfloat16)
      : dtype(dtype), memory(count * (dtype == ScalarType::float32 ? 4 : 2)) {}
  explicit Tensor(const Values& values, ScalarType dtype = ScalarType::bfloat16) : Tensor(values.size(), dtype) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == ScalarType::float32) {
        floats()[i] = static_cast<float>(values[i]);
      } else {
        bits()[i] = emulator::bfloat16_bits(static_cast<float>(values[i]));
      }
    }
  }
  float* floats() const { return reinterpret_cast<float*>(memory.data()); }
  uint16_t* bits() const { return reinterpret_cast<uint16_t*>(memory.data()); }
  std::vector<uint16_t> copy() const { return {bits(), bits() + memory.size() / 2}; }
  Values values() const {
    Values result;
    if (dtype == ScalarType::float32) return {floats(), floats() + memory.size() / 4};
    for (size_t i = 0; i < memory.size() / 2; ++i) result.push_back(emulator::bfloat16_float(bits()[i]));
    return result;
  }
};

inline Values normal(size_t count, double scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution(0.0, scale);
  Values values(count);
  for (double& x : values) x = round_to_bfloat16(distribution(generator));
  return values;
}

// Both in norm and element by element: a single wrong element of a large matrix must not drown.
inline void require_close(const Values& actual, const Values& exact, const char* what, double tolerance = 8e-3) {
  double difference = 0, norm = 0, worst = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = std::fabs(actual[i] - exact[i]);
    require(!std::isnan(error), what);
    difference += error * error;
    norm += exact[i] * exact[i];
    worst = std::max(worst, error);
  }
  require(std::sqrt(difference) <= tolerance * std::sqrt(norm), what);
  require(worst <= 8 * tolerance * std::sqrt(norm / exact.size()), what);
}

inline double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
inline double gelu_derivative(double x) {
  return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
}

// a (rows x inner) @ b (inner x columns); a flag reads the stored matrix transposed.
inline Values matmul(const Values& a, const Values& b, size_t rows, size_t inner, size_t columns, bool ta, bool tb) {
  Values c(rows * columns);
  for (size_t i = 0; i < rows; ++i) {
    for (size_t k = 0; k < inner; ++k) {
      const double x = ta ? a[k * rows + i] : a[i * inner + k];
      for (size_t j = 0; j < columns; ++j) c[i * columns + j] += x * (tb ? b[j * inner + k] : b[k * columns + j]);
    }
  }
  return c;
}

struct Case {
  size_t tokens, columns, m;
  TileShape tile;
  const char* name;
  Device device = {};
  size_t row_padding = 0;  // elements between the end of a row of the tokens' matrices and the next one

  size_t stride() const { return columns + row_padding; }
  // `rows`, laid out by the stride; the padding holds NaN, that of the last row too: memory that ends at its guard page
  // begins as aligned as its size is.
  Tensor strided(const Values& rows) const {
    Values padded(tokens * stride(), std::nan(""));
    for (size_t i = 0; i < rows.size(); ++i) padded[i / columns * stride() + i % columns] = rows[i];
    return Tensor(padded);
  }
};

// With bulk copies, and few blocks at once.
inline constexpr Device kStreaming = {90, emulator::kMaxSharedMemory, 8};

// Runs one path on its own, with a workspace of exactly the size that it measures.
template <class Tensors>
void run_path(void (*lay_out)(const PathCall<Tensors>&, Arena&),
              Status (*run)(const PathCall<Tensors>&, Arena&, cudaStream_t), const PathCall<Tensors>& call) {
  Arena measure;
  lay_out(call, measure);
  const emulator::GuardedMemory workspace(static_cast<size_t>(measure.used()));
  Arena arena(workspace.data());
  require(run(call, arena, nullptr).ok(), "launch");
}

inline constexpr double kScaling = 0.7;

inline Problem problem_of(const Case& c) {
  const auto d = static_cast<int64_t>(c.columns);
  return {ScalarType::bfloat16,     Activation::gelu, kScaling, static_cast<int64_t>(c.tokens), d, d,
          static_cast<int64_t>(c.m)};
}

// Runs `body` on every schedule and requires the same bits each time: each order with copies early and late, and each
// with one block of a cluster running as far as it can before another.
template <class Body>
void on_every_schedule(const char* name, const Body& body, int cluster_size = 1) {
  std::vector<std::vector<uint16_t>> first;
  for (int schedule = 0; schedule < (cluster_size > 1 ? 9 : 6); ++schedule) {
    emulator::machine().options = {static_cast<emulator::Order>(schedule % 3), schedule / 3 == 1, 7u + schedule,
                                   schedule / 3 == 2};
    const std::vector<std::vector<uint16_t>> result = body(schedule == 0);
    if (schedule == 0) first = result;
    require(result == first, name);
  }
}

// One problem on the tile path against float64, on every schedule; mutant_suite.cpp. wanted: a bit for grad_input,
// grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias.
void test_forward(const Case& c, bool separate_residual, bool has_residual);
void test_backward(const Case& c, bool add_grad_output, unsigned wanted);

// Tokens that picked one of several adapters or none, token by token against the adapters alone; for a resident tile the
// input itself is the residual. mutant_suite_grouped.cpp.
void test_grouped(size_t bottleneck_dim, const TileShape& tile, const Device& device);
// The tokens of one tile far apart and as neighbours: the same bits. mutant_suite_edges.cpp.
void test_far_tokens(const TileShape& tile, const Device& device);

void run_grouped();          // mutant_suite_grouped.cpp
void run_edges();            // mutant_suite_edges.cpp
void run_resident_kernel();  // mutant_suite_resident.cpp

}  // namespace suite
