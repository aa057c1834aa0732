// A small, fast suite over the CUDA kernels for mutation testing (mutants.py): exit status 0 where all is right.
// It calls the public launchers, so it is compiled once and linked with each mutant of the kernels. This part: the tile
// path with one adapter, and the element-wise ones.
#include "mutant_suite.h"

#include "rowwise.h"

namespace suite {

void test_forward(const Case& c, bool separate_residual, bool has_residual) {
  const size_t t = c.tokens, d = c.columns, m = c.m;
  const Values h = normal(t * d, 1, 1), r = normal(t * d, 1, 2), wd = normal(m * d, 1 / std::sqrt(d), 3);
  const Values wu = normal(d * m, 1 / std::sqrt(m), 4), bd = normal(m, 0.5, 5), bu = normal(d, 0.5, 6);
  Values u = matmul(h, wd, t, d, m, false, true);
  for (size_t i = 0; i < t * m; ++i) u[i] += bd[i % m];
  Values a = u;
  for (double& x : a) x = gelu(x);
  Values exact = matmul(a, wu, t, m, d, false, true);
  for (size_t i = 0; i < t * d; ++i) {
    exact[i] = kScaling * (exact[i] + bu[i % d]) + (has_residual ? (separate_residual ? r[i] : h[i]) : 0.0);
  }
  const Tensor th = c.strided(h), tr = c.strided(r), twd(wd), twu(wu), tbd(bd), tbu(bu);
  on_every_schedule(
      c.name,
      [&](bool check) {
        const Tensor output(t * d), pre_activation(t * m);
        ForwardTensors tensors = {th.bits(),     static_cast<int64_t>(c.stride()),
                                  nullptr,       static_cast<int64_t>(c.stride()),
                                  twd.bits(),    tbd.bits(),
                                  twu.bits(),    tbu.bits(),
                                  output.bits(), pre_activation.bits()};
        if (has_residual) tensors.residual = separate_residual ? tr.bits() : th.bits();
        run_path<ForwardTensors>(lay_out_tile, run_tile, {problem_of(c), tensors, nullptr, c.tile, {}, c.device});
        if (check) require_close(output.values(), exact, c.name), require_close(pre_activation.values(), u, c.name);
        return std::vector{output.copy(), pre_activation.copy()};
      },
      c.tile.cluster_size);
}

void test_backward(const Case& c, bool add_grad_output, unsigned wanted) {
  const size_t t = c.tokens, d = c.columns, m = c.m;
  const Values dy = normal(t * d, 1, 1), h = normal(t * d, 1, 2), u = normal(t * m, 1, 3);
  const Values wd = normal(m * d, 1 / std::sqrt(d), 4), wu = normal(d * m, 1 / std::sqrt(m), 5);
  Values du = matmul(dy, wu, t, d, m, false, false), a = u;
  for (size_t i = 0; i < t * m; ++i) du[i] *= kScaling * gelu_derivative(u[i]), a[i] = gelu(u[i]);
  Values dh = matmul(du, wd, t, m, d, false, false), dwu = matmul(dy, a, d, t, m, true, false), dbd(m), dbu(d);
  for (size_t i = 0; i < t * d; ++i) dh[i] += add_grad_output ? dy[i] : 0, dbu[i % d] += kScaling * dy[i];
  for (size_t i = 0; i < t * m; ++i) dbd[i % m] += du[i];
  for (double& x : dwu) x *= kScaling;
  const Values exact[] = {dh, matmul(du, h, m, t, d, true, false), dbd, dwu, dbu};
  const Tensor tdy = c.strided(dy), th = c.strided(h), tu(u), twd(wd), twu(wu);
  on_every_schedule(
      c.name,
      [&](bool check) {
        std::vector<Tensor> results;
        void* pointers[5];
        for (int i = 0; i < 5; ++i) {
          results.emplace_back(exact[i].size());
          pointers[i] = wanted >> i & 1 ? results.back().bits() : nullptr;
        }
        const auto stride = static_cast<int64_t>(c.stride());
        const BackwardTensors tensors = {tdy.bits(),  stride,      th.bits(),       stride,      tu.bits(),
                                         twd.bits(),  twu.bits(),  add_grad_output, pointers[0], pointers[1],
                                         pointers[2], pointers[3], pointers[4]};
        run_path<BackwardTensors>(lay_out_tile, run_tile, {problem_of(c), tensors, nullptr, c.tile, {}, c.device});
        std::vector<std::vector<uint16_t>> bits;
        for (int i = 0; i < 5; ++i) {
          if (check && pointers[i]) require_close(results[i].values(), exact[i], c.name);
          bits.push_back(results[i].copy());
        }
        return bits;
      },
      c.tile.cluster_size);
}

namespace {

constexpr double kBig = 32768;  // kBig^2 + 1 == kBig^2 in fp32: a sum of such terms shows its order

// Blocks contribute 2^30, -2^30, 1 and 0 to a pre-activation: in rank order the sum is 1, in other orders 0.
void test_order_of_blocks() {
  const size_t d = 4 * 64;
  Values h(d), wd(d), wu(d);
  h[0] = h[64] = kBig, h[128] = 1;
  wd[0] = kBig, wd[64] = -kBig, wd[128] = 1;
  const Tensor th(h), twd(wd), twu(wu), output(d), pre_activation(1);
  ForwardTensors tensors;
  tensors.hidden_states = th.bits(), tensors.hidden_states_stride = static_cast<int64_t>(d);
  tensors.down_weight = twd.bits(), tensors.up_weight = twu.bits();
  tensors.output = output.bits(), tensors.pre_activation = pre_activation.bits();
  const Problem problem = problem_of({1, d, 1, {}, ""});
  run_path<ForwardTensors>(lay_out_tile, run_tile, {problem, tensors, nullptr, {16, 4}});
  require(pre_activation.values()[0] == 1.0, "order of the sum over blocks");
}

// A row of infinities beside a padded bottleneck, whose columns are zero; and infinite weights behind a relu that is off.
void test_infinities(const TileShape& tile) {
  const size_t t = 20, d = 40, m = 27;
  Values h(t * d, 1.0), u(t * m, -1.0), wu(d * m, 1.0);
  std::fill_n(h.begin() + 3 * d, d, INFINITY);
  const Tensor th(h), ones(Values(m * d, 1.0)), output(t * d), tu(u), infinite(Values(d * m, INFINITY));
  Problem problem = problem_of({t, d, m, tile, ""});
  problem.activation = Activation::identity;
  ForwardTensors forward;
  forward.hidden_states = th.bits(), forward.hidden_states_stride = static_cast<int64_t>(d);
  forward.down_weight = forward.up_weight = ones.bits(), forward.output = output.bits();
  run_path<ForwardTensors>(lay_out_tile, run_tile, {problem, forward, nullptr, tile});
  const Values values = output.values();
  for (size_t i = 0; i < t * d; ++i) require(std::isinf(values[i]) == (i / d == 3), "infinities of one token");
  BackwardTensors backward;
  backward.grad_output = th.bits(), backward.grad_output_stride = static_cast<int64_t>(d);
  backward.pre_activation = tu.bits(), backward.down_weight = backward.up_weight = ones.bits();
  backward.grad_input = output.bits();
  run_path<BackwardTensors>(lay_out_tile, run_tile, {problem, backward, nullptr, tile});
  const Values gradients = output.values();
  for (size_t i = 0; i < t * d; ++i) require(std::isinf(gradients[i]) == (i / d == 3), "infinities of one gradient");
  backward.grad_output = ones.bits(), backward.grad_output_stride = 0;
  backward.pre_activation = tu.bits(), backward.down_weight = ones.bits(), backward.up_weight = infinite.bits();
  backward.grad_input = output.bits();
  problem.activation = Activation::relu;
  run_path<BackwardTensors>(lay_out_tile, run_tile, {problem, backward, nullptr, tile});
  for (const double value : output.values()) require(value == 0, "a relu that is off");
}

// Three ranges of tokens contribute 2^30, -2^30 and 1 to a weight gradient.
void test_order_of_ranges(const Device& device) {
  const size_t t = 3 * 256, d = 8, m = 24;
  Values dy(t * d), u(t * m);
  dy[0] = kBig, u[0] = kBig, dy[300 * d] = -kBig, u[300 * m] = kBig, dy[700 * d] = 1, u[700 * m] = 1;
  for (size_t i = 0; i < t; ++i) u[i * m + 16] = u[i * m];  // another block of a cluster owns that element
  const Tensor tdy(dy), tu(u), gradient(d * m);
  BackwardTensors tensors;
  tensors.grad_output = tdy.bits(), tensors.grad_output_stride = static_cast<int64_t>(d);
  tensors.pre_activation = tu.bits(), tensors.grad_up_weight = gradient.bits();
  Problem problem = problem_of({t, d, m, {}, ""});
  problem.activation = Activation::identity, problem.scaling = 1;
  run_path<BackwardTensors>(lay_out_tile, run_tile, {problem, tensors, nullptr, {64, 1}, {}, device});
  for (const size_t element : {0, 16}) {
    require(gradient.values()[element] == 1.0, "order of the sum over token ranges");
  }
}

struct Floats {
  emulator::GuardedMemory memory;
  explicit Floats(const std::vector<float>& values) : memory(values.size() * 4) {
    std::memcpy(memory.data(), values.data(), memory.size());
  }
  float* data() const { return reinterpret_cast<float*>(memory.data()); }
};

double activation_of(Activation activation, double x) {
  switch (activation) {
    case Activation::relu: return std::max(x, 0.0);
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    case Activation::leaky_relu: return x > 0 ? x : 0.01 * x;
    default: return x;
  }
}

void require_near(double actual, double exact, const char* what) {
  require(std::fabs(actual - exact) <= 1e-5 * (1 + std::fabs(exact)), what);
}

// Every activation and derivative, with bias and column sums, in fp32; 3 columns take the scalar path, 8 the vectors.
void test_rowwise(int64_t rows, int64_t columns) {
  const auto count = static_cast<size_t>(rows * columns);
  std::vector<float> x(count), g(count), bias(columns, 0.25f);
  for (size_t i = 0; i < count; ++i) x[i] = -3.f + 6.f * (i % 97) / 97, g[i] = 0.5f + (i % 13) * 0.1f;
  const Floats tx(x), tg(g), tbias(bias), result(x), pre(x), sums(bias);
  const RowShape shape = {ScalarType::float32, rows, columns};
  const emulator::GuardedMemory workspace(column_sum_workspace(shape));
  for (int32_t i = 0; i < 8; ++i) {
    const auto activation = static_cast<Activation>(i);
    bias_activation(shape, activation, tx.data(), tbias.data(), result.data(), pre.data(), nullptr);
    for (size_t k = 0; k < count; ++k) {
      require_near(result.data()[k], activation_of(activation, x[k] + 0.25), "bias_activation");
      require_near(pre.data()[k], x[k] + 0.25, "bias_activation, pre_activation");
    }
    activation_gradient(shape, activation, 0.5, tx.data(), tg.data(), result.data(), sums.data(), workspace.data(),
                        nullptr);
    std::vector<double> exact_sums(columns);
    for (size_t k = 0; k < count; ++k) {
      const double step = 1e-6, u = x[k];  // no x lies at a kink
      const double slope = (activation_of(activation, u + step) - activation_of(activation, u - step)) / (2 * step);
      require_near(result.data()[k], 0.5 * g[k] * slope, "activation_gradient");
      exact_sums[k % columns] += result.data()[k];
    }
    for (int64_t c = 0; c < columns; ++c) require_near(sums.data()[c], exact_sums[c], "bias gradient");
  }
  scaled_residual(shape, 0.5, tx.data(), tbias.data(), tg.data(), columns, result.data(), nullptr);
  for (size_t k = 0; k < count; ++k) require_near(result.data()[k], g[k] + 0.5 * (x[k] + 0.25), "scaled_residual");
  column_sum(shape, 0.5, tg.data(), columns, sums.data(), workspace.data(), nullptr);
  std::vector<double> exact_sums(columns);
  for (size_t k = 0; k < count; ++k) exact_sums[k % columns] += 0.5 * g[k];
  for (int64_t c = 0; c < columns; ++c) require_near(sums.data()[c], exact_sums[c], "column_sum");
}

// Rows 2^24, 1, -2^24 (in this order of ranges): the sum in order is 0, any other order of ranges gives 1.
void test_order_of_rows() {
  std::vector<float> x(3 * 64);
  x[0] = 16777216.f, x[64] = 1.f, x[128] = -16777216.f;
  const RowShape shape = {ScalarType::float32, 3 * 64, 1};
  const Floats tx(x), sum({9.f});
  const emulator::GuardedMemory workspace(column_sum_workspace(shape));
  column_sum(shape, 1.0, tx.data(), 1, sum.data(), workspace.data(), nullptr);
  require(sum.data()[0] == 0.f, "order of the sum over row ranges");
}

void run_all() {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{70, 3}, {130, 8}, {1, 40}}) {
    on_every_schedule("rowwise", [rows = rows, columns = columns](bool) {
      test_rowwise(rows, columns);
      return std::vector<std::vector<uint16_t>>();
    });
  }
  test_order_of_rows();
  test_forward({17, 327, 27, {16, 1}, "forward, one narrow block, unaligned"}, false, true);
  test_forward({70, 200, 24, {64, 1}, "forward, one wide block"}, false, false);
  test_forward({20, 712, 32, {16, 2}, "forward, narrow cluster"}, false, false);
  test_forward({65, 488, 24, {64, 4}, "forward, wide cluster, separate residual"}, true, true);
  test_forward({1, 72, 8, {16, 8}, "forward, blocks without columns"}, false, false);
  test_forward({3, 587, 27, {16, 1}, "forward, narrow, more chunks than stages"}, false, true);
  test_forward({3, 291, 32, {64, 1}, "forward, wide, more chunks than stages"}, true, true);
  test_forward({4, 640, 32, {16, 1}, "forward, narrow, whole chunks"}, false, false);
  test_order_of_blocks();
  for (const TileShape& tile : {TileShape{16, 1}, {64, 1}, {16, 2}}) test_infinities(tile);
  test_backward({20, 712, 32, {16, 2}, "backward, narrow cluster"}, false, 31);
  test_backward({600, 40, 24, {64, 1}, "backward, several ranges"}, true, 31);
  test_backward({33, 171, 27, {64, 2}, "backward, unaligned wide cluster"}, false, 31);
  test_backward({18, 40, 8, {16, 1}, "backward, up gradients only"}, false, 24);
  test_backward({18, 40, 8, {16, 1}, "backward, down bias only"}, false, 4);
  test_order_of_ranges({});
  test_order_of_ranges(kStreaming);
  // One block for all windows: more stages than a ring has.
  test_backward({81, 264, 24, {16, 1}, "streamed weight gradients", {90, emulator::kMaxSharedMemory, 1}}, false,
                0b11110);
  test_backward({260, 8, 24, {16, 2}, "streamed weight gradients in a cluster", kStreaming}, false, 0b11110);
}

}  // namespace
}  // namespace suite

// Runs the part that is named, or all.
int main(int count, char** names) {
  const bool resident = count == 1 || std::string(names[1]) == "resident";
  const bool others = count == 1 || std::string(names[1]) == "others";
  try {
    if (resident) suite::run_resident_kernel();
    for (const emulator::Edge edge : {emulator::Edge::end, emulator::Edge::begin}) {
      if (!others) break;
      emulator::guarded_edge = edge;
      suite::run_all();
      suite::run_grouped();
    }
    emulator::guarded_edge = emulator::Edge::end;
    if (others) suite::run_edges();
  } catch (const std::exception& error) {
    std::printf("caught: %s\n", error.what());
    return 1;
  }
  std::printf("all passed\n");
  return 0;
}
