#include "sorted_tokens.h"

#include <algorithm>

namespace adapterx::cpu {
namespace {

// In quarters of the time of a row with an adapter. Entering an adapter takes as long as some ten rows whatever the
// sizes, since packing its weights grows like a row's products do; a row without adapter is only copied.
constexpr int64_t kRowWork = 4;
constexpr int64_t kCopyWork = 1;
constexpr int64_t kEntryRows = 10;
// Least work of a share, in rows: less does not pay for waking a thread.
constexpr int64_t kShareRows = 24;
// Cuts within an adapter fall on multiples of it, since most tile heights divide it. At most half of kShareRows, so
// that two cuts stay apart.
constexpr int64_t kCutRows = 12;

int64_t work_of_slot(const SortedTokens& tokens, int64_t empty_rows, int64_t slot) {
  const int64_t count = tokens.count(slot);
  if (slot == 0) return count * kCopyWork;
  return (count == 0 ? empty_rows : kEntryRows + count) * kRowWork;
}

// Rows of a slot with `count` rows that go before a cut at `work` within it. A part of a few rows would spend more on
// entering the adapter than it takes from its neighbour.
int64_t rows_before(int64_t slot, int64_t count, int64_t work) {
  if (slot == 0) return std::min(count, work / kCopyWork);
  const int64_t rows = std::max<int64_t>(0, work / kRowWork - kEntryRows);
  const int64_t rounded = std::min(count, (rows + kCutRows / 2) / kCutRows * kCutRows);
  if (std::min(rounded, count - rounded) > kEntryRows) return rounded;
  return 2 * rounded < count ? 0 : count;
}

}  // namespace

SortedTokens sort_tokens(const AdapterIndices& indices, int64_t num_tokens, int64_t* order, int64_t* starts) {
  std::fill_n(starts, starts_size(indices.num_adapters), 0);
  // A slot is counted two places on. Summed up, its start stands one place on, moves while tokens are placed, and ends
  // as the start of the next slot: one place on again.
  int64_t* const counts = starts + 3;  // by index: -1 is the first slot
  for (int64_t i = 0; i < num_tokens; ++i) ++counts[indices.values[i]];
  for (int64_t slot = 0; slot <= indices.num_adapters; ++slot) starts[slot + 2] += starts[slot + 1];
  int64_t* const positions = starts + 2;
  for (int64_t i = 0; i < num_tokens; ++i) order[positions[indices.values[i]]++] = i;
  return {indices.num_adapters + 1, order, starts};
}

bool all_equal(const AdapterIndices& indices, int64_t num_tokens) {
  return std::all_of(indices.values, indices.values + num_tokens,
                     [&](int64_t index) { return index == indices.values[0]; });
}

int64_t largest_number_of_shares(int64_t num_tokens, int64_t num_adapters, int64_t empty_rows) {
  return std::max<int64_t>(1, (num_tokens + std::max(kEntryRows, empty_rows) * num_adapters) / kShareRows);
}

int64_t cut_evenly(const SortedTokens& tokens, int64_t empty_rows, int64_t most_shares, Cut* cuts) {
  int64_t total = 0;
  for (int64_t slot = 0; slot < tokens.num_slots; ++slot) total += work_of_slot(tokens, empty_rows, slot);
  const int64_t shares = std::clamp<int64_t>(total / (kShareRows * kRowWork), 1, most_shares);
  int64_t slot = 0;
  int64_t before = 0;  // work of the slots before `slot`
  cuts[0] = {0, 0};
  for (int64_t share = 1; share < shares; ++share) {
    const int64_t target = total / shares * share + total % shares * share / shares;
    while (before + work_of_slot(tokens, empty_rows, slot) <= target)
      before += work_of_slot(tokens, empty_rows, slot++);
    const int64_t count = tokens.count(slot);
    const int64_t rows = rows_before(slot, count, target - before);
    cuts[share] = rows < count ? Cut{slot, tokens.starts[slot] + rows} : Cut{slot + 1, tokens.starts[slot + 1]};
  }
  cuts[shares] = {tokens.num_slots, tokens.starts[tokens.num_slots]};
  return shares;
}

}  // namespace adapterx::cpu
