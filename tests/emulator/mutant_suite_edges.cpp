// The edges in the mutation suite: sizes that end inside a vector, blocks of a cluster that have nothing to give out,
// offsets that need 64 bits.
#include "far_tokens.h"
#include "mutant_suite.h"

namespace suite {
namespace {

constexpr int64_t kColumns = 4096;
// Four tokens below 2^31 elements, four beyond 2^31 and four beyond 2^32.
constexpr int64_t kNear = 3, kFar = (int64_t{1} << 31) / kColumns + 5, kFarther = (int64_t{1} << 32) / kColumns + 2;

// The rows of sparse matrices that FarTokens names; `width` elements each.
struct FarRows {
  emulator::SparseMemory memory;
  const std::vector<int64_t>& tokens;
  size_t width;

  FarRows(const std::vector<int64_t>& which, int64_t num_tokens, size_t columns)
      : memory(static_cast<size_t>(num_tokens) * columns * 2), tokens(which), width(columns) {}
  uint16_t* bits() const { return reinterpret_cast<uint16_t*>(memory.data()); }
  uint16_t* row(size_t i) const { return bits() + static_cast<size_t>(tokens[i]) * width; }
  void put(const Tensor& rows) const {
    for (size_t i = 0; i < tokens.size(); ++i) std::memcpy(row(i), rows.bits() + i * width, 2 * width);
  }
  std::vector<uint16_t> copy() const {
    std::vector<uint16_t> result;
    for (size_t i = 0; i < tokens.size(); ++i) result.insert(result.end(), row(i), row(i) + width);
    return result;
  }
};

}  // namespace

void test_far_tokens(const TileShape& tile, const Device& device) {
  std::vector<int64_t> places;
  for (int64_t i = 0; i < 4; ++i) places.insert(places.end(), {kNear + i, kFar + 3 * i, kFarther + 7 * i});
  const int64_t num_tokens = kFarther + 100;
  const size_t t = places.size(), d = kColumns, m = 8;
  const Tensor h(normal(t * d, 1, 1)), r(normal(t * d, 1, 2)), u(normal(t * m, 1, 3));
  const Tensor wd(normal(m * d, 1 / std::sqrt(d), 4)), wu(normal(d * m, 1 / std::sqrt(m), 5));
  emulator::FarTokens far(places);
  std::vector<int64_t> numbers(t);
  for (size_t i = 0; i < t; ++i) numbers[i] = static_cast<int64_t>(i);
  emulator::FarTokens near(numbers);
  std::vector<std::vector<uint16_t>> results[2];
  for (const bool is_far : {false, true}) {
    emulator::FarTokens& grouping = is_far ? far : near;
    const int64_t rows = is_far ? num_tokens : static_cast<int64_t>(t);
    const FarRows th(grouping.tokens, rows, d), tr(grouping.tokens, rows, d), tu(grouping.tokens, rows, m);
    const FarRows output(grouping.tokens, rows, d), pre_activation(grouping.tokens, rows, m);
    const FarRows dh(grouping.tokens, rows, d);
    th.put(h), tr.put(r), tu.put(u);
    const Tensor dwd(m * d), dbd(m), dwu(d * m), dbu(d);
    Problem problem = problem_of({t, d, m, {}, ""});
    problem.num_tokens = rows;
    const SortedTokens sorted = grouping.sorted(rows, tile.row_tile);
    const ForwardTensors forward = {th.bits(), kColumns,  tr.bits(), kColumns,      wd.bits(),
                                    nullptr,   wu.bits(), nullptr,   output.bits(), pre_activation.bits()};
    const BackwardTensors backward = {tr.bits(), kColumns,  th.bits(),  kColumns,   tu.bits(),  wd.bits(), wu.bits(),
                                      true,      dh.bits(), dwd.bits(), dbd.bits(), dwu.bits(), dbu.bits()};
    run_path<ForwardTensors>(lay_out_tile, run_tile, {problem, forward, &sorted, tile, {}, device});
    run_path<BackwardTensors>(lay_out_tile, run_tile, {problem, backward, &sorted, tile, {}, device});
    results[is_far] = {output.copy(), pre_activation.copy(), dh.copy(), dwd.copy(), dbd.copy(), dwu.copy(), dbu.copy()};
  }
  require(results[0] == results[1], "tokens far apart");
}

void run_edges() {
  // bottleneck_dim of 2 mod 4; 34 tokens, so that the tensors themselves are aligned for vectors of four.
  test_forward({34, 136, 30, {64, 2}, "forward, bottleneck of 2 mod 4"}, false, true);
  test_backward({34, 136, 18, {16, 4}, "backward, bottleneck of 2 mod 4"}, false, 31);
  // Rows that are aligned and end inside 16 bytes.
  test_forward({21, 77, 24, {16, 2}, "forward, columns inside a vector", {}, 3}, true, true);
  test_backward({21, 261, 24, {64, 2}, "backward, columns inside a vector", {}, 3}, true, 31);
  // Blocks of a cluster that write no gradient of the input, and may run ahead of those that still read theirs.
  test_backward({40, 328, 24, {16, 8}, "backward, no grad_input in a cluster of 8"}, false, 30);
  test_backward({70, 328, 24, {64, 4}, "backward, no grad_input in a cluster of 4"}, false, 30);
  test_far_tokens({16, 8}, {});
}

}  // namespace suite
