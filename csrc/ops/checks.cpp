#include "checks.h"

#include <ATen/EmptyTensor.h>

#include <cmath>
#include <string>

#include "sorted_indices.h"

namespace adapterx::ops {
namespace {

// A copy: before torch 2.13 the names come as a temporary pair of strings.
std::string dtype_name(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

// `expect_true` records the condition as a fact about symbolic sizes instead of failing on those without a value.
bool same(const c10::SymInt& a, const c10::SymInt& b) { return a.sym_eq(b).expect_true(__FILE__, __LINE__); }

bool positive(const c10::SymInt& size) { return size.sym_gt(0).expect_true(__FILE__, __LINE__); }

// The checks of one call. `hidden_states` (or `grad_output`) is the tensor that all others are compared with.
struct Checker {
  const char* function;
  const char* anchor_name;
  const Tensor& anchor;
  bool grouped;

  void is_given(const char* name, const Tensor& tensor) const {
    TORCH_CHECK_TYPE(tensor.defined(), function, ": ", name, " must be a tensor, got None");
  }

  void anchor_is_usable() const {
    is_given(anchor_name, anchor);
    const auto dtype = anchor.scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
                     function, ": ", anchor_name, " must have dtype float32, float64, bfloat16 or float16, got ",
                     dtype_name(dtype));
    TORCH_CHECK_VALUE(anchor.dim() >= 1, function, ": ", anchor_name,
                      " must have at least one dimension, got a tensor without dimensions");
    TORCH_CHECK_VALUE(positive(anchor.sym_size(-1)), function, ": ", anchor_name,
                      " must have at least one column, got shape ", anchor.sym_sizes());
  }

  void matches_anchor(const char* name, const Tensor& tensor) const {
    is_given(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == anchor.scalar_type(), function, ": ", name, " must have the dtype of ",
                     anchor_name, " (", dtype_name(anchor.scalar_type()), "), got ", dtype_name(tensor.scalar_type()));
    TORCH_CHECK_VALUE(tensor.device() == anchor.device(), function, ": ", name, " must be on the device of ",
                      anchor_name, " (", anchor.device(), "), got ", tensor.device());
  }

  // A weight: a matrix, or in the grouped form a stack of them.
  void matrix(const char* name, const Tensor& tensor, const char* rows, const char* columns) const {
    matches_anchor(name, tensor);
    TORCH_CHECK_VALUE(tensor.dim() == (grouped ? 3 : 2), function, ": ", name, " must have shape (",
                      grouped ? "num_adapters, " : "", rows, ", ", columns, "), got ", tensor.sym_sizes(),
                      grouped ? " with adapter_indices" : " without adapter_indices");
    bool filled = true;
    for (int64_t i = 0; i < tensor.dim(); ++i) filled = filled && positive(tensor.sym_size(i));
    TORCH_CHECK_VALUE(filled, function, ": ", name, " must have at least one row and one column",
                      grouped ? " and one adapter" : "", ", got shape ", tensor.sym_sizes());
  }

  // A bias of `size` elements, or in the grouped form of `num_adapters` rows of them.
  void bias(const char* name, const Tensor& tensor, const c10::SymInt& num_adapters, const c10::SymInt& size,
            const char* size_name) const {
    matches_anchor(name, tensor);
    const bool fits = tensor.dim() == (grouped ? 2 : 1) && same(tensor.sym_size(-1), size) &&
                      (!grouped || same(tensor.sym_size(0), num_adapters));
    if (grouped) {
      TORCH_CHECK_VALUE(fits, function, ": ", name, " must have shape (num_adapters, ", size_name, ") = (",
                        num_adapters, ", ", size, "), got ", tensor.sym_sizes());
    }
    TORCH_CHECK_VALUE(fits, function, ": ", name, " must have shape (", size_name, ",) = (", size, ",), got ",
                      tensor.sym_sizes());
  }

  void has_adapters(const char* name, const Tensor& tensor, const c10::SymInt& num_adapters) const {
    TORCH_CHECK_VALUE(!grouped || same(tensor.sym_size(0), num_adapters), function, ": ", name,
                      " must be for as many adapters as the other arguments (", num_adapters, "), got shape ",
                      tensor.sym_sizes());
  }

  // One index for each token, or for each entry of the first leading dimensions.
  void indices(const char* name, const Tensor& tensor) const {
    is_given(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kLong || is_sorted(tensor), function, ": ", name,
                     " must have dtype int64, got ", dtype_name(tensor.scalar_type()));
    TORCH_CHECK_VALUE(tensor.device() == anchor.device(), function, ": ", name, " must be on the device of ",
                      anchor_name, " (", anchor.device(), "), got ", tensor.device());
    if (is_sorted(tensor)) return;  // `order` looks at it
    bool fits = tensor.dim() < anchor.dim();
    for (int64_t i = 0; fits && i < tensor.dim(); ++i) fits = same(tensor.sym_size(i), anchor.sym_size(i));
    TORCH_CHECK_VALUE(fits, function, ": ", name, " must have the first of the leading dimensions of ", anchor_name,
                      " ", anchor.sym_sizes(), ", got shape ", tensor.sym_sizes());
  }

  // Sorted indices: for as many tokens and adapters.
  void order(const char* name, const Tensor& tensor, const c10::SymInt& num_adapters) const {
    if (!is_sorted(tensor)) return;
    const auto num_tokens = c10::multiply_integers(anchor.sym_sizes().slice(0, anchor.dim() - 1));
    const bool fits =
        tensor.dim() == 1 && tensor.is_contiguous() && same(tensor.sym_size(0), sorted_size(num_tokens, num_adapters));
    TORCH_CHECK_TYPE(fits, function, ": ", name, " must have dtype int64, or be what sort_tokens returned for ",
                     num_tokens, " tokens and ", num_adapters, " adapters, got uint8 of shape ", tensor.sym_sizes());
  }

  // Same leading dimensions as the anchor, and `columns` columns.
  void tokens(const char* name, const Tensor& tensor, const c10::SymInt& columns, const char* columns_name) const {
    matches_anchor(name, tensor);
    bool fits = tensor.dim() == anchor.dim();
    for (int64_t i = 0; fits && i + 1 < anchor.dim(); ++i) fits = same(tensor.sym_size(i), anchor.sym_size(i));
    TORCH_CHECK_VALUE(fits && same(tensor.sym_size(-1), columns), function, ": ", name,
                      " must have the leading dimensions of ", anchor_name, " ", anchor.sym_sizes(), " and ", columns,
                      " columns (", columns_name, "), got ", tensor.sym_sizes());
  }

  void scaling_is_finite(double scaling) const {
    TORCH_CHECK_VALUE(std::isfinite(scaling), function, ": scaling must be finite, got ", scaling);
  }
};

// PyTorch's words stand at the end where there is no memory at all: programs look for them.
void is_in_memory(const char* function, const char* name, const Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() == 0) return;
  const size_t needed = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.element_size(),
                                                         tensor.storage_offset());
  const bool has_storage = tensor.has_storage();
  const bool allocated = has_storage && tensor.storage().data() != nullptr;
  const size_t held = has_storage ? tensor.storage().nbytes() : 0;
  TORCH_CHECK(allocated && held >= needed, function, ": ", name, " must have a storage of at least ", needed,
              " bytes for shape ", tensor.sizes(), ", got ", allocated ? held : 0, " bytes",
              allocated ? "" : ": the tensor has a non-zero number of elements, but its data is not allocated yet");
}

void is_in_memory(const char* function, const char* name, const OptTensor& tensor) {
  if (tensor) is_in_memory(function, name, *tensor);
}

const Tensor& required(const char* function, const OptTensor& tensor, const char* name, const char* gradient) {
  TORCH_CHECK_VALUE(tensor.has_value() && tensor->defined(), function, ": ", name, " must be given when ", gradient,
                    " is wanted, got None");
  return *tensor;
}

// What the gradients need that pass through the activation.
void check_through_activation(const Checker& check, const BackwardArguments& a) {
  constexpr const char* kGradients = "grad_hidden_states, grad_down_weight or grad_down_bias";
  const auto& pre_activation = required(check.function, a.pre_activation, "pre_activation", kGradients);
  const auto& up_weight = required(check.function, a.up_weight, "up_weight", kGradients);
  const auto hidden_size = a.grad_output.sym_size(-1);
  check.matrix("up_weight", up_weight, "hidden_size", "bottleneck_dim");
  check.has_adapters("up_weight", up_weight, a.num_adapters);
  TORCH_CHECK_VALUE(same(up_weight.sym_size(-2), hidden_size), check.function,
                    ": up_weight must have as many rows as grad_output has columns (", hidden_size, "), got shape ",
                    up_weight.sym_sizes());
  check.tokens("pre_activation", pre_activation, up_weight.sym_size(-1), "bottleneck_dim");
}

// What the gradient of the hidden states needs besides.
void check_input_gradient(const Checker& check, const BackwardArguments& a) {
  const auto& down_weight = required(check.function, a.down_weight, "down_weight", "grad_hidden_states");
  const auto hidden_size = a.grad_output.sym_size(-1), bottleneck_dim = a.pre_activation->sym_size(-1);
  check.matrix("down_weight", down_weight, "bottleneck_dim", "input_size");
  check.has_adapters("down_weight", down_weight, a.num_adapters);
  TORCH_CHECK_VALUE(same(down_weight.sym_size(-2), bottleneck_dim), check.function,
                    ": down_weight must have as many rows as pre_activation has columns (", bottleneck_dim,
                    "), got shape ", down_weight.sym_sizes());
  TORCH_CHECK_VALUE(!a.add_grad_output || same(down_weight.sym_size(-1), hidden_size), check.function,
                    ": down_weight must have as many columns as grad_output (", hidden_size,
                    ") when add_grad_output is set, got shape ", down_weight.sym_sizes());
}

}  // namespace

Activation checked_activation(const char* function, std::string_view name) {
  const auto activation = parse_activation(name);
  if (!activation) {
    std::string names;
    for (const auto known : kActivationNames) names.append(names.empty() ? "" : ", ").append(known);
    TORCH_CHECK_VALUE(false, function, ": activation must be one of ", names, ", got '", name, "'");
  }
  return *activation;
}

void check_given(const ForwardArguments& a) {
  const Checker check{a.name(), "hidden_states", a.hidden_states, a.grouped()};
  check.is_given("hidden_states", a.hidden_states);
  check.is_given("down_weight", a.down_weight);
  check.is_given("up_weight", a.up_weight);
}

Activation check_forward(const ForwardArguments& a) {
  const Checker check{a.name(), "hidden_states", a.hidden_states, a.grouped()};
  const auto parsed = checked_activation(check.function, a.activation);
  check.scaling_is_finite(a.scaling);
  check.anchor_is_usable();
  if (a.grouped()) check.indices("adapter_indices", *a.adapter_indices);
  check.matrix("down_weight", a.down_weight, "bottleneck_dim", "input_size");
  check.matrix("up_weight", a.up_weight, "hidden_size", "bottleneck_dim");
  const auto num_adapters = a.down_weight.sym_size(0);
  if (a.grouped()) check.order("adapter_indices", *a.adapter_indices, num_adapters);
  const auto bottleneck_dim = a.down_weight.sym_size(-2), hidden_size = a.up_weight.sym_size(-2);
  check.has_adapters("up_weight", a.up_weight, num_adapters);
  TORCH_CHECK_VALUE(same(a.down_weight.sym_size(-1), a.hidden_states.sym_size(-1)), check.function,
                    ": down_weight must have as many columns as hidden_states (", a.hidden_states.sym_size(-1),
                    "), got shape ", a.down_weight.sym_sizes());
  TORCH_CHECK_VALUE(same(a.up_weight.sym_size(-1), bottleneck_dim), check.function,
                    ": up_weight must have as many columns as down_weight has rows (", bottleneck_dim, "), got shape ",
                    a.up_weight.sym_sizes());
  if (a.down_bias) check.bias("down_bias", *a.down_bias, num_adapters, bottleneck_dim, "bottleneck_dim");
  if (a.up_bias) check.bias("up_bias", *a.up_bias, num_adapters, hidden_size, "hidden_size");
  if (a.residual) check.tokens("residual", *a.residual, hidden_size, "hidden_size");
  return parsed;
}

Activation check_backward(const BackwardArguments& a) {
  const Checker check{a.name(), "grad_output", a.grad_output, a.grouped()};
  const auto parsed = checked_activation(check.function, a.activation);
  check.scaling_is_finite(a.scaling);
  check.anchor_is_usable();
  if (a.grouped()) check.indices("adapter_indices", *a.adapter_indices);
  TORCH_CHECK_VALUE(a.grouped() ? a.num_adapters >= 1 : a.num_adapters == 0, check.function, ": num_adapters must be ",
                    a.grouped() ? "positive" : "0 without adapter_indices", ", got ", a.num_adapters);
  if (a.grouped()) check.order("adapter_indices", *a.adapter_indices, a.num_adapters);
  if (a.output_mask[kHiddenStates] || a.output_mask[kDownWeight] || a.output_mask[kDownBias]) {
    check_through_activation(check, a);
  }
  if (a.output_mask[kUpWeight]) {
    const auto& pre_activation = required(check.function, a.pre_activation, "pre_activation", "grad_up_weight");
    check.tokens("pre_activation", pre_activation, pre_activation.sym_size(-1), "bottleneck_dim");
  }
  if (a.output_mask[kDownWeight]) {
    const auto& hidden_states = required(check.function, a.hidden_states, "hidden_states", "grad_down_weight");
    check.tokens("hidden_states", hidden_states, hidden_states.sym_size(-1), "input_size");
  }
  if (a.output_mask[kHiddenStates]) check_input_gradient(check, a);
  return parsed;
}

void check_memory(const ForwardArguments& a) {
  is_in_memory(a.name(), "hidden_states", a.hidden_states);
  is_in_memory(a.name(), "residual", a.residual);
  is_in_memory(a.name(), "down_weight", a.down_weight);
  is_in_memory(a.name(), "down_bias", a.down_bias);
  is_in_memory(a.name(), "up_weight", a.up_weight);
  is_in_memory(a.name(), "up_bias", a.up_bias);
  is_in_memory(a.name(), "adapter_indices", a.adapter_indices);
}

void check_memory(const BackwardArguments& a) {
  is_in_memory(a.name(), "grad_output", a.grad_output);
  is_in_memory(a.name(), "hidden_states", a.hidden_states);
  is_in_memory(a.name(), "pre_activation", a.pre_activation);
  is_in_memory(a.name(), "down_weight", a.down_weight);
  is_in_memory(a.name(), "up_weight", a.up_weight);
  is_in_memory(a.name(), "adapter_indices", a.adapter_indices);
}

}  // namespace adapterx::ops
