// Adapter indices that bring the order of the tokens along, for calls that share one sort. Both are one tensor of
// bytes, which the operators take in place of the indices: an order can so never meet indices that it was not made of.
//
//     num_tokens x int64      the index of every token
//     at the next multiple    what cuda::sort leaves
//     of 256
//
// Made on CUDA devices only; elsewhere the operators read the indices in it.
#pragma once

#include "operators.h"

namespace adapterx::ops {

// Indices have int64. Bytes are what sort_tokens has made of them.
inline bool is_sorted(const Tensor& adapter_indices) { return adapter_indices.scalar_type() == at::kByte; }

// The size of that tensor: a bound for all that the kernels keep, as a formula of symbols, too. Where one of the numbers
// is right it tells the other. Two sorts of which both numbers differ have one size only where the tokens differ by a
// multiple of 73.
template <class Int>
Int sorted_size(const Int& num_tokens, const Int& num_adapters) {
  return num_tokens * 18 + num_adapters * 73 + 4096;
}

// Arguments of sort_tokens: "<argument> must <rule>, got <value>".
void check_sort(const Tensor& adapter_indices, const c10::SymInt& num_tokens, int64_t num_adapters);

// Writes the index of every token into the beginning of `sorted`.
void write_indices(const Tensor& sorted, const Tensor& adapter_indices, int64_t num_tokens);

// The indices (int64) of what may be sorted, as a view. `tokens`: any tensor with the leading dimensions of the tokens;
// those of the result are the same, or the first few of them.
Tensor unsorted_indices(const Tensor& adapter_indices, const Tensor& tokens);

// Bytes from the beginning to the order.
constexpr int64_t order_offset(int64_t num_tokens) { return (num_tokens * 8 + 255) / 256 * 256; }

}  // namespace adapterx::ops
