// Operator schemas. No default for any argument that changes numbers: serialisation leaves out arguments equal to the
// default, and a later library with another default would silently change old files.
#include <torch/library.h>

TORCH_LIBRARY(adapterx, m) {
  m.def(
      "bottleneck_adapter(Tensor hidden_states, Tensor? residual, Tensor down_weight, Tensor? down_bias, "
      "Tensor up_weight, Tensor? up_bias, str activation, float scaling) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bottleneck_adapter_train(Tensor hidden_states, Tensor? residual, Tensor down_weight, Tensor? down_bias, "
      "Tensor up_weight, Tensor? up_bias, str activation, float scaling) -> (Tensor output, Tensor pre_activation)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bottleneck_adapter_backward(Tensor grad_output, Tensor hidden_states, Tensor pre_activation, "
      "Tensor down_weight, Tensor up_weight, str activation, float scaling, bool add_grad_output, "
      "bool[5] output_mask) -> (Tensor grad_hidden_states, Tensor grad_down_weight, Tensor grad_down_bias, "
      "Tensor grad_up_weight, Tensor grad_up_bias)",
      {at::Tag::pt2_compliant_tag});
}
