#include "checks.h"

#include <cmath>
#include <string>

namespace adapterx::ops {
namespace {

constexpr const char* kForward = "bottleneck_adapter";
constexpr const char* kBackward = "bottleneck_adapter_backward";

std::string_view dtype_name(at::ScalarType dtype) { return c10::getDtypeNames(dtype).first; }

// `expect_true` records the condition as a fact about symbolic sizes instead of failing on those without a value.
bool same(const c10::SymInt& a, const c10::SymInt& b) { return a.sym_eq(b).expect_true(__FILE__, __LINE__); }

bool positive(const c10::SymInt& size) { return size.sym_gt(0).expect_true(__FILE__, __LINE__); }

// The checks of one call. `hidden_states` (or `grad_output`) is the tensor that all others are compared with.
struct Checker {
  const char* function;
  const char* anchor_name;
  const Tensor& anchor;

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

  void matrix(const char* name, const Tensor& tensor, const char* rule) const {
    matches_anchor(name, tensor);
    TORCH_CHECK_VALUE(tensor.dim() == 2, function, ": ", name, " must have shape ", rule, ", got ", tensor.sym_sizes());
    TORCH_CHECK_VALUE(positive(tensor.sym_size(0)) && positive(tensor.sym_size(1)), function, ": ", name,
                      " must have at least one row and one column, got shape ", tensor.sym_sizes());
  }

  void vector(const char* name, const Tensor& tensor, const c10::SymInt& size, const char* size_name) const {
    matches_anchor(name, tensor);
    TORCH_CHECK_VALUE(tensor.dim() == 1 && same(tensor.sym_size(0), size), function, ": ", name, " must have shape (",
                      size_name, ",) = (", size, ",), got ", tensor.sym_sizes());
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

const Tensor& required(const OptTensor& tensor, const char* name, const char* gradient) {
  TORCH_CHECK_VALUE(tensor.has_value() && tensor->defined(), kBackward, ": ", name, " must be given when ", gradient,
                    " is wanted, got None");
  return *tensor;
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

void check_given(const Tensor& hidden_states, const Tensor& down_weight, const Tensor& up_weight) {
  const Checker check{kForward, "hidden_states", hidden_states};
  check.is_given("hidden_states", hidden_states);
  check.is_given("down_weight", down_weight);
  check.is_given("up_weight", up_weight);
}

Activation check_forward(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                         const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                         std::string_view activation, double scaling) {
  const Checker check{kForward, "hidden_states", hidden_states};
  const auto parsed = checked_activation(kForward, activation);
  check.scaling_is_finite(scaling);
  check.anchor_is_usable();
  check.matrix("down_weight", down_weight, "(bottleneck_dim, input_size)");
  check.matrix("up_weight", up_weight, "(hidden_size, bottleneck_dim)");
  TORCH_CHECK_VALUE(same(down_weight.sym_size(1), hidden_states.sym_size(-1)), kForward,
                    ": down_weight must have as many columns as hidden_states (", hidden_states.sym_size(-1),
                    "), got shape ", down_weight.sym_sizes());
  TORCH_CHECK_VALUE(same(up_weight.sym_size(1), down_weight.sym_size(0)), kForward,
                    ": up_weight must have as many columns as down_weight has rows (", down_weight.sym_size(0),
                    "), got shape ", up_weight.sym_sizes());
  if (down_bias) check.vector("down_bias", *down_bias, down_weight.sym_size(0), "bottleneck_dim");
  if (up_bias) check.vector("up_bias", *up_bias, up_weight.sym_size(0), "hidden_size");
  if (residual) check.tokens("residual", *residual, up_weight.sym_size(0), "hidden_size");
  return parsed;
}

Activation check_backward(const Tensor& grad_output, const OptTensor& hidden_states, const OptTensor& pre_activation,
                          const OptTensor& down_weight, const OptTensor& up_weight, std::string_view activation,
                          double scaling, bool add_grad_output, OutputMask output_mask) {
  const Checker check{kBackward, "grad_output", grad_output};
  const auto parsed = checked_activation(kBackward, activation);
  check.scaling_is_finite(scaling);
  check.anchor_is_usable();
  const auto hidden_size = grad_output.sym_size(-1);
  if (output_mask[kHiddenStates] || output_mask[kDownWeight] || output_mask[kDownBias]) {
    required(pre_activation, "pre_activation", "grad_hidden_states, grad_down_weight or grad_down_bias");
    const auto& up = required(up_weight, "up_weight", "grad_hidden_states, grad_down_weight or grad_down_bias");
    check.matrix("up_weight", up, "(hidden_size, bottleneck_dim)");
    TORCH_CHECK_VALUE(same(up.sym_size(0), hidden_size), kBackward,
                      ": up_weight must have as many rows as grad_output has columns (", hidden_size, "), got shape ",
                      up.sym_sizes());
    check.tokens("pre_activation", *pre_activation, up.sym_size(1), "bottleneck_dim");
  }
  if (output_mask[kUpWeight]) {
    const auto& pre = required(pre_activation, "pre_activation", "grad_up_weight");
    check.tokens("pre_activation", pre, pre.sym_size(-1), "bottleneck_dim");
  }
  if (output_mask[kDownWeight]) {
    const auto& hidden = required(hidden_states, "hidden_states", "grad_down_weight");
    check.tokens("hidden_states", hidden, hidden.sym_size(-1), "input_size");
  }
  if (output_mask[kHiddenStates]) {
    const auto& down = required(down_weight, "down_weight", "grad_hidden_states");
    check.matrix("down_weight", down, "(bottleneck_dim, input_size)");
    TORCH_CHECK_VALUE(same(down.sym_size(0), pre_activation->sym_size(-1)), kBackward,
                      ": down_weight must have as many rows as pre_activation has columns (",
                      pre_activation->sym_size(-1), "), got shape ", down.sym_sizes());
    TORCH_CHECK_VALUE(!add_grad_output || same(down.sym_size(1), hidden_size), kBackward,
                      ": down_weight must have as many columns as grad_output (", hidden_size,
                      ") when add_grad_output is set, got shape ", down.sym_sizes());
  }
  return parsed;
}

}  // namespace adapterx::ops
