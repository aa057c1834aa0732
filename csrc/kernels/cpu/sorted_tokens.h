// Tokens sorted by adapter, and their division among threads.
#pragma once

#include "../problem.h"

namespace adapterx::cpu {

// A slot is an adapter's number plus one; slot 0 holds the tokens without adapter.
struct SortedTokens {
  int64_t num_slots = 0;
  int64_t* order = nullptr;   // token numbers by slot, ascending within a slot
  int64_t* starts = nullptr;  // the tokens of slot s are order[starts[s]] to order[starts[s + 1]]

  int64_t count(int64_t slot) const { return starts[slot + 1] - starts[slot]; }
};

// Values that sort_tokens needs room for in `starts`.
constexpr int64_t starts_size(int64_t num_adapters) { return num_adapters + 3; }
// Sorts into `order` (num_tokens values) and `starts`.
SortedTokens sort_tokens(const AdapterIndices& indices, int64_t num_tokens, int64_t* order, int64_t* starts);

// Whether all tokens picked the same.
bool all_equal(const AdapterIndices& indices, int64_t num_tokens);

// Where a share begins: at a position in the order and in the slot that it belongs to; every empty slot belongs to
// exactly one share as well.
struct Cut {
  int64_t slot;
  int64_t position;
};

// The most shares that cut_evenly makes of some tokens, however they pick.
int64_t largest_number_of_shares(int64_t num_tokens, int64_t num_adapters, int64_t empty_rows);

// Cuts the order into at most `most_shares` shares of about the same work and returns how many. `cuts` gets one value
// more: share i goes from cuts[i] to cuts[i + 1]. `empty_rows` is the work of an adapter without tokens, in rows.
// No two cuts fall on the same place within a slot.
int64_t cut_evenly(const SortedTokens& tokens, int64_t empty_rows, int64_t most_shares, Cut* cuts);

}  // namespace adapterx::cpu
