// The grouped part of the mutation suite: the sort, the tile path, the segment path.
#include "mutant_suite.h"
#include "segment_path.h"

namespace suite {
namespace {

// The sorted order of the tokens, `each` for an index.
struct Sorted {
  emulator::GuardedMemory indices, workspace;
  SortedTokens tokens;

  Sorted(const std::vector<int64_t>& values, size_t adapters, int32_t row_tile, int64_t each = 1)
      : indices(values.size() * 8) {
    std::memcpy(indices.data(), values.data(), indices.size());
    const int64_t count = static_cast<int64_t>(values.size()) * each;
    Arena measure;
    lay_out_tokens(count, adapters, row_tile, measure);
    workspace = emulator::GuardedMemory(round_up(measure.used(), kWorkspaceAlignment));
    Arena arena(workspace.data());
    tokens = lay_out_tokens(count, adapters, row_tile, arena);
    require(sort_tokens(reinterpret_cast<const int64_t*>(indices.data()), tokens, nullptr, each) == cudaSuccess,
            "launch");
  }
};

// Requires the segments of one adapter, of at most `size` tokens from `begin` on; moves `next` behind them.
void require_segments(const Segment*& next, int adapter, int begin, int count, int size) {
  for (int first = 0; first < count; first += size, ++next) {
    const int end = begin + std::min(first + size, count);
    require(next->adapter == adapter && next->begin == begin + first && next->end == end, "sort, tables");
  }
}

void test_sort(size_t count, int adapters, int row_tile, size_t each = 1) {
  std::vector<int64_t> indices;
  for (size_t i = 0; i < count; ++i) indices.push_back(static_cast<int64_t>(i * i % 1009 % (adapters + 1)) - 1);
  const Sorted sorted(indices, adapters, row_tile, static_cast<int64_t>(each));
  const Segment *tile = sorted.tokens.tiles, *range = sorted.tokens.ranges;
  int place = 0;
  for (int adapter = 0; adapter <= adapters; ++adapter) {
    const int begin = place;
    for (size_t i = 0; i < count * each; ++i) {
      if (indices[i / each] != (adapter == adapters ? -1 : adapter)) continue;
      require(sorted.tokens.tokens[place++] == static_cast<int64_t>(i), "sort, order");
    }
    require(sorted.tokens.first_range[adapter] == range - sorted.tokens.ranges, "sort, first ranges");
    require_segments(tile, adapter == adapters ? -1 : adapter, begin, place - begin, row_tile);
    if (adapter < adapters) require_segments(range, adapter, begin, place - begin, kRangeTokens);
  }
  for (; tile < sorted.tokens.tiles + sorted.tokens.max_tiles; ++tile) {
    require(tile->adapter == kUnusedSegment, "sort, unused tiles");
  }
  for (; range < sorted.tokens.ranges + sorted.tokens.max_ranges; ++range) {
    require(range->adapter == kUnusedSegment, "sort, unused ranges");
  }
}

// Tokens picked one of three adapters or none; one adapter is used by nobody. Each token's results and each adapter's
// gradients must have the bits that the adapter gives alone.
struct GroupedCase {
  static constexpr size_t t = 300, d = 40, adapters = 4;
  const size_t m;
  const TileShape tile;
  const Device device;
  Values h = normal(t * d, 1, 1), r = normal(t * d, 1, 7), u = normal(t * m, 1, 2),
         wd = normal(adapters * m * d, 0.2, 3);
  Values wu = normal(adapters * d * m, 0.3, 4), bd = normal(adapters * m, 0.5, 5), bu = normal(adapters * d, 0.5, 6);
  std::vector<int64_t> indices;

  GroupedCase(size_t bottleneck_dim, const TileShape& shape, const Device& on)
      : m(bottleneck_dim), tile(shape), device(on) {
    if (tile.row_tile == kResidentRowTile) r = h;
    for (size_t i = 0; i < t; ++i) indices.push_back(static_cast<int64_t>(i * i % 7 % 4) - 1);
  }

  // The rows of `values` whose token picked `adapter`.
  Values rows_of(const Values& values, int64_t adapter) const {
    const size_t width = values.size() / t;
    Values result;
    for (size_t i = 0; i < t; ++i) {
      if (indices[i] == adapter) result.insert(result.end(), &values[i * width], &values[i * width] + width);
    }
    return result;
  }
  static Values part_of(const Values& values, int64_t adapter) {
    const size_t size = values.size() / adapters;
    return Values(&values[adapter * size], &values[adapter * size] + size);
  }

  // output, pre_activation and the five gradients.
  std::vector<Values> run(const Values& h, const Values& r, const Values& u, const Values& wd, const Values& wu,
                          const Values& bd, const Values& bu, const SortedTokens* sorted) const {
    const size_t tokens = u.size() / m, width = d;
    const Problem problem = problem_of({tokens, d, m, {}, ""});
    const Tensor th(h), tr(r), tu(u), twd(wd), twu(wu), tbd(bd), tbu(bu), output(h.size()), pre_activation(u.size());
    const Tensor dh(h.size()), dwd(wd.size()), dbd(bd.size()), dwu(wu.size()), dbu(bu.size());
    const auto stride = static_cast<int64_t>(width);
    const Tensor& residual = tile.row_tile == kResidentRowTile ? th : tr;
    const ForwardTensors forward = {th.bits(),  stride,     residual.bits(), stride,        twd.bits(),
                                    tbd.bits(), twu.bits(), tbu.bits(),      output.bits(), pre_activation.bits()};
    run_path<ForwardTensors>(lay_out_tile, run_tile, {problem, forward, sorted, tile, {}, device});
    const BackwardTensors backward = {th.bits(), stride,    th.bits(),  stride,     tu.bits(),  twd.bits(), twu.bits(),
                                      true,      dh.bits(), dwd.bits(), dbd.bits(), dwu.bits(), dbu.bits()};
    run_path<BackwardTensors>(lay_out_tile, run_tile, {problem, backward, sorted, tile, {}, device});
    return {output.values(), pre_activation.values(), dh.values(), dwd.values(), dbd.values(), dwu.values(),
            dbu.values()};
  }
};

}  // namespace

void test_grouped(size_t bottleneck_dim, const TileShape& tile, const Device& device) {
  const GroupedCase c(bottleneck_dim, tile, device);
  const Sorted sorted(c.indices, c.adapters, c.tile.row_tile);
  const std::vector<Values> all = c.run(c.h, c.r, c.u, c.wd, c.wu, c.bd, c.bu, &sorted.tokens);
  for (int64_t adapter = 0; adapter < static_cast<int64_t>(c.adapters); ++adapter) {
    const std::vector<Values> single =
        c.run(c.rows_of(c.h, adapter), c.rows_of(c.r, adapter), c.rows_of(c.u, adapter), c.part_of(c.wd, adapter),
              c.part_of(c.wu, adapter), c.part_of(c.bd, adapter), c.part_of(c.bu, adapter), nullptr);
    for (size_t i = 0; i < 3; ++i) require(c.rows_of(all[i], adapter) == single[i], "grouped, token by token");
    for (size_t i = 3; i < 7; ++i) require(c.part_of(all[i], adapter) == single[i], "grouped, weight gradients");
  }
  require(c.rows_of(all[0], -1) == c.rows_of(c.r, -1), "grouped, tokens without adapter");
  require(c.rows_of(all[1], -1) == Values(c.rows_of(c.u, -1).size()), "grouped, pre-activation without adapter");
  require(c.rows_of(all[2], -1) == c.rows_of(c.h, -1), "grouped, gradient without adapter");
  std::vector<int64_t> wrong = c.indices;
  wrong[77] = static_cast<int64_t>(c.adapters);
  bool failed = false;
  try {
    const Sorted never(wrong, c.adapters, 64);
  } catch (const emulator::Error&) {
    failed = true;
  }
  require(failed, "grouped, index out of range");
}

namespace {

// A problem for the segment path and its float64 results, one token after the other.
struct SegmentCase {
  size_t t, n, d, m, adapters;  // n: input_size
  ScalarType dtype;
  size_t row_padding = 0;  // elements between the end of a row of residual and the next one
  const char* name = "";
  std::vector<int64_t> indices = {};
  Values h = {}, r = {}, dy = {}, u = {}, wd = {}, wu = {}, bd = {}, bu = {};

  void fill() {
    for (size_t i = 0; i < t; ++i) indices.push_back(static_cast<int64_t>(i * i % 11 % (adapters + 1)) - 1);
    h = normal(t * n, 1, 1), r = normal(t * d, 1, 2), dy = normal(t * d, 1, 3), u = normal(t * m, 1, 4);
    wd = normal(adapters * m * n, 1 / std::sqrt(n), 5), wu = normal(adapters * d * m, 1 / std::sqrt(m), 6);
    bd = normal(adapters * m, 0.5, 7), bu = normal(adapters * d, 0.5, 8);
  }
  double tolerance() const { return dtype == ScalarType::float32 ? 1e-5 : 8e-3; }
  Problem problem() const {
    const auto size = [](size_t x) { return static_cast<int64_t>(x); };
    return {dtype, Activation::gelu, kScaling, size(t), size(n), size(d), size(m)};
  }

  // output and pre_activation
  std::vector<Values> forward(bool residual) const {
    Values output(t * d), pre(t * m);
    for (size_t i = 0; i < t; ++i) {
      for (size_t k = 0; k < d; ++k) output[i * d + k] = residual ? r[i * d + k] : 0;
      if (indices[i] < 0) continue;
      const auto g = static_cast<size_t>(indices[i]);
      for (size_t j = 0; j < m; ++j) {
        double& x = pre[i * m + j] = bd[g * m + j];
        for (size_t k = 0; k < n; ++k) x += h[i * n + k] * wd[(g * m + j) * n + k];
      }
      for (size_t k = 0; k < d; ++k) {
        double y = bu[g * d + k];
        for (size_t j = 0; j < m; ++j) y += gelu(pre[i * m + j]) * wu[(g * d + k) * m + j];
        output[i * d + k] += kScaling * y;
      }
    }
    return {output, pre};
  }

  std::vector<Values> backward(bool add_grad_output) const {
    Values dh(t * n), dwd(wd.size()), dbd(bd.size()), dwu(wu.size()), dbu(bu.size());
    for (size_t i = 0; i < t; ++i) {
      for (size_t k = 0; k < n && add_grad_output; ++k) dh[i * n + k] = dy[i * d + k];
      if (indices[i] < 0) continue;
      const auto g = static_cast<size_t>(indices[i]);
      for (size_t k = 0; k < d; ++k) dbu[g * d + k] += kScaling * dy[i * d + k];
      for (size_t j = 0; j < m; ++j) {
        double du = 0;
        const double pre = u[i * m + j];
        for (size_t k = 0; k < d; ++k) {
          du += dy[i * d + k] * wu[(g * d + k) * m + j];
          dwu[(g * d + k) * m + j] += kScaling * dy[i * d + k] * gelu(pre);
        }
        du *= kScaling * gelu_derivative(pre);
        dbd[g * m + j] += du;
        for (size_t k = 0; k < n; ++k) {
          dh[i * n + k] += du * wd[(g * m + j) * n + k];
          dwd[(g * m + j) * n + k] += du * h[i * n + k];
        }
      }
    }
    return {dh, dwd, dbd, dwu, dbu};
  }
};

void test_segment_forward(const SegmentCase& c, bool residual) {
  const std::vector<Values> exact = c.forward(residual);
  const size_t stride = c.d + c.row_padding;
  const Tensor h(c.h, c.dtype), wd(c.wd, c.dtype), wu(c.wu, c.dtype), bd(c.bd, c.dtype), bu(c.bu, c.dtype);
  Values padded((c.t - 1) * stride + c.d);
  for (size_t i = 0; i < c.t * c.d; ++i) padded[i / c.d * stride + i % c.d] = c.r[i];
  const Tensor r(padded, c.dtype);
  on_every_schedule(c.name, [&](bool check) {
    const Sorted sorted(c.indices, c.adapters, kSegmentRowTile);
    const Tensor output(c.t * c.d, c.dtype), pre_activation(c.t * c.m, c.dtype);
    const ForwardTensors tensors = {h.bits(),
                                    static_cast<int64_t>(c.n),
                                    residual ? r.bits() : nullptr,
                                    static_cast<int64_t>(stride),
                                    wd.bits(),
                                    bd.bits(),
                                    wu.bits(),
                                    bu.bits(),
                                    output.bits(),
                                    pre_activation.bits()};
    run_path<ForwardTensors>(lay_out_segments, run_segments, {c.problem(), tensors, &sorted.tokens});
    if (check) require_close(output.values(), exact[0], c.name, c.tolerance());
    if (check) require_close(pre_activation.values(), exact[1], c.name, c.tolerance());
    return std::vector{output.copy(), pre_activation.copy()};
  });
}

// wanted: a bit for grad_input, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias.
void test_segment_backward(const SegmentCase& c, bool add_grad_output, unsigned wanted) {
  const std::vector<Values> exact = c.backward(add_grad_output);
  const Tensor dy(c.dy, c.dtype), h(c.h, c.dtype), u(c.u, c.dtype), wd(c.wd, c.dtype), wu(c.wu, c.dtype);
  on_every_schedule(c.name, [&](bool check) {
    const Sorted sorted(c.indices, c.adapters, kSegmentRowTile);
    std::vector<Tensor> results;
    void* pointers[5];
    for (int i = 0; i < 5; ++i) {
      results.emplace_back(exact[i].size(), c.dtype);
      pointers[i] = wanted >> i & 1 ? results.back().bits() : nullptr;
    }
    const BackwardTensors tensors = {dy.bits(),   static_cast<int64_t>(c.d),
                                     h.bits(),    static_cast<int64_t>(c.n),
                                     u.bits(),    wd.bits(),
                                     wu.bits(),   add_grad_output,
                                     pointers[0], pointers[1],
                                     pointers[2], pointers[3],
                                     pointers[4]};
    run_path<BackwardTensors>(lay_out_segments, run_segments, {c.problem(), tensors, &sorted.tokens});
    std::vector<std::vector<uint16_t>> bits;
    for (int i = 0; i < 5; ++i) {
      if (check && pointers[i]) require_close(results[i].values(), exact[i], c.name, c.tolerance());
      bits.push_back(results[i].copy());
    }
    return bits;
  });
}

void test_segments(SegmentCase c, bool residual, bool add_grad_output, unsigned wanted = 31) {
  c.fill();
  test_segment_forward(c, residual);
  test_segment_backward(c, add_grad_output, wanted);
}

}  // namespace

void run_grouped() {
  constexpr ScalarType kFloat = ScalarType::float32, kBfloat16 = ScalarType::bfloat16;
  for (int schedule = 0; schedule < 6; ++schedule) {
    emulator::machine().options = {static_cast<emulator::Order>(schedule % 3), schedule >= 3, 7u + schedule};
    test_sort(200, 3, 16);
    test_sort(60, 4, 32, 7);
    test_sort(50, 300, 64, 3);
    test_sort(300, 5, 32, 2);
    test_sort(1300, 3, 64);
    test_sort(600, 300, 16);
    test_sort(1300, 100, 64);
    test_grouped(8, {64, 2}, kStreaming);
    test_grouped(32, {64, 2}, kStreaming);  // no padding
  }
  test_segments({90, 70, 41, 9, 3, kFloat, 3, "segments, unaligned, two windows of input_size"}, true, false);
  test_segments({70, 40, 40, 8, 5, kFloat, 0, "segments, aligned, grad_output added"}, false, true);
  test_segments({80, 40, 72, 72, 2, kBfloat16, 0, "segments, tensor cores, windows both ways"}, false, false);
  test_segments({70, 37, 37, 7, 2, kBfloat16, 3, "segments, tensor cores, rows end within a unit"}, true, true);
  test_segments({2900, 4, 4, 3, 1, kFloat, 0, "segments, two ranges"}, false, false, 30);
  for (const unsigned wanted : {1u, 4u, 8u, 16u}) {
    test_segments({20, 24, 24, 6, 2, kFloat, 0, "segments, one gradient"}, false, true, wanted);
  }
}

}  // namespace suite
