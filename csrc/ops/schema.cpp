// Operator schemas. No default for any argument that changes numbers: serialisation leaves out arguments equal to the
// default, and a later library with another default would silently change old files. The defaults that there are, of the
// trailing arguments, say that something is absent; files written before the argument existed say the same.
#include <torch/library.h>

TORCH_LIBRARY(adapterx, m) {
  // The public operator. With residual and hidden_states the same tensor (sequential placement) the backward pass
  // adds both gradients in one sweep. With adapter_indices (int64, the leading dimensions of hidden_states or some of
  // the first of them; -1: none) each token picks one of several adapters, and weights and biases have a leading
  // dimension, the adapters.
  m.def(
      "bottleneck_adapter(Tensor hidden_states, Tensor? residual, Tensor down_weight, Tensor? down_bias, "
      "Tensor up_weight, Tensor? up_bias, str activation, float scaling, Tensor? adapter_indices=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  // The same, and what the backward pass needs. Used by autograd.
  m.def(
      "bottleneck_adapter_train(Tensor hidden_states, Tensor? residual, Tensor down_weight, Tensor? down_bias, "
      "Tensor up_weight, Tensor? up_bias, str activation, float scaling, Tensor? adapter_indices=None) -> "
      "(Tensor output, Tensor pre_activation)",
      {at::Tag::pt2_compliant_tag});
  // Gradients whose flag in output_mask is false are undefined (None in Python), and tensors that only they need may
  // be left out. The gradient of the residual is grad_output itself. num_adapters: with adapter_indices, how many.
  m.def(
      "bottleneck_adapter_backward(Tensor grad_output, Tensor? hidden_states, Tensor? pre_activation, "
      "Tensor? down_weight, Tensor? up_weight, str activation, float scaling, bool add_grad_output, "
      "bool[5] output_mask, Tensor? adapter_indices=None, int num_adapters=0) -> (Tensor grad_hidden_states, "
      "Tensor grad_down_weight, Tensor grad_down_bias, Tensor grad_up_weight, Tensor grad_up_bias)",
      {at::Tag::pt2_compliant_tag});
  // Sorts the tokens of a batch by adapter, once for all calls that share the indices: what it returns, bytes that only
  // these operators read, they take in place of adapter_indices. The indices are for consecutive tokens, equally many
  // each.
  m.def("sort_tokens(Tensor adapter_indices, SymInt num_tokens, int num_adapters) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  // What the library was built from and for, as JSON.
  m.def("build_info() -> str", {at::Tag::pt2_compliant_tag});
}
