#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

Tensor indices_in(const Tensor& sorted, const c10::SymInt& num_tokens) {
  return sorted.narrow_symint(0, 0, num_tokens * 8).view(at::kLong);
}

}  // namespace

void check_sort(const Tensor& adapter_indices, const c10::SymInt& num_tokens, int64_t num_adapters) {
  TORCH_CHECK_TYPE(adapter_indices.defined(), "sort_tokens: adapter_indices must be a tensor, got None");
  TORCH_CHECK_TYPE(adapter_indices.scalar_type() == at::kLong,
                   "sort_tokens: adapter_indices must have dtype int64, got ", adapter_indices.scalar_type());
  TORCH_CHECK_VALUE(num_adapters >= 1, "sort_tokens: num_adapters must be positive, got ", num_adapters);
  const auto count = adapter_indices.sym_numel();
  const bool none = count.sym_eq(0).guard_bool(__FILE__, __LINE__);
  const bool fits = none ? num_tokens.sym_eq(0).expect_true(__FILE__, __LINE__)
                         : num_tokens.sym_ge(0).expect_true(__FILE__, __LINE__) &&
                               (num_tokens % count).sym_eq(0).expect_true(__FILE__, __LINE__);
  TORCH_CHECK_VALUE(fits, "sort_tokens: num_tokens must be a multiple of the number of indices (", count, "), got ",
                    num_tokens);
}

void write_indices(const Tensor& sorted, const Tensor& adapter_indices, int64_t num_tokens) {
  if (num_tokens == 0) return;
  const int64_t count = adapter_indices.numel();
  indices_in(sorted, num_tokens).view({count, num_tokens / count}).copy_(adapter_indices.reshape({count, 1}));
}

Tensor unsorted_indices(const Tensor& adapter_indices, const Tensor& tokens) {
  if (!is_sorted(adapter_indices)) return adapter_indices;
  const auto leading = tokens.sym_sizes().slice(0, tokens.dim() - 1);
  return indices_in(adapter_indices, c10::multiply_integers(leading)).view_symint(leading);
}

}  // namespace adapterx::ops
